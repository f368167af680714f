package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// check holds everything that must be true of an Engine between steps, and
// returns all that is not.
func check(e *Engine, now time.Time) error {
	c := checker{e: e}
	c.wants()
	c.getters()
	c.peers()
	c.timers(now)
	c.ledger()
	c.serving()
	c.progress()
	return errors.Join(c.bad...)
}

type checker struct {
	e   *Engine
	bad []error
}

func (c *checker) that(ok bool, format string, args ...any) {
	if !ok && len(c.bad) < 10 {
		c.bad = append(c.bad, fmt.Errorf(format, args...))
	}
}

// walk counts a list and holds its chain together.
func (c *checker) walk(name string, l *wantList, st state, each func(*want)) int {
	n := 0
	var prev *want
	for w := l.head; w != nil && n <= l.len; w = w.next {
		c.that(w.prev == prev, "%s: prev of %s is wrong", name, spell(w.address))
		c.that(w.state == st, "%s: %s is in state %d, want %d", name, spell(w.address), w.state, st)
		c.that(c.e.wants[w.address] == w, "%s: %s is not active", name, spell(w.address))
		each(w)
		prev = w
		n++
	}
	c.that(l.tail == prev, "%s: the tail is wrong", name)
	c.that(n == l.len, "%s: has %d wants, says %d", name, n, l.len)
	return n
}

// wants: each is in exactly the list that its state says, has a getter, and links
// that its peers know of too.
func (c *checker) wants() {
	e := c.e
	in := 0
	for _, s := range e.live {
		in += c.walk("seeking", &s.seeking, seeking, func(w *want) {
			c.that(w.owner().session == s, "%s seeks in a session that is not its owner's", spell(w.address))
		})
		c.that(s.seeking.len == 0 || s.timer.set(), "a session has %d seeking wants and no timer", s.seeking.len)
		c.that(!s.stale, "a session is stale after the step")
	}
	for _, g := range e.getters {
		in += c.walk("ready", &g.ready, ready, func(w *want) {
			c.that(w.owner() == g, "%s is ready at a getter that is not its owner", spell(w.address))
		})
	}
	for _, p := range e.order {
		in += c.walk("asked", &p.asked, asked, func(w *want) {
			c.that(w.peer == p, "%s is in the asked list of %s and not asked of it", spell(w.address), who(p.id))
		})
	}
	for _, p := range e.order {
		in += c.walk("left", &p.left, left, func(w *want) {
			c.that(w.to == p, "%s is in the list of what is left to %s and not left to it", spell(w.address), who(p.id))
			c.that(p.usable() && !p.slack, "%s is left to %s, which is not to be relied on", spell(w.address), who(p.id))
			c.that(e.announced(w) || e.proven(w, w.owner().session), "%s is left to %s and nobody could be asked for it", spell(w.address), who(p.id))
		})
	}
	c.that(in == len(e.wants), "%d wants are in lists, %d are active", in, len(e.wants))
	claims := map[*getter]map[*want]bool{}
	for _, g := range e.getters {
		claims[g] = map[*want]bool{}
		for _, w := range g.wants {
			claims[g][w] = true
		}
	}
	for a, w := range e.wants {
		c.that(w.address == a, "%s is active as %s", spell(w.address), spell(a))
		c.that(w.state != resting, "%s is in no list", spell(a))
		c.that(len(w.getters) > 0, "%s has no getter", spell(a))
		for i, g := range w.getters {
			c.that(e.getters[g.id] == g, "%s waits for getter %d, which has ended", spell(a), g.id)
			c.that(!slices.Contains(w.getters[:i], g), "%s has getter %d twice", spell(a), g.id)
			c.that(claims[g][w], "%s is not among the wants of getter %d", spell(a), g.id)
		}
		c.that((w.to != nil) == (w.state == left), "%s is in state %d and left to somebody: %v", spell(a), w.state, w.to != nil)
		c.that(w.timer.set() == (w.state == asked || w.state == left), "%s is in state %d and its timer is set: %v", spell(a), w.state, w.timer.set())
		c.that((w.peer != nil) == (w.state == asked), "%s is in state %d and has a peer: %v", spell(a), w.state, w.peer != nil)
		c.that(w.guessed == nil || w.state == asked, "%s is guessed in state %d", spell(a), w.state)
		if w.state == asked {
			c.that(w.peer.usable(), "%s is asked of %s, which is not usable", spell(a), who(w.peer.id))
			l := w.link(w.peer)
			c.that(l != nil && (l.told == toldBlock || l.queued == toldBlock), "%s is asked of %s, which is not told", spell(a), who(w.peer.id))
		}
		for i, l := range w.links {
			c.that(l.want == w && !l.gone, "%s has a link that is not its own", spell(a))
			c.that(e.peers[l.peer.id] == l.peer, "%s has a link to %s, which has left", spell(a), who(l.peer.id))
			c.that(l.place < len(l.peer.links) && l.peer.links[l.place] == l, "%s has a link that %s does not have", spell(a), who(l.peer.id))
			for _, m := range w.links[:i] {
				c.that(m.peer != l.peer, "%s has two links to %s", spell(a), who(l.peer.id))
			}
		}
	}
}

