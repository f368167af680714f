package blocks_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/multiformats/go-multihash"

	adapter "github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
)

func newStore(t testing.TB, held ...blocks.Block) blockstore.Blockstore {
	t.Helper()
	bs := blockstore.NewBlockstore(dssync.MutexWrap(ds.NewMapDatastore()))
	if err := bs.PutMany(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	return bs
}

func TestContract(t *testing.T) {
	porttest.Blocks(t, func(t *testing.T, held []blocks.Block) exchange.Blocks {
		return adapter.New(newStore(t, held...))
	})
}

// A store that is asked about many blocks at once is one through the adapter too.
func TestContractSizes(t *testing.T) {
	porttest.Blocks(t, func(t *testing.T, held []blocks.Block) exchange.Blocks {
		s := adapter.New(&sizing{Blockstore: newStore(t, held...)})
		if _, ok := s.(exchange.Sizer); !ok {
			t.Fatalf("%T is no exchange.Sizer", s)
		}
		return s
	})
	if s, ok := adapter.New(newStore(t)).(exchange.Sizer); ok {
		t.Errorf("%T is an exchange.Sizer over a store that is not", s)
	}
}

// sizing is a blockstore that is asked about many blocks at once.
type sizing struct {
	blockstore.Blockstore
	asked [][]cid.Cid
	short bool
	err   error
}

func (s *sizing) Sizes(ctx context.Context, list []cid.Cid) ([]int, error) {
	s.asked = append(s.asked, list)
	sizes := make([]int, len(list))
	for i, c := range list {
		n, err := s.GetSize(ctx, c)
		if sizes[i] = n; err != nil {
			sizes[i] = -1
		}
	}
	if s.short {
		sizes = sizes[1:]
	}
	return sizes, s.err
}

// A list costs one question, without what needs none; a store that fails, or
// answers something else, is said to.
func TestSizes(t *testing.T) {
	held, missing := codex.NewBlock([]byte("held")), codex.BlockCid([]byte("not here"))
	mh, err := multihash.Sum([]byte("identity"), multihash.IDENTITY, -1)
	if err != nil {
		t.Fatal(err)
	}
	bs := &sizing{Blockstore: newStore(t, held)}
	s := adapter.New(bs).(exchange.Sizer)
	list := []cid.Cid{codex.EmptyBlock, missing, cid.NewCidV1(cid.Raw, mh), held.Cid()}
	got, err := s.Sizes(t.Context(), list)
	if want := []int{0, -1, 8, 4}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := s.Sizes(t.Context(), list[:1]); err != nil {
		t.Error(err)
	}
	if len(bs.asked) != 1 || !slices.Equal(bs.asked[0], []cid.Cid{missing, held.Cid()}) {
		t.Errorf("the store was asked for %v, want one question, about %s and %s", bs.asked, missing, held.Cid())
	}

	disk := errors.New("input/output error")
	for name, broken := range map[string]*sizing{"error": {err: disk}, "short": {short: true}} {
		broken.Blockstore = newStore(t, held)
		got, err := adapter.New(broken).(exchange.Sizer).Sizes(t.Context(), list)
		var e *errs.Error
		if got != nil || !errors.As(err, &e) || e.Kind != errs.Storage || e.Fault != errs.Ours || broken.err != nil && !errors.Is(err, disk) {
			t.Errorf("%s: got %v, %v, want nothing, errs.Storage and our fault", name, got, err)
		}
	}
}

// Blocks that no store holds are there all the same.
func TestBuiltIn(t *testing.T) {
	identity := func(data string) cid.Cid {
		mh, err := multihash.Sum([]byte(data), multihash.IDENTITY, -1)
		if err != nil {
			t.Fatal(err)
		}
		return cid.NewCidV1(cid.Raw, mh)
	}
	s := adapter.New(newStore(t))
	for _, test := range []struct {
		name string
		cid  cid.Cid
		want string
	}{
		{"empty block of Codex", codex.EmptyBlock, ""},
		{"identity", identity("in the CID itself"), "in the CID itself"},
		{"empty identity", identity(""), ""},
	} {
		if n, err := s.Size(t.Context(), test.cid); err != nil || n != len(test.want) {
			t.Errorf("%s: size is %d, %v, want %d", test.name, n, err, len(test.want))
		}
		b, err := s.Get(t.Context(), test.cid)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if string(b.RawData()) != test.want || b.RawData() == nil || !b.Cid().Equals(test.cid) {
			t.Errorf("%s: got %q of %s, want %q of %s", test.name, b.RawData(), b.Cid(), test.want, test.cid)
		}
	}

	empty := blocks.NewBlock(nil) // no bytes either, but of another codec
	if _, err := s.Size(t.Context(), empty.Cid()); !errors.Is(err, errs.NotFound) {
		t.Errorf("empty dag-pb block: got %v, want errs.NotFound", err)
	}
}

// broken is a store that answers everything with an error.
type broken struct {
	blockstore.Blockstore
	err error
}

func (b broken) GetSize(context.Context, cid.Cid) (int, error)      { return 0, b.err }
func (b broken) Get(context.Context, cid.Cid) (blocks.Block, error) { return nil, b.err }

func TestStoreFails(t *testing.T) {
	disk := errors.New("input/output error")
	s := adapter.New(broken{err: disk})
	c := codex.BlockCid([]byte("on a bad sector"))
	_, sizeErr := s.Size(t.Context(), c)
	_, getErr := s.Get(t.Context(), c)
	for name, err := range map[string]error{"Size": sizeErr, "Get": getErr} {
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Storage || e.Fault != errs.Ours {
			t.Errorf("%s: got %v, want errs.Storage and our fault", name, err)
			continue
		}
		if !errors.Is(err, disk) || !strings.Contains(err.Error(), codex.String(c)) {
			t.Errorf("%s: got %q, want it to wrap the cause and name %s", name, err, codex.String(c))
		}
	}
}

// Most of what peers ask for is not there.
func BenchmarkSizeNotFound(b *testing.B) {
	s := adapter.New(newStore(b))
	c := codex.BlockCid([]byte("not here"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Size(b.Context(), c); !errors.Is(err, errs.NotFound) {
			b.Fatal(err)
		}
	}
}
