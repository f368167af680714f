package channel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// StallTimeout is how long one write to the socket may take. The other side
	// always empties its socket, unless it hangs.
	StallTimeout = 10 * time.Second
	// resetLinger is how long Reset tries to get the code across.
	resetLinger = 200 * time.Millisecond
)

// Counters count what crosses the boundary. Several Conns may share them. The
// zero value is ready; the fields may be read at any time.
type Counters struct {
	DataIn    atomic.Uint64 // bytes received in data records
	DataOut   atomic.Uint64 // bytes sent in data records
	MemoryIn  atomic.Uint64 // bytes received in shared memory
	MemoryOut atomic.Uint64 // bytes sent in shared memory
	BlocksIn  atomic.Uint64 // block records received
	BlocksOut atomic.Uint64 // block records sent
	Filled    atomic.Uint64 // bytes that Bridge wrote in place of block records
}

// A Conn is one stream between host and plugin. One goroutine may read while
// another writes; everything else may be called from any goroutine at any time.
// Get one from [Listener.Expect] or [Dial]. Its owner ends it with Close or
// Reset, also after both directions have ended.
//
// After a reset by either side, or the death of the other, reads and writes
// return the same *[ResetError]; what had been received and not read is lost.
type Conn struct {
	sock     net.Conn
	id       uint64
	host     bool
	window   int // what we hold for the other side
	allowed  int // what the other side holds for us
	counters *Counters
	stall    time.Duration
	slots    *slots       // the host's, nil if there is no memory
	slotted  atomic.Int32 // of them, those that the stream has
	loans    *Loans       // the plugin's, nil if there is no memory

	done    chan struct{} // closed when run returns
	failed  chan struct{} // closed when err is set
	stopped chan struct{} // closed when the other side takes no more data

	mu       sync.Mutex
	readable sync.Cond // what Next waits for may have changed
	writable sync.Cond // what a writer waits for may have changed
	runnable sync.Cond // what run waits for may have changed

	err    *ResetError // the end of both directions, if not in good order
	closed bool        // Close was called

	// Receiving. Who sets led owns src, left and skipping, also without the
	// lock, until it clears led; see lead.
	led      bool
	inNext   bool // it is Next that leads
	kicked   bool // the socket's read deadline was set to wake it
	wanted   bool // run is to lead
	readers  int  // Nexts that wait while run leads
	waiting  int  // writers that wait
	armed    bool // absent is running
	absent   *time.Timer
	ended    bool // nothing more will be read
	src      source
	left     int  // bytes of the record under way that have not been read
	skipping bool // it is to be skipped

	queue      queue
	readClosed bool     // CloseRead was called
	eof        bool     // the other side sent close-write
	granted    int      // what the other side may still send, bytes of credit
	unpaid     int      // cost of the reference that Next returned last
	owed       int      // credit to be given back, not yet in a record
	readBy     deadline // of Next

	// Sending. Who sets busy may write to the socket without the lock, and
	// owns head, vec and bufs until it clears busy; then it flushes what others
	// have left to do.
	busy        bool
	paying      bool // what is being written is Write's
	broken      bool // nothing can be written any more
	sockClosed  bool
	corked      bool        // Cork was called
	cork        []byte      // records that wait for Uncork, paid for
	linger      *time.Timer // ends the wait for the host to end its side, nil until then
	writeClosed bool        // CloseWrite was called
	stop        bool        // stopped is closed
	credit      int         // what we may still send
	writeBy     deadline    // of Write
	sockBy      time.Time   // the socket's write deadline
	todo        todo
	head        []byte
	vec         [2][]byte
	bufs        net.Buffers
}

// todo is the control records to be sent. It is empty unless somebody is
// writing.
type todo struct {
	credit     int
	closeWrite bool
	closeRead  bool
	reset      bool // instead of all others; the code is in err
}

func (t todo) append(b []byte, err *ResetError) []byte {
	if t.reset {
		return appendReset(b, err.Code)
	}
	if t.credit > 0 {
		b = appendCredit(b, t.credit)
	}
	if t.closeRead {
		b = appendHeader(b, KindCloseRead, 0)
	}
	if t.closeWrite {
		b = appendHeader(b, KindCloseWrite, 0)
	}
	return b
}

