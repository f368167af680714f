package engine

import (
	"time"

	"github.com/codexchange/codexchange/exchange/wire"
)

// minGrace is the least time that a peer asked on trust is left when another
// peer has announced the block.
const (
	minGrace = 10 * time.Millisecond
	maxGrace = time.Second
)

// presences takes in what a peer says it has. Words about what is not wanted
// are not kept, so that what is recorded of a peer is always a part of what we
// want (protocol note 7).
func (e *Engine) presences(p *peerCtx, list []wire.Presence) {
	for _, pr := range list {
		w := e.wants[pr.Address]
		if w == nil || !p.usable() {
			e.stats.UnwantedPresences++
			continue
		}
		if pr.Type == wire.Have {
			e.haveIn(w, p, pr.Price)
		} else {
			e.dontHaveIn(w, p)
		}
	}
}

func (e *Engine) haveIn(w *want, p *peerCtx, price wire.Price) {
	e.stats.HavesReceived++
	l := e.know(w, p)
	if l.says == sentBad {
		return
	}
	if l.toldAt.IsZero() {
		l.toldAt = e.now // it came unasked
	}
	if e.cfg.MaxPrice != nil && price.Compare(*e.cfg.MaxPrice) > 0 {
		e.dear(w, l)
		return
	}
	first := l.says != has
	p.shown = true
	crowd := l.crowd
	if first {
		for _, g := range w.getters {
			m := g.session.join(p)
			m.become(m.trust, m.fellow && p.asking > 0)
			m.hit()
			crowd = crowd || m.crowd && !p.expelled
		}
		e.gave(p)
	}
	l.announce(price, crowd)
	if w.peer == p && w.guessed != nil {
		w.guessed.guesses-- // it is known now
		w.guessed, w.hurry = nil, false
	}
	switch {
	case w.state == seeking || w.state == left && (crowd || w.to == p):
		e.rest(w)
		e.place(w)
	case w.state == asked && w.peer != p && w.guessed != nil && !w.hurry:
		// The peer that was asked on trust gets as long again as this one took
		// to announce the block, beside what it needs for everything it is asked
		// for, and then this one is asked.
		w.hurry = true
		grace := min(max(2*e.now.Sub(l.toldAt), minGrace), maxGrace) + w.peer.backlog()
		if at := e.now.Add(grace); at.Before(w.timer.at) {
			e.timers.start(&w.timer, at)
		}
	}
}

// dear notes that a peer asks more than we pay. It is not asked on trust again, for
// its price would not be known.
func (e *Engine) dear(w *want, l *link) {
	l.say(tooDear)
	e.cancel(l)
	for _, g := range w.getters {
		g.session.join(l.peer).rely(0)
		e.doubt(g.session)
	}
	if w.state == asked && w.peer == l.peer {
		e.rest(w)
		e.place(w)
	}
}

func (e *Engine) dontHaveIn(w *want, p *peerCtx) {
	e.stats.DontHavesReceived++
	l := w.link(p)
	if l == nil || l.says == sentBad || l.says == hasNot {
		return // it was not asked, or says so again
	}
	broken := l.says == has
	l.say(hasNot)
	if broken {
		e.expel(p)
	}
	if w.state == asked && w.peer == p {
		e.refused(w, l)
		return
	}
	if m := w.owner().session.member(p); m != nil {
		e.missed(w.owner().session, m)
	}
	if w.state == left && w.to == p && !e.asksFor(p, w.address) {
		e.rest(w)
		e.place(w)
		return
	}
	switch {
	case (w.state == ready || w.state == left) && !e.announced(w) && !e.proven(w, w.owner().session):
		e.rest(w)
		e.place(w)
	case w.state == seeking && e.hopeless(w):
		e.hasten(w.owner().session)
	}
}

// missed takes a miss into a session: a member that misses all the time leaves,
// unless it is the last, and wants that relied on it are placed anew.
func (e *Engine) missed(s *session, m *member) {
	was := m.proven()
	m.miss()
	if m.misses >= maxMisses && len(s.members) > 1 && m.guesses == 0 {
		s.leave(m.peer)
	}
	if was && !m.proven() {
		e.doubt(s)
	}
}

