// Package faults kills, stops and starves nodes and plugins that are real
// processes, and looks at what is left.
package faults

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
)

var loopback = multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")

// asNode in the environment makes this test program a node.
const asNode = "FAULTS_NODE"

func TestMain(m *testing.M) {
	host.Main()
	if os.Getenv(asNode) != "" {
		if err := serveNode(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A request is one thing asked of a node, one line of JSON; an answer has the
// same ID. Several may be under way.
type request struct {
	ID   int
	Op   string // start, connect, fetch, sum, status, restart, close
	Dir  string
	Exch string
	In   bool // in process
	Peer string
	Root string
}

type answer struct {
	ID         int
	Err        string
	Peer       string
	Addrs      []string
	Sum        string
	Pid        int
	State      string
	Restarts   int
	Conns      int
	Conn       string // id of the connection to Peer
	Goroutines int
	Files      int // open descriptors
	Data       uint64
}

// serveNode is a node, until its input ends.
func serveNode(in io.Reader, out io.Writer) error {
	n := &served{}
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	var calls sync.WaitGroup
	defer calls.Wait()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		calls.Go(func() {
			var a answer
			if err := n.do(q, &a); err != nil {
				a.Err = err.Error()
			}
			a.ID = q.ID
			mu.Lock()
			defer mu.Unlock()
			_ = enc.Encode(a) // who asked may be gone
		})
	}
	return lines.Err()
}

type served struct {
	mu   sync.Mutex
	node *host.Node
}

func (s *served) do(q request, a *answer) (err error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 2*time.Minute, errors.New("took two minutes"))
	defer cancel()
	s.mu.Lock()
	n := s.node
	s.mu.Unlock()
	switch q.Op {
	case "start":
		opts := host.Options{Dir: q.Dir, Use: []string{q.Exch}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			Plugins: map[string]host.Plugin{host.Blockexc: {InProcess: q.In}}}
		if n, err = host.New(opts); err != nil {
			return err
		}
		s.mu.Lock()
		s.node = n
		s.mu.Unlock()
		info := n.AddrInfo()
		a.Peer = info.ID.String()
		for _, m := range info.Addrs {
			a.Addrs = append(a.Addrs, m.String())
		}
		return s.status(n, q, a)
	case "connect":
		info, err := peer.AddrInfoFromString(q.Peer)
		if err != nil {
			return err
		}
		return n.Connect(ctx, *info)
	case "fetch", "sum":
		root, err := cid.Decode(q.Root)
		if err != nil {
			return err
		}
		if q.Op == "fetch" {
			return n.Fetch(ctx, root, nil)
		}
		r, err := n.Open(ctx, root)
		if err != nil {
			return err
		}
		defer r.Close()
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		a.Sum = hex.EncodeToString(h.Sum(nil))
		return nil
	case "status":
		return s.status(n, q, a)
	case "restart":
		n.Exchanges()[0].Plugin().Restart()
		return nil
	case "close":
		return n.Close()
	}
	return fmt.Errorf("unknown operation %q", q.Op)
}

func (s *served) status(n *host.Node, q request, a *answer) error {
	if p := n.Exchanges()[0].Plugin(); p != nil {
		st := p.Status()
		a.Pid, a.Restarts, a.State = st.Pid, st.Restarts, fmt.Sprint(st.State)
		a.Data = p.Counters().Streams.DataOut.Load()
	}
	a.Goroutines = runtime.NumGoroutine()
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		a.Files = len(open)
	}
	a.Conns = len(n.Peers())
	return nil
}

// A process is a node in a process of its own, as the test sees it.
type process struct {
	testing.TB
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	log  *logs

	mu      sync.Mutex
	next    int
	waiting map[int]chan answer
	ended   chan struct{} // closed when its output has ended and it was waited for

	dir  string
	info answer // of start
}

// logs keeps what a process says on standard error.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// launch starts a node process. It ends with the test, in good order unless it
// has been killed; what it said is printed if the test fails.
func launch(t testing.TB, name, dir, tmp string) *process {
	t.Helper()
	exe, err := os.Executable()
	must(t, "find this program", err)
	p := &process{TB: t, name: name, dir: dir, log: &logs{}, waiting: make(map[int]chan answer), ended: make(chan struct{})}
	p.cmd = exec.Command(exe)
	p.cmd.Env = append(os.Environ(), asNode+"=1", "TMPDIR="+tmp)
	p.cmd.Stderr = p.log
	p.in, err = p.cmd.StdinPipe()
	must(t, "make pipe", err)
	out, err := p.cmd.StdoutPipe()
	must(t, "make pipe", err)
	must(t, "start node", p.cmd.Start())
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var a answer
			if json.Unmarshal(lines.Bytes(), &a) != nil {
				continue
			}
			p.mu.Lock()
			ch := p.waiting[a.ID]
			delete(p.waiting, a.ID)
			p.mu.Unlock()
			if ch != nil {
				ch <- a
			}
		}
		_ = p.cmd.Wait() // says how it was killed
	}()
	t.Cleanup(func() {
		p.in.Close()
		select {
		case <-p.ended:
		case <-time.After(20 * time.Second):
			t.Errorf("%s does not end", name)
			p.kill()
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.log)
		}
	})
	return p
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// ask sends a request and returns the channel of its answer. The answer has an
// Err if the process ends first.
func (p *process) ask(q request) <-chan answer {
	p.Helper()
	ch := make(chan answer, 1)
	p.mu.Lock()
	p.next++
	q.ID = p.next
	p.waiting[q.ID] = ch
	p.mu.Unlock()
	b, err := json.Marshal(q)
	must(p, "encode request", err)
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		ch <- answer{Err: err.Error()}
		return ch
	}
	answered := make(chan answer, 1)
	go func() {
		select {
		case a := <-ch:
			answered <- a
		case <-p.ended:
			answered <- answer{Err: p.name + " has ended"}
		}
	}()
	return answered
}

// do sends a request and waits for its answer, which must be no error.
func (p *process) do(q request) answer {
	p.Helper()
	return p.answered(q.Op, p.ask(q))
}

func (p *process) answered(what string, ch <-chan answer) answer {
	p.Helper()
	select {
	case a := <-ch:
		if a.Err != "" {
			p.Fatalf("%s: %s: %s", p.name, what, a.Err)
		}
		return a
	case <-time.After(150 * time.Second):
		p.Fatalf("%s: %s: no answer", p.name, what)
		return answer{}
	}
}

// start makes it a node with the Codex block exchange as a plugin.
func (p *process) start(exchange string) {
	p.Helper()
	p.info = p.do(request{Op: "start", Dir: p.dir, Exch: exchange})
}

func (p *process) status() answer { p.Helper(); return p.do(request{Op: "status"}) }

func (p *process) connect(n *host.Node) {
	p.Helper()
	info := n.AddrInfo()
	p.do(request{Op: "connect", Peer: fmt.Sprintf("%s/p2p/%s", info.Addrs[0], info.ID)})
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

// eventually waits until f holds.
func eventually(t testing.TB, what string, within time.Duration, f func() bool) {
	t.Helper()
	end := time.Now().Add(within)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(5 * time.Millisecond) // other processes are watched: there is nothing to wait on
	}
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