// settings are what the greeting has agreed on.
type settings struct {
	id       uint64
	host     bool
	window   int
	allowed  int
	counters *Counters
	stall    time.Duration // 0 means StallTimeout
	slots    *slots
	loans    *Loans
}

// newConn makes a Conn of a socket. The caller sees to it that run is called.
func newConn(sock net.Conn, s settings) *Conn {
	c := &Conn{
		sock: sock, id: s.id, host: s.host, window: s.window, allowed: s.allowed, counters: s.counters, stall: s.stall,
		slots: s.slots, loans: s.loans,
		granted: s.window, credit: s.allowed,
		done: make(chan struct{}), failed: make(chan struct{}), stopped: make(chan struct{}),
	}
	if c.counters == nil {
		c.counters = new(Counters)
	}
	if c.stall == 0 {
		c.stall = StallTimeout
	}
	c.src.sock = sock
	c.readable.L, c.writable.L, c.runnable.L = &c.mu, &c.mu, &c.mu
	c.readBy.wake, c.writeBy.wake = c.wakeReader, c.writable.Broadcast
	return c
}

// ID is the number of the stream, as in the greeting.
func (c *Conn) ID() uint64 { return c.id }

// Counters are those given in the options, or the Conn's own.
func (c *Conn) Counters() *Counters { return c.counters }

// Done is closed when the socket is closed and the Conn's goroutine has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

func (c *Conn) name() string { return fmt.Sprintf("stream %d", c.id) }

// fault is who breaks the protocol if it is not us.
func (c *Conn) fault() errs.Fault {
	if c.host {
		return errs.Plugin
	}
	return errs.Ours
}

// Read reads bytes of the stream. It returns io.EOF after the other side's
// CloseWrite, a *ResetError after a reset, an error of kind errs.Closed after
// CloseRead or Close, and os.ErrDeadlineExceeded. If a reference comes next,
// which nobody sends to a plugin that has not asked for it, the error is of
// kind errs.Invalid, and Next reads it.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	rec, _, err := c.next(p, false, false)
	return len(rec.Data), err
}

// ReadLent is Read that leaves bytes where they lie if that is in the host's memory:
// they are in r then, which is the caller's, who frees it. Otherwise r is nil, and
// the bytes are in p, which must not be empty. So they are if so much is lent to this
// process already that the host is about to run out of memory for it.
func (c *Conn) ReadLent(p []byte) (b []byte, r *Region, err error) {
	if len(p) == 0 {
		return nil, nil, errs.Errorf(errs.Invalid, errs.Caller, "read "+c.name(), "no room to read into")
	}
	rec, r, err := c.next(p, false, true)
	return rec.Data, r, err
}

// Next reads what comes next in the stream: bytes, into p, which must not be
// empty, or a reference to a block. Errors are those of Read. A reference is paid for
// with the next call, so it should be done with by then.
func (c *Conn) Next(p []byte) (Record, error) {
	if len(p) == 0 {
		return Record{}, errs.Errorf(errs.Invalid, errs.Caller, "read "+c.name(), "no room to read into")
	}
	rec, _, err := c.next(p, true, false)
	return rec, err
}

func (c *Conn) next(p []byte, refs, lend bool) (Record, *Region, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.leave()
	if c.unpaid > 0 {
		unpaid := c.unpaid
		c.unpaid = 0
		c.pay(unpaid)
	}
	for {
		switch {
		case c.err != nil:
			return Record{}, nil, c.err
		case c.readClosed:
			return Record{}, nil, errs.E(errs.Closed, errs.Caller, "read", c.name(), nil)
		case c.readBy.passed:
			return Record{}, nil, os.ErrDeadlineExceeded
		case !c.queue.empty():
			return c.queued(p, refs, lend)
		case c.eof:
			return Record{}, nil, io.EOF
		}
		if c.led || c.wanted {
			c.readers++
			c.readable.Wait()
			c.readers--
			continue
		}
		if n := c.lead(p); n > 0 {
			c.pay(n)
			return Record{Kind: KindData, Data: p[:n]}, nil, nil
		}
	}
}

