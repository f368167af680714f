package borrow

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// handleTimeout is how long the host may take to note a protocol.
const handleTimeout = 30 * time.Second

// lentHost is host.Host over a Node.
type lentHost struct {
	n       *Node
	network *lentNetwork
}

var _ host.Host = (*lentHost)(nil)

func (h *lentHost) ID() peer.ID                      { return h.n.self }
func (h *lentHost) Peerstore() peerstore.Peerstore   { return h.n.book }
func (h *lentHost) Addrs() []ma.Multiaddr            { return slices.Clone(h.n.addrs) }
func (h *lentHost) Network() network.Network         { return h.network }
func (h *lentHost) Mux() protocol.Switch             { return h.n.mux }
func (h *lentHost) ConnManager() connmgr.ConnManager { return h.n.values }
func (h *lentHost) EventBus() event.Bus              { return h.n.bus }

// Close does nothing: the host is not ours.
func (h *lentHost) Close() error { return nil }

// Connect has the host dial a peer unless it is connected, at the given
// addresses, those in this process' peerstore, and whatever it knows itself. The
// host is asked even if the mirror has the peer, since it may just have gone.
func (h *lentHost) Connect(ctx context.Context, p peer.AddrInfo) error {
	n := h.n
	op := "connect to " + p.ID.String()
	n.book.AddAddrs(p.ID, p.Addrs, peerstore.TempAddrTTL)
	req := &pb.ConnectRequest{Peer: []byte(p.ID)}
	known := ma.Unique(append(slices.Clone(p.Addrs), n.book.Addrs(p.ID)...))
	for _, a := range known[:min(len(known), maxAddrs)] {
		req.Addrs = append(req.Addrs, a.Bytes())
	}
	reply, err := n.client.Connect(ctx, req)
	if err != nil {
		return n.failed(ctx, err, op)
	}
	if reply.GetError() != nil {
		return reply.GetError().Err()
	}
	n.mirror.await(ctx, func() bool { return len(n.mirror.connsTo(p.ID)) > 0 })
	return nil
}

// NewStream has the host open a stream. Unless ctx forbids to dial, a peer that
// is not connected is dialled, also at addresses that only this process knows.
func (h *lentHost) NewStream(ctx context.Context, p peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	noDial, _ := network.GetNoDial(ctx)
	if !noDial && len(h.n.mirror.connsTo(p)) == 0 && len(h.n.book.Addrs(p)) > 0 {
		if err := h.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
			return nil, err
		}
	}
	return h.n.openStream(ctx, p, protocols)
}

// SetStreamHandler registers a protocol. When it returns the host offers it to
// peers, or an error has been logged.
func (h *lentHost) SetStreamHandler(p protocol.ID, handler network.StreamHandler) {
	h.n.mux.AddHandler(p, asHandler(handler))
}

// SetStreamHandlerMatch registers the protocol by its exact name, and logs a
// warning: the function cannot be asked by the host.
func (h *lentHost) SetStreamHandlerMatch(p protocol.ID, match func(protocol.ID) bool, handler network.StreamHandler) {
	h.n.mux.AddHandlerWithFunc(p, match, asHandler(handler))
}

// RemoveStreamHandler takes a protocol back. When it returns the host gives us no
// more streams of it, or an error has been logged. It goes on offering it to peers
// for a while, see package lend.
func (h *lentHost) RemoveStreamHandler(p protocol.ID) { h.n.mux.RemoveHandler(p) }

func asHandler(handler network.StreamHandler) protocol.HandlerFunc {
	return func(_ protocol.ID, s io.ReadWriteCloser) error {
		handler(s.(network.Stream))
		return nil
	}
}

// mux has the handlers of streams. The host negotiates before a stream comes
// here, so there is but to find the handler of an agreed protocol; Negotiate and
// Handle are there for streams of other origin.
type mux struct {
	*multistream.MultistreamMuxer[protocol.ID]
	n *Node

	changing sync.Mutex           // held over calls of the host, so that they come in order
	offered  map[protocol.ID]bool // what the host has said that it takes

	mu       sync.Mutex
	handlers map[protocol.ID]protocol.HandlerFunc
}

var _ protocol.Switch = (*mux)(nil)

func newMux(n *Node) *mux {
	return &mux{
		MultistreamMuxer: multistream.NewMultistreamMuxer[protocol.ID](), n: n,
		offered: make(map[protocol.ID]bool), handlers: make(map[protocol.ID]protocol.HandlerFunc),
	}
}

func (m *mux) AddHandler(p protocol.ID, handler protocol.HandlerFunc) {
	m.changing.Lock()
	defer m.changing.Unlock()
	m.MultistreamMuxer.AddHandler(p, handler)
	m.add(p, handler)
}

func (m *mux) AddHandlerWithFunc(p protocol.ID, match func(protocol.ID) bool, handler protocol.HandlerFunc) {
	m.changing.Lock()
	defer m.changing.Unlock()
	m.n.log.Warn("a protocol is matched by its exact name only: the match function stays in this process", "protocol", p)
	m.MultistreamMuxer.AddHandlerWithFunc(p, match, handler)
	m.add(p, handler)
}

// add makes a handler known before the host is asked for streams. What the host
// has refused it is asked for again. changing is held.
func (m *mux) add(p protocol.ID, handler protocol.HandlerFunc) {
	m.mu.Lock()
	m.handlers[p] = handler
	m.mu.Unlock()
	if m.offered[p] {
		return
	}
	ctx, cancel := context.WithTimeout(m.n.ctx, handleTimeout)
	defer cancel()
	if _, err := m.n.client.Handle(ctx, &pb.HandleRequest{Protocol: string(p)}); err != nil {
		m.failed(ctx, err, "register protocol "+string(p))
		return
	}
	m.offered[p] = true
}

func (m *mux) RemoveHandler(p protocol.ID) {
	m.changing.Lock()
	defer m.changing.Unlock()
	m.MultistreamMuxer.RemoveHandler(p)
	m.mu.Lock()
	_, had := m.handlers[p]
	delete(m.handlers, p)
	m.mu.Unlock()
	if !had {
		return
	}
	delete(m.offered, p)
	ctx, cancel := context.WithTimeout(m.n.ctx, handleTimeout)
	defer cancel()
	if _, err := m.n.client.Unhandle(ctx, &pb.UnhandleRequest{Protocol: string(p)}); err != nil {
		m.failed(ctx, err, "take back protocol "+string(p))
	}
}

// failed logs an error that libp2p's interface has no place for. That the node
// is over is said elsewhere.
func (m *mux) failed(ctx context.Context, err error, op string) {
	if m.n.Err() == nil {
		m.n.log.Error("the host did not follow", "err", pb.FromStatus(ctx, err, errs.Ours, op))
	}
}

// handler is who takes streams of a protocol, nil if nobody does.
func (m *mux) handler(p protocol.ID) protocol.HandlerFunc {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.handlers[p]
}
