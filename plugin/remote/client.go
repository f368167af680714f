package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	// DefaultWindow is ClientOptions.Window if it is 0, bytes.
	DefaultWindow = 4 << 20
	// MaxPending is how many stored blocks wait to be told to the plugin, and how
	// many ranges of leaves.
	MaxPending = 65_536
)

// ClientOptions are what can be chosen. The zero value is useful.
type ClientOptions struct {
	// Window is how many bytes of blocks may wait for the caller of one request,
	// each block counted with ResultCost more; one block may go beyond. 0:
	// DefaultWindow.
	Window int
	// Verify says to hash every block that comes from the plugin. Without it the
	// plugin is trusted to have done so.
	Verify bool
	// Held reads a block from the host's store; the error is an ipld.ErrNotFound
	// or of kind errs.NotFound if it is not there. Without it the plugin is asked
	// again for blocks that it says the host has, and every block that
	// NotifyNewBlocks has for a slow caller is kept in memory.
	Held func(context.Context, cid.Cid) (blocks.Block, error)
	// Log is told of what the plugin does wrong. nil: slog.Default().
	Log *slog.Logger
}

// A Client is an exchange that runs in a plugin, as the host sees it. Its methods
// may be called from any goroutine. It outlives the incarnations of the plugin:
// with none running, requests wait. Blocks are shared, not copied: nobody changes
// their bytes.
//
// The Client itself is a dataset.LeafExchange, whatever the plugin can do; give
// callers what [Client.Exchange] returns.
type Client struct {
	opt    ClientOptions
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each getMany under way

	mu       sync.Mutex // guards all below, and what is in requests and sessions
	closed   bool
	failed   error // of Fail
	run      *incarnation
	lastSeq  uint64                 // of requests
	lastSess uint64                 // of sessions
	pending  map[uint64]*request    // by seq
	waiting  map[cid.Cid][]*request // pending requests that miss the block
	unsent   map[uint64]*request    // pending requests that the plugin has not, by seq
	stored   backlog[storedBlock]
	leaves   backlog[storedLeaves]
	missed   uint64 // dropped from stored, and not told
	counts   Counters
}

// An exchange is what a Client offers beside leaves.
type exchange interface {
	boxo.SessionExchange
	GetWantlist() []cid.Cid
	Wantlist() []wire.Address
	WantlistForPeer(peer.ID) []cid.Cid
	Inspect(context.Context) (Stat, error)
	Ledger(context.Context, peer.ID) (Ledger, bool, error)
}

var (
	_ exchange             = (*Client)(nil)
	_ dataset.LeafExchange = (*Client)(nil)
	_ dataset.LeafFetcher  = (*Session)(nil)
)

// Counters are what a Client has counted, over all incarnations.
type Counters struct {
	Incarnations uint64 // calls of Run
	Results      uint64 // blocks that came from the plugin and were wanted
	Bytes        uint64 // of them
	InPlace      uint64 // of Bytes: they were named where streams had brought them
	Held         uint64 // of Results: named, for the host has them
	Skipped      uint64 // blocks from the plugin that nobody waited for any more
	SkippedBytes uint64 // of them
	Dropped      uint64 // notifications forgotten, because MaxPending were waiting
}