// refused puts a want that its peer did not serve where it belongs next.
func (e *Engine) refused(w *want, l *link) {
	s := w.owner().session
	m := w.guessed
	if m == nil {
		m = s.member(l.peer)
	}
	e.rest(w)
	if m != nil {
		e.missed(s, m)
	}
	e.place(w)
}

// blocks takes in the blocks of one message. Each is handed to all who wait for
// it; what nobody waits for is counted, and what failed verification is asked of
// somebody else.
func (e *Engine) blocks(p *peerCtx, ev BlocksIn) {
	for i, b := range ev.Blocks {
		e.received(p, b)
		early := e.early(b.Address, i, b.Size)
		if w := e.wants[b.Address]; w != nil {
			e.blockIn(w, p, i, b.Size)
		} else if !early {
			e.unwanted(p, b)
		}
	}
	for _, b := range ev.Unwanted {
		e.received(p, b)
		e.unwanted(p, b)
	}
	for _, a := range ev.Bad {
		e.badIn(p, a)
	}
	e.appraise(p)
}

func (e *Engine) received(p *peerCtx, b Block) {
	p.stats.BlocksReceived++
	p.stats.BytesReceived += uint64(b.Size)
	e.stats.BlocksReceived++
	e.stats.BytesReceived += uint64(b.Size)
}

// unwanted counts a block that nobody waits for: a duplicate if the peer was
// asked for it once, and else something it sent of its own accord.
func (e *Engine) unwanted(p *peerCtx, b Block) {
	if p.cancelled.has(b.Address) {
		e.stats.DuplicateBlocks++
		e.stats.DuplicateBytes += uint64(b.Size)
		p.stats.Duplicates++
		return
	}
	e.stats.UnrequestedBlocks++
	p.stats.Unrequested++
}

func (e *Engine) blockIn(w *want, p *peerCtx, ref, size int) {
	p.shown, p.expelled = true, false
	l := w.link(p)
	if l == nil || l.told != toldBlock {
		e.stats.UnrequestedBlocks++ // welcome all the same: it is what we want
		p.stats.Unrequested++
	}
	for _, g := range w.getters {
		m := g.session.join(p)
		if w.guessed == m {
			m.hit()
		}
		m.misses = 0
	}
	e.move(w.owner().session)
	if w.peer == p {
		p.delivered(e.now, w.askedAt, size, w.alone)
		if p.rate > 0 {
			e.rate += (p.rate - e.rate) / 8
		}
	} else if l != nil && l.told == toldBlock {
		// It was given up too early, or is served from a want-block that stood.
		p.delivered(e.now, l.toldAt, size, false)
	}
	// The peer that has the want now, if it is another, is told by end.
	e.deliver(w, p, ref, size)
}

// badIn takes in a block that was not what it was called. The peer is not asked
// for it again, and after a few of them for nothing at all; it stays connected.
func (e *Engine) badIn(p *peerCtx, a wire.Address) {
	e.stats.BadBlocks++
	p.stats.Bad++
	w := e.wants[a]
	if w == nil || w.link(p) == nil {
		return // unasked: it proves nothing about what was asked for
	}
	p.bad++
	l := w.link(p)
	l.say(sentBad)
	if p.bad == maxBad {
		e.stats.PeersShunned++
		e.release(p, sentBad)
	}
	if p.bad >= maxBad {
		return
	}
	switch {
	case w.state == asked && w.peer == p:
		e.refused(w, l)
	case (w.state == ready || w.state == left) && !e.announced(w) && !e.proven(w, w.owner().session):
		e.rest(w)
		e.place(w)
	}
}

