// Package borrow is the plugin's side of service Host: what the host lends looks
// like a libp2p host, a boxo blockstore, leaves and a content router of this
// process, so that an exchange that was written for those runs over it
// unchanged.
//
// The package keeps a mirror of what the host says of its peers, and passes the
// rest on. It decides nothing: listening, dialling, identity, limits and the
// store are the host's, and what an exchange has no business with is refused with
// an error of kind errs.Invalid. The other side is package lend, the contract
// is package pb.
//
// # What is like libp2p, and what is not
//
// Peers, connections, what peers speak and how far they are come from the
// mirror and cost no call. Opening a stream, Connect and registering a handler
// are one call each. The events of one peer are told in the order in which they
// happened: first mirror and peerstore are brought up to date, then lost
// connections are told to the notifiees, then new ones, then the bus is told of
// connectedness, identification and protocols. When a peer has come back and
// nobody saw it go, it goes first.
//
// What a user may notice:
//
//   - Connections cannot be closed, and the network cannot listen.
//   - A stream needs a protocol; a raw one does not cross.
//   - A new notifiee is told of the connections that there are.
//   - Protocols are matched by their exact name; a match function does not cross.
//   - WithForceDirectDial is an ordinary Connect.
//   - Resource scopes count nothing here. The host counts every stream under the
//     plugin's name.
//   - Tags and protections of the connection manager are sent to the host a
//     little later, latest value only, and only those that were set here are
//     known here.
//   - The key book has the keys that can be read from a peer's id, which RSA
//     keys cannot.
//
// A stream is a [Stream], whose WriteBlock has the host put the bytes of a block
// into it, and whose ReadLent leaves what it reads in the host's memory.
//
// # Slowness
//
// Notifiees and subscribers of the bus are called from the goroutine that reads
// the host's events, as they are from libp2p's. If one does not return,
// events wait in the host, which keeps the latest state of each peer and no more,
// and inbound streams wait with them until the host resets them. A notifiee may
// open streams and connect; if it does so to a peer that was not
// connected, it waits a little longer, see [mirrorLag].
//
// # Goroutines
//
//	Node.watch         waits for the end of the callback channel, or closes it
//	Node.readEvents    reads events, keeps the mirror, calls notifiees and the bus
//	Node.serve         one per inbound stream: dials it, then is its handler's
//	values.run         sends tags and protections
//	Node.forget        lets go of peers that have been gone for long
//	router.find        one per search; ends with the search or its context
//
// and those of gRPC, of the peerstore, and of each channel.Conn. All end when the
// host is gone, but Node.serve, which ends when the handler returns, and those of
// the peerstore; Node.Close waits for them all. So a handler, a notifiee and
// a subscriber must not call it.
//
// # Where to look
//
// node.go is the life of the connection to the host; events.go and mirror.go
// what the host tells; memory.go maps what is shared; host.go, network.go, conn.go and stream.go what libp2p
// sees; values.go the connection manager; store.go, leaves.go and router.go the
// rest of what is lent.
package borrow
