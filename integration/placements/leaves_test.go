package placements

import (
	"bytes"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/codexchange/codexchange/adapter/leaves"
	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/manifest"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/plugin"
	"github.com/codexchange/codexchange/plugin/plugintest"
)

// A leafNode is a node that keeps datasets.
type leafNode struct {
	*plugintest.Node
	leaves *leaves.Store
	ex     dataset.LeafExchange
}

func newLeafNode(t *testing.T, c plugin.Config) leafNode {
	t.Helper()
	n := leafNode{leaves: leaves.New(dssync.MutexWrap(datastore.NewMapDatastore()))}
	c.Leaves = n.leaves
	n.Node = plugintest.New(t, c)
	var ok bool
	if n.ex, ok = n.Plugin.Exchange().(dataset.LeafExchange); !ok {
		t.Fatalf("%T fetches no leaves", n.Plugin.Exchange())
	}
	return n
}

// The leaves of a dataset cross the boundary in both directions: a plugin reads
// them, with their proofs, from the leaf store of its host; another fetches them;
// and when its host has stored them they are served on.
func TestLeaves(t *testing.T) {
	for name, c := range map[string]plugin.Config{
		"over gRPC":       {Name: host.Blockexc, Here: newBlockexc},
		"in a subprocess": {Name: host.Blockexc},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := soon(t)
			nodes := []leafNode{newLeafNode(t, c), newLeafNode(t, c), newLeafNode(t, c)}
			seeder := nodes[0]
			list, _ := data(1, 300, 16<<10)
			var file bytes.Buffer
			for _, b := range list {
				file.Write(b.RawData())
			}
			d, err := manifest.Build(ctx, bytes.NewReader(file.Bytes()), manifest.Options{BlockSize: 16 << 10},
				func(_ uint64, b blocks.Block) error { return seeder.Blockstore.Put(ctx, b) })
			must(t, "build dataset", err)
			must(t, "store leaves", seeder.leaves.AddTree(ctx, d.Tree))
			tree := dataset.Tree{Root: d.Tree.Cid(), Leaves: d.Tree.Len()}
			whole := wire.Range{Count: tree.Leaves}
			must(t, "notify", seeder.ex.NotifyNewLeaves(ctx, tree.Root, whole))

			// Each fetches from the one before, and from nobody else.
			for i, n := range nodes[1:] {
				must(t, "connect", n.Host.Connect(ctx, nodes[i].Info()))
				ch, err := n.ex.GetLeaves(ctx, tree, whole)
				must(t, "get leaves", err)
				got := make([][]byte, tree.Leaves)
				for b := range ch {
					got[b.Index] = b.RawData()
					must(t, "store block", n.Blockstore.Put(ctx, b.Block))
					must(t, "store leaf, which checks the proof", n.leaves.Put(ctx, b.Root, b.Index, b.Cid(), b.Proof))
					must(t, "notify", n.ex.NotifyNewLeaves(ctx, b.Root, wire.Range{First: b.Index, Count: 1}))
				}
				if !bytes.Equal(bytes.Join(got, nil), file.Bytes()) {
					missing := 0
					for _, part := range got {
						if part == nil {
							missing++
						}
					}
					t.Fatalf("node %d: the bytes are not those of the file; %d of %d leaves are missing", i+1, missing, len(got))
				}
			}
		})
	}
}
