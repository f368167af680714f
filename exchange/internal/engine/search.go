package engine

import (
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	firstRefresh = time.Second      // as the reference (protocol note 12)
	maxRefresh   = 36 * time.Second // the same
	firstSearch  = 3 * time.Second  // least time between two searches of a session (protocol note 13)
	maxSearch    = time.Minute

	repeated = 16 * listEntries // wants a peer is told at once when it comes, or of a session again
)

// seek is called when a want has begun to seek. The first one starts the clocks:
// peers are asked again after a while, for they may have the block by then and a
// reference peer does not remember a want-have, and providers are searched.
func (e *Engine) seek(s *session) {
	if s.seeking.len == 1 {
		s.refresh = firstRefresh
		s.refreshAt = e.now.Add(s.refresh)
	}
	e.lookOut(s)
	if e.hopeless(s.seeking.tail) {
		e.hasten(s)
	}
}

// lookOut starts the clock of the search for a session that has no proven member to
// ask: a want is seeking, or is asked of somebody on trial, who may keep silent.
func (e *Engine) lookOut(s *session) {
	if s.seeking.len == 0 && !e.cfg.Searches {
		return
	}
	if !s.timer.set() {
		s.searchFrom(e.now.Add(e.cfg.SearchDelay))
	}
	e.wake(s)
}

// onTrial finds a want that is asked of a member that has not shown anything yet.
func (s *session) onTrial() *want {
	for _, m := range s.members {
		if m.guesses == 0 || m.proven() {
			continue
		}
		for w := m.peer.asked.head; w != nil; w = w.next {
			if w.guessed == m {
				return w
			}
		}
	}
	return nil
}

// searchFrom sets the next search to at, or to when it may be, if that is later.
func (s *session) searchFrom(at time.Time) {
	s.searchAt = at
	if s.searchedAt.IsZero() {
		return
	}
	if next := s.searchedAt.Add(s.search); next.After(at) {
		s.searchAt = next
	}
}

// hopeless reports whether no connected peer is left that might still announce
// the block.
func (e *Engine) hopeless(w *want) bool {
	for _, l := range w.links {
		if (l.says == nothing || l.says == has) && l.peer.usable() {
			return false
		}
	}
	return true
}

// hasten brings the next search of a session forward to now, or to when it may be.
func (e *Engine) hasten(s *session) {
	if s.searchAt.After(e.now) {
		s.searchFrom(e.now)
		e.wake(s)
	}
}

func (e *Engine) wake(s *session) {
	at := s.refreshAt
	if e.cfg.Searches && (s.seeking.len == 0 || s.searchAt.Before(at)) {
		at = s.searchAt
	}
	e.timers.start(&s.timer, at)
}

// due is called when peers should be asked again, or providers be searched.
func (s *session) due(e *Engine) {
	if s.seeking.len == 0 && (!e.cfg.Searches || s.onTrial() == nil) {
		return
	}
	if s.seeking.len > 0 && !e.now.Before(s.refreshAt) {
		e.again(s)
		s.refresh = min(2*s.refresh, maxRefresh)
		s.refreshAt = e.now.Add(s.refresh)
	}
	if e.cfg.Searches && !e.now.Before(s.searchAt) {
		e.search(s)
		s.searchedAt = e.now
		s.searchAt = e.now.Add(s.search)
		s.search = min(2*s.search, maxSearch)
	}
	e.wake(s)
}

// again repeats to peers what they were told about seeking wants, and tells
// those that were not told before.
func (e *Engine) again(s *session) {
	// What was repeated goes to the back, so that it is the turn of all in time.
	for range min(s.seeking.len, repeated) {
		w := s.seeking.head
		s.seeking.remove(w)
		s.seeking.push(w)
		for _, l := range w.links {
			if !l.peer.usable() || l.says == sentBad || l.queued != toldNothing || l.told == toldNothing {
				continue
			}
			l.peer.full = true
			e.queue(l, l.told)
		}
		e.broadcast(w, s)
	}
}

// search asks for providers of one seeking want, picked at random so that a want
// that cannot be found does not stand in the way of the others; or, if none is
// seeking, of one that somebody on trial has not answered.
func (e *Engine) search(s *session) {
	w := s.seeking.head
	if w == nil {
		w = s.onTrial()
	} else {
		for n := e.rand.IntN(min(s.seeking.len, listEntries)); n > 0; n-- {
			w = w.next
		}
	}
	key := w.address.Root
	if e.searching[key] || !e.searched.may(key, e.now) {
		return // who else wants it has it searched, or had a moment ago
	}
	e.searching[key] = true
	e.searched.add(key, e.now)
	e.stats.Searches++
	e.act(Search{Key: key})
}

// searched remembers the searches of all sessions, the latest of them, so that many
// requests for what cannot be found do not search more often than one.
type searched struct {
	keys map[cid.Cid]*pastSearch
	ring [maxSearched]cid.Cid // in order of their first search
	next int
}

// A pastSearch is when a key was last searched, and how often in a row that
// brought nobody.
type pastSearch struct {
	at     time.Time
	failed int
}