// getters: sums and windows are right, and who has something ready is in turn.
func (c *checker) getters() {
	e := c.e
	inTurn := map[*getter]int{}
	for _, g := range e.turns {
		inTurn[g]++
	}
	perSession := map[*session]int{}
	active, load := map[*getter]int{}, map[*getter]int{}
	guesses := map[*member]int{}
	for _, w := range e.wants {
		for _, g := range w.getters {
			active[g]++
		}
		if w.state == asked {
			load[w.owner()] += w.size
		}
		if w.guessed != nil {
			c.that(w.owner().session.member(w.peer) == w.guessed, "%s is guessed at a member of another session", spell(w.address))
			guesses[w.guessed]++
		}
	}
	for id, g := range e.getters {
		perSession[g.session]++
		c.that(g.active == active[g], "getter %d has %d wants, says %d", id, active[g], g.active)
		c.that(g.load == load[g], "getter %d has a load of %d, says %d", id, load[g], g.load)
		c.that(g.active > 0 || g.more(), "getter %d has everything and is still there", id)
		c.that(g.active+g.held >= e.cfg.Window || !g.more(), "getter %d has room in its window and a backlog", id)
		c.that(len(g.wants) <= 3*e.cfg.Window+32, "getter %d remembers %d wants", id, len(g.wants))
		c.that(g.held >= 0 && g.heldBytes >= 0, "getter %d holds %d blocks, %d bytes", id, g.held, g.heldBytes)
		c.that(!g.hungry, "getter %d is hungry after the step", id)
		n := inTurn[g]
		c.that(n <= 1 && (n == 1) == g.inTurn, "getter %d is %d times in turn, says %v", id, n, g.inTurn)
		c.that(g.ready.len == 0 || g.inTurn, "getter %d has %d ready wants and is not in turn", id, g.ready.len)
	}
	waiting := map[*getter]int{}
	for _, g := range e.waiting {
		waiting[g]++
		c.that(e.getters[g.id] == g, "getter %d waits for its backlog and has ended", g.id)
	}
	for id, g := range e.getters {
		c.that(waiting[g] <= 1, "getter %d waits for its backlog %d times", id, waiting[g])
		c.that(len(g.later) == 0 || waiting[g] == 1, "getter %d has %d CIDs in its backlog and does not wait for them", id, len(g.later))
	}
	for i, s := range e.live {
		c.that(s.place == i, "a session says it is in place %d, is in %d", s.place, i)
		c.that(s.getters == perSession[s], "a session has %d getters, says %d", perSession[s], s.getters)
		c.that(s.open || s.getters > 0, "a session lives without a getter")
		delete(perSession, s)
		for j, m := range s.members {
			c.that(e.peers[m.peer.id] == m.peer, "a session has the member %s, which has left", who(m.peer.id))
			c.that(m.guesses == guesses[m], "member %s has %d guesses, says %d", who(m.peer.id), guesses[m], m.guesses)
			c.that(m.trust >= 0 && m.trust <= maxTrust, "member %s has a trust of %d", who(m.peer.id), m.trust)
			for _, n := range s.members[:j] {
				c.that(n.peer != m.peer, "%s is a member twice", who(m.peer.id))
			}
		}
	}
	c.that(len(perSession) == 0, "%d sessions have getters and do not live", len(perSession))
	for id, s := range e.sessions {
		c.that(s.id == id && s.open && e.live[s.place] == s, "session %d is not open", id)
	}
}

