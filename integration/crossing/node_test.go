// Package crossing moves files between nodes that speak different protocols: by
// Bitswap to a node that has both exchanges, and on by Codex, and back. Every
// node is a process of its own over a repo, as a person would run it. Real Kubo,
// Helia and kubo-rpc-client take part where the environment names them:
//
//	CODEXCHANGE_KUBO=FILE    the ipfs program; integration/kubo says what to build
//	CODEXCHANGE_HELIA=DIR    integration/helia, after npm ci: Helia and kubo-rpc-client
//	CODEXCHANGE_CHURN=60s    how long TestChurn connects and disconnects
//	CODEXCHANGE_SEED=N       what it is random by
package crossing

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

// asNode in the environment makes this test program a node.
const asNode = "CROSSING_NODE"

const (
	// patience is how long a node may take for one thing that it is asked.
	patience = 2 * time.Minute
	// pluginEnds is how long a plugin may keep the standard error of its host.
	pluginEnds = 10 * time.Second
)

func TestMain(m *testing.M) {
	host.Main()
	if dir := os.Getenv(asNode); dir != "" {
		if err := serveNode(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(asDaemon); dir != "" {
		if err := serveDaemon(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A Node is what a node process answers to, as package net/rpc wants it. Its
// methods may be called from any goroutine.
type Node struct {
	ctx  context.Context // ends with the input of the process
	node *host.Node
}

// serveNode is a node over the repo in dir, until its input ends.
func serveNode(dir string, in io.ReadCloser, out io.WriteCloser) (err error) {
	r, err := repo.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	n, err := host.Open(r, false, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s := rpc.NewServer()
	if err := s.Register(&Node{ctx, n}); err != nil {
		return err
	}
	s.ServeConn(&pipe{in, out, cancel}) // waits for what is being answered
	return nil
}

// A pipe is what a process and the test talk through.
type pipe struct {
	io.ReadCloser
	out   io.WriteCloser
	ended context.CancelCauseFunc // told why no more can be read
}

func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if err != nil {
		p.ended(err)
	}
	return n, err
}

func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }

func (p *pipe) Close() error { return errors.Join(p.out.Close(), p.ReadCloser.Close()) }

type (
	// A Status is who a node is, whom it knows, and what has come.
	Status struct {
		ID, Addr  string // the multiaddr ends in /p2p/ and the id
		Peers     []string
		Exchanges []Received
	}
	Received struct {
		Name     string
		Blocks   uint64
		Restarts int // of the plugin
		State    string
	}
	// A File is to be added.
	File struct {
		Content []byte
		Chunk   int64
	}
	// Stored is what is in the blockstore.
	Stored struct {
		Keys []string // multihashes in hexadecimal digits, sorted
		Sum  string   // SHA-256 over each key and its block
	}
)

func (n *Node) Status(_ struct{}, s *Status) error {
	info := n.node.AddrInfo()
	s.ID, s.Addr = info.ID.String(), fmt.Sprintf("%s/p2p/%s", info.Addrs[0], info.ID)
	for _, p := range n.node.Peers() {
		s.Peers = append(s.Peers, p.String())
	}
	for _, x := range n.node.Exchanges() {
		counts, err := x.Counts()
		if err != nil {
			return err
		}
		r := Received{Name: x.Name, Blocks: counts.Blocks}
		if p := x.Plugin(); p != nil {
			r.Restarts, r.State = p.Status().Restarts, fmt.Sprint(p.Status().State)
		}
		s.Exchanges = append(s.Exchanges, r)
	}
	return nil
}

func (n *Node) Connect(addr string, _ *struct{}) error {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	return n.node.Connect(ctx, *info)
}

func (n *Node) Disconnect(id string, _ *struct{}) error {
	p, err := peer.Decode(id)
	if err != nil {
		return err
	}
	return n.node.Host().Network().ClosePeer(p)
}

func (n *Node) Add(f File, root *string) error {
	c, _, err := n.node.Add(n.ctx, bytes.NewReader(f.Content), f.Chunk)
	*root = c.String()
	return err
}

func (n *Node) Fetch(root string, _ *struct{}) error {
	c, err := cid.Decode(root)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(n.ctx, patience, fmt.Errorf("took longer than %v", patience))
	defer cancel()
	return n.node.Fetch(ctx, c, nil)
}

// Sum is the SHA-256 of a file that is stored.
func (n *Node) Sum(root string, sum *string) error {
	c, err := cid.Decode(root)
	if err != nil {
		return err
	}
	r, err := n.node.Open(n.ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	*sum = hex.EncodeToString(h.Sum(nil))
	return nil
}

// Stored reads all blocks, each of which must fit its CID.
func (n *Node) Stored(_ struct{}, s *Stored) error {
	keys, err := n.node.Blockstore().AllKeysChan(n.ctx)
	if err != nil {
		return err
	}
	var list []blocks.Block
	for c := range keys {
		b, err := n.node.Blockstore().Get(n.ctx, c)
		if err != nil {
			return err
		}
		if got, err := c.Prefix().Sum(b.RawData()); err != nil || !got.Equals(c) {
			return fmt.Errorf("block %s: its %d bytes are of %s, %v", c, len(b.RawData()), got, err)
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b blocks.Block) int { return bytes.Compare(a.Cid().Hash(), b.Cid().Hash()) })
	h := sha256.New()
	for _, b := range list {
		s.Keys = append(s.Keys, b.Cid().Hash().HexString())
		h.Write(b.Cid().Hash())
		h.Write(b.RawData())
	}
	s.Sum = hex.EncodeToString(h.Sum(nil))
	return nil
}

// A process is a node in a process of its own, as the test sees it. Its methods
// may be called from any goroutine; those that return no error, only from that
// of the test.
type process struct {
	testing.TB
	name, dir string
	id, addr  string

	cmd   *exec.Cmd
	log   output
	calls *rpc.Client
	ended chan struct{} // closed when the process has been waited for
	err   error         // how it ended; after that
}

// An output is what a process says on standard error.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *output) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *output) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newRepo makes a repo that names exchanges.
func newRepo(t testing.TB, use ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "repo")
	_, err := repo.Init(dir, repo.InitOptions{Profiles: []string{"test"}})
	must(t, "make repo", err)
	setUse(t, dir, use...)
	return dir
}

// setUse changes the one value of the configuration that names the exchanges.
func setUse(t testing.TB, dir string, use ...string) {
	t.Helper()
	value, err := json.Marshal(use)
	must(t, "encode Exchange.Use", err)
	c, err := repo.OpenConfig(dir)
	must(t, "open config", err)
	must(t, "set Exchange.Use", c.Set("Exchange.Use", value))
	must(t, "close config", c.Close())
}

// launch starts a node over the repo in dir. It ends with the test, unless stop
// was called before.
func launch(t testing.TB, name, dir string) *process {
	t.Helper()
	exe, err := os.Executable()
	must(t, "find this program", err)
	p := &process{TB: t, name: name, dir: dir, cmd: exec.Command(exe), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asNode+"="+dir, "TMPDIR="+socketDir(t))
	p.cmd.Stderr = &p.log
	p.cmd.WaitDelay = pluginEnds
	in, err := p.cmd.StdinPipe()
	must(t, "make pipe", err)
	out, err := p.cmd.StdoutPipe()
	must(t, "make pipe", err)
	must(t, "start node", p.cmd.Start())
	said, silent := context.WithCancel(context.Background())
	p.calls = rpc.NewClient(&pipe{out, in, func(error) { silent() }})
	go func() {
		<-said.Done() // all has been read
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.log.String())
		}
	})
	s := p.status()
	p.id, p.addr = s.ID, s.Addr
	return p
}

// start makes a repo and starts a node over it.
func start(t testing.TB, name string, use ...string) *process {
	t.Helper()
	return launch(t, name, newRepo(t, use...))
}

// stop ends the process in good order. It may be called more than once.
func (p *process) stop() {
	p.Helper()
	if err := p.calls.Close(); errors.Is(err, rpc.ErrShutdown) {
		<-p.ended
		return
	}
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.Errorf("%s does not end", p.name)
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	if p.err != nil {
		p.Errorf("%s ended: %v, want no error", p.name, p.err)
	}
}

// call asks the process for something.
func (p *process) call(method string, args, reply any) error {
	if reply == nil {
		reply = new(struct{})
	}
	late := time.NewTimer(patience + 10*time.Second)
	defer late.Stop()
	select {
	case c := <-p.calls.Go("Node."+method, args, reply, make(chan *rpc.Call, 1)).Done:
		if c.Error != nil {
			return fmt.Errorf("%s: %s: %w", p.name, method, c.Error)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("%s: %s: no answer", p.name, method)
	}
}

func (p *process) status() (s Status) {
	p.Helper()
	must(p, "status", p.call("Status", struct{}{}, &s))
	return s
}

func (p *process) stored() (s Stored) {
	p.Helper()
	must(p, "list blocks", p.call("Stored", struct{}{}, &s))
	return s
}

// received is how many blocks have come by an exchange.
func (p *process) received(exchange string) uint64 {
	p.Helper()
	for _, x := range p.status().Exchanges {
		if x.Name == exchange {
			return x.Blocks
		}
	}
	p.Fatalf("%s has no exchange %s", p.name, exchange)
	return 0
}

func (p *process) add(content []byte, chunk int64) (root string, err error) {
	err = p.call("Add", File{content, chunk}, &root)
	return root, err
}

func (p *process) fetch(root string) (sum string, err error) {
	if err := p.call("Fetch", root, nil); err != nil {
		return "", err
	}
	return p.sum(root)
}

func (p *process) sum(root string) (sum string, err error) {
	err = p.call("Sum", root, &sum)
	return sum, err
}

func (p *process) connect(addr string) error { return p.call("Connect", addr, nil) }

func (p *process) address() string { return p.addr }

func (p *process) peers() []string { p.Helper(); return p.status().Peers }

// socketDir makes a directory whose path is short: there are sockets below it.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "x")
	must(t, "make directory", err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// random is content that only this seed makes, and its SHA-256.
func random(seed uint64, size int) (content []byte, sum string) {
	content = make([]byte, size)
	rand.NewChaCha8([32]byte{1: byte(seed), 2: byte(seed >> 8), 3: byte(seed >> 16), 4: byte(seed >> 24)}).Read(content)
	return content, sumOf(content)
}

func sumOf(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// eventually waits until f holds.
func eventually(t testing.TB, what string, within time.Duration, f func() bool) {
	t.Helper()
	end := time.Now().Add(within)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(10 * time.Millisecond) // other processes are watched: there is nothing to wait on
	}
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// variable is what an environment variable says, or the test is skipped for want
// of it.
func variable(t testing.TB, name, names string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Skipf("%s names no %s", name, names)
	}
	return strings.TrimSpace(v)
}
