package nodetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/codexchange/codexchange/host/repo"
)

const (
	// endsWithin is how long a process may take to end when it is told to.
	endsWithin = 30 * time.Second
	// PluginEnds is how long a plugin may keep the standard error of its host.
	PluginEnds = 10 * time.Second
)

// An output is what a process says. Its methods may be called from any goroutine.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Command is this test program in one of the roles of [Main]. Its plugins have their
// sockets below tmp.
func Command(t testing.TB, role, argument, tmp string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	Must(t, "find this program", err)
	c := exec.Command(exe)
	c.Env = append(os.Environ(), roleVariable+"="+role, argumentVariable+"="+argument, "TMPDIR="+tmp)
	c.WaitDelay = PluginEnds
	return c
}

// Run starts a program that is told to end, by SIGTERM, at the end of the test, and
// returns what it has said so far whenever it is called. What it said is printed if
// the test fails. Strictly is to say that it must end without an error.
func Run(t testing.TB, name string, c *exec.Cmd, strictly bool) (said func() string) {
	t.Helper()
	var out output
	c.Stdout, c.Stderr = &out, &out
	Must(t, "start "+name, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err := <-ended:
			if err != nil && strictly {
				t.Errorf("%s ended: %v, want no error", name, err)
			}
		case <-time.After(endsWithin):
			t.Errorf("%s, pid %d, does not end", name, c.Process.Pid)
			_ = c.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out.String())
		}
	})
	return out.String
}

// Repo makes a repo that names exchanges.
func Repo(t testing.TB, use ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "repo")
	_, err := repo.Init(dir, repo.InitOptions{Profiles: []string{"test"}})
	Must(t, "make repo", err)
	SetUse(t, dir, use...)
	return dir
}

// SetUse changes the one value of the configuration that names the exchanges.
func SetUse(t testing.TB, dir string, use ...string) {
	t.Helper()
	value, err := json.Marshal(use)
	Must(t, "encode Exchange.Use", err)
	c, err := repo.OpenConfig(dir)
	Must(t, "open config", err)
	Must(t, "set Exchange.Use", c.Set("Exchange.Use", value))
	Must(t, "close config", c.Close())
}

// A Node is a node in a process of its own, as the test sees it. Its methods may be
// called from any goroutine; those that return no error, only from that of the test.
type Node struct {
	testing.TB
	Label string
	Dir   string // of its repo
	Tmp   string // where its plugins have their sockets
	ID    string
	Addr  string // the multiaddr ends in /p2p/ and the id

	cmd    *exec.Cmd
	said   output // on standard error
	calls  *rpc.Client
	killed atomic.Bool
	ended  chan struct{} // closed when the process has been waited for
	err    error         // how it ended; after that
}

// Start makes a repo and starts a node over it.
func Start(t testing.TB, name string, use ...string) *Node {
	t.Helper()
	return Launch(t, name, Repo(t, use...))
}

// Launch starts a node over the repo in dir. It ends with the test, unless Stop was
// called before.
func Launch(t testing.TB, name, dir string) *Node {
	t.Helper()
	n := &Node{TB: t, Label: name, Dir: dir, Tmp: SocketDir(t), ended: make(chan struct{})}
	n.cmd = Command(t, nodeRole, dir, n.Tmp)
	n.cmd.Stderr = &n.said
	in, err := n.cmd.StdinPipe()
	Must(t, "make pipe", err)
	out, err := n.cmd.StdoutPipe()
	Must(t, "make pipe", err)
	Must(t, "start node", n.cmd.Start())
	read, silent := context.WithCancel(context.Background())
	n.calls = rpc.NewClient(&pipe{out, in, func(error) { silent() }})
	go func() {
		<-read.Done() // all has been read
		n.err = n.cmd.Wait()
		close(n.ended)
	}()
	t.Cleanup(func() {
		n.Stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, n.Said())
		}
	})
	s := n.Status()
	n.ID, n.Addr = s.ID, s.Addr
	return n
}

// Said is what the process has said on standard error.
func (n *Node) Said() string { return n.said.String() }

// Stop ends the process in good order. It may be called more than once, and after
// Kill.
func (n *Node) Stop() {
	n.Helper()
	_ = n.calls.Close() // it may be closed
	select {
	case <-n.ended:
	case <-time.After(endsWithin):
		n.Errorf("%s does not end", n.Label)
		n.Kill()
	}
	if n.err != nil && !n.killed.Load() {
		n.Errorf("%s ended: %v, want no error", n.Label, n.err)
	}
}

// Kill is kill -9.
func (n *Node) Kill() {
	n.killed.Store(true)
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.ended
}

// call asks the process for something.
func (n *Node) call(method string, args, reply any) error {
	if reply == nil {
		reply = new(struct{})
	}
	late := time.NewTimer(Patience + 10*time.Second)
	defer late.Stop()
	select {
	case c := <-n.calls.Go(serviceName+"."+method, args, reply, make(chan *rpc.Call, 1)).Done:
		if c.Error != nil {
			return fmt.Errorf("%s: %s: %w", n.Label, method, c.Error)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("%s: %s: %w", n.Label, method, errors.New("no answer"))
	}
}

// Status is who the node is, whom it knows, and what it takes.
func (n *Node) Status() (s Status) {
	n.Helper()
	Must(n, "status", n.call("Status", struct{}{}, &s))
	return s
}

// Stored is what is in the node's blockstore.
func (n *Node) Stored() (s Stored) {
	n.Helper()
	Must(n, "list blocks", n.call("Stored", struct{}{}, &s))
	return s
}

// Received is how many blocks have come by an exchange.
func (n *Node) Received(exchange string) (blocks uint64) {
	n.Helper()
	Must(n, "count blocks", n.call("Received", exchange, &blocks))
	return blocks
}

// Restart restarts the plugin of an exchange.
func (n *Node) Restart(exchange string) error { return n.call("Restart", exchange, nil) }

// Add stores a file, cut into chunks.
func (n *Node) Add(content []byte, chunk int64) (root string, err error) {
	err = n.call("Add", File{content, chunk}, &root)
	return root, err
}

// Fetch gets a file from peers, and returns the SHA-256 of what is then stored.
func (n *Node) Fetch(root string) (sum string, err error) {
	if err := n.call("Fetch", root, nil); err != nil {
		return "", err
	}
	return n.Sum(root)
}

// Sum is the SHA-256 of a file that is stored.
func (n *Node) Sum(root string) (sum string, err error) {
	err = n.call("Sum", root, &sum)
	return sum, err
}

// Connect connects the node to a peer.
func (n *Node) Connect(addr string) error { return n.call("Connect", addr, nil) }

// Disconnect closes the node's connections to a peer.
func (n *Node) Disconnect(id string) error { return n.call("Disconnect", id, nil) }

// Address is where the node is to be found.
func (n *Node) Address() string { return n.Addr }

// Peers are the ids of the peers that are connected.
func (n *Node) Peers() []string { n.Helper(); return n.Status().Peers }