// peers: loads, links and outboxes are what they say, and bounded.
func (c *checker) peers() {
	e := c.e
	c.that(len(e.order) == len(e.peers), "%d peers in order, %d in all", len(e.order), len(e.peers))
	for _, p := range e.order {
		c.that(e.peers[p.id] == p && p.up, "%s is in order and not up", who(p.id))
		load, offers, trusted := 0, 0, 0
		for w := p.asked.head; w != nil; w = w.next {
			load += w.size
		}
		for i, l := range p.links {
			c.that(l.place == i && l.peer == p, "%s has a link in the wrong place", who(p.id))
			c.that(e.wants[l.want.address] == l.want, "%s has a link to %s, which nobody wants", who(p.id), spell(l.want.address))
			c.that(slices.Contains(l.want.links, l), "%s has a link that %s does not have", who(p.id), spell(l.want.address))
			c.that(l.price == nil || l.says == has, "%s has a price for %s and does not have it", who(p.id), spell(l.want.address))
			c.that(!l.crowd || l.says == has, "%s is in the crowd and has not %s", who(p.id), spell(l.want.address))
			if l.says == has && l.want.state == ready && l.crowd == l.want.inCrowd() {
				offers++
			}
		}
		for _, s := range e.live {
			if m := s.member(p); m != nil && m.proven() {
				trusted++
			}
		}
		c.that(p.load == load, "%s has a load of %d, says %d", who(p.id), load, p.load)
		c.that(p.offers == offers, "%s has %d offers, says %d", who(p.id), offers, p.offers)
		c.that(p.trusted == trusted, "%s is proven in %d sessions, says %d", who(p.id), trusted, p.trusted)
		c.that(p.window >= 1 && p.window <= maxWindow, "%s has a window of %d", who(p.id), p.window)
		c.that(p.asked.len <= maxWindow, "%s is asked for %d blocks", who(p.id), p.asked.len)
		c.that(!p.dirty, "%s is dirty after the step", who(p.id))
		c.that(p.paused == p.timer.set(), "%s is paused %v and its timer is set: %v", who(p.id), p.paused, p.timer.set())
		// A line about a live link waits at most once as want-have and once as
		// want-block; beside these there are cancels and what was not swept yet.
		queued := map[*link]int{}
		for _, o := range p.outbox {
			if o.link != nil && !o.link.gone {
				queued[o.link]++
				c.that(queued[o.link] <= 2, "%s has %d lines about %s waiting", who(p.id), queued[o.link], spell(o.link.want.address))
			}
		}
		c.that(p.sending || p.paused || len(p.outbox) == 0 && len(p.presences) == 0,
			"%s takes messages and has %d lines and %d presences waiting", who(p.id), len(p.outbox), len(p.presences))
		c.that(len(p.presences) <= maxPresences, "%s has %d presences waiting", who(p.id), len(p.presences))
		c.that(len(p.cancelled.set) == len(p.cancelled.ring) && len(p.cancelled.ring) <= maxRecent, "%s remembers %d cancels", who(p.id), len(p.cancelled.ring))
	}
}

// timers: the heap is a heap and the deadline has not passed.
func (c *checker) timers(now time.Time) {
	h := c.e.timers.heap
	for i, t := range h {
		c.that(t.place == i+1, "timer %d says it is in place %d", i, t.place-1)
		c.that(i == 0 || !h.Less(i, (i-1)/2), "timer %d is before its parent", i)
	}
	if at := c.e.Deadline(); !at.IsZero() {
		c.that(!at.Before(now), "the deadline was %v ago", now.Sub(at))
	}
}

