package ahead

import (
	"github.com/ipfs/go-cid"
)

// MaxOpen is how many guesses may be under way or held that were not asked for.
const MaxOpen = 1024

const (
	firstWindow = 256 << 10 // bytes
	firstSize   = 256 << 10 // of a block of which nothing is known
	leastSize   = 4 << 10   // that a block counts as before it has come
	maxLinks    = 16384     // known, unless one node has more
	maxDepth    = 64        // of frames above a frame
	maxVisits   = 4096      // links looked at by one Next
	near        = 64        // links by which concurrent requests may differ from the order
	late        = 48        // requests for what was passed over, in a row, that make a jump
	left        = 48        // requests elsewhere after which a frame counts as left
	early       = 1024      // and after which nobody comes who was expected; the frames before may be long
	sweepEvery  = 32        // requests
	maxLocal    = 1024      // blocks that the local store has, between two requests
)

// A Plan decides what one session reads ahead. It is not safe for concurrent use.
type Plan struct {
	limit   int // bytes, of the window
	window  int // bytes that guesses may take now
	out     int // bytes that open guesses take
	strange int // of those, in frames in which nothing was asked for

	frames map[cid.Cid]*frame // by the CID of the node
	oldest []*frame           // the same, the one known longest first
	places map[cid.Cid]place  // by the CID that is linked to
	links  int                // in all frames

	guesses map[cid.Cid]*guess
	open    int // guesses that were not asked for

	at       *frame // where the walker is
	foretold bool   // the last frame that was entered had been guessed
	asks     uint64 // requests so far
	sweepAt  uint64 // when to look for frames that were left
	dry      bool   // nothing is left to guess, until something is asked for or comes
	misses   uint   // times that guesses were given up since one was used
	missed   uint64 // asks at the last of them
	local    int    // blocks found in the local store since the last request
	dropped  []cid.Cid

	sizes [shard + 1]int // by kind: running mean of what has come, bytes; 0 if nothing has
	floor int            // the longest block of which a node had a smaller size
	stats Stats
}

// Stats is what became of guesses.
type Stats struct {
	Used, UsedBytes     uint64
	Wasted, WastedBytes uint64 // those that had not come count as what they were taken to measure
}

// A frame is a node whose links are known.
type frame struct {
	node  cid.Cid
	links []Link // nil when the frame is forgotten
	named bool

	up    *frame // the one to go on with after this; nil if there is none
	index int    // the link of up that led here
	depth int

	next  int    // all links before it were asked for, or passed over
	asked int    // links asked for in order
	kinds uint8  // of those, a bit each
	at    uint64 // asks of the Plan when one here, or below, was last asked for
	open  bool   // a frame below has been walked

	strays int // requests that were not near next, in a row
	out    int // bytes of the open guesses here
}

type place struct {
	frame *frame
	index int
}

// A guess is a block that is being fetched, or was, ahead of the walker.
type guess struct {
	place
	size  int // bytes that it counts as
	held  bool
	asked bool // it is under way, and was asked for: it is not open any more

	since uint64 // asks of the Plan when it was made
	until uint64 // and when it is over if nothing in the frame has been asked for
}

// NewPlan makes a Plan whose window grows to limit bytes.
func NewPlan(limit int) *Plan {
	return &Plan{
		limit:   limit,
		window:  min(firstWindow, limit),
		frames:  make(map[cid.Cid]*frame),
		places:  make(map[cid.Cid]place),
		guesses: make(map[cid.Cid]*guess),
	}
}

// A State is where a block is that is asked for.
type State uint8

const (
	Unknown State = iota // it has to be fetched
	Coming               // it is being fetched
	Held                 // it has come
)

// Ask notes that the walker asks for a block. A block that is Held is the walker's
// from here on.
func (p *Plan) Ask(c cid.Cid) State {
	p.asks++
	state := Unknown
	g := p.guesses[c]
	switch {
	case g == nil:
	case g.held:
		state = Held
		p.close(c, g)
		p.use(g.size)
	default:
		state = Coming
		if !g.asked {
			p.shut(g)
			g.asked = true
		}
	}
	if at, ok := p.places[c]; ok {
		p.reach(at, g)
	}
	return state
}

