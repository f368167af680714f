package engine

import (
	"github.com/codexchange/codexchange/exchange/wire"
)

// An ask is one line of a peer's want list: what it explicitly asked of us. It is in
// the list of its state until it is served, taken back, evicted, or the peer
// leaves.
type ask struct {
	peer     *peerCtx
	address  wire.Address
	block    bool // it wants the block, not just to know
	dontHave bool // it wants to be told if we do not have it
	again    bool // the block came, or was asked for again, while it was being looked up or sent
	over     bool // it was taken back while the block was being sent
	state    askState
	passed   uint8 // later asks that were served before it, see rarest
	size     int   // bytes of the block, if queued or flying

	hook[ask]          // in the list of state, at peer
	before, other *ask // asks of other peers for the same address
}

type askState uint8

const (
	unlooked askState = iota // the store has not been asked
	looking                  // a Lookup is under way
	absent                   // we do not have the block: the ask stands until we do
	queued                   // the block waits to be sent
	flying                   // the block is being sent
	askStates
)

type askList = list[ask, *ask]

// ledger knows who asked for what. An ask is in it, and in the list of its
// state at its peer, or in neither.
type ledger struct {
	byAddress map[wire.Address]*ask // the first of a chain by other
	// crowds finds the ask of a peer where many ask for the same, and the way
	// along the chain would be long.
	crowds map[wire.Address]map[*peerCtx]*ask

	// served counts how often a block was sent while others asked for it too. Of
	// the blocks that are served the older half is forgotten from time to time.
	served, older map[wire.Address]int
}

const maxServed = 4096 // entries of ledger.served

func (ld *ledger) serves(a wire.Address) {
	if len(ld.served) >= maxServed {
		ld.older, ld.served = ld.served, nil
	}
	if ld.served == nil {
		ld.served = make(map[wire.Address]int)
	}
	ld.served[a] = ld.timesServed(a) + 1
}

func (ld *ledger) timesServed(a wire.Address) int {
	if len(ld.served) == 0 && len(ld.older) == 0 {
		return 0
	}
	if n, ok := ld.served[a]; ok {
		return n
	}
	return ld.older[a]
}

const crowd = 16 // asks for one address from which on there is an index

func (ld *ledger) find(p *peerCtx, a wire.Address) *ask {
	if len(ld.crowds) > 0 {
		if c := ld.crowds[a]; c != nil {
			return c[p]
		}
	}
	x := ld.byAddress[a]
	for x != nil && x.peer != p {
		x = x.other
	}
	return x
}

func (ld *ledger) add(p *peerCtx, a wire.Address) *ask {
	first := ld.byAddress[a]
	x := &ask{peer: p, address: a, other: first}
	if first != nil {
		first.before = x
	}
	ld.byAddress[a] = x
	ld.index(x)
	p.asks[unlooked].push(x)
	p.asking++
	return x
}

// index takes the first ask of a chain into its crowd, which begins when the
// chain has become long.
func (ld *ledger) index(x *ask) {
	if c := ld.crowds[x.address]; c != nil {
		c[x.peer] = x
		return
	}
	n := 0
	for y := x; y != nil; y = y.other {
		n++
	}
	if n < crowd {
		return
	}
	c := make(map[*peerCtx]*ask, 2*crowd)
	for y := x; y != nil; y = y.other {
		c[y.peer] = y
	}
	ld.crowds[x.address] = c
}

func (ld *ledger) remove(x *ask) {
	x.peer.asks[x.state].remove(x)
	x.peer.asking--
	switch {
	case x.before != nil:
		x.before.other = x.other
	case x.other != nil:
		ld.byAddress[x.address] = x.other
	default:
		delete(ld.byAddress, x.address)
	}
	if x.other != nil {
		x.other.before = x.before
	}
	if c := ld.crowds[x.address]; c != nil {
		delete(c, x.peer)
		if len(c) < crowd/2 {
			delete(ld.crowds, x.address)
		}
	}
}

// move puts an ask into another state.
func (x *ask) move(to askState) {
	x.peer.asks[x.state].remove(x)
	x.state = to
	x.peer.asks[to].push(x)
}

// wantlist takes in what a peer asks of us. A full list does not replace what it
// asked before: the reference leaves out of its full lists what it already asked
// for (protocol note 9).
func (e *Engine) wantlist(p *peerCtx, list wire.WantList) {
	p.stats.WantsReceived += uint64(len(list.Entries))
	if !e.cfg.Serve {
		return
	}
	for _, en := range list.Entries {
		x := e.ledger.find(p, en.Address)
		switch {
		case en.Cancel && x == nil:
		case en.Cancel && x.state == flying:
			x.over = true // too late, unless the message fails
		case en.Cancel:
			e.ledger.remove(x)
		case x != nil:
			e.askedAgain(x, en)
		default:
			e.askedFirst(p, en)
		}
	}
	e.look(p)
	e.enqueue(p)
}

func (e *Engine) askedFirst(p *peerCtx, en wire.Entry) {
	if p.asking >= e.cfg.WantsPerPeer {
		oldest := p.asks[absent].head
		if oldest == nil {
			e.stats.WantsDropped++
			return
		}
		e.stats.WantsEvicted++
		e.ledger.remove(oldest)
	}
	x := e.ledger.add(p, en.Address)
	x.block, x.dontHave = en.Type == wire.WantBlock, en.SendDontHave
	e.joined(p, en.Address)
}

func (e *Engine) askedAgain(x *ask, en wire.Entry) {
	if x.over { // it was taken back: this is another ask
		x.over, x.block, x.dontHave = false, false, false
	}
	x.dontHave = x.dontHave || en.SendDontHave
	if en.Type == wire.WantBlock {
		x.block = true
	}
	switch x.state {
	case absent:
		x.move(unlooked)
	case looking:
		x.again = true
	case queued, flying:
		if en.Type == wire.WantHave {
			e.present(x.peer, x.address, wire.Have)
		}
	}
}

// disown forgets everything a peer asked for, because it has left.
func (e *Engine) disown(p *peerCtx) {
	for i := range p.asks {
		for p.asks[i].head != nil {
			e.ledger.remove(p.asks[i].head)
		}
	}
	for _, m := range p.flying {
		e.flying -= m.bytes
	}
	p.flying, p.presences, p.streams = nil, nil, 0
}
