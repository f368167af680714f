package porttest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
)

// limit is how long a test waits for what must come. It is long because it is
// only spent when a test fails.
const limit = 30 * time.Second

// calm is how long a test waits for what must not come.
const calm = 100 * time.Millisecond

// node is a Node with a handler that records what it hears. It checks by itself
// what holds always: that calls alternate, that epochs grow, and that streams
// come after their peer.
type node struct {
	Node
	t *testing.T

	mu     sync.Mutex
	news   *sync.Cond // broadcast when log, streams or count grew; with mu
	log    []heard    // what hears has not taken yet
	count  int        // calls to the handler
	peers  map[peer.ID]uint64
	epochs map[peer.ID]uint64 // highest of each
	handle func(exchange.Stream)
	detach func()

	streams chan exchange.Stream
}

// heard is one call to PeerUp or PeerDown.
type heard struct {
	peer peer.ID
	up   bool
}

func (h heard) String() string {
	if h.up {
		return "up " + h.peer.String()
	}
	return "down " + h.peer.String()
}

func up(n *node) heard   { return heard{n.Self(), true} }
func down(n *node) heard { return heard{n.Self(), false} }

func wrap(t *testing.T, nodes []Node) []*node {
	t.Helper()
	all := make([]*node, len(nodes))
	for i, n := range nodes {
		if n.Self() != n.Info.ID {
			t.Fatalf("node %d: Self is %s, want %s", i, n.Self(), n.Info.ID)
		}
		all[i] = &node{
			Node:    n,
			t:       t,
			peers:   make(map[peer.ID]uint64),
			epochs:  make(map[peer.ID]uint64),
			streams: make(chan exchange.Stream, 256),
			detach:  func() {},
		}
		all[i].news = sync.NewCond(&all[i].mu)
	}
	return all
}

// pair makes two attached nodes.
func pair(t *testing.T, nodes func(*testing.T, int) []Node) (a, b *node) {
	t.Helper()
	all := wrap(t, nodes(t, 2))
	all[0].attach()
	all[1].attach()
	return all[0], all[1]
}

// connected makes two nodes that have heard of each other.
func connected(t *testing.T, nodes func(*testing.T, int) []Node) (a, b *node) {
	t.Helper()
	a, b = pair(t, nodes)
	a.connect(b)
	a.hears("the connection", up(b))
	b.hears("the connection", up(a))
	return a, b
}

func (n *node) attach() {
	n.t.Helper()
	detach, err := n.Attach((*recorder)(n))
	check(n.t, "attach", err)
	n.detach = detach
	n.t.Cleanup(func() {
		detach()
		for {
			select {
			case s := <-n.streams:
				_ = s.Reset()
			default:
				return
			}
		}
	})
}

func (n *node) connect(m *node) {
	n.t.Helper()
	// A dial can meet the end of a former connection, and is tried again.
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(n.t.Context(), limit)
		err = n.Connect(ctx, m.Info)
		cancel()
		if err == nil {
			return
		}
	}
	n.t.Fatalf("connect: %v", err)
}

// onStream makes f handle streams rather than the recorder.
func (n *node) onStream(f func(exchange.Stream)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handle = f
}

// open opens a stream and returns both ends, after a byte has gone through it.
func (n *node) open(m *node) (ours, theirs exchange.Stream) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), limit)
	defer cancel()
	ours, err := n.NewStream(ctx, m.Self())
	check(n.t, "open a stream", err)
	n.t.Cleanup(func() { _ = ours.Reset() })
	send(n.t, ours, "\x01")
	select {
	case theirs = <-m.streams:
		n.t.Cleanup(func() { _ = theirs.Reset() })
	case <-time.After(limit):
		n.t.Fatalf("the stream to %s was not handed over\n%s", m.Self(), m.state())
	}
	receive(n.t, theirs, "\x01")
	return ours, theirs
}

// meets connects two nodes after a storm, when either may still hold connections
// that the other has closed: it tries until both are up for each other and a
// stream of either reaches the other.
func (n *node) meets(m *node) {
	n.t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); {
		n.connect(m)
		if err = errors.Join(n.reaches(m), m.reaches(n)); err == nil {
			n.settles("the connection", m, true)
			m.settles("the connection", n, true)
			return
		}
	}
	n.t.Fatalf("%s and %s do not meet: %v\n%s\n%s", n.Self(), m.Self(), err, n.state(), m.state())
}

// reaches opens a stream and sees that the other side is handed one.
func (n *node) reaches(m *node) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), limit)
	defer cancel()
	s, err := n.NewStream(ctx, m.Self())
	if err != nil {
		return err
	}
	defer s.Reset()
	if _, err := s.Write([]byte("x")); err != nil {
		return err
	}
	lost := make(chan error, 1)
	go func() { lost <- readByte(s) }()
	select {
	case got := <-m.streams:
		return got.Reset()
	case err := <-lost:
		return err
	case <-time.After(limit):
		return errors.New("the stream was not handed over")
	}
}

