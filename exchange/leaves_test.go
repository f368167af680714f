package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/manifest"
	"github.com/codexchange/codexchange/exchange/merkle"
	"github.com/codexchange/codexchange/exchange/wire"
)

const leafSize = 4 << 10

// A dataset is made once and given to nodes by hasLeaves.
type dataset struct {
	content  []byte
	manifest blocks.Block
	tree     *merkle.Tree
	root     cid.Cid
	blocks   []blocks.Block
}

func makeDataset(t testing.TB, n int) *dataset {
	t.Helper()
	d := &dataset{}
	for _, b := range makeBlocks(7, n, leafSize) {
		d.content = append(d.content, b.RawData()...)
	}
	d.content = d.content[:len(d.content)-100] // the last block is filled up
	ds, err := manifest.Build(context.Background(), bytes.NewReader(d.content), manifest.Options{BlockSize: leafSize},
		func(_ uint64, b blocks.Block) error { d.blocks = append(d.blocks, b); return nil })
	if err != nil {
		t.Fatal(err)
	}
	d.tree, d.root = ds.Tree, ds.Tree.Cid()
	if d.manifest, err = ds.Manifest.Block(); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dataset) proof(t testing.TB, i uint64) []byte {
	t.Helper()
	p, err := d.tree.Proof(i)
	if err != nil {
		t.Fatal(err)
	}
	return p.Marshal()
}

// delivery is leaf i as an honest peer sends it.
func (d *dataset) delivery(t testing.TB, i uint64) wire.Delivery {
	t.Helper()
	b := d.blocks[i]
	return wire.Delivery{Address: wire.Leaf(d.root, i), Cid: b.Cid(), Data: b.RawData(), Proof: d.proof(t, i)}
}

// hasLeaves stores leaves of a dataset at a node and tells its exchange.
func (n *node) hasLeaves(d *dataset, r wire.Range) {
	n.s.Helper()
	for i := r.First; i < r.End(); i++ {
		n.store.Put(n.s.Context(), d.blocks[i])
		n.leaves.PutLeaf(d.root, i, d.blocks[i].Cid(), d.proof(n.s, i))
	}
	if err := n.NotifyNewLeaves(n.s.Context(), d.root, r); err != nil {
		n.s.Fatal(err)
	}
}

// collectLeaves reads a channel to its end and checks each leaf as a stranger
// would.
func collectLeaves(s *stage, why string, d *dataset, ch <-chan exchange.LeafBlock) map[uint64]exchange.LeafBlock {
	s.Helper()
	got := make(map[uint64]exchange.LeafBlock)
	late := time.After(time.Hour)
	for {
		select {
		case b, ok := <-ch:
			if !ok {
				return got
			}
			if _, again := got[b.Index]; again {
				s.Fatalf("%s: leaf %d came twice", why, b.Index)
			}
			if !b.Root.Equals(d.root) || !bytes.Equal(b.RawData(), d.blocks[b.Index].RawData()) {
				s.Fatalf("%s: leaf %d of %s has other bytes", why, b.Index, b.Root)
			}
			if err := merkle.VerifyLeaf(b.Proof, d.root, b.Index, b.Cid(), uint64(len(d.blocks))); err != nil {
				s.Fatalf("%s: leaf %d: %v", why, b.Index, err)
			}
			got[b.Index] = b
		case <-late:
			s.Fatalf("%s: the channel is open after an hour, %d leaves have come", why, len(got))
		}
	}
}

func TestLeavesByRange(t *testing.T) {
	d := makeDataset(t, 300)
	for name, fetcher := range map[string]func(*stage, *node) exchange.LeafFetcher{
		"exchange": func(_ *stage, n *node) exchange.LeafFetcher { return n },
		"session":  func(s *stage, n *node) exchange.LeafFetcher { return n.NewSession(s.Context()).(exchange.LeafFetcher) },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *stage) {
				seeder, n := s.node("seeder"), s.node("node")
				s.meet(seeder, n)
				seeder.hasLeaves(d, wire.Range{Count: 300})
				seeder.has(d.manifest)
				f := fetcher(s, n)

				s.getting(s.Context(), n, d.manifest.Cid()).gets("the manifest is a block like others", d.manifest)
				m, err := manifest.Decode(d.manifest)
				if err != nil {
					s.Fatal(err)
				}
				first, count := m.BlockRange(50*leafSize, 100*leafSize)
				ch, err := f.GetLeaves(s.Context(), exchange.Tree{Root: m.TreeCid}, wire.Range{First: first, Count: count}, wire.Range{First: 140, Count: 20}, wire.Range{First: 299, Count: 1})
				if err != nil {
					s.Fatal(err)
				}
				got := collectLeaves(s, "ranges that overlap, and the last", d, ch)
				for i := range uint64(300) {
					if want := i >= 50 && i < 160 || i == 299; want != (got[i].Block != nil) {
						s.Errorf("leaf %d came: %v, want %v", i, !want, want)
					}
				}
				n.idle("all have come")
			})
		})
	}
}

