// Package faults kills, stops and starves nodes and plugins that are real
// processes, and looks at what is left.
package faults

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

var loopback = multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")

func TestMain(m *testing.M) { nodetest.Main(m, nil) }

// What the tests here say all the time.
var (
	must       = nodetest.Must
	eventually = nodetest.Eventually
	socketDir  = nodetest.SocketDir
)

// A fetcher is a node in a process of its own, with the Codex block exchange as a
// plugin in another.
type fetcher struct{ *nodetest.Node }

// fetch starts a fetcher that is connected to a seeder.
func fetch(t testing.TB, from seeder) fetcher {
	t.Helper()
	f := fetcher{nodetest.Start(t, "fetcher", host.Blockexc)}
	info := from.AddrInfo()
	must(t, "connect", f.Connect(fmt.Sprintf("%s/p2p/%s", info.Addrs[0], info.ID)))
	return f
}

// plugin is what the fetcher says of its plugin.
func (f fetcher) plugin() nodetest.Exchange { f.Helper(); return f.Status().Exchanges[0] }

// A fetched is what comes of a fetch.
type fetched struct {
	sum string
	err error
}

// begin begins to fetch a file. What comes of it need not be waited for.
func (f fetcher) begin(root string) <-chan fetched {
	done := make(chan fetched, 1)
	go func() { // ends with the process, if not before
		sum, err := f.Fetch(root)
		done <- fetched{sum, err}
	}()
	return done
}

// finish waits until a file is fetched, and compares it.
func (f fetcher) finish(done <-chan fetched, want string) {
	f.Helper()
	select {
	case got := <-done:
		if got.err != nil || got.sum != want {
			f.Fatalf("fetch: SHA-256 is %q, %v, want %s", got.sum, got.err, want)
		}
	case <-time.After(150 * time.Second):
		f.Fatal("fetch: no answer")
	}
}

// signal sends a signal to one process. To the kernel, 0 and less are groups: this
// test's own, for one.
func signal(pid int, s syscall.Signal) error {
	if pid <= 1 {
		return fmt.Errorf("signal process %d: want the id of a plugin", pid)
	}
	return syscall.Kill(pid, s)
}

// alive reports whether a process exists that is not a zombie.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
