package exchange

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/ahead"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/spans"
	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	// aheadAtOnce is how many blocks are looked up and asked for together.
	aheadAtOnce = 64
	// aheadSessions is how many sessions may have a full window at the same time.
	aheadSessions = 8
	// aheadIdle is how long blocks are held for a session that asks for nothing.
	aheadIdle = 30 * time.Second
)

// A readAhead fetches what a session is going to be asked for, as its plan has it, and
// holds it. Its methods may be called from any goroutine; a nil one reads nothing
// ahead.
//
// What is under way has a goroutine, run, which ends when nothing is. A block that a
// caller asks for while it is under way is passed on when it comes, so it is asked for
// once.
type readAhead struct {
	exchange *Exchange
	session  engine.SessionID
	quit     chan struct{} // closed by end
	wake     chan struct{} // with room for one: run should look

	mu      sync.Mutex
	plan    *ahead.Plan
	guesses map[cid.Cid]*guess // those of the plan
	running bool               // run is; there are no guesses and no batches else
	ended   bool
	booked  int         // bytes that are taken of Exchange.ahead
	counted ahead.Stats // as far as Exchange.ahead has them

	// Owned by run.
	in      chan arrival // of all batches
	batches map[engine.GetterID]*batch
	looked  chan looked // with room for one
	looking bool        // something is going to come through looked
}

// A guess is a block that is being looked up, under way or held. Guarded by
// readAhead.mu.
type guess struct {
	batch   *batch           // of which it is under way
	block   blocks.Block     // held
	callers []chan<- arrival // that have asked for it, each with room for it; an arrival without block says that it does not come this way
}

// looked is what the local store has of some guesses.
type looked struct {
	list  []cid.Cid
	local []bool                 // need not be fetched
	nodes map[cid.Cid]ahead.Node // of those, as far as they have links
}

// A batch is guesses that were asked for in one request. Owned by run.
type batch struct {
	getter *getter
	wants  []wire.Want
	came   int
	took   engine.Took
	left   int // guesses that are under way; guarded by readAhead.mu
}

func (e *Exchange) newReadAhead(session engine.SessionID) *readAhead {
	if e.cfg.ReadAhead < 0 {
		return nil
	}
	return &readAhead{
		exchange: e,
		session:  session,
		quit:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		plan:     ahead.NewPlan(e.cfg.ReadAhead),
		guesses:  make(map[cid.Cid]*guess),
	}
}

// end gives up what is held and under way; nothing is read ahead any more. It does
// not wait.
func (r *readAhead) end() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended = true
		close(r.quit)
	}
}

// ask tells the plan what a caller asks for, and returns the block if it is held. If it
// is under way, coming is true, and the arrival is sent to ch, which is made if it is
// nil; it has room for count arrivals.
func (r *readAhead) ask(c cid.Cid, ch *chan arrival, count int) (b blocks.Block, coming bool) {
	state := r.plan.Ask(c)
	g := r.guesses[c]
	switch {
	case g == nil || r.ended:
	case state == ahead.Held:
		b = g.block
		delete(r.guesses, c)
	case state == ahead.Coming:
		if *ch == nil {
			*ch = make(chan arrival, count)
		}
		g.callers = append(g.callers, *ch)
		coming = true
	}
	r.settle()
	return b, coming
}

// knows reports whether there is anything that asking could be compared with.
func (r *readAhead) knows() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.plan.Empty()
}

// leave takes a caller's channel away from guesses that it does not wait for any more.
func (r *readAhead) leave(ch chan<- arrival, list ...cid.Cid) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range list {
		g := r.guesses[c]
		if g == nil {
			continue
		}
		for i, x := range g.callers {
			if x == ch {
				g.callers = append(g.callers[:i], g.callers[i+1:]...)
				if len(g.callers) == 0 {
					r.plan.Forget(c)
					r.remove(c)
				}
				break
			}
		}
	}
	r.settle()
	r.goOn()
}

// learn reads the links of a block that was asked for, if it can have any.
func (r *readAhead) learn(b blocks.Block) {
	if r == nil || !ahead.HasLinks(b.Cid()) {
		return
	}
	if n := r.decode(b); len(n.Links) > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.plan.Add(b.Cid(), n)
		r.goOn()
	}
}

// decode reads the links of a block; there are none in what is not a node.
func (r *readAhead) decode(b blocks.Block) ahead.Node {
	n, err := ahead.Decode(b.Cid(), b.RawData())
	if err != nil {
		r.exchange.cfg.Logger.Debug("block not followed", "err", err)
	}
	return n
}

