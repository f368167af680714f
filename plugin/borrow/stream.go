package borrow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

// A Stream is network.Stream over one of the host's streams. One goroutine may
// read while another writes; everything else may be called from any goroutine.
// Its owner ends it with Close or Reset.
type Stream struct {
	n        *Node
	ch       *channel.Conn
	conn     *conn
	dir      network.Direction
	opened   time.Time
	protocol atomic.Pointer[protocol.ID]
}

var _ network.Stream = (*Stream)(nil)

// openStream has the host open a stream.
func (n *Node) openStream(ctx context.Context, p peer.ID, protocols []protocol.ID) (network.Stream, error) {
	op := "open stream to " + p.String()
	noDial, reason := network.GetNoDial(ctx)
	limited, why := network.GetAllowLimitedConn(ctx)
	if reason == "" {
		reason = why
	}
	reply, err := n.client.OpenStream(ctx, &pb.OpenStreamRequest{
		Peer: []byte(p), Protocols: protocol.ConvertToStrings(protocols), NoDial: noDial, AllowLimited: limited, Reason: reason,
	})
	if err != nil {
		return nil, n.failed(ctx, err, op)
	}
	if reply.GetError() != nil {
		return nil, reply.GetError().Err()
	}
	chosen := protocol.ID(reply.GetProtocol())
	if len(protocols) > 0 && !slices.Contains(protocols, chosen) {
		return nil, malformed(op, "protocol is %q, want one of %q", chosen, protocols)
	}
	ch, err := n.dial(ctx, reply.GetStream(), n.loans)
	if err != nil {
		return nil, err
	}
	n.mirror.await(ctx, func() bool { return n.mirror.conn(reply.GetConnection()) != nil })
	c, err := n.connOf(p, reply.GetConnection())
	if err != nil {
		ch.Reset()
		return nil, malformed(op, "%w", err)
	}
	s, err := n.newStream(ch, c, chosen, network.DirOutbound)
	if err != nil {
		return nil, err // not a nil *Stream
	}
	return s, nil
}

// connOf is the connection of a stream. One that is over, or that no event has
// told of yet, is made for it.
func (n *Node) connOf(p peer.ID, id string) (*conn, error) {
	c := n.mirror.conn(id)
	if c == nil {
		return &conn{n: n, id: id, peer: p}, nil
	}
	if c.peer != p {
		return nil, fmt.Errorf("connection %q is one of %v, want %v", id, c.peer, p)
	}
	return c, nil
}

// newStream makes a Stream of a channel, which it owns from then on; if the node
// is over, it resets it.
func (n *Node) newStream(ch *channel.Conn, c *conn, p protocol.ID, dir network.Direction) (*Stream, error) {
	s := &Stream{n: n, ch: ch, conn: c, dir: dir, opened: time.Now()}
	s.protocol.Store(&p)
	n.mu.Lock()
	over := n.err != nil
	if !over {
		if n.streams[c.id] == nil {
			n.streams[c.id] = make(map[*Stream]struct{})
		}
		n.streams[c.id][s] = struct{}{}
	}
	n.mu.Unlock()
	if over {
		ch.Reset()
		return nil, n.gone("open stream to " + c.peer.String())
	}
	return s, nil
}

// ended takes a stream off the list.
func (s *Stream) ended() {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	on := s.n.streams[s.conn.id]
	delete(on, s)
	if len(on) == 0 {
		delete(s.n.streams, s.conn.id)
	}
}

func (n *Node) countStreams(conn string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.streams[conn])
}

func (n *Node) openStreams() (all []*Stream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, on := range n.streams {
		for s := range on {
			all = append(all, s)
		}
	}
	return all
}

// ID is unique in this process: the connection and the channel's number.
func (s *Stream) ID() string { return fmt.Sprintf("%s-%d", s.conn.id, s.ch.ID()) }

// Conn is the connection that the stream is on.
func (s *Stream) Conn() network.Conn { return s.conn }

// Protocol is what was agreed on, or set.
func (s *Stream) Protocol() protocol.ID { return *s.protocol.Load() }

// SetProtocol changes what Protocol returns, here only.
func (s *Stream) SetProtocol(p protocol.ID) error {
	s.protocol.Store(&p)
	return nil
}

// Stat says who opened the stream and when this process had it.
func (s *Stream) Stat() network.Stats {
	return network.Stats{Direction: s.dir, Opened: s.opened, Limited: s.conn.known().limited}
}

// Scope counts nothing: the host has the stream in the plugin's scope.
func (s *Stream) Scope() network.StreamScope { return &network.NullScope{} }

// Read reads bytes of the stream, io.EOF after the peer's CloseWrite, and a
// *network.StreamError after a reset.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.ch.Read(p)
	return n, streamError(err)
}

// ReadLent is Read that leaves in the host's memory what is there; see package lent.
func (s *Stream) ReadLent(p []byte) ([]byte, lent.Buffer, error) {
	b, r, err := s.ch.ReadLent(p)
	if r == nil {
		return b, nil, streamError(err) // not a nil *Region
	}
	return b, r, nil
}

// Write sends bytes. It waits while the host, and behind it the peer, takes no
// more.
func (s *Stream) Write(p []byte) (int, error) {
	n, err := s.ch.Write(p)
	return n, streamError(err)
}

// WriteBlock sends the bytes of a block of the host's store, which the host puts
// there: size of them, as its store has said. If it no longer can, the stream is
// reset with channel.CodeBlockMissing. Errors are those of Write, or of kind
// errs.Invalid.
func (s *Stream) WriteBlock(block cid.Cid, size int) error {
	return streamError(s.ch.WriteBlock(block, size))
}

// Cork and Uncork have what is written between them sent together; see exchange.Corker.
func (s *Stream) Cork()         { s.ch.Cork() }
func (s *Stream) Uncork() error { return streamError(s.ch.Uncork()) }

// CloseWrite ends this side's direction: the peer reads io.EOF.
func (s *Stream) CloseWrite() error { return streamError(s.ch.CloseWrite()) }

// CloseRead makes reads fail; what still comes is thrown away.
func (s *Stream) CloseRead() error { return s.ch.CloseRead() }

// Close ends both directions in good order, and does not wait for the peer.
func (s *Stream) Close() error {
	s.ended()
	return s.ch.Close()
}

// Reset ends both directions at once.
func (s *Stream) Reset() error { return s.ResetWithError(network.StreamNoError) }

// ResetWithError is Reset that tells the peer why.
func (s *Stream) ResetWithError(code network.StreamErrorCode) error {
	s.ended()
	return s.ch.ResetWithCode(uint32(code))
}

// SetDeadline, SetReadDeadline and SetWriteDeadline are as in net.Conn. After a
// write deadline that passes inside a record the stream is reset.
func (s *Stream) SetDeadline(t time.Time) error      { return s.ch.SetDeadline(t) }
func (s *Stream) SetReadDeadline(t time.Time) error  { return s.ch.SetReadDeadline(t) }
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.ch.SetWriteDeadline(t) }

// streamError is an error of a channel as libp2p's users know it.
func streamError(err error) error {
	var reset *channel.ResetError
	if err == nil || !errors.As(err, &reset) {
		return err
	}
	return &network.StreamError{ErrorCode: network.StreamErrorCode(reset.Code), Remote: reset.Remote, TransportError: reset.Err}
}
