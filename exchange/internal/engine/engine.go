package engine

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// Config bounds what an Engine does. Every field is set by package exchange,
// whose Config explains them.
type Config struct {
	Window         int
	BufferedBytes  int
	WantsPerPeer   int
	ServingBytes   int
	BroadcastPeers int
	SearchDelay    time.Duration
	Searches       bool // a Search has any use
	Serve          bool
	Filtered       bool // who looks up may refuse, so that nothing is served without
	Price          wire.Price
	MaxPrice       *wire.Price
	Self           peer.ID
	Score          func(PeerStats) int // worth of a peer, 0 to 100; nil: by the blocks that went between us
	Seed           uint64
}

// An Engine decides. See the package comment for its parts.
type Engine struct {
	cfg     Config
	now     time.Time
	rand    *rand.Rand
	timers  timers
	actions []Action
	stats   Stats

	peers map[peer.ID]*peerCtx
	order []*peerCtx // the same, in order of joining
	rate  float64    // bytes/s that peers deliver, running mean
	self  uint64     // peerHash of Config.Self

	wants    map[wire.Address]*want
	getters  map[GetterID]*getter
	sessions map[SessionID]*session // those that are open
	live     []*session             // those that are open or have getters

	turns     []*getter  // getters with ready wants, next first
	pass      uint64     // number of the scheduling pass
	doubts    uint64     // number of the round of reconsider
	able      []*peerCtx // that may be asked for more in the pass
	waiting   []*getter  // with plain CIDs in their backlog
	hungry    []*getter  // to be filled at the end of the step
	stale     []*session // to be reconsidered at the end of the step
	dirty     []*peerCtx // with something to be sent
	searching map[cid.Cid]bool
	searched  searched
	leaving   int        // wants that are left to fellows
	moving    []*session // for which blocks have come, or are late, in this step

	ledger  ledger
	serving []*peerCtx // with blocks to be sent
	charged float64    // what the peer that was served last was charged before
	flying  int        // bytes of blocks on their way to all peers
	message uint64     // number of the latest message of blocks
}

// New makes an Engine that has no peers and no wants.
func New(cfg Config) *Engine {
	return &Engine{
		cfg:       cfg,
		self:      peerHash(cfg.Self),
		rand:      rand.New(rand.NewPCG(cfg.Seed, 0x636f646578)),
		peers:     make(map[peer.ID]*peerCtx),
		wants:     make(map[wire.Address]*want),
		getters:   make(map[GetterID]*getter),
		sessions:  make(map[SessionID]*session),
		searching: make(map[cid.Cid]bool),
		ledger:    ledger{byAddress: make(map[wire.Address]*ask), crowds: make(map[wire.Address]map[*peerCtx]*ask)},
	}
}

// Step takes an event in, and whatever has become due by now, which must not be
// earlier than the now of the last step.
func (e *Engine) Step(now time.Time, ev Event) {
	e.now = now
	for t := e.timers.next(now); t != nil; t = e.timers.next(now) {
		t.owner.due(e)
	}
	e.take(ev)
	for _, g := range e.hungry {
		g.hungry = false
		if e.getters[g.id] == g {
			e.fill(g)
			e.finish(g)
		}
	}
	e.hungry = e.hungry[:0]
	e.reconsider()
	e.schedule()
	for len(e.stale) > 0 { // wants that changed hands have met fellows
		e.reconsider()
		e.schedule()
	}
	e.poach()
	e.relieve()
	e.serve()
	e.flush()
}

func (e *Engine) take(ev Event) {
	switch ev := ev.(type) {
	case Want:
		e.add(ev)
	case Drop:
		e.drop(ev.Getter)
	case Took:
		e.took(ev)
	case CloseSession:
		e.closeSession(ev.Session)
	case PeerUp:
		e.peerUp(ev)
	case PeerDown:
		e.peerDown(ev)
	case WantlistIn:
		if p := e.peers[ev.Peer]; p != nil {
			e.wantlist(p, ev.List)
		}
	case PresencesIn:
		if p := e.peers[ev.Peer]; p != nil {
			e.presences(p, ev.Presences)
		}
	case BlocksIn:
		if p := e.peers[ev.Peer]; p != nil {
			e.blocks(p, ev)
		}
	case AccountIn:
		if p := e.peers[ev.Peer]; p != nil {
			p.account = ev.Account
		}
	case Sent:
		if p := e.peers[ev.Peer]; p != nil && p.epoch == ev.Epoch {
			e.sent(p, ev)
		}
	case Streams:
		if p := e.peers[ev.Peer]; p != nil && p.epoch == ev.Epoch {
			p.streams = max(ev.Streams, 1)
			e.enqueue(p)
		}
	case Looked:
		if p := e.peers[ev.Peer]; p != nil && p.epoch == ev.Epoch {
			e.looked(p, ev)
		}
	case Stored:
		e.stored(ev.Blocks)
	case StoredLeaves:
		e.storedLeaves(ev.Want)
	case Found:
		e.found(ev)
	case Searched:
		delete(e.searching, ev.Key)
	}
}