// getBlock is Exchange.getBlock for the session.
func (r *readAhead) getBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	const op = "get block"
	e := r.exchange
	if checkKey(op, c) != nil || ctx.Err() != nil {
		return e.getBlock(ctx, r.session, c) // which says what is wrong
	}
	var ch chan arrival
	r.mu.Lock()
	b, coming := r.ask(c, &ch, 1)
	r.goOn()
	r.mu.Unlock()
	if b == nil && !coming {
		b, err := e.getBlock(ctx, r.session, c)
		if err == nil {
			r.learn(b)
		}
		return b, err
	}
	ctx, span := spans.Start(ctx, "exchange.GetBlock")
	span.Cid(c)
	var err error
	if coming {
		select {
		case a := <-ch:
			if b = a.block; b == nil {
				b, err = r.fetch(ctx, c)
			}
		case <-ctx.Done():
			r.leave(ch, c)
			err = gaveUp(ctx, op, c)
		case <-e.stopped:
			err = closed(op, wire.CidString(c))
		}
	}
	span.End(err)
	return b, err
}

// fetch gets a block of which the guess came to nothing.
func (r *readAhead) fetch(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if b, err := r.exchange.cfg.Blocks.Get(ctx, c); err == nil {
		return b, nil
	}
	b, err := r.exchange.getBlock(ctx, r.session, c)
	if err == nil {
		r.learn(b)
	}
	return b, err
}

// getBlocks is Exchange.getBlocks for the session.
func (r *readAhead) getBlocks(ctx context.Context, keys []cid.Cid, done func()) (<-chan blocks.Block, error) {
	e := r.exchange
	for _, c := range keys {
		if err := checkKey("get blocks", c); err != nil {
			done()
			return nil, err
		}
	}
	var held []blocks.Block
	var coming map[cid.Cid]struct{}
	var ch chan arrival
	rest := keys
	if ctx.Err() == nil && r.knows() {
		rest = make([]cid.Cid, 0, len(keys))
		seen := make(map[cid.Cid]struct{}, len(keys))
		r.mu.Lock()
		for _, c := range keys {
			if _, again := seen[c]; again {
				continue
			}
			seen[c] = struct{}{}
			b, comes := r.ask(c, &ch, len(keys))
			switch {
			case b != nil:
				held = append(held, b)
			case comes:
				if coming == nil {
					coming = make(map[cid.Cid]struct{})
				}
				coming[c] = struct{}{}
			default:
				rest = append(rest, c)
			}
		}
		r.goOn()
		r.mu.Unlock()
	}
	if len(held)+len(coming) == 0 {
		return e.getBlocks(ctx, r.session, rest, r.learn, done)
	}
	leave := func() {
		for c := range coming {
			r.leave(ch, c)
		}
		done()
	}
	var fetched <-chan blocks.Block
	if len(rest) > 0 {
		var err error
		if fetched, err = e.getBlocks(ctx, r.session, rest, r.learn); err != nil {
			leave()
			return nil, err
		}
	}
	out := make(chan blocks.Block)
	if !e.goes(func() {
		defer leave()
		defer close(out)
		r.join(ctx, held, coming, ch, fetched, out)
	}) {
		leave()
		return nil, closed("get blocks", "")
	}
	return out, nil
}

// join passes on to a caller what was held, what is coming and what is fetched. Of
// coming it takes out what has come.
func (r *readAhead) join(ctx context.Context, held []blocks.Block, coming map[cid.Cid]struct{}, ch <-chan arrival, fetched <-chan blocks.Block, out chan<- blocks.Block) {
	for {
		var b blocks.Block
		switch {
		case len(held) > 0:
			b, held[0], held = held[0], nil, held[1:]
		case len(coming) > 0 || fetched != nil:
			select {
			case a := <-ch:
				delete(coming, a.address.Root)
				if b = a.block; b == nil {
					var err error
					if b, err = r.fetch(ctx, a.address.Root); err != nil {
						return
					}
				}
			case x, more := <-fetched:
				if !more {
					fetched = nil
					continue
				}
				b = x
			case <-ctx.Done():
				return
			case <-r.exchange.stopped:
				return
			}
		default:
			return
		}
		select {
		case out <- b:
			continue
		case <-ctx.Done():
		case <-r.exchange.stopped:
		}
		for _, b := range append(held, b) {
			lent.Free(b)
		}
		return
	}
}

