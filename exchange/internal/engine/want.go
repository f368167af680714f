package engine

import (
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/wire"
)

// state is where a want is. A want is in exactly the list that its state says.
type state uint8

const (
	resting state = iota // in no list: new, or ended
	seeking              // in session.seeking
	ready                // in getter.ready
	asked                // in peerCtx.asked
	left                 // in peerCtx.left
)

// A want is one active address: somebody waits for it and it is being asked for.
type want struct {
	address wire.Address
	getters []*getter // who waits, at least one; the first one's lists hold the want
	links   []*link   // what passed between the want and peers, in order of first contact

	state      state
	hook[want] // in the list that state says

	// While asked:
	peer    *peerCtx
	askedAt time.Time
	guessed *member   // the member, if it was asked on trust
	alone   bool      // nothing else was asked of the peer at the time
	size    int       // what the block was taken to measure, in the peer's and the getter's load
	timer   timer     // when to doubt that the peer answers
	hurry   bool      // somebody else announced it: the timer is final
	lateAt  time.Time // when it is late for its peer's own measure; zero if two were asked

	to *peerCtx // while left; askedAt is when that began, or when it became ready
}

func (w *want) owner() *getter { return w.getters[0] }

func (w *want) link(p *peerCtx) *link {
	for _, l := range w.links {
		if l.peer == p {
			return l
		}
	}
	return nil
}

type wantList = list[want, *want]

// A getter is one request. It is forgotten when it has all it asked for.
type getter struct {
	id      GetterID
	session *session

	backlog []wire.Want          // what has not become active; the first entry may be begun
	offset  uint64               // how many of the first range of backlog[0] have become active
	later   map[cid.Cid]struct{} // the plain CIDs of backlog that have not come by themselves

	wants     []*want // those that are active, and up to as many that have ended
	active    int     // wants in progress
	held      int     // blocks delivered and not taken
	heldBytes int
	load      int // bytes asked for, as far as known

	ready  wantList
	inTurn bool   // in Engine.turns
	shares bool   // somebody else waits for one of its wants, or did
	hungry bool   // in Engine.hungry
	hedges int    // wants of it that were asked of a second peer
	pass   uint64 // the scheduling pass that tried belongs to
	tried  *want  // the last of ready that could not be asked in it
}

// full reports whether the caller does not keep up with what was asked for.
func (g *getter) full(e *Engine) bool { return g.load+g.heldBytes >= e.cfg.BufferedBytes }

// next takes the next address out of the backlog.
func (g *getter) next() (wire.Address, bool) {
	for len(g.backlog) > 0 {
		w := &g.backlog[0]
		if !w.Leaf {
			a := wire.Block(w.Root)
			g.backlog = g.backlog[1:]
			if g.later != nil {
				if _, ok := g.later[a.Root]; !ok {
					continue // it came while it waited
				}
				delete(g.later, a.Root)
			}
			return a, true
		}
		if len(w.Indices) == 0 {
			g.backlog = g.backlog[1:]
			continue
		}
		if r := w.Indices[0]; g.offset < r.Count {
			g.offset++
			return wire.Leaf(w.Root, r.First+g.offset-1), true
		}
		w.Indices, g.offset = w.Indices[1:], 0
	}
	return wire.Address{}, false
}

// A session is what related getters learn about peers together.
type session struct {
	id      SessionID
	place   int // in Engine.live
	getters int
	open    bool      // further getters may come
	members []*member // in order of joining
	fellows int       // how many of them want what we want
	seeking wantList
	stale   bool   // in Engine.stale
	moving  bool   // in Engine.moving
	doubted uint64 // round of reconsider that it is in

	size int // running mean of block sizes, bytes

	// Searching, see search.go.
	timer      timer
	refresh    time.Duration // time between refreshes, doubles
	search     time.Duration // time from one search to the next, doubles until a block comes
	refreshAt  time.Time
	searchAt   time.Time
	searchedAt time.Time // last search
}

// A member is a peer in a session. Trust is how many wants it may be asked for at a
// time without knowing that it has them: 1 for a newcomer, doubled by every
// hit, and cut by every miss.
type member struct {
	session *session
	peer    *peerCtx
	trust   int
	guesses int  // wants asked on trust now
	misses  int  // "don't have" in a row
	crowd   bool // it has wanted what we wanted
	fellow  bool // it does now: it announces what it has and is not trusted with the rest
}

const (
	provenTrust = 2 // from here on a member is asked without being probed
	maxTrust    = 1 << 14
	maxMisses   = 16 // then the peer leaves the session, as it does in Bitswap
)

// hit notes that the member had what it was asked for.
func (m *member) hit() {
	m.rely(min(max(1, m.trust)*2, maxTrust))
	m.misses = 0
}

// miss notes that the member had not what it was asked for.
func (m *member) miss() {
	m.rely(m.trust / 4)
	m.misses++
}

// rely changes trust.
func (m *member) rely(trust int) { m.become(trust, m.fellow) }

