package host

import (
	"context"

	"github.com/ipfs/boxo/peering"
	ds "github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/peer"
	corestore "github.com/libp2p/go-libp2p/core/peerstore"
	corerouting "github.com/libp2p/go-libp2p/core/routing"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"

	"github.com/codexchange/codexchange/host/finding"
	"github.com/codexchange/codexchange/host/names"
	"github.com/codexchange/codexchange/host/peerstore"
)

// Routing says how a node finds peers and content. The zero value asks nobody and
// dials, at the start, only peers that it knows from before.
type Routing struct {
	finding.RouterOptions
	finding.ContactOptions
	// Forget keeps peers in memory only, whatever there is of a datastore.
	Forget bool
	// Provide says what others are told that the node has.
	Provide Provide
}

// openHost makes the libp2p host over the node's peers, and its routing.
func (n *Node) openHost(opts Options) error {
	var keep ds.Batching // nil: peers are forgotten
	if !opts.Routing.Forget {
		keep = opts.Datastore
	}
	var err error
	if n.peerstore, err = peerstore.New(context.Background(), peerstore.Options{Datastore: keep, Log: opts.Log}); err != nil {
		return err
	}
	// The host closes it too, and drops what comes of it.
	n.closers = append(n.closers, n.peerstore.Close)
	if n.host, err = newLibp2p(opts.Identity, n.peerstore.View(peerstore.Host), opts.Swarm, n.Traffic()); err != nil {
		return err
	}
	n.closers = append(n.closers, n.host.Close)
	n.identify = n.host.(interface{ IDService() identify.IDService }).IDService() // as every host of libp2p.New
	n.host.Network().Notify(n.peerstore.Notifiee())
	if err := n.peerstore.Attach(n.host.EventBus()); err != nil {
		return err
	}
	if n.router, err = finding.New(n.host, n.peerstore, n.datastore, opts.Routing.RouterOptions); err != nil {
		return err
	}
	n.closers = append(n.closers, n.router.Close)
	if n.router.Active() {
		// Whoever dials a peer of which only the id is known has it looked for.
		n.host = routedhost.Wrap(n.host, n.router)
	}
	return nil
}

// Peerstore is what the node knows of its peers; nil offline.
func (n *Node) Peerstore() *peerstore.Store { return n.peerstore }

// Routing finds peers and who has content; nil offline. Without routing every
// search ends at once, and what cannot be done is routing.ErrNotSupported.
func (n *Node) Routing() corerouting.Routing {
	if n.router == nil {
		return nil
	}
	return n.router
}

// Alone reports whether routing has only a DHT to ask, and that knows no peer.
func (n *Node) Alone() bool { return n.router != nil && n.router.Alone() }

// Names are the records of IPNS names that the node keeps, and those that its routing
// finds.
func (n *Node) Names() *names.Names { return n.names }

// valueStore is whom Names asks and tells; nil if routing asks nobody.
func (n *Node) valueStore() corerouting.ValueStore {
	if n.router == nil || !n.router.Active() {
		return nil
	}
	return n.router
}

// Peering keeps connections to the peers that it is told of; nil offline.
func (n *Node) Peering() *peering.PeeringService {
	if n.contacts == nil {
		return nil
	}
	return n.contacts.Peering()
}

// told notes the addresses at which a person says that a peer is, once it was
// there.
func (n *Node) told(p peer.AddrInfo) {
	n.peerstore.View(peerstore.Manual).AddAddrs(p.ID, p.Addrs, corestore.AddressTTL)
}
