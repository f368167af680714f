// Package nodetest runs nodes as processes of their own, each over a repo, as a person
// would run them: the program of a test starts itself again, and asks what it is there
// by net/rpc over standard input and output. It decides how such a process is started,
// asked and ended; what it is asked, and what should come of it, is left to the
// tests.
//
// [Main] is the TestMain of such tests, [Start] makes a node, [Run] is for programs that are
// no nodes. service.go is what goes on in the process of a node, node.go what the test
// sees of it.
//
// # Goroutines
//
//	Start, Launch  one that waits for the process; ends with it, and Stop, which the
//	               end of the test calls, waits; and net/rpc's, which ends before
//	Run            one that waits for the program; ends with it, at the end of the test
package nodetest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
)

// The environment of a process that is to be something else than the test says what,
// and with which argument.
const (
	roleVariable     = "NODETEST_ROLE"
	argumentVariable = "NODETEST_ARGUMENT"
)

// nodeRole is a node over the repo that the argument names.
const nodeRole = "node"

// Main is the whole of TestMain. In the process of a plugin or of a node it does not
// run the tests, nor where [Command] has started one of roles, each of which is given
// its argument. Goroutines that are left when the tests have ended fail them, but for
// leaks.
func Main(m *testing.M, roles map[string]func(argument string) error, leaks ...goleak.Option) {
	host.Main()
	if name := os.Getenv(roleVariable); name != "" {
		role := roles[name]
		if name == nodeRole {
			role = func(dir string) error { return serveNode(dir, os.Stdin, os.Stdout) }
		}
		if err := role(os.Getenv(argumentVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, append(leaks,
		// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))...)
}

// Must fails the test if err is one.
func Must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Eventually waits until f holds.
func Eventually(t testing.TB, what string, within time.Duration, f func() bool) {
	t.Helper()
	end := time.Now().Add(within)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(5 * time.Millisecond) // other processes are watched: there is nothing to wait on
	}
}

// Random is content that only this seed makes, and its SHA-256.
func Random(seed uint64, size int) (content []byte, sum string) {
	content = make([]byte, size)
	rand.NewChaCha8([32]byte{1: byte(seed), 2: byte(seed >> 8), 3: byte(seed >> 16), 4: byte(seed >> 24)}).Read(content)
	return content, Sum(content)
}

// Sum is a SHA-256 in hexadecimal digits.
func Sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// SocketDir makes a directory whose path is short: there are sockets below it.
func SocketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "x")
	Must(t, "make directory", err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
