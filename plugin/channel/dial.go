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
	kept := false
	defer func() {
		if err != nil && !kept {
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
	greeted := err == nil
	var b [answerSize]byte
	n := 0
	if greeted {
		n, err = io.ReadFull(sock, b[:])
	}
	if !stop() {
		if kept = greeted && o.Loans != nil; kept {
			go abandon(sock, b, n, stream, o)
		}
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return answered(sock, &b, stream, o)
}

// answered makes the stream that the host has given an answer for.
func answered(sock net.Conn, b *[answerSize]byte, stream uint64, o Options) (*Conn, error) {
	a, err := parseAnswer(b)
	if err != nil {
		return nil, err
	}
	s := settings{id: stream, window: o.Window, allowed: int(a.window), counters: o.Counters, stall: o.stall}
	if a.caps&o.Caps&CapRegions != 0 {
		s.loans = o.Loans
	}
	return newConn(sock, s), nil
}

// abandon ends a stream that the host has been told of and nobody waits for any more. n
// bytes of the answer have come. The host may have sent regions behind it, which would
// be lost to it if they were not given back.
func abandon(sock *net.UnixConn, b [answerSize]byte, n int, stream uint64, o Options) {
	sock.SetDeadline(time.Now().Add(o.handshake))
	if _, err := io.ReadFull(sock, b[n:]); err != nil {
		sock.Close()
		return
	}
	c, err := answered(sock, &b, stream, o)
	if err != nil {
		sock.Close()
		return
	}
	sock.SetDeadline(time.Time{})
	c.Reset()
	c.run()
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
