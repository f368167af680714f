package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	adapter "github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
)

// A ledgered store is a node's store as its exchange sees it: it counts what it is
// asked, and can be made to lie.
type ledgered struct {
	*exchangetest.Blocks
	mu     sync.Mutex
	gets   int
	sizes  int
	remain map[cid.Cid]int // sizes of blocks that are said to be there, and are not
	broken error           // of every Get
}

func (l *ledgered) Size(ctx context.Context, c cid.Cid) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes++
	if n, ok := l.remain[c]; ok {
		return n, nil
	}
	return l.Blocks.Size(ctx, c)
}

func (l *ledgered) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gets++
	if l.broken != nil && l.remain[c] > 0 {
		return nil, l.broken
	}
	return l.Blocks.Get(ctx, c)
}

func (l *ledgered) count() (gets, sizes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gets, l.sizes
}

// loses takes a block away such that its exchange only finds out by reading it.
func (l *ledgered) loses(s *stage, b blocks.Block) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.remain == nil {
		l.remain = make(map[cid.Cid]int)
	}
	l.remain[b.Cid()] = len(b.RawData())
	if err := l.DeleteBlock(s.Context(), b.Cid()); err != nil {
		s.Fatal(err)
	}
}

// filled makes a node that serves by reference.
func (s *stage) filled(name string, change ...func(*exchange.Config)) (*node, *ledgered) {
	s.Helper()
	var store *ledgered
	n := s.node(name, append([]func(*exchange.Config){func(c *exchange.Config) {
		store = &ledgered{Blocks: c.Blocks.(*exchangetest.Blocks)}
		c.Blocks = store
	}}, change...)...)
	n.net.FillFrom(n.store)
	return n, store
}

// By reference a peer is sent the very bytes that it is sent otherwise, blocks and
// leaves, and none of those of a block comes to the exchange.
func TestServingByReference(t *testing.T) {
	list, d := makeBlocks(1, 60, 20<<10), makeDataset(t, 30)
	list = append(list, codex.NewBlock(nil), blocks.NewBlock(nil), blocks.NewBlock([]byte("short")))
	payload := len(d.blocks) * leafSize
	var wants []wire.Address
	for _, b := range list {
		payload += len(b.RawData())
		wants = append(wants, wire.Block(b.Cid()))
	}
	for i := range d.blocks {
		wants = slices.Insert(wants, 2*i, wire.Leaf(d.root, uint64(i)))
	}
	scene := func(refs bool) (sent []byte) {
		play(t, func(s *stage) {
			n, store := s.filled("node")
			if !refs {
				n.net.FillFrom(nil)
			}
			peer := s.player("peer")
			s.meet(n, peer)
			n.has(list...)
			n.hasLeaves(d, wire.Range{Count: uint64(len(d.blocks))})
			peer.asks(n, wire.WantBlock, wants...)
			for got := 0; got < len(wants); {
				m := peer.hears("it is all there", func(m *wire.Message) bool { return len(m.Deliveries) > 0 })
				got += len(m.Deliveries)
				sent = append(sent, encode(s, m)...)
			}
			written, filled := int(n.net.Written()), int(n.net.Filled())
			if !refs {
				if filled != 0 {
					s.Errorf("%d bytes are put into plain streams, want none", filled)
				}
				return
			}
			if gets, _ := store.count(); gets != 0 {
				s.Errorf("the exchange has read %d blocks, want none", gets)
			}
			if most := 600 * len(wants); filled != payload || written > most {
				s.Errorf("%d bytes are put in and %d written, want %d and at most %d", filled, written, payload, most)
			}
			if got := n.Stat(); got.BytesSent != uint64(payload) || got.BlocksSent != uint64(len(wants)) {
				s.Errorf("%d blocks of %d bytes are counted, want %d of %d", got.BlocksSent, got.BytesSent, len(wants), payload)
			}
		})
		return sent
	}
	if inline, refs := scene(false), scene(true); !bytes.Equal(inline, refs) {
		t.Errorf("by reference the peer got %d other bytes than the %d it gets otherwise", len(refs), len(inline))
	}
}