// ledger: the lists of the peers and the chains by address hold the same asks.
func (c *checker) ledger() {
	e := c.e
	byPeer := map[*ask]bool{}
	for _, p := range e.order {
		n := 0
		for st := range p.asks {
			l := &p.asks[st]
			m := 0
			var prev *ask
			for x := l.head; x != nil && m <= l.len; x = x.next {
				c.that(x.prev == prev, "ask of %s for %s: prev is wrong", who(p.id), spell(x.address))
				c.that(x.state == askState(st), "ask of %s for %s is in list %d, says %d", who(p.id), spell(x.address), st, x.state)
				c.that(x.peer == p && e.ledger.find(p, x.address) == x, "ask of %s for %s is not found", who(p.id), spell(x.address))
				c.that(!x.over || x.state == flying, "ask of %s for %s is over in state %d", who(p.id), spell(x.address), x.state)
				byPeer[x] = true
				prev = x
				m++
			}
			c.that(l.tail == prev && m == l.len, "%s has %d asks in list %d, says %d", who(p.id), m, st, l.len)
			n += m
		}
		c.that(n == p.asking, "%s asks for %d, says %d", who(p.id), n, p.asking)
		c.that(n <= e.cfg.WantsPerPeer, "%s asks for %d, may for %d", who(p.id), n, e.cfg.WantsPerPeer)
		c.that(p.looking || p.asks[looking].len == 0, "%s has %d asks that wait for a lookup that is not under way", who(p.id), p.asks[looking].len)
	}
	n := 0
	for a, x := range e.ledger.byAddress {
		c.that(x != nil, "%s has an empty chain", spell(a))
		var before *ask
		chain := 0
		for ; x != nil; x = x.other {
			c.that(x.before == before, "the chain of %s goes back another way", spell(a))
			before = x
			chain++
			c.that(byPeer[x] && x.address == a, "the chain of %s has an ask that no peer has", spell(a))
			n++
		}
		in := len(e.ledger.crowds[a])
		c.that(in == chain || in == 0 && chain < crowd, "%d ask for %s, %d are in the crowd", chain, spell(a), in)
	}
	for a := range e.ledger.crowds {
		c.that(e.ledger.byAddress[a] != nil, "there is a crowd for %s and nobody asks for it", spell(a))
	}
	c.that(n == len(byPeer), "chains hold %d asks, peers %d", n, len(byPeer))
}

// serving: sums of what is on its way are right and bounded.
func (c *checker) serving() {
	e := c.e
	inTurn := map[*peerCtx]int{}
	for _, p := range e.serving {
		inTurn[p]++
	}
	sum := 0
	for _, p := range e.order {
		asks := 0
		for _, f := range p.flying {
			bytes := 0
			for _, x := range f.asks {
				c.that(x.state == flying, "an ask of %s flies in state %d", who(p.id), x.state)
				bytes += x.size
			}
			c.that(bytes == f.bytes, "a message to %s has %d bytes, says %d", who(p.id), bytes, f.bytes)
			c.that(len(f.asks) <= messageBlocks && len(f.asks) > 0, "a message to %s has %d blocks", who(p.id), len(f.asks))
			c.that(f.bytes <= messageBytes || len(f.asks) == 1, "a message to %s has %d bytes in %d blocks", who(p.id), f.bytes, len(f.asks))
			sum += f.bytes
			asks += len(f.asks)
		}
		c.that(asks == p.asks[flying].len, "%s has %d asks in messages, %d that fly", who(p.id), asks, p.asks[flying].len)
		c.that(len(p.flying) <= max(p.streams, 1)+messagesAhead, "%s has %d messages of blocks on their way", who(p.id), len(p.flying))
		n := inTurn[p]
		c.that(n <= 1 && (n == 1) == p.inTurn, "%s is %d times in turn, says %v", who(p.id), n, p.inTurn)
		waits := p.asks[queued].len > 0 && !p.crowded() && !p.paused
		c.that(!waits || p.inTurn, "%s has blocks waiting and is not in turn", who(p.id))
		most := e.cfg.ServingBytes
		if p.wide() {
			most /= 2
		}
		c.that(!waits || e.flying >= most, "%s has blocks waiting though there is room", who(p.id))
		lookable := p.asks[unlooked].len > 0 && !p.looking && !p.paused && len(p.presences) < 4*listEntries
		c.that(!lookable || p.sending, "%s has asks that nobody looks up", who(p.id))
	}
	c.that(e.flying == sum, "%d bytes fly, says %d", sum, e.flying)
}