func (e *Engine) sent(p *peerCtx, ev Sent) {
	if ev.OK {
		p.failed = 0
	}
	if ev.Blocks {
		e.landed(p, ev)
	} else {
		p.sending = false
	}
	if !ev.OK {
		e.failed(p)
		return
	}
	e.look(p)
	e.touch(p)
}

func (e *Engine) act(a Action) { e.actions = append(e.actions, a) }

// Actions returns what should be done since it was last called, in order. The
// slice is the caller's until the next Step.
func (e *Engine) Actions() []Action {
	a := e.actions
	e.actions = e.actions[:0]
	return a
}

// Deadline is when Step is to be called again if nothing happens before, or the
// zero time if there is nothing to wait for.
func (e *Engine) Deadline() time.Time {
	if len(e.timers.heap) == 0 {
		return time.Time{}
	}
	return e.timers.heap[0].at
}

// Wantlist lists the active wants, in no particular order.
func (e *Engine) Wantlist() []wire.Address {
	list := make([]wire.Address, 0, len(e.wants))
	for a := range e.wants {
		list = append(list, a)
	}
	return list
}

// Stats counts since the Engine was made.
type Stats struct {
	BlocksReceived    uint64 // verified, wanted or not
	BytesReceived     uint64
	Delivered         uint64 // blocks handed to getters, once for each
	DuplicateBlocks   uint64 // had come from somewhere else before
	DuplicateBytes    uint64
	UnrequestedBlocks uint64 // were not asked of the peer that sent them
	BadBlocks         uint64 // did not hash to their CID, or were proven wrongly
	BlocksSent        uint64
	BytesSent         uint64
	Asked             uint64 // want-blocks sent
	TimedOut          uint64 // want-blocks without an answer in time
	Hedged            uint64 // want-blocks sent to a second peer because the first was late
	HavesReceived     uint64
	DontHavesReceived uint64
	UnwantedPresences uint64
	WantsDropped      uint64 // of peers that ask for too much
	WantsEvicted      uint64
	SendsFailed       uint64
	PeersShunned      uint64 // that sent too many bad blocks
	Searches          uint64
	ProvidersFound    uint64

	// As of now:
	Peers   int
	Wants   int // active
	Getters int
	Asks    int // standing in the ledger, of all peers
	Flying  int // bytes of blocks on their way out
}

// Stats returns the counts.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Peers, s.Wants, s.Getters, s.Flying = len(e.peers), len(e.wants), len(e.getters), e.flying
	for _, p := range e.order {
		s.Asks += p.asking
	}
	return s
}

// PeerStats is the ledger of one peer: what has passed between us since it
// connected, and what stands between us now.
type PeerStats struct {
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
	Account     []byte        // where it is paid, if it said so
}

// Peer returns the ledger of a connected peer.
func (e *Engine) Peer(id peer.ID) (PeerStats, bool) {
	p := e.peers[id]
	if p == nil {
		return PeerStats{}, false
	}
	return p.snapshot(), true
}

func (p *peerCtx) snapshot() PeerStats {
	s := p.stats
	s.Peer, s.Outstanding, s.Window, s.Rate, s.Latency, s.Account = p.id, p.asked.len, p.window, p.rate, p.answer, slices.Clone(p.account)
	return s
}

// Peers lists the connected peers in order of joining.
func (e *Engine) Peers() []peer.ID {
	ids := make([]peer.ID, len(e.order))
	for i, p := range e.order {
		ids[i] = p.id
	}
	return ids
}

// A Record is one line of a peer context record: a block that the peer has and
// we want, or one that it asked of us.
type Record struct {
	Address wire.Address
	Price   wire.Price // of what it has
	Block   bool       // of what it asks: the block, not just to know
}

// Has lists what a peer has announced of what we want.
func (e *Engine) Has(id peer.ID) []Record {
	var list []Record
	if p := e.peers[id]; p != nil {
		for _, l := range p.links {
			if l.says == has {
				r := Record{Address: l.want.address}
				if l.price != nil {
					r.Price = *l.price
				}
				list = append(list, r)
			}
		}
	}
	return list
}

// Asks lists what a peer has explicitly asked of us and not been given.
func (e *Engine) Asks(id peer.ID) []Record {
	var list []Record
	if p := e.peers[id]; p != nil {
		for i := range p.asks {
			for x := p.asks[i].head; x != nil; x = x.next {
				list = append(list, Record{Address: x.address, Block: x.block})
			}
		}
	}
	return list
}