// due is called when a peer may have left a want unanswered.
func (w *want) due(e *Engine) {
	if w.state == left {
		e.dueLeft(w)
		return
	}
	p := w.peer
	if p == nil {
		return
	}
	if e.hedge(w) {
		return
	}
	if !w.lateAt.IsZero() && !e.now.Before(w.lateAt) {
		e.move(w.owner().session) // where nothing comes at all, nothing else would
	}
	limit := p.patience()
	last := w.askedAt
	if p.lastIn.After(last) {
		last = p.lastIn
	}
	// As long as blocks keep coming the want waits its turn, but not for ever:
	// some time beyond what everything asked of the peer should take.
	turn := 8 * limit
	if p.rate > 0 {
		turn = 2*limit + 4*p.backlog()
	}
	if !w.hurry && e.now.Sub(last) < limit && e.now.Sub(w.askedAt) < turn {
		// The request may come near its end before the peer's time is over.
		at := last.Add(limit)
		if again := e.now.Add(max(w.lateAt.Sub(w.askedAt), minLate)); !w.lateAt.IsZero() && again.Before(at) {
			at = again
		}
		e.timers.start(&w.timer, at)
		return
	}
	e.timedOut(w)
}

const (
	tail      = 16 // wants that a request has left when it is near its end
	maxHedges = 16 // wants of a request that are asked of a second peer
)

// nearEnd reports whether the request waits for its last blocks.
func (g *getter) nearEnd() bool { return g.active <= tail && !g.more() }

// hedge asks a second peer for one of the last blocks of a request, if the first is
// late. The first is not told: the block may be on its way, and who delivers second
// is the one that hears it is over.
func (e *Engine) hedge(w *want) bool {
	g := w.owner()
	if w.lateAt.IsZero() || e.now.Before(w.lateAt) || w.hurry || g.hedges >= maxHedges || !g.nearEnd() || g.full(e) {
		return false
	}
	first := w.peer
	wait := e.now.Sub(w.askedAt).Seconds()
	var best *peerCtx
	consider := func(p *peerCtx) {
		if l := w.link(p); p == first || p.answer == 0 || !p.room() || l != nil && max(l.told, l.queued) == toldBlock {
			return
		}
		if cost := p.expect(e.now, w.size, e.rate); cost < wait {
			best, wait = p, cost
		}
	}
	for _, l := range w.links {
		if l.says == has {
			consider(l.peer)
		}
	}
	for _, m := range g.session.members {
		if m.proven() && m.guesses < m.trust && e.guessable(w, m.peer) {
			consider(m.peer)
		}
	}
	if best == nil {
		return false
	}
	g.hedges++
	e.stats.Hedged++
	e.ask(w, best)
	w.lateAt = time.Time{} // two are enough
	return true
}

// timedOut takes silence for "don't have". If another peer can be asked, this one
// is told that it is over; otherwise its want-block stands, for it may still
// come.
func (e *Engine) timedOut(w *want) {
	e.stats.TimedOut++
	p, l, s := w.peer, w.link(w.peer), w.owner().session
	m := s.member(p)
	l.say(tooSlow)
	hurried := w.hurry
	e.rest(w)
	switch {
	case hurried && m != nil:
		e.missed(s, m)
	case hurried:
	default:
		p.stalled()
		if e.now.Sub(p.lastIn) > firstPatience {
			e.expel(p)
		}
		if m != nil {
			m.misses++
			m.rely(0)
			e.doubt(s)
		}
	}
	if e.announced(w) || e.proven(w, s) {
		e.cancel(l)
	}
	e.place(w)
}

// release takes everything back that a peer is asked for, because it has left
// or is not to be asked any more. Says becomes its word on all of it.
func (e *Engine) release(p *peerCtx, says word) {
	for _, l := range p.links {
		l.say(says)
	}
	for _, s := range e.live {
		s.leave(p)
	}
	for w := p.asked.head; w != nil; w = p.asked.head {
		if says == sentBad {
			e.cancel(w.link(p))
		}
		e.rest(w)
		e.place(w)
	}
	e.takeBack(p)
	for _, s := range e.live {
		e.doubt(s)
	}
}
