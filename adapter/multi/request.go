package multi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// firstShare is how many blocks an exchange is first asked for beside the lead.
// The next time it is twice as many, and so on, so that a request of n blocks
// has at most log2(n/firstShare)+2 calls under way on each exchange.
const firstShare = 32

// A request is one call of a getter. It belongs to one goroutine.
type request struct {
	session *session
	keys    []cid.Cid            // distinct, in order
	missing map[cid.Cid]struct{} // have not come
	askers  []*asker             // the lead, then the others in order
	shares  map[*share]struct{}  // under way
	events  chan event
	readers sync.WaitGroup // one for each share, until its call has ended
}

// An asker is one exchange in one request. It goes through the keys once.
type asker struct {
	member int   // index
	next   int   // first key that it has not been asked for
	size   int   // of its next share
	calls  int   // shares under way
	gone   bool  // it has given up
	err    error // why, if it said
}

// A share is some keys that one exchange is asked for in one call.
type share struct {
	asker  *asker
	size   int
	waits  map[cid.Cid]struct{} // have not come, from anybody
	came   int                  // blocks that came first from this call
	more   bool                 // the asker goes on when half has come
	cancel context.CancelFunc
}

// An event is a block, or the end of a call if block is nil.
type event struct {
	share *share
	block blocks.Block
	err   error
}

// run gets the keys, which are distinct, and calls deliver for each block once.
// It returns when all have come, deliver returns false, a context has ended, or
// no exchange is left to ask; then with the reason.
func (s *session) run(ctx context.Context, keys []cid.Cid, deliver func(blocks.Block) bool) error {
	if len(keys) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	r := newRequest(s, keys)
	defer r.readers.Wait()
	defer cancel()

	delay := s.x.delay
	if delay > 0 {
		r.ask(ctx, r.askers[0], len(keys))
	} else {
		for _, a := range r.askers {
			r.ask(ctx, a, len(keys))
		}
		delay = time.Hour // everybody has been asked for everything
	}
	quiet := time.NewTimer(delay)
	defer quiet.Stop()
	for len(r.missing) > 0 {
		select {
		case e := <-r.events:
			if e.block == nil {
				if r.ended(ctx, e); len(r.shares) > 0 {
					continue
				}
				if err := s.over(ctx); err != nil {
					return err
				}
				return r.reason()
			}
			if !r.arrived(ctx, e) {
				continue // another was faster
			}
			if !deliver(e.block) {
				return s.over(ctx)
			}
			quiet.Reset(delay)
		case <-quiet.C:
			r.widen(ctx)
			quiet.Reset(delay)
		case <-ctx.Done():
			return s.over(ctx)
		case <-s.ctx.Done():
			return s.over(ctx)
		}
	}
	return nil
}

// over says which context has ended, or returns nil.
func (s *session) over(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.ctx.Err(); err != nil {
		return fmt.Errorf("session has ended: %w", err)
	}
	return nil
}

func newRequest(s *session, keys []cid.Cid) *request {
	r := &request{
		session: s,
		keys:    keys,
		missing: make(map[cid.Cid]struct{}, len(keys)),
		shares:  make(map[*share]struct{}),
		events:  make(chan event),
	}
	for _, c := range keys {
		r.missing[c] = struct{}{}
	}
	lead := int(s.lead.Load())
	r.askers = append(r.askers, &asker{member: lead})
	for i := range s.x.members {
		if i != lead {
			r.askers = append(r.askers, &asker{member: i, size: firstShare})
		}
	}
	return r
}

// can reports whether there are keys that an asker can still be asked for.
func (r *request) can(a *asker) bool {
	for a.next < len(r.keys) {
		if _, missing := r.missing[r.keys[a.next]]; missing {
			break
		}
		a.next++
	}
	return !a.gone && a.next < len(r.keys)
}

// ask asks an exchange for the next missing keys, at most n.
func (r *request) ask(ctx context.Context, a *asker, n int) {
	if !r.can(a) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	sh := &share{asker: a, waits: make(map[cid.Cid]struct{}), more: true, cancel: cancel}
	var keys []cid.Cid
	for ; a.next < len(r.keys) && len(keys) < n; a.next++ {
		c := r.keys[a.next]
		if _, missing := r.missing[c]; missing {
			keys = append(keys, c)
			sh.waits[c] = struct{}{}
		}
	}
	sh.size = len(keys)
	a.size *= 2
	a.calls++
	r.shares[sh] = struct{}{}
	f := r.session.fetcher(a.member)
	r.readers.Go(func() {
		err := r.read(ctx, sh, f, keys)
		select {
		case r.events <- event{share: sh, err: err}:
		case <-ctx.Done():
		}
	})
}

// read makes the call of a share and hands on what comes. It runs on a goroutine
// of its own.
func (r *request) read(ctx context.Context, sh *share, f boxo.Fetcher, keys []cid.Cid) error {
	if len(keys) == 1 { // this one says why there is no block
		b, err := f.GetBlock(ctx, keys[0])
		if err == nil {
			r.send(ctx, sh, b)
		}
		return err
	}
	ch, err := f.GetBlocks(ctx, keys)
	if err != nil {
		return err
	}
	for {
		select {
		case b, ok := <-ch:
			if !ok || !r.send(ctx, sh, b) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *request) send(ctx context.Context, sh *share, b blocks.Block) bool {
	select {
	case r.events <- event{share: sh, block: b}:
		return true
	case <-ctx.Done():
		return false
	}
}

// arrived takes note of a block, and reports whether it is the first copy.
func (r *request) arrived(ctx context.Context, e event) (first bool) {
	c := e.block.Cid()
	if _, first = r.missing[c]; !first {
		return false
	}
	delete(r.missing, c)
	r.session.lead.Store(int32(e.share.asker.member))
	e.share.came++
	for sh := range r.shares {
		if delete(sh.waits, c); len(sh.waits) == 0 {
			r.end(sh) // nothing is left of it, whoever it came from
		}
	}
	if sh := e.share; sh.more && 2*sh.came >= sh.size {
		sh.more = false
		r.ask(ctx, sh.asker, sh.asker.size)
	}
	return true
}

// end cancels the call of a share.
func (r *request) end(sh *share) {
	sh.cancel()
	sh.asker.calls--
	delete(r.shares, sh)
}

// ended takes note that a call has ended by itself. If blocks of it are missing,
// its exchange has given up, and the next takes over, unless one that has been
// asked for everything is still at work.
func (r *request) ended(ctx context.Context, e event) {
	a := e.share.asker
	if _, running := r.shares[e.share]; !running {
		return
	}
	r.end(e.share)
	a.gone, a.err = true, e.err
	for _, b := range r.askers {
		if b.calls > 0 && !b.gone && !r.can(b) {
			return
		}
	}
	for _, b := range r.askers {
		if r.can(b) {
			r.ask(ctx, b, len(r.keys))
			return
		}
	}
}

// widen asks one more exchange for a share: the one with the fewest calls under
// way, and of these the first.
func (r *request) widen(ctx context.Context) {
	var next *asker
	for _, a := range r.askers {
		if r.can(a) && (next == nil || a.calls < next.calls) {
			next = a
		}
	}
	if next != nil {
		r.ask(ctx, next, next.size)
	}
}

// reason says why every exchange has given up.
func (r *request) reason() error {
	var all []error
	for _, a := range r.askers {
		err := a.err
		if err == nil {
			err = errors.New("ended without the block")
		}
		all = append(all, r.session.x.blame(a.member, err))
	}
	return errors.Join(all...)
}
