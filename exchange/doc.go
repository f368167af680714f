// Package exchange is the Codex block exchange: it fetches and serves
// content-addressed blocks by the protocol /codex/blockexc/1.0.0, as Codex nodes
// speak it, and is an exchange.SessionExchange of boxo, so that a blockservice, a
// DAG service or a gateway can be put on top of it where Bitswap would be.
//
//	net, err := p2p.New(host, p2p.Options{})        // adapter/p2p, over a libp2p host
//	ex, err := exchange.New(exchange.Config{
//		Network: net,
//		Blocks:  blocks.New(blockstore),            // adapter/blocks
//	})
//	service := blockservice.New(blockstore, ex)
//
// The exchange reads the local store in order to serve; it never writes to it.
// Who asked for a block stores it, and then calls NotifyNewBlocks. The
// blockservice does both.
//
// Beside blocks by CID, it fetches the blocks of Codex datasets by tree and index
// (LeafExchange): each comes with a Merkle proof, which is checked.
//
// # Parts
//
// Every decision is made by the engine (internal/engine), which is told what
// happened and says what to do, and does nothing itself. This package owns the
// one loop that owns the engine, and everything around it that waits:
//
//	exchange.go  what callers see: Exchange, Session, Stat, Ledger
//	getter.go    a request, from the caller to the loop and back
//	ahead.go     what a session fetches before it is asked for; internal/ahead decides
//	loop.go      the loop
//	receive.go   streams in: decode, verify, hand to the loop
//	view.go      what is wanted, for those who verify
//	link.go      the way out to one peer: a queue, a stream or several
//	pace.go      how many
//	serve.go     asking the store on behalf of a peer
//	search.go    finding providers and connecting to them
//	trace.go     requests that somebody traces
//	ports.go     what is needed of the world; package adapter has implementations
//
// # The way of a block
//
// In: GetBlocks makes a getter and posts a Want. The loop steps the engine, which
// says Send: want-have here, want-block there. The link to the peer writes it.
// Later the peer's stream is read: its frame is bounded, decoded as it arrives,
// each block hashed and its proof checked, all on the stream's own goroutine, and
// a BlocksIn is posted. The engine says Deliver to whoever waits, Send a cancel to
// whoever else was asked, and the block goes through the getter to the caller.
//
// Out: a peer's want list is read and posted. The engine puts it into the ledger
// and says Lookup; the link asks the store, and posts sizes. The engine queues
// what is there, takes turns among peers and says SendBlocks; the link reads the
// blocks, and writes them without copying, on the first of its streams that is free,
// if the peer is of our kind and one stream does not fill the way. Where the stream puts blocks in by
// itself (BlockWriter), as behind a plugin boundary, the link does not read them:
// it writes "block c goes here", and the bytes never come here.
//
// # Reading ahead
//
// A session that has fetched a node of a DAG, dag-pb or dag-cbor, reads its links. When
// its caller asks for the first of them, it asks for those after it as well, in the order
// in which a walker goes, and holds them until the caller does. So one that asks for
// a few blocks at a time, such as boxo's reader of files, does not wait for a round
// trip each time. What may be under way and held grows as it is used, up to
// Config.ReadAhead, and is little again when it is not: package internal/ahead says
// how. To the engine these are requests of the session like others. Blocks that the
// local store has are not asked for, and one that a caller asks for while it is under
// way is passed on when it comes. A node may lie about what it links to: a block for which
// there is no room when it comes is thrown away. Leaves of datasets need none of this: GetLeaves is
// told all that is wanted, and asks in order.
//
// # Goroutines
//
// Close waits for all of them. (Package context has one for a moment when a context
// that is watched ends: that of a session, of a request within one, or of a stream
// being read. It only resets the stream, cancels, or tells the loop.)
//
//	loop         one; owns the engine, the getters' inboxes and the links
//	link.write   one for each peer that was ever sent something while connected; owns the stream out
//	link.help    at most 7 beside it, for a peer that reads several streams; each owns one, and
//	             ends when it has had no blocks to carry for 30 s
//	link.ask     one beside them; asks the store, as they do only to make a
//	             message anew
//	read         one for each stream, inbound or outbound; at most 24 for a peer
//	forward      one for each GetBlocks or GetLeaves under way, which also reads late
//	             blocks from the store; GetBlock has none
//	join         one beside it if some of the blocks had been asked for ahead
//	run          one for each session that reads ahead, while anything is under way or
//	             held; reads links; ends 30 to 60 s after the session was last asked for
//	             something
//	look         one beside it for a moment, asks the store
//	finder       at most 8 searches, each with at most 4 dials
//
// The loop waits for nobody. What it hands on has a place kept for it: the engine
// has no more under way to a peer than its link holds, and of what comes to a
// getter beyond its window only the address is kept.
//
// # Limits
//
// A peer can make us hold: messages of Config.MaxFrame in all that are being read or
// are on their way through the loop, which in memory may take some times that if
// they are lists; Config.WantsPerPeer wants; answers to 8,192 of them; one
// message of blocks being sent more than there are streams to it, so two, or nine at
// most, of 1 MiB or one block each. All peers together have Config.ServingBytes of
// those, and one message more; in the second half of it nobody has more than two. The
// loop is given
// its lists in pieces of 1,024, one at a time. A request can hold
// Config.Window wants and Config.BufferedBytes of blocks that were not taken yet
// (Config.Window blocks, if other requests bring them along), and a CID, or a pair
// of integers, for each further thing it asked for. A session can hold Config.ReadAhead
// bytes that it was not asked for, all sessions together eight times as much, and the
// links of some nodes, 16,384 or those of one block of 2 MiB.
//
// # Errors
//
// Errors are *errs.Error: their kind can be asked for with errors.Is, and they
// say whose fault it was. An error of a context is wrapped and can be asked for
// as usual. That a block cannot be found is not an error; the request waits.
//
// Set CODEXDEBUG=wire to have every message printed to standard error.
package exchange
