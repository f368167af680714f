// Package multi is several exchanges as one, over the same blocks: the first is
// asked at once, the others when it is slow or has ended without the block.
//
// It decides who is asked for what, and when; how blocks are found and moved is
// left to the exchanges.
//
//   - A request goes to one exchange, the lead: the first in the list, or in a
//     session the one that delivered last.
//   - When no block has come for [Options].Delay, the next exchange that is idle
//     is asked for some of what is missing. As long as it delivers, it is asked
//     for more, twice as much each time; so an exchange that is asked beside one
//     that works after all brings few duplicates, and one that is needed soon
//     has everything to do.
//   - When the lead gives up (its call failed, or ended without all blocks), the
//     next takes its place at once and is asked for all that is missing.
//   - The first copy of a block is delivered. An exchange that is still waiting
//     for blocks that have come is cancelled.
//   - New blocks are told to every exchange. Close closes every exchange.
//
// Goroutines: each request has one of its own, unless it is a GetBlock, and one
// for each exchange that is being asked. They end with the request.
package multi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

// DefaultDelay is how long a request waits for its lead before another exchange
// is asked. A connected peer in reach answers sooner than this at any distance
// on earth; a search for providers takes longer.
const DefaultDelay = 500 * time.Millisecond

// Options are what can be chosen. The zero value is useful.
type Options struct {
	// Delay is how long nothing may come before another exchange is asked too.
	// 0: DefaultDelay. Negative: no delay, every request goes to all exchanges
	// at once, which costs as many copies of each block.
	Delay time.Duration
}

// New makes one exchange of several, in the order in which they shall be asked.
// They are owned by it from now on: it closes them. What is returned implements
// exchange.LeafExchange if one of the members does, and GetWantlist.
func New(o Options, first boxo.Interface, others ...boxo.Interface) boxo.SessionExchange {
	x := &multi{delay: o.Delay, members: append([]boxo.Interface{first}, others...)}
	if o.Delay == 0 {
		x.delay = DefaultDelay
	}
	for _, m := range x.members {
		if l, ok := m.(exchange.LeafExchange); ok {
			x.leaves = append(x.leaves, l)
		}
	}
	if len(x.leaves) > 0 {
		return &multiLeaf{x}
	}
	return x
}

// multi implements boxo.SessionExchange. Its methods may be called from any
// goroutine.
type multi struct {
	delay   time.Duration
	members []boxo.Interface
	leaves  []exchange.LeafExchange // the members that have leaves

	closed    atomic.Bool
	closeOnce sync.Once
	closeErr  error
}

// multiLeaf adds leaves to multi.
type multiLeaf struct{ *multi }

var (
	_ boxo.SessionExchange  = (*multi)(nil)
	_ exchange.LeafExchange = (*multiLeaf)(nil)
)

// GetBlock implements exchange.Fetcher. If every exchange gives up, the error
// joins theirs.
func (x *multi) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return x.newSession(ctx).GetBlock(ctx, c)
}

// GetBlocks implements exchange.Fetcher. The channel is closed when every block
// has come, ctx ends, or every exchange gives up. Each block comes once.
func (x *multi) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	ctx, cancel := context.WithCancel(ctx)
	return x.newSession(ctx).getBlocks(ctx, keys, cancel)
}

// NewSession implements exchange.SessionExchange. It makes a session of each
// member that has them, when the member is first asked.
func (x *multi) NewSession(ctx context.Context) boxo.Fetcher { return x.newSession(ctx) }

// NewSession returns a session with leaves.
func (x *multiLeaf) NewSession(ctx context.Context) boxo.Fetcher {
	return &leafSession{x.newSession(ctx)}
}

func (x *multi) newSession(ctx context.Context) *session {
	return &session{x: x, ctx: ctx, fetchers: make([]boxo.Fetcher, len(x.members))}
}

// NotifyNewBlocks tells every exchange, also when one fails, and joins their
// errors.
func (x *multi) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	var all []error
	for i, m := range x.members {
		if err := m.NotifyNewBlocks(ctx, list...); err != nil {
			all = append(all, x.blame(i, err))
		}
	}
	return errors.Join(all...)
}

