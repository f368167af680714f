package exchange_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/blockservice"
	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	unixfsio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
)

// fileOf is a file of one node over leaves, with its name as Kubo would have it.
func fileOf(t testing.TB, leaves []blocks.Block) blocks.Block {
	t.Helper()
	n := merkledag.NodeWithData(unixfs.FilePBData(nil, 0))
	n.SetCidBuilder(merkledag.V1CidPrefix())
	for _, b := range leaves {
		if err := n.AddRawLink("", &ipld.Link{Cid: b.Cid(), Size: uint64(len(b.RawData()))}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func rawBlocks(seed uint64, n, size int) []blocks.Block {
	list := makeBlocks(seed, n, size)
	for i, b := range list {
		list[i] = merkledag.NewRawNode(b.RawData())
	}
	return list
}

// asked takes the want lists that the player has heard, and lists the blocks that are
// asked for, in order of their first mention, and those that are cancelled.
func (p *player) asked() (wanted, cancelled []cid.Cid) {
	synctest.Wait()
	for len(p.heard) > 0 {
		h := <-p.heard
		if h.m == nil {
			continue
		}
		for _, e := range h.m.WantList.Entries {
			list := &wanted
			if e.Cancel {
				list = &cancelled
			}
			if !slices.Contains(*list, e.Address.Root) {
				*list = append(*list, e.Address.Root)
			}
		}
	}
	return wanted, cancelled
}

// What a node links to is asked for in its order as soon as the walker has asked for
// the first, as far as the window goes; each once, whoever asks then; and what came
// before it was asked for is there at once.
func TestReadAheadOnTheWire(t *testing.T) {
	leaves := rawBlocks(1, 20, 64<<10)
	root := fileOf(t, leaves)
	play(t, func(s *stage) {
		n, p := s.node("node"), s.player("peer")
		s.meet(n, p)
		session := n.NewSession(s.Context())
		r := s.getting(s.Context(), session, root.Cid())
		p.isAsked("the root is wanted", wire.Block(root.Cid()))
		p.delivers(n, root)
		r.gets("the root came", root)
		if wanted, _ := p.asked(); len(wanted) > 0 {
			t.Errorf("%d blocks are asked for before the walker asks for any", len(wanted))
		}

		first := s.getting(s.Context(), session, leaves[0].Cid())
		p.announces(n, leaves...)
		wanted, _ := p.asked()
		if want := cids(leaves[:6]); !slices.Equal(wanted, want) {
			t.Fatalf("asked for\n%v\nwant the first, and 256 KiB and once its size after it\n%v", wanted, want)
		}
		second := s.getting(s.Context(), session, leaves[1].Cid())
		many, err := session.GetBlocks(s.Context(), cids(leaves[1:4]))
		if err != nil {
			t.Fatal(err)
		}
		if wanted, _ := p.asked(); slices.ContainsFunc(wanted, func(c cid.Cid) bool { return slices.Contains(cids(leaves[:6]), c) }) {
			t.Errorf("what is under way is asked for again: %v", wanted)
		}
		p.delivers(n, leaves[:6]...)
		first.gets("it came", leaves[0])
		second.gets("it had been asked for ahead", leaves[1])
		if got := collect(s, "they were under way", many); len(got) != 3 {
			t.Errorf("got %d blocks, want 3", len(got))
		}
		before := n.Stat()
		for _, b := range leaves[4:6] {
			if got, err := session.GetBlock(s.Context(), b.Cid()); err != nil || !got.Cid().Equals(b.Cid()) {
				t.Fatalf("got %v, %v", got, err)
			}
		}
		if st := n.Stat(); st.ReadAheadUsed != 5 || st.ReadAheadUsedBytes != 5*64<<10 || st.ReadAheadWasted != 0 || st.ReadAhead == 0 || before.ReadAhead == 0 {
			t.Errorf("got %+v, want five used", st)
		}
	})
}

// Nothing is read ahead if that is switched off, nor without a session.
func TestReadAheadOff(t *testing.T) {
	leaves := rawBlocks(1, 20, 64<<10)
	root := fileOf(t, leaves)
	for _, x := range []struct {
		name    string
		config  func(*exchange.Config)
		session bool
	}{
		{"negative", func(c *exchange.Config) { c.ReadAhead = -1 }, true},
		{"without a session", func(*exchange.Config) {}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			play(t, func(s *stage) {
				n, p := s.node("node", x.config), s.player("peer")
				s.meet(n, p)
				var from interface {
					GetBlock(context.Context, cid.Cid) (blocks.Block, error)
				} = n.Exchange
				if x.session {
					from = n.NewSession(s.Context())
				}
				r := s.getting(s.Context(), from, root.Cid())
				p.delivers(n, root)
				r.gets("the root", root)
				p.forget()
				r = s.getting(s.Context(), from, leaves[0].Cid())
				if wanted, _ := p.asked(); len(wanted) != 1 {
					t.Errorf("asked for %v, want the first leaf", wanted)
				}
				p.delivers(n, leaves[0])
				r.gets("the leaf", leaves[0])
			})
		})
	}
}

// What the local store has is not fetched, and what it links to is followed.
func TestReadAheadSkipsLocalBlocks(t *testing.T) {
	leaves := rawBlocks(1, 8, 16<<10)
	a, b := fileOf(t, leaves[:2]), fileOf(t, leaves[2:])
	root := fileOf(t, []blocks.Block{a, b})
	for _, batched := range []bool{true, false} {
		t.Run(fmt.Sprint("sizer ", batched), func(t *testing.T) {
			play(t, func(s *stage) {
				n := s.node("node", func(c *exchange.Config) {
					if batched {
						c.Blocks = batchedBlocks{c.Blocks}
					}
				})
				p := s.player("peer")
				n.has(b, leaves[3])
				s.meet(n, p)
				session := n.NewSession(s.Context())
				for _, x := range []blocks.Block{root, a} {
					r := s.getting(s.Context(), session, x.Cid())
					p.delivers(n, x)
					r.gets("a node", x)
				}
				p.forget()
				r := s.getting(s.Context(), session, leaves[0].Cid())
				wanted := n.GetWantlist()
				want := []blocks.Block{leaves[0], leaves[1], leaves[2], leaves[4], leaves[5], leaves[6], leaves[7]}
				if !slices.Equal(sorted(wanted), sorted(cids(want))) {
					t.Errorf("asked for %v\nwant all but those that are here %v", wanted, cids(want))
				}
				p.delivers(n, leaves[0])
				r.gets("the leaf", leaves[0])
			})
		})
	}
}

func sorted(list []cid.Cid) []cid.Cid {
	return slices.SortedFunc(slices.Values(list), func(a, b cid.Cid) int {
		return slices.Compare(a.Bytes(), b.Bytes())
	})
}

// batchedBlocks is a store that is a Sizer.
type batchedBlocks struct{ exchange.Blocks }

func (b batchedBlocks) Sizes(ctx context.Context, list []cid.Cid) ([]int, error) {
	sizes := make([]int, len(list))
	for i, c := range list {
		size, err := b.Size(ctx, c)
		if err != nil {
			size = -1
		}
		sizes[i] = size
	}
	return sizes, nil
}

// What was asked for ahead is cancelled, and what came is let go of, when the session
// ends, when nobody holds it any more, and when it has asked for nothing for long.
func TestReadAheadEnds(t *testing.T) {
	leaves := rawBlocks(1, 6, 32<<10)
	root := fileOf(t, leaves)
	scene := func(s *stage, ctx context.Context, end func(n *node, session **exchange.Session)) {
		n, p := s.node("node"), s.player("peer")
		s.meet(n, p)
		session := n.NewSession(ctx).(*exchange.Session)
		for _, x := range []blocks.Block{root, leaves[0]} {
			r := s.getting(s.Context(), session, x.Cid())
			p.delivers(n, x)
			r.gets("the first", x)
		}
		p.announces(n, leaves[:4]...)
		p.delivers(n, leaves[1])
		told, _ := p.asked()
		told = slices.DeleteFunc(told, func(c cid.Cid) bool { return c == root.Cid() || slices.Contains(cids(leaves[:2]), c) })
		if st := n.Stat(); len(told) == 0 || st.ReadAhead == 0 || st.Wants != 4 {
			s.Fatalf("%d bytes are read ahead, %d wants, want some and 4", st.ReadAhead, st.Wants)
		}
		end(n, &session)
		if _, cancelled := p.asked(); !slices.Equal(sorted(cancelled), sorted(told)) {
			s.Errorf("%d wants are cancelled, want the %d that the peer was told", len(cancelled), len(told))
		}
		n.idle("nothing is left")
		if st := n.Stat(); st.ReadAhead != 0 || st.ReadAheadWasted != 5 {
			s.Errorf("%d bytes are read ahead, %d blocks wasted, want 0 and 5", st.ReadAhead, st.ReadAheadWasted)
		}
		runtime.KeepAlive(session)
	}
	t.Run("context", func(t *testing.T) {
		play(t, func(s *stage) {
			ctx, cancel := context.WithCancel(s.Context())
			scene(s, ctx, func(*node, **exchange.Session) { cancel() })
		})
	})
	t.Run("silence", func(t *testing.T) {
		play(t, func(s *stage) {
			scene(s, s.Context(), func(n *node, session **exchange.Session) {
				time.Sleep(3 * time.Minute)
				synctest.Wait()
			})
		})
	})
}

// A caller that goes away while it waits for a block that is under way leaves the
// others theirs; when the last has gone the want ends.
func TestLeavingABlockThatIsUnderWay(t *testing.T) {
	leaves := rawBlocks(1, 6, 32<<10)
	root := fileOf(t, leaves)
	play(t, func(s *stage) {
		n, p := s.node("node"), s.player("peer")
		s.meet(n, p)
		session := n.NewSession(s.Context())
		for _, x := range []blocks.Block{root, leaves[0]} {
			r := s.getting(s.Context(), session, x.Cid())
			p.delivers(n, x)
			r.gets("the first", x)
		}
		ctx, cancel := context.WithCancel(s.Context())
		goes := s.getting(ctx, session, leaves[1].Cid())
		many, err := session.GetBlocks(ctx, cids(leaves[1:4]))
		if err != nil {
			t.Fatal(err)
		}
		stays := s.getting(s.Context(), session, leaves[1].Cid())
		synctest.Wait()
		p.forget()
		cancel()
		goes.fails("it was cancelled", context.Canceled)
		if got := collect(s, "it was cancelled", many); len(got) != 0 {
			t.Errorf("got %d blocks from nobody", len(got))
		}
		stays.waits("it was not cancelled")
		p.delivers(n, leaves[1])
		stays.gets("it came", leaves[1])
	})
}

// A local store that is slow to say what it has holds up guesses, and nothing that was
// asked for.
func TestReadAheadWaitsForNoStore(t *testing.T) {
	leaves := rawBlocks(1, 30, 32<<10)
	root := fileOf(t, leaves)
	play(t, func(s *stage) {
		store := slowBlocks{exchangetest.NewBlocks(), time.Second}
		n, p := s.node("node", func(c *exchange.Config) { c.Blocks = store }), s.player("peer")
		s.meet(n, p)
		session := n.NewSession(s.Context())
		for _, x := range []blocks.Block{root, leaves[0]} {
			r := s.getting(s.Context(), session, x.Cid())
			p.delivers(n, x)
			r.gets("the first", x)
		}
		time.Sleep(20 * time.Second) // enough to look for what is guessed first
		for _, b := range leaves[1:5] {
			r := s.getting(s.Context(), session, b.Cid()) // which lets more be guessed
			start := time.Now()
			p.delivers(n, b)
			r.gets("it was under way", b)
			if took := time.Since(start); took >= store.delay {
				t.Fatalf("a block that came took %v", took)
			}
		}
	})
}

type slowBlocks struct {
	*exchangetest.Blocks
	delay time.Duration
}

func (b slowBlocks) Size(ctx context.Context, c cid.Cid) (int, error) {
	time.Sleep(b.delay)
	return b.Blocks.Size(ctx, c)
}

// Close ends what waits for blocks that are under way.
func TestCloseWhileReadingAhead(t *testing.T) {
	leaves := rawBlocks(1, 6, 32<<10)
	root := fileOf(t, leaves)
	play(t, func(s *stage) {
		n, p := s.node("node"), s.player("peer")
		s.meet(n, p)
		session := n.NewSession(s.Context())
		for _, x := range []blocks.Block{root, leaves[0]} {
			r := s.getting(s.Context(), session, x.Cid())
			p.delivers(n, x)
			r.gets("the first", x)
		}
		r := s.getting(s.Context(), session, leaves[1].Cid())
		many, err := session.GetBlocks(s.Context(), cids(leaves))
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
		r.fails("the exchange has closed", errs.Closed)
		collect(s, "the exchange has closed", many)
		s.getting(s.Context(), session, leaves[2].Cid()).fails("it is still closed", errs.Closed)
		if st := n.Stat(); st.ReadAhead != 0 {
			t.Errorf("%d bytes are read ahead after Close", st.ReadAhead)
		}
	})
}

// storeFile stores a file in blocks of 32 KiB as Kubo does.
func storeFile(t *testing.T, store *exchangetest.Blocks, size int64) cid.Cid {
	t.Helper()
	p := helpers.DagBuilderParams{
		Dagserv:   merkledag.NewDAGService(blockservice.New(store, nil)),
		RawLeaves: true, Maxlinks: helpers.DefaultLinksPerBlock, CidBuilder: merkledag.V1CidPrefix(),
	}
	b, err := p.New(chunk.NewSizeSplitter(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), 32<<10))
	if err != nil {
		t.Fatal(err)
	}
	root, err := balanced.Layout(b)
	if err != nil {
		t.Fatal(err)
	}
	return root.Cid()
}

func readerOf(s *stage, dag ipld.DAGService, root cid.Cid) unixfsio.DagReader {
	s.Helper()
	session := merkledag.NewSession(s.Context(), dag)
	n, err := session.Get(s.Context(), root)
	if err != nil {
		s.Fatal(err)
	}
	r, err := unixfsio.NewDagReader(s.Context(), n, session)
	if err != nil {
		s.Fatal(err)
	}
	return r
}

// boxo's reader of files and FetchGraph, over a link of 100 ms: they need a fraction of
// the round trips, nothing comes twice, and next to nothing is fetched in vain.
func TestReadAheadUnderBoxo(t *testing.T) {
	const size = 24 << 20
	walks := []struct {
		name string
		walk func(*stage, ipld.DAGService, cid.Cid)
		gain time.Duration // at least so many times faster
		vain int           // blocks that may be fetched twice: 32 workers come in any order
	}{
		{"reader", func(s *stage, dag ipld.DAGService, root cid.Cid) {
			r := readerOf(s, dag, root)
			defer r.Close()
			if got, err := io.Copy(io.Discard, r); got != size || err != nil {
				s.Fatalf("read %d bytes, %v, want %d", got, err, size)
			}
		}, 4, 0},
		{"FetchGraph", func(s *stage, dag ipld.DAGService, root cid.Cid) {
			if err := merkledag.FetchGraph(s.Context(), root, dag); err != nil {
				s.Fatal(err)
			}
		}, 1, 20},
	}
	for _, w := range walks {
		t.Run(w.name, func(t *testing.T) {
			took := make(map[int]time.Duration)
			for _, limit := range []int{-1, 0} {
				play(t, func(s *stage) {
					seeder, n := s.node("seeder"), s.node("node", func(c *exchange.Config) { c.ReadAhead = limit })
					s.net.SetBuffer(64 << 20) // the link is not to be the limit
					s.net.SetLatency(seeder.id, n.id, 50*time.Millisecond)
					s.net.SetLatency(n.id, seeder.id, 50*time.Millisecond)
					root, count := storeFile(t, seeder.store, size), size/(32<<10)+5+1
					s.meet(seeder, n)
					start := time.Now()
					w.walk(s, merkledag.NewDAGService(blockservice.New(n.store, n.Exchange)), root)
					took[limit] = time.Since(start)
					st := n.Stat()
					if got := seeder.Stat().BlocksSent; got < uint64(count) || got > uint64(count+w.vain) {
						t.Errorf("the seeder sent %d blocks, want %d, at most %d more; %+v", got, count, w.vain, st)
					}
					if limit == 0 && st.ReadAheadUsed < uint64(count)/2 {
						t.Errorf("%d of %d blocks were read ahead, want most", st.ReadAheadUsed, count)
					}
				})
			}
			t.Logf("%v without, %v with", took[-1], took[0])
			if took[0]*w.gain > took[-1] {
				t.Errorf("it takes %v, and %v without, want %d times less", took[0], took[-1], w.gain)
			}
		})
	}
}

// Who reads here and there, of which boxo's reader makes ten blocks each, has no more
// fetched in vain than it asks for.
func TestReadAheadOfScatteredReads(t *testing.T) {
	const size = 64 << 20
	sent := make(map[int]uint64)
	for _, limit := range []int{-1, 0} {
		play(t, func(s *stage) {
			seeder, n := s.node("seeder"), s.node("node", func(c *exchange.Config) { c.ReadAhead = limit })
			s.net.SetLatency(seeder.id, n.id, 50*time.Millisecond)
			root := storeFile(t, seeder.store, size)
			s.meet(seeder, n)
			r := readerOf(s, merkledag.NewDAGService(blockservice.New(n.store, n.Exchange)), root)
			defer r.Close()
			at := rand.New(rand.NewPCG(1, 1))
			for range 40 {
				if _, err := r.Seek(at.Int64N(size), io.SeekStart); err != nil {
					t.Fatal(err)
				}
				if _, err := r.CtxReadFull(s.Context(), make([]byte, 4<<10)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			sent[limit] = seeder.Stat().BlocksSent
		})
	}
	t.Logf("%d blocks without, %d with", sent[-1], sent[0])
	if sent[0] > 2*sent[-1] {
		t.Errorf("%d blocks are sent, and %d without, want at most twice as many: what was asked for is the measure", sent[0], sent[-1])
	}
}
