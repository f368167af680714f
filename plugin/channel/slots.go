package channel

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/memory"
)

const (
	// slotSize is how much of a stream goes into one slot, bytes. It is what the
	// streams of libp2p give at a time at the most, or nearly.
	slotSize = 64 << 10
	// minRegion is from how many bytes on a region record is cheaper than a data
	// record.
	minRegion = 16 << 10
	// fairShare is how many times as many slots must be free as a stream has
	// for it to get another one. So one stream alone gets a third of all, many get
	// less each, and those that nobody reads in the plugin leave something to the
	// others.
	fairShare = 2
)

// slots are the parts of the memory that a host shares with a plugin, of slotSize
// each. All streams of the plugin take theirs from them. Nobody waits for one.
//
// A slot has bytes of one stream, and is sent as one region or several. Each is lent
// to the plugin until that gives it back by name. A slot is free when its stream no
// longer reads into it and no region of it is lent. The lowest that is free is taken
// first, so that no more of the memory is ever touched than was in use at a time.
type slots struct {
	m *memory.Memory

	mu      sync.Mutex // while it is held, no other lock is taken
	ended   bool       // no more are taken, and nothing is lent
	free    []uint64   // a bit for each, set if it is free
	taken   []*slot    // by number, nil if it is free
	left    int        // that are free
	reading int        // that are being read into
}

func newSlots(m *memory.Memory) *slots {
	n := m.Size() / slotSize
	s := &slots{m: m, taken: make([]*slot, n), left: n, free: make([]uint64, (n+63)/64)}
	for i := range n {
		s.free[i/64] |= 1 << (i % 64)
	}
	return s
}

// A slot is one that was taken by a stream, which fills it and then lets go of it.
// Its memory stays mapped until it is free.
type slot struct {
	of      *slots
	n       int           // its number
	by      *atomic.Int32 // how many slots its stream has
	reading bool          // somebody waits for a peer, to read into it
	filling bool          // its stream has not let go of it
	lent    []int         // offsets of regions that the plugin has
}

// take gives a slot to a stream that has as many as by says, nil if it cannot have one.
// One that is to be read into may be held for as long as a peer is silent; so at
// most half of all are.
func (s *slots) take(by *atomic.Int32, toRead bool) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || int(by.Load())*fairShare >= s.left || toRead && s.reading >= len(s.taken)/2 || !s.m.Hold() {
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
	by.Add(1)
	p := &slot{of: s, n: 64*i + n, by: by, reading: toRead, filling: true}
	s.taken[p.n] = p
	return p
}

// read says that a slot has been read into.
func (p *slot) read() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.wasRead()
}

// await says that somebody is about to wait for a peer, to read into the slot; false
// if too many do.
func (p *slot) await() bool {
	s := p.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.reading {
		if s.reading >= len(s.taken)/2 {
			return false
		}
		p.reading = true
		s.reading++
	}
	return true
}

func (p *slot) wasRead() {
	if p.reading {
		p.reading = false
		p.of.reading--
	}
}

// lend says that the region at offset, in the slot, is about to be sent; false if that
// must not be any more.
func (p *slot) lend(offset int) bool {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	if p.of.ended {
		return false
	}
	p.lent = append(p.lent, offset)
	return true
}

// unlend says that it was not sent.
func (p *slot) unlend(offset int) {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.back(offset)
}

// back takes a region back, false if it is not lent. Lock held.
func (p *slot) back(offset int) bool {
	i := slices.Index(p.lent, offset)
	if i < 0 {
		return false
	}
	p.lent = slices.Delete(p.lent, i, i+1)
	p.freeIf()
	return true
}

// give says that the stream fills the slot no further. It may be said more than once.
func (p *slot) give() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	if p.filling {
		p.wasRead()
		p.filling = false
		p.freeIf()
	}
}

// freeIf frees a slot that is no longer of use to anybody. Lock held.
func (p *slot) freeIf() {
	s := p.of
	if p.filling || len(p.lent) > 0 {
		return
	}
	s.free[p.n/64] |= 1 << (p.n % 64)
	s.taken[p.n] = nil
	s.left++
	p.by.Add(-1)
	s.m.Release()
}

// end says that none is to be taken any more, and takes back what is lent: nobody
// is left to read it, or to be told of it.
func (s *slots) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, p := range s.taken {
		if p != nil && len(p.lent) > 0 {
			p.lent = nil
			p.freeIf()
		}
	}
}

// returned takes back what the plugin names. The error says that it does not have it.
func (s *slots) returned(offsets []uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range offsets {
		if s.ended {
			return nil
		}
		n := at / slotSize
		if n >= uint64(len(s.taken)) || s.taken[n] == nil || !s.taken[n].back(int(at)) {
			return errs.Errorf(errs.Malformed, errs.Plugin, "take back memory", "the region at %d is not lent", at)
		}
	}
	return nil
}

func (p *slot) offset() int   { return p.n * slotSize }
func (p *slot) bytes() []byte { return p.of.m.Bytes(p.offset(), slotSize) }

