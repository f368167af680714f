// Package bitswap is boxo's Bitswap as an exchange of the project: the same
// options where they mean the same, the same errors, wants in windows, and
// statistics that compare.
//
// It decides nothing about what Bitswap sends to whom. It adds what callers of
// Bitswap otherwise have to know:
//
//   - A peer that serves keeps at most 1,024 wants of another and drops the rest,
//     which then wait for a broadcast. Here a request of any length is cut into a
//     sliding window in each session.
//   - A Bitswap that starts on a host with connections does not learn of them.
//     Here it does.
//   - A session takes silence for "don't have" after as little as 50 ms, drops a
//     peer after 16 of these, and may then wait for ever. Here a peer gets at
//     least [Options].Patience.
//   - Duplicates in a request, undefined CIDs and a closed exchange are answered
//     as package errs says.
//   - The default limits of libp2p's resource manager reset Bitswap's streams
//     under load. [Limits] are the limits to use instead.
//
// Options of Bitswap that have no counterpart in the Codex block exchange are
// left at their defaults; see [Options].
//
// Goroutines: besides Bitswap's own, GetBlocks starts one for the request and
// one for each part of it that is being waited for: a part is 64 blocks, so 8 in
// the default window, more only while nothing arrives. They end with the request.
package bitswap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	boxobs "github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/client"
	bsnetwork "github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/boxo/routing/providerquerymanager"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	metrics "github.com/ipfs/go-metrics-interface"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/codexchange/codexchange/exchange/errs"
)

var _ boxo.SessionExchange = (*Exchange)(nil)

// Options are what can be chosen, by the names that exchange.Config has for the
// same. The zero value is Bitswap's own defaults, but for Window and Patience, with
// the server on.
//
// What exchange.Config has besides (leaves, prices, frame and buffer sizes) has
// no counterpart in Bitswap. The other way round, the sizes of Bitswap's worker
// pools, MaxOutstandingBytesPerPeer, WantHaveReplaceSize, the score ledger and
// the request filter are left as they are. Metrics go where the process has said
// by package go-metrics-interface before New, under the names that Kubo's have, such
// as ipfs_bitswap_blocks_received, unless the context of New has a scope of its own.
type Options struct {
	// Router finds providers of blocks that no connected peer has. Nil: only
	// connected peers are asked.
	Router routing.ContentDiscovery

	// ClientOnly gets blocks and serves none.
	ClientOnly bool

	// Window is how many wants the requests of one session have outstanding.
	// 0: DefaultWindow; at least 64. A peer keeps 1,024 wants of another by
	// default, whatever sessions they belong to.
	Window int

	// WantsPerPeer is how many wants of one peer are kept to be served; beyond
	// it those that cannot be served give way, and others are dropped. 0: 1,024.
	WantsPerPeer int

	// BroadcastPeers is how many peers a want is announced to while no peer is
	// known to have it. 0: all. Peers that were left out are not told later; a
	// peer that connects is.
	BroadcastPeers int

	// SearchDelay is how long connected peers are given before Router is asked.
	// 0: 1 s; negative: at once.
	SearchDelay time.Duration

	// SearchPeers is how many providers one search may bring. 0: 10.
	SearchPeers int

	// Patience is the least time that a peer has to answer before its silence is
	// taken for "don't have". 0: 2 s; boxo's own is 50 ms, with which a busy but
	// near peer is lost to the session.
	Patience time.Duration
}

// metricsScope begins the names of metrics, as in Kubo.
const metricsScope = "ipfs"

const (
	// DefaultWindow is half of what a peer keeps, so that two busy sessions fit.
	DefaultWindow = 512

	defaultPatience    = 2 * time.Second
	maxPatience        = 7 * time.Second  // beyond it Bitswap's longest time-out would be shorter
	defaultSearchPeers = 10               // as Bitswap has it
	atOnce             = time.Millisecond // Bitswap would spin with 0
)

