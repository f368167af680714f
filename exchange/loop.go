package exchange

import (
	"context"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/lent"
)

// inboxLength is how many events may wait for the loop. Who has one more waits
// with it, which the loop, waiting for nobody, ends soon.
const inboxLength = 256

// An input is an event on its way to the loop, and what belongs to it.
type input struct {
	event  engine.Event
	blocks []arrival            // those that BlocksIn and Stored speak of
	getter *getter              // of a Want or a Drop
	look   func(*engine.Engine) // instead of an event: a question
	done   func()               // to be called when the event has been taken; may be nil
}

// post hands an input to the loop. It is false if the exchange has closed.
func (e *Exchange) post(in input) bool {
	select {
	case <-e.stopped:
		return false
	default:
	}
	select {
	case e.inbox <- in:
		return true
	case <-e.stopped:
		return false
	}
}

// inspect runs f on the loop and waits for it. It is false if the exchange has
// closed; f has not been run then, and will not be.
func (e *Exchange) inspect(f func(*engine.Engine)) bool {
	done := make(chan struct{})
	if !e.post(input{look: func(g *engine.Engine) { f(g); close(done) }}) {
		return false
	}
	select {
	case <-done:
		return true
	case <-e.stopped:
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// A loop owns the engine and all that its actions need. Nothing in it is touched
// by another goroutine, and nothing it does waits.
type loop struct {
	ctx      context.Context
	exchange *Exchange
	engine   *engine.Engine
	getters  map[engine.GetterID]*getter
	links    map[peer.ID]*link
	timer    *time.Timer
	inputs   uint64 // taken so far
	lost     []lostSession

	// Searches that wait, and how many are under way; see search.go.
	searches  []cid.Cid
	searching int
	finder    *finder
}

func newLoop(e *Exchange) *loop {
	return &loop{
		ctx:      e.ctx,
		exchange: e,
		engine:   engine.New(e.cfg.engine()),
		getters:  make(map[engine.GetterID]*getter),
		links:    make(map[peer.ID]*link),
		finder:   newFinder(e),
	}
}

// run takes inputs until ctx ends.
func (l *loop) run() {
	e := l.exchange
	defer close(e.stopped)
	defer func() {
		e.last = statOf(l.engine.Stats())
		e.last.Peers, e.last.Wants, e.last.Getters, e.last.Asks, e.last.Flying = 0, 0, 0, 0, 0
	}()
	l.timer = time.NewTimer(time.Hour)
	defer l.timer.Stop()
	defer func() {
		for _, k := range l.links {
			k.close()
		}
	}()
	for {
		var in input
		select {
		case <-l.ctx.Done():
			return
		case in = <-e.inbox:
		case <-l.timer.C:
			in.event = engine.Tick{}
		}
		start := time.Now()
		if in.look != nil {
			in.look(l.engine)
		} else {
			l.step(start, in)
		}
		if in.done != nil {
			in.done()
		}
		l.inputs++
		l.closeLost()
		e.meter.took(time.Since(start))
	}
}

// A lostSession is one that nobody holds any more, and the number of inputs after
// which none of its requests can be in the inbox.
type lostSession struct {
	id    engine.SessionID
	ahead *readAhead
	after uint64
}

func (l *loop) closeLost() {
	for _, s := range l.exchange.lost.take() {
		s.after = l.inputs + inboxLength
		l.lost = append(l.lost, s)
	}
	for len(l.lost) > 0 && (l.lost[0].after < l.inputs || len(l.exchange.inbox) == 0) {
		s := l.lost[0]
		l.lost = l.lost[1:]
		s.ahead.end()
		l.step(time.Now(), input{event: engine.CloseSession{Session: s.id}})
	}
}

// step lets the engine decide and carries its decisions out.
func (l *loop) step(now time.Time, in input) {
	l.before(in)
	l.decide(now, in)
	l.after(in)
	for len(l.searches) > searchesWait {
		// The one that has waited longest gives way; its session asks again.
		key := l.searches[0]
		l.searches = l.searches[1:]
		l.decide(now, input{event: engine.Searched{Key: key}})
	}
	l.search()
	if at := l.engine.Deadline(); at.IsZero() {
		l.timer.Stop()
	} else {
		l.timer.Reset(time.Until(at))
	}
}

// before brings what the loop keeps up to date with an event.
func (l *loop) before(in input) {
	switch ev := in.event.(type) {
	case engine.Want:
		l.getters[ev.Getter] = in.getter
	case engine.PeerUp:
		if k := l.links[ev.Peer]; k != nil {
			k.close()
		}
		l.links[ev.Peer] = newLink(l.ctx, l.exchange, ev.Peer, ev.Epoch)
	case engine.Searched:
		l.searching--
	case engine.Took:
		if g := l.getters[ev.Getter]; g != nil {
			g.catchUp()
		}
	}
}

// after does the same for what has to be there while the actions are carried
// out.
func (l *loop) after(in input) {
	switch ev := in.event.(type) {
	case engine.Drop:
		delete(l.getters, ev.Getter)
		in.getter.leave()
	case engine.Took:
		if g := l.getters[ev.Getter]; g != nil && g.all && len(g.late) == 0 {
			delete(l.getters, ev.Getter)
		}
	case engine.PeerDown:
		if k := l.links[ev.Peer]; k != nil && k.epoch == ev.Epoch {
			k.close()
			delete(l.links, ev.Peer)
		}
	}
}

func (l *loop) decide(now time.Time, in input) {
	l.engine.Step(now, in.event)
	actions := l.engine.Actions()
	share(in.blocks, actions)
	for _, a := range actions {
		l.do(a, in)
	}
}

// share sees to it that a block in memory that is lent has one owner: one that several
// getters are given is copied, and one that none is given goes back.
func share(list []arrival, actions []engine.Action) {
	isLent := func(a arrival) bool { _, ok := a.block.(*lent.Block); return ok }
	if !slices.ContainsFunc(list, isLent) {
		return
	}
	given := make([]int, len(list))
	for _, a := range actions {
		if d, ok := a.(engine.Deliver); ok {
			given[d.Ref]++
		}
	}
	for i := range list {
		switch {
		case !isLent(list[i]):
		case given[i] == 0:
			lent.Free(list[i].block)
		case given[i] > 1:
			list[i].block = lent.Own(list[i].block)
		}
	}
}

func (l *loop) do(a engine.Action, in input) {
	switch a := a.(type) {
	case engine.Deliver:
		if g := l.getters[a.Getter]; g != nil {
			got := in.blocks[a.Ref]
			got.address, got.getter = a.Address, a.Getter
			g.give(got)
		}
	case engine.Finish:
		if g := l.getters[a.Getter]; g != nil {
			g.all = true
			g.catchUp()
			if len(g.late) == 0 {
				delete(l.getters, a.Getter)
			}
		}
	case engine.Send:
		if k := l.links[a.Peer]; k != nil {
			k.send(a)
		}
	case engine.SendBlocks:
		if k := l.links[a.Peer]; k != nil {
			k.order(a)
		}
	case engine.Lookup:
		if k := l.links[a.Peer]; k != nil {
			k.order(a)
		}
	case engine.Value:
		l.exchange.cfg.Network.Tag(a.Peer, a.Value)
	case engine.Search:
		l.searches = append(l.searches, a.Key)
	}
}