const maxSearched = 1024

// may reports whether a key may be searched: 3 s after the last time, and twice as
// long after each that found nobody.
func (s *searched) may(key cid.Cid, now time.Time) bool {
	p := s.keys[key]
	return p == nil || now.Sub(p.at) >= min(firstSearch<<max(p.failed-1, 0), maxSearch)
}

// add notes that a search begins, which has found nobody so far.
func (s *searched) add(key cid.Cid, now time.Time) {
	p := s.keys[key]
	if p == nil {
		if s.keys == nil {
			s.keys = make(map[cid.Cid]*pastSearch)
		}
		delete(s.keys, s.ring[s.next])
		s.ring[s.next] = key
		s.next = (s.next + 1) % maxSearched
		p = new(pastSearch)
		s.keys[key] = p
	}
	p.at, p.failed = now, min(p.failed+1, 8)
}

// found notes that a search has brought somebody.
func (s *searched) found(key cid.Cid) {
	if p := s.keys[key]; p != nil {
		p.failed = 0
	}
}

// found tells a provider, if it is connected already, what it is said to have.
func (e *Engine) found(ev Found) {
	e.stats.ProvidersFound++
	e.searched.found(ev.Key)
	p := e.peers[ev.Peer]
	if p == nil {
		return // it will be told when it is up
	}
	if w := e.wants[wire.Block(ev.Key)]; w != nil {
		e.tellHave(w, p)
	}
	for _, s := range e.live {
		for w := s.seeking.head; w != nil; w = w.next {
			if w.address.Root == ev.Key {
				e.tellHave(w, p)
			}
		}
	}
}

// peerUp welcomes a peer: it hears at once what is wanted and not being served.
func (e *Engine) peerUp(ev PeerUp) {
	if p := e.peers[ev.Peer]; p != nil {
		if ev.Epoch <= p.epoch {
			return
		}
		e.peerDown(PeerDown{Peer: ev.Peer, Epoch: p.epoch})
	}
	p := &peerCtx{id: ev.Peer, epoch: ev.Epoch, up: true, latency: ev.Latency, window: firstWindow, hash: peerHash(ev.Peer), share: 1, near: ev.Near}
	p.timer.owner = p
	e.peers[p.id] = p
	e.order = append(e.order, p)
	e.greet(p)
}

// greet tells a peer the whole want list, as far as it is not being served, in
// one message.
func (e *Engine) greet(p *peerCtx) {
	p.full = true
	n := 0
	for _, g := range e.turns {
		for w := g.ready.head; w != nil && n < repeated; w = w.next {
			if e.tellHave(w, p) {
				n++
			}
		}
	}
	for _, s := range e.live {
		for w := s.seeking.head; w != nil && n < repeated; w = w.next {
			if e.tellHave(w, p) {
				n++
			}
		}
		if w := s.seeking.head; w != nil {
			e.rest(w)
			e.place(w) // which may ask the peer for this one on trial
		}
	}
}

func (e *Engine) peerDown(ev PeerDown) {
	p := e.peers[ev.Peer]
	if p == nil || p.epoch != ev.Epoch {
		return
	}
	p.up = false
	delete(e.peers, p.id)
	for i, q := range e.order {
		if q == p {
			e.order = slices.Delete(e.order, i, i+1)
			break
		}
	}
	e.timers.stop(&p.timer)
	e.release(p, nothing)
	e.unlinkAll(p)
	e.disown(p)
}

// unlinkAll forgets what passed between us and a peer about every want.
func (e *Engine) unlinkAll(p *peerCtx) {
	for len(p.links) > 0 {
		l := p.links[len(p.links)-1]
		l.want.unlink(l)
		l.unlink()
	}
	p.outbox = nil
}

func (w *want) unlink(l *link) {
	for i, x := range w.links {
		if x == l {
			w.links = slices.Delete(w.links, i, i+1)
			return
		}
	}
}

// failed is called when a message could not be sent in spite of further tries. The
// peer is left alone for a while; when it is tried again it is told everything
// anew.
func (e *Engine) failed(p *peerCtx) {
	e.stats.SendsFailed++
	if p.paused {
		return // it was under way beside the one that failed first
	}
	p.failed++
	p.paused = true
	e.release(p, nothing)
	// What it was asked for may stand with it still, and then it would not answer
	// when it is asked anew whether it has it (protocol note 11).
	standing := slices.DeleteFunc(p.outbox, func(o outEntry) bool { return o.link != nil })
	for _, l := range p.links {
		if l.told == toldBlock {
			standing = append(standing, outEntry{cancel: l.want.address})
		}
	}
	e.unlinkAll(p)
	p.outbox = standing
	e.timers.start(&p.timer, e.now.Add(min(time.Second<<min(p.failed-1, 6), time.Minute)))
}

// due is called when a peer that could not be reached is tried again.
func (p *peerCtx) due(e *Engine) {
	p.paused = false
	e.greet(p)
	e.touch(p)
	e.enqueue(p)
	e.look(p)
}