// reach moves the walker to a link that it asks for.
func (p *Plan) reach(to place, g *guess) {
	f := to.frame
	l := &f.links[to.index]
	p.dry, p.local = false, 0
	entered := f.asked == 0
	for f.next < len(f.links) && f.links[f.next].done {
		f.next++ // over what the local store has
	}
	l.done = true
	if !isNear(to.index, f.next) {
		// Of concurrent requests some may be very late, while others find all they
		// ask for held.
		if f.strays++; to.index < f.next && f.strays < late {
			return
		}
		p.dropIn(f)
		f.asked, f.next = 0, to.index
	}
	f.strays = 0
	if entered && p.strange > 0 {
		p.foretold = f.out > 0
		p.strange -= f.out
	}
	f.asked++
	f.kinds |= 1 << l.kind
	f.next = max(f.next, to.index+1)
	if g != nil {
		p.window = min(p.window+g.size, p.limit)
	} else if p.stats.UsedBytes >= p.stats.WastedBytes {
		p.window = min(p.window+p.sizeOf(l), p.limit)
	}
	if f.up != nil && f.live() {
		f.up.open = true
	}
	within := false // f is at, or above it
	for x := p.at; x != nil && !within; x = x.up {
		within = x == f
	}
	if !within {
		p.at = f
	}
	for x := f; x != nil; x = x.up {
		x.at = p.asks
	}
}

func isNear(i, j int) bool { return i <= j+near && j <= i+near }

// live reports whether the walker is taken to go through the frame.
func (f *frame) live() bool {
	if !f.named {
		return true
	}
	if f.up != nil && f.up.open {
		return true
	}
	return f.asked >= 2 && 2*f.asked >= f.next
}

// sizeOf is what a block counts as before it has come.
func (p *Plan) sizeOf(l *Link) int {
	size := l.Size
	if size == 0 {
		size = p.sizes[l.kind]
	}
	if size == 0 {
		size = firstSize
	}
	return max(size, leastSize, p.floor)
}

// Add makes known what a node links to, which was asked for, guessed or found in the
// local store.
func (p *Plan) Add(c cid.Cid, n Node) {
	if len(n.Links) == 0 || p.frames[c] != nil {
		return
	}
	f := &frame{node: c, links: n.Links, named: n.Named, at: p.asks}
	if at, ok := p.places[c]; ok {
		f.up, f.index = at.frame, at.index
		// What has nothing left to go on with is not gone back to.
		for f.up != nil && f.index == len(f.up.links)-1 {
			f.up, f.index = f.up.up, f.up.index
		}
		if f.up != nil {
			if f.depth = f.up.depth + 1; f.depth > maxDepth {
				f.up = nil
			}
		}
	}
	p.frames[c] = f
	p.oldest = append(p.oldest, f)
	p.links += len(n.Links)
	for i, l := range f.links {
		if old, ok := p.places[l.Cid]; !ok || old.frame.links[old.index].done {
			p.places[l.Cid] = place{f, i}
		}
	}
	p.dry = false
	p.trim(f)
}

// trim forgets frames if there are too many links, but not the newest, nor those that
// lead to where the walker is as long as there are others.
func (p *Plan) trim(newest *frame) {
	for spared := 0; p.links > maxLinks && len(p.oldest) > 1; {
		f := p.oldest[0]
		p.oldest = p.oldest[1:]
		if f == newest || f.leadsTo(p.at) && spared < 2*maxDepth {
			spared++
			p.oldest = append(p.oldest, f)
			continue
		}
		delete(p.frames, f.node)
		for i, l := range f.links {
			if p.places[l.Cid] == (place{f, i}) {
				delete(p.places, l.Cid)
			}
		}
		p.links -= len(f.links)
		f.links = nil
		if p.at == f {
			p.at = nil
		}
	}
}

func (f *frame) leadsTo(at *frame) bool {
	for ; at != nil; at = at.up {
		if at == f {
			return true
		}
	}
	return false
}

