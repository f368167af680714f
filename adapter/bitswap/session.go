package bitswap

import (
	"context"
	"fmt"
	"sync"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// part is how many CIDs Bitswap is given at a time. A small part refills the
	// window evenly; a large one costs fewer subscriptions.
	part = 64

	// stall is how long a session waits with a full window while nothing
	// arrives. Then it asks for the next part as well, so that blocks that
	// nobody has do not keep out those that somebody has. A peer whose list
	// overflows drops wants that it cannot serve first.
	stall = 2 * time.Second
)

// A session is a Bitswap session with a window over its requests.
//
// A want counts from when it is given to Bitswap until its block comes or its
// request ends. A single GetBlock counts too but never waits. A request also
// stops asking when a window of its blocks wait to be read, so that a slow reader
// costs a bounded amount of memory and holds up nobody but itself.
type session struct {
	x       *Exchange
	ctx     context.Context // of the session
	fetcher boxo.Fetcher

	mu    sync.Mutex
	used  int           // wants outstanding
	moved time.Time     // when used last fell, or anything was first asked
	freed chan struct{} // closed when used falls; nil if nobody waits for that
}

func (x *Exchange) newSession(ctx context.Context) *session {
	return &session{x: x, ctx: ctx, fetcher: x.bs.NewSession(ctx), moved: time.Now()}
}

// take takes n places in the window if there is room, or if the session has been
// stalled. Otherwise it returns a channel that is closed when there may be room.
func (s *session) take(n int) (ok bool, freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > s.x.window && time.Since(s.moved) < stall {
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		return false, s.freed
	}
	s.used += n
	return true, nil
}

// takeOne takes a place for a single block, whether there is room or not.
func (s *session) takeOne() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used++
}

func (s *session) give(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
	s.moved = time.Now()
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// ended says why nothing more can come: the exchange has closed, or one of the
// contexts has ended. It is nil if none of that is so.
func (s *session) ended(ctx context.Context) error {
	select {
	case <-s.x.closing:
		return errs.Closed
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.ctx.Err()
}

func (s *session) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	const op = "get block"
	if !c.Defined() {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "undefined cid")
	}
	if err := s.ended(ctx); err != nil {
		return nil, s.explain(ctx, op, c.String(), err)
	}
	s.takeOne()
	defer s.give(1)
	b, err := s.fetcher.GetBlock(ctx, c)
	if err == nil {
		return b, nil
	}
	// Bitswap ends a request without a reason when it closes or the session ends.
	if why := s.ended(ctx); why != nil {
		err = why
	}
	return nil, s.explain(ctx, op, c.String(), err)
}

// explain makes the error of a request that got err.
func (s *session) explain(ctx context.Context, op, subject string, err error) error {
	switch {
	case err == errs.Closed:
		return errs.E(errs.Closed, errs.Caller, op, subject, nil)
	case ctx.Err() == nil && s.ctx.Err() != nil:
		return errs.E(errs.Closed, errs.Caller, op, subject, fmt.Errorf("session has ended: %w", err))
	}
	return errs.E(errs.Other, errs.Unknown, op, subject, err)
}

func (s *session) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	ctx, cancel := context.WithCancel(ctx)
	return s.getBlocks(ctx, keys, cancel)
}

// getBlocks starts a request; when it ends, also by an error, done is called,
// which ends ctx.
func (s *session) getBlocks(ctx context.Context, keys []cid.Cid, done context.CancelFunc) (<-chan blocks.Block, error) {
	const op = "get blocks"
	r := &request{session: s, out: make(chan blocks.Block), arrived: make(chan blocks.Block)}
	seen := cid.NewSet()
	for i, c := range keys {
		if !c.Defined() {
			done()
			return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "cid %d of %d is undefined", i+1, len(keys))
		}
		if seen.Visit(c) {
			r.keys = append(r.keys, c)
		}
	}
	if err := s.ended(ctx); err != nil {
		defer done()
		return nil, s.explain(ctx, op, "", err)
	}
	go func() {
		defer close(r.out)
		defer r.readers.Wait()
		defer done()
		r.run(ctx)
	}()
	return r.out, nil
}

// A request is one call of GetBlocks. All but out belongs to the goroutine that
// runs it.
type request struct {
	session *session
	keys    []cid.Cid // not given to Bitswap yet
	out     chan blocks.Block

	arrived chan blocks.Block // nil: a part has ended without some of its blocks
	readers sync.WaitGroup    // one for each part given to Bitswap

	outstanding int            // blocks given to Bitswap that have not arrived
	unread      []blocks.Block // arrived and not read by the caller
}

// run plays the request until every block has been read, or no more can come.
func (r *request) run(ctx context.Context) {
	s := r.session
	defer func() { s.give(r.outstanding) }()
	look := time.NewTicker(stall)
	defer look.Stop()
	for len(r.keys) > 0 || r.outstanding > 0 || len(r.unread) > 0 {
		freed, err := r.ask(ctx)
		if err != nil {
			return
		}
		var out chan<- blocks.Block
		var next blocks.Block
		if len(r.unread) > 0 {
			out, next = r.out, r.unread[0]
		}
		select {
		case b := <-r.arrived:
			if b == nil {
				return
			}
			r.outstanding--
			s.give(1)
			r.unread = append(r.unread, b)
		case out <- next:
			r.unread[0] = nil
			r.unread = r.unread[1:]
		case <-freed:
		case <-look.C: // the session may be stalled
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		case <-s.x.closing:
			return
		}
	}
}

// ask gives Bitswap as many parts as the window has room for. If the session has
// no room, the channel says when to ask again.
func (r *request) ask(ctx context.Context) (freed <-chan struct{}, err error) {
	for len(r.keys) > 0 {
		n := min(part, len(r.keys))
		if len(r.unread) > 0 && len(r.unread)+r.outstanding+n > r.session.x.window {
			return nil, nil // the caller reads too slowly
		}
		ok, freed := r.session.take(n)
		if !ok {
			return freed, nil
		}
		r.outstanding += n
		coming, err := r.session.fetcher.GetBlocks(ctx, r.keys[:n:n])
		if err != nil {
			return nil, err
		}
		r.keys = r.keys[n:]
		r.readers.Go(func() { r.read(ctx, coming, n) })
	}
	return nil, nil
}

// read hands on n blocks of a part. Bitswap closes the channel early if the
// session or Bitswap has ended, or ctx.
func (r *request) read(ctx context.Context, part <-chan blocks.Block, n int) {
	for range n {
		b := <-part // nil at the end
		select {
		case r.arrived <- b:
		case <-ctx.Done():
			return
		}
		if b == nil {
			return
		}
	}
}
