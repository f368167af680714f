package exchange_test

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/lent"
)

// A lendingNet is a network whose streams lend what they have received, in pieces of
// odd sizes. What comes back is overwritten, as a host would that uses the memory again.
type lendingNet struct {
	exchange.Network
	lent, out atomic.Int64 // pieces: ever, and now
}

func (n *lendingNet) Attach(h exchange.Handler) (func(), error) {
	return n.Network.Attach(lendingHandler{h, n})
}

func (n *lendingNet) NewStream(ctx context.Context, p peer.ID) (exchange.Stream, error) {
	s, err := n.Network.NewStream(ctx, p)
	if err != nil {
		return nil, err
	}
	return &lendingStream{Stream: s, n: n}, nil
}

type lendingHandler struct {
	exchange.Handler
	n *lendingNet
}

func (h lendingHandler) HandleStream(s exchange.Stream) {
	h.Handler.HandleStream(&lendingStream{Stream: s, n: h.n})
}

type lendingStream struct {
	exchange.Stream
	n     *lendingNet
	reads int
}

func (s *lendingStream) ReadLent(p []byte) ([]byte, lent.Buffer, error) {
	s.reads++
	if s.reads%7 == 3 {
		n, err := s.Read(p)
		return p[:n], nil, err
	}
	b := make([]byte, 1+s.reads*7919%50_000)
	n, err := s.Read(b)
	if n == 0 {
		return nil, nil, err
	}
	buf := &lentBuffer{n: s.n, b: b[:n]}
	buf.refs.Store(1)
	s.n.lent.Add(1)
	s.n.out.Add(1)
	return b[:n], buf, err
}

type lentBuffer struct {
	n    *lendingNet
	b    []byte
	refs atomic.Int32
}

func (b *lentBuffer) Ref() {
	if b.refs.Add(1) <= 1 {
		panic("a buffer is used after it was freed")
	}
}

func (b *lentBuffer) Free() {
	switch left := b.refs.Add(-1); {
	case left < 0:
		panic("a buffer was freed too often")
	case left == 0:
		for i := range b.b {
			b.b[i] ^= 0xa5
		}
		b.n.out.Add(-1)
	}
}

// TestLent shows that an exchange over streams that lend does all that one over others
// does: the conformance suite, while memory that has come back is overwritten.
func TestLent(t *testing.T) {
	exchangetest.Run(t, exchangetest.Suite{Bubble: true, New: func(t testing.TB, n int) exchangetest.Group {
		return nodesOver(t, n, func(n exchange.Network) exchange.Network { return &lendingNet{Network: n} })
	}})
}

// TestLentComesBack shows that blocks come to a caller where they were received, and what
// becomes of the memory: who is the only one to wait for a block has to give it back,
// two who wait for the same get copies, and what nobody wants goes back by itself.
func TestLentComesBack(t *testing.T) {
	const size = 100_000
	var net *lendingNet
	g := nodesOver(t, 2, func(n exchange.Network) exchange.Network {
		net = &lendingNet{Network: n}
		return net // of the last
	})
	list := makeBlocks(77, 30, size)
	for _, b := range list {
		if err := g.Nodes[0].Blockstore.Put(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Connect(0, 1); err != nil {
		t.Fatal(err)
	}
	x := g.Nodes[1].Exchange
	get := func(ctx context.Context, b blocks.Block) blocks.Block {
		got, err := x.GetBlock(ctx, b.Cid())
		if err != nil {
			t.Error(err)
		}
		return got
	}
	returned := func(what string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); net.out.Load() != 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%s: %d pieces are still lent, want none", what, net.out.Load())
			}
		}
	}
	for _, b := range list[:10] {
		got, ok := get(t.Context(), b).(*lent.Block)
		if !ok || got.Size() != size {
			t.Fatalf("got %T, want a block of lent bytes", got)
		}
		if net.out.Load() == 0 {
			t.Error("nothing is lent while the caller has a block")
		}
		data := got.Take()
		if string(data.Copy()) != string(b.RawData()) {
			t.Error("the block has other bytes")
		}
		data.Free()
	}
	returned("taken and freed")
	for _, b := range list[10:20] {
		if string(get(t.Context(), b).RawData()) != string(b.RawData()) {
			t.Error("the block has other bytes")
		}
	}
	returned("copied")
	for _, b := range list[20:] {
		both := make(chan blocks.Block)
		for range 2 {
			go func() { both <- get(t.Context(), b) }()
		}
		for range 2 {
			got := <-both
			bytes := []byte(nil)
			if l, ok := got.(*lent.Block); ok { // asked for when the other one had come
				if data := l.Take(); data != nil {
					bytes = data.Copy()
					data.Free()
				}
			} else {
				bytes = got.RawData()
			}
			if string(bytes) != string(b.RawData()) {
				t.Errorf("%T has other bytes", got)
			}
		}
	}
	returned("copied for two")
	if net.lent.Load() == 0 {
		t.Error("nothing was ever lent")
	}
}

func nodesOver(t testing.TB, n int, over func(exchange.Network) exchange.Network) exchangetest.Group {
	net := memnet.New()
	var g exchangetest.Group
	for i := range n {
		id := memnet.ID(fmt.Sprint("node ", i))
		store := exchangetest.NewBlocks()
		ex, err := exchange.New(exchange.Config{Network: over(net.Node(id)), Blocks: store, Seed: uint64(i + 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ex.Close() })
		g.Nodes = append(g.Nodes, exchangetest.Node{Exchange: ex, Blockstore: store, ID: id})
	}
	g.Connect = func(i, j int) error { net.Connect(g.Nodes[i].ID, g.Nodes[j].ID); return nil }
	g.Disconnect = func(i, j int) error { net.Disconnect(g.Nodes[i].ID, g.Nodes[j].ID); return nil }
	return g
}