// Two exchanges do not notice how they are connected.
func TestNodesByReference(t *testing.T) {
	list, d := makeBlocks(1, 500, 3000), makeDataset(t, 100)
	play(t, func(s *stage) {
		n, _ := s.filled("node")
		seeder, store := s.filled("seeder")
		s.meet(n, seeder)
		seeder.has(list...)
		seeder.hasLeaves(d, wire.Range{Count: 100})
		n.gets("what is there", list...)
		ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{Count: 100})
		if err != nil {
			s.Fatal(err)
		}
		if got := collectLeaves(s, "the leaves as well", d, ch); len(got) != 100 {
			s.Errorf("%d leaves came, want 100", len(got))
		}
		if gets, _ := store.count(); gets != 0 {
			s.Errorf("the seeder's exchange has read %d blocks, want none", gets)
		}
		n.idle("all have come")
	})
}

// A block that is in its CID is in no store, and is served by its bytes.
func TestABlockInItsCid(t *testing.T) {
	data := []byte("in the CID itself")
	mh, err := multihash.Sum(data, multihash.IDENTITY, -1)
	if err != nil {
		t.Fatal(err)
	}
	a, b := wire.Block(cid.NewCidV1(cid.Raw, mh)), makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, _ := s.filled("node", func(c *exchange.Config) { c.Blocks = adapter.New(c.Blocks.(*ledgered).Blocks) })
		peer := s.player("peer")
		s.meet(n, peer)
		n.store.Put(s.Context(), b)
		peer.asks(n, wire.WantBlock, a, wire.Block(b.Cid()))
		m := peer.hears("both are served", func(m *wire.Message) bool { return len(m.Deliveries) == 2 })
		if !bytes.Equal(m.Deliveries[0].Data, data) || !bytes.Equal(m.Deliveries[1].Data, b.RawData()) {
			s.Errorf("got %v, want the two blocks", m)
		}
		if got := n.net.Filled(); got != 1000 {
			s.Errorf("%d bytes are put in, want the 1000 of the other block", got)
		}
	})
}

// A block that vanishes, or cannot be read, after its reference was written costs
// the stream. The peer is not given up, and is sent the others: at once if the
// writer notices, or else when it asks again. They are read then, to find out
// which are there; after that it is by reference again.
func TestAReferencedBlockIsMissing(t *testing.T) {
	damaged := errs.E(errs.Storage, errs.Ours, "read block", "", errors.New("bad sector"))
	for _, c := range []struct {
		name   string
		broken error
		late   bool
	}{{"gone", nil, false}, {"damaged", damaged, false}, {"gone, noticed late", nil, true}, {"damaged, noticed late", damaged, true}} {
		t.Run(c.name, func(t *testing.T) {
			list := makeBlocks(1, 5, 1000)
			a := func(i int) wire.Address { return wire.Block(list[i].Cid()) }
			play(t, func(s *stage) {
				n, store := s.filled("node")
				store.broken = c.broken
				peer := s.player("peer")
				if c.late {
					s.net.SetLatency(n.id, peer.id, 10*time.Millisecond)
				}
				s.meet(n, peer)
				n.has(list...)
				store.loses(s, list[1])

				start := time.Now()
				peer.asks(n, wire.WantBlock, a(0), a(1), a(2))
				if c.late {
					peer.ends("the message could not be ended", <-peer.streams)
					peer.silent("the node does not know which message is lost", 10*time.Second)
					start = time.Now()
					peer.asks(n, wire.WantBlock, a(0), a(1), a(2))
				}
				m := peer.hears("the others come on a new stream", func(m *wire.Message) bool { return len(m.Deliveries) > 0 })
				if len(m.Deliveries) != 2 || m.Deliveries[0].Address != a(0) || m.Deliveries[1].Address != a(2) {
					s.Errorf("got %v, want blocks 0 and 2", m)
				}
				peer.hears("the missing one is said to be", func(m *wire.Message) bool {
					return len(m.Presences) == 1 && m.Presences[0].Address == a(1) && m.Presences[0].Type == wire.DontHave
				})
				if took, most := time.Since(start), 100*time.Millisecond; took > most {
					s.Errorf("it took %v, want at most %v: nothing was to be waited for", took, most)
				}
				if gets, _ := store.count(); gets != 3 {
					s.Errorf("%d blocks were read, want the 3 of that message", gets)
				}
				peer.asks(n, wire.WantBlock, a(3), a(4))
				peer.gets("what is asked for after that", a(4))
				if gets, _ := store.count(); gets != 3 {
					s.Errorf("%d blocks were read, want none more than 3: by reference again", gets)
				}
				if got := n.Stat(); got.SendsFailed != 0 {
					s.Errorf("%d sends have failed, want none", got.SendsFailed)
				}
			})
		})
	}
}

