// Package refpeer is a stand-in for the reference node of the Codex block
// exchange (/codex/blockexc/1.0.0), for tests. Over real libp2p connections it
// shows a remote peer what that node shows: the same identity, transport and
// muxer, the same bytes with explicit defaults, the same streams, silences,
// batches and traps.
//
// It is an independent witness: it imports nothing else of this project, and
// has its own messages, codec, Merkle trees and proofs. What both it and the
// project understand is therefore understood from the wire alone.
//
// A [Peer] has three roles, which may be mixed:
//
//   - server: [Peer.AddBlock] and [Peer.AddDataset] give it blocks, and it
//     answers want lists (server.go). [Misbehave] makes it lie.
//   - client: [Peer.Fetch] and [Peer.FetchDataset] download (client.go).
//   - script: [Peer.Send], [Peer.SendMessage] and [Peer.Replay] put bytes on the
//     wire and [Peer.Expect] waits for what comes (script.go). [Scripted] turns
//     the server off, so that the script alone speaks.
//
// A script, here against the node under test, reads like this:
//
//	ref := refpeer.New(t, refpeer.Scripted())
//	ref.SendMessage(ctx, node.ID(), refpeer.Want(refpeer.WantHave, true, a))
//	ref.Expect(ctx, func(m refpeer.Message) bool { return m.Says(refpeer.Have, a) })
//
// Everything that comes in is recorded: [Peer.Received], [Peer.Counters]. What
// would have crashed the reference, cost the sender a stream, or been refused,
// is kept in [Peer.Violations], and a well-behaved remote leaves that list
// empty.
//
// # What it leaves out
//
// Provider discovery (tests connect peers themselves), pricing, accounts and
// payments (production nodes use none), the limit of 3000 retries per block,
// the limit of 100 peers waiting to be served, and the pauses in the read loop.
// Presences are flushed at 1024 and at the end of a want list, not after 10 ms
// too. None of these changes what a correct remote has to do.
//
// # Where it differs on purpose
//
// The reference accepts a leaf whose proof leads to another root. A Peer
// refuses it and says so, unless [Lenient] is given. Where the reference would
// abort its process, a Peer records a [Crash] violation and closes the stream.
// A message is refused as a whole, so all its blocks are lost with it, exactly
// as in the reference.
//
// # Goroutines
//
// One ticks for the client; one per connected peer writes; one per stream
// reads. All end, and are waited for, in Close, which New registers with
// t.Cleanup. All state is behind one mutex.
package refpeer
