package exchange

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
)

// A session that nobody holds any more stops reading ahead, though its context never
// ends and what it asked for never comes.
func TestALostSessionReadsNothingAhead(t *testing.T) {
	e := newAlone(t)
	root := merkledag.NodeWithData(nil)
	var leaves []ipld.Node
	for i := range 10 {
		leaves = append(leaves, merkledag.NewRawNode([]byte{byte(i)}))
		if err := root.AddRawLink("", &ipld.Link{Cid: leaves[i].Cid(), Size: 1}); err != nil {
			t.Fatal(err)
		}
	}
	func() {
		s := e.NewSession(context.Background()).(*Session)
		s.ahead.learn(root)
		ctx, cancel := context.WithCancel(context.Background())
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			if _, err := s.GetBlock(ctx, leaves[0].Cid()); err == nil {
				t.Error("got a block from nobody")
			}
		}()
		until(t, "the rest is wanted", func() bool { return e.Stat().Wants == 10 })
		cancel()
		<-asked
	}()
	until(t, "nothing is wanted", func() bool {
		runtime.GC()
		s := e.Stat()
		return s.Wants == 0 && s.Getters == 0 && s.ReadAhead == 0 && sessions(e) == 0
	})
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("not within 20 seconds: %s", what)
		}
	}
}

// stocked is alone with blocks that are only found by reading them.
type stocked struct {
	alone
	blocks sync.Map // by CID
}

func (s *stocked) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if b, ok := s.blocks.Load(c); ok {
		return b.(blocks.Block), nil
	}
	return nil, errs.Errorf(errs.NotFound, errs.Unknown, "get", "no block %s", c)
}

// Blocks of several batches that come at a time when none of them can be taken in are
// passed on all the same, in the end.
func TestBatchesThatComeAtOnce(t *testing.T) {
	store := &stocked{}
	e, err := New(Config{Network: alone{}, Blocks: store})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	root := merkledag.NodeWithData(nil)
	var leaves []blocks.Block
	var keys []cid.Cid
	for i := range 200 {
		n := merkledag.NewRawNode([]byte{byte(i)})
		leaves, keys = append(leaves, n), append(keys, n.Cid())
		if err := root.AddRawLink("", &ipld.Link{Cid: n.Cid(), Size: 1}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := e.NewSession(ctx).(*Session)
	r := s.ahead
	r.in, r.batches, r.looked = make(chan arrival, 1), make(map[engine.GetterID]*batch), make(chan looked, 1)
	r.learn(root)
	first, err := s.GetBlocks(ctx, keys[:60])
	if err != nil {
		t.Fatal(err)
	}
	until(t, "two batches are under way", func() bool { return e.Stat().Getters >= 3 })
	second, err := s.GetBlocks(ctx, keys[60:150])
	if err != nil {
		t.Fatal(err)
	}
	until(t, "all of it is wanted", func() bool { return e.Stat().Wants >= 150 })
	for _, b := range leaves {
		store.blocks.Store(b.Cid(), b)
	}
	if err := e.NotifyNewBlocks(ctx, leaves...); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range first {
		n++
	}
	for range second {
		n++
	}
	if n != 150 {
		t.Errorf("%d blocks came within 20 s, want 150", n)
	}
}
