package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Dial is the plugin's end of one stream: it connects to the host's socket at
// path, where the stream is expected. It takes at most HandshakeTimeout. The
// error is of kind errs.Unreachable if there is no host, and errs.Invalid if it
// refused, with its reason.
func Dial(ctx context.Context, path string, token Token, stream uint64, o Options) (*Conn, error) {
	o, err := o.fill()
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, path, token, stream, o)
	if err != nil {
		return nil, errs.E(dialKind(err), errs.Unknown, "connect", fmt.Sprintf("stream %d to the host", stream), err)
	}
	go c.run()
	return c, nil
}

func dialKind(err error) errs.Kind {
	var e *errs.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return errs.Unreachable
}

func dial(ctx context.Context, path string, token Token, stream uint64, o Options) (c *Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.handshake)
	defer cancel()
	sock, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			sock.Close()
		}
	}()
	// Only the host may be told the token.
	if err := o.checkPeer(sock); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = sock.Write(hello{version: Version, caps: o.Caps, window: uint32(o.Window), stream: stream, token: token}.append(nil))
	var b [answerSize]byte
	if err == nil {
		_, err = io.ReadFull(sock, b[:])
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	a, err := parseAnswer(&b)
	if err != nil {
		return nil, err
	}
	s := settings{id: stream, window: o.Window, allowed: int(a.window), counters: o.Counters, stall: o.stall}
	if a.caps&o.Caps&CapRegions != 0 {
		s.loans = o.Loans
	}
	return newConn(sock, s), nil
}

// connect tries again while the host's backlog is full, which Linux answers
// with EAGAIN.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var d net.Dialer
		sock, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return sock.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
