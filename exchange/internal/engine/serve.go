package engine

import (
	"slices"
	"time"

	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	lookupSize    = 256     // addresses in one Lookup
	messageBlocks = 20      // blocks in one message, at most (protocol note 13)
	messageBytes  = 1 << 20 // bytes of blocks in one message, unless a block alone is larger

	firstMessage = 256 << 10             // bytes of blocks in a message to a peer that is not known to be fast
	messageTime  = 25 * time.Millisecond // that a larger message may take
	takesSpan    = 50 * time.Millisecond // over how long it is measured what a peer takes

	messagesAhead = 1  // messages of blocks under way to one peer beyond one a stream: those are written while the next is read
	maxPassed     = 64 // asks that may be served before one that came first
)

// A flight is one message of blocks on its way.
type flight struct {
	message uint64
	asks    []*ask
	bytes   int
}

// crowded reports whether as many messages of blocks are under way to the peer as
// may be.
func (p *peerCtx) crowded() bool { return len(p.flying) >= max(p.streams, 1)+messagesAhead }

// wide reports whether the peer has as many messages of blocks under way as one stream
// takes, or more.
func (p *peerCtx) wide() bool { return len(p.flying) > messagesAhead }

// message is how many bytes of blocks a message to the peer has, unless a block alone is
// larger. What comes first in a message can be used, and handed on in a crowd, when the
// last has come, so a message is not long; but one costs something at either end, which
// counts where a lot goes through.
func (p *peerCtx) message() int {
	return min(max(firstMessage, int(p.takes*messageTime.Seconds())), messageBytes)
}

// wrote notes that a message has been written to the peer.
func (p *peerCtx) wrote(now time.Time, bytes int) {
	p.written += bytes
	if t := now.Sub(p.writing); t >= takesSpan {
		r := float64(p.written) / t.Seconds()
		if p.takes == 0 {
			p.takes = r
		} else {
			p.takes += (r - p.takes) / 2
		}
		p.writing, p.written = now, 0
	}
}

// look has the store asked about what a peer wants. One Lookup a peer is under
// way at a time, and none while it does not take our answers: what it costs us
// to be asked is bounded by what it takes to read.
func (e *Engine) look(p *peerCtx) {
	if p.looking || p.paused || len(p.presences) >= 4*listEntries {
		return
	}
	n := min(p.asks[unlooked].len, lookupSize)
	if n == 0 {
		return
	}
	l := Lookup{Peer: p.id, Epoch: p.epoch, Addresses: make([]wire.Address, 0, n)}
	for range n {
		x := p.asks[unlooked].head
		l.Addresses = append(l.Addresses, x.address)
		x.move(looking)
	}
	p.looking = true
	e.act(l)
}

// looked answers a peer by what the store says.
func (e *Engine) looked(p *peerCtx, ev Looked) {
	p.looking = false
	for _, it := range ev.Items {
		x := e.ledger.find(p, it.Address)
		if x == nil || x.state != looking {
			continue // taken back, and perhaps asked anew
		}
		switch {
		case it.Held:
			e.holds(x, it.Size)
		case x.again:
			x.again = false
			x.move(unlooked)
		default:
			e.lacks(x)
		}
	}
	// What the store could not tell of stands as if we did not have it, and nothing
	// is said: it is looked up again when the peer repeats it.
	for x := p.asks[looking].head; x != nil; x = p.asks[looking].head {
		x.again = false
		x.move(absent)
	}
	e.look(p)
	e.enqueue(p)
}

// holds answers an ask whose block we have.
func (e *Engine) holds(x *ask, size int) {
	if !x.block {
		if e.present(x.peer, x.address, wire.Have) {
			e.ledger.remove(x)
		} else {
			x.move(unlooked) // it is told when it takes our answers again
		}
		return
	}
	x.again, x.size = false, size
	x.move(queued)
}

// lacks answers an ask whose block we do not have. It stands until we do.
// "Don't have" is said only if it was asked for, and once: the reference takes
// it for "have" (protocol note 6).
func (e *Engine) lacks(x *ask) {
	if x.dontHave && !e.present(x.peer, x.address, wire.DontHave) {
		x.move(unlooked) // it is told when it takes our answers again
		return
	}
	x.dontHave = false
	x.move(absent)
}

// stored serves those who wait for blocks that we have now, and hands the blocks
// to getters that wait for them.
func (e *Engine) stored(list []Block) {
	for i, b := range list {
		e.early(b.Address, i, b.Size)
		if w := e.wants[b.Address]; w != nil {
			e.deliver(w, nil, i, b.Size)
		}
		for x := e.ledger.byAddress[b.Address]; x != nil; {
			next := x.other
			e.arrived(x, b.Size)
			x = next
		}
	}
}

// arrived is called when a block that was asked for is in the store now.
func (e *Engine) arrived(x *ask, size int) {
	switch x.state {
	case looking, flying:
		x.again = true
	case absent:
		p := x.peer
		if e.cfg.Filtered {
			x.move(unlooked)
			e.look(p)
			return
		}
		e.holds(x, size)
		e.enqueue(p)
	}
}

