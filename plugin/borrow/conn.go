package borrow

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// conn is network.Conn over a connection of the host. The mirror has one for
// each that is open. Fields are never changed.
type conn struct {
	n    *Node
	id   string
	peer peer.ID

	// seen is false for one that a stream was opened on and that the mirror did
	// not have. It knows no more than this, and asks the mirror each time.
	seen          bool
	local, remote ma.Multiaddr // nil if unknown
	dir           network.Direction
	limited       bool
	opened        time.Time
}

var _ network.Conn = (*conn)(nil)

func newConn(n *Node, p peer.ID, msg *pb.Connection) *conn {
	c := &conn{n: n, id: msg.GetId(), peer: p, seen: true, dir: network.DirOutbound, limited: msg.GetLimited(), opened: time.Unix(0, msg.GetOpened())}
	if msg.GetInbound() {
		c.dir = network.DirInbound
	}
	c.local, _ = ma.NewMultiaddrBytes(msg.GetLocalAddr())
	c.remote, _ = ma.NewMultiaddrBytes(msg.GetRemoteAddr())
	return c
}

// known is what is known of the connection now.
func (c *conn) known() *conn {
	if !c.seen {
		if now := c.n.mirror.conn(c.id); now != nil && now.peer == c.peer {
			return now
		}
	}
	return c
}

func (c *conn) ID() string                                 { return c.id }
func (c *conn) LocalPeer() peer.ID                         { return c.n.self }
func (c *conn) RemotePeer() peer.ID                        { return c.peer }
func (c *conn) RemotePublicKey() crypto.PubKey             { return c.n.book.PubKey(c.peer) }
func (c *conn) ConnState() network.ConnectionState         { return network.ConnectionState{} }
func (c *conn) LocalMultiaddr() ma.Multiaddr               { return c.known().local }
func (c *conn) RemoteMultiaddr() ma.Multiaddr              { return c.known().remote }
func (c *conn) Scope() network.ConnScope                   { return &network.NullScope{} }
func (c *conn) IsClosed() bool                             { return c.n.mirror.conn(c.id) == nil }
func (c *conn) Close() error                               { return c.refuse() }
func (c *conn) CloseWithError(network.ConnErrorCode) error { return c.refuse() }

func (c *conn) refuse() error { return refuse("close connection to", c.peer.String()) }

// refuse is the answer to what the host does not lend.
func refuse(op, subject string) error {
	return errs.E(errs.Invalid, errs.Caller, op, subject, errHosts)
}

// As is false: nothing is wrapped.
func (c *conn) As(any) bool { return false }

func (c *conn) Stat() network.ConnStats {
	known := c.known()
	return network.ConnStats{
		Stats:      network.Stats{Direction: known.dir, Opened: known.opened, Limited: known.limited},
		NumStreams: c.n.countStreams(c.id),
	}
}

// NewStream asks the host for a stream without a protocol to the peer, on
// whichever of its connections, and without dialling. The host may refuse it.
func (c *conn) NewStream(ctx context.Context) (network.Stream, error) {
	return c.n.openStream(network.WithNoDial(ctx, "stream on a connection"), c.peer, nil)
}

// GetStreams are the streams of this process that are open on the connection.
func (c *conn) GetStreams() []network.Stream {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	out := make([]network.Stream, 0, len(c.n.streams[c.id]))
	for s := range c.n.streams[c.id] {
		out = append(out, s)
	}
	return out
}
