package p2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/lent"
)

// stream is exchange.Stream over one stream of the host.
//
// Close can wait: on an outbound stream up to 10 s for a peer that has not
// answered the protocol negotiation, and on a connection that takes no data
// until its muxer gives up. Reset does not wait.
type stream struct {
	s       network.Stream
	release func() // called after Close and Reset, each time; nil on outbound streams
}

// A blockStream is a stream of a host that puts blocks into it, as one does that is
// lent to a plugin: an exchange.BlockWriter because its libp2p stream is one. A
// lendingStream is a lent.Reader and an exchange.Corker too, for the same reason.
type (
	blockStream struct {
		*stream
		exchange.BlockWriter
	}
	lendingStream struct {
		blockStream
		lent.Reader
		exchange.Corker
	}
)

func newStream(s network.Stream, release func()) exchange.Stream {
	st := &stream{s: s, release: release}
	w, ok := s.(exchange.BlockWriter)
	if !ok {
		return st
	}
	if r, ok := s.(interface {
		lent.Reader
		exchange.Corker
	}); ok {
		return lendingStream{blockStream{st, w}, r, r}
	}
	return blockStream{st, w}
}

func (s *stream) Peer() peer.ID               { return s.s.Conn().RemotePeer() }
func (s *stream) Read(b []byte) (int, error)  { return s.s.Read(b) }
func (s *stream) Write(b []byte) (int, error) { return s.s.Write(b) }

func (s *stream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }

func (s *stream) Close() error {
	err := s.s.Close()
	s.released()
	return err
}

func (s *stream) Reset() error {
	err := s.s.Reset()
	s.released()
	return err
}

func (s *stream) released() {
	if s.release != nil {
		s.release()
	}
}
