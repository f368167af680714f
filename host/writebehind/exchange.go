package writebehind

import (
	"context"
	"sync"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/wire"
)

// maxLeafTells is how many calls of NotifyNewLeaves may wait. The oldest are
// forgotten beyond that: their leaves are served to whoever asks again.
const maxLeafTells = 4096

// Exchange returns inner with notifications that come after the write: a block
// that is held is told to inner when it is in the store behind, others at once.
// NotifyNewBlocks and NotifyNewLeaves never fail, and return as soon as inner's
// do: what inner answers is logged. Fetching is inner's alone.
//
// inner is owned by what is returned, whose Close closes it, ends the goroutine
// that tells, and forgets what is untold; Close may be called more than once. It
// is a dataset.LeafExchange if inner is one. Its sessions are inner's, or inner
// itself if inner has none.
func (s *Store) Exchange(inner boxo.Interface) boxo.SessionExchange {
	x := &teller{s: s, inner: inner, wake: make(chan struct{}, 1), done: make(chan struct{})}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	x.close = sync.OnceValue(x.end)
	leaves, ok := inner.(dataset.LeafExchange)
	go x.run(leaves)
	if ok {
		return &leafTeller{x, leaves}
	}
	return x
}

// A teller tells one exchange of what has been written. Its methods may be called
// from any goroutine.
type teller struct {
	s      *Store
	inner  boxo.Interface
	ctx    context.Context // of the calls by run
	cancel context.CancelFunc
	close  func() error
	wake   chan struct{} // capacity 1: run shall look
	done   chan struct{} // closed when run has ended

	// Guarded by s.mu.
	blocks []*entry   // written, to be told; their bytes still count in s.used
	leaves []leafTell // at most maxLeafTells
	closed bool
}

// A leafTell is one call of NotifyNewLeaves that waits.
type leafTell struct {
	to      *teller
	root    cid.Cid
	indices []wire.Range
}

type leafTeller struct {
	*teller
	dataset.LeafFetcher
}

var (
	_ boxo.SessionExchange = (*teller)(nil)
	_ dataset.LeafExchange = (*leafTeller)(nil)
)

func (x *teller) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return x.inner.GetBlock(ctx, c)
}

func (x *teller) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	return x.inner.GetBlocks(ctx, keys)
}

func (x *teller) NewSession(ctx context.Context) boxo.Fetcher {
	if s, ok := x.inner.(boxo.SessionExchange); ok {
		return s.NewSession(ctx)
	}
	return x.inner
}

// GetWantlist is inner's, and empty if it shows none.
func (x *teller) GetWantlist() []cid.Cid {
	if w, ok := x.inner.(interface{ GetWantlist() []cid.Cid }); ok {
		return w.GetWantlist()
	}
	return nil
}

// NotifyNewBlocks implements exchange.Interface; see [Store.Exchange].
func (x *teller) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	now := make([]blocks.Block, 0, len(list))
	x.s.mu.Lock()
	closed := x.closed
	for _, b := range list {
		if e := x.s.entry(b.Cid()); e == nil {
			now = append(now, b)
		} else if !closed {
			e.hears(x)
		}
	}
	x.s.mu.Unlock()
	if len(now) > 0 && !closed {
		x.log("blocks", len(now), x.inner.NotifyNewBlocks(ctx, now...))
	}
	return nil
}

// NotifyNewLeaves passes the call on when all blocks that are held now have been
// written: the Store knows their CIDs, not which of them are leaves of the tree.
func (x *leafTeller) NotifyNewLeaves(ctx context.Context, root cid.Cid, indices ...wire.Range) error {
	s := x.s
	s.mu.Lock()
	closed, wait := x.closed, len(s.held) > 0 || len(s.leaves) > 0
	if wait && !closed {
		s.leaves = append(s.leaves, leafTell{x.teller, root, indices})
		s.trimLeaves()
		s.look()
	}
	s.mu.Unlock()
	if !wait && !closed {
		x.log("leaves", len(indices), x.inner.(dataset.LeafExchange).NotifyNewLeaves(ctx, root, indices...))
	}
	return nil
}

func (x *teller) log(what string, n int, err error) {
	if err != nil {
		x.s.log.Warn("exchange was not told of new "+what, what, n, "err", err)
	}
}

// Close implements exchange.Interface; see [Store.Exchange].
func (x *teller) Close() error { return x.close() }

func (x *teller) end() error {
	x.s.mu.Lock()
	x.closed = true
	x.s.mu.Unlock()
	x.cancel()
	err := x.inner.Close() // ends a call that run may be in
	<-x.done
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, e := range x.blocks {
		x.s.told(e)
	}
	x.blocks, x.leaves = nil, nil
	return err
}

// run tells what has been written, many blocks in one call when they come faster
// than inner takes them.
func (x *teller) run(inner dataset.LeafExchange) {
	defer close(x.done)
	for {
		select {
		case <-x.wake:
		case <-x.ctx.Done():
			return
		}
		x.s.mu.Lock()
		if x.closed {
			x.s.mu.Unlock()
			return
		}
		entries, leaves := x.blocks, x.leaves
		x.blocks, x.leaves = nil, nil
		x.s.mu.Unlock()

		if len(entries) > 0 {
			list := make([]blocks.Block, len(entries))
			for i, e := range entries {
				list[i] = e.block
			}
			x.log("blocks", len(list), x.inner.NotifyNewBlocks(x.ctx, list...))
			x.s.mu.Lock()
			for _, e := range entries {
				x.s.told(e)
			}
			x.s.mu.Unlock()
		}
		for _, l := range leaves {
			x.log("leaves", len(l.indices), inner.NotifyNewLeaves(x.ctx, l.root, l.indices...))
		}
	}
}

// The rest is called with Store.mu held.

// entry returns what is held of a CID, or nil.
func (s *Store) entry(c cid.Cid) *entry {
	if !c.Defined() {
		return nil
	}
	return s.held[key(c)]
}

// hears makes x hear of an entry when it is written.
func (e *entry) hears(x *teller) {
	for _, y := range e.tell {
		if y == x {
			return
		}
	}
	e.tell = append(e.tell, x)
}

// written hands an entry to those who shall hear of it.
func (s *Store) written(e *entry) {
	delete(s.held, e.key)
	tell := e.tell
	e.tell, e.untold = nil, 1
	for _, x := range tell {
		if !x.closed {
			e.untold++
			x.blocks = append(x.blocks, e)
			x.look()
		}
	}
	s.told(e)
}

// told frees an entry when the last who shall hear of it has.
func (s *Store) told(e *entry) {
	if e.untold--; e.untold == 0 {
		s.free(e)
	}
}

// pass hands a call over that needs to wait no more.
func (l leafTell) pass() {
	x := l.to
	if x.closed {
		return
	}
	if len(x.leaves) == maxLeafTells {
		x.leaves = x.leaves[1:]
		x.s.log.Warn("exchange is slow: a notification of new leaves is forgotten", "waiting", maxLeafTells)
	}
	x.leaves = append(x.leaves, l)
	x.look()
}

// trimLeaves forgets the oldest calls beyond the limit.
func (s *Store) trimLeaves() {
	if n := len(s.leaves) - maxLeafTells; n > 0 {
		s.leaves = append([]leafTell(nil), s.leaves[n:]...)
		s.log.Warn("blocks are not written: notifications of new leaves are forgotten", "forgotten", n, "waiting", maxLeafTells)
	}
}

// look makes run see what is to be told.
func (x *teller) look() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}
