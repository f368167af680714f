package p2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
)

// ServiceName is the name under which the streams of the exchange appear in the
// host's resource manager, and its tags in the connection manager.
const ServiceName = "codexchange.blockexc"

// maxTag is the largest value that Tag passes on.
const maxTag = 100

// Options are useful when zero.
type Options struct {
	// Reconcile is the time between two passes over all connected peers that
	// repair what no event told. Default 30 s; negative switches it off.
	Reconcile time.Duration

	// InboundStreams is how many streams one peer may have open to us; those
	// beyond are reset. Default 100, as classic Codex nodes have it; at most 10,000.
	InboundStreams int
}

const (
	defaultReconcile      = 30 * time.Second
	defaultInboundStreams = 100
	maxInboundStreams     = 10_000
)

// A Network is exchange.Network over a libp2p host. It is made by New; its
// methods may be called from any goroutine. It has nothing to close: the host
// remains the caller's, and what Attach started ends with detach.
type Network struct {
	host  host.Host
	opts  Options
	epoch atomic.Uint64 // of the latest PeerUp, whichever peer

	mu       sync.Mutex
	attached *attachment // nil if there is none
}

var _ exchange.Network = (*Network)(nil)

// New wraps a host. The error is of kind errs.Invalid.
func New(h host.Host, opts Options) (*Network, error) {
	const op = "set up network adapter"
	if h == nil {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "no host given")
	}
	if opts.Reconcile == 0 {
		opts.Reconcile = defaultReconcile
	}
	if opts.InboundStreams == 0 {
		opts.InboundStreams = defaultInboundStreams
	}
	if n := opts.InboundStreams; n < 1 || n > maxInboundStreams {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "InboundStreams is %d, want 1 to %d", n, maxInboundStreams)
	}
	return &Network{host: h, opts: opts}, nil
}

// Self is the id of the host.
func (n *Network) Self() peer.ID { return n.host.ID() }

// Attach registers the protocol with the host and begins delivering to h.
// Attach before the host listens or dials, see the package comment.
//
// The returned function takes the protocol back, resets every inbound stream
// that is open, and waits until all calls to h have returned; so it must not be
// called from within one. After that Attach may be called again, and epochs go
// on where they were. While a handler is attached a second Attach fails with
// errs.Invalid.
func (n *Network) Attach(h exchange.Handler) (detach func(), err error) {
	const op = "attach exchange to host"
	if h == nil {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "no handler given")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached != nil {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "another one is attached")
	}
	a, err := attach(n, h)
	if err != nil {
		return nil, errs.E(errs.Other, errs.Ours, op, "", err)
	}
	n.attached = a
	return a.detach, nil
}

// released is called by an attachment when it has ended.
func (n *Network) released() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached = nil
}

// NewStream opens a stream over a direct connection that exists. It waits for
// identify if that is under way. If identify has named the protocol, the peer's
// consent is not waited for: a peer that refuses after all shows it at the first
// Read, and perhaps at a Write.
//
// The error is of kind errs.Unreachable and names the peer; it is our fault if
// the resource manager refused, nobody's if ctx ended, else the peer's.
func (n *Network) NewStream(ctx context.Context, p peer.ID) (exchange.Stream, error) {
	const op = "open stream to"
	if n.host.Network().Connectedness(p) != network.Connected {
		return nil, errs.E(errs.Unreachable, errs.Peer, op, p.String(), network.ErrNoConn)
	}
	s, err := n.host.NewStream(network.WithNoDial(ctx, ServiceName), p, exchange.ProtocolID)
	if err != nil {
		return nil, unreachable(ctx, op, p, err)
	}
	if err := s.Scope().SetService(ServiceName); err != nil {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, errs.E(errs.Unreachable, errs.Ours, op, p.String(), err)
	}
	return newStream(s, nil), nil
}

// Connect dials a peer at the given addresses and those that the host knows of
// it, and waits for identify. The error is of kind errs.Unreachable and names
// the peer, or errs.Invalid if the peer is this node or nobody.
func (n *Network) Connect(ctx context.Context, p peer.AddrInfo) error {
	const op = "connect to"
	if err := p.ID.Validate(); err != nil {
		return errs.E(errs.Invalid, errs.Caller, op, "peer", err)
	}
	if p.ID == n.host.ID() {
		return errs.E(errs.Invalid, errs.Caller, op, p.ID.String(), errors.New("that is this node"))
	}
	if err := n.host.Connect(ctx, p); err != nil {
		return unreachable(ctx, op, p.ID, err)
	}
	return nil
}

// unreachable says why a peer could not be reached, and whose fault it is. If ctx
// has ended the error wraps that, which muxers do not do.
func unreachable(ctx context.Context, op string, p peer.ID, err error) error {
	fault := errs.Peer
	switch end := ctx.Err(); {
	case errors.Is(err, network.ErrResourceLimitExceeded):
		fault = errs.Ours
	case end != nil:
		fault = errs.Unknown
		if !errors.Is(err, end) {
			err = fmt.Errorf("%w: %w", end, err)
		}
	}
	return errs.E(errs.Unreachable, fault, op, p.String(), err)
}

// Latency is the round trip time that the host has measured, 0 if it has not. If
// it matters, because the peer reads several streams, the peer is pinged to find it
// out, and whoever asks again learns it.
func (n *Network) Latency(p peer.ID) time.Duration {
	if d := n.host.Peerstore().LatencyEWMA(p); d > 0 {
		return d
	}
	n.mu.Lock()
	a := n.attached
	n.mu.Unlock()
	if a != nil && n.Streams(p) > 1 {
		a.measure(p)
	}
	return 0
}

// manyStreams is how many outbound streams a peer is said to read at a time that
// has announced it.
const manyStreams = 8

// Streams is 8 for peers that have announced exchange.StreamsID, and 1 for others.
func (n *Network) Streams(p peer.ID) int {
	if many, err := n.host.Peerstore().SupportsProtocols(p, exchange.StreamsID); err == nil && len(many) > 0 {
		return manyStreams
	}
	return 1
}

// Tag tells the host's connection manager how much a connection is worth.
// Values beyond 0 to 100 count as the nearest of these.
func (n *Network) Tag(p peer.ID, value int) {
	if value <= 0 {
		n.host.ConnManager().UntagPeer(p, ServiceName)
		return
	}
	n.host.ConnManager().TagPeer(p, ServiceName, min(value, maxTag))
}