func TestNewLeavesReachWhoWaits(t *testing.T) {
	d := makeDataset(t, 40)
	play(t, func(s *stage) {
		seeder, n := s.node("seeder"), s.node("node")
		s.meet(seeder, n)
		ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{Count: 40})
		if err != nil {
			s.Fatal(err)
		}
		start := time.Now()
		for i := range uint64(4) {
			seeder.hasLeaves(d, wire.Range{First: 10 * i, Count: 10})
		}
		if got := collectLeaves(s, "they were stored after they were asked for", d, ch); len(got) != 40 {
			s.Errorf("got %d leaves, want 40", len(got))
		}
		if waited := time.Since(start); waited != 0 {
			s.Errorf("they came after %v, want at once: the wants stood", waited)
		}
		n.idle("all have come")
	})
}

// Leaves are not served from a node that has the blocks without their records,
// and then come from one that has both.
func TestLeavesNeedRecords(t *testing.T) {
	d := makeDataset(t, 10)
	play(t, func(s *stage) {
		without := s.node("without", func(c *exchange.Config) { c.Leaves = nil })
		without.has(d.blocks...)
		n, with := s.node("node"), s.node("with")
		s.meet(without, n)
		ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{Count: 10})
		if err != nil {
			s.Fatal(err)
		}
		time.Sleep(time.Minute)
		select {
		case b := <-ch:
			s.Fatalf("got leaf %d from a node that has no leaves", b.Index)
		default:
		}
		with.hasLeaves(d, wire.Range{Count: 10})
		s.meet(with, n)
		if got := collectLeaves(s, "the other has them", d, ch); len(got) != 10 {
			s.Errorf("got %d leaves, want 10", len(got))
		}
	})
}

// A protected dataset is filled up with empty blocks, which nobody stores, and
// whose leaves come all the same.
func TestTheEmptyBlockIsALeaf(t *testing.T) {
	empty := codex.NewBlock(nil)
	full := codex.NewBlock(bytes.Repeat([]byte{1}, leafSize))
	var b merkle.Builder
	for _, x := range []blocks.Block{full, empty, empty} {
		digest, err := codex.Digest(x.Cid())
		if err != nil {
			t.Fatal(err)
		}
		b.Add(digest)
	}
	tree, err := b.Tree()
	if err != nil {
		t.Fatal(err)
	}
	d := &dataset{tree: tree, root: tree.Cid(), blocks: []blocks.Block{full, empty, empty}}
	play(t, func(s *stage) {
		seeder, n := s.node("seeder"), s.node("node")
		s.meet(seeder, n)
		seeder.hasLeaves(d, wire.Range{Count: 3})
		ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{Count: 3})
		if err != nil {
			s.Fatal(err)
		}
		got := collectLeaves(s, "with padding", d, ch)
		if len(got) != 3 || !got[2].Cid().Equals(codex.EmptyBlock) || len(got[2].RawData()) != 0 {
			s.Errorf("got %d leaves, the last %v, want 3 and the empty block", len(got), got[2].Block)
		}
	})
}

func TestCancelledLeavesLeaveOthers(t *testing.T) {
	d := makeDataset(t, 20)
	play(t, func(s *stage) {
		seeder, n := s.node("seeder"), s.node("node")
		s.meet(seeder, n)
		ctx, cancel := context.WithCancel(s.Context())
		first, err := n.GetLeaves(ctx, exchange.Tree{Root: d.root}, wire.Range{Count: 15})
		if err != nil {
			s.Fatal(err)
		}
		second, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{First: 5, Count: 15})
		if err != nil {
			s.Fatal(err)
		}
		cancel()
		if got := collectLeaves(s, "cancelled", d, first); len(got) != 0 {
			s.Errorf("got %d leaves from nobody", len(got))
		}
		seeder.hasLeaves(d, wire.Range{Count: 20})
		if got := collectLeaves(s, "not cancelled", d, second); len(got) != 15 {
			s.Errorf("got %d leaves, want 15", len(got))
		}
		n.idle("one is cancelled and one is done")
		if _, _, err := n.leaves.Leaf(s.Context(), d.root, 5); !errors.Is(err, errs.NotFound) {
			s.Errorf("leaf 5 is in the node's own store: %v, want %v: only the caller stores", err, errs.NotFound)
		}
	})
}