func (m *member) become(trust int, fellow bool) {
	if m.fellow != fellow {
		m.session.fellows += map[bool]int{true: 1, false: -1}[fellow]
	}
	if m.proven() {
		m.peer.trusted--
	}
	m.trust, m.fellow = trust, fellow
	if m.proven() {
		m.peer.trusted++
	}
}

func (m *member) proven() bool { return m.trust >= provenTrust && !m.fellow }

func (s *session) member(p *peerCtx) *member {
	for _, m := range s.members {
		if m.peer == p {
			return m
		}
	}
	return nil
}

func (s *session) join(p *peerCtx) *member {
	if m := s.member(p); m != nil {
		return m
	}
	m := &member{session: s, peer: p, trust: 1}
	s.members = append(s.members, m)
	return m
}

func (s *session) leave(p *peerCtx) {
	if m := s.member(p); m != nil {
		m.become(0, false)
		s.members = slices.DeleteFunc(s.members, func(x *member) bool { return x == m })
	}
}

// add begins a request.
func (e *Engine) add(ev Want) {
	if e.getters[ev.Getter] != nil {
		return
	}
	s := e.sessions[ev.Session]
	g := &getter{id: ev.Getter, backlog: slices.Clone(ev.Wants), later: ev.Later}
	if s == nil {
		s = &session{id: ev.Session, size: defaultSize, search: firstSearch, place: len(e.live)}
		s.timer.owner = s
		e.live = append(e.live, s)
		if ev.Session != 0 {
			s.open = true
			e.sessions[s.id] = s
		}
	}
	s.getters++
	g.session = s
	e.getters[g.id] = g
	e.fill(g)
	e.wait(g)
	e.finish(g)
}

// wait notes the plain CIDs that are left in the backlog of a new getter, for they
// may be stored, or come for somebody else, before they are asked for.
func (e *Engine) wait(g *getter) {
	if g.later == nil {
		for _, w := range g.backlog {
			if w.Leaf {
				continue
			}
			if g.later == nil {
				g.later = make(map[cid.Cid]struct{}, len(g.backlog))
			}
			g.later[w.Root] = struct{}{}
		}
	}
	if len(g.later) > 0 {
		e.waiting = append(e.waiting, g)
	}
}

// early gives a block to getters that have it in their backlog, and reports
// whether there were any.
func (e *Engine) early(a wire.Address, ref, size int) bool {
	if a.Leaf || len(e.waiting) == 0 {
		return false
	}
	e.waiting = slices.DeleteFunc(e.waiting, func(g *getter) bool { return len(g.later) == 0 })
	any := false
	for _, g := range e.waiting {
		if _, ok := g.later[a.Root]; ok {
			delete(g.later, a.Root)
			e.give(g, a, ref, size)
			any = true
		}
	}
	return any
}

// give hands a block to a getter.
func (e *Engine) give(g *getter, a wire.Address, ref, size int) {
	g.held++
	g.heldBytes += size
	e.act(Deliver{Getter: g.id, Address: a, Ref: ref})
	e.stats.Delivered++
	e.refill(g)
}

// fill makes wants of the backlog active, as far as the window is open.
func (e *Engine) fill(g *getter) {
	for g.active+g.held < e.cfg.Window {
		a, ok := g.next()
		if !ok {
			return
		}
		w := e.wants[a]
		if w == nil {
			w = &want{address: a}
			w.timer.owner = w
			e.wants[a] = w
		} else if slices.Contains(w.getters, g) {
			continue
		}
		w.getters = append(w.getters, g)
		g.claim(w)
		switch {
		case len(w.getters) == 1:
			e.place(w)
		case w.state != asked && w.owner().full(e):
			e.rest(w)
			e.place(w) // which gives it to one that is not full
		default:
			w.owner().shares = true
		}
	}
}

// claim notes that g waits for w.
func (g *getter) claim(w *want) {
	if len(g.wants) >= 2*g.active+16 {
		g.wants = slices.DeleteFunc(g.wants, func(x *want) bool { return !slices.Contains(x.getters, g) })
	}
	g.wants = append(g.wants, w)
	g.active++
}

// finish ends a getter that has everything.
func (e *Engine) finish(g *getter) {
	if g.active > 0 || g.more() {
		return
	}
	e.act(Finish{Getter: g.id})
	e.forget(g)
}

// more reports whether the backlog holds another address.
func (g *getter) more() bool {
	for i, w := range g.backlog {
		if _, ok := g.later[w.Root]; !w.Leaf && g.later != nil && !ok {
			continue // it came while it waited
		}
		n := w.Len()
		if i == 0 && w.Leaf {
			n -= g.offset
		}
		if n > 0 {
			return true
		}
	}
	return false
}

func (e *Engine) forget(g *getter) {
	delete(e.getters, g.id)
	if g.later != nil {
		e.waiting = slices.DeleteFunc(e.waiting, func(x *getter) bool { return x == g })
		g.later = nil
	}
	g.backlog = nil
	g.session.getters--
	e.retire(g.session)
}