// NewClient makes a Client. With no incarnation running it only waits.
func NewClient(o ClientOptions) *Client {
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c := &Client{
		opt:     o,
		pending: make(map[uint64]*request),
		waiting: make(map[cid.Cid][]*request),
		unsent:  make(map[uint64]*request),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Exchange returns c as callers should have it: it is a dataset.LeafExchange, and
// its sessions are dataset.LeafFetchers, only if leaves says so.
func (c *Client) Exchange(leaves bool) boxo.SessionExchange {
	if leaves {
		return c
	}
	return plain{c}
}

// plain is a Client without leaves.
type plain struct{ exchange }

type plainSession struct{ boxo.Fetcher }

func (p plain) NewSession(ctx context.Context) boxo.Fetcher {
	return plainSession{p.exchange.NewSession(ctx)}
}

// GetBlock fetches one block. It waits until the block comes, ctx ends, or the
// Client closes or fails.
func (c *Client) GetBlock(ctx context.Context, key cid.Cid) (blocks.Block, error) {
	return c.get(ctx, nil, key)
}

// GetBlocks fetches blocks, each once however often it is named, in any order.
// The channel is closed when all have come, or ctx ends, or the Client closes or
// fails, or the exchange gives the request up.
func (c *Client) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	return c.getBlocks(ctx, nil, keys)
}

// GetLeaves fetches blocks of a dataset; see dataset.LeafFetcher.
func (c *Client) GetLeaves(ctx context.Context, tree dataset.Tree, indices ...wire.Range) (<-chan dataset.LeafBlock, error) {
	return c.getLeaves(ctx, nil, tree, indices)
}

func (c *Client) getBlocks(ctx context.Context, s *session, keys []cid.Cid) (<-chan blocks.Block, error) {
	const op = "get blocks"
	n, err := needBlocks(op, keys)
	if err != nil {
		return nil, err
	}
	return getMany(ctx, c, s, op, n, func(a arrival) blocks.Block { return a.block })
}

func (c *Client) getLeaves(ctx context.Context, s *session, tree dataset.Tree, indices []wire.Range) (<-chan dataset.LeafBlock, error) {
	const op = "get leaves"
	n, err := needLeaves(op, tree, indices)
	if err != nil {
		return nil, err
	}
	return getMany(ctx, c, s, op, n, func(a arrival) dataset.LeafBlock {
		return dataset.LeafBlock{Block: a.block, Root: tree.Root, Index: a.index, Proof: a.proof}
	})
}

// NotifyNewBlocks gives the blocks to whoever waits for them here, and has the
// exchange in the plugin told that the store has them. It returns at once, and
// without error whatever the plugin does, also after Close: a blockservice fails
// the read that brought the blocks if this fails.
func (c *Client) NotifyNewBlocks(_ context.Context, list ...blocks.Block) error {
	sizes := make([]int, len(list))
	for i, b := range list {
		sizes[i] = len(b.RawData()) // which may read, so without the lock
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	for i, b := range list {
		k := b.Cid()
		if checkKey("", k) != nil {
			continue // nobody can wait for it
		}
		for _, r := range slices.Clone(c.waiting[k]) {
			c.give(r, b, sizes[i])
		}
		if c.stored.add(storedBlock{k, sizes[i]}) {
			c.missed++
			c.counts.Dropped++
		}
	}
	c.wakeSoon()
	return nil
}

// NotifyNewLeaves has the exchange told that leaves of a tree can be read; see
// dataset.LeafExchange.
func (c *Client) NotifyNewLeaves(_ context.Context, root cid.Cid, indices ...wire.Range) error {
	if err := checkKey("notify new leaves", root); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	for _, r := range wire.Ranges(indices) {
		if c.leaves.add(storedLeaves{root, r}) {
			c.counts.Dropped++
		}
	}
	c.wake()
	return nil
}

// Close ends everything that waits, and refuses what comes later. Every goroutine
// of the Client has ended when it returns, but those of Run, which is its
// caller's. It may be called more than once.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.stored, c.leaves = backlog[storedBlock]{}, backlog[storedLeaves]{}
	for _, r := range c.pending {
		c.finish(r, closed("get block", ""), true)
	}
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	return nil
}

// Done is closed by Close.
func (c *Client) Done() <-chan struct{} { return c.ctx.Done() }

// Fail says that no more incarnations of the plugin are going to come: what is
// pending ends with err, and so does everything that is asked for until Recover.
// NotifyNewBlocks still succeeds.
func (c *Client) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = err
	for _, r := range c.pending {
		c.finish(r, err, true)
	}
}

// Recover undoes Fail, for requests that are made from now on.
func (c *Client) Recover() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = nil
}

// Pending is how many requests wait for something.
func (c *Client) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending)
}

// Counters returns the counts.
func (c *Client) Counters() Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

// refusal says why nothing can be asked for, nil if it can. refused is the same
// for those who have the lock.
func (c *Client) refusal(op string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused(op)
}

func (c *Client) refused(op string) error {
	if c.closed {
		return closed(op, "")
	}
	return c.failed
}

