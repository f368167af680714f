package engine

import (
	"slices"

	"github.com/codexchange/codexchange/exchange/wire"
)

// listEntries is how many entries, and how many presences, one message has at
// most: what the reference sends (protocol note 13).
const listEntries = 1024

// maxPresences is how many presences wait for a peer, at most.
const maxPresences = 8 * listEntries

// outEntry is one line that waits to be sent. A line about a live want is made
// from its link when it is sent, so that what was settled meanwhile is never
// said.
type outEntry struct {
	link   *link // nil for a cancel
	say    told
	cancel wire.Address
}

// tellHave puts a want-have into the outbox of a peer, unless it was told before
// or the answer is known.
func (e *Engine) tellHave(w *want, p *peerCtx) bool {
	if !p.usable() {
		return false
	}
	l := e.know(w, p)
	if l.told != toldNothing || l.queued != toldNothing || l.says == has || l.says == sentBad || l.says == tooDear {
		return false // it was told, or there is no need
	}
	e.queue(l, toldHave)
	return true
}

// tellBlock puts a want-block into the outbox of a peer, even if it stands there
// already: asked again, a peer tries again.
func (e *Engine) tellBlock(l *link) { e.queue(l, toldBlock) }

func (e *Engine) queue(l *link, say told) {
	if l.queued >= say {
		return // it waits there
	}
	l.queued = say
	l.peer.put(outEntry{link: l, say: say})
	e.touch(l.peer)
}

// put appends to the outbox. While the peer does not take messages, lines about
// wants that have ended are thrown out from time to time, so that the outbox is
// bounded by what is active and what the peer was told.
func (p *peerCtx) put(o outEntry) {
	if len(p.outbox) >= max(4*listEntries, p.compactAt) {
		p.outbox = slices.DeleteFunc(p.outbox, func(o outEntry) bool { return o.link != nil && o.link.gone })
		p.compactAt = 2 * len(p.outbox)
	}
	p.outbox = append(p.outbox, o)
}

// cancel takes back what a peer was told, if it may still act on it. A peer that
// answered a want-have has nothing left to forget.
func (e *Engine) cancel(l *link) {
	p := l.peer
	stands := l.told == toldBlock || l.told == toldHave && l.says != has && l.says != tooDear
	if !p.up || p.paused || !stands {
		return
	}
	if l.told == toldBlock {
		p.cancelled.add(l.want.address)
	}
	p.put(outEntry{cancel: l.want.address})
	l.told = toldNothing
	e.touch(p)
}

// present puts a presence into the outbox of a peer. It is false if there is no
// room, because the peer asks and does not take our answers.
func (e *Engine) present(p *peerCtx, a wire.Address, t wire.PresenceType) bool {
	if len(p.presences) >= maxPresences {
		return false
	}
	pr := wire.Presence{Address: a, Type: t}
	if t == wire.Have {
		pr.Price = e.cfg.Price
	}
	p.presences = append(p.presences, pr)
	e.touch(p)
	return true
}

// touch remembers that a peer has something to be sent.
func (e *Engine) touch(p *peerCtx) {
	if !p.dirty {
		p.dirty = true
		e.dirty = append(e.dirty, p)
	}
}

// flush makes messages of what waits in outboxes. A peer gets one at a time: what
// comes up while it is being written gathers for the next one, and when nothing
// is being written a lone want leaves at once.
func (e *Engine) flush() {
	for _, p := range e.dirty {
		p.dirty = false
		e.flushPeer(p)
	}
	e.dirty = e.dirty[:0]
}

func (e *Engine) flushPeer(p *peerCtx) {
	if p.sending || p.paused || !p.up {
		return
	}
	var s Send
	n := 0
	for _, o := range p.outbox {
		if len(s.List.Entries) == listEntries {
			break
		}
		n++
		if o.link == nil {
			s.List.Entries = append(s.List.Entries, wire.Entry{Address: o.cancel, Cancel: true, Type: wire.WantHave})
			continue
		}
		l := o.link
		if l.gone || l.queued == toldNothing {
			continue
		}
		if o.say >= l.queued {
			l.queued = toldNothing
		}
		if o.say == toldBlock && l.want.peer != p && l.told != toldBlock {
			continue // it was going to be asked, and is not any more
		}
		t := wire.WantHave
		if o.say == toldBlock {
			t = wire.WantBlock
		}
		s.List.Entries = append(s.List.Entries, wire.Entry{Address: l.want.address, Type: t, SendDontHave: true})
		l.told, l.toldAt = max(l.told, o.say), e.now
	}
	p.outbox = slices.Delete(p.outbox, 0, n)
	if n := min(len(p.presences), listEntries); n > 0 {
		s.Presences = append(s.Presences, p.presences[:n]...)
		p.presences = slices.Delete(p.presences, 0, n)
	}
	if len(s.List.Entries) == 0 && len(s.Presences) == 0 {
		return
	}
	if p.full && len(s.List.Entries) > 0 {
		s.List.Full, p.full = true, false
	}
	s.Peer, s.Epoch = p.id, p.epoch
	p.sending = true
	p.stats.MessagesSent++
	e.act(s)
}
