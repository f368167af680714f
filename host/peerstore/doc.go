// Package peerstore is what a node knows of its peers: their addresses, keys,
// protocols and metadata, in one place, whose changes others can hear, and which
// survives restarts. A [Store] is a libp2p peerstore, and the one that the node's
// libp2p host uses.
//
// It decides what is kept, for how long, what goes when there is no room, and
// what counts as a change. Whom to dial, where to look for peers and what to do
// about a change are the business of those who use it. docs/peerstore.md has the
// layout on disk and the differences to libp2p's own stores and to the js-libp2p
// design.
//
// # Setting up
//
//	store, err := peerstore.New(ctx, peerstore.Options{Datastore: repo}) // loads
//	host, err := libp2p.New(libp2p.Peerstore(store.View(peerstore.Host)), …)
//	host.Network().Notify(store.Notifiee()) // before it listens or dials
//	err = store.Attach(host.EventBus())
//	for _, p := range store.RecentlyGood(16) { … } // dialled beside the bootstrap nodes
//
// Closing the host closes the store, which writes what is unwritten; after that
// the datastore may be closed. [Store.Close] says again what that came to.
//
// # Who says so
//
// libp2p's peerstore does not know who says what. Its identify ends by expiring
// every address with the temporary TTL, and the DHT writes with that TTL as well,
// so each identify would erase what the DHT has learned. Here each [Source] has
// claims of its own: an address is there while anybody claims it, and identify's
// replacement, which comes through the [View] of Host, ends only the claims of
// Host. Every subsystem gets a view: kad-dht one of DHT, mDNS one of Discovery,
// boxo's peering one of Peering, commands one of Manual.
//
// # Changes
//
// [Store.Subscribe] and the host's event bus tell of three things:
// [EvtPeerDiscovered], [EvtPeerAddrsChanged] and [EvtPeerProtocolsChanged]. A
// registrar, such as the block exchange, follows the last to learn who speaks its
// protocol. See [Subscription] for what a slow reader gets.
//
// # Locks and goroutines
//
// Store.mu guards everything but the datastore; nothing waits or does I/O while
// it is held, and no caller's code runs under it. Store.flushing is held during a
// flush and is taken before mu.
//
//	Store.expire   one; removes what has expired; ends with Close, which waits
//	Store.persist  one, if there is a datastore; writes what is dirty; likewise
//	Store.stream   one per AddrStream; ends with its context or Close, which waits
//	Store.forward  one after Attach; emits on the bus; ends with Close, which waits
//	               a second for it, for it may hang on a subscriber of the bus that
//	               does not read, and then ends when that one reads or closes
//
// # Where to look
//
// store.go opens, closes and expires; entry.go is one peer; addrs.go, books.go and
// stream.go are the four books, source.go and view.go who writes them; conns.go
// hears of connections; bounds.go makes room; events.go tells; persist.go loads and
// flushes in the form of codec.go.
package peerstore
