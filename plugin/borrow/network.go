package borrow

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
)

// errHosts is why something is refused that an exchange might ask of libp2p.
var errHosts = errors.New("connections belong to the host")

// lentNetwork is network.Network over the mirror. What would change listening or
// connections is refused.
type lentNetwork struct{ n *Node }

var _ network.Network = (*lentNetwork)(nil)

func (l *lentNetwork) Peerstore() peerstore.Peerstore     { return l.n.book }
func (l *lentNetwork) LocalPeer() peer.ID                 { return l.n.self }
func (l *lentNetwork) StopNotify(f network.Notifiee)      { l.n.notifs.remove(f) }
func (l *lentNetwork) ListenAddresses() []ma.Multiaddr    { return slices.Clone(l.n.addrs) }
func (l *lentNetwork) CanDial(peer.ID, ma.Multiaddr) bool { return true }
func (l *lentNetwork) ClosePeer(p peer.ID) error          { return refuse("close connections to", p.String()) }
func (l *lentNetwork) Listen(...ma.Multiaddr) error       { return refuse("listen", "") }

// Notify tells f first of the connections that there are: in libp2p an exchange
// starts before them, in a plugin that was started again after them. One that is
// made meanwhile may be told twice.
func (l *lentNetwork) Notify(f network.Notifiee) {
	l.n.notifs.add(f, func() {
		for _, c := range l.n.mirror.all() {
			f.Connected(l, c)
		}
	})
}

// ResourceManager limits nothing: the host does.
func (l *lentNetwork) ResourceManager() network.ResourceManager {
	return &network.NullResourceManager{}
}

func (l *lentNetwork) InterfaceListenAddresses() ([]ma.Multiaddr, error) {
	return l.ListenAddresses(), nil
}

// Close does nothing, as the host outlives its users.
func (l *lentNetwork) Close() error { return nil }

// SetStreamHandler does nothing: streams without a protocol stay in the host.
func (l *lentNetwork) SetStreamHandler(network.StreamHandler) {
	l.n.log.Warn("a handler for streams of all protocols cannot be set", "err", errHosts)
}

func (l *lentNetwork) Connectedness(p peer.ID) network.Connectedness {
	return connectedness(l.n.mirror.connsTo(p))
}

func (l *lentNetwork) Conns() []network.Conn { return asConns(l.n.mirror.all()) }

func (l *lentNetwork) ConnsToPeer(p peer.ID) []network.Conn {
	return asConns(l.n.mirror.connsTo(p))
}

func asConns(conns []*conn) []network.Conn {
	out := make([]network.Conn, len(conns))
	for i, c := range conns {
		out[i] = c
	}
	return out
}

func (l *lentNetwork) Peers() []peer.ID {
	var out []peer.ID
	for _, c := range l.n.mirror.all() {
		out = append(out, c.peer)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// NewStream asks the host for a stream without a protocol, which it may refuse.
func (l *lentNetwork) NewStream(ctx context.Context, p peer.ID) (network.Stream, error) {
	return l.n.host.NewStream(ctx, p)
}

// DialPeer is Connect, and gives one of the connections.
func (l *lentNetwork) DialPeer(ctx context.Context, p peer.ID) (network.Conn, error) {
	if err := l.n.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		return nil, err
	}
	conns := l.n.mirror.connsTo(p)
	if len(conns) == 0 {
		return nil, network.ErrNoConn // it is over already
	}
	return conns[0], nil
}

// notifiees are who wants to hear of connections, in the order in which they
// came. As in libp2p, a notifiee must not add or remove any; and when remove has
// returned, no call to it is under way.
type notifiees struct {
	mu  sync.RWMutex // held for reading during calls
	all []network.Notifiee
}

// add calls first before any other call is made to f.
func (l *notifiees) add(f network.Notifiee, first func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.all, f) {
		l.all = append(l.all, f)
		first()
	}
}

func (l *notifiees) remove(f network.Notifiee) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(other network.Notifiee) bool { return other == f })
}

func (l *notifiees) tell(f func(network.Notifiee)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, notifiee := range l.all {
		f(notifiee)
	}
}