// storedLeaves has leaves looked up again that are in the store now.
func (e *Engine) storedLeaves(w wire.Want) {
	wake := func(x *ask) {
		switch x.state {
		case looking, flying:
			x.again = true
		case absent:
			x.move(unlooked)
			e.look(x.peer)
		}
	}
	if w.Len() <= listEntries {
		for _, r := range w.Indices {
			for i := r.First; i < r.End(); i++ {
				for x := e.ledger.byAddress[wire.Leaf(w.Root, i)]; x != nil; x = x.other {
					wake(x)
				}
			}
		}
		return
	}
	for _, p := range e.order {
		for _, s := range []askState{looking, flying, absent} {
			for x := p.asks[s].head; x != nil; {
				next := x.next
				if w.Contains(x.address) {
					wake(x)
				}
				x = next
			}
		}
	}
}

// enqueue gives a peer a place among those that are served in turn, if there is
// something to serve it. Having waited for nothing earns it nothing: it is charged
// at least what whoever was served last was charged before.
func (e *Engine) enqueue(p *peerCtx) {
	if p.inTurn || p.paused || !p.up || p.asks[queued].len == 0 || p.crowded() {
		return
	}
	p.inTurn = true
	p.charge = max(p.charge, e.charged)
	e.serving = append(e.serving, p)
}

// serve sends messages of blocks until there is as much in memory as there may
// be. The next goes to the peer that was sent least: each is charged what it is
// sent, divided by its share, and what it got too much in one turn it waits for in
// the next (deficit round robin). The second half of the memory is for peers with no
// more under way than one stream takes, so that a few that have several streams, and
// do not read, are not in the way of everybody.
func (e *Engine) serve() {
	for e.flying < e.cfg.ServingBytes {
		next := -1
		for i, p := range e.serving {
			if e.flying >= e.cfg.ServingBytes/2 && p.wide() {
				continue
			}
			if next < 0 || p.charge < e.serving[next].charge {
				next = i
			}
		}
		if next < 0 {
			return
		}
		p := e.serving[next]
		e.serving = slices.Delete(e.serving, next, next+1)
		p.inTurn = false
		if !p.up || p.paused || p.asks[queued].len == 0 {
			continue
		}
		e.charged = max(e.charged, p.charge)
		p.charge += float64(e.fly(p)) / float64(p.share)
		e.enqueue(p)
	}
}

// fly sends one message of blocks to a peer, and returns how many bytes.
func (e *Engine) fly(p *peerCtx) int {
	e.message++
	s := SendBlocks{Peer: p.id, Epoch: p.epoch, Message: e.message}
	f := flight{message: e.message}
	if len(p.flying) == 0 {
		p.writing, p.written = e.now, 0
	}
	for x := e.rarest(p); x != nil && len(f.asks) < messageBlocks; x = e.rarest(p) {
		if len(f.asks) > 0 && f.bytes+x.size > p.message() {
			break
		}
		f.bytes += x.size
		f.asks = append(f.asks, x)
		s.Blocks = append(s.Blocks, Block{Address: x.address, Size: x.size})
		x.again = false
		x.move(flying)
		if x.before != nil || x.other != nil {
			e.ledger.serves(x.address)
		}
	}
	p.flying = append(p.flying, f)
	e.flying += f.bytes
	e.act(s)
	return f.bytes
}

// rarest finds what a peer is to be sent next: of the first that wait, what was
// sent to others least often, so that they have something to give each other. No
// ask is passed over more than some times.
func (e *Engine) rarest(p *peerCtx) *ask {
	head := p.asks[queued].head
	if head == nil || head.passed >= maxPassed {
		return head
	}
	best, least := head, e.ledger.timesServed(head.address)
	for x, n := head.next, 0; x != nil && n < maxPassed && least > 0; x, n = x.next, n+1 {
		if k := e.ledger.timesServed(x.address); k < least {
			best, least = x, k
		}
	}
	if best != head {
		head.passed++
	}
	return best
}

// landed is called when a message of blocks has been written, or has failed.
func (e *Engine) landed(p *peerCtx, ev Sent) {
	i := slices.IndexFunc(p.flying, func(f flight) bool { return f.message == ev.Message })
	if i < 0 {
		return
	}
	f := p.flying[i]
	p.flying = slices.Delete(p.flying, i, i+1)
	e.flying -= f.bytes
	if ev.OK {
		p.wrote(e.now, f.bytes)
	}
	for _, x := range f.asks {
		gone := slices.Contains(ev.Missing, x.address) // of 20 at most
		switch {
		case x.over && (gone || !ev.OK):
			e.ledger.remove(x)
		case gone && x.again:
			x.again = false
			x.move(unlooked)
		case gone:
			e.lacks(x)
		case !ev.OK && !x.block:
			x.move(unlooked) // it is not asked for as a block any more
		case !ev.OK:
			x.move(queued) // it is not lost: the peer gets it when it can be reached
		default:
			p.stats.BlocksSent++
			p.stats.BytesSent += uint64(x.size)
			e.stats.BlocksSent++
			e.stats.BytesSent += uint64(x.size)
			e.ledger.remove(x)
		}
	}
	e.enqueue(p)
	e.appraise(p)
}