// Came notes that a guess has come, and its size in bytes. It may be room bytes longer
// than it was taken to be. It is false if the block is not to be kept: the walker has
// asked for it, which the Plan has noted then, or there is no room for it. If it was
// taken for much less than it is, what is under way beside it is given up as well, for
// it may be as long.
func (p *Plan) Came(c cid.Cid, size, room int) (keep bool) {
	g := p.guesses[c]
	if g == nil || g.held {
		return false
	}
	if l := g.link(); l != nil {
		mean := &p.sizes[l.kind]
		if *mean == 0 {
			*mean = size
		}
		*mean += (size - *mean) / 8
		if l.Size > 0 && size > l.Size {
			p.floor = max(p.floor, size)
		}
	}
	if g.asked {
		delete(p.guesses, c)
		p.use(size)
		return false
	}
	if more := size - g.size; p.out+more > p.limit || more > room {
		p.close(c, g)
		p.waste(size)
		p.skip(g)
		if size > 2*g.size {
			for c, g := range p.guesses {
				if !g.held && !g.asked {
					p.lose(c, g)
				}
			}
		}
		return false
	}
	p.grow(g, size-g.size)
	g.held = true
	return true
}

// Local notes that a guess is in the local store, so that the walker finds it there.
func (p *Plan) Local(c cid.Cid) {
	if g := p.guesses[c]; g != nil && !g.held {
		p.Forget(c)
		p.skip(g)
		p.local++
	}
}

// Forget ends a guess, of which nothing is said. It may be guessed again.
func (p *Plan) Forget(c cid.Cid) {
	if g := p.guesses[c]; g != nil {
		p.close(c, g)
	}
}

// skip has a link left out from here on.
func (p *Plan) skip(g *guess) {
	p.dry = false
	if l := g.link(); l != nil {
		l.done = true
	}
}

func (g *guess) link() *Link {
	if g.index < len(g.frame.links) {
		return &g.frame.links[g.index]
	}
	return nil
}

// grow changes what an open guess counts as.
func (p *Plan) grow(g *guess, by int) {
	g.size += by
	g.frame.out += by
	p.out += by
	if g.frame.asked == 0 {
		p.strange += by
	}
}

// shut takes a guess out of the window.
func (p *Plan) shut(g *guess) {
	size := g.size
	p.grow(g, -size)
	g.size = size
	p.open--
}

func (p *Plan) use(bytes int) {
	p.misses = 0
	p.stats.Used++
	p.stats.UsedBytes += uint64(bytes)
}

func (p *Plan) waste(bytes int) {
	p.stats.Wasted++
	p.stats.WastedBytes += uint64(bytes)
}

// close ends a guess.
func (p *Plan) close(c cid.Cid, g *guess) {
	if !g.asked {
		p.shut(g)
	}
	delete(p.guesses, c)
}

// lose ends an open guess that is not going to be used. The window is small again, and
// smaller each time until a guess is used.
func (p *Plan) lose(c cid.Cid, g *guess) {
	p.close(c, g)
	p.waste(g.size)
	p.dropped = append(p.dropped, c)
	if p.misses == 0 || p.missed != p.asks {
		p.misses++
		p.missed = p.asks
	}
	p.window = min(max(firstWindow>>(p.misses-1), leastSize), p.limit)
}

// dropIn drops the open guesses of a frame.
func (p *Plan) dropIn(f *frame) {
	if f.out == 0 {
		return
	}
	for c, g := range p.guesses {
		if g.frame == f && !g.asked {
			p.lose(c, g)
		}
	}
}

// DropAll drops all open guesses, and makes no more until something is asked for: the
// walker has not been heard of for long, or is gone.
func (p *Plan) DropAll() {
	for c, g := range p.guesses {
		if !g.asked {
			p.lose(c, g)
		}
	}
	p.dry = true
}

