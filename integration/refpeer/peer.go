package refpeer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
)

// ProtocolID is the protocol that a Peer speaks.
const ProtocolID = "/codex/blockexc/1.0.0"

// A Peer is one node that behaves as the reference does. Its methods may be
// called from any goroutine. The zero Peer is of no use; see New.
type Peer struct {
	tb   testing.TB
	cfg  config
	host host.Host

	ctx    context.Context // ends when the peer closes
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine; Add with mu held and closed false

	mu      sync.Mutex // guards all that follows, and every remote
	closed  bool
	rng     *mrand.Rand
	remotes map[peer.ID]*remote // those connected
	store   store
	wants   map[Address]*want // what Fetch waits for
	wantSeq int               // counts wants, so that a remote can tell whether there are new ones
	changed chan struct{}     // closed and replaced when something is recorded or a remote joins

	counters   Counters
	violations []Violation
	log        []*Received
	logBytes   int
}

// A remote is a connected peer. It lives from its first connection to the end
// of its last, and all that is known of it goes with it.
type remote struct {
	id     peer.ID
	ctx    context.Context // ends when the remote leaves
	cancel context.CancelFunc
	conns  map[network.Conn]struct{}

	inbound int            // open streams that it opened
	stream  network.Stream // ours to it, or nil
	control []outgoing     // to be written, before payload
	payload []outgoing
	wake    chan struct{} // holds one token when there may be something to write

	// What the server knows.
	wanted  map[Address]bool // its want-blocks, until delivered or cancelled
	sending map[Address]bool // those on their way
	named   map[Address]bool // every address it ever named, for UnrequestedPush

	// What the client knows.
	clientState
}

// New starts a peer on a free TCP port of 127.0.0.1, with a new secp256k1
// identity, Noise and mplex. It ends with the test. If the test has failed, it
// logs what it saw.
func New(tb testing.TB, opts ...Option) *Peer {
	tb.Helper()
	p := &Peer{
		tb:      tb,
		cfg:     defaults(),
		remotes: make(map[peer.ID]*remote),
		store:   newStore(),
		wants:   make(map[Address]*want),
		changed: make(chan struct{}),
	}
	for _, o := range opts {
		o(&p.cfg)
	}
	p.rng = mrand.New(mrand.NewPCG(p.cfg.seed, 0))
	p.ctx, p.cancel = context.WithCancel(context.Background())

	key, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	if err != nil {
		tb.Fatalf("refpeer: make identity: %v", err)
	}
	p.host, err = libp2p.New(
		libp2p.Identity(key),
		libp2p.NoListenAddrs, // until the handlers are there
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(mplex.ID, mplex.DefaultTransport),
		libp2p.UserAgent("Codex"),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.ConnectionGater(onlySecp256k1{}),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(),
	)
	if err != nil {
		tb.Fatalf("refpeer: make host: %v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(p.report())
		}
		if err := p.Close(); err != nil {
			tb.Errorf("refpeer: close: %v", err)
		}
	})
	p.host.SetStreamHandler(ProtocolID, p.accept)
	p.host.Network().Notify(&network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { p.join(c) },
		DisconnectedF: func(_ network.Network, c network.Conn) { p.leave(c) },
	})
	if err := p.host.Network().Listen(multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		tb.Fatalf("refpeer: listen: %v", err)
	}
	p.wg.Go(p.tick)
	return p
}

// Close ends all connections and waits for every goroutine. Cleanup calls it;
// more calls do nothing.
func (p *Peer) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.cancel()
	p.mu.Unlock()
	err := p.host.Close()
	p.wg.Wait()
	return err
}

// Host is the libp2p host under the peer.
func (p *Peer) Host() host.Host { return p.host }

// ID is the peer's identity.
func (p *Peer) ID() peer.ID { return p.host.ID() }

// AddrInfo is where to dial the peer.
func (p *Peer) AddrInfo() peer.AddrInfo {
	return peer.AddrInfo{ID: p.host.ID(), Addrs: p.host.Network().ListenAddresses()}
}

// Connect dials a remote. When it returns, the remote has joined.
func (p *Peer) Connect(ctx context.Context, to peer.AddrInfo) error {
	if err := p.host.Connect(ctx, to); err != nil {
		return fmt.Errorf("refpeer: connect %s: %w", to.ID, err)
	}
	_, err := p.joined(ctx, to.ID)
	return err
}

// Disconnect closes every connection to a remote.
func (p *Peer) Disconnect(id peer.ID) error { return p.host.Network().ClosePeer(id) }

// join takes note of a connection. The reference goes by connections alone and
// never asks whether the remote speaks the protocol.
func (p *Peer) join(c network.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	id := c.RemotePeer()
	if r := p.remotes[id]; r != nil {
		r.conns[c] = struct{}{}
		return
	}
	r := &remote{
		id:          id,
		conns:       map[network.Conn]struct{}{c: {}},
		wake:        make(chan struct{}, 1),
		wanted:      make(map[Address]bool),
		sending:     make(map[Address]bool),
		named:       make(map[Address]bool),
		clientState: newClientState(),
	}
	r.ctx, r.cancel = context.WithCancel(p.ctx)
	p.remotes[id] = r
	p.wg.Go(func() { p.write(r) })
	if len(p.wants) > 0 {
		p.refresh(r)
	}
	p.announce()
}

// leave takes note of the end of a connection.
func (p *Peer) leave(c network.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.remotes[c.RemotePeer()]
	if r == nil {
		return
	}
	delete(r.conns, c)
	if len(r.conns) == 0 {
		p.forget(r)
		p.askAgain()
	}
}

// forget drops a remote and all that is known of it. What was requested from it
// can be requested elsewhere.
func (p *Peer) forget(r *remote) {
	delete(p.remotes, r.id)
	r.cancel()
	for _, w := range p.wants {
		if w.from == r.id {
			w.from = ""
		}
	}
}

// inOrder lists the remotes in a fixed order, so that the seed decides and not
// the order of a map.
func (p *Peer) inOrder() []*remote {
	return slices.SortedFunc(maps.Values(p.remotes), func(a, b *remote) int {
		return strings.Compare(string(a.id), string(b.id))
	})
}

// joined waits until a remote is connected.
func (p *Peer) joined(ctx context.Context, id peer.ID) (*remote, error) {
	for {
		p.mu.Lock()
		r, changed := p.remotes[id], p.changed
		p.mu.Unlock()
		if r != nil {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("refpeer: wait for %s to connect: %w", id, ctx.Err())
		case <-p.ctx.Done():
			return nil, errClosed
		}
	}
}

var errClosed = errors.New("refpeer: closed")

// announce wakes everybody who waits for something to change.
func (p *Peer) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// onlySecp256k1 refuses remotes of other key types, which the reference cannot
// read.
type onlySecp256k1 struct{}

func (onlySecp256k1) InterceptPeerDial(peer.ID) bool                      { return true }
func (onlySecp256k1) InterceptAddrDial(peer.ID, multiaddr.Multiaddr) bool { return true }
func (onlySecp256k1) InterceptAccept(network.ConnMultiaddrs) bool         { return true }
func (onlySecp256k1) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) {
	return true, 0
}

func (onlySecp256k1) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	key, err := id.ExtractPublicKey() // ids of secp256k1 and Ed25519 keys hold the key
	return err == nil && key.Type() == crypto.Secp256k1
}