// check fills in what this package decides, and reports everything wrong at once.
func (o *Options) check() error {
	var wrong []error
	size := func(name string, v *int, def, low int) {
		if *v == 0 {
			*v = def
		} else if *v < low {
			wrong = append(wrong, fmt.Errorf("%s is %d, want %d or more", name, *v, low))
		}
	}
	size("Window", &o.Window, DefaultWindow, part)
	size("WantsPerPeer", &o.WantsPerPeer, 0, 1)
	size("BroadcastPeers", &o.BroadcastPeers, 0, 1)
	size("SearchPeers", &o.SearchPeers, defaultSearchPeers, 1)
	if o.SearchDelay < 0 {
		o.SearchDelay = atOnce
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	} else if o.Patience < 0 || o.Patience > maxPatience {
		wrong = append(wrong, fmt.Errorf("%s is %v, want up to %v", "Patience", o.Patience, maxPatience))
	}
	if wrong != nil {
		return errs.E(errs.Invalid, errs.Caller, "start bitswap", "", errors.Join(wrong...))
	}
	return nil
}

// An Exchange is a running Bitswap. Its methods may be called from any
// goroutine.
type Exchange struct {
	bs     *boxobs.Bitswap
	host   host.Host
	window int
	search *providerquerymanager.ProviderQueryManager // nil without Router

	closing   chan struct{} // closed by Close
	closeOnce sync.Once
}

// New starts Bitswap on a host. It serves from bstore and does not put anything
// there. The context carries values, such as the scope of metrics; Bitswap ends
// when it does, but only Close frees everything.
//
// A host has one Bitswap at a time.
func New(ctx context.Context, h host.Host, bstore blockstore.Blockstore, o Options) (*Exchange, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	events := bsnetwork.NewConnectEventManager()
	net := bsnet.NewFromIpfsHost(h, bsnet.WithConnectEventManager(events))
	x := &Exchange{host: h, window: o.Window, closing: make(chan struct{})}
	silence := client.DefaultDontHaveTimeoutConfig()
	silence.MinTimeout = o.Patience
	options := []boxobs.Option{
		boxobs.WithServerEnabled(!o.ClientOnly),
		boxobs.WithClientOption(client.WithDontHaveTimeoutConfig(silence)),
	}
	if o.SearchDelay > 0 {
		options = append(options, boxobs.ProviderSearchDelay(o.SearchDelay))
	}
	if o.WantsPerPeer > 0 {
		options = append(options, boxobs.MaxQueuedWantlistEntriesPerPeer(uint(o.WantsPerPeer)))
	}
	if o.BroadcastPeers > 0 {
		options = append(options,
			boxobs.WithClientOption(client.BroadcastControlEnable(true)),
			boxobs.WithClientOption(client.BroadcastControlMaxPeers(o.BroadcastPeers)),
			// Count every peer: those that never sent anything, local and peered ones.
			boxobs.WithClientOption(client.BroadcastControlMaxRandomPeers(o.BroadcastPeers)),
			boxobs.WithClientOption(client.BroadcastControlLocalPeers(true)),
			boxobs.WithClientOption(client.BroadcastControlPeeredPeers(true)))
	}
	var router routing.ContentDiscovery // must stay nil without Router
	if o.Router != nil {
		search, err := providerquerymanager.New(net, o.Router, providerquerymanager.WithMaxProviders(o.SearchPeers))
		if err != nil {
			return nil, errs.E(errs.Other, errs.Ours, "start bitswap", "provider search", err)
		}
		x.search, router = search, search
		options = append(options, boxobs.WithClientOption(client.WithDefaultProviderQueryManager(false)))
	}
	if ctx.Value(metrics.CtxScopeKey) == nil {
		ctx = metrics.CtxScope(ctx, metricsScope)
	}
	x.bs = boxobs.New(ctx, net, router, bstore, options...)

	// From here on the host tells of new connections. Those that were there are
	// told now; a peer that is told twice counts once.
	for _, p := range h.Network().Peers() {
		events.Connected(p)
		if h.Network().Connectedness(p) != network.Connected {
			events.Disconnected(p)
		}
	}
	return x, nil
}

