// Package lend is the host's side of service Host (package pb): it lends a libp2p
// host, a block store, leaves and content routing to one plugin. It decides what
// the plugin may have and how much of it, and keeps what must outlive one
// incarnation of it. The private key is not among what is lent, and nothing of
// it ever crosses. How the plugin is started, and what is asked of its exchange,
// is the business of other packages; the other side of this one is package
// borrow.
//
// A [Lender] lasts as long as the host means to run the plugin, a [Lease] as long
// as one of its processes. A lease has a channel.Listener, whose first byte
// channel carries the calls: gRPC without further credentials, because a byte
// channel has proven itself by its token and by the user of the process. Each
// stream is one more byte channel, joined to libp2p's by channel.Bridge.
//
// # Peers
//
// Events of the host say only that something about a peer may have changed. The
// peer goes into a queue that holds it at most once, and the call of Events reads
// how things are with it, and sends all of it if it differs from what was sent
// last. A pass every 30 s finds what no event tells. Epochs come from one counter
// of the Lender, so they rise over incarnations too.
//
// # Streams that peers open
//
// A protocol that the plugin handles is offered to peers until the Lender is closed,
// or InboundWait has passed since the plugin unhandled it; the end of a lease does
// not change that, not even of one that unhandles everything before it ends.
// A stream waits, InboundWait at most, until a lease that has handled its
// protocol has told its plugin of it, and is reset otherwise. Then the plugin has
// DialWait to dial it; if the lease ends before that, the stream waits on. So
// streams that peers open while the plugin dies or is being restarted reach the
// next incarnation.
//
// A protocol that the next incarnation no longer speaks is forgotten InboundWait
// after it was sent Synced, if it has not handled it by then. While there is no
// next incarnation the protocol stays; an owner who gives up calls [Lender.Forget]
// or Close.
//
// A protocol that the host itself handles, or another plugin, is refused.
//
// # Bounds
//
//	peers in the queue      those connected, and those that the plugin was told of
//	events not yet read     the flow-control window of the call
//	streams that wait       Options.InboundPerPeer of a peer, Options.Inbound of all; more are reset
//	streams                 Options.Streams, of either direction; more are refused
//	tags and protections    Options.Tags; more are ignored, counted, and logged once
//	protocols               256; more are refused
//	shared memory           memory.Inbound and memory.Outbound; the collector counts a quarter
//	                        of the first as if it were on the heap, see heap.Count
//	calls                   MaxCalls at a time; gRPC holds back more. MaxRequest bytes each
//
// # Goroutines
//
//	watch           one per Lender: takes events of the host and wakes for the pass;
//	                Lender.Close waits for it
//	Lease.serve     one per Lease: waits for the plugin's first byte channel, then runs the
//	                gRPC server on it; Lease.Close waits for it
//	Lease.watch     one per Lease, while that server runs: waits for the end of the byte
//	                channel; Lease.Close waits for it
//	Lender.accept   one per stream of a peer, started by the host; waits for a lease, then
//	                is Lease.join; Lender.Close waits for it
//	Lease.join      one per stream that the plugin opened; waits for its byte channel, then
//	                is channel.Bridge, which has two more
//	calls           one per call, started by gRPC; Events runs in its own
//
// Lease.Close has reset everything that the last three wait for, and waits for
// them too, but for no longer than 2 s: a store that hangs, or a peer whose
// connection takes no more data, holds up Lender.Close and not the next
// incarnation.
//
// # Where to look
//
// lend.go is the Lender and its options, lease.go a Lease; events.go tells of
// peers, inbound.go is the way of a stream that a peer opens, stream.go makes
// libp2p's streams fit for package channel and fills block references, values.go
// keeps tags, memory.go makes what is shared, and server.go has the other calls.
package lend
