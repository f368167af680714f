package plugin

import (
	"context"
	"errors"
	"fmt"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A Getter brings what its function has, leaves out what it has not, and takes
// no other bytes for a block.
func TestGetter(t *testing.T) {
	have := make(map[cid.Cid][]byte)
	var keys []cid.Cid
	for i := range 100 {
		b := blocks.NewBlock(fmt.Append(nil, "block ", i))
		keys = append(keys, b.Cid())
		if i%10 != 0 {
			have[b.Cid()] = b.RawData()
		}
	}
	wrong := blocks.NewBlock([]byte("what was asked for"))
	have[wrong.Cid()] = []byte("what came")
	missing := errors.New("nobody has it")
	g := Getter(func(_ context.Context, c cid.Cid) ([]byte, error) {
		if data, ok := have[c]; ok {
			return data, nil
		}
		return nil, missing
	})
	got := make(map[cid.Cid]bool)
	ch, err := g.GetBlocks(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for b := range ch {
		if want := have[b.Cid()]; string(b.RawData()) != string(want) || got[b.Cid()] {
			t.Errorf("got %q, want %q, once", b.RawData(), want)
		}
		got[b.Cid()] = true
	}
	if len(got) != 90 {
		t.Errorf("got %d blocks, want 90", len(got))
	}
	if _, err := g.GetBlock(t.Context(), keys[0]); !errors.Is(err, missing) {
		t.Errorf("a block that nobody has: got %v, want %v", err, missing)
	}
	if _, err := g.GetBlock(t.Context(), wrong.Cid()); !errors.Is(err, errs.BadBlock) {
		t.Errorf("other bytes: got %v, want %v", err, errs.BadBlock)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ch, err = g.GetBlocks(ctx, keys)
	if err != nil {
		t.Fatal(err)
	}
	for range ch { // ends
	}
}
