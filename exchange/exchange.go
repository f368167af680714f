package exchange

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/wire"
)

var (
	_ boxo.SessionExchange = (*Exchange)(nil)
	_ LeafExchange         = (*Exchange)(nil)
	_ LeafFetcher          = (*Session)(nil)
)

// An Exchange fetches and serves blocks. Its methods may be called from any
// goroutine. Blocks are shared, not copied: nobody changes their bytes.
type Exchange struct {
	cfg     Config
	view    *view
	inbox   chan input
	stopped chan struct{}   // closed when the loop has ended
	last    Stat            // as of then
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	detach  func()
	once    sync.Once
	nextID  atomic.Uint64 // of getters and sessions

	wg     sync.WaitGroup // everything that was started
	ending bool           // nothing more is started from outside; guarded by endMu
	endMu  sync.Mutex

	lost    lost        // sessions
	ahead   allAhead    // what sessions hold that they were not asked for yet
	reading gates       // bounds what one peer has us read at a time
	refs    atomic.Bool // the latest stream was a BlockWriter, so the next will be
	meter   meter       // of the loop
	metrics func()      // takes the collector out of its registry
	debug   *wireLog
}

// New starts an exchange. It takes part as soon as New returns and until Close.
// The error is of kind errs.Invalid and names every field of cfg that is wrong,
// or that of Network.Attach; then nothing is left running.
func New(cfg Config) (*Exchange, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &Exchange{
		cfg:     cfg,
		view:    newView(),
		inbox:   make(chan input, inboxLength),
		stopped: make(chan struct{}),
		ctx:     ctx,
		cancel:  cancel,
		reading: gates{limit: int64(cfg.MaxFrame)},
		ahead:   allAhead{limit: aheadSessions * int64(cfg.ReadAhead)},
		debug:   newWireLog(cfg.Network.Self()),
	}
	metrics, err := e.register(cfg.Metrics)
	if err != nil {
		cancel()
		return nil, err
	}
	e.metrics = metrics
	e.wg.Go(func() { newLoop(e).run() })
	if e.detach, err = cfg.Network.Attach(handler{e}); err != nil {
		cancel()
		e.wg.Wait()
		e.metrics()
		return nil, err
	}
	return e, nil
}

// Close ends the exchange: getters end without what they still wait for, peers
// are told nothing more, and every goroutine has ended when it returns. It may
// be called more than once; later calls wait for the first and do no more.
func (e *Exchange) Close() error {
	e.once.Do(func() {
		e.endMu.Lock()
		e.ending = true
		e.endMu.Unlock()
		e.cancel()
		e.detach()
		e.wg.Wait()
		e.metrics()
	})
	return nil
}

// goes runs f on a goroutine that Close waits for; false if the exchange is
// closing. Goroutines that such a one starts need not ask.
func (e *Exchange) goes(f func()) bool {
	e.endMu.Lock()
	defer e.endMu.Unlock()
	if e.ending {
		return false
	}
	e.wg.Go(f)
	return true
}

// GetBlock fetches one block from whichever peer has it. It waits until the
// block comes, ctx ends or the exchange closes; that nobody has the block is not
// an error, for somebody may come who does.
func (e *Exchange) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return e.getBlock(ctx, 0, c)
}

// GetBlocks fetches blocks, each once however often it is named, in any order.
// The channel is closed when all have come, or ctx ends, or the exchange closes.
// The number of keys has no bound: what is beyond Config.Window waits.
func (e *Exchange) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	return e.getBlocks(ctx, 0, keys, nil)
}

// GetLeaves fetches blocks of a dataset; see LeafFetcher.
func (e *Exchange) GetLeaves(ctx context.Context, tree Tree, indices ...wire.Range) (<-chan LeafBlock, error) {
	return e.getLeaves(ctx, 0, tree, indices)
}

// NewSession begins a session, which ends with ctx: requests made through it
// share what they learn about peers. Use one for what belongs together, such as
// the blocks of one file.
func (e *Exchange) NewSession(ctx context.Context) boxo.Fetcher {
	id := engine.SessionID(e.nextID.Add(1))
	s := &Session{exchange: e, ctx: ctx, id: id, ahead: e.newReadAhead(id)}
	gone := lostSession{id: id, ahead: s.ahead}
	// The engine forgets the session when its context ends, or when nobody holds
	// it any more, for a context may never end. So what is called then does not
	// hold s.
	stop := context.AfterFunc(ctx, func() {
		gone.ahead.end()
		e.closeSession(id)
	})
	runtime.AddCleanup(s, func(gone lostSession) {
		if stop() {
			e.lost.add(gone)
		}
	}, gone)
	return s
}

func (e *Exchange) closeSession(id engine.SessionID) {
	e.post(input{event: engine.CloseSession{Session: id}})
}

// lost is the sessions that nobody holds any more. Their clean-up belongs to the
// runtime and must not wait, so it leaves them here, and the loop closes them
// when it comes by with nothing else to do: not before the requests they made.
type lost struct {
	mu       sync.Mutex
	sessions []lostSession
}

