package engine

import (
	"math/bits"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	defaultSize = 64 << 10 // bytes a block is taken to measure before one has come (protocol note 13)

	firstWindow = 32      // wants asked of a peer before it has delivered
	maxWindow   = 1024    // wants asked of a peer at a time, at most (protocol note 13)
	minLoad     = 4 << 20 // bytes asked of a peer at a time, at least, once its window is open

	firstPatience = 5 * time.Second // before anything is known of a peer (boxo's default)
	minPatience   = 500 * time.Millisecond
	minLate       = 50 * time.Millisecond // before which no block is late
	unknownLate   = time.Second
	staleRate     = 10 * time.Second // after which nobody relies on how slow a peer was
	maxPatience   = 10 * time.Second

	maxBad = 3 // bad blocks after which a peer is not asked again while it is connected
)

// word is what a peer says about a want.
type word uint8

const (
	nothing word = iota
	has          // it announced the block
	hasNot       // it said "don't have"
	tooSlow      // it did not answer in time, which is taken as "don't have"
	sentBad      // it sent something else in place of the block: it is not asked again
	tooDear      // it has the block for more than we pay
)

// told is what a peer has last been sent about a want.
type told uint8

const (
	toldNothing told = iota
	toldHave         // want-have
	toldBlock        // want-block: it stands until delivered, cancelled or disconnected
)

// A link is what passed between us and one peer about one want.
type link struct {
	want  *want
	peer  *peerCtx
	place int // in peer.links

	told   told
	queued told // what waits in the outbox to be said; toldNothing if nothing does
	toldAt time.Time
	says   word
	price  *wire.Price // if it has the block and asks something for it
	crowd  bool        // it has the block, and wanted it, or others with it, when we did
	gone   bool        // the want has ended or the peer has left
}

// A peerCtx is what the exchange knows of one connected peer.
type peerCtx struct {
	id    peer.ID
	epoch uint64
	up    bool
	near  bool // it is told of everything, see broadcast
	shown bool // it has announced or delivered something that was wanted

	// Asking.
	links   []*link
	asked   wantList // oldest first
	offers  int      // ready wants that it announced
	trusted int      // sessions in which it may be asked without being probed
	load    int      // bytes of asked, as far as known
	window  int      // how many wants it may be asked for at a time
	filled  bool     // it was asked for as much as it may be, and too little of that has come
	latency time.Duration
	answer  time.Duration // running mean of the time from want-block to block when idle, 0 if unknown
	rate    float64       // bytes/s while it delivers, running mean; 0 if unknown
	counted int           // bytes that came since then
	since   time.Time     // start of the present measurement of rate; zero: when a block comes
	first   bool          // since is when the first blocks came, which do not count
	lastIn  time.Time     // last valid block
	bad     int           // bad blocks
	failed  int           // sends that failed one after another
	paused  bool          // nothing is sent to it until its timer
	timer   timer
	account []byte
	hash    uint64 // peerHash of id

	// As a fellow, see crowd.go.
	left   wantList  // what is left to it, oldest first
	leftAt time.Time // when it was first left something
	gaveAt time.Time // when it last announced anything new, or as leftAt
	given  int       // what it has announced since leftAt
	slack  bool      // nothing more is left to it until it announces something new
	// It did not deliver what it had announced: what it announces is not believed more
	// than of others until it delivers something.
	expelled bool

	value int // as of the last Value

	// Sending lists.
	outbox    []outEntry
	compactAt int // length of outbox at which to look for lines without use
	presences []wire.Presence
	sending   bool // a Send is under way
	full      bool // the next list is the first or a whole one
	dirty     bool // in Engine.dirty

	cancelled recent // wants taken back from it, whose blocks may still come

	// Serving, see ledger.go and serve.go.
	asks    [askStates]askList
	asking  int       // how many there are
	looking bool      // a Lookup is under way
	flying  []flight  // messages of blocks under way
	streams int       // that carry them; 0 is 1
	takes   float64   // bytes/s while there is more to send it, running mean; 0 if unknown
	writing time.Time // start of the present measurement of takes
	written int       // bytes since then
	charge  float64   // bytes it was sent, divided by share
	share   int       // of what is sent, beside that of others
	inTurn  bool      // in Engine.serving

	stats PeerStats
}

// say records the word of the peer.
func (l *link) say(x word) {
	counts := l.want.state == ready && (l.says == has || x == has)
	if counts {
		l.want.offer(-1)
	}
	l.says, l.price, l.crowd = x, nil, false
	if counts {
		l.want.offer(+1)
	}
}

// announce records that the peer has the block.
func (l *link) announce(price wire.Price, crowd bool) {
	if l.want.state == ready {
		l.want.offer(-1)
	}
	l.says, l.price, l.crowd = has, nil, crowd
	if !price.IsZero() {
		l.price = &price
	}
	if l.want.state == ready {
		l.want.offer(+1)
	}
}

func (l *link) unlink() {
	p := l.peer
	last := p.links[len(p.links)-1]
	p.links[l.place] = last
	last.place = l.place
	p.links[len(p.links)-1] = nil
	p.links = p.links[:len(p.links)-1]
	l.gone = true
}

// know returns the link between a want and a peer, making it if there is none.
func (e *Engine) know(w *want, p *peerCtx) *link {
	if l := w.link(p); l != nil {
		return l
	}
	l := &link{want: w, peer: p, place: len(p.links)}
	p.links = append(p.links, l)
	w.links = append(w.links, l)
	return l
}

// usable reports whether the peer may be asked for anything.
func (p *peerCtx) usable() bool { return p.up && !p.paused && p.bad < maxBad }

