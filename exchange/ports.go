package exchange

import (
	"context"
	"io"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/dataset"
)

// ProtocolID is the libp2p protocol that this package speaks.
const ProtocolID = "/codex/blockexc/1.0.0"

// StreamsID is the name under which a node announces, beside ProtocolID, that it
// reads several streams of a peer at a time, in whatever order messages come on
// them. They speak the same protocol, and are opened as ProtocolID.
const StreamsID = "/codexchange/blockexc/streams/1.0.0"

// A Network is what an exchange needs of a libp2p host: streams, connections,
// and who is there. Its methods may be called from any goroutine.
//
// The boundary lies at the stream, so that the exchange behaves the same over a
// host in its own process and over one it reaches through a plugin boundary.
type Network interface {
	// Self is the id of this node.
	Self() peer.ID

	// Attach begins delivering peers and streams to h: first every peer that
	// is connected now, then what changes. It is called once. The returned
	// function ends the delivery, resets the inbound streams that are still
	// open, and waits until no call to h is under way; it is not called from
	// inside one. It may be called more than once.
	Attach(h Handler) (detach func(), err error)

	// NewStream opens a stream of ProtocolID to a connected peer; it does not
	// dial. The error is of kind errs.Unreachable.
	NewStream(ctx context.Context, p peer.ID) (Stream, error)

	// Connect dials a peer unless it is connected. Success is followed by
	// Handler.PeerUp if the peer speaks the protocol. The error is of kind
	// errs.Unreachable, or errs.Invalid for this node's own id or none.
	Connect(ctx context.Context, p peer.AddrInfo) error

	// Latency is the measured round trip time to a peer, 0 if unknown. To ask may
	// have it measured.
	Latency(p peer.ID) time.Duration

	// Streams is how many outbound streams a connected peer reads at a time. It is 1
	// for those that are not known to read more, as the reference does not.
	Streams(p peer.ID) int

	// Tag sets how much the exchange values its connection to a peer, from 0
	// (not at all) to 100; the host may prefer to keep valued connections. It
	// returns at once.
	Tag(p peer.ID, value int)
}

// A Neighbourhood is a Network that knows which peers are near: on the local
// network, or kept by the operator's choice. They are always asked who has a block;
// of others, in a large neighbourhood, those that have shown something.
type Neighbourhood interface {
	// Near is asked once for each PeerUp, and returns at once.
	Near(p peer.ID) bool
}

// A Handler hears from a Network. Calls about one peer come in order: PeerUp
// and PeerDown alternate, each PeerUp with a higher epoch than any before, and
// its PeerDown with the same. PeerUp and PeerDown return soon.
type Handler interface {
	// PeerUp says that a peer that speaks the protocol is connected.
	PeerUp(p peer.ID, epoch uint64)
	// PeerDown says that the last connection to the peer is gone, or that it
	// speaks the protocol no more.
	PeerDown(p peer.ID, epoch uint64)
	// HandleStream hands over a stream that a peer opened. It is called on a
	// goroutine of its own, after the peer's PeerUp, and owns the stream.
	HandleStream(s Stream)
}

// A Stream is a byte stream to one peer. One goroutine may read while another
// writes; Reset may be called from any.
type Stream interface {
	io.Reader
	io.Writer

	// Peer is who is on the other side.
	Peer() peer.ID
	// Close ends both directions in good order; the other side reads io.EOF.
	Close() error
	// Reset ends both directions at once; pending reads and writes fail.
	Reset() error
	// SetWriteDeadline makes writes fail that have not ended by t.
	SetWriteDeadline(t time.Time) error
}

// A BlockWriter is a Stream that puts blocks into itself. The exchange writes
// "block c goes here" in the place of its bytes, and whoever carries the stream
// (the host, if the exchange is its plugin) takes them from the store that Blocks
// stands for. So blocks are served that the exchange never reads: it only asks
// Blocks for their size. A Stream may be one or not; that those of a Network are
// all of one kind is usual, and saves work.
type BlockWriter interface {
	// WriteBlock does what a Write of all the bytes of block c would do, in order
	// with the Writes around it, but it may return before the store is asked. If it
	// then turns out that the store does not have size bytes of c, the stream is
	// reset: the message cannot be ended, so the other side must not read io.EOF,
	// and on this side later reads and writes fail. Deadlines are those of Write.
	WriteBlock(c cid.Cid, size int) error
}

// A Corker is a Stream that can be told that more is about to be written, where each
// write costs much. Between Cork and Uncork it may hold back what is written; Uncork
// sends it. Its error is that of a Write, and may be that of an earlier one. Both are
// for the goroutine that writes.
type Corker interface {
	Cork()
	Uncork() error
}

// Blocks is the local store, as far as serving needs it. Its methods may be
// called from any goroutine. It may be a Sizer.
type Blocks interface {
	// Size is the length of a block in bytes, or errs.NotFound.
	Size(ctx context.Context, c cid.Cid) (int, error)
	// Get reads a block, or errs.NotFound.
	Get(ctx context.Context, c cid.Cid) (blocks.Block, error)
}

// A Sizer is a Blocks that is asked about many blocks at once, where that costs
// less than one after the other.
type Sizer interface {
	// Sizes gives the length of each block in bytes, in the order of the list, and
	// -1 for those that are not held. The list has at most 256 CIDs. An error is
	// about all of them.
	Sizes(ctx context.Context, list []cid.Cid) ([]int, error)
}

// Leaves is the local store of leaf records: which block stands at which index
// of which tree, and the proof of it. Its methods may be called from any
// goroutine. It may be a LeafBatcher.
type Leaves interface {
	// Leaf returns the CID of the block and its encoded proof (package
	// merkle), or errs.NotFound. The block itself is in Blocks, or was.
	Leaf(ctx context.Context, root cid.Cid, index uint64) (block cid.Cid, proof []byte, err error)
}

// A LeafBatcher is a Leaves that is asked about many leaves of a tree at once, and
// knows of their blocks as well whether Blocks has them.
type LeafBatcher interface {
	// LeafBatch finds leaves of the tree root, in the order of the indices, of
	// which there are at most 256. An error is about all of them.
	LeafBatch(ctx context.Context, root cid.Cid, indices []uint64) ([]Leaf, error)
}

// A Leaf is what a LeafBatcher says of one place in a tree.
type Leaf struct {
	Cid   cid.Cid // of the block; undefined if there is no record
	Proof []byte  // encoded, see package merkle
	Size  int     // of the block, bytes; -1 if Blocks does not hold it
}

// Router finds who has content. Its methods may be called from any goroutine.
type Router interface {
	// FindProviders sends the providers it finds for c, at most max and never
	// this node, until ctx ends or there are no more; then it closes the
	// channel.
	FindProviders(ctx context.Context, c cid.Cid, max int) <-chan peer.AddrInfo
}

// What is said about datasets has a package of its own, so that an exchange can
// run in another process than its callers.
type (
	LeafBlock    = dataset.LeafBlock
	Tree         = dataset.Tree
	LeafFetcher  = dataset.LeafFetcher
	LeafExchange = dataset.LeafExchange
)
