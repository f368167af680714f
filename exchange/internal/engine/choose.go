package engine

import (
	"slices"
)

const (
	guessCost   = 1.5 // a peer asked on trust counts as this much slower
	randomPeers = 8   // peers that have shown nothing and are told at a time, beside many that have
)

// place puts a resting want where it belongs: among the ready if some peer can
// be asked for it, now or when it has room, and else among the seeking. Peers
// whose answer would help are told want-have.
func (e *Engine) place(w *want) {
	e.adopt(w)
	g := w.owner()
	s := g.session
	e.meet(w)
	switch {
	case e.announced(w):
		if s.fellows > 0 {
			e.tellMembers(w, s)
		}
	case e.proven(w, s):
		// The other members may have it all the same, and come to be trusted again.
		e.tellMembers(w, s)
	default:
		// Others are told when nobody is left who might still answer; that some
		// refuse is no reason to ask everybody there is.
		if e.hopeless(w) {
			e.broadcast(w, s)
		}
		if p := e.trial(w, s); p != nil {
			e.ask(w, p)
			return
		}
		w.state = seeking
		s.seeking.push(w)
		e.seek(s)
		return
	}
	if p := e.heir(w); p != nil {
		e.leave(w, p)
		return
	}
	w.state, w.askedAt = ready, e.now
	g.ready.push(w)
	w.offer(+1)
	if !g.inTurn {
		g.inTurn = true
		e.turns = append(e.turns, g)
	}
}

func (e *Engine) tellMembers(w *want, s *session) {
	for _, m := range s.members {
		if !m.proven() {
			e.tellHave(w, m.peer)
		}
	}
}

// doubt remembers that ready wants of a session may have lost the peer that was to
// be asked.
func (e *Engine) doubt(s *session) {
	if !s.stale {
		s.stale = true
		e.stale = append(e.stale, s)
	}
}

// reconsider places wants anew that nobody can be asked for any more, though they
// are ready or left to a fellow. That may bring further doubts.
func (e *Engine) reconsider() {
	for len(e.stale) > 0 {
		e.doubts++
		for _, s := range e.stale {
			s.stale, s.doubted = false, e.doubts
		}
		e.stale = e.stale[:0]
		for _, g := range slices.Clone(e.turns) {
			if g.session.doubted == e.doubts {
				e.replace(g.ready.head)
			}
		}
		if e.leaving == 0 {
			continue
		}
		for _, p := range e.order {
			e.replace(p.left.head)
		}
	}
}

// replace does so with the wants of a list, from w on, that are of doubted sessions.
func (e *Engine) replace(w *want) {
	for w != nil {
		next := w.next
		if s := w.owner().session; s.doubted == e.doubts && !e.announced(w) && !e.proven(w, s) {
			e.rest(w)
			e.place(w)
		}
		w = next
	}
}

// announced reports whether a peer that may be asked has announced the block.
func (e *Engine) announced(w *want) bool {
	for _, l := range w.links {
		if l.says == has && l.peer.usable() {
			return true
		}
	}
	return false
}

// guessable reports whether it makes sense to ask p for w without knowing
// whether it has it.
func (e *Engine) guessable(w *want, p *peerCtx) bool {
	if !p.usable() || e.asksFor(p, w.address) {
		return false
	}
	l := w.link(p)
	return l == nil || l.says == nothing && l.told != toldBlock
}

// proven reports whether a member of the session may be asked for w without
// being probed, because that went well before.
func (e *Engine) proven(w *want, s *session) bool {
	for _, m := range s.members {
		if m.proven() && e.guessable(w, m.peer) {
			return true
		}
	}
	return false
}

// trial finds a peer that may be asked for one want to see how it does, among those
// that are told want-have: a member that has not shown anything yet, or another,
// which joins. Those that delivered lately, to whatever session, come first.
func (e *Engine) trial(w *want, s *session) *peerCtx {
	if w.owner().full(e) {
		return nil
	}
	var best *peerCtx
	for _, l := range w.links {
		p := l.peer
		if l.says != nothing || l.told == toldBlock || !p.room() || e.asksFor(p, w.address) {
			continue
		}
		if m := s.member(p); m != nil && m.guesses >= m.trust {
			continue
		}
		if best == nil || p.lastIn.After(best.lastIn) {
			best = p
		}
	}
	if best != nil {
		s.join(best)
	}
	return best
}

// broadcast tells want-have to members first, then to those that are near, and
// then to other connected peers, up to the bound, which does not count who is near.
// In a large neighbourhood those come first that have shown that they have
// something, and of the others a few are told, picked at random. Who was told
// before is not told again.
func (e *Engine) broadcast(w *want, s *session) {
	n, most := 0, e.cfg.BroadcastPeers
	for _, m := range s.members {
		if n < most && e.tellHave(w, m.peer) {
			n++
		}
	}
	shown := false
	for _, p := range e.order {
		switch {
		case p.near:
			e.tellHave(w, p)
		case p.shown && n < most:
			shown = true
			if e.tellHave(w, p) {
				n++
			}
		}
	}
	if n >= most {
		return
	}
	from := 0
	if shown && len(e.order) > most {
		most = min(most, n+randomPeers)
		from = e.rand.IntN(len(e.order))
	}
	for i := range e.order {
		if n >= most {
			return
		}
		if e.tellHave(w, e.order[(from+i)%len(e.order)]) {
			n++
		}
	}
}

