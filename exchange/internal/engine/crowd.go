package engine

import (
	"encoding/binary"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// A fellow is a peer that asks us for what we want ourselves. Its asks stand in the
// ledger: they say what it has not got, and that it will have it. If everybody in
// a crowd fetched everything from the one who has it, in the same order, nobody
// would ever have what another lacks. So a want that only sources can serve, peers
// that have it anyway, is left to one of those who want it, the same one for all who
// know of each other; that one hands it on. What somebody in the crowd has is asked
// for there.
//
// Nothing hangs on the others. What was left to a fellow that shows no progress is
// taken back, and of one that has fallen far behind what it gets to last (poach).
// Work moves from slow peers to fast ones that have little to do (relieve). A fellow
// that announces and does not deliver counts for no more than others (expel).

const (
	maxFellows = 16                     // fellows that are told that we want what they want
	minTrust   = time.Second            // how long a fellow may show nothing, at least
	minPace    = 500 * time.Millisecond // before which nobody is slow
	maxMoved   = 8                      // wants that are moved in one step
	muchFaster = 8                      // how many times faster a peer is that takes over from another
	fellBehind = 4                      // how many times slower a peer is that another does work for
)

// asksFor reports whether a peer asks us for what we want, and so has it not.
func (e *Engine) asksFor(p *peerCtx, a wire.Address) bool {
	return p.asking > 0 && e.ledger.find(p, a) != nil
}

// meet tells fellows that we want what they do, so that they announce it when they
// have it.
func (e *Engine) meet(w *want) {
	n := 0
	for x := e.ledger.byAddress[w.address]; x != nil && n < maxFellows; x = x.other {
		if x.peer.usable() {
			e.befriend(w.owner().session, x.peer)
			e.tellHave(w, x.peer)
			n++
		}
	}
}

// joined is called when a peer asks us for something. If we want it ourselves, the
// peer is a fellow, unless there are many already.
func (e *Engine) joined(p *peerCtx, a wire.Address) {
	w := e.wants[a]
	if w == nil || !p.usable() {
		return
	}
	n := 0
	for x := e.ledger.byAddress[a]; x != nil; x = x.other {
		if n++; n > maxFellows {
			return
		}
	}
	for _, g := range w.getters {
		e.befriend(g.session, p)
	}
	e.tellHave(w, p)
	if w.state == ready {
		if to := e.heir(w); to != nil {
			e.rest(w)
			e.leave(w, to)
		}
	}
}

// befriend notes that a peer wants what a session wants. It is not asked on trust
// for what it has not announced.
func (e *Engine) befriend(s *session, p *peerCtx) {
	m := s.join(p)
	if m.fellow {
		return
	}
	if m.proven() {
		e.doubt(s)
	}
	m.crowd = true
	m.become(m.trust, true)
}

// expel has a peer that did not deliver what it was to have count as one that has it
// anyway, so that nobody else is passed over for it, until it delivers something.
func (e *Engine) expel(p *peerCtx) {
	p.slack, p.expelled = true, true
	e.takeBack(p)
	for _, s := range e.live {
		if m := s.member(p); m != nil {
			m.crowd = false
		}
	}
	for _, l := range p.links {
		if !l.crowd {
			continue
		}
		if l.want.state == ready {
			l.want.offer(-1)
		}
		l.crowd = false
		if l.want.state == ready {
			l.want.offer(+1)
		}
	}
}

// heir finds the fellow that a want is to be left to: the one that all who know of
// each other agree on, if it is not us. It knows that we want it, so it will say when it
// has it.
func (e *Engine) heir(w *want) *peerCtx {
	first := e.ledger.byAddress[w.address]
	s := w.owner().session
	if first == nil && s.fellows == 0 {
		return nil
	}
	if w.inCrowd() {
		return nil // it is to be had there
	}
	name := nameHash(w.address)
	var best *peerCtx
	most := mix(name ^ e.self)
	n := 0
	for x := first; x != nil && n < maxFellows; x = x.other {
		n++
		p := x.peer
		if rank := mix(name ^ p.hash); rank > most && p.usable() && !p.slack && probed(w, p) {
			best, most = p, rank
		}
	}
	for _, m := range s.members {
		if p := m.peer; m.fellow && p.usable() && !p.slack {
			if rank := mix(name ^ p.hash); rank > most && unanswered(w, p) {
				best, most = p, rank
			}
		}
	}
	return best
}

// unanswered reports whether p is being asked whether it has w.
func unanswered(w *want, p *peerCtx) bool {
	l := w.link(p)
	return l != nil && l.says == nothing && max(l.told, l.queued) >= toldHave
}

// leave leaves a resting want to a fellow.
func (e *Engine) leave(w *want, to *peerCtx) {
	if to.left.len == 0 {
		to.leftAt, to.gaveAt, to.given = e.now, e.now, 0
	}
	w.state, w.to, w.askedAt = left, to, e.now
	to.left.push(w)
	e.leaving++
	e.timers.start(&w.timer, e.now.Add(e.trusts(w)))
}

// trusts is how long a fellow that a want is left to may show nothing: as long as
// the quickest of those who have the block may keep us waiting, so far as that is
// known.
func (e *Engine) trusts(w *want) time.Duration {
	d := time.Duration(0)
	for _, l := range w.links {
		if p := l.peer; l.says == has && p.usable() && p.answer > 0 && (d == 0 || 2*p.patience() < d) {
			d = 2 * p.patience()
		}
	}
	return max(d, minTrust)
}

// dueLeft is called when a want may have been left to somebody for nothing. As long
// as the fellow announces anything it is given more time.
func (e *Engine) dueLeft(w *want) {
	p := w.to
	if at := p.gaveAt.Add(e.trusts(w)); at.After(e.now) {
		e.timers.start(&w.timer, at)
		return
	}
	p.slack = true
	e.takeBack(p)
}

// takeBack takes back everything that was left to a peer.
func (e *Engine) takeBack(p *peerCtx) {
	for w := p.left.head; w != nil; w = p.left.head {
		e.rest(w)
		e.place(w)
	}
}

// gave notes that a fellow has announced something that it had not announced before.
func (e *Engine) gave(p *peerCtx) {
	p.gaveAt, p.slack = e.now, p.expelled
	p.given++
}

// poach asks sources that have little to do for what was left to a fellow that has
// fallen far behind, what it gets to last, so that a fast node does not wait for
// slow ones.
func (e *Engine) poach() {
	for e.leaving > 0 {
		var from *peerCtx
		for _, p := range e.order {
			if p.left.len > 0 && (from == nil || p.left.len > from.left.len) {
				from = p
			}
		}
		w := from.left.tail
		size := w.owner().session.size
		pace := from.pace(e.now, size)
		// Of a short list the fellow will have asked for everything.
		left := from.left.len * size
		if w.owner().full(e) || left <= minLoad && float64(left) <= pace*minTrust.Seconds() {
			return
		}
		source := e.idleSource(w)
		if source == nil || pace < 0 || fellBehind*pace >= source.rate {
			return
		}
		e.ask(w, source)
	}
}

// pace is how fast a fellow hands on what is left to it, bytes/s; -1 if it is too
// early to say.
func (p *peerCtx) pace(now time.Time, size int) float64 {
	t := now.Sub(p.leftAt)
	if t < minPace {
		return -1
	}
	return float64(p.given*size) / t.Seconds()
}

// idleSource finds a peer outside the crowd that has w and little to do.
func (e *Engine) idleSource(w *want) *peerCtx {
	for _, l := range w.links {
		if p := l.peer; l.says == has && !l.crowd && p.idle() {
			return p
		}
	}
	return nil
}

// idle reports whether the peer has so little to do that it soon has nothing.
func (p *peerCtx) idle() bool { return p.room() && p.load < max(messageBytes, p.depth()/4) }

// move remembers that wants of a session may be moved at the end of the step.
func (e *Engine) move(s *session) {
	if !s.moving {
		s.moving = true
		e.moving = append(e.moving, s)
	}
}

// relieve moves wants of sessions for which blocks have come, or are late: from a peer that is
// asked for more than it can soon deliver to one that has little to do and is much
// faster, beginning with what the slow one gets to last.
func (e *Engine) relieve() {
	for _, s := range e.moving {
		s.moving = false
		for n := 0; n < maxMoved && e.relieveOne(s); n++ {
		}
	}
	e.moving = e.moving[:0]
	for _, g := range e.turns {
		for n := 0; n < maxMoved; n++ {
			w := g.ready.tail
			if w == nil || !w.inCrowd() || g.full(e) {
				break
			}
			// Nobody of the crowd has room for it now.
			p := e.helper(w, e.least(w))
			if p == nil {
				break
			}
			e.ask(w, p)
		}
	}
}

func (e *Engine) relieveOne(s *session) bool {
	var slow *peerCtx
	most := minPace
	for _, m := range s.members {
		if b := m.peer.burden(e.now); b > most && m.peer.asked.len > 1 {
			slow, most = m.peer, b
		}
	}
	if slow == nil {
		return false
	}
	w := slow.asked.tail
	p := e.helper(w, slow)
	if p == nil || w.owner().full(e) {
		return false
	}
	e.cancel(w.link(slow))
	e.ask(w, p)
	return true
}

// burden is how long the peer will need for what it is asked for, at least.
func (p *peerCtx) burden(now time.Time) time.Duration {
	if p.rate > 0 || p.asked.len == 0 {
		return p.backlog()
	}
	return now.Sub(p.asked.head.askedAt)
}

// helper finds the fastest peer that has w, has little to do, and is much faster
// than slow, which is given time if its burden is not great; nil is no such peer.
func (e *Engine) helper(w *want, slow *peerCtx) *peerCtx {
	if slow == nil || slow.burden(e.now) < minPace || e.now.Sub(w.askedAt) < minPace {
		return nil
	}
	rate := slow.rate
	if rate == 0 { // nothing has come in that time
		rate = float64(w.owner().session.size) / slow.burden(e.now).Seconds()
	}
	rate *= muchFaster
	var best *peerCtx
	for _, l := range w.links {
		if p := l.peer; p != slow && l.says == has && l.told != toldBlock && p.rate > rate && p.idle() {
			best, rate = p, p.rate
		}
	}
	return best
}

// least finds the peer in the crowd that has w and has the least to do.
func (e *Engine) least(w *want) *peerCtx {
	var best *peerCtx
	for _, l := range w.links {
		if p := l.peer; l.says == has && l.crowd && p.usable() && (best == nil || p.burden(e.now) < best.burden(e.now)) {
			best = p
		}
	}
	return best
}

// nameHash makes a number of an address, the same on every node. The digest that
// ends a CID is random enough.
func nameHash(a wire.Address) uint64 {
	k := a.Root.KeyString()
	var b [8]byte
	copy(b[:], k[max(0, len(k)-8):])
	return mix(binary.LittleEndian.Uint64(b[:]) ^ a.Index*0x9e3779b97f4a7c15)
}

// peerHash does the same of a peer.
func peerHash(id peer.ID) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return mix(h)
}

// mix makes of each number another, and of near ones far ones (splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