// hears waits for a call about a peer: the first about this peer that has not
// been taken must be the one that is wanted.
func (n *node) hears(why string, want heard) {
	n.t.Helper()
	var got *heard
	n.wait(func() bool {
		for i, h := range n.log {
			if h.peer == want.peer {
				got = &h
				n.log = append(n.log[:i:i], n.log[i+1:]...)
				return true
			}
		}
		return false
	})
	if got == nil {
		n.t.Fatalf("%s does not hear of %s: want %s\n%s", n.Self(), why, want, n.state())
	}
	if *got != want {
		n.t.Fatalf("%s hears of %s: got %s, want %s\n%s", n.Self(), why, got, want, n.state())
	}
}

// settles waits until a peer is up or down, after whatever went before.
func (n *node) settles(why string, m *node, want bool) {
	n.t.Helper()
	ok := n.wait(func() bool {
		_, is := n.peers[m.Self()]
		return is == want
	})
	if !ok {
		n.t.Fatalf("%s hears of %s with %s: want up=%v\n%s", n.Self(), why, m.Self(), want, n.state())
	}
	n.mu.Lock()
	n.log = nil
	n.mu.Unlock()
}

// quiet checks that nothing is heard for a while.
func (n *node) quiet(why string) {
	n.t.Helper()
	before := n.calls()
	<-time.After(calm)
	if n.calls() != before {
		n.t.Errorf("%s hears of %s, want nothing\n%s", n.Self(), why, n.state())
	}
}

// wait waits until f, called with mu held, is true.
func (n *node) wait(f func() bool) bool {
	late := false
	timer := time.AfterFunc(limit, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		late = true
		n.news.Broadcast()
	})
	defer timer.Stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for !f() {
		if late {
			return false
		}
		n.news.Wait()
	}
	return true
}

// calls is the number of calls to the handler.
func (n *node) calls() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count
}

func (n *node) state() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d calls; not taken: %v; up:", n.count, n.log)
	for p, epoch := range n.peers {
		fmt.Fprintf(&b, " %s (epoch %d)", p, epoch)
	}
	return b.String()
}

// recorder is the exchange.Handler of a node.
type recorder node

func (r *recorder) PeerUp(p peer.ID, epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.peers[p]; ok {
		r.t.Errorf("PeerUp(%s, %d) while it is up in epoch %d", p, epoch, was)
	}
	if epoch <= r.epochs[p] {
		r.t.Errorf("PeerUp(%s, %d) after epoch %d, want a higher one", p, epoch, r.epochs[p])
	}
	r.peers[p], r.epochs[p] = epoch, epoch
	r.note(heard{p, true})
}

func (r *recorder) PeerDown(p peer.ID, epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.peers[p]; !ok || was != epoch {
		r.t.Errorf("PeerDown(%s, %d): got epoch %d, want that of its PeerUp, %d (up: %v)", p, epoch, epoch, was, ok)
	}
	delete(r.peers, p)
	r.note(heard{p, false})
}

func (r *recorder) note(h heard) {
	r.log = append(r.log, h)
	r.count++
	r.news.Broadcast()
}

func (r *recorder) HandleStream(s exchange.Stream) {
	r.mu.Lock()
	r.count++
	if r.epochs[s.Peer()] == 0 {
		r.t.Errorf("HandleStream of %s before its first PeerUp", s.Peer())
	}
	handle := r.handle
	r.mu.Unlock()
	if handle != nil {
		handle(s)
		return
	}
	select {
	case r.streams <- s:
	default: // more than any test looks at
		_ = s.Reset()
	}
}

// NewPeerID makes the id of a peer that does not exist.
func NewPeerID(t *testing.T) peer.ID {
	t.Helper()
	seed := make([]byte, 32)
	_, _ = rand.Read(seed)
	sum := sha256.Sum256(seed)
	mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
	check(t, "make a peer id", err)
	return peer.ID(mh)
}

func send(t *testing.T, s exchange.Stream, what string) {
	t.Helper()
	within(t, "write", func() error {
		_, err := s.Write([]byte(what))
		return err
	})
}

func receive(t *testing.T, s exchange.Stream, want string) {
	t.Helper()
	within(t, "read", func() error {
		got := make([]byte, len(want))
		if n, err := io.ReadFull(s, got); err != nil {
			return fmt.Errorf("got %q, then %w, want %q", got[:n], err, want)
		}
		if string(got) != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

func readByte(s exchange.Stream) error {
	_, err := io.ReadFull(s, make([]byte, 1))
	return err
}

// writeAll writes until that fails, or nothing has gone wrong for long.
func writeAll(s exchange.Stream, long time.Duration) error {
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(long); time.Now().Before(end); {
		if _, err := s.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// within runs f, which must end in time and without an error.
func within(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		check(t, what, err)
	case <-time.After(limit):
		t.Fatalf("%s: not done after %v", what, limit)
	}
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantError(err error) error {
	if err == nil {
		return errors.New("got no error, want one")
	}
	return nil
}

func wantUnreachable(s exchange.Stream, err error, p peer.ID) error {
	if s != nil {
		_ = s.Reset()
		return errors.New("got a stream, want an error")
	}
	if !errors.Is(err, errs.Unreachable) {
		return fmt.Errorf("got error %q, want one of kind %q", text(err), errs.Unreachable)
	}
	if !strings.Contains(err.Error(), p.String()) {
		return fmt.Errorf("got error %q, want one that names %s", err, p)
	}
	return nil
}

func text(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// noise gives size bytes that are the same for the same seed.
func noise(seed uint64, size int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, size)
	_, _ = mathrand.NewChaCha8(key).Read(b)
	return b
}