// slot takes a slot for what the Conn sends next, nil if there is none for it.
func (c *Conn) slot(toRead bool) *slot {
	if c.slots == nil {
		return nil
	}
	return c.slots.take(&c.slotted, toRead)
}

// A piece is a part of a slot that has been filled.
type piece struct {
	slot     *slot
	from, to int // in the slot
}

func (p piece) offset() int   { return p.slot.offset() + p.from }
func (p piece) size() int     { return p.to - p.from }
func (p piece) bytes() []byte { return p.slot.bytes()[p.from:p.to] }

// writePieces lends and sends parts of slots, in one write, at most maxPieces of them.
func (c *Conn) writePieces(list []piece) error {
	const record = headerSize + regionSize
	var room [maxPieces * record]byte
	body := room[:0]
	bytes := 0
	for _, p := range list {
		var err error
		if body, err = (Record{Kind: KindRegion, Offset: uint64(p.offset()), Size: p.size()}).Append(body); err != nil {
			return err
		}
		bytes += p.size()
	}
	n, lent := 0, 0
	var err error
	for lent < len(list) && list[lent].slot.lend(list[lent].offset()) {
		lent++
	}
	if lent < len(list) {
		err = errs.E(errs.Closed, errs.Caller, "write to", c.name(), nil)
	}
	if err == nil {
		n, err = c.writeRefs(body, len(list))
	}
	if err != nil {
		// What the plugin has a whole record of, it gives back itself.
		for _, p := range list[n/record : lent] {
			p.slot.unlend(p.offset())
		}
		return err
	}
	c.counters.MemoryOut.Add(uint64(bytes))
	return nil
}

// maxPieces is how many regions are sent in one write at the most; a new stream has
// credit for them.
const maxPieces = MinWindow / RefCost

// Loans are the regions of a host's memory that streams of this process have been
// lent, on the plugin's side. Whoever has read one gives it back with Region.Free; the
// owner of the Loans tells the host. Methods may be called from any goroutine.
type Loans struct {
	m     *memory.Memory
	ready chan struct{}
	out   atomic.Int64 // regions that have not come back
	held  atomic.Int64 // bytes of those that were handed out

	mu   sync.Mutex
	back []uint64 // offsets of regions that the host has not been told of
}

// NewLoans is for the memory that the host has made. It remains the caller's.
func NewLoans(m *memory.Memory) *Loans { return &Loans{m: m, ready: make(chan struct{}, 1)} }

// Memory is where the regions are.
func (l *Loans) Memory() *memory.Memory { return l.m }

// Ready has room for one; something is in it when there is something to take that was
// not there before.
func (l *Loans) Ready() <-chan struct{} { return l.ready }

// Take appends the offsets of all regions that were given back since the last call.
func (l *Loans) Take(to []uint64) []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	to = append(to, l.back...)
	l.back = l.back[:0]
	return to
}

// Waiting is how many Take would give.
func (l *Loans) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.back)
}

// lent makes a region of what the host has named. The error says that there is no
// such memory.
func (l *Loans) lent(offset uint64, size int) (*Region, error) {
	if !l.m.Contains(offset, size) {
		return nil, fmt.Errorf("region: range is %d bytes at %d, and the memory has %d", size, offset, l.m.Size())
	}
	r := &Region{of: l, offset: offset, size: size, mapped: l.m.Hold()}
	r.uses.Store(1)
	l.out.Add(1)
	return r, nil
}

// hold counts a region that is being handed out.
func (l *Loans) hold(r *Region) *Region {
	r.held = true
	l.held.Add(int64(r.size))
	return r
}

// scarce reports whether so much is handed out that it is better copied and given back
// than kept.
func (l *Loans) scarce() bool { return l.held.Load() >= int64(l.m.Size())/2 }

func (l *Loans) give(r *Region) {
	l.out.Add(-1)
	if r.held {
		l.held.Add(-int64(r.size))
	}
	l.mu.Lock()
	l.back = append(l.back, r.offset)
	l.mu.Unlock()
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// A Region is bytes of a stream in the host's memory. Who has it may read them until
// he calls Free; who passes it on to another one calls Ref for him. The host uses the
// memory again when all have called Free. Regions may be shared among goroutines.
type Region struct {
	of     *Loans
	offset uint64
	size   int
	mapped bool // false if the memory was closed before
	held   bool // it is counted in Loans.held
	uses   atomic.Int32
}

// Bytes are what is in it, to be read only; nil if the memory has been closed.
func (r *Region) Bytes() []byte {
	if !r.mapped {
		return nil
	}
	return r.of.m.Bytes(int(r.offset), r.size)
}

// Ref makes one more Free necessary.
func (r *Region) Ref() { r.uses.Add(1) }

// Free lets go of the region; Bytes are not to be used afterwards.
func (r *Region) Free() {
	if r.uses.Add(-1) != 0 {
		return
	}
	if r.mapped {
		r.of.m.Release()
	}
	r.of.give(r)
}