// retire forgets a session that nobody uses any more.
func (e *Engine) retire(s *session) {
	if s.getters > 0 || s.open {
		return
	}
	e.timers.stop(&s.timer)
	for _, m := range s.members {
		m.rely(0)
	}
	last := e.live[len(e.live)-1]
	e.live[s.place], last.place = last, s.place
	e.live[len(e.live)-1] = nil
	e.live = e.live[:len(e.live)-1]
}

// drop ends a getter whose caller has gone. Wants that nobody else waits for end
// too; the others go on, and nobody notices.
func (e *Engine) drop(id GetterID) {
	g := e.getters[id]
	if g == nil {
		return
	}
	defer e.forget(g)
	for _, w := range g.wants {
		if !slices.Contains(w.getters, g) {
			continue // it has ended
		}
		if w.owner() != g {
			w.getters = slices.DeleteFunc(w.getters, func(x *getter) bool { return x == g })
			continue
		}
		if len(w.getters) == 1 {
			e.end(w, nil)
			continue
		}
		// The want passes to the next getter, and with it to that one's lists.
		if w.state == asked {
			g.load -= w.size
			w.getters = w.getters[1:]
			w.owner().load += w.size
			if w.guessed != nil {
				w.guessed.guesses--
				w.guessed = w.owner().session.join(w.peer)
				w.guessed.guesses++
			}
			continue
		}
		e.rest(w)
		w.getters = w.getters[1:]
		w.owner().shares = true
		e.place(w)
	}
}

// adopt gives a resting want to a getter that is not full, if its owner is: that
// one caller does not take its blocks must not hold up the others.
func (e *Engine) adopt(w *want) {
	if len(w.getters) == 1 || !w.owner().full(e) {
		return
	}
	if i := slices.IndexFunc(w.getters, func(x *getter) bool { return !x.full(e) }); i > 0 {
		w.getters[0], w.getters[i] = w.getters[i], w.getters[0]
	}
	w.owner().shares = true
}

// handOver does the same for the ready wants of a getter that is full. It reports
// whether another took any.
func (e *Engine) handOver(g *getter) (any bool) {
	if !g.shares {
		return false
	}
	g.shares = false
	w := g.ready.head
	for range g.ready.len { // what stays goes to the back
		next := w.next
		if len(w.getters) > 1 {
			e.rest(w)
			e.place(w)
			any = any || w.owner() != g
			g.shares = true
		}
		w = next
	}
	return any
}

// rest takes a want out of the list it is in.
func (e *Engine) rest(w *want) {
	switch w.state {
	case seeking:
		w.owner().session.seeking.remove(w)
	case ready:
		w.owner().ready.remove(w)
		w.offer(-1)
	case asked:
		p := w.peer
		p.asked.remove(w)
		p.load -= w.size
		p.drain()
		w.owner().load -= w.size
		if w.guessed != nil {
			w.guessed.guesses--
			w.guessed = nil
		}
		w.peer, w.hurry = nil, false
		e.timers.stop(&w.timer)
	case left:
		w.to.left.remove(w)
		e.leaving--
		w.to = nil
		e.timers.stop(&w.timer)
	}
	w.state = resting
}

// offer counts a want in at the peers that are to be asked for it when it becomes
// ready, and out when it is ready no more.
func (w *want) offer(n int) {
	crowd := w.inCrowd()
	for _, l := range w.links {
		if l.says == has && l.crowd == crowd {
			l.peer.offers += n
		}
	}
}

// inCrowd reports whether somebody has the block who wanted it when we did. Who has
// it anyway is then left alone, see poach.
func (w *want) inCrowd() bool {
	for _, l := range w.links {
		if l.says == has && l.crowd {
			return true
		}
	}
	return false
}

// end takes a want out of the world. From is the peer that delivered it, if one
// did; every other peer that was asked is told that it is over.
func (e *Engine) end(w *want, from *peerCtx) {
	e.rest(w)
	delete(e.wants, w.address)
	for _, l := range w.links {
		if l.peer != from {
			e.cancel(l)
		}
		l.unlink()
	}
	for _, g := range w.getters {
		g.active--
	}
	w.links, w.getters = nil, nil
}

// deliver gives a block to everybody who waits for it and ends the want.
func (e *Engine) deliver(w *want, from *peerCtx, ref, size int) {
	getters := w.getters
	e.end(w, from)
	for _, g := range getters {
		s := g.session
		s.size += (size - s.size) / 8
		s.search = firstSearch
		e.give(g, w.address, ref, size)
	}
}

// refill remembers to fill a getter at the end of the step, so that a message
// with many blocks makes new wants active together.
func (e *Engine) refill(g *getter) {
	if !g.hungry {
		g.hungry = true
		e.hungry = append(e.hungry, g)
	}
}

func (e *Engine) took(ev Took) {
	g := e.getters[ev.Getter]
	if g == nil {
		return
	}
	g.held -= min(ev.Blocks, g.held)
	g.heldBytes -= min(ev.Bytes, g.heldBytes)
	e.refill(g)
}

func (e *Engine) closeSession(id SessionID) {
	if s := e.sessions[id]; s != nil {
		s.open = false
		delete(e.sessions, id)
		e.retire(s)
	}
}
