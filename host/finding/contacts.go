package finding

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/boxo/bootstrap"
	"github.com/ipfs/boxo/peering"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	corestore "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"

	"github.com/codexchange/codexchange/host/peerstore"
)

const (
	enough     = 4                // connections to find others through, as boxo's bootstrap has it
	dialWithin = 10 * time.Second // for one peer
	dialsOnce  = 8                // at the start, and of mDNS
	patience   = 3 * time.Second  // with peers from before, until bootstrap nodes are dialled beside them
	recall     = 16               // peers from before, by default
)

// ContactOptions say whom the node is to be in contact with.
type ContactOptions struct {
	// Bootstrap says which nodes the network is joined through, each time that they
	// are needed. nil: none.
	Bootstrap func() []peer.AddrInfo
	// Recall is how many peers that were dialled with success before are dialled at
	// the start. 0: 16; negative: none.
	Recall int
	// MDNS looks for peers in the local network, and lets them find this node.
	MDNS bool
	// Peering are the peers to stay connected to. Those without addresses are looked
	// for by routing.
	Peering []peer.AddrInfo
}

// Contacts keep a node connected, from Keep to Close. The methods may be called
// from any goroutine.
type Contacts struct {
	host    host.Host
	store   *peerstore.Store
	routing routing.Routing
	options ContactOptions
	log     *slog.Logger

	peering *peering.PeeringService
	mdns    io.Closer // nil without

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	found  chan struct{} // a place for each dial of mDNS

	mu      sync.Mutex
	closed  bool
	working sync.WaitGroup // Add under mu, and not once closed
}

// Keep begins. The host listens already; its Connect may ask r where a peer is.
// store is the host's peerstore.
func Keep(h host.Host, store *peerstore.Store, r routing.Routing, o ContactOptions, log *slog.Logger) (*Contacts, error) {
	if o.Recall == 0 {
		o.Recall = recall
	}
	c := &Contacts{host: h, store: store, routing: r, options: o, log: log, found: make(chan struct{}, dialsOnce)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	minded := &peered{viewed: viewed{h, store.View(peerstore.Peering)}, reached: make(map[peer.ID]bool)}
	c.peering = peering.NewPeeringService(minded)
	for _, p := range o.Peering {
		c.peering.AddPeer(p)
	}
	if err := c.peering.Start(); err != nil {
		return nil, fmt.Errorf("start peering: %w", errors.Join(err, c.Close()))
	}
	if o.MDNS {
		service := mdns.NewMdnsService(h, "", c)
		if err := service.Start(); err != nil {
			// A machine without a network has no neighbours.
			log.Warn("peers in the local network are not looked for", "err", errors.Join(err, service.Close()))
		} else {
			c.mdns = service
		}
	}
	c.working.Go(c.begin)
	c.working.Go(func() { c.peer(minded) })
	return c, nil
}

// Peering keeps connections to the peers that it is told of.
func (c *Contacts) Peering() *peering.PeeringService { return c.peering }

// Close ends all dialling; connections stay. It may be called more than once.
func (c *Contacts) Close() error {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	if again {
		c.working.Wait()
		return nil
	}
	var err error
	if c.mdns != nil {
		err = c.mdns.Close()
	}
	c.peering.Stop()
	c.working.Wait()
	return err
}

// begin dials those who are known, then the bootstrap nodes, and sees to it until
// Close that there is somebody.
func (c *Contacts) begin() {
	recalled := c.store.RecentlyGood(c.options.Recall)
	c.meet(recalled)
	if c.ctx.Err() != nil {
		return
	}
	if len(recalled) == 0 && len(c.bootstrapNodes()) == 0 {
		// Nobody to dial: routing waits for those who come.
		if err := c.routing.Bootstrap(c.ctx); err != nil && c.ctx.Err() == nil {
			c.log.Warn("routing does not begin", "err", err)
		}
		if !c.waitBootstrapNodes() {
			return
		}
	}
	o := bootstrap.BootstrapConfigWithPeers(nil, bootstrap.WithBackupPeers(
		func(context.Context) []peer.AddrInfo { return c.store.RecentlyGood(c.options.Recall) },
		func(context.Context, []peer.AddrInfo) {}, // the store remembers by itself
	))
	o.BootstrapPeers = c.bootstrapNodes
	// It returns after its first round.
	running, err := bootstrap.Bootstrap(c.host.ID(), bounded{viewed{c.host, c.store.View(peerstore.Peering)}, c.ctx}, c.routing, o)
	if err != nil {
		if c.ctx.Err() == nil {
			c.log.Warn("bootstrap does not begin", "err", err)
		}
		return
	}
	<-c.ctx.Done()
	_ = running.Close() // cannot fail
}

// waitBootstrapNodes returns true when bootstrap nodes have been named, and false if
// that cannot be any more.
func (c *Contacts) waitBootstrapNodes() bool {
	if c.options.Bootstrap == nil {
		return false
	}
	ticks := time.NewTicker(bootstrap.DefaultBootstrapConfig.Period)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-c.ctx.Done():
			return false
		}
		if len(c.bootstrapNodes()) > 0 {
			return true
		}
	}
}

func (c *Contacts) bootstrapNodes() []peer.AddrInfo {
	if c.options.Bootstrap == nil {
		return nil
	}
	return c.options.Bootstrap()
}

// meet dials peers that were good before, and returns when there is enough company,
// or all have been tried, or patience has passed; the rest is dialled meanwhile.
func (c *Contacts) meet(peers []peer.AddrInfo) {
	if len(peers) == 0 {
		return
	}
	answers := make(chan bool, len(peers))
	slots := make(chan struct{}, dialsOnce)
	c.working.Go(func() {
		for _, p := range peers {
			select {
			case slots <- struct{}{}:
			case <-c.ctx.Done():
				return
			}
			c.working.Go(func() {
				defer func() { <-slots }()
				answers <- c.dial(p)
			})
		}
	})
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for tried, met := 0, 0; tried < len(peers) && met < enough; {
		select {
		case ok := <-answers:
			if tried++; ok {
				met++
			}
		case <-timer.C:
			return
		case <-c.ctx.Done():
			return
		}
	}
}

func (c *Contacts) dial(p peer.AddrInfo) bool {
	ctx, cancel := context.WithTimeout(c.ctx, dialWithin)
	defer cancel()
	err := c.host.Connect(ctx, p)
	if err != nil {
		c.log.Debug("known peer cannot be dialled", "peer", p.ID, "err", err)
	}
	return err == nil
}

// HandlePeerFound is told by mDNS of a peer nearby. If many are being dialled it is
// only remembered; mDNS tells of it again.
func (c *Contacts) HandlePeerFound(p peer.AddrInfo) {
	c.mu.Lock()
	if c.closed || p.ID == c.host.ID() {
		c.mu.Unlock()
		return
	}
	c.working.Add(1)
	c.mu.Unlock()
	defer c.working.Done()
	c.store.View(peerstore.Discovery).AddAddrs(p.ID, p.Addrs, corestore.RecentlyConnectedAddrTTL)
	select {
	case c.found <- struct{}{}:
		defer func() { <-c.found }()
		c.dial(peer.AddrInfo{ID: p.ID}) // by what is known of it by now
	default:
	}
}