// progress: whatever can be asked has been asked.
func (c *checker) progress() {
	for _, g := range c.e.getters {
		if g.full(c.e) {
			continue
		}
		for w := g.ready.head; w != nil; w = w.next {
			candidate := false
			for _, l := range w.links {
				if l.says == has && l.peer.usable() {
					candidate = true
					c.that(l.crowd != w.inCrowd() || !l.peer.room(), "%s is ready, %s announced it and has room", spell(w.address), who(l.peer.id))
				}
			}
			for _, m := range g.session.members {
				if !w.inCrowd() && m.proven() && c.e.guessable(w, m.peer) && !(candidate && probed(w, m.peer)) {
					candidate = true
					c.that(m.guesses >= m.trust || !m.peer.room(), "%s is ready, %s is proven and has room", spell(w.address), who(m.peer.id))
				}
			}
			c.that(candidate, "%s is ready and there is nobody to ask", spell(w.address))
		}
	}
	for _, s := range c.e.live {
		for w := s.seeking.head; w != nil; w = w.next {
			c.that(!c.e.announced(w), "%s is seeking and was announced", spell(w.address))
		}
	}
}

// A watch listens to what goes in and out of an Engine and holds it to what the
// protocol asks of a node that talks to a reference peer.
type watch struct {
	peers map[peer.ID]*watched
	bad   []error
}

// watched is what one peer would remember.
type watched struct {
	epoch    uint64
	sending  bool
	stands   map[wire.Address]bool // want-blocks that it was sent
	asks     map[wire.Address]bool // what it asks of us, and whether for the block
	dontHave map[wire.Address]bool // what it may be told "don't have" of
}

func newWatch() *watch { return &watch{peers: map[peer.ID]*watched{}} }

func (v *watch) that(ok bool, format string, args ...any) {
	if !ok {
		v.bad = append(v.bad, fmt.Errorf(format, args...))
	}
}

func (v *watch) err() error { return errors.Join(v.bad...) }

func (v *watch) event(ev Event) {
	switch ev := ev.(type) {
	case PeerUp:
		if p := v.peers[ev.Peer]; p == nil || ev.Epoch > p.epoch {
			v.peers[ev.Peer] = &watched{
				epoch: ev.Epoch, stands: map[wire.Address]bool{},
				asks: map[wire.Address]bool{}, dontHave: map[wire.Address]bool{},
			}
		}
	case PeerDown:
		if p := v.peers[ev.Peer]; p != nil && p.epoch == ev.Epoch {
			delete(v.peers, ev.Peer)
		}
	case Sent:
		if p := v.peers[ev.Peer]; p != nil && p.epoch == ev.Epoch && !ev.Blocks {
			p.sending = false
		}
	case BlocksIn:
		if p := v.peers[ev.Peer]; p != nil {
			for _, b := range ev.Blocks {
				delete(p.stands, b.Address)
			}
		}
	case WantlistIn:
		p := v.peers[ev.Peer]
		if p == nil {
			return
		}
		for _, en := range ev.List.Entries {
			if en.Cancel {
				delete(p.asks, en.Address)
				continue
			}
			p.asks[en.Address] = p.asks[en.Address] || en.Type == wire.WantBlock
			if en.SendDontHave {
				p.dontHave[en.Address] = true
			}
		}
	}
}