// settle takes note of what the plan has dropped and counted. The caller holds mu.
func (r *readAhead) settle() {
	for _, c := range r.plan.Dropped() {
		r.remove(c)
	}
	_, bytes := r.plan.Open()
	r.exchange.ahead.held.Add(int64(bytes - r.booked))
	r.booked = bytes
	if s := r.plan.Stats(); s != r.counted {
		r.exchange.ahead.count(s, r.counted)
		r.counted = s
	}
}

// remove takes a guess out that the plan has not any more. The caller holds mu.
func (r *readAhead) remove(c cid.Cid) {
	if g := r.guesses[c]; g != nil {
		delete(r.guesses, c)
		lent.Free(g.block)
		if g.batch != nil {
			if g.batch.left--; g.batch.left == 0 {
				r.poke()
			}
		}
	}
}

func (r *readAhead) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// goOn sees to it that run does what there is to do. The caller holds mu.
func (r *readAhead) goOn() {
	switch {
	case r.ended || !r.plan.Hungry():
	case r.running:
		r.poke()
	default:
		if r.in == nil {
			r.in = make(chan arrival, ahead.MaxOpen)
			r.batches = make(map[engine.GetterID]*batch)
			r.looked = make(chan looked, 1)
		}
		r.running = r.exchange.goes(r.run)
	}
}

// run makes guesses and takes in what comes, until there are no more.
func (r *readAhead) run() {
	var asks uint64 // of the plan, when the timer was set
	idle := time.NewTimer(aheadIdle)
	defer idle.Stop()
	for r.fill() {
		select {
		case a := <-r.in:
			r.take(a)
			n := 1
			for ; len(r.in) > 0; n++ {
				r.take(<-r.in)
			}
			for _, b := range r.batches {
				r.tell(b, n >= cap(r.in))
			}
		case l := <-r.looked:
			r.looking = false
			r.begin(l)
		case <-r.wake:
		case <-idle.C:
			r.mu.Lock()
			if now := r.plan.Asks(); now == asks {
				r.plan.DropAll()
				r.settle()
			} else {
				asks = now
			}
			r.mu.Unlock()
			idle.Reset(aheadIdle)
		case <-r.quit:
			r.giveUp()
			return
		case <-r.exchange.ctx.Done():
			r.giveUp()
			return
		}
	}
}

// giveUp ends everything that is under way. Who waits for it is told to get it in
// another way.
func (r *readAhead) giveUp() {
	r.end()
	r.mu.Lock()
	r.plan.DropAll()
	r.settle()
	for c, g := range r.guesses {
		r.plan.Forget(c)
		g.answer(arrival{address: wire.Block(c)})
	}
	clear(r.guesses)
	r.settle()
	r.mu.Unlock()
	for _, b := range r.batches {
		r.finish(b)
	}
	r.exchange.closeSession(r.session) // for a batch may have opened it again
}

func (g *guess) answer(a arrival) {
	if len(g.callers) > 1 {
		a.block = lent.Own(a.block)
	}
	if len(g.callers) == 0 {
		lent.Free(a.block)
	}
	for _, ch := range g.callers {
		ch <- a
	}
	g.callers = nil
}

// fill makes guesses if there is room, and has them looked up. It is false if nothing is
// under way or held: then run is not running any more.
func (r *readAhead) fill() bool {
	for _, b := range r.batches {
		r.mu.Lock()
		over := b.left == 0
		r.mu.Unlock()
		if over {
			r.finish(b)
		}
	}
	if r.looking {
		return true
	}
	list, more := r.next()
	if len(list) > 0 {
		// On a goroutine of its own, for what comes meanwhile is waited for.
		r.looking = true
		r.exchange.wg.Go(func() { r.looked <- r.look(list) })
	}
	return more
}

// next takes guesses from the plan.
func (r *readAhead) next() (list []cid.Cid, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	if r.plan.Hungry() && !r.ended {
		room := r.exchange.ahead.take(r.plan.Room())
		r.booked += room
		list = r.plan.Next(aheadAtOnce, room)
		r.settle()
		for _, c := range list {
			r.guesses[c] = new(guess)
		}
	}
	r.running = len(r.guesses) > 0 || len(r.batches) > 0
	return list, r.running
}

// look asks the local store for guesses, and reads the links of those it has.
func (r *readAhead) look(list []cid.Cid) looked {
	e := r.exchange
	l := looked{list, r.local(list), make(map[cid.Cid]ahead.Node)}
	for i, c := range list {
		if l.local[i] && ahead.HasLinks(c) {
			if b, err := e.cfg.Blocks.Get(e.ctx, c); err == nil {
				l.nodes[c] = r.decode(b)
			}
		}
	}
	return l
}

