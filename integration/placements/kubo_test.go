package placements

import (
	"bytes"
	"testing"

	"github.com/ipfs/boxo/blockservice"
	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	unixfs "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

// addFile stores a file as Kubo does, and returns its root.
func addFile(t testing.TB, dag ipld.DAGService, content []byte) cid.Cid {
	t.Helper()
	params := helpers.DagBuilderParams{
		Dagserv: dag, RawLeaves: true, Maxlinks: helpers.DefaultLinksPerBlock, CidBuilder: merkledag.V1CidPrefix(),
	}
	b, err := params.New(chunk.NewSizeSplitter(bytes.NewReader(content), 64<<10))
	must(t, "read file", err)
	root, err := balanced.Layout(b)
	must(t, "store file", err)
	return root.Cid()
}

// A real Kubo and a plugin that is boxo's Bitswap fetch files from each other, of
// more leaves than fit into one node of the tree.
func TestKubo(t *testing.T) {
	k := nodetest.NewKubo(t).Daemon()
	n := newBitswapNode(t)
	ctx := soon(t)
	info, err := peer.AddrInfoFromString(k.Address())
	must(t, "parse where Kubo is", err)
	must(t, "connect", n.Host.Connect(ctx, *info))
	list, _ := data(6, 400, 64<<10)
	var content bytes.Buffer
	for _, b := range list {
		content.Write(b.RawData())
	}
	theirs, ours := content.Bytes()[:content.Len()/2], content.Bytes()[content.Len()/2:]

	added, err := k.Add(theirs, 64<<10)
	must(t, "add a file to Kubo", err)
	root, err := cid.Decode(added)
	must(t, "parse what Kubo calls its file", err)
	dag := merkledag.NewDAGService(blockservice.New(n.Blockstore, n.Plugin.Exchange()))
	node, err := dag.Get(ctx, root)
	must(t, "get the root from Kubo", err)
	file, err := unixfs.NewDagReader(ctx, node, dag)
	must(t, "read the root", err)
	var got bytes.Buffer
	_, err = file.WriteTo(&got)
	must(t, "get the file from Kubo", err)
	if !bytes.Equal(got.Bytes(), theirs) {
		t.Errorf("from Kubo come %d bytes, want the %d of its file", got.Len(), len(theirs))
	}
	if s, err := n.Blockstore.Has(ctx, root); err != nil || !s {
		t.Errorf("the root in the node's store: %v, %v, want it there", s, err)
	}

	root = addFile(t, dag, ours)
	if sum, err := k.Fetch(root.String()); err != nil || sum != nodetest.Sum(ours) {
		t.Errorf("Kubo gets a file with SHA-256 %s, %v, want that of the node's, %s", sum, err, nodetest.Sum(ours))
	}
}