// A node that gets blocks of one who has lost some gets all the others, though
// messages are lost with them.
func TestTheOthersComeAllTheSame(t *testing.T) {
	list := makeBlocks(1, 100, 1000)
	play(t, func(s *stage) {
		n := s.node("node")
		seeder, store := s.filled("seeder")
		s.net.SetLatency(n.id, seeder.id, 20*time.Millisecond)
		s.meet(n, seeder)
		seeder.has(list...)
		lost := []int{3, 50, 51}
		for _, i := range lost {
			store.loses(s, list[i])
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(s.Context(), time.Hour)
		defer cancel()
		ch, err := n.GetBlocks(ctx, cids(list))
		if err != nil {
			s.Fatal(err)
		}
		var last time.Duration
		got := make(map[cid.Cid]bool)
		for b := range ch {
			got[b.Cid()] = true
			last = time.Since(start)
		}
		for i, b := range list {
			if want := !slices.Contains(lost, i); got[b.Cid()] != want {
				s.Errorf("block %d came: %v, want %v", i, got[b.Cid()], want)
			}
		}
		if most := time.Minute; last > most {
			s.Errorf("the last came after %v, want at most %v: what is lost is asked for again", last, most)
		}
	})
}

// Streams that cannot, or can all of a sudden, are served as they are. That the
// last one was of another kind only costs a message made twice.
func TestStreamsOfBothKinds(t *testing.T) {
	list := makeBlocks(1, 8, 1000)
	play(t, func(s *stage) {
		n, store := s.filled("node")
		peer := s.player("peer")
		s.meet(n, peer)
		n.has(list...)
		kinds := []bool{true, false, false, true, true, false, true, true}
		for i, refs := range kinds {
			// The stream on which the peer asks is of the kind before.
			peer.out = nil
			peer.open(n)
			synctest.Wait()
			n.net.FillFrom(nil)
			if refs {
				n.net.FillFrom(n.store)
			}
			before := n.net.Filled()
			peer.asks(n, wire.WantBlock, wire.Block(list[i].Cid()))
			peer.gets(fmt.Sprintf("on stream %d", i), wire.Block(list[i].Cid()))
			if got := n.net.Filled() - before; !refs && got > 0 {
				s.Errorf("block %d: %d bytes are put into a plain stream", i, got)
			}
			s.net.DropStreams(n.id, peer.id)
			synctest.Wait()
		}
		if gets, _ := store.count(); gets == 0 {
			s.Error("no block was read for the plain streams")
		}
		if got := n.Stat().SendsFailed; got != 0 {
			s.Errorf("%d sends have failed, want none", got)
		}
	})
}

// What is taken back while it waits is not sent, and a peer that reads nothing
// holds up its own blocks only.
func TestCancelByReference(t *testing.T) {
	list := makeBlocks(1, 64, 256<<10)
	play(t, func(s *stage) {
		s.net.SetBuffer(32 << 10)
		n, store := s.filled("node")
		slow, other := s.player("slow"), s.player("other")
		s.meet(n, slow)
		s.meet(n, other)
		n.has(list...)
		resume := slow.net.StallReads()
		var all []wire.Address
		var back wire.Message
		for _, b := range list {
			all = append(all, wire.Block(b.Cid()))
			back.WantList.Entries = append(back.WantList.Entries, wire.Entry{Address: wire.Block(b.Cid()), Cancel: true})
		}
		slow.asks(n, wire.WantBlock, all...)
		slow.send(n, &back)
		other.asks(n, wire.WantBlock, all[63])
		other.gets("another peer is served", all[63])
		resume()
		synctest.Wait()
		got := 0
		for len(slow.heard) > 0 {
			if h := <-slow.heard; h.m != nil {
				got += len(h.m.Deliveries)
			}
		}
		if most := 2 * 4; got > most {
			s.Errorf("the slow peer got %d blocks that it had taken back, want at most the %d under way", got, most)
		}
		if gets, _ := store.count(); gets != 0 {
			s.Errorf("the exchange has read %d blocks, want none", gets)
		}
		if got := n.Stat(); got.Flying != 0 || got.Asks != 0 {
			s.Errorf("%d bytes and %d asks are left, want none", got.Flying, got.Asks)
		}
	})
}

// Close does not wait for a peer that takes nothing.
func TestCloseInAReference(t *testing.T) {
	list := makeBlocks(1, 8, 1<<20)
	play(t, func(s *stage) {
		n, _ := s.filled("node")
		peer := s.player("peer")
		s.meet(n, peer)
		n.has(list...)
		peer.net.StallReads()
		for _, b := range list {
			peer.asks(n, wire.WantBlock, wire.Block(b.Cid()))
		}
		if got := n.Stat().Flying; got == 0 {
			s.Error("nothing is on its way, want a block that is being put in")
		}
		start := time.Now()
		n.Close()
		if took := time.Since(start); took > 0 {
			s.Errorf("Close took %v, want no time", took)
		}
	})
}

// A batching store is asked about many things at once. It counts how often.
type batching struct {
	*ledgered
	leaves  *exchangetest.Leaves
	sizings int
	trees   []cid.Cid // of each LeafBatch
	wrong   string    // how the next answers are wrong
}

var errDisk = errs.E(errs.Storage, errs.Ours, "read", "", errors.New("bad sector"))

func (b *batching) Sizes(ctx context.Context, list []cid.Cid) ([]int, error) {
	b.sizings++
	sizes := make([]int, len(list))
	for i, c := range list {
		n, err := b.ledgered.Blocks.Size(ctx, c)
		if sizes[i] = n; err != nil {
			sizes[i] = -1
		}
	}
	switch b.wrong {
	case "error":
		return nil, errDisk
	case "short":
		return sizes[1:], nil
	}
	return sizes, nil
}

// batchedLeaves is the leaves of a batching store.
type batchedLeaves struct{ *batching }

func (b batchedLeaves) Leaf(context.Context, cid.Cid, uint64) (cid.Cid, []byte, error) {
	panic("asked for one leaf, want all at once")
}

func (b batchedLeaves) LeafBatch(ctx context.Context, root cid.Cid, indices []uint64) ([]exchange.Leaf, error) {
	b.trees = append(b.trees, root)
	found := make([]exchange.Leaf, len(indices))
	for i, index := range indices {
		c, proof, err := b.leaves.Leaf(ctx, root, index)
		found[i] = exchange.Leaf{Cid: c, Proof: proof, Size: -1}
		if err == nil {
			if n, err := b.ledgered.Blocks.Size(ctx, c); err == nil {
				found[i].Size = n
			}
		}
	}
	switch b.wrong {
	case "error":
		return nil, errDisk
	case "short":
		return found[1:], nil
	}
	return found, nil
}

// A store that can be asked about many things is asked once for all that a peer
// wants to know, and once for each message of blocks, and for each tree in it; by
// reference or not.
func TestTheStoreIsAskedOnce(t *testing.T) {
	list, d, e := makeBlocks(1, 9, 1000), makeDataset(t, 8), makeDataset(t, 3)
	for _, refs := range []bool{true, false} {
		t.Run(fmt.Sprintf("references %v", refs), func(t *testing.T) {
			play(t, func(s *stage) {
				var store *batching
				n, _ := s.filled("node", func(c *exchange.Config) {
					store = &batching{ledgered: c.Blocks.(*ledgered), leaves: c.Leaves.(*exchangetest.Leaves)}
					c.Blocks, c.Leaves = store, batchedLeaves{store}
				})
				if !refs {
					n.net.FillFrom(nil)
				}
				peer := s.player("peer")
				s.meet(n, peer)
				n.store.PutMany(s.Context(), list[:8])
				n.hasLeaves(d, wire.Range{Count: 7})
				n.hasLeaves(e, wire.Range{Count: 3})
				n.store.DeleteBlock(s.Context(), e.blocks[2].Cid()) // its record remains
				var wants []wire.Address
				for i := range list {
					wants = append(wants, wire.Block(list[i].Cid()))
					if i < 8 {
						wants = append(wants, wire.Leaf(d.root, uint64(i)))
					}
					if i < 3 {
						wants = append(wants, wire.Leaf(e.root, uint64(i)))
					}
				}
				peer.asks(n, wire.WantBlock, wants...)
				dont := 0
				for got := 0; got+dont < len(wants); {
					m := peer.hears("all is answered", func(*wire.Message) bool { return true })
					got += len(m.Deliveries)
					dont += len(m.Presences)
				}
				if dont != 3 {
					s.Errorf("%d are said not to be there, want block 8, leaf 7 of the one tree and 2 of the other", dont)
				}
				// One message has as many blocks as are there, and their sizes are
				// known by then.
				const wantSizings, wantTrees = 1, 4
				gets, sizes := store.count()
				if store.sizings != wantSizings || len(store.trees) != wantTrees || sizes != 0 {
					s.Errorf("asked for sizes %d times and leaves %d times, and for one size %d times, want %d, %d and 0", store.sizings, len(store.trees), sizes, wantSizings, wantTrees)
				}
				if want := 17; refs && gets != 0 || !refs && gets != want {
					s.Errorf("%d blocks were read, by reference %v, want %d or 0", gets, refs, want)
				}
			})
		})
	}
}

// A store that fails, or answers something else than it was asked, has nothing as
// long as it does so, and is asked again when the peer asks again.
func TestABatchFails(t *testing.T) {
	b, d := makeBlocks(1, 1, 1000)[0], makeDataset(t, 2)
	wants := []wire.Address{wire.Block(b.Cid()), wire.Leaf(d.root, 1)}
	for _, wrong := range []string{"error", "short"} {
		t.Run(wrong, func(t *testing.T) {
			play(t, func(s *stage) {
				var store *batching
				n, _ := s.filled("node", func(c *exchange.Config) {
					store = &batching{ledgered: c.Blocks.(*ledgered), leaves: c.Leaves.(*exchangetest.Leaves), wrong: wrong}
					c.Blocks, c.Leaves = store, batchedLeaves{store}
				})
				peer := s.player("peer")
				s.meet(n, peer)
				n.store.Put(s.Context(), b)
				n.hasLeaves(d, wire.Range{Count: 2})
				peer.asks(n, wire.WantBlock, wants...)
				peer.hears("nothing is there", func(m *wire.Message) bool { return len(m.Presences) == 2 })
				store.wrong = ""
				peer.asks(n, wire.WantBlock, wants...)
				peer.hears("it is there", func(m *wire.Message) bool { return len(m.Deliveries) == 2 })
			})
		})
	}
}

// A lazy block knows its size, and counts how often it is read.
type lazy struct {
	blocks.Block
	read int
}

func (l *lazy) Size() int       { return len(l.Block.RawData()) }
func (l *lazy) RawData() []byte { l.read++; return l.Block.RawData() }

// A new block that knows its size is not read to be announced or served; who waits
// for it here is given it as it is.
func TestLazyBlocks(t *testing.T) {
	list := makeBlocks(1, 3, 1000)
	play(t, func(s *stage) {
		n, _ := s.filled("node")
		peer := s.player("peer")
		s.meet(n, peer)
		one := s.getting(s.Context(), n, list[0].Cid())
		ch, err := n.GetBlocks(s.Context(), cids(list[1:2]))
		if err != nil {
			s.Fatal(err)
		}
		peer.asks(n, wire.WantBlock, wire.Block(list[2].Cid()))
		var given []*lazy
		n.store.PutMany(s.Context(), list)
		for _, b := range list {
			given = append(given, &lazy{Block: b})
		}
		if err := n.NotifyNewBlocks(s.Context(), given[0], given[1], given[2]); err != nil {
			s.Fatal(err)
		}
		one.wait("it is there")
		if two := <-ch; one.b != blocks.Block(given[0]) || two != blocks.Block(given[1]) {
			s.Errorf("got %v and %v, want the very blocks that were given", one.b, two)
		}
		if _, more := <-ch; more {
			s.Error("another block came")
		}
		peer.gets("it was asked for", wire.Block(list[2].Cid()))
		n.idle("all have come")
		for i, b := range given {
			if b.read != 0 {
				s.Errorf("block %d was read %d times, want not at all", i, b.read)
			}
		}
	})
}