func (d *lost) add(s lostSession) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sessions = append(d.sessions, s)
}

func (d *lost) take() []lostSession {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.sessions
	d.sessions = nil
	return list
}

// NotifyNewBlocks tells the exchange that the local store has these blocks now.
// Whoever waits for one of them, here or elsewhere, gets it. It returns at once,
// and without error after Close too: a blockservice fails the read that brought
// the blocks if this fails.
//
// A block with a method Size() int is asked that way how many bytes it has. So it
// may be one that reads its bytes only when RawData is called, which is left to
// the getters here that wait for it: they are given the value as it is, or read
// Config.Blocks if they have no room for it now.
func (e *Exchange) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	if len(list) == 0 {
		return nil
	}
	ev := engine.Stored{Blocks: make([]engine.Block, len(list))}
	got := make([]arrival, len(list))
	for i, b := range list {
		ev.Blocks[i] = engine.Block{Address: wire.Block(b.Cid()), Size: sizeOf(b)}
		got[i].block = lent.Own(b) // which remains the caller's
	}
	e.post(input{event: ev, blocks: got})
	return nil
}

// sizeOf is the length of a block, bytes; see NotifyNewBlocks.
func sizeOf(b blocks.Block) int {
	if b, ok := b.(interface{ Size() int }); ok {
		return b.Size()
	}
	return len(b.RawData())
}

// NotifyNewLeaves tells the exchange that leaves can be served now; see
// LeafExchange.
func (e *Exchange) NotifyNewLeaves(ctx context.Context, root cid.Cid, indices ...wire.Range) error {
	if err := checkTree("notify new leaves", root); err != nil {
		return err
	}
	e.post(input{event: engine.StoredLeaves{Want: wire.WantLeaves(root, indices...)}})
	return nil
}

// A Session is what NewSession returns. Its methods may be called from any
// goroutine; they end with the session's context as well as with their own.
type Session struct {
	exchange *Exchange
	ctx      context.Context
	id       engine.SessionID
	ahead    *readAhead // nil if nothing is read ahead
}

// begun is called when a request of the session has been posted. The session may
// have ended, and been closed, just before; the request has opened it again then.
// It also keeps the session from being collected until here.
func (s *Session) begun() {
	if s.ctx.Err() != nil {
		s.exchange.closeSession(s.id)
	}
	runtime.KeepAlive(s)
}

// GetBlock fetches one block; see Exchange.GetBlock.
func (s *Session) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ctx, stop := both(ctx, s.ctx)
	defer stop()
	defer s.begun()
	if s.ahead != nil {
		return s.ahead.getBlock(ctx, c)
	}
	return s.exchange.getBlock(ctx, s.id, c)
}

// GetBlocks fetches blocks; see Exchange.GetBlocks.
func (s *Session) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	ctx, stop := both(ctx, s.ctx)
	defer s.begun()
	if s.ahead != nil {
		return s.ahead.getBlocks(ctx, keys, stop)
	}
	return s.exchange.getBlocks(ctx, s.id, keys, nil, stop)
}

// GetLeaves fetches blocks of a dataset; see LeafFetcher.
func (s *Session) GetLeaves(ctx context.Context, tree Tree, indices ...wire.Range) (<-chan LeafBlock, error) {
	ctx, stop := both(ctx, s.ctx)
	defer s.begun()
	return s.exchange.getLeaves(ctx, s.id, tree, indices, stop)
}