// queued gives what the queue begins with. Lock held.
func (c *Conn) queued(p []byte, refs, lend bool) (Record, *Region, error) {
	r := c.queue.region()
	switch {
	case r != nil && !r.mapped:
		return Record{}, nil, errs.E(errs.Closed, errs.Caller, "read", c.name(), errors.New("the shared memory is closed"))
	case r != nil && lend && !c.loans.scarce():
		b, r := c.queue.takeRegion() // what comes now to be lent
		c.pay(RefCost)
		return Record{Kind: KindData, Data: b}, c.loans.hold(r), nil
	case r == nil && !refs && c.queue.refNext():
		return Record{}, nil, errs.Errorf(errs.Invalid, errs.Caller, "read "+c.name(), "a reference comes next, which only Next reads")
	}
	ref, n, done := c.queue.next(p)
	switch {
	case ref != nil:
		c.unpaid = RefCost
		return *ref, nil, nil
	case done:
		c.pay(RefCost)
	case r == nil:
		c.pay(n)
	}
	return Record{Kind: KindData, Data: p[:n]}, nil, nil
}

// Write sends bytes of the stream. It waits for credit, and returns a
// *ResetError after a reset, an error of kind errs.Closed after CloseWrite or
// Close, or when the other side reads no more, and os.ErrDeadlineExceeded. A
// deadline that passes inside a record resets the stream as well, since what
// has been written of the record cannot be taken back.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	for len(p) > 0 {
		n, err := c.afford(1, min(len(p), MaxData))
		if err != nil {
			return total, err
		}
		if c.corked && n < maxCork/4 {
			c.cork = append(appendHeader(c.cork, KindData, n), p[:n]...)
			c.credit -= n
			c.counters.DataOut.Add(uint64(n))
			total += n
			p = p[n:]
			continue
		}
		if len(c.cork) > 0 {
			if err := c.sendCorked(); err != nil {
				return total, err
			}
			continue // for the stream may have ended meanwhile
		}
		c.head = appendHeader(c.head[:0], KindData, n)
		sent, err := c.sendPaid(p[:n], n)
		if err != nil {
			return total, err
		}
		if sent == headerSize+n {
			c.counters.DataOut.Add(uint64(n))
			total += n
			p = p[n:]
		}
	}
	return total, nil
}

// WriteBlock says that the bytes of the block come next in the stream, size of
// them. The host writes them; if it cannot, it resets the stream with
// CodeBlockMissing. Only the plugin's side has it. Errors are those of Write, or
// of kind errs.Invalid.
func (c *Conn) WriteBlock(block cid.Cid, size int) error {
	if c.host {
		return errs.Errorf(errs.Invalid, errs.Caller, "write to "+c.name(), "block records go to the host only")
	}
	record, err := Record{Kind: KindBlock, Cid: block, Size: size}.Append(nil)
	if err != nil {
		return err
	}
	if _, err := c.writeRefs(record, 1); err != nil {
		return err
	}
	c.counters.BlocksOut.Add(1)
	return nil
}

// writeRefs sends count references, whole records that cost RefCost each, in one
// write. If it fails, n is how many bytes of them have left.
func (c *Conn) writeRefs(records []byte, count int) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if _, err := c.afford(count*RefCost, count*RefCost); err != nil {
			return n, err
		}
		if c.corked {
			c.cork = append(c.cork, records...)
			c.credit -= count * RefCost
			return len(records), nil
		}
		c.head = append(c.head[:0], records[:headerSize]...)
		n, err = c.sendPaid(records[headerSize:], count*RefCost)
		if err != nil || n == len(records) {
			return n, err
		}
	}
}

// maxCork is how many bytes of records are held back at the most, or nearly.
const maxCork = 16 << 10

// Cork lets what is written from now on wait for more, until Uncork: records are sent
// together, when there are enough. It is for who writes.
func (c *Conn) Cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = true
}

// Uncork sends what was held back. Errors are those of Write, and then the stream is
// over.
func (c *Conn) Uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.sendCorked()
}

