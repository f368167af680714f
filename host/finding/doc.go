// Package finding is how a node finds others: who has what, where a peer is, and
// whom to be connected to. It makes the routing that Routing.Type names, and keeps
// the node in contact: with peers it knows from before, with bootstrap nodes, with
// those nearby, and with those it is to stay connected to.
//
// It decides whom to dial and when. What is remembered of peers is left to package
// peerstore, when to search for content to the exchanges, and what to provide to
// package host.
//
// # Routing
//
// [New] makes it, before the host listens. The types are Kubo's:
//
//	none                       nobody is asked
//	dht, dhtclient, dhtserver  a DHT of the public network and one of the local
//	                           network; both together decide by what addresses
//	                           peers have. Of "dht" the public one serves if it can
//	                           be reached
//	auto, autoclient           the same, and delegated routers beside them
//	delegated                  delegated routers over HTTP only
//
// Content is provided to the DHT alone: nothing standard tells a delegated router.
//
// # Contacts
//
// [Keep] makes them, when the host listens and the exchanges are there:
//
//   - Peers that were dialled with success not long ago (PS-31) are dialled at once,
//     a few at a time. When there are enough, or none is left, or a short while has
//     passed, boxo's bootstrap takes over: it dials the bootstrap nodes as long as
//     there are fewer than four connections, and such peers again if that does not
//     help. With nobody to dial it waits for bootstrap nodes to be named, and looks
//     for them twice a minute.
//   - mDNS tells of peers in the local network, which are dialled, a few at a time.
//   - boxo's peering dials the peers it is told to, again and again.
//
// Addresses go into the peer store by the view of who brings them: DHT, Discovery,
// Peering. Bootstrap nodes count as Peering, both being what the configuration says.
//
// # Goroutines
//
//	Contacts.begin  one; dials at the start, then waits; ends with Close, which waits
//	Contacts.meet   one at the start, until all known peers have been dialled; likewise
//	Contacts.peer   one; dials whom boxo's peering has forgotten; likewise
//	Contacts.dial   at most 8 of the start and 8 of mDNS; each within 10 s, and with
//	                Close, which waits
//
// Those of the DHT, mDNS, boxo's bootstrap and peering end with Close as well; of
// the last two nobody can say when, but what they dial ends at once.
package finding
