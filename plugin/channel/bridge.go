package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A Stream is what Bridge joins to a Conn: on a host, a libp2p stream in an
// adapter that turns its reset errors into *[ResetError], so that their codes
// cross. A Conn is a Stream. One goroutine may read while another writes, and
// everything else may be called at any time.
type Stream interface {
	io.Reader
	io.Writer
	// CloseRead makes reads fail, those under way too.
	CloseRead() error
	// CloseWrite ends the direction of Write in good order.
	CloseWrite() error
	// Close ends what is still open, in good order, and frees the stream.
	Close() error
	// ResetWithCode ends both directions; reads and writes under way fail.
	ResetWithCode(code uint32) error
}

// A Fill writes the size bytes of a block to w. It may be called from several
// goroutines at a time, for several Bridges. It returns soon after ctx ends or a
// write fails.
type Fill func(ctx context.Context, block cid.Cid, size int, w io.Writer) error

// Bridge joins s and c until both directions have ended, and then closes both.
// It owns them meanwhile. The end of a direction, and a reset with its code, is
// passed on each way; so is the end of ctx, as a reset with CodeShutdown. What
// stands in the place of a block record is written to s by fill. If fill does
// not write exactly the size that was named, the message that the block is part
// of cannot be ended, and both sides are reset with CodeBlockMissing.
//
// The error is what ended the stream if it was not in good order: a *ResetError
// from one side or the other, the error of fill, or that of ctx.
func Bridge(ctx context.Context, s Stream, c *Conn, fill Fill) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &bridge{s: s, c: c, fill: fill, cancel: cancel}
	ended := make(chan struct{}, 2)
	go func() { b.out(ctx); ended <- struct{}{} }()
	go func() { b.in(); ended <- struct{}{} }()

	// Meanwhile this goroutine sees to it that an end wakes both, whatever they
	// wait for.
	failed, stopped, over := c.failed, c.stopped, ctx.Done()
	for left := 2; left > 0; {
		select {
		case <-ended:
			left--
		case <-failed:
			failed = nil
			b.fail(c.err, c.err.Code)
		case <-stopped:
			stopped = nil
			s.CloseRead()
		case <-over:
			over = nil
			b.fail(context.Cause(ctx), CodeShutdown)
		}
	}
	s.Close()
	c.Close()
	return b.err
}

type bridge struct {
	s      Stream
	c      *Conn
	fill   Fill
	cancel context.CancelFunc

	once sync.Once
	err  error // set in once
}

// fail ends both sides; the first error stays.
func (b *bridge) fail(err error, code uint32) {
	b.once.Do(func() {
		b.err = err
		b.cancel()
		b.c.ResetWithCode(code)
		b.s.ResetWithCode(code)
	})
}

// out carries what the Conn's other side sends.
func (b *bridge) out(ctx context.Context) {
	var buf buffer
	defer buf.release()
	to := &gather{to: b.s}
	n := 0
	for {
		rec, err := b.c.Next(buf.after(n))
		n = len(rec.Data)
		switch {
		case err == io.EOF:
			if err = to.flush(); err == nil {
				err = b.s.CloseWrite()
			}
			if err != nil {
				b.fail(err, resetCode(err))
			}
			return
		case err != nil:
		case rec.Kind == KindData:
			_, err = to.Write(rec.Data)
		case rec.Kind == KindBlock:
			if !b.put(ctx, rec, to) {
				return
			}
		default:
			err = &ResetError{Code: CodeProtocol, Err: errs.Errorf(errs.Invalid, errs.Caller, "bridge "+b.c.name(), "%v record, which only its reader can resolve", rec.Kind)}
		}
		if err == nil && !b.c.more() {
			err = to.flush()
		}
		if err != nil {
			b.fail(err, resetCode(err))
			return
		}
	}
}

// A gather writes small pieces together. Who writes sees to it that it is flushed.
type gather struct {
	to  io.Writer
	buf []byte
}

const (
	gatherBytes = 16 << 10 // so much is written at a time, or nearly
	gatherSmall = 4 << 10  // what is smaller is gathered
)

func (g *gather) Write(p []byte) (int, error) {
	if len(p) < gatherSmall {
		if g.buf = append(g.buf, p...); len(g.buf) < gatherBytes {
			return len(p), nil
		}
		return len(p), g.flush()
	}
	if err := g.flush(); err != nil {
		return 0, err
	}
	return g.to.Write(p)
}

func (g *gather) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.to.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}

// put writes a block in the place of its record.
func (b *bridge) put(ctx context.Context, rec Record, to io.Writer) bool {
	f := &filler{b: b, to: to, left: rec.Size}
	err := b.fill(ctx, rec.Cid, rec.Size, f)
	switch {
	case f.err != nil: // of the stream, whatever fill made of it
		b.fail(f.err, resetCode(f.err))
	case err == nil && f.left == 0:
		return true
	case ctx.Err() != nil:
		b.fail(context.Cause(ctx), CodeShutdown)
	default:
		if err == nil {
			err = fmt.Errorf("%d bytes written, want %d", rec.Size-f.left, rec.Size)
		}
		b.fail(errs.E(errs.Storage, errs.Ours, "put", fmt.Sprintf("block %v into %s", rec.Cid, b.c.name()), err), CodeBlockMissing)
	}
	return false
}

// in carries what the stream's other side sends.
func (b *bridge) in() {
	in := newIntake(b.c)
	defer in.end()
	for {
		began := time.Now()
		n, err := b.s.Read(in.room())
		if n > 0 {
			if werr := in.took(n, time.Since(began)); werr != nil {
				err = werr
			}
		}
		switch {
		case err == nil:
			continue
		case err == io.EOF:
			if err = in.flush(); err == nil {
				err = b.c.CloseWrite()
			} else if b.unwanted() {
				return
			}
		case b.unwanted():
			return
		}
		if err != nil {
			b.fail(err, resetCode(err))
		}
		return
	}
}

// unwanted reports whether the Conn's other side reads no more, which is no
// failure.
func (b *bridge) unwanted() bool {
	select {
	case <-b.c.failed:
		return false
	default:
	}
	select {
	case <-b.c.stopped:
		return true
	default:
		return false
	}
}

// filler is the place of one block in a stream. It takes left bytes more.
type filler struct {
	b    *bridge
	to   io.Writer
	left int
	err  error // of the stream
}

var errBlockTooLong = errors.New("block is longer than was named")

func (f *filler) Write(p []byte) (int, error) {
	if len(p) > f.left {
		f.left = -1 // never right again
		return 0, errBlockTooLong
	}
	n, err := f.to.Write(p)
	f.left -= n
	f.b.c.counters.Filled.Add(uint64(n))
	if err != nil {
		f.err = err
	}
	return n, err
}

// buffer is small while a stream is quiet, so that many of them cost little.
type buffer struct {
	small [4 << 10]byte
	big   *[slotSize]byte
}

var bigs = sync.Pool{New: func() any { return new([slotSize]byte) }}

// after gives room for the next read, the last having read n bytes.
func (b *buffer) after(n int) []byte {
	if n < len(b.small) {
		b.release()
		return b.small[:]
	}
	if b.big == nil {
		b.big = bigs.Get().(*[slotSize]byte)
	}
	return b.big[:]
}

func (b *buffer) release() {
	if b.big != nil {
		bigs.Put(b.big)
		b.big = nil
	}
}