// CloseWrite ends this side's direction in good order: the other side reads
// io.EOF after what was written. It does not wait for that. The error is the
// *ResetError if the stream was reset.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if !c.writeClosed {
		if err := c.sendCorked(); err != nil {
			return err
		}
		c.writeClosed = true
		c.todo.closeWrite = true
		c.writable.Broadcast()
		c.flush()
	}
	return nil
}

// CloseRead says that this side reads no more: reads fail, what has come and
// what still comes is thrown away, and the other side's writes fail. It returns
// nil.
func (c *Conn) CloseRead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeRead()
	c.flush()
	return nil
}

func (c *Conn) closeRead() {
	if c.readClosed || c.err != nil {
		return
	}
	c.readClosed = true
	c.todo.closeRead = !c.eof
	c.queue.drop()
	c.wakeReader()
}

// Close ends both directions in good order: CloseWrite, CloseRead, and the
// socket. It waits, at most StallTimeout, only if the other process hangs, and
// for no answer. It returns nil, also when called again.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.closeRead()
	if c.err == nil && !c.writeClosed {
		c.writeClosed = true
		c.todo.closeWrite = true
	}
	c.writable.Broadcast()
	c.flush()
	return nil
}

// Reset ends both directions at once, without saying why.
func (c *Conn) Reset() error { return c.ResetWithCode(CodeNone) }

// ResetWithCode ends both directions at once; reads and writes under way return.
// The other side learns the code if it empties its socket within 200 ms; a write
// that is inside a record has that long to end it. It returns nil.
func (c *Conn) ResetWithCode(code uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(&ResetError{Code: code}, true)
	return nil
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setReadDeadline(t)
	c.setWriteDeadline(t)
	return nil
}

// SetReadDeadline makes reads fail that have not ended by t, those under way
// too. The zero time means never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setReadDeadline(t)
	return nil
}

// SetWriteDeadline makes writes fail that have not ended by t, those under way
// too. The zero time means never.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setWriteDeadline(t)
	return nil
}

func (c *Conn) setReadDeadline(t time.Time) {
	if !c.sockClosed {
		c.readBy.set(&c.mu, t)
	}
}

func (c *Conn) setWriteDeadline(t time.Time) {
	if c.sockClosed {
		return
	}
	c.writeBy.set(&c.mu, t)
	if c.busy && c.err == nil {
		c.limitWrite()
	}
}

// fail ends both directions; the first reason stays. If tell, the other side is
// sent a reset record. Lock held.
func (c *Conn) fail(e *ResetError, tell bool) {
	if c.err != nil {
		return
	}
	c.err = e
	c.queue.drop()
	c.todo = todo{reset: tell}
	close(c.failed)
	c.stopWriting()
	c.wakeReader()
	if c.busy {
		c.limitWrite()
	}
	c.flush()
}

// stopWriting makes writes fail because the other side takes no more. Lock held.
func (c *Conn) stopWriting() {
	if !c.stop {
		c.stop = true
		close(c.stopped)
	}
	c.writable.Broadcast()
}

// deadline is a point in time; when it passes, wake is called with the lock that
// guards the deadline.
type deadline struct {
	wake   func()
	at     time.Time
	passed bool
	timer  *time.Timer
}

func (d *deadline) set(mu *sync.Mutex, t time.Time) {
	d.at = t
	d.passed = false
	if t.IsZero() {
		d.end()
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.end()
		d.passed = true
		d.wake()
		return
	}
	if d.timer != nil {
		d.timer.Reset(left)
		return
	}
	d.timer = time.AfterFunc(left, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.at.IsZero() || d.passed {
			return
		}
		// The deadline may have been moved while this was about to run.
		if left := time.Until(d.at); left > 0 {
			d.timer.Reset(left)
			return
		}
		d.passed = true
		d.wake()
	})
}

// over reports whether the deadline has passed, even if nobody was woken yet.
func (d *deadline) over() bool { return d.passed || !d.at.IsZero() && !time.Now().Before(d.at) }

// end stops the timer.
func (d *deadline) end() {
	if d.timer != nil {
		d.timer.Stop()
	}
}
