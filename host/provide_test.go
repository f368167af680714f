package host

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/host/finding"
)

// startProviding starts a node in a DHT of its own, in which nobody is to be told.
func startProviding(t *testing.T, strategy string, data ds.Batching) *Node {
	t.Helper()
	n, err := New(t.Context(), Options{Dir: t.TempDir(), Datastore: data, Direct: true, Routing: Routing{
		RouterOptions: finding.RouterOptions{Type: finding.DHT}, Provide: Provide{Strategy: strategy, Interval: 22 * time.Hour},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// What there is to tell of again: all blocks, those of pinned DAGs, or what is
// pinned itself.
func TestProvideKeys(t *testing.T) {
	for _, c := range []struct {
		strategy string
		want     int
	}{{ProvideAll, 7}, {ProvidePinned, 5}, {ProvideRoots, 1}} {
		t.Run(c.strategy, func(t *testing.T) {
			n := startProviding(t, c.strategy, dssync.MutexWrap(ds.NewMapDatastore()))
			pinned := add(t, n, random(4*MinChunk), MinChunk)    // a root and four leaves
			add(t, n, append(random(2*MinChunk), 'x'), MinChunk) // a root and three, two of which both have
			node, err := n.LocalDAG().Get(t.Context(), pinned)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Pinner().Pin(t.Context(), node, true, ""); err != nil {
				t.Fatal(err)
			}
			keys, err := n.providing.keys(n)(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			all, root := cid.NewSet(), false
			for k := range keys {
				all.Add(cid.NewCidV1(cid.Raw, k.Hash()))
				root = root || k.Hash().String() == pinned.Hash().String()
			}
			if !root {
				t.Errorf("the pinned root is missing")
			}
			if all.Len() != c.want {
				t.Errorf("got %d keys, want %d", all.Len(), c.want)
			}
		})
	}
}

// A block that could not be told of before the node ended is told of soon after it
// starts again, with all others; else all wait for their time.
func TestProvideCutShort(t *testing.T) {
	for _, pending := range []bool{false, true} {
		data := dssync.MutexWrap(ds.NewMapDatastore())
		now := []byte(strconv.FormatInt(time.Now().UnixNano(), 10))
		if err := data.Put(t.Context(), lastReprovide, now); err != nil {
			t.Fatal(err)
		}
		n := startProviding(t, ProvideAll, data)
		if pending {
			add(t, n, []byte("a block"), MinChunk)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := n.providing.ProvideMany(context.Background(), []mh.Multihash{sum(t, nil)}); err != nil {
			t.Errorf("telling after Close: got %v, want nothing for the log", err)
		}
		has, err := data.Has(t.Context(), lastReprovide)
		if err != nil {
			t.Fatal(err)
		}
		if has == pending {
			t.Errorf("with blocks untold %v: the time of the last telling is kept %v, want %v", pending, has, !pending)
		}
	}
}