// begin makes a request pending. If there is a goroutine to go with it, it is
// started, and counted among those that Close waits for.
func (c *Client) begin(r *request, op string, goes ...func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refused(op); err != nil {
		return err
	}
	c.lastSeq++
	r.seq = c.lastSeq
	c.enlist(r)
	for k := range r.need.missing {
		c.waiting[k] = append(c.waiting[k], r)
	}
	for _, f := range goes {
		c.wg.Go(f)
	}
	return nil
}

// enlist makes a request pending, to be sent.
func (c *Client) enlist(r *request) {
	c.pending[r.seq], c.unsent[r.seq] = r, r
	if r.session != nil {
		r.session.open++
	}
	c.wake()
}

// finish ends a request, unless it has ended: nothing more comes into its queue.
// tell says that the plugin does not know that it has ended.
func (c *Client) finish(r *request, err error, tell bool) {
	if _, pending := c.pending[r.seq]; !pending {
		return
	}
	delete(c.pending, r.seq)
	delete(c.unsent, r.seq)
	for k := range r.need.missing {
		c.unwait(r, k)
	}
	c.forget(r, tell)
	if s := r.session; s != nil {
		s.open--
		c.endSession(s)
	}
	r.over, r.err = true, err
	r.signal()
}

// drop ends a request that nobody waits for any more.
func (c *Client) drop(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(r, nil, true)
	r.queue = nil
}

// unwait takes a request from those that miss a block.
func (c *Client) unwait(r *request, k cid.Cid) {
	list := c.waiting[k]
	if i := slices.Index(list, r); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(c.waiting, k)
		return
	}
	c.waiting[k] = list
}

// give gives a block that the host has to a request that misses it.
func (c *Client) give(r *request, b blocks.Block, size int) {
	k := b.Cid()
	delete(r.need.missing, k)
	c.unwait(r, k)
	a := arrival{cid: k}
	// More than a little is not kept for a caller who is slow, but read again.
	if r.single || c.opt.Held == nil || r.kept*4 < c.opt.Window {
		a.block, a.kept = b, size
	}
	r.local = true
	c.push(r, a)
}

// push puts an arrival into the queue of a request, where it is no longer
// missing.
func (c *Client) push(r *request, a arrival) {
	r.queue = append(r.queue, a)
	r.queued += a.cost
	r.kept += a.kept
	if r.need.empty() {
		c.finish(r, nil, r.local)
	}
	r.signal()
}

