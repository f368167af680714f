package channel

import (
	"math/bits"
	"sync"

	"github.com/codexchange/codexchange/plugin/memory"
)

const (
	// slotSize is how much of a stream goes into one slot, bytes. It is what the
	// streams of libp2p give at a time at the most, or nearly.
	slotSize = 64 << 10
	// minRegion is from how many bytes on a region record is cheaper than a data
	// record.
	minRegion = 16 << 10
	// fairShare is how many times as many slots must be free as a stream has lent
	// for it to get another one. So one stream alone gets a ninth of all, many get
	// less each, and those that nobody reads in the plugin leave something to the
	// others.
	fairShare = 8
)

// slots are the parts of the memory that a host shares with a plugin, of slotSize
// each. All streams of the plugin take theirs from them. Nobody waits for one.
//
// A slot that was sent is lent to the plugin, until it has paid for the record or
// can no longer read it. The lowest that is free is taken first, so that no more
// of the memory is ever touched than was in use at a time.
type slots struct {
	m *memory.Memory

	mu      sync.Mutex // while it is held, no other lock is taken
	ended   bool       // no more are taken
	free    []uint64   // a bit for each, set if it is free
	left    int        // that are free
	reading int        // that are being read into
	count   int
}

func newSlots(m *memory.Memory) *slots {
	s := &slots{m: m, count: m.Size() / slotSize}
	s.left = s.count
	s.free = make([]uint64, (s.count+63)/64)
	for i := range s.count {
		s.free[i/64] |= 1 << (i % 64)
	}
	return s
}

// A slot is one that was taken. Its memory stays mapped until it is given back.
type slot struct {
	of      *slots
	n       int    // its number
	end     uint64 // what its stream will have been paid when this is paid; see Conn
	reading bool
	back    bool // it was given back
}

// take gives a slot to a stream that has lent so many, nil if it cannot have one.
// One that is to be read into may be held for as long as a peer is silent; so at
// most half of all are.
func (s *slots) take(lent int, toRead bool) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || lent*fairShare >= s.left || toRead && s.reading >= s.count/2 || !s.m.Hold() {
		return nil
	}
	i := 0
	for s.free[i] == 0 {
		i++
	}
	n := bits.TrailingZeros64(s.free[i])
	s.free[i] &^= 1 << n
	s.left--
	if toRead {
		s.reading++
	}
	return &slot{of: s, n: 64*i + n, reading: toRead}
}

// read says that a slot has been read into, and is about to be lent.
func (p *slot) read() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	if p.reading {
		p.reading = false
		p.of.reading--
	}
}

// give gives a slot back, once.
func (p *slot) give() {
	s := p.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.back {
		return
	}
	p.back = true
	if p.reading {
		s.reading--
	}
	s.free[p.n/64] |= 1 << (p.n % 64)
	s.left++
	s.m.Release()
}

// end says that none is to be taken any more.
func (s *slots) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

func (p *slot) offset() int   { return p.n * slotSize }
func (p *slot) bytes() []byte { return p.of.m.Bytes(p.offset(), slotSize) }

// slot takes a slot for what the Conn sends next, nil if there is none for it.
func (c *Conn) slot(toRead bool) *slot {
	if c.slots == nil {
		return nil
	}
	c.mu.Lock()
	lent := len(c.lent)
	c.mu.Unlock()
	return c.slots.take(lent, toRead)
}

// writeSlot sends the first n bytes of a slot, and lends it. It owns the slot
// from then on.
func (c *Conn) writeSlot(p *slot, n int) error {
	p.read()
	err := c.writeRef(Record{Kind: KindRegion, Offset: uint64(p.offset()), Size: n}, p)
	if err == nil {
		c.counters.MemoryOut.Add(uint64(n))
	}
	return err
}

// lend notes that a slot goes with the record about to be sent, which is paid when
// all that was spent so far is. Lock held.
func (c *Conn) lend(p *slot) {
	p.end = c.spent
	c.lent = append(c.lent, p)
}

// unlend gives a slot back whose record has not been sent whole. Lock held.
func (c *Conn) unlend(p *slot) {
	if n := len(c.lent); n > 0 && c.lent[n-1] == p {
		c.lent = c.lent[:n-1]
		if n == 1 {
			c.flush() // the socket may have waited for that
		}
	}
	p.give()
}

// repaid takes back the slots whose records have been paid. Lock held.
func (c *Conn) repaid(n int) {
	c.returned += uint64(n)
	k := 0
	for k < len(c.lent) && c.lent[k].end <= c.returned {
		c.lent[k].give()
		k++
	}
	if k == 0 {
		return
	}
	rest := copy(c.lent, c.lent[k:])
	clear(c.lent[rest:])
	c.lent = c.lent[:rest]
	if rest == 0 {
		c.flush() // the socket may have waited for that
	}
}

// reclaim takes back all slots, because the other side reads no more. Lock held.
func (c *Conn) reclaim() {
	for _, p := range c.lent {
		p.give()
	}
	c.lent = nil
}

// abandon is ResetWithCode when the memory itself is about to end, so that it does
// not matter whether the other side still reads it.
func (c *Conn) abandon(code uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reclaim()
	c.fail(&ResetError{Code: code}, true)
	c.flush()
}