// room reports whether the peer may be asked for one more block now. One that is
// asked for as much as it may be is then left alone until a quarter of that has
// come, so that a message asks for several blocks: what a message costs, here and
// there, is shared by them.
func (p *peerCtx) room() bool { return p.usable() && !p.filled && !p.loaded(1, 1) }

// loaded reports whether the peer is asked for as much as it may be, or, of that,
// for more than a part of it.
func (p *peerCtx) loaded(part, of int) bool {
	n := p.asked.len * of
	return n >= p.window*part || n >= firstWindow*part && p.load*of >= p.depth()*part
}

// fill notes that the peer was asked for one more, drain that it is asked for one
// less.
func (p *peerCtx) fill()  { p.filled = p.filled || p.loaded(1, 1) }
func (p *peerCtx) drain() { p.filled = p.filled && p.loaded(3, 4) && p.asked.len > 0 }

// able reports whether the peer has room and there may be something to ask of it.
func (p *peerCtx) able() bool { return (p.offers > 0 || p.trusted > 0) && p.room() }

// depth is how many bytes to have asked of the peer, so that it is never idle:
// four times what it delivers in the time of an answer, as more may be in it.
func (p *peerCtx) depth() int {
	t := max(p.answer, p.latency)
	return max(minLoad, int(4*p.rate*t.Seconds()))
}

// patience is how long the peer may be silent while it owes us blocks. They come in
// messages, during which nothing is heard of them.
func (p *peerCtx) patience() time.Duration {
	if p.answer == 0 {
		return firstPatience
	}
	d := 8*p.answer + 2*p.latency
	if p.rate > 0 {
		d += time.Duration(2 * messageBytes / p.rate * float64(time.Second))
	}
	return min(max(d, minPatience), maxPatience)
}

// backlog is how long the peer needs for what it is asked for, 0 if unknown.
func (p *peerCtx) backlog() time.Duration {
	if p.rate == 0 {
		return 0
	}
	return time.Duration(float64(p.load) / p.rate * float64(time.Second))
}

// expect is how long a block of this size would take, in seconds, if the peer were
// asked now. A peer whose rate is not known, or was not measured for a while, is
// given the benefit of the doubt, with one block at a time.
func (p *peerCtx) expect(now time.Time, size int, known float64) float64 {
	rate := p.rate
	if rate == 0 {
		rate = max(known, 1<<20)
	} else if p.asked.len == 0 && now.Sub(p.lastIn) > staleRate {
		rate = max(known, rate)
	}
	return float64(p.load+size)/rate + max(p.latency, p.answer/4).Seconds()
}

// lateAt is when a block that the peer is asked for now is late: after three times
// what it should take it, or after a second if nothing is known of the peer.
func (p *peerCtx) lateAt(now time.Time, size int) time.Time {
	if p.answer == 0 {
		return now.Add(unknownLate)
	}
	should := p.answer
	if p.rate > 0 {
		should += time.Duration(float64(p.load+size) / p.rate * float64(time.Second))
	}
	return now.Add(max(3*should, minLate))
}

// delivered takes a valid block, asked for at askedAt, into what is known of the
// peer. Idle says that nothing else was asked of it at the time.
func (p *peerCtx) delivered(now, askedAt time.Time, size int, alone bool) {
	if alone {
		t := now.Sub(askedAt)
		if p.answer == 0 {
			p.answer = max(t, time.Microsecond)
		} else {
			p.answer += (t - p.answer) / 4
		}
	}
	p.lastIn = now
	p.window = min(p.window+1, maxWindow)
	if p.since.IsZero() {
		p.since, p.first = now, true // what it took until now was no matter of its rate
	}
	if p.first = p.first && now.Equal(p.since); p.first {
		return
	}
	p.counted += size
	if t := now.Sub(p.since); t >= 50*time.Millisecond {
		r := float64(p.counted) / t.Seconds()
		if p.rate == 0 {
			p.rate = r
		} else {
			p.rate += (r - p.rate) / 4
		}
		p.since, p.counted = now, 0
	}
}

// remeasure begins a new measurement of rate with the next block, for the peer was
// idle.
func (p *peerCtx) remeasure() { p.since, p.counted = time.Time{}, 0 }

// stalled notes that the peer left a want without an answer.
func (p *peerCtx) stalled() {
	p.window = max(1, p.window/8)
	p.stats.TimedOut++
}

// recent remembers the last addresses put into it, up to a bound.
type recent struct {
	set  map[wire.Address]struct{}
	ring []wire.Address
	next int
}

const maxRecent = 256

func (r *recent) add(a wire.Address) {
	if _, ok := r.set[a]; ok {
		return
	}
	if r.set == nil {
		r.set = make(map[wire.Address]struct{})
	}
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, a)
	} else {
		delete(r.set, r.ring[r.next])
		r.ring[r.next] = a
		r.next = (r.next + 1) % maxRecent
	}
	r.set[a] = struct{}{}
}

// has reports whether a is remembered. It is remembered on, for a peer may
// send twice what it was asked for twice.
func (r *recent) has(a wire.Address) bool {
	_, ok := r.set[a]
	return ok
}

// appraise says so when the connection to a peer has become worth more: with each
// doubling of the blocks that went either way and were of use, up to 100. If
// Config.Score says what a peer is worth, it may also become worth less, and its
// share of what we send is as large as its worth.
func (e *Engine) appraise(p *peerCtx) {
	v := p.value
	if e.cfg.Score != nil {
		v = min(max(e.cfg.Score(p.snapshot()), 0), 100)
		p.share = max(v, 1)
	} else {
		useful := p.stats.BlocksReceived + p.stats.BlocksSent - p.stats.Duplicates - p.stats.Unrequested
		v = max(v, min(100, 8*bits.Len64(useful)))
	}
	if v != p.value {
		p.value = v
		e.act(Value{Peer: p.id, Value: v})
	}
}
