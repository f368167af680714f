package memnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var alice, bob, carol = memnet.ID("alice"), memnet.ID("bob"), memnet.ID("carol")

var names = map[peer.ID]string{alice: "alice", bob: "bob", carol: "carol"}

// A listener is a handler that writes down what it hears.
type listener struct {
	mu      sync.Mutex
	heard   []string
	streams chan exchange.Stream
}

func (l *listener) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, fmt.Sprintf(format, args...))
}

func (l *listener) PeerUp(p peer.ID, epoch uint64)   { l.note("up %s %d", names[p], epoch) }
func (l *listener) PeerDown(p peer.ID, epoch uint64) { l.note("down %s %d", names[p], epoch) }
func (l *listener) HandleStream(s exchange.Stream) {
	l.note("stream %s", names[s.Peer()])
	l.streams <- s
}

// expect waits until nothing moves, and compares what has been heard since the
// last time.
func (l *listener) expect(t *testing.T, why string, want ...string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.heard, want) {
		t.Fatalf("%s: heard %q, want %q", why, l.heard, want)
	}
	l.heard = nil
}

func attach(t *testing.T, n *memnet.Net, id peer.ID) (*memnet.Node, *listener, func()) {
	t.Helper()
	l := &listener{streams: make(chan exchange.Stream, 16)}
	node := n.Node(id)
	detach, err := node.Attach(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(detach)
	return node, l, detach
}

// open returns both sides of a new stream from alice to bob.
func open(t *testing.T, n *memnet.Net) (near, far exchange.Stream) {
	t.Helper()
	a, _, _ := attach(t, n, alice)
	_, l, _ := attach(t, n, bob)
	n.Connect(alice, bob)
	near, err := a.NewStream(t.Context(), bob)
	if err != nil {
		t.Fatal(err)
	}
	return near, <-l.streams
}

func TestPeersComeAndGoInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.Connect(alice, bob)
		_, a, detach := attach(t, n, alice)
		a.expect(t, "bob does not speak the protocol yet")
		_, b, _ := attach(t, n, bob)
		a.expect(t, "bob speaks it now", "up bob 1")
		b.expect(t, "who was connected before is told first", "up alice 1")

		n.Disconnect(alice, bob)
		n.Connect(alice, bob)
		n.Connect(alice, bob)
		a.expect(t, "a new connection has a new epoch", "down bob 1", "up bob 2")
		b.expect(t, "on the other side too", "down alice 1", "up alice 2")

		attach(t, n, carol)
		if err := n.Node(carol).Connect(t.Context(), peer.AddrInfo{ID: alice}); err != nil {
			t.Fatal(err)
		}
		a.expect(t, "who is dialled hears of the dialler, in an epoch higher than all", "up carol 3")

		detach()
		detach()
		b.expect(t, "who is detached no longer speaks the protocol", "down alice 2")
		a.expect(t, "and hears nothing more")
	})
}

func TestStreamsCarryBytesBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := open(t, memnet.New())
		if near.Peer() != bob || far.Peer() != alice {
			t.Fatalf("the stream is from %s to %s, want alice to bob", names[far.Peer()], names[near.Peer()])
		}
		for _, way := range [][2]exchange.Stream{{near, far}, {far, near}} {
			if _, err := io.WriteString(way[0], "hello"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(way[1], got); err != nil || string(got) != "hello" {
				t.Fatalf("read %q, %v, want hello", got, err)
			}
		}
	})
}

func TestCloseIsReadAsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		near, far := open(t, n)
		io.WriteString(near, "last words")
		near.Close()
		got, err := io.ReadAll(far)
		if err != nil || string(got) != "last words" {
			t.Fatalf("after a close the other side read %q, %v, want the last words and a clean end", got, err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("write after close: %v, want io.ErrClosedPipe", err)
		}
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatalf("a write to one who has closed is lost, not an error: %v", err)
		}
		far.Close()
		if k := n.Streams(alice, bob); k != 0 {
			t.Fatalf("%d streams are left after both sides closed, want 0", k)
		}
	})
}

func TestResetIsNotAnEnd(t *testing.T) {
	for name, reset := range map[string]func(n *memnet.Net, near exchange.Stream){
		"by the peer":           func(_ *memnet.Net, near exchange.Stream) { near.Reset() },
		"of all streams":        func(n *memnet.Net, _ exchange.Stream) { n.DropStreams(alice, bob) },
		"because the link went": func(n *memnet.Net, _ exchange.Stream) { n.Disconnect(alice, bob) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New()
				n.SetBuffer(4)
				near, far := open(t, n)
				results := make(chan error, 2)
				go func() { _, err := far.Read(make([]byte, 1)); results <- err }()
				go func() { _, err := far.Write([]byte("too long")); results <- err }()
				synctest.Wait()
				reset(n, near)
				for range 2 {
					if err := <-results; !errors.Is(err, network.ErrReset) {
						t.Fatalf("a pending read or write: %v, want %v", err, network.ErrReset)
					}
				}
				if _, err := near.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
					t.Fatalf("a read on the other side: %v, want %v", err, network.ErrReset)
				}
				if k := n.Streams(alice, bob); k != 0 {
					t.Fatalf("%d streams are left, want 0", k)
				}
			})
		})
	}
}

func TestWriterWaitsForReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetBuffer(10)
		near, far := open(t, n)
		written := make(chan error, 1)
		go func() { _, err := io.WriteString(near, strings.Repeat("x", 25)); written <- err }()
		for _, left := range []int{15, 5} {
			synctest.Wait()
			select {
			case err := <-written:
				t.Fatalf("the write ended with %v while %d bytes had no room", err, left)
			default:
			}
			if _, err := io.ReadFull(far, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-written; err != nil {
			t.Fatalf("write: %v, want all 25 bytes taken", err)
		}
	})
}

func TestWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetBuffer(3)
		near, far := open(t, n)
		start := time.Now()
		near.SetWriteDeadline(start.Add(time.Minute))
		got, err := io.WriteString(near, "12345")
		if got != 3 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Fatalf("wrote %d, %v after %v, want 3, %v after a minute", got, err, time.Since(start), os.ErrDeadlineExceeded)
		}
		near.SetWriteDeadline(time.Time{})
		go io.ReadFull(far, make([]byte, 5))
		if _, err := io.WriteString(near, "45"); err != nil {
			t.Fatalf("write after the deadline was lifted: %v", err)
		}
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetLatency(alice, bob, 3*time.Second)
		start := time.Now()
		near, far := open(t, n)
		at := func(why string, want time.Duration) {
			t.Helper()
			if got := time.Since(start); got != want {
				t.Fatalf("%s after %v, want %v", why, got, want)
			}
		}
		at("a stream is announced", 3*time.Second)
		io.WriteString(near, "x")
		near.Close()
		if _, err := io.ReadAll(far); err != nil {
			t.Fatal(err)
		}
		at("bytes and end arrive", 6*time.Second)
		if got := n.Node(alice).Latency(bob); got != 6*time.Second {
			t.Fatalf("round trip is %v, want 6s", got)
		}
		far.Reset()
		n.Node(alice).Connect(t.Context(), peer.AddrInfo{ID: bob})
		at("who is connected need not be dialled", 6*time.Second)
	})
}

func TestAskedForFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		near, far := open(t, n)
		a := n.Node(alice)

		a.RefuseStreams(2)
		for i, want := range []bool{false, false, true} {
			s, err := a.NewStream(t.Context(), bob)
			if (err == nil) != want {
				t.Fatalf("stream %d: %v, want success %v", i, err, want)
			}
			if err != nil && !errors.Is(err, errs.Unreachable) {
				t.Fatalf("refusal is %v, want kind %v", err, errs.Unreachable)
			}
			if err == nil {
				s.Reset()
			}
		}

		resume := n.Node(bob).StallReads()
		read := make(chan error, 1)
		go func() { _, err := far.Read(make([]byte, 1)); read <- err }()
		io.WriteString(near, "x")
		synctest.Wait()
		select {
		case err := <-read:
			t.Fatalf("a stalled node read: %v", err)
		default:
		}
		resume()
		resume()
		if err := <-read; err != nil {
			t.Fatalf("read after the stall: %v", err)
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, _, detach := attach(t, n, alice)
		n.Node(bob)
		stream := func(p peer.ID) error { _, err := a.NewStream(t.Context(), p); return err }
		dial := func(ctx context.Context, p peer.ID) error { return a.Connect(ctx, peer.AddrInfo{ID: p}) }
		refused := func(why string, err error) {
			t.Helper()
			if !errors.Is(err, errs.Unreachable) {
				t.Errorf("%s: %v, want kind %v", why, err, errs.Unreachable)
			}
		}
		refused("a stream to a stranger", stream(carol))
		refused("a stream to one who is not connected", stream(bob))
		n.Connect(alice, bob)
		refused("a stream to one who does not speak the protocol", stream(bob))
		refused("dialling one who is not there", dial(t.Context(), carol))
		refused("dialling oneself", dial(t.Context(), alice))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		n.Node(carol)
		refused("dialling without time", dial(ctx, carol))
		detach()
		refused("a stream after the end", stream(bob))
		if _, err := a.Attach(&listener{}); !errors.Is(err, errs.Invalid) {
			t.Errorf("a second Attach: %v, want kind %v", err, errs.Invalid)
		}
	})
}

func TestDetachWaitsForTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, _, _ := attach(t, n, alice)
		r := &reader{}
		detach, err := n.Node(bob).Attach(r)
		if err != nil {
			t.Fatal(err)
		}
		n.Connect(alice, bob)
		if _, err := a.NewStream(t.Context(), bob); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		detach()
		if !r.ended {
			t.Fatal("detach returned while HandleStream was under way")
		}
	})
}

// A reader reads every stream to its end.
type reader struct{ ended bool }

func (*reader) PeerUp(peer.ID, uint64)   {}
func (*reader) PeerDown(peer.ID, uint64) {}
func (r *reader) HandleStream(s exchange.Stream) {
	io.Copy(io.Discard, s)
	r.ended = true
}

func TestIDsAreStable(t *testing.T) {
	if memnet.ID("alice") != alice || alice == bob {
		t.Fatalf("ids of alice %s, %s and bob %s: want the same for alice, another for bob", memnet.ID("alice"), alice, bob)
	}
	if _, err := peer.Decode(alice.String()); err != nil {
		t.Fatalf("the id of alice is not a peer id: %v", err)
	}
}