// NotifyNewLeaves tells every exchange that has leaves, also when one fails, and
// joins their errors.
func (x *multiLeaf) NotifyNewLeaves(ctx context.Context, root cid.Cid, indices ...wire.Range) error {
	var all []error
	for _, l := range x.leaves {
		if err := l.NotifyNewLeaves(ctx, root, indices...); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// GetLeaves asks the first exchange that has leaves and takes the request.
func (x *multiLeaf) GetLeaves(ctx context.Context, tree exchange.Tree, indices ...wire.Range) (<-chan exchange.LeafBlock, error) {
	var all []error
	for _, l := range x.leaves {
		ch, err := l.GetLeaves(ctx, tree, indices...)
		if err == nil {
			return ch, nil
		}
		all = append(all, err)
	}
	return nil, errors.Join(all...)
}

// GetWantlist is what any of the exchanges that show it asks for, each CID once.
func (x *multi) GetWantlist() []cid.Cid {
	set := cid.NewSet()
	for _, m := range x.members {
		if w, ok := m.(interface{ GetWantlist() []cid.Cid }); ok {
			for _, c := range w.GetWantlist() {
				set.Add(c)
			}
		}
	}
	return set.Keys()
}

// Close closes every exchange, also when one fails, and joins their errors. A
// second call returns the same.
func (x *multi) Close() error {
	x.closed.Store(true)
	x.closeOnce.Do(func() {
		var all []error
		for i, m := range x.members {
			if err := m.Close(); err != nil {
				all = append(all, x.blame(i, err))
			}
		}
		x.closeErr = errors.Join(all...)
	})
	return x.closeErr
}

// blame says which exchange an error came from.
func (x *multi) blame(i int, err error) error {
	return fmt.Errorf("exchange %d of %d: %w", i+1, len(x.members), err)
}

// A session is a session of each member, and who delivered last.
type session struct {
	x    *multi
	ctx  context.Context
	lead atomic.Int32 // index of the member that is asked first

	mu       sync.Mutex
	fetchers []boxo.Fetcher // nil until first asked
}

// leafSession adds leaves to a session: those of the first leaf exchange, within
// a session of it if its sessions have leaves.
type leafSession struct{ *session }

var _ exchange.LeafFetcher = (*leafSession)(nil)

// GetLeaves asks the first exchange that has leaves and takes the request.
func (s *leafSession) GetLeaves(ctx context.Context, tree exchange.Tree, indices ...wire.Range) (<-chan exchange.LeafBlock, error) {
	var all []error
	for i, m := range s.x.members {
		l, ok := m.(exchange.LeafFetcher)
		if !ok {
			continue
		}
		if in, ok := s.fetcher(i).(exchange.LeafFetcher); ok {
			l = in
		}
		ch, err := l.GetLeaves(ctx, tree, indices...)
		if err == nil {
			return ch, nil
		}
		all = append(all, s.x.blame(i, err))
	}
	return nil, errors.Join(all...)
}

// fetcher is the session of member i, or the member if it has none.
func (s *session) fetcher(i int) boxo.Fetcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetchers[i] == nil {
		if m, ok := s.x.members[i].(boxo.SessionExchange); ok {
			s.fetchers[i] = m.NewSession(s.ctx)
		} else {
			s.fetchers[i] = s.x.members[i]
		}
	}
	return s.fetchers[i]
}

func (s *session) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	const op = "get block"
	if !c.Defined() {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "undefined cid")
	}
	if s.x.closed.Load() {
		return nil, errs.E(errs.Closed, errs.Caller, op, c.String(), nil)
	}
	var got blocks.Block
	err := s.run(ctx, []cid.Cid{c}, func(b blocks.Block) bool { got = b; return true })
	if got != nil {
		return got, nil
	}
	return nil, errs.E(errs.Other, errs.Unknown, op, c.String(), err)
}

func (s *session) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	ctx, cancel := context.WithCancel(ctx)
	return s.getBlocks(ctx, keys, cancel)
}

// getBlocks starts a request; when it ends, also by an error, done is called,
// which ends ctx.
func (s *session) getBlocks(ctx context.Context, keys []cid.Cid, done context.CancelFunc) (<-chan blocks.Block, error) {
	const op = "get blocks"
	seen := cid.NewSet()
	distinct := make([]cid.Cid, 0, len(keys))
	for i, c := range keys {
		if !c.Defined() {
			done()
			return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "cid %d of %d is undefined", i+1, len(keys))
		}
		if seen.Visit(c) {
			distinct = append(distinct, c)
		}
	}
	if s.x.closed.Load() {
		done()
		return nil, errs.E(errs.Closed, errs.Caller, op, "", nil)
	}
	out := make(chan blocks.Block)
	go func() {
		defer close(out)
		defer done()
		// Why no more come is for GetBlock to say; a channel cannot.
		_ = s.run(ctx, distinct, func(b blocks.Block) bool {
			select {
			case out <- b:
				return true
			case <-ctx.Done():
			case <-s.ctx.Done():
			}
			return false
		})
	}()
	return out, nil
}
