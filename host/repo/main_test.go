package repo

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/exchange/errs"
)

// childEnv tells the test binary that it is the other process of a test, and
// which part it plays on the repo that is its argument.
const childEnv = "CODEXCHANGE_REPO_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		// leveldb waits a second in one of its goroutines after Close has returned.
		goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
	case "serve":
		playDaemon(os.Args[1])
	case "rewrite":
		playWriter(os.Args[1])
	case "contend":
		playContender(os.Args[1])
	case "kubo":
		playKubo(os.Args[1])
	case "fill":
		playFullDisk(os.Args[1])
	}
}

// A child is another process.
type child struct {
	*exec.Cmd
	out   *bufio.Reader
	stdin io.Closer
}

// start runs another process on dir. It ends at the latest with the test.
func start(t *testing.T, part, dir string) *child {
	t.Helper()
	c := prepare(t, part, dir)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c
}

// prepare is start up to Start.
func prepare(t *testing.T, part, dir string) *child {
	t.Helper()
	c := &child{Cmd: exec.CommandContext(t.Context(), os.Args[0], dir)}
	c.Env = append(os.Environ(), childEnv+"="+part)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if c.stdin, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	return c
}

// line is the next line that the process prints.
func (c *child) line(t *testing.T) string {
	t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("read from the other process: %v, after %q", err, s)
	}
	return strings.TrimSpace(s)
}

// waitForEnd returns when the test closes the standard input.
func waitForEnd() { io.Copy(io.Discard, os.Stdin) }

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

const apiText = "/ip4/127.0.0.1/tcp/5001"

func playDaemon(dir string) {
	r, err := Open(dir)
	must(err)
	must(r.SetAPI(addr(apiText)))
	fmt.Println("serving")
	waitForEnd()
	must(r.Close())
}

func addr(s string) multiaddr.Multiaddr {
	a, err := multiaddr.NewMultiaddr(s)
	if err != nil {
		panic(err)
	}
	return a
}

// newRepo makes a repo for tests.
func newRepo(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	if _, err := Init(dir, InitOptions{Profiles: []string{"test"}}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *Repo {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// refused checks that err is of a kind and says each of the texts.
func refused(t *testing.T, err error, kind errs.Kind, texts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v, want one of kind %q", err, kind)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("got error %q, want it to say %q", err, s)
		}
	}
}

// tree is every name below a directory with its mode, and the sum of what is in it.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %v", path, fi.Mode(), fi.ModTime().Format(time.RFC3339Nano))
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			b.WriteString(" " + hex.EncodeToString(sum[:]))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
