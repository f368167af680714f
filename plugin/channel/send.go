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

// sendPaid sends head and body, which cost that much credit, and lends p if that
// is not nil; the caller takes it back if it was not sent. It reports false without
// an error if the caller should try again, which tells what became of the stream.
// Lock held, not while it writes; not busy.
func (c *Conn) sendPaid(body []byte, cost int, p *slot) (bool, error) {
	c.credit -= cost
	c.spent += uint64(cost)
	if p != nil {
		c.lend(p)
	}
	n, err := c.send(body)
	switch late := isTimeout(err) && c.writeBy.over(); {
	case err == nil:
		c.flush()
		return true, nil
	case c.err != nil || !isTimeout(err):
		// Reset meanwhile, or the other side has gone. What it said before that,
		// run will read.
		c.broken = true
	case late && n == 0:
		// Nothing has left; the stream is as before.
		c.credit += cost
		c.spent -= uint64(cost)
		c.flush()
		return false, os.ErrDeadlineExceeded
	case late:
		c.broken = true
		c.fail(&ResetError{Err: fmt.Errorf("write to %s: the deadline passed inside a record", c.name())}, false)
		return false, os.ErrDeadlineExceeded
	default:
		c.broken = true
		c.fail(&ResetError{Err: c.stalled()}, false)
	}
	c.flush()
	return false, nil
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

// closeSock closes the socket, which ends run. While slots are lent it waits until
// the other side has read them, or ends its side of the socket: if the stream was
// reset, as soon as it learns that. Lock held.
func (c *Conn) closeSock() {
	if c.sockClosed {
		return
	}
	if len(c.lent) > 0 && !c.ended {
		if w, ok := c.sock.(interface{ CloseWrite() error }); ok && c.broken && c.err != nil {
			w.CloseWrite() // the reset has not come through
		}
		c.wantRun()
		return
	}
	c.sockClosed, c.broken = true, true
	c.readBy.end()
	c.writeBy.end()
	c.sock.Close()
	c.wantRun() // to find that
}