// schedule asks for ready wants as long as peers have room, taking one of each
// getter in turn, so that a small request is not kept waiting by a large one.
func (e *Engine) schedule() {
	if len(e.turns) > 2*len(e.getters)+64 { // most of them have ended since
		e.turns = slices.DeleteFunc(e.turns, func(g *getter) bool {
			g.inTurn = g.ready.len > 0
			return !g.inTurn
		})
	}
	if len(e.turns) == 0 {
		return
	}
	e.pass++
	e.able = e.able[:0]
	for _, p := range e.order {
		if p.able() {
			e.able = append(e.able, p)
		}
	}
	for idle := 0; idle < len(e.turns) && e.hope(); {
		g := e.turns[0]
		e.turns = e.turns[1:]
		w, p := e.pick(g)
		if w != nil {
			e.ask(w, p)
			idle = 0
		} else if g.full(e) && e.handOver(g) {
			idle = 0
		} else {
			idle++
		}
		if g.ready.len > 0 {
			e.turns = append(e.turns, g)
		} else {
			g.inTurn = false
			idle = max(0, idle-1)
		}
	}
}

// hope reports whether some peer is still able to be asked for something.
func (e *Engine) hope() bool {
	for n := len(e.able); n > 0; n-- {
		if e.able[n-1].able() {
			return true
		}
		e.able = e.able[:n-1]
	}
	return false
}

// pick finds the next want of a getter that can be asked now, and of whom. What
// could not be asked stays so for the rest of the pass, as peers only lose room
// in it: it is not looked at twice.
func (e *Engine) pick(g *getter) (*want, *peerCtx) {
	if g.full(e) {
		return nil, nil
	}
	w := g.ready.head
	if g.pass == e.pass && g.tried != nil {
		w = g.tried.next
	} else {
		g.pass, g.tried = e.pass, nil
	}
	for ; w != nil; w = w.next {
		if p := e.choose(w); p != nil {
			return w, p
		}
		g.tried = w
	}
	return nil, nil
}

// choose picks the peer to ask for w: of those that have room, the one that is
// expected to deliver first, with a little chance mixed in so that a peer gets
// to show that it is faster than it was. Those that announced it come before
// those that are only trusted; among peers about equally fast the cheaper wins.
func (e *Engine) choose(w *want) *peerCtx {
	s, crowd := w.owner().session, w.inCrowd()
	var best *link
	var bestPeer *peerCtx
	var bestCost float64
	consider := func(p *peerCtx, l *link, factor float64) {
		cost := p.expect(e.now, s.size, e.rate) * factor * (1 + 0.2*e.rand.Float64())
		if bestPeer != nil {
			near := cost < bestCost*1.25 && bestCost < cost*1.25
			if c := comparePrice(l, best); near && c != 0 {
				if c > 0 {
					return
				}
			} else if cost >= bestCost {
				return
			}
		}
		best, bestPeer, bestCost = l, p, cost
	}
	known := false
	for _, l := range w.links {
		if l.says == has && l.peer.usable() {
			known = true
			if l.crowd == crowd && l.peer.room() {
				consider(l.peer, l, 1)
			}
		}
	}
	if crowd {
		return bestPeer
	}
	for _, m := range s.members {
		if m.guesses < m.trust && !m.fellow && m.peer.room() && e.guessable(w, m.peer) && !(known && probed(w, m.peer)) {
			consider(m.peer, nil, guessCost)
		}
	}
	return bestPeer
}

// probed reports whether p was told want-have. If it keeps silent where others
// answer, it hardly has the block, and has better things to do than to be asked.
func probed(w *want, p *peerCtx) bool {
	l := w.link(p)
	return l != nil && max(l.told, l.queued) >= toldHave
}

func comparePrice(a, b *link) int {
	var pa, pb [32]byte
	if a != nil && a.price != nil {
		pa = *a.price
	}
	if b != nil && b.price != nil {
		pb = *b.price
	}
	return slices.Compare(pa[:], pb[:])
}

// ask sends want-block for a ready want to a peer. A peer that is not known to
// have the block and has not yet shown that it usually does is told want-have
// in front of it: the reference answers that one, and never says that it lacks
// a block it was asked for (protocol note 10).
func (e *Engine) ask(w *want, p *peerCtx) {
	g := w.owner()
	e.rest(w)
	for _, l := range w.links {
		if l.peer != p && l.told == toldBlock && l.says == hasNot && e.asksFor(l.peer, w.address) {
			// It will have the block soon, and would send it though we have it by then.
			e.cancel(l)
			e.tellHave(w, l.peer)
		}
	}
	l := e.know(w, p)
	alone := p.asked.len == 0
	if l.says != has {
		if m := g.session.member(p); m != nil {
			w.guessed = m
			m.guesses++
			if !m.proven() {
				e.tellHave(w, p)
				e.lookOut(g.session)
			}
		}
	}
	w.state, w.peer, w.askedAt, w.size = asked, p, e.now, g.session.size
	w.lateAt = p.lateAt(e.now, w.size)
	p.asked.push(w)
	p.load += w.size
	p.fill()
	g.load += w.size
	w.alone = alone
	if alone {
		p.remeasure()
	}
	at := e.now.Add(p.patience())
	if w.lateAt.Before(at) {
		at = w.lateAt
	}
	e.timers.start(&w.timer, at)
	e.tellBlock(l)
	e.stats.Asked++
	p.stats.Asked++
}
