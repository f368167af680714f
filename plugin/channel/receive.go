package channel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Somebody has to read the socket at all times, or nearly: data and references
// are for the reader, but credit, an end or a reset may be for a writer, or for
// nobody who is here now. Whoever does it leads, and handles what comes for all.
//
// A Next that finds the queue empty leads itself if nobody does, so that bytes
// go from the socket to the caller's buffer, on the caller's goroutine. When it
// leaves, it is likely to be back soon. If it is not within absence, or if a
// writer waits, run leads; and run gives way to a Next that waits after each
// record.
const absence = time.Millisecond

// lead reads the socket for Next, straight into p, until something has come or
// happened. It returns how many bytes of p were filled. Lock held, not while it
// reads; nobody leads.
func (c *Conn) lead(p []byte) (n int) {
	c.led, c.inNext = true, true
	for n == 0 && !c.interrupted() && !c.eof && !c.ended && c.queue.empty() {
		var err error
		n, err = c.step(p)
		if kicked := c.unkick(); err != nil && !(kicked && isTimeout(err)) {
			c.finish(err)
		}
	}
	c.led, c.inNext = false, false
	c.unkick()
	return n
}

// unkick makes the socket readable again after wakeReader, and reports whether
// it was not. Lock held.
func (c *Conn) unkick() bool {
	if !c.kicked {
		return false
	}
	c.kicked = false
	c.sock.SetReadDeadline(time.Time{})
	return true
}

// more reports whether Next would have something at once, as far as can be told.
func (c *Conn) more() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.queue.empty() || c.led || c.left > 0 {
		return !c.queue.empty()
	}
	b := c.src.buffered()
	if len(b) < headerSize {
		return false
	}
	kind, n, err := parseHeader(b)
	return err == nil && (kind == KindData || kind == KindBlock) && len(b) >= headerSize+n
}

// interrupted reports whether a Next under way should return. Lock held.
func (c *Conn) interrupted() bool { return c.err != nil || c.readClosed || c.readBy.passed }

// wakeReader makes a Next under way look around, also if it reads the socket.
// Lock held.
func (c *Conn) wakeReader() {
	c.readable.Broadcast()
	if c.inNext && !c.kicked && c.interrupted() {
		c.kicked = true
		c.sock.SetReadDeadline(time.Unix(1, 0))
	}
}

// leave sees to it that somebody leads while Next is away, or writes. Lock held.
func (c *Conn) leave() {
	switch {
	case c.led || c.wanted:
	case c.interrupted() || c.eof || c.ended || c.waiting > 0:
		c.wantRun()
	default:
		c.arm()
	}
}

// arm has somebody look whether Next is still away after the time of absence.
// Lock held.
func (c *Conn) arm() {
	switch {
	case c.armed:
		return
	case c.absent == nil:
		c.absent = time.AfterFunc(absence, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.armed = false
			c.wantRun()
		})
	default:
		c.absent.Reset(absence)
	}
	c.armed = true
}

// wantRun asks run to lead unless somebody does. Lock held.
func (c *Conn) wantRun() {
	if !c.led && !c.wanted {
		c.wanted = true
		c.runnable.Signal()
	}
}

// run leads when it is wanted, until the socket has ended. It never waits for
// anything else, but for a last write when the stream ends.
func (c *Conn) run() {
	defer close(c.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
	for !c.ended {
		if c.led || !c.wanted {
			c.runnable.Wait()
			continue
		}
		c.led = true
		_, err := c.step(nil)
		c.led = false
		if err != nil {
			c.finish(err)
		}
		if c.readers > 0 {
			c.wanted = false
			c.readable.Broadcast()
		}
	}
	for c.busy {
		c.writable.Wait()
	}
	c.closeSock()
}

// finish says why nothing more will be read. An *errs.Error means that the
// protocol was broken. Lock held.
func (c *Conn) finish(err error) {
	if c.ended {
		return
	}
	c.ended = true
	var broke *errs.Error
	switch {
	case c.closed || c.err != nil: // nobody asks any more
	case errors.As(err, &broke):
		broke.Op, broke.Subject, broke.Fault = "read", c.name(), c.fault()
		c.fail(&ResetError{Code: CodeProtocol, Err: broke}, true)
	case c.eof && err == io.EOF:
		c.stopWriting() // the other side is done with both directions
	default:
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // so that errors.Is does not take it for a close
		}
		c.fail(&ResetError{Remote: true, Err: errs.E(errs.Crashed, c.fault(), "read", c.name(), fmt.Errorf("socket ended without a close: %w", err))}, false)
	}
	c.readable.Broadcast()
	c.runnable.Signal()
}

// pay gives credit back for what was read, not at once but by the half
// window, so that a record carries more than itself. Lock held.
func (c *Conn) pay(n int) {
	c.owed += n
	if c.owed >= c.window/2 && !c.eof && c.err == nil {
		c.payAll()
	}
}

func (c *Conn) payAll() {
	c.granted += c.owed
	c.todo.credit += c.owed
	c.owed = 0
	c.flush()
}