func (r *request) signal() {
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// pop takes back the cost of what the caller has taken, and takes the next
// arrival from the queue. If there is none, over says whether none will come, and
// err why not.
func (c *Client) pop(r *request, taken arrival) (a arrival, ok, over bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paid(r, taken)
	if len(r.queue) == 0 {
		return arrival{}, false, r.over, r.err
	}
	a, r.queue[0] = r.queue[0], arrival{}
	r.queue = r.queue[1:]
	return a, true, false, nil
}

// paid says that an arrival is no longer held for the caller of a request.
func (c *Client) paid(r *request, a arrival) {
	r.queued -= a.cost
	r.kept -= a.kept
	c.owe(r, a.cost)
}

// owe has credit given to the plugin for a request, once it is worth a message.
func (c *Client) owe(r *request, n int) {
	r.owed += n
	if r.number != 0 && r.owed > 0 && r.owed*4 >= c.opt.Window {
		c.run.credits[r] = struct{}{}
		c.wake()
	}
}

// unread deals with an arrival that could not be read from the store, for the
// reason err. A block that has gone is asked for again, with everything else that
// is missing, under a new number: the request may have ended in the plugin.
func (c *Client) unread(r *request, a arrival, err error) {
	const op = "get block"
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paid(r, a)
	if r.over && !r.need.empty() {
		return // it has ended without others already
	}
	r.again++
	switch {
	case c.refused(op) != nil:
		err = c.refused(op)
	case !ipld.IsNotFound(err) && !errors.Is(err, errs.NotFound):
		err = errs.E(errs.Storage, errs.Ours, op, wire.CidString(a.cid), err)
	case r.again > maxAgain:
		err = errs.E(errs.NotFound, errs.Plugin, op, wire.CidString(a.cid),
			fmt.Errorf("the plugin says that the host has the block, and it has not, for the %dth time", r.again))
	default:
		c.wantAgain(r, a)
		return
	}
	c.finish(r, err, true)
	r.over, r.err = true, err
}

func (c *Client) wantAgain(r *request, a arrival) {
	if r.need.leaves() {
		r.need.ranges = wire.Ranges(append(r.need.ranges, wire.Range{First: a.index, Count: 1}))
	} else {
		r.need.missing[a.cid] = struct{}{}
		c.waiting[a.cid] = append(c.waiting[a.cid], r)
	}
	if _, pending := c.pending[r.seq]; pending {
		c.forget(r, true)
		c.unsent[r.seq] = r
		c.wake()
		return
	}
	r.over, r.err = false, nil
	c.enlist(r)
}

// A storedBlock is a block that the store has, to be told.
type storedBlock struct {
	cid  cid.Cid
	size int
}

type storedLeaves struct {
	root cid.Cid
	wire.Range
}

// A backlog holds the last MaxPending things that were added.
type backlog[T any] struct {
	list []T
	head int // list[:head] has been dropped
}

// add reports whether something was dropped.
func (b *backlog[T]) add(x T) (dropped bool) {
	b.list = append(b.list, x)
	if len(b.list)-b.head <= MaxPending {
		return false
	}
	b.head++
	if b.head == MaxPending {
		b.list, b.head = append([]T(nil), b.list[b.head:]...), 0
	}
	return true
}

func (b *backlog[T]) take() []T {
	list := b.list[b.head:]
	*b = backlog[T]{}
	return list
}

// A Session is what NewSession returns. Its methods may be called from any
// goroutine; they end with the session's context as well as with their own.
type Session struct {
	client *Client
	*session
}

// A session is what lasts of a Session that nobody holds any more, while there
// are requests of it.
type session struct {
	id  uint64
	ctx context.Context

	// Guarded by Client.mu.
	open int  // pending requests
	lost bool // the context has ended, or nobody holds the Session
}

// done is closed when the session has ended; never, if there is none.
func (s *session) done() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.ctx.Done()
}

// NewSession begins a session, which ends with ctx. The exchange in the plugin
// has a session for it as soon as something is asked for.
func (c *Client) NewSession(ctx context.Context) boxo.Fetcher {
	c.mu.Lock()
	c.lastSess++
	s := &session{id: c.lastSess, ctx: ctx}
	c.mu.Unlock()
	// A context may never end, so a session also ends when nobody holds it. What
	// is called then does not hold the Session.
	lose := func(s *session) {
		c.mu.Lock()
		defer c.mu.Unlock()
		s.lost = true
		c.endSession(s)
	}
	stop := context.AfterFunc(ctx, func() { lose(s) })
	handle := &Session{c, s}
	runtime.AddCleanup(handle, func(s *session) {
		stop()
		lose(s)
	}, s)
	return handle
}

// endSession has a session ended in the plugin if it is lost and has no requests.
// Should there be one after all, it begins and ends again.
func (c *Client) endSession(s *session) {
	if c.run == nil || !s.lost || s.open > 0 {
		return
	}
	if _, named := c.run.named[s.id]; named {
		delete(c.run.named, s.id)
		c.run.ended = append(c.run.ended, s.id)
		c.wake()
	}
}

// GetBlock fetches one block; see Client.GetBlock.
func (s *Session) GetBlock(ctx context.Context, key cid.Cid) (blocks.Block, error) {
	defer runtime.KeepAlive(s)
	return s.client.get(ctx, s.session, key)
}

// GetBlocks fetches blocks; see Client.GetBlocks.
func (s *Session) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	return s.client.getBlocks(ctx, s.session, keys)
}

// GetLeaves fetches blocks of a dataset; see dataset.LeafFetcher.
func (s *Session) GetLeaves(ctx context.Context, tree dataset.Tree, indices ...wire.Range) (<-chan dataset.LeafBlock, error) {
	return s.client.getLeaves(ctx, s.session, tree, indices)
}
