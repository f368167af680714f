// Package dataset is what exchanges and their callers say to each other about
// the blocks of a Codex dataset, which are fetched by Merkle tree and index
// rather than by CID. An exchange that can do so implements [LeafExchange]
// beside boxo's interfaces, wherever it runs; the package imports nothing that
// only one placement has.
package dataset

import (
	"context"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/wire"
)

// A LeafBlock is a block of a dataset as it came from a peer, verified: its
// bytes hash to the CID, and the proof leads from the CID to the tree.
type LeafBlock struct {
	blocks.Block
	Root  cid.Cid
	Index uint64
	Proof []byte // encoded, as package merkle does
}

// A Tree is the Merkle tree of a dataset, as its manifest names it.
type Tree struct {
	Root cid.Cid
	// Leaves is the number of blocks, 0 if it is not known. Proofs state it too,
	// and the root alone does not tell: what a peer states is put right if it
	// is known.
	Leaves uint64
}

// A LeafFetcher is implemented by exchanges that can fetch the blocks of a
// dataset by tree and index. Find it by type assertion on an exchange or a
// session.
type LeafFetcher interface {
	// GetLeaves fetches the blocks of a tree in the given ranges. The
	// channel is closed when every block has come, or ctx ends, or the
	// exchange closes. Blocks come in any order, each once. The caller stores
	// block and leaf record, and then calls NotifyNewLeaves.
	GetLeaves(ctx context.Context, tree Tree, indices ...wire.Range) (<-chan LeafBlock, error)
}

// A LeafExchange fetches and serves leaves beside blocks.
type LeafExchange interface {
	boxo.SessionExchange
	LeafFetcher
	// NotifyNewLeaves tells the exchange that leaves of a tree can now be read
	// from its stores, so that peers that wait for them are served.
	NotifyNewLeaves(ctx context.Context, root cid.Cid, indices ...wire.Range) error
}