// step handles one record, or part of a long one. Bytes of the stream go into p,
// or the queue if p is nil; n says how many are in p. An *errs.Error means that
// the protocol was broken. Only who leads calls it. Lock held, not while it
// reads.
func (c *Conn) step(p []byte) (n int, err error) {
	if c.left == 0 {
		b, err := c.peek(headerSize)
		if err != nil {
			return 0, err
		}
		kind, n, err := parseHeader(b)
		switch {
		case err != nil:
			return 0, err
		case kind == KindData:
			if err := c.charge(kind, n); err != nil {
				return 0, err
			}
			c.counters.DataIn.Add(uint64(n))
			c.src.r += headerSize
			c.left, c.skipping = n, false
		case kind >= firstOptional:
			c.src.r += headerSize
			c.left, c.skipping = n, true
			return 0, nil
		default:
			if b, err = c.peek(headerSize + n); err != nil {
				return 0, err
			}
			r, err := parseBody(kind, b[headerSize:])
			if err != nil {
				return 0, err
			}
			c.src.r += headerSize + n
			return 0, c.receive(r)
		}
	}

	var k int
	switch {
	case c.skipping || c.readClosed || c.err != nil:
		left := c.left
		c.mu.Unlock()
		k, err = c.src.skip(left)
		c.mu.Lock()
	case p != nil:
		p = p[:min(c.left, len(p))]
		c.mu.Unlock()
		for k < len(p) && err == nil {
			var m int
			m, err = c.src.read(p[k:])
			k += m
		}
		c.mu.Lock()
		if k > 0 {
			n, err = k, nil // an end will be there again
		}
	default:
		space := c.queue.space()
		space = space[:min(c.left, len(space))]
		c.mu.Unlock()
		k, err = c.src.read(space)
		c.mu.Lock()
		if c.err == nil && !c.readClosed {
			c.queue.commit(k)
			c.readable.Broadcast()
		}
	}
	c.left -= k
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// peek waits until n bytes are there, without the lock.
func (c *Conn) peek(n int) ([]byte, error) {
	if b := c.src.buffered(); len(b) >= n {
		return b[:n], nil
	}
	c.mu.Unlock()
	defer c.mu.Lock()
	return c.src.peek(n)
}

// errOver ends receive when the stream has been ended by other means.
var errOver = errors.New("stream is over")

// receive handles a record that is neither data nor skipped. Lock held.
func (c *Conn) receive(r Record) error {
	if c.err != nil && c.loans == nil {
		return errOver
	}
	switch r.Kind {
	case KindBlock, KindRegion:
		switch {
		case r.Kind == KindBlock && !c.host:
			return malformed("block: goes to the host only")
		case r.Kind == KindRegion && c.host:
			return malformed("region: goes to the plugin only")
		case r.Kind == KindRegion && c.loans == nil:
			return malformed("region: was not agreed on in the greeting")
		}
		if c.err == nil {
			if err := c.charge(r.Kind, RefCost); err != nil {
				return err
			}
		}
		over := c.err != nil || c.readClosed
		if r.Kind == KindBlock {
			c.counters.BlocksIn.Add(1)
			if !over {
				c.queue.put(r)
			}
		} else {
			region, err := c.loans.lent(r.Offset, r.Size)
			if err != nil {
				return malformed("%w", err)
			}
			c.counters.MemoryIn.Add(uint64(r.Size))
			if over {
				region.Free()
			} else {
				c.queue.putRegion(region)
			}
		}
		c.readable.Broadcast()
	case KindCloseWrite:
		if c.eof {
			return malformed("close-write: a second one")
		}
		c.eof = true
		c.readable.Broadcast()
	case KindCloseRead:
		c.stopWriting()
	case KindReset:
		c.fail(&ResetError{Code: r.Code, Remote: true}, false)
		return errOver
	case KindCredit:
		if r.Size > c.allowed-c.credit {
			return malformed("credit: %d bytes given back, want at most the %d that are out", r.Size, c.allowed-c.credit)
		}
		c.credit += r.Size
		c.writable.Broadcast()
	}
	return nil
}

// charge takes the cost of a record from what the other side may send. Lock
// held.
func (c *Conn) charge(k Kind, n int) error {
	if c.eof {
		return malformed("%v: after close-write", k)
	}
	if n > c.granted {
		return malformed("%v: costs %d bytes of credit, want at most %d", k, n, c.granted)
	}
	c.granted -= n
	return nil
}

// source reads the socket, the beginning of records by way of a buffer, so that
// small records share a system call, and long data past it. Reads that fail can
// be tried again. It belongs to who leads.
type source struct {
	sock net.Conn
	r, w int
	b    [4 << 10]byte
}

func (s *source) buffered() []byte { return s.b[s.r:s.w] }

// read reads what there is, at least a byte.
func (s *source) read(p []byte) (int, error) {
	if s.r == s.w {
		if len(p) >= len(s.b) {
			return s.sock.Read(p)
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.b[s.r:s.w])
	s.r += n
	return n, nil
}

// peek reads until n bytes are in the buffer, for which there must be room, and
// returns them; they stay there until r is moved. An end before them is
// io.ErrUnexpectedEOF, or io.EOF if there is no byte.
func (s *source) peek(n int) ([]byte, error) {
	for s.w-s.r < n {
		err := s.fill()
		cut := s.w > s.r
		switch {
		case err == nil:
		case err == io.EOF && cut:
			return nil, io.ErrUnexpectedEOF
		case errors.Is(err, syscall.ECONNRESET) && !cut:
			// What Linux calls an end with bytes of ours unread.
			return nil, io.EOF
		default:
			return nil, err
		}
	}
	return s.b[s.r : s.r+n], nil
}

// skip reads and forgets some bytes, at most n.
func (s *source) skip(n int) (int, error) {
	if s.r == s.w {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n = min(n, s.w-s.r)
	s.r += n
	return n, nil
}

// fill reads at least one byte more into the buffer, of which it moves the rest
// to the front.
func (s *source) fill() error {
	s.w = copy(s.b[:], s.b[s.r:s.w])
	s.r = 0
	n, err := s.sock.Read(s.b[s.w:])
	s.w += n
	if n > 0 {
		return nil
	}
	return err
}