// Protocols are the protocols that a Bitswap node speaks, newest first.
func Protocols() []protocol.ID {
	return []protocol.ID{
		bsnet.ProtocolBitswap,
		bsnet.ProtocolBitswapOneOne,
		bsnet.ProtocolBitswapOneZero,
		bsnet.ProtocolBitswapNoVers,
	}
}

// Close ends all requests and sessions and stops serving. The host stays up and
// no longer offers the protocols. It may be called more than once.
func (x *Exchange) Close() error {
	var err error
	x.closeOnce.Do(func() {
		close(x.closing)
		for _, p := range Protocols() {
			x.host.RemoveStreamHandler(p)
		}
		err = x.bs.Close()
		if x.search != nil {
			x.search.Close()
		}
	})
	return err
}

// NotifyNewBlocks implements exchange.Interface. It returns at once, after Close
// too.
func (x *Exchange) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	select {
	case <-x.closing:
		return nil
	default:
	}
	return x.bs.NotifyNewBlocks(ctx, list...)
}

// GetBlock implements exchange.Fetcher.
func (x *Exchange) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return x.newSession(ctx).GetBlock(ctx, c)
}

// GetBlocks implements exchange.Fetcher. The channel is closed when every block
// has come, ctx ends or the exchange closes. Blocks come in any order, each
// once.
func (x *Exchange) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	ctx, cancel := context.WithCancel(ctx)
	return x.newSession(ctx).getBlocks(ctx, keys, cancel)
}

// NewSession implements exchange.SessionExchange. The session lasts until ctx
// ends or the exchange closes.
func (x *Exchange) NewSession(ctx context.Context) boxo.Fetcher { return x.newSession(ctx) }

// GetWantlist is what is asked for now, in no order. What waits for its window
// is not in it.
func (x *Exchange) GetWantlist() []cid.Cid { return x.bs.GetWantlist() }

// WantlistForPeer is what a peer asks of this node.
func (x *Exchange) WantlistForPeer(p peer.ID) []cid.Cid { return x.bs.WantlistForPeer(p) }

// A Stat is what an exchange has done since it started.
type Stat struct {
	Blocks         uint64 // received, duplicates too
	Bytes          uint64 // of these
	Duplicates     uint64 // received while they were in the store already
	DuplicateBytes uint64
	BlocksSent     uint64
	BytesSent      uint64
	Messages       uint64 // received
	Wants          int    // now
	Peers          int    // that want something of this node, now
}

// Stat returns the statistics. A duplicate is counted if its first copy was in
// the store when the second came, so a copy that comes sooner is missed.
func (x *Exchange) Stat() (Stat, error) {
	s, err := x.bs.Stat()
	if err != nil {
		return Stat{}, errs.E(errs.Other, errs.Ours, "read bitswap statistics", "", err)
	}
	return Stat{
		Blocks:         s.BlocksReceived,
		Bytes:          s.DataReceived,
		Duplicates:     s.DupBlksReceived,
		DuplicateBytes: s.DupDataReceived,
		BlocksSent:     s.BlocksSent,
		BytesSent:      s.DataSent,
		Messages:       s.MessagesReceived,
		Wants:          len(s.Wantlist),
		Peers:          len(s.Peers),
	}, nil
}

// A Ledger is what has passed between this node and a peer since the peer connected.
type Ledger struct {
	Blocks        uint64 // both ways: Bitswap does not count them apart
	BytesReceived uint64 // in blocks
	BytesSent     uint64 // in blocks
}

// Ledger returns the ledger of a peer that is connected and speaks Bitswap; false of
// any other. A node that does not serve keeps none.
func (x *Exchange) Ledger(p peer.ID) (Ledger, bool) {
	if x.bs.Server == nil || x.host.Network().Connectedness(p) != network.Connected {
		return Ledger{}, false
	}
	if spoken, err := x.host.Peerstore().SupportsProtocols(p, Protocols()...); err != nil || len(spoken) == 0 {
		return Ledger{}, false
	}
	r := x.bs.LedgerForPeer(p)
	return Ledger{Blocks: r.Exchanged, BytesReceived: r.Recv, BytesSent: r.Sent}, true
}