// sweep drops guesses in frames that the walker has left.
func (p *Plan) sweep() {
	if p.asks < p.sweepAt {
		return
	}
	p.sweepAt = p.asks + sweepEvery
	for c, g := range p.guesses {
		over := max(g.frame.at, g.since) + left
		switch f := g.frame; {
		case f.asked == 0:
			over = g.until
		case len(f.links)-f.next <= near:
			over += early // the walker may be through, but for a few that are late
		}
		if !g.asked && p.asks > over {
			p.lose(c, g)
		}
	}
}

// Dropped returns the guesses that are over since it was last called: to be cancelled
// if they are under way, and thrown away if they have come.
func (p *Plan) Dropped() []cid.Cid {
	list := p.dropped
	p.dropped = nil
	return list
}

// Hungry reports whether Next or Dropped have something to say. Guesses are not made
// one by one, but when a quarter of the window is free.
func (p *Plan) Hungry() bool {
	switch {
	case len(p.dropped) > 0 || p.open > 0 && p.asks >= p.sweepAt:
		return true
	case p.dry || p.at == nil || p.open >= MaxOpen:
		return false
	}
	return p.open == 0 || p.window-p.out >= p.window/4
}

// Room is how many bytes Next may guess.
func (p *Plan) Room() int { return max(p.window-p.out, 0) }

// Open is how many guesses there are that were not asked for, and the bytes that
// they count as.
func (p *Plan) Open() (guesses, bytes int) { return p.open, p.out }

// Empty reports whether nothing is known and nothing guessed.
func (p *Plan) Empty() bool { return len(p.frames)+len(p.guesses) == 0 }

// Asks is how many requests there were.
func (p *Plan) Asks() uint64 { return p.asks }

// Stats is what became of the guesses that are not open any more.
func (p *Plan) Stats() Stats { return p.stats }

// Next guesses what is going to be asked for, at most count blocks that count as at
// most room bytes, but one at least if there is room and no other guess. The guesses
// are under way until Came, Local or Forget. The order is that of the walker.
func (p *Plan) Next(count, room int) []cid.Cid {
	p.sweep()
	if room = min(room, p.Room()); room <= 0 || p.at == nil || p.dry {
		return nil
	}
	if p.local >= maxLocal {
		p.dry = true // the walker goes there without us
		return nil
	}
	s := scan{Plan: p, count: min(count, MaxOpen-p.open), room: room}
	p.dry = s.run()
	return s.found
}

// A scan is one call of Next.
type scan struct {
	*Plan
	count, room int
	visits      int
	found       []cid.Cid
}

// run is false if there may be more.
func (s *scan) run() bool {
	f, from := s.at, s.at.next
	for range maxDepth + 1 {
		if !s.down(f, from, 0) {
			return false
		}
		from, f = f.index+1, f.up
		if f == nil || !f.live() {
			break
		}
	}
	return true
}

// down goes through the links of a frame, and through what is below them. It is false
// if the scan is over.
func (s *scan) down(f *frame, from, depth int) bool {
	if !f.live() {
		return true
	}
	for i := from; i < len(f.links); i++ {
		if s.visits++; s.visits > maxVisits {
			return false
		}
		l := &f.links[i]
		if f.named && f.asked > 0 && f.kinds&(1<<l.kind) == 0 {
			continue
		}
		if !s.take(l, place{f, i}) {
			return false
		}
		if below := s.frames[l.Cid]; below != nil && depth < maxDepth && !s.down(below, below.next, depth+1) {
			return false
		}
	}
	return true
}

// take guesses a link, unless that is done. It is false if there is no room.
func (s *scan) take(l *Link, at place) bool {
	if l.done || s.guesses[l.Cid] != nil {
		return true
	}
	size := s.sizeOf(l)
	switch {
	case s.count == 0:
		return false
	case s.open == 0:
		// One at least, whatever its size.
	case size > s.room:
		return false
	case at.frame.asked == 0 && !s.foretold && s.strange+size > s.window/2:
		return false
	}
	g := &guess{place: at, since: s.asks, until: s.asks + early + uint64(s.open)}
	s.guesses[l.Cid] = g
	s.grow(g, size)
	s.open++
	s.count--
	s.room -= size
	s.found = append(s.found, l.Cid)
	return true
}
