package host

import (
	"context"
	"fmt"
	"io"

	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	unixfs "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

// Bounds of the chunk that [Node.Add] cuts a file into, bytes.
const (
	MinChunk     = 256
	DefaultChunk = 256 << 10 // as in Kubo
	MaxChunk     = 2 << 20   // the largest block that peers accept
)

// Add stores what r holds as a UnixFS file: CIDs of version 1, raw leaves, a
// balanced tree, as `ipfs add --cid-version 1` does. chunkSize is that of a
// leaf in bytes. It returns the root of the file, and the size of its blocks
// together; a block that occurs twice counts twice.
func (n *Node) Add(ctx context.Context, r io.Reader, chunkSize int64) (root cid.Cid, size uint64, err error) {
	if chunkSize < MinChunk || chunkSize > MaxChunk {
		return cid.Undef, 0, fmt.Errorf("add file: chunk of %d bytes, want %d to %d", chunkSize, MinChunk, MaxChunk)
	}
	batch := ipld.NewBufferedDAG(ctx, n.dag)
	params := helpers.DagBuilderParams{
		Dagserv:    batch,
		RawLeaves:  true,
		Maxlinks:   helpers.DefaultLinksPerBlock,
		CidBuilder: merkledag.V1CidPrefix(),
	}
	builder, err := params.New(chunk.NewSizeSplitter(contextReader{ctx, r}, chunkSize))
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("add file: %w", err)
	}
	node, err := balanced.Layout(builder)
	if err == nil {
		err = batch.Commit()
	}
	if err == nil {
		size, err = node.Size()
	}
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("add file: %w", err)
	}
	return node.Cid(), size, nil
}

// contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Fetch brings the whole DAG under root into the store, from peers as far as it
// is not there. It walks the DAG with many wants at a time in one session of
// the exchange, as `ipfs pin add` does. Progress counts the blocks as they
// arrive and may be read meanwhile; nil if nobody wants to know.
func (n *Node) Fetch(ctx context.Context, root cid.Cid, progress *merkledag.ProgressTracker) error {
	ctx, cancel := context.WithCancel(ctx) // ends the session
	defer cancel()
	if progress != nil {
		ctx = progress.DeriveContext(ctx)
	}
	if err := merkledag.FetchGraph(ctx, root, n.dag); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("fetch %s: %w", root, err)
	}
	return nil
}

// Open reads a UnixFS file from the local store. What is not there is not
// asked of peers: reading fails with an error for which ipld.IsNotFound holds.
// The reader stops when ctx ends.
func (n *Node) Open(ctx context.Context, root cid.Cid) (io.ReadSeekCloser, error) {
	node, err := n.local.Get(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("open file %s: %w", root, err)
	}
	r, err := unixfs.NewDagReader(ctx, node, n.local)
	if err != nil {
		return nil, fmt.Errorf("open file %s: %w", root, err)
	}
	return r, nil
}
