package channel

import (
	"fmt"
	"os"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// awaitCredit waits until the socket is free and there is credit for cost. Lock
// held.
func (c *Conn) awaitCredit(cost int) error {
	for {
		switch {
		case c.err != nil:
			return c.err
		case c.writeClosed:
			return errs.E(errs.Closed, errs.Caller, "write to", c.name(), nil)
		case c.stop:
			return errs.Errorf(errs.Closed, errs.Unknown, "write to "+c.name(), "the other side reads no more")
		case c.writeBy.passed:
			return os.ErrDeadlineExceeded
		case !c.busy && !c.broken && c.credit >= cost:
			return nil
		}
		c.wantRun()
		c.waiting++
		c.writable.Wait()
		c.waiting--
	}
}

// afford waits until there is credit for least, and says how much there is, up to most.
// What is corked is sent before it waits, and when it is enough. Lock held.
func (c *Conn) afford(least, most int) (int, error) {
	if len(c.cork) > 0 && (c.credit < least || len(c.cork) >= maxCork) {
		if err := c.sendCorked(); err != nil {
			return 0, err
		}
	}
	if err := c.awaitCredit(least); err != nil {
		return 0, err
	}
	return min(c.credit, most), nil
}

// sendCorked sends what is corked. If that fails, the stream is over. Lock held, not
// while it writes.
func (c *Conn) sendCorked() error {
	for len(c.cork) > 0 {
		err := c.awaitCredit(0)
		if len(c.cork) == 0 {
			return nil // somebody else has sent it meanwhile
		}
		if err == nil {
			var n int
			c.head = append(c.head[:0], c.cork[:headerSize]...)
			if n, err = c.sendPaid(c.cork[headerSize:], 0); err == nil && n < len(c.cork) {
				continue // which tells what became of the stream
			}
		}
		c.cork = c.cork[:0]
		if err != nil {
			c.fail(&ResetError{Err: fmt.Errorf("write to %s: what was corked could not be sent: %w", c.name(), err)}, true)
			return err
		}
	}
	return nil
}

// sendPaid sends head and body, which cost that much credit, and returns how many
// bytes of both have left. If they are not all and there is no error, the caller
// should try again, which tells what became of the stream. Lock held, not while it
// writes; not busy.
func (c *Conn) sendPaid(body []byte, cost int) (int, error) {
	c.credit -= cost
	n, err := c.send(body)
	switch late := isTimeout(err) && c.writeBy.over(); {
	case err == nil:
		c.flush()
		return n, nil
	case c.err != nil || !isTimeout(err):
		// Reset meanwhile, or the other side has gone. What it said before that,
		// run will read.
		c.broken = true
	case late && n == 0:
		// Nothing has left; the stream is as before.
		c.credit += cost
		c.flush()
		return 0, os.ErrDeadlineExceeded
	case late:
		c.broken = true
		c.fail(&ResetError{Err: fmt.Errorf("write to %s: the deadline passed inside a record", c.name())}, false)
		return n, os.ErrDeadlineExceeded
	default:
		c.broken = true
		c.fail(&ResetError{Err: c.stalled()}, false)
	}
	c.flush()
	return n, nil
}

func (c *Conn) stalled() error {
	return errs.E(errs.Crashed, c.fault(), "write to", c.name(), fmt.Errorf("the socket took no record for %v: the other process hangs", c.stall))
}

// send writes head and body, or head alone. Lock held, not while it writes; not
// busy.
func (c *Conn) send(body []byte) (int, error) {
	c.busy = true
	c.vec = [2][]byte{c.head, body}
	c.bufs = c.vec[:]
	if body == nil {
		c.bufs = c.vec[:1]
	}
	c.paying = body != nil
	c.limitWrite()
	c.leave() // both sides may be writing, and somebody has to read
	c.mu.Unlock()
	n, err := c.bufs.WriteTo(c.sock)
	c.mu.Lock()
	c.vec, c.bufs = [2][]byte{}, nil
	c.busy = false
	c.writable.Broadcast()
	return int(n), err
}

// limitWrite sets when a write to the socket has to end: by Write's deadline if
// it is one of Write's, within the linger time after a reset, and otherwise
// within three quarters of the stall time at the least, since it would cost to
// set it anew each time. Lock held.
func (c *Conn) limitWrite() {
	now := time.Now()
	t := now.Add(c.stall)
	exact := false
	if at := c.writeBy.at; c.paying && !at.IsZero() && at.Before(t) {
		t, exact = at, true
	}
	if c.err != nil {
		t, exact = now.Add(resetLinger), true
	}
	if late := t.Sub(c.sockBy); exact || late < 0 || late > c.stall/4 {
		c.sockBy = t
		c.sock.SetWriteDeadline(t)
	}
}

// flush sends the control records that wait, unless somebody is writing, who
// then does it; and closes the socket when nothing more is to be said. Lock
// held, not while it writes.
func (c *Conn) flush() {
	for !c.busy && !c.broken && c.todo != (todo{}) {
		c.head = c.todo.append(c.head[:0], c.err)
		c.todo = todo{}
		if _, err := c.send(nil); err != nil {
			c.broken = true
			if isTimeout(err) {
				c.fail(&ResetError{Err: c.stalled()}, false)
			}
		}
	}
	if !c.busy && (c.closed || c.err != nil) {
		c.closeSock()
	}
}

// closeSock closes the socket, which ends run. A plugin that is lent memory ends its
// side only, and closes when the host has ended its own, or the time of a stall is over:
// there may be regions on their way to it, which it has to give back. Lock held.
func (c *Conn) closeSock() {
	if c.sockClosed {
		return
	}
	if c.loans != nil && !c.ended {
		if c.linger == nil {
			if w, ok := c.sock.(interface{ CloseWrite() error }); ok {
				w.CloseWrite()
			}
			c.broken = true
			c.linger = time.AfterFunc(c.stall, func() { c.sock.Close() })
			c.wantRun()
		}
		return
	}
	c.sockClosed, c.broken = true, true
	c.readBy.end()
	c.writeBy.end()
	if c.linger != nil {
		c.linger.Stop()
	}
	c.sock.Close()
	c.wantRun() // to find that
}
