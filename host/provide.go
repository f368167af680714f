package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/dag/walker"
	"github.com/ipfs/boxo/ipld/merkledag"
	pin "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/boxo/pinning/pinner/dspinner"
	"github.com/ipfs/boxo/provider"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/codexchange/codexchange/host/finding"
)

// What of a node's blocks others are told of.
const (
	ProvideAll    = "all"    // every block that is written
	ProvidePinned = "pinned" // those of pinned DAGs
	ProvideRoots  = "roots"  // what is pinned itself
)

// Provide says what of a node's blocks others are told of, if routing has somebody
// to tell. The zero value tells of nothing.
type Provide struct {
	// Strategy is ProvideAll, ProvidePinned or ProvideRoots; empty tells of nothing.
	Strategy string
	// Interval is how often all of it is told again. 0: never.
	Interval time.Duration
}

const (
	provideWorkers = 16              // blocks that are told of at a time, as Kubo has it; as many again when all is told again
	provideWithin  = 3 * time.Minute // for one block
	provideBatch   = 1024            // blocks that are listed to be told of again
)

var (
	// lastReprovide is where boxo notes when all was told of last.
	lastReprovide = provider.DefaultKeyPrefix.ChildString("reprovide/lastreprovide")
	// untoldKey is there while a block may have come of which others were not told.
	untoldKey = provider.DefaultKeyPrefix.ChildString("untold")
)

// A providing tells routing of blocks, through boxo's queue. What that loses, when the
// node ends or is killed, and what is reported afterwards, is told of with all others,
// soon after the next start.
type providing struct {
	strategy string
	node     *Node        // set by begin
	untold   atomic.Int64 // blocks that came since begin, and others have not been told of
	cut      atomic.Bool  // a block was not told of because the node ends

	marking sync.Mutex // guards marked
	marked  bool       // untoldKey is there, on account of this node

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	calls  sync.WaitGroup // of the router; Add under mu, and not once closed

	// mu is held, to read, while something is put into the queue, which takes nothing
	// while it closes. It guards system and closed.
	mu     sync.RWMutex
	system provider.System // nil before begin
	closed bool
}

// newProviding returns nil if nothing is to be told.
func newProviding(strategy string) (*providing, error) {
	switch strategy {
	case "":
		return nil, nil
	case ProvideAll, ProvidePinned, ProvideRoots:
		p := &providing{strategy: strategy}
		p.ctx, p.cancel = context.WithCancel(context.Background())
		return p, nil
	}
	return nil, fmt.Errorf("strategy of providing is %q, want %s, %s or %s", strategy, ProvideAll, ProvidePinned, ProvideRoots)
}

// blockstoreOptions have blocks reported when they are written.
func (p *providing) blockstoreOptions() []blockstore.Option {
	options := []blockstore.Option{blockstore.NoPrefix()}
	if p != nil && p.strategy == ProvideAll {
		options = append(options, blockstore.Provider(p))
	}
	return options
}

// StartProviding implements provider.MultihashProvider.
func (p *providing) StartProviding(_ bool, keys ...mh.Multihash) error {
	for _, k := range keys {
		if err := p.enqueue(cid.NewCidV1(cid.Raw, k)); err != nil {
			return err
		}
	}
	return nil
}

func (p *providing) enqueue(c cid.Cid) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	switch {
	case p.system == nil:
		return nil
	case p.closed:
		p.cut.Store(true)
		return p.mark(true)
	}
	p.untold.Add(1)
	return errors.Join(p.mark(true), p.system.Provide(p.ctx, c, true))
}

