package host

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
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

// A block that could not be told of before the node ended, or was killed, is told of
// soon after it starts again, with all others; else all wait for their time.
func TestProvideCutShort(t *testing.T) {
	for _, c := range []struct {
		name            string
		pending, killed bool
	}{{"nothing untold", false, false}, {"a block untold", true, false}, {"killed", true, true}, {"killed, nothing untold", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			data := dssync.MutexWrap(ds.NewMapDatastore())
			now := []byte(strconv.FormatInt(time.Now().UnixNano(), 10))
			if err := data.Put(t.Context(), lastReprovide, now); err != nil {
				t.Fatal(err)
			}
			n := startProviding(t, ProvideAll, data)
			if c.pending {
				add(t, n, []byte("a block"), MinChunk)
			}
			left := data
			if c.killed {
				left = copied(t, data) // what is there now is all that the next start finds
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			if err := n.providing.ProvideMany(context.Background(), []mh.Multihash{sum(t, nil)}); err != nil {
				t.Errorf("telling after Close: got %v, want nothing for the log", err)
			}
			startProviding(t, ProvideAll, left)
			has, err := left.Has(t.Context(), lastReprovide)
			if err != nil {
				t.Fatal(err)
			}
			if has == c.pending {
				t.Errorf("after the next start: the time of the last telling is kept %v, want %v", has, !c.pending)
			}
		})
	}
}

// copied is a datastore with what another holds.
func copied(t *testing.T, from ds.Batching) *dssync.MutexDatastore {
	t.Helper()
	to := dssync.MutexWrap(ds.NewMapDatastore())
	all, err := from.Query(t.Context(), query.Query{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := all.Rest()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := to.Put(t.Context(), ds.NewKey(e.Key), e.Value); err != nil {
			t.Fatal(err)
		}
	}
	return to
}
