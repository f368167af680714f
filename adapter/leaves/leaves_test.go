package leaves

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
	"github.com/codexchange/codexchange/exchange/merkle"
)

func memory() *dssync.MutexDatastore { return dssync.MutexWrap(ds.NewMapDatastore()) }

func records(list []porttest.LeafRecord) []Record {
	out := make([]Record, len(list))
	for i, r := range list {
		out[i] = Record(r)
	}
	return out
}

func TestContract(t *testing.T) {
	porttest.Leaves(t, func(t *testing.T, held []porttest.LeafRecord) exchange.Leaves {
		s := New(memory())
		if err := s.PutMany(t.Context(), records(held)); err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// buildTree makes the tree of n blocks.
func buildTree(t testing.TB, n int) *merkle.Tree {
	t.Helper()
	var b merkle.Builder
	for i := range n {
		digest, err := codex.Digest(codex.BlockCid(fmt.Appendf(nil, "block %d", i)))
		if err != nil {
			t.Fatal(err)
		}
		b.Add(digest)
	}
	tree, err := b.Tree()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// A tree of several batches is added, counted, read and deleted; another tree
// beside it stays.
func TestTree(t *testing.T) {
	for _, n := range []int{1, 2, batchSize - 1, batchSize, batchSize + 1, 2*batchSize + 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := New(memory())
			ctx := t.Context()
			other := records(porttest.LeafRecords(t, 9, 3))
			if err := s.PutMany(ctx, other); err != nil {
				t.Fatal(err)
			}
			tree := buildTree(t, n)
			if err := s.AddTree(ctx, tree); err != nil {
				t.Fatal(err)
			}
			wantCount(t, s, tree.Cid(), uint64(n))
			for i := range tree.Len() {
				block, proof, err := s.Leaf(ctx, tree.Cid(), i)
				if err != nil {
					t.Fatal(err)
				}
				if err := merkle.VerifyLeaf(proof, tree.Cid(), i, block, uint64(n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Delete(ctx, tree.Cid()); err != nil {
				t.Fatal(err)
			}
			wantCount(t, s, tree.Cid(), 0)
			if has, err := s.Has(ctx, tree.Cid(), 0); has || err != nil {
				t.Errorf("Has after Delete: got %v, %v, want false", has, err)
			}
			if err := s.Delete(ctx, tree.Cid()); err != nil {
				t.Errorf("delete a tree that is not there: %v", err)
			}
			wantCount(t, s, other[0].Root, 3)
		})
	}
}

func wantCount(t *testing.T, s *Store, root cid.Cid, want uint64) {
	t.Helper()
	if n, err := s.Count(t.Context(), root); err != nil || n != want {
		t.Fatalf("count is %d, %v, want %d", n, err, want)
	}
}

// What is not true is refused, and what was there before stays.
func TestRefusesFalseRecords(t *testing.T) {
	list := records(porttest.LeafRecords(t, 1, 5))
	other := records(porttest.LeafRecords(t, 2, 5))
	good := list[2]
	forged := bytes.Clone(good.Proof)
	forged[len(forged)-1] ^= 1
	tests := []struct {
		name string
		r    Record
		kind errs.Kind
	}{
		{"another block", Record{good.Root, good.Index, list[3].Block, good.Proof}, errs.BadProof},
		{"another index", Record{good.Root, 3, good.Block, good.Proof}, errs.BadProof},
		{"another tree", Record{other[0].Root, good.Index, good.Block, good.Proof}, errs.BadProof},
		{"forged proof", Record{good.Root, good.Index, good.Block, forged}, errs.BadProof},
		{"no proof", Record{good.Root, good.Index, good.Block, nil}, errs.BadProof},
		{"block in place of a tree", Record{good.Block, good.Index, good.Block, good.Proof}, errs.Invalid},
		{"no tree", Record{cid.Undef, good.Index, good.Block, good.Proof}, errs.Invalid},
		{"no block", Record{good.Root, good.Index, cid.Undef, good.Proof}, errs.BadProof},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := New(memory())
			if err := s.Put(t.Context(), good.Root, good.Index, good.Block, good.Proof); err != nil {
				t.Fatal(err)
			}
			r := test.r
			if err := s.Put(t.Context(), r.Root, r.Index, r.Block, r.Proof); !errors.Is(err, test.kind) {
				t.Errorf("Put: got %v, want %q", err, test.kind)
			}
			if err := s.PutMany(t.Context(), []Record{list[0], list[1], r}); !errors.Is(err, test.kind) {
				t.Errorf("PutMany: got %v, want %q", err, test.kind)
			}
			wantCount(t, s, good.Root, 1)
			block, proof, err := s.Leaf(t.Context(), good.Root, good.Index)
			if err != nil || !block.Equals(good.Block) || !bytes.Equal(proof, good.Proof) {
				t.Errorf("the record that was there: got %s, %x, %v", block, proof, err)
			}
		})
	}
}

// A proof that is given is not kept, and one that is read is the caller's.
func TestProofIsCopied(t *testing.T) {
	r := records(porttest.LeafRecords(t, 1, 5))[2]
	s := New(memory())
	given := bytes.Clone(r.Proof)
	if err := s.Put(t.Context(), r.Root, r.Index, r.Block, given); err != nil {
		t.Fatal(err)
	}
	clear(given)
	_, proof, err := s.Leaf(t.Context(), r.Root, r.Index)
	if err != nil || !bytes.Equal(proof, r.Proof) {
		t.Errorf("after the caller changed its slice: got %x, %v, want %x", proof, err, r.Proof)
	}
}

// Every way to damage one byte of a record is found when it is read.
func TestDamagedRecord(t *testing.T) {
	d := memory()
	s := New(d)
	r := records(porttest.LeafRecords(t, 1, 5))[2]
	value := encode(r.Block, r.Proof)
	damaged := [][]byte{nil, {version}, value[:len(value)-1], append(bytes.Clone(value), 0)}
	for i := range value {
		b := bytes.Clone(value)
		b[i] ^= 0x40
		damaged = append(damaged, b)
	}
	for _, b := range damaged {
		if err := d.Put(t.Context(), key(r.Root, r.Index), b); err != nil {
			t.Fatal(err)
		}
		block, proof, err := s.Leaf(t.Context(), r.Root, r.Index)
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Storage || e.Fault != errs.Ours || block.Defined() || proof != nil {
			t.Fatalf("record %x: got %s, %x, %v, want errs.Storage, our fault and nothing else", b, block, proof, err)
		}
		if !strings.Contains(err.Error(), leafName(r.Root, r.Index)) {
			t.Fatalf("error %q does not name %s", err, leafName(r.Root, r.Index))
		}
	}
}

// The layout of keys and values is what other versions will find.
func TestLayout(t *testing.T) {
	d := memory()
	r := records(porttest.LeafRecords(t, 1, 1))[0]
	if err := New(d).Put(t.Context(), r.Root, r.Index, r.Block, r.Proof); err != nil {
		t.Fatal(err)
	}
	value, err := d.Get(t.Context(), ds.RawKey("/leaves/"+r.Root.String()+"/0000000000000000"))
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{1, 38}, r.Block.Bytes()...)
	want = append(want, r.Proof...)
	if len(value) != len(want)+4 || !bytes.HasPrefix(value, want) {
		t.Errorf("value is %x, want %x and a checksum", value, want)
	}
}

// failing is a datastore that fails after some batches.
type failing struct {
	*dssync.MutexDatastore
	err error
}

func (f failing) Get(context.Context, ds.Key) ([]byte, error) { return nil, f.err }
func (f failing) Has(context.Context, ds.Key) (bool, error)   { return false, f.err }
func (f failing) Put(context.Context, ds.Key, []byte) error   { return f.err }
func (f failing) Batch(ctx context.Context) (ds.Batch, error) { return nil, f.err }

func TestDatastoreFails(t *testing.T) {
	disk := errors.New("no space left on device")
	s := New(failing{memory(), disk})
	r := records(porttest.LeafRecords(t, 1, 5))[2]
	_, _, leafErr := s.Leaf(t.Context(), r.Root, r.Index)
	_, hasErr := s.Has(t.Context(), r.Root, r.Index)
	for name, err := range map[string]error{
		"Leaf":    leafErr,
		"Has":     hasErr,
		"Put":     s.Put(t.Context(), r.Root, r.Index, r.Block, r.Proof),
		"PutMany": s.PutMany(t.Context(), []Record{r}),
		"AddTree": s.AddTree(t.Context(), buildTree(t, 3)),
	} {
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Storage || e.Fault != errs.Ours || !errors.Is(err, disk) {
			t.Errorf("%s: got %v, want errs.Storage, our fault, for %q", name, err, disk)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Leaf(ctx, r.Root, r.Index); !errors.Is(err, context.Canceled) || errors.Is(err, errs.Storage) {
		t.Errorf("ended context: got %v, want context.Canceled and not errs.Storage", err)
	}
}

// Whatever is in the datastore, decode does not panic, and what it accepts is
// exactly what encode makes of the result.
func FuzzDecode(f *testing.F) {
	r := records(porttest.LeafRecords(f, 1, 5))[2]
	f.Add(encode(r.Block, r.Proof), true)
	f.Add(encode(r.Block, nil), true)
	f.Add([]byte{}, false)
	f.Add([]byte{version, 0xff, 0xff, 0xff}, false)
	f.Fuzz(func(t *testing.T, value []byte, sum bool) {
		if sum && len(value) >= 1+sumSize { // give it the checksum that lets it through
			value = seal(bytes.Clone(value[:len(value)-sumSize]))
		}
		block, proof, err := decode(value)
		if err != nil {
			if block.Defined() || proof != nil {
				t.Fatalf("got %s and %x beside error %v", block, proof, err)
			}
			return
		}
		if again := encode(block, proof); !bytes.Equal(again, value) {
			t.Fatalf("%x decodes to %s and %x, which encode to %x", value, block, proof, again)
		}
	})
}

func BenchmarkAddTree(b *testing.B) {
	tree := buildTree(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := New(memory()).AddTree(b.Context(), tree); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "leaves/s")
}

func BenchmarkLeaf(b *testing.B) {
	tree := buildTree(b, 10_000)
	s := New(memory())
	if err := s.AddTree(b.Context(), tree); err != nil {
		b.Fatal(err)
	}
	var i uint64
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.Leaf(b.Context(), tree.Cid(), i%10_000); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// What a peer appends to a proof verifies with it, and is not kept.
func TestKeepsOnlyTheProof(t *testing.T) {
	r := records(porttest.LeafRecords(t, 4, 3))[1]
	padded := append(bytes.Clone(r.Proof), 0x7a, 3, 'a', 'b', 'c') // field 15
	s := New(memory())
	if err := s.Put(t.Context(), r.Root, r.Index, r.Block, padded); err != nil {
		t.Fatal(err)
	}
	_, proof, err := s.Leaf(t.Context(), r.Root, r.Index)
	if err != nil || !bytes.Equal(proof, r.Proof) {
		t.Errorf("proof is %x, %v, want %x", proof, err, r.Proof)
	}
}