// begin asks for the guesses that are not in the local store.
func (r *readAhead) begin(l looked) {
	e := r.exchange
	b := new(batch)
	r.mu.Lock()
	for i, c := range l.list {
		g := r.guesses[c]
		switch {
		case g == nil: // dropped
		case l.local[i]:
			r.plan.Local(c)
			r.plan.Add(c, l.nodes[c])
			delete(r.guesses, c)
			g.answer(arrival{address: wire.Block(c)})
		default:
			g.batch = b
			b.left++
			b.wants = append(b.wants, wire.WantCid(c))
		}
	}
	r.settle()
	r.mu.Unlock()
	if len(b.wants) == 0 {
		return
	}
	g, ev := e.newGetter(r.session, b.wants)
	g.in, g.shared = r.in, true
	b.getter, b.took.Getter = g, g.id
	r.batches[g.id] = b
	e.view.add(b.wants)
	e.post(input{event: ev, getter: g})
}

// local reports of each block whether it need not be fetched: because the local store
// has it, or cannot tell, or because nobody can ask for it.
func (r *readAhead) local(list []cid.Cid) []bool {
	e := r.exchange
	local := make([]bool, len(list))
	var sizes []int
	if s, ok := e.cfg.Blocks.(Sizer); ok {
		var err error
		sizes, err = s.Sizes(e.ctx, list)
		if err = answered(len(sizes), len(list), err); err != nil {
			e.cfg.Logger.Warn("nothing read ahead: the store does not answer", "err", err)
			sizes = make([]int, len(list))
		}
	}
	for i, c := range list {
		if checkKey("", c) != nil {
			local[i] = true
		} else if sizes != nil {
			local[i] = sizes[i] >= 0
		} else {
			_, err := e.cfg.Blocks.Size(e.ctx, c)
			local[i] = !errors.Is(err, errs.NotFound)
		}
	}
	return local
}

// finish ends a batch of which nothing is under way any more.
func (r *readAhead) finish(b *batch) {
	if b.came < len(b.wants) {
		r.exchange.drop(b.getter)
	}
	r.exchange.view.remove(b.wants)
	delete(r.batches, b.getter.id)
}

// take takes in a block that has come.
func (r *readAhead) take(a arrival) {
	b := r.batches[a.getter]
	if b == nil {
		lent.Free(a.block)
		return // it was given up
	}
	c := a.address.Root
	b.came++
	b.took.Blocks++
	var n ahead.Node
	size := 0
	if a.block != nil {
		size = sizeOf(a.block)
		if ahead.HasLinks(c) {
			n = r.decode(a.block)
		}
	}
	b.took.Bytes += size
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guesses[c]
	if g == nil || g.batch != b {
		lent.Free(a.block)
		return // dropped
	}
	b.left--
	g.batch = nil
	if a.block == nil {
		r.plan.Forget(c)
	} else {
		room := r.exchange.ahead.take(size)
		r.booked += room // until settle
		if r.plan.Came(c, size, room) {
			g.block = a.block
		}
	}
	if g.block == nil {
		delete(r.guesses, c)
		g.answer(a)
	}
	r.plan.Add(c, n)
	r.settle()
}

// tell lets the engine know what has been taken of a batch. If in was full, all of the
// batch may have come too late for it, and waits for the loop to hear that there is room.
func (r *readAhead) tell(b *batch, full bool) {
	if (full || b.took.Blocks > 0) && b.came < len(b.wants) {
		r.exchange.post(input{event: b.took})
	}
	b.took.Blocks, b.took.Bytes = 0, 0
}

// allAhead is what the sessions of an exchange hold ahead of their callers, and what
// became of it. It may be used from any goroutine.
type allAhead struct {
	limit int64
	held  atomic.Int64 // bytes, guesses that are under way included

	used, usedBytes, wasted, wastedBytes atomic.Uint64
}

// take takes up to n bytes of what may be held.
func (a *allAhead) take(n int) int {
	for {
		held := a.held.Load()
		got := min(int64(n), a.limit-held)
		if got <= 0 {
			return 0
		}
		if a.held.CompareAndSwap(held, held+got) {
			return int(got)
		}
	}
}

func (a *allAhead) count(now, before ahead.Stats) {
	a.used.Add(now.Used - before.Used)
	a.usedBytes.Add(now.UsedBytes - before.UsedBytes)
	a.wasted.Add(now.Wasted - before.Wasted)
	a.wastedBytes.Add(now.WastedBytes - before.WastedBytes)
}
