package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Options say what a node is made of.
type Options struct {
	// Dir is the directory of the node, made if it is missing. No other open
	// node may use it. Required.
	Dir string
	// Exchange is one of [Exchanges], or one of Plugins. Required.
	Exchange string
	// Plugins says where exchanges are to be found. Blockexc is a plugin unless
	// it says otherwise; for that, the program has to call [Main].
	Plugins map[string]Plugin
	// Identity is the private key of the node. nil makes a new one.
	Identity crypto.PrivKey
	// Listen is where to listen, as multiaddrs over TCP. nil is a free port of
	// 127.0.0.1.
	Listen []string
	// Log is told what operators should know. nil is slog.Default().
	Log *slog.Logger
}

// A Node is a running node. Its methods may be called from any goroutine.
type Node struct {
	host     host.Host
	store    blockstore.Blockstore
	exchange Exchange
	dag      ipld.DAGService // asks peers for what is not here
	local    ipld.DAGService // never asks anybody

	close func() error
}

// New starts a node. It listens at once and serves the blocks of its store to
// whoever connects, until Close.
func New(opts Options) (_ *Node, err error) {
	if opts.Dir == "" {
		return nil, errors.New("start node: no directory: Options.Dir is empty")
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start node in %s: %w", opts.Dir, err)
		}
	}()
	if opts.Identity == nil {
		if opts.Identity, err = NewIdentity(); err != nil {
			return nil, err
		}
	}
	if opts.Listen == nil {
		opts.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	}

	if opts.Log == nil {
		opts.Log = slog.Default()
	}

	n := &Node{}
	var closers []func() error // what runs, in the order in which it was started
	n.close = sync.OnceValue(func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	})
	defer func() {
		if err != nil {
			n.close()
		}
	}()

	store, fs, err := openStore(opts.Dir)
	if err != nil {
		return nil, err
	}
	n.store, closers = store, append(closers, fs.Close)
	if n.host, err = newLibp2p(opts.Identity); err != nil {
		return nil, err
	}
	closers = append(closers, n.host.Close)
	n.exchange, err = startExchange(context.Background(), opts.Exchange, opts.Plugins, needs{n.host, n.store, opts.Log})
	if err != nil {
		return nil, err
	}
	closers = append(closers, n.exchange.Close)
	// Peers may come from here on, and the exchange hears of each.
	if err := listen(n.host, opts.Listen); err != nil {
		return nil, err
	}

	n.dag = merkledag.NewDAGService(blockservice.New(n.store, n.exchange))
	n.local = merkledag.NewDAGService(blockservice.New(n.store, offline.Exchange(n.store)))
	return n, nil
}

// Close stops the exchange, the libp2p host and the store, in this order. It
// may be called more than once.
func (n *Node) Close() error { return n.close() }

// AddrInfo is the id of the node and where it listens.
func (n *Node) AddrInfo() peer.AddrInfo { return *host.InfoFromHost(n.host) }

// Blockstore is the local store. It must not be used after Close.
func (n *Node) Blockstore() blockstore.Blockstore { return n.store }

// Exchange is the exchange that the node was started with.
func (n *Node) Exchange() Exchange { return n.exchange }

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
	return n.WaitPeer(ctx, p.ID)
}

// WaitPeer returns when the peer is connected and it is known which protocols
// it speaks, whoever dialled.
func (n *Node) WaitPeer(ctx context.Context, p peer.ID) error {
	identified, err := n.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return fmt.Errorf("wait for peer %s: %w", p, err)
	}
	defer identified.Close()
	for {
		known, err := n.host.Peerstore().GetProtocols(p)
		if err != nil {
			return fmt.Errorf("wait for peer %s: %w", p, err)
		}
		if len(known) > 0 && n.host.Network().Connectedness(p) == network.Connected {
			return nil
		}
		select {
		case <-identified.Out():
		case <-ctx.Done():
			return fmt.Errorf("wait for peer %s: %w", p, context.Cause(ctx))
		}
	}
}
