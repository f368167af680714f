// Package host is the node around an exchange: a libp2p host, a blockstore on
// disk, boxo's blockservice and UnixFS on top, and one exchange, chosen by
// name, that fetches what the store lacks.
//
// A [Node] owns all of these from [New] to [Node.Close]. What a block exchange
// decides is left to package exchange and to boxo's Bitswap; how each is joined
// to libp2p and to the store is left to the packages under adapter. The table of
// exchanges is in exchange.go: a new one is one more entry there.
//
// Whom the node knows, finds and tells what it has is in peers.go and provide.go, over
// packages peerstore, finding and, for what names lead to, names. A zero [Routing] looks
// for nobody.
//
// Files go in with [Node.Add], come from peers with [Node.Fetch], and are read
// back from the local store alone with [Node.Open]. Package demo puts two nodes
// side by side and compares their exchanges.
//
// The package's own goroutines are those of boxo's provider system, which calls
// providing.Provide and ProvideMany: they end with [Node.Close], which waits for the
// calls.
package host
