package porttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// Blocks tests an exchange.Blocks. The function newStore makes one that holds
// the given blocks and no others.
func Blocks(t *testing.T, newStore func(t *testing.T, held []blocks.Block) exchange.Blocks) {
	held := []blocks.Block{
		codex.NewBlock(noise(1, codex.DefaultBlockSize)),
		codex.NewBlock([]byte("a short block")),
		rawBlock(t, []byte("a block of another codec")),
		rawBlock(t, nil),
	}
	missing := []cid.Cid{codex.BlockCid([]byte("nobody has this")), rawBlock(t, []byte("nor this")).Cid()}

	t.Run("held blocks", func(t *testing.T) {
		s := newStore(t, held)
		for _, b := range held {
			check(t, "held block", holds(t.Context(), s, b))
		}
	})
	t.Run("missing blocks", func(t *testing.T) {
		s := newStore(t, held)
		for _, c := range missing {
			check(t, "missing block", lacks(t.Context(), s, c))
		}
	})
	t.Run("empty store", func(t *testing.T) {
		s := newStore(t, nil)
		for _, b := range held {
			check(t, "block of another store", lacks(t.Context(), s, b.Cid()))
		}
	})
	t.Run("many at once", func(t *testing.T) {
		s, ok := newStore(t, held).(exchange.Sizer)
		if !ok {
			t.Skip("it is no exchange.Sizer")
		}
		var list []cid.Cid
		var want []int
		for i, b := range held {
			list = append(list, b.Cid(), missing[i%len(missing)])
			want = append(want, len(b.RawData()), -1)
		}
		list, want = append(list, list[0]), append(want, want[0])
		for n := range len(list) + 1 {
			got, err := s.Sizes(t.Context(), list[:n])
			if err != nil || !slices.Equal(got, want[:n]) {
				t.Errorf("sizes of %d blocks: got %v, %v, want %v", n, got, err, want[:n])
			}
		}
	})
	t.Run("ended context", func(t *testing.T) {
		s := newStore(t, held)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		// What is in memory may be answered all the same; a block that is held
		// is never said to be missing.
		for _, b := range held {
			_, sizeErr := s.Size(ctx, b.Cid())
			_, getErr := s.Get(ctx, b.Cid())
			for _, err := range []error{sizeErr, getErr} {
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("held block %s: got error %v, want none or context.Canceled", b.Cid(), err)
				}
			}
		}
	})
	t.Run("many goroutines", func(t *testing.T) {
		s := newStore(t, held)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					for _, b := range held {
						if err := holds(t.Context(), s, b); err != nil {
							t.Error(err)
							return
						}
					}
					for _, c := range missing {
						if err := lacks(t.Context(), s, c); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

func rawBlock(t *testing.T, data []byte) blocks.Block {
	t.Helper()
	c, err := cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.SHA2_256, MhLength: -1}.Sum(data)
	check(t, "make a block", err)
	b, err := blocks.NewBlockWithCid(data, c)
	check(t, "make a block", err)
	return b
}

func holds(ctx context.Context, s exchange.Blocks, want blocks.Block) error {
	n, err := s.Size(ctx, want.Cid())
	if err != nil || n != len(want.RawData()) {
		return fmt.Errorf("size of %s: got %d, %v, want %d", want.Cid(), n, err, len(want.RawData()))
	}
	got, err := s.Get(ctx, want.Cid())
	if err != nil {
		return fmt.Errorf("read %s: %w", want.Cid(), err)
	}
	if !got.Cid().Equals(want.Cid()) {
		return fmt.Errorf("read %s: got block %s", want.Cid(), got.Cid())
	}
	if !bytes.Equal(got.RawData(), want.RawData()) {
		return fmt.Errorf("read %s: got %d other bytes, want %d", want.Cid(), len(got.RawData()), len(want.RawData()))
	}
	return nil
}

func lacks(ctx context.Context, s exchange.Blocks, c cid.Cid) error {
	if n, err := s.Size(ctx, c); !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("size of %s: got %d, %v, want errs.NotFound", c, n, err)
	}
	if b, err := s.Get(ctx, c); !errors.Is(err, errs.NotFound) || b != nil {
		return fmt.Errorf("read %s: got %v, %v, want errs.NotFound and no block", c, b, err)
	}
	return nil
}

// A LeafRecord says that Block stands at Index of the tree Root.
type LeafRecord struct {
	Root  cid.Cid
	Index uint64
	Block cid.Cid
	Proof []byte // encoded, as package merkle does
}

// LeafRecords gives the true records of a tree of n leaves, which is the same
// for the same seed.
func LeafRecords(t testing.TB, seed uint64, n int) []LeafRecord {
	t.Helper()
	var b merkle.Builder
	records := make([]LeafRecord, n)
	for i := range records {
		block := codex.BlockCid(fmt.Appendf(nil, "block %d of dataset %d", i, seed))
		digest, err := codex.Digest(block)
		if err != nil {
			t.Fatal(err)
		}
		b.Add(digest)
		records[i] = LeafRecord{Index: uint64(i), Block: block}
	}
	tree, err := b.Tree()
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		proof, err := tree.Proof(uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		records[i].Root, records[i].Proof = tree.Cid(), proof.Marshal()
	}
	return records
}

// Leaves tests an exchange.Leaves. The function newStore makes one that holds
// the given records, all of them true, and no others.
func Leaves(t *testing.T, newStore func(t *testing.T, held []LeafRecord) exchange.Leaves) {
	one, five, many := LeafRecords(t, 1, 1), LeafRecords(t, 2, 5), LeafRecords(t, 3, 300)
	held := append(append(one[:1:1], five[1:4]...), many...)

	t.Run("held leaves", func(t *testing.T) {
		s := newStore(t, held)
		for _, r := range held {
			check(t, "held leaf", holdsLeaf(t.Context(), s, r))
		}
	})
	t.Run("many at once", func(t *testing.T) {
		s, ok := newStore(t, held).(exchange.LeafBatcher)
		if !ok {
			t.Skip("it is no exchange.LeafBatcher")
		}
		var indices []uint64
		for i := range 256 {
			indices = append(indices, uint64(i*7%len(many)))
		}
		got, err := s.LeafBatch(t.Context(), many[0].Root, indices)
		if err != nil || len(got) != len(indices) {
			t.Fatalf("got %d leaves, %v, want %d", len(got), err, len(indices))
		}
		for i, l := range got {
			want := many[indices[i]]
			if !l.Cid.Equals(want.Block) || !bytes.Equal(l.Proof, want.Proof) || l.Size < -1 {
				t.Errorf("leaf %d: got block %s, %d bytes, and proof %x, want %s and %x", indices[i], l.Cid, l.Size, l.Proof, want.Block, want.Proof)
			}
		}
	})
	t.Run("missing leaves", func(t *testing.T) {
		s := newStore(t, held)
		for _, a := range []struct {
			why   string
			root  cid.Cid
			index uint64
		}{
			{"leaf of a held tree that is not held", five[0].Root, 0},
			{"another one", five[0].Root, 4},
			{"index beyond the tree", one[0].Root, 1},
			{"largest index", many[0].Root, ^uint64(0)},
			{"tree that nobody has", LeafRecords(t, 4, 2)[0].Root, 0},
			{"block in place of a tree", many[0].Block, 0},
		} {
			block, proof, err := s.Leaf(t.Context(), a.root, a.index)
			if !errors.Is(err, errs.NotFound) || block.Defined() || proof != nil {
				t.Errorf("%s: got %s, %d bytes of proof, %v, want errs.NotFound and nothing else", a.why, block, len(proof), err)
			}
			if s, ok := s.(exchange.LeafBatcher); ok {
				got, err := s.LeafBatch(t.Context(), a.root, []uint64{a.index})
				if err != nil || len(got) != 1 || got[0].Cid.Defined() {
					t.Errorf("%s, in a batch: got %v, %v, want one leaf without a block", a.why, got, err)
				}
			}
		}
	})
	t.Run("ended context", func(t *testing.T) {
		s := newStore(t, held)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := s.Leaf(ctx, one[0].Root, 0); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("held leaf: got error %v, want none or context.Canceled", err)
		}
	})
	t.Run("many goroutines", func(t *testing.T) {
		s := newStore(t, held)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for _, r := range held {
					if err := holdsLeaf(t.Context(), s, r); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func holdsLeaf(ctx context.Context, s exchange.Leaves, want LeafRecord) error {
	block, proof, err := s.Leaf(ctx, want.Root, want.Index)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("leaf %d of %s", want.Index, codex.String(want.Root))
	if !block.Equals(want.Block) {
		return fmt.Errorf("%s: got block %s, want %s", name, codex.String(block), codex.String(want.Block))
	}
	if !bytes.Equal(proof, want.Proof) {
		return fmt.Errorf("%s: got proof %x, want %x", name, proof, want.Proof)
	}
	return nil
}