// both returns a context that ends with either, and a function that lets go of
// it.
func both(ctx, session context.Context) (context.Context, func()) {
	if session.Done() == nil || ctx == session {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(session, func() { cancel(context.Cause(session)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// Stat is what the exchange has counted since New, and what stands now.
type Stat struct {
	BlocksReceived    uint64 // verified, wanted or not
	BytesReceived     uint64
	Delivered         uint64 // blocks handed to getters, once for each getter
	DuplicateBlocks   uint64 // asked of several peers, and come from more than one
	DuplicateBytes    uint64
	UnrequestedBlocks uint64 // not asked of the peer that sent them
	BadBlocks         uint64 // did not hash to their CID, or were proven wrongly
	BlocksSent        uint64
	BytesSent         uint64
	Asked             uint64 // want-blocks sent
	TimedOut          uint64 // want-blocks without an answer in time
	Hedged            uint64 // want-blocks sent to a second peer because the first was late
	HavesReceived     uint64
	DontHavesReceived uint64
	UnwantedPresences uint64
	WantsDropped      uint64 // of peers that ask for more than WantsPerPeer
	WantsEvicted      uint64
	SendsFailed       uint64
	PeersShunned      uint64 // not asked any more, for they sent bad blocks
	Searches          uint64
	ProvidersFound    uint64

	ReadAheadUsed        uint64 // blocks that sessions asked for ahead of their callers, who then did
	ReadAheadUsedBytes   uint64
	ReadAheadWasted      uint64 // blocks given up because the callers did not
	ReadAheadWastedBytes uint64 // those that had not come count as what they were taken to measure

	ReadAhead int // bytes that are held or under way ahead of callers

	Peers   int // connected, and speaking the protocol
	Wants   int // active
	Getters int
	Asks    int // of peers, standing
	Flying  int // bytes of blocks on their way out
}

// Stat returns the counts; after Close as they were then.
func (e *Exchange) Stat() (s Stat) {
	if !e.inspect(func(g *engine.Engine) { s = statOf(g.Stats()) }) {
		s = e.last
	}
	a := &e.ahead
	s.ReadAheadUsed, s.ReadAheadUsedBytes = a.used.Load(), a.usedBytes.Load()
	s.ReadAheadWasted, s.ReadAheadWastedBytes = a.wasted.Load(), a.wastedBytes.Load()
	s.ReadAhead = int(a.held.Load())
	return s
}

// statOf is what the engine has counted; a test sees to it that no field is left out.
func statOf(s engine.Stats) Stat {
	return Stat{
		BlocksReceived: s.BlocksReceived, BytesReceived: s.BytesReceived,
		Delivered:       s.Delivered,
		DuplicateBlocks: s.DuplicateBlocks, DuplicateBytes: s.DuplicateBytes,
		UnrequestedBlocks: s.UnrequestedBlocks,
		BadBlocks:         s.BadBlocks,
		BlocksSent:        s.BlocksSent, BytesSent: s.BytesSent,
		Asked: s.Asked, TimedOut: s.TimedOut, Hedged: s.Hedged,
		HavesReceived: s.HavesReceived, DontHavesReceived: s.DontHavesReceived, UnwantedPresences: s.UnwantedPresences,
		WantsDropped: s.WantsDropped, WantsEvicted: s.WantsEvicted,
		SendsFailed:  s.SendsFailed,
		PeersShunned: s.PeersShunned,
		Searches:     s.Searches, ProvidersFound: s.ProvidersFound,
		Peers: s.Peers, Wants: s.Wants, Getters: s.Getters, Asks: s.Asks, Flying: s.Flying,
	}
}

// GetWantlist lists the CIDs that are being asked for, leaves not included.
func (e *Exchange) GetWantlist() (list []cid.Cid) {
	for _, a := range e.Wantlist() {
		if !a.Leaf {
			list = append(list, a.Root)
		}
	}
	return list
}

// Wantlist lists everything that is being asked for, in no particular order.
func (e *Exchange) Wantlist() (list []wire.Address) {
	e.inspect(func(g *engine.Engine) { list = g.Wantlist() })
	return list
}

// Peers lists the connected peers that speak the protocol, the longest
// connected first.
func (e *Exchange) Peers() (list []peer.ID) {
	e.inspect(func(g *engine.Engine) { list = g.Peers() })
	return list
}

// A Ledger is what has passed between this node and one peer since it connected.
type Ledger struct {
	Peer           peer.ID
	BlocksReceived uint64
	BytesReceived  uint64
	Duplicates     uint64
	Unrequested    uint64
	Bad            uint64
	BlocksSent     uint64
	BytesSent      uint64
	MessagesSent   uint64 // want lists and presences
	Asked          uint64 // want-blocks sent to it
	TimedOut       uint64
	WantsReceived  uint64 // entries of its want lists, cancels included

	Outstanding int           // want-blocks it has not answered
	Window      int           // want-blocks it may have at a time
	Rate        float64       // bytes/s while it delivers, 0 if unknown
	Latency     time.Duration // of an answer when nothing else is asked, 0 if unknown
	Account     []byte        // where it wants to be paid, if it said so
}

// Ledger returns the ledger of a connected peer; false if it is not connected.
func (e *Exchange) Ledger(p peer.ID) (l Ledger, ok bool) {
	e.inspect(func(g *engine.Engine) {
		var s engine.PeerStats
		s, ok = g.Peer(p)
		l = Ledger(s)
	})
	return l, ok
}

// A Record is one line of what is known of a peer: a block that it has and we
// want, or one that it asked of us.
type Record struct {
	Address wire.Address
	Price   wire.Price // of a block it has
	Block   bool       // of one it asks for: the block itself, not just whether we have it
}

// Records returns the peer context record of a peer: what it has announced of
// what we want, and what it has explicitly asked of us and not been given.
func (e *Exchange) Records(p peer.ID) (has, asks []Record) {
	e.inspect(func(g *engine.Engine) {
		for _, r := range g.Has(p) {
			has = append(has, Record(r))
		}
		for _, r := range g.Asks(p) {
			asks = append(asks, Record(r))
		}
	})
	return has, asks
}

// WantlistForPeer lists the CIDs of the blocks that a peer has asked of this node
// and not been given, in no particular order; leaves are not included.
func (e *Exchange) WantlistForPeer(p peer.ID) (list []cid.Cid) {
	_, asks := e.Records(p)
	for _, r := range asks {
		if !r.Address.Leaf {
			list = append(list, r.Address.Root)
		}
	}
	return list
}
