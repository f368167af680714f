// Package p2p is exchange.Network over a libp2p host: streams of the block
// exchange, and word of which peers are there.
//
// It decides when a peer counts as present and in what order the exchange hears
// of it. What is sent on a stream, how many are opened, and what a peer is worth
// are the exchange's business; listening, dialling, routing and the identity
// are the host's. The package never closes a connection.
//
// # Setting up
//
// A node that wants to meet classic Codex nodes needs a secp256k1 identity, TCP,
// Noise and mplex, all of which [HostOptions] and [NewIdentity] give. A host with
// an Ed25519 identity works with everybody but classic Codex nodes, which refuse
// its key before any stream is opened.
//
//	key, err := p2p.NewIdentity()
//	host, err := libp2p.New(append(p2p.HostOptions(), libp2p.Identity(key), libp2p.NoListenAddrs)...)
//	network, err := p2p.New(host, p2p.Options{})
//	ex, err := exchange.New(exchange.Config{Network: network, …}) // attaches
//	err = host.Network().Listen(addresses...)
//
// Attach before the host listens or dials. A classic node sends its want list as
// soon as it is connected, before identify has ended, and drops it if the
// protocol is not spoken at that moment.
//
// # How a peer comes and goes
//
// libp2p tells of connections, of identify and of protocols on different
// goroutines, so its events arrive in any order, and some that undo each other
// never arrive. Here an event says only that something about a peer may have
// changed. Its name goes into a queue that holds each peer at most once, and one
// goroutine takes names from it, reads from the host how things are now, and
// tells the handler the difference. A periodic pass over all peers repairs what
// an event would have told, had there been one.
//
// A peer is up while it has a direct connection (a limited one, through a relay,
// does not count) and is known to speak the protocol: because identify said so,
// on this connection or, until identify has ended, on an earlier one, or because
// it opened a stream of it. It is down when none of the connections that were
// seen before is left, even if another has been made meanwhile, since what the
// other side remembered may have gone with them; or when it says that it no
// longer speaks the protocol, if only for a moment, as a node does whose exchange
// ends or restarts. Epochs are numbers of a single counter.
//
// Inbound streams wait, on the goroutine that the host has for each, until the
// peer is up. One peer may have [Options].InboundStreams of them; more are reset.
//
// # Blocks by reference
//
// Where the host's streams have a method WriteBlock(cid.Cid, int) error, as those
// have that a host process lends to a plugin, the streams given to the exchange
// are exchange.BlockWriters; otherwise they are not.
//
// # Several streams
//
// A node announces exchange.StreamsID beside the protocol, so that its own kind
// opens several streams to it where one does not fill the way. Classic Codex nodes
// do not, and get one.
//
// # Goroutines
//
// Between Attach and detach there are two, and detach waits for both:
//
//   - watch takes events from the host's bus and wakes up for the periodic
//     pass. It does nothing but write names into the queue, so the host never
//     waits for a handler.
//   - dispatch calls PeerUp and PeerDown, for one peer after the other, holding
//     no lock. A handler that is slow delays what is told of other peers, and
//     the queue cannot grow meanwhile beyond the number of peers.
//
// A peer that reads several streams is pinged on a goroutine of its own when its
// latency is asked for and not known: three times, within 10 s, and not again for
// 5 min. Detach waits for these too.
//
// HandleStream runs on the goroutine that the host starts for each stream;
// detach waits for these calls too, after it has reset the streams.
package p2p
