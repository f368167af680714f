package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	pin "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/boxo/pinning/pinner/dspinner"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/codexchange/codexchange/adapter/leaves"
	"github.com/codexchange/codexchange/host/finding"
	"github.com/codexchange/codexchange/host/names"
	"github.com/codexchange/codexchange/host/peerstore"
	"github.com/codexchange/codexchange/host/writebehind"
)

// Options say what a node is made of.
type Options struct {
	// Dir is the directory of the node, made if it is missing. No other open
	// node may use it. Required if Blocks is nil.
	Dir string
	// Blocks is the datastore of the blocks, which remains the caller's to close.
	// nil is a flatfs in Dir.
	Blocks ds.Batching
	// Datastore keeps pins, leaf records, records of names, and what is known of peers; it
	// remains the caller's to close. nil keeps them in memory.
	Datastore ds.Batching
	// Direct writes each fetched block as it comes, rather than holding it for a
	// moment and writing several at a time.
	Direct bool
	// Use are the exchanges that fetch what the store lacks, each one of
	// [Exchanges] or of Plugins, in the order in which they are asked. None: the
	// node has what it has.
	Use []string
	// Plugins says where exchanges are to be found. Blockexc is a plugin unless
	// it says otherwise; for that, the program has to call [Main].
	Plugins map[string]Plugin
	// Offline is a node without libp2p host and exchanges.
	Offline bool
	// Identity is the private key of the node. nil makes a new one.
	Identity crypto.PrivKey
	// Listen is where to listen, as multiaddrs over TCP. nil is a free port of
	// 127.0.0.1.
	Listen []string
	// Swarm says how the node deals with connections.
	Swarm Swarm
	// Routing says how the node finds peers and content.
	Routing Routing
	// CountTraffic counts what passes to and from peers, see [Node.Traffic].
	CountTraffic bool
	// Metrics takes what those exchanges count that run in this process. nil:
	// nobody does. What a plugin counts is in its Inspect.
	Metrics prometheus.Registerer
	// Log is told what operators should know. nil is slog.Default().
	Log *slog.Logger
}

// A Node is a running node. Its methods may be called from any goroutine.
type Node struct {
	host      host.Host                 // nil offline
	identify  identify.IDService        // of host
	peerstore *peerstore.Store          // nil offline
	router    *finding.Router           // nil offline
	names     *names.Names              // that are kept, and those that router finds
	contacts  *finding.Contacts         // nil offline
	providing *providing                // nil if others are told nothing
	traffic   *metrics.BandwidthCounter // nil if nobody counts
	written   blockstore.Blockstore
	store     *writebehind.Store
	lock      blockstore.GCLocker
	datastore ds.Batching
	leaves    *leaves.Store
	exchanges []Running
	service   blockservice.BlockService // asks peers for what is not here
	dag       ipld.DAGService           // the same
	local     ipld.DAGService           // never asks anybody
	pins      pin.Pinner

	closers []func() error // what runs, in the order in which it was started
	close   func() error
}

