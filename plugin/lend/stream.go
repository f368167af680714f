package lend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
)

// negotiationWait is how long a peer may take to answer the negotiation of a
// protocol after the plugin has stopped reading.
const negotiationWait = 10 * time.Second

// stream is a channel.Stream over one of libp2p.
type stream struct {
	s network.Stream

	answered atomic.Bool // the peer has sent something
	unread   atomic.Bool // CloseRead was called
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	if n > 0 && !s.answered.Load() {
		s.answered.Store(true)
		if s.unread.Load() {
			_ = s.s.CloseRead()
		}
	}
	return n, resetError(err)
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.s.Write(p)
	return n, resetError(err)
}

// CloseRead does not end the reading of a peer's consent to the protocol, which
// libp2p reads with the first bytes of a stream that this node has opened: a peer
// that cannot send it may drop the stream, with all that was written.
func (s *stream) CloseRead() error {
	s.unread.Store(true)
	if s.s.Stat().Direction == network.DirInbound || s.answered.Load() {
		return resetError(s.s.CloseRead())
	}
	return s.s.SetReadDeadline(time.Now().Add(negotiationWait))
}

func (s *stream) CloseWrite() error { return resetError(s.s.CloseWrite()) }
func (s *stream) Close() error      { return resetError(s.s.Close()) }

func (s *stream) ResetWithCode(code uint32) error {
	// A write may wait for the connection rather than for the stream.
	_ = s.s.SetWriteDeadline(time.Unix(1, 0))
	return s.s.ResetWithError(network.StreamErrorCode(code))
}

// resetError turns the errors with which libp2p says that a stream was reset
// into *channel.ResetError, so that the code crosses.
func resetError(err error) error {
	var reset *network.StreamError
	var refused multistream.ErrNotSupported[protocol.ID]
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.As(err, &reset):
		return &channel.ResetError{Code: uint32(reset.ErrorCode), Remote: reset.Remote}
	case errors.As(err, &refused):
		return &channel.ResetError{Code: uint32(network.StreamProtocolNegotiationFailed), Remote: true, Err: err}
	case errors.Is(err, network.ErrReset):
		return &channel.ResetError{Remote: true, Err: err}
	}
	return err
}

// put is the channel.Fill: it writes a block of the store in the place of its
// reference.
func (l *Lender) put(ctx context.Context, c cid.Cid, size int, w io.Writer) error {
	b, err := l.opts.Blocks.Get(ctx, c)
	if err == nil && len(b.RawData()) != size {
		err = errs.E(errs.Storage, errs.Plugin, "read block", c.String(), fmt.Errorf("it is %d bytes, the plugin has named %d", len(b.RawData()), size))
	} else if err != nil {
		err = storeError("read block", c, err)
	}
	if err != nil {
		if ctx.Err() == nil {
			l.missing.Add(1)
		}
		return err
	}
	_, err = w.Write(b.RawData())
	return err
}

// storeError gives an error of the store its kind: ipld.ErrNotFound of the CID,
// or errs.Storage.
func storeError(op string, c cid.Cid, err error) error {
	if notFound(err) {
		return errs.E(errs.NotFound, errs.Unknown, op, c.String(), ipld.ErrNotFound{Cid: c})
	}
	return errs.E(errs.Storage, errs.Ours, op, c.String(), err)
}

func notFound(err error) bool { return ipld.IsNotFound(err) || errors.Is(err, errs.NotFound) }