func (v *watch) action(a Action) {
	switch a := a.(type) {
	case Send:
		p := v.peers[a.Peer]
		if p == nil || p.epoch != a.Epoch {
			v.that(false, "a message goes to %s, which has left", who(a.Peer))
			return
		}
		v.that(!p.sending, "%s is sent a second message before the first is away", who(a.Peer))
		p.sending = true
		v.that(len(a.List.Entries) <= 1024 && len(a.Presences) <= 1024, "%s is sent %d entries, %d presences", who(a.Peer), len(a.List.Entries), len(a.Presences))
		v.that(len(a.List.Entries)+len(a.Presences) > 0, "%s is sent an empty message", who(a.Peer))
		for _, en := range a.List.Entries {
			switch {
			case en.Cancel:
				delete(p.stands, en.Address)
			case en.Type == wire.WantBlock:
				p.stands[en.Address] = true
			default:
				v.that(!p.stands[en.Address], "%s is sent want-have %s though its want-block stands: it would not answer", who(a.Peer), spell(en.Address))
			}
		}
		for _, pr := range a.Presences {
			if pr.Type == wire.DontHave {
				v.that(p.dontHave[pr.Address], "%s is told DONT_HAVE %s without having asked: it would take it for HAVE", who(a.Peer), spell(pr.Address))
			}
		}
	case SendBlocks:
		p := v.peers[a.Peer]
		if p == nil || p.epoch != a.Epoch {
			v.that(false, "blocks go to %s, which has left", who(a.Peer))
			return
		}
		for _, b := range a.Blocks {
			v.that(p.asks[b.Address], "%s is sent %s, which it does not ask for", who(a.Peer), spell(b.Address))
		}
	}
}

// dump writes down an Engine for a reader.
func dump(e *Engine) string {
	var b strings.Builder
	states := []string{"resting", "seeking", "ready", "asked", "left"}
	says := []string{"nothing", "has", "hasNot", "tooSlow", "sentBad", "tooDear"}
	tolds := []string{"nothing", "have", "block"}
	wants := slices.SortedFunc(maps.Values(e.wants), func(x, y *want) int { return strings.Compare(spell(x.address), spell(y.address)) })
	for i, w := range wants {
		if i == 40 {
			fmt.Fprintf(&b, "… and %d more wants\n", len(wants)-i)
			break
		}
		fmt.Fprintf(&b, "want %s: %s", spell(w.address), states[w.state])
		if w.to != nil {
			fmt.Fprintf(&b, " to %s since %v, timer in %v", who(w.to.id), e.now.Sub(w.askedAt), w.timer.at.Sub(e.now))
		}
		if w.peer != nil {
			fmt.Fprintf(&b, " of %s since %v, timer in %v, guessed %v, hurry %v", who(w.peer.id), e.now.Sub(w.askedAt), w.timer.at.Sub(e.now), w.guessed != nil, w.hurry)
		}
		b.WriteString("; getters")
		for _, g := range w.getters {
			fmt.Fprintf(&b, " %d", g.id)
		}
		for _, l := range w.links {
			fmt.Fprintf(&b, "; %s told %s queued %s says %s", who(l.peer.id), tolds[l.told], tolds[l.queued], says[l.says])
		}
		b.WriteString("\n")
	}
	for _, id := range slices.Sorted(maps.Keys(e.getters)) {
		g := e.getters[id]
		fmt.Fprintf(&b, "getter %d: %d active, %d ready, held %d blocks %d bytes, load %d, more %v\n", id, g.active, g.ready.len, g.held, g.heldBytes, g.load, g.more())
	}
	for _, s := range e.live {
		fmt.Fprintf(&b, "session %d: %d getters, %d seeking, refresh in %v, search in %v;", s.id, s.getters, s.seeking.len, s.refreshAt.Sub(e.now), s.searchAt.Sub(e.now))
		for _, m := range s.members {
			fmt.Fprintf(&b, " %s trust %d guesses %d misses %d;", who(m.peer.id), m.trust, m.guesses, m.misses)
		}
		b.WriteString("\n")
	}
	for _, p := range e.order {
		fmt.Fprintf(&b, "peer %s: asked %d, window %d, load %d, rate %.0f, answer %v, bad %d, paused %v, sending %v, outbox %d, presences %d; asks", who(p.id), p.asked.len, p.window, p.load, p.rate, p.answer, p.bad, p.paused, p.sending, len(p.outbox), len(p.presences))
		for st, name := range []string{"unlooked", "looking", "absent", "queued", "flying"} {
			fmt.Fprintf(&b, " %d %s", p.asks[st].len, name)
		}
		fmt.Fprintf(&b, ", messages %d\n", len(p.flying))
	}
	fmt.Fprintf(&b, "flying %d bytes, %d addresses in the ledger, deadline in %v\n", e.flying, len(e.ledger.byAddress), e.Deadline().Sub(e.now))
	return b.String()
}
