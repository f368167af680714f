package exchangetest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// A broken exchange is a Mesh with one fault.
type broken struct {
	*MeshExchange
	get    func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error)
	notify func(x *MeshExchange, list []blocks.Block) error
	close  func(x *MeshExchange) error
}

func (b *broken) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	if b.get != nil {
		return b.get(b.MeshExchange, ctx, keys)
	}
	return b.MeshExchange.GetBlocks(ctx, keys)
}

func (b *broken) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	if b.notify != nil {
		return b.notify(b.MeshExchange, list)
	}
	return b.MeshExchange.NotifyNewBlocks(ctx, list...)
}

func (b *broken) Close() error {
	if b.close != nil {
		return b.close(b.MeshExchange)
	}
	return b.MeshExchange.Close()
}

// relay passes blocks on through f, which may send any number to out, until the
// channel or ctx ends.
func relay(ctx context.Context, in <-chan blocks.Block, f func(n int, b blocks.Block, out chan<- blocks.Block)) <-chan blocks.Block {
	out := make(chan blocks.Block, 1000)
	go func() {
		defer close(out)
		for n := 0; ; n++ {
			select {
			case b, ok := <-in:
				if !ok {
					return
				}
				f(n, b, out)
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// TestTheSuiteBites breaks an exchange in one way at a time. The case that is
// there for it must fail, or nothing would be proved by its passing.
func TestTheSuiteBites(t *testing.T) {
	for _, fault := range []struct {
		name  string
		what  broken
		fails string // the case
		says  string // part of what it says
	}{
		{"a block comes twice", broken{get: func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
			in, err := x.GetBlocks(ctx, keys)
			return relay(ctx, in, func(n int, b blocks.Block, out chan<- blocks.Block) {
				if out <- b; n == 3 {
					out <- b
				}
			}), err
		}}, "get many blocks", "came again"},
		{"a block is lost", broken{get: func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
			in, err := x.GetBlocks(ctx, keys)
			return relay(ctx, in, func(n int, b blocks.Block, out chan<- blocks.Block) {
				if n != 3 {
					out <- b
				}
			}), err
		}}, "two seeders with all", "channel closed with 1 of 200 blocks missing"},
		{"bytes are wrong", broken{get: func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
			in, err := x.GetBlocks(ctx, keys)
			return relay(ctx, in, func(n int, b blocks.Block, out chan<- blocks.Block) {
				if n == 3 {
					b, _ = blocks.NewBlockWithCid([]byte("other"), b.Cid())
				}
				out <- b
			}), err
		}}, "get many blocks", "other bytes"},
		{"the CID is another", broken{get: func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
			in, err := x.GetBlocks(ctx, keys)
			return relay(ctx, in, func(_ int, b blocks.Block, out chan<- blocks.Block) {
				b, _ = blocks.NewBlockWithCid(b.RawData(), cid.NewCidV1(cid.Raw, b.Cid().Hash()))
				out <- b
			}), err
		}}, "get the same bytes under two CIDs", "came again, or was not asked for"},
		{"the channel stays open", broken{get: func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
			ctx = context.WithoutCancel(ctx)
			return x.GetBlocks(ctx, append(keys[:len(keys):len(keys)], cid.NewCidV1(cid.Raw, keys[0].Hash()[:2])))
		}}, "duplicates in a request come once", "channel open"},
		{"a cancel is not heard", broken{get: func(x *MeshExchange, ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
			return x.GetBlocks(context.WithoutCancel(ctx), keys)
		}}, "a block that nobody has is waited for until cancelled", "channel still open"},
		{"new blocks are not told", broken{notify: func(*MeshExchange, []blocks.Block) error {
			return nil
		}}, "a new block is served to who waits for it", "deadline exceeded"},
		{"own blocks are not noticed", broken{notify: func(x *MeshExchange, list []blocks.Block) error {
			x.mesh.mu.Lock()
			defer x.mesh.mu.Unlock()
			for _, y := range x.mesh.nodes {
				y.look()
			}
			return nil
		}}, "a new block of one's own ends the waiting", "deadline exceeded"},
		{"a closed exchange fails the read", broken{notify: func(x *MeshExchange, list []blocks.Block) error {
			if x.closed {
				return context.Canceled
			}
			return x.NotifyNewBlocks(context.Background(), list...)
		}}, "new blocks after close are no error", "canceled"},
		{"close closes nothing", broken{close: func(*MeshExchange) error {
			return nil
		}}, "close while waiting", "no answer after"},
		{"a second close is an error", broken{close: func(x *MeshExchange) error {
			if x.closed {
				return context.Canceled
			}
			return x.Close()
		}}, "close twice", "canceled"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			i := slices.IndexFunc(cases, func(c testCase) bool { return c.name == fault.fails })
			if i < 0 {
				t.Fatalf("there is no case %q", fault.fails)
			}
			said := watch(t, func(t testing.TB) {
				cases[i].play(t, Suite{New: func(t testing.TB, n int) Group {
					m := NewMesh(n)
					g := Group{
						Connect:    func(i, j int) error { m.Connect(i, j); return nil },
						Disconnect: func(i, j int) error { m.Disconnect(i, j); return nil },
					}
					for i := range n {
						what := fault.what
						what.MeshExchange = m.Exchange(i)
						t.Cleanup(func() { what.MeshExchange.Close() })
						g.Nodes = append(g.Nodes, Node{Exchange: &what, Blockstore: m.Blocks(i)})
					}
					return g
				}})
			})
			if !strings.Contains(said, fault.says) {
				t.Errorf("case %q says %q, want something with %q", fault.fails, said, fault.says)
			}
		})
	}
}

// watch runs a test that may fail, in virtual time, and returns what it says.
func watch(t *testing.T, test func(testing.TB)) (said string) {
	synctest.Test(t, func(t *testing.T) { said, _ = try(t, test) })
	return said
}

// TestAttempts plays a case over an exchange that does nothing the first times.
func TestAttempts(t *testing.T) {
	plays := 0
	good := func(t testing.TB, n int) Group {
		m := NewMesh(n)
		g := Group{
			Connect:    func(i, j int) error { m.Connect(i, j); return nil },
			Disconnect: func(i, j int) error { m.Disconnect(i, j); return nil },
		}
		if plays++; plays%3 != 0 {
			g.Connect = func(int, int) error { return nil }
		}
		for i := range n {
			t.Cleanup(func() { m.Exchange(i).Close() })
			g.Nodes = append(g.Nodes, Node{Exchange: m.Exchange(i), Blockstore: m.Blocks(i)})
		}
		return g
	}
	for allowed, want := range map[int]bool{2: false, 3: true} {
		plays = 0
		var said string
		var failed bool
		synctest.Test(t, func(t *testing.T) {
			said, failed = try(t, func(t testing.TB) { cases[0].attempt(t, Suite{New: good, Attempts: allowed}) })
		})
		if failed == want || plays != allowed || strings.Count(said, "deadline exceeded") != 2 {
			t.Errorf("%d attempts: success %v after %d, want %v after %d; it said:\n%s", allowed, !failed, plays, want, allowed, said)
		}
	}
}

var _ boxo.SessionExchange = (*broken)(nil)