// begin tells others from now on.
func (p *providing) begin(n *Node, interval time.Duration) error {
	p.node = n
	// Was something left untold, or was the node killed?
	cut, err := n.datastore.Has(p.ctx, untoldKey)
	if err == nil && cut {
		err = n.datastore.Delete(p.ctx, lastReprovide)
	}
	if err != nil {
		return fmt.Errorf("start providing: %w", err)
	}
	p.marked = cut
	system, err := provider.New(n.datastore, provider.Online(p), provider.KeyProvider(p.keys(n)),
		provider.ReproviderInterval(interval), provider.ProvideWorkerCount(provideWorkers), provider.MaxBatchSize(provideBatch))
	if err != nil {
		return fmt.Errorf("start providing: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.system = system
	return nil
}

// keys lists what there is to tell of.
func (p *providing) keys(n *Node) provider.KeyChanFunc {
	list := n.written.AllKeysChan
	switch p.strategy {
	case ProvideRoots:
		list = dspinner.NewPinnedProvider(true, n.pins, nil)
	case ProvidePinned:
		list = func(ctx context.Context) (<-chan cid.Cid, error) {
			return dspinner.NewUniquePinnedProvider(n.pins, n.written, walker.NewMapTracker())(ctx)
		}
	}
	// boxo lists with a context that never ends, and stops reading when it closes.
	return func(context.Context) (<-chan cid.Cid, error) { return list(p.ctx) }
}

// Ready implements provider.Ready: boxo does not tell of all while there is nobody.
func (p *providing) Ready() bool { return p.node.router.Ready() }

// Provide implements provider.Provide, for boxo's workers at its queue.
func (p *providing) Provide(ctx context.Context, c cid.Cid, _ bool) error {
	err := p.tell(ctx, c)
	// Done, or cut is set. Of what a node before has left in the queue nobody has counted.
	for n := p.untold.Load(); n > 0 && !p.untold.CompareAndSwap(n, n-1); n = p.untold.Load() {
	}
	return err
}

// tell tells others of a block. One that comes before there is anybody waits: else
// it would be told of only with all others.
func (p *providing) tell(ctx context.Context, c cid.Cid) (err error) {
	p.mu.RLock()
	if p.closed {
		p.mu.RUnlock()
		p.cut.Store(true)
		return nil
	}
	p.calls.Add(1)
	p.mu.RUnlock()
	defer p.calls.Done()
	defer func() {
		if err != nil && p.ctx.Err() != nil {
			p.cut.Store(true)
			err = nil // no fault, and boxo logs faults
		}
	}()
	if err := p.node.router.WaitReady(p.ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, provideWithin)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	return p.node.router.Provide(ctx, c, true)
}

// ProvideMany implements provider.ProvideMany: it tells again. It fails if nobody
// could be told of anything.
func (p *providing) ProvideMany(ctx context.Context, keys []mh.Multihash) error {
	var told atomic.Uint64
	var tell errgroup.Group
	tell.SetLimit(provideWorkers)
	for _, k := range keys {
		tell.Go(func() error {
			err := p.tell(ctx, cid.NewCidV1(cid.Raw, k))
			if err == nil {
				told.Add(1)
			}
			return err
		})
	}
	if err := tell.Wait(); told.Load() == 0 {
		return err
	}
	return nil
}

// close stops telling and waits for who does. boxo takes blocks off the queue long
// before it tells of them, and loses them.
func (p *providing) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	err := p.system.Close()
	p.calls.Wait()
	return errors.Join(err, p.mark(false))
}

// mark notes on disk whether there is anything untold, which only a node that ends
// says there is not.
func (p *providing) mark(untold bool) (err error) {
	p.marking.Lock()
	defer p.marking.Unlock()
	untold = untold || p.untold.Load() > 0 || p.cut.Load()
	if p.marked == untold {
		return nil
	}
	if untold {
		err = p.node.datastore.Put(context.Background(), untoldKey, nil)
	} else {
		err = p.node.datastore.Delete(context.Background(), untoldKey)
	}
	if err == nil {
		p.marked = untold
	}
	return err
}

// A tellingPinner tells others of what is pinned. boxo's own way to do so tells of
// the root of a DAG once for each block of it.
type tellingPinner struct {
	pin.Pinner
	p *providing
}

// pinner is a pinner that tells of what the strategy says.
func (p *providing) pinner(pins pin.Pinner) pin.Pinner {
	if p == nil || p.strategy == ProvideAll {
		return pins
	}
	return tellingPinner{pins, p}
}

func (t tellingPinner) Pin(ctx context.Context, node ipld.Node, recursive bool, name string) error {
	if err := t.Pinner.Pin(ctx, node, recursive, name); err != nil {
		return err
	}
	return t.p.pinned(ctx, node.Cid(), recursive)
}

func (t tellingPinner) PinWithMode(ctx context.Context, c cid.Cid, mode pin.Mode, name string) error {
	if err := t.Pinner.PinWithMode(ctx, c, mode, name); err != nil {
		return err
	}
	return t.p.pinned(ctx, c, mode == pin.Recursive)
}

func (t tellingPinner) Update(ctx context.Context, from, to cid.Cid, unpin bool) error {
	if err := t.Pinner.Update(ctx, from, to, unpin); err != nil {
		return err
	}
	return t.p.pinned(ctx, to, true)
}

// pinned has others told of what was pinned. It fails when ctx ends.
func (p *providing) pinned(ctx context.Context, root cid.Cid, recursive bool) error {
	if p.strategy == ProvideRoots || !recursive {
		return p.enqueue(root)
	}
	var failed error
	err := walker.WalkDAG(ctx, root, walker.LinksFetcherFromBlockstore(p.node.store), func(c cid.Cid) bool {
		failed = p.enqueue(c)
		return failed == nil
	}, walker.WithVisitedTracker(walker.NewMapTracker()))
	return errors.Join(err, failed)
}

// Provide tells the routing now that this node has root or, recursively, all of
// the DAG under it, which has to be here. Progress, unless nil, is told of each
// CID that is done, of one at a time.
func (n *Node) Provide(ctx context.Context, root cid.Cid, recursive bool, progress func(cid.Cid)) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("provide %s: %w", root, err)
		}
	}()
	if n.router == nil || !n.router.CanProvide() {
		return finding.ErrNoDHT
	}
	if has, err := n.store.Has(ctx, root); err != nil || !has {
		return errors.Join(err, errors.New("the block is not here"))
	}
	var done sync.Mutex
	tell, ctx := errgroup.WithContext(ctx)
	tell.SetLimit(provideWorkers)
	one := func(c cid.Cid) bool {
		tell.Go(func() error {
			if err := n.router.Provide(ctx, c, true); err != nil {
				return err
			}
			if progress != nil {
				done.Lock()
				defer done.Unlock()
				progress(c)
			}
			return nil
		})
		return ctx.Err() == nil
	}
	if recursive {
		set := cid.NewSet()
		err = merkledag.Walk(ctx, merkledag.GetLinksDirect(n.local), root, func(c cid.Cid) bool { return set.Visit(c) && one(c) })
	} else {
		one(root)
	}
	return errors.Join(err, tell.Wait())
}