// New starts a node. It listens at once and serves the blocks of its store to
// whoever connects, until Close; and dials whom Options.Routing says. Ctx bounds the
// start alone: a plugin may take its time.
func New(ctx context.Context, opts Options) (_ *Node, err error) {
	if opts.Dir == "" && opts.Blocks == nil {
		return nil, errors.New("start node: no directory: Options.Dir is empty")
	}
	defer func() {
		if err != nil && opts.Dir != "" {
			err = fmt.Errorf("start node in %s: %w", opts.Dir, err)
		} else if err != nil {
			err = fmt.Errorf("start node: %w", err)
		}
	}()
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	n := &Node{lock: blockstore.NewGCLocker()}
	n.close = sync.OnceValue(func() error {
		var failed []error
		for _, c := range slices.Backward(n.closers) {
			failed = append(failed, c())
		}
		return errors.Join(failed...)
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if !opts.Offline {
		if n.providing, err = newProviding(opts.Routing.Provide.Strategy); err != nil {
			return nil, err
		}
	}
	if err := n.openStores(opts); err != nil {
		return nil, err
	}
	if !opts.Offline {
		if err := n.goOnline(ctx, opts); err != nil {
			return nil, err
		}
	}
	n.names = names.New(n.datastore, n.valueStore())

	if n.service = blockservice.New(n.written, combine(n.exchanges, n.written)); !opts.Direct {
		n.service = n.store.Service(combine(n.exchanges, n.store))
	}
	n.dag = merkledag.NewDAGService(n.service)
	n.local = merkledag.NewDAGService(n.store.Service(offline.Exchange(n.store)))
	if n.providing != nil && !n.router.CanProvide() {
		n.providing = nil // there is nobody to tell
	}
	pins, err := dspinner.New(ctx, n.datastore, n.dag)
	if err != nil {
		return nil, fmt.Errorf("open pins: %w", err)
	}
	n.closers = append(n.closers, pins.Close)
	n.pins = n.providing.pinner(pins)
	if n.providing != nil {
		if err := n.providing.begin(n, opts.Routing.Provide.Interval); err != nil {
			return nil, err
		}
		n.closers = append(n.closers, n.providing.close)
	}
	return n, nil
}

// openStores opens what the node keeps.
func (n *Node) openStores(opts Options) error {
	if opts.Blocks == nil {
		fs, err := openBlocks(opts.Dir)
		if err != nil {
			return err
		}
		n.closers = append(n.closers, fs.Close)
		opts.Blocks = fs
	}
	n.written = blockstore.NewBlockstore(opts.Blocks, n.providing.blockstoreOptions()...)
	var err error
	if n.store, err = writebehind.New(n.written, writebehind.Options{Log: opts.Log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.store.Close)
	if n.datastore = opts.Datastore; n.datastore == nil {
		n.datastore = dssync.MutexWrap(ds.NewMapDatastore())
	}
	n.leaves = leaves.New(n.datastore)
	return nil
}

// goOnline starts the libp2p host, the exchanges, and the search for peers.
func (n *Node) goOnline(ctx context.Context, opts Options) (err error) {
	if opts.Identity == nil {
		if opts.Identity, err = NewIdentity(); err != nil {
			return err
		}
	}
	if opts.Listen == nil {
		opts.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	}
	if opts.CountTraffic {
		n.traffic = metrics.NewBandwidthCounter()
	}
	if err := n.openHost(opts); err != nil {
		return err
	}
	// Exchanges serve what is written: a block that is still held in memory could
	// be lost after it was promised.
	need := needs{host: n.host, store: n.written, leaves: n.leaves, metrics: opts.Metrics, log: opts.Log}
	if n.router.Active() {
		need.router = n.router
	}
	n.exchanges, err = startExchanges(ctx, opts.Use, opts.Plugins, need)
	if err != nil {
		return err
	}
	for _, x := range n.exchanges {
		n.closers = append(n.closers, x.Close)
	}
	// Peers may come from here on, and the exchanges hear of each.
	if err := listen(n.host, opts.Listen); err != nil {
		return err
	}
	if n.contacts, err = finding.Keep(n.host, n.peerstore, n.router, opts.Routing.ContactOptions, opts.Log); err != nil {
		return err
	}
	n.closers = append(n.closers, n.contacts.Close)
	return nil
}

// Close stops what dials and tells others, the exchanges, routing, the libp2p host
// and the stores, in this order, and writes what is known of peers. It may be called
// more than once.
func (n *Node) Close() error { return n.close() }

// Online reports whether the node has a libp2p host.
func (n *Node) Online() bool { return n.host != nil }

// Host is the libp2p host; nil offline.
func (n *Node) Host() host.Host { return n.host }

// Traffic is what has passed to and from peers since the start; nil if it is not
// counted.
func (n *Node) Traffic() metrics.Reporter {
	if n.traffic == nil {
		return nil
	}
	return n.traffic
}

// AddrInfo is the id of the node and where it listens. The node is online.
func (n *Node) AddrInfo() peer.AddrInfo { return *host.InfoFromHost(n.host) }

// Blockstore is the local store, with blocks that are about to be written. It must
// not be used after Close.
func (n *Node) Blockstore() *writebehind.Store { return n.store }

// GCLocker keeps blocks from being collected while something is added.
func (n *Node) GCLocker() blockstore.GCLocker { return n.lock }

// BlockService gets blocks from the store, and else from peers.
func (n *Node) BlockService() blockservice.BlockService { return n.service }

// DAG gets nodes from the store, and else from peers.
func (n *Node) DAG() ipld.DAGService { return n.dag }

// LocalDAG gets nodes from the store alone.
func (n *Node) LocalDAG() ipld.DAGService { return n.local }

// Pinner says which blocks are kept.
func (n *Node) Pinner() pin.Pinner { return n.pins }

// Exchanges are the exchanges that the node was started with, in their order.
func (n *Node) Exchanges() []Running { return slices.Clone(n.exchanges) }

// Peers are the peers that are connected.
func (n *Node) Peers() []peer.ID { return n.host.Network().Peers() }

// Connect dials a peer unless it is connected, and returns when it is known
// which protocols the peer speaks.
func (n *Node) Connect(ctx context.Context, p peer.AddrInfo) error {
	if err := n.host.Connect(ctx, p); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("connect to %s: %w", p.ID, err)
	}
	n.told(p)
	return n.WaitPeer(ctx, p.ID)
}

// WaitPeer returns when the peer is connected and it is known which protocols
// it speaks, whoever dialled. It fails if the peer is connected and does not say.
func (n *Node) WaitPeer(ctx context.Context, p peer.ID) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("wait for peer %s: %w", p, err)
		}
	}()
	identified, err := n.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return err
	}
	defer identified.Close()
	known := func() bool {
		protocols, err := n.host.Peerstore().GetProtocols(p)
		return err == nil && len(protocols) > 0 && n.host.Network().Connectedness(p) == network.Connected
	}
	for {
		silent := false
		for _, c := range n.host.Network().ConnsToPeer(p) {
			if known() {
				break
			}
			select {
			case <-n.identify.IdentifyWait(c): // ended, well or not
				silent = silent || !c.IsClosed()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		switch {
		case known():
			return nil
		case silent:
			return errors.New("it is connected, and does not say which protocols it speaks")
		}
		select {
		case <-identified.Out():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
