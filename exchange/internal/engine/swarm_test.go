package engine

import (
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// A swarm is several Engines in virtual time, joined by links that take time: each
// node has so many bytes/s out and in, shared by all its peers, and each message
// takes half a round trip on top. What a node does around its engine takes time
// too. The same swarm does the same again.
type swarm struct {
	t      *testing.T
	now    time.Time
	begun  time.Time
	rtt    time.Duration
	nodes  []*node
	agenda agenda
	seq    int
	watch  bool // hold each engine to check now and then
	steps  int
}

const (
	swarmChunk  = 16 << 10               // bytes a link carries without a break
	swarmSocket = 512 << 10              // bytes written to a stream that are not on the link yet
	swarmStore  = 500 * time.Microsecond // from a block's arrival until it can be served
	swarmLookup = 100 * time.Microsecond
)

// A node is one Engine with its store, its caller, and its way to the others.
type node struct {
	s        *swarm
	id       peer.ID
	e        *Engine
	up, down float64 // bytes/s; 0: no bound
	stored   map[wire.Address]int
	pipes    []*pipe
	sending  bool      // the way out is busy
	turn     int       // the pipe that is next
	inUntil  time.Time // the way in is busy until then
	wakeAt   time.Time

	wanted   map[wire.Address]int // what it asked for that has not come, and its size
	got      []wire.Address       // in the order it came
	doneAt   time.Time
	sent     int  // bytes of blocks
	unneeded bool // it may lack blocks in the end
	onGot    func(a wire.Address)
}

// A pipe carries messages from one node to another: lists go before blocks, and
// what is in the socket goes first.
type pipe struct {
	from, to *node
	lists    []*parcel
	blocks   []*parcel
	writing  *parcel
	socket   []chunk
	buffered int
}

type parcel struct {
	left    int // bytes not yet in the socket
	arrive  func()
	written func()
}

type chunk struct {
	bytes int
	last  *parcel // it is the last of
}

type appointment struct {
	at  time.Time
	seq int
	do  func()
}

type agenda []appointment

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	if !a[i].at.Equal(a[j].at) {
		return a[i].at.Before(a[j].at)
	}
	return a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(appointment)) }
func (a *agenda) Pop() any {
	old := *a
	x := old[len(old)-1]
	*a = old[:len(old)-1]
	return x
}

func newSwarm(t *testing.T, rtt time.Duration) *swarm {
	at := time.Unix(1e9, 0)
	return &swarm{t: t, now: at, begun: at, rtt: rtt}
}

func (s *swarm) at(at time.Time, do func()) {
	s.seq++
	heap.Push(&s.agenda, appointment{at, s.seq, do})
}

func (s *swarm) in(d time.Duration, do func()) { s.at(s.now.Add(d), do) }

// node adds a node with so many bytes/s each way, connected to all others.
func (s *swarm) node(name string, up, down float64, change ...func(*Config)) *node {
	cfg := benchConfig()
	cfg.Searches = false
	cfg.Self = peer.ID(name)
	cfg.Seed = uint64(len(s.nodes) + 1)
	for _, f := range change {
		f(&cfg)
	}
	n := &node{s: s, id: peer.ID(name), e: New(cfg), up: up, down: down, stored: map[wire.Address]int{}, wanted: map[wire.Address]int{}}
	for _, m := range s.nodes {
		s.join(n, m)
	}
	s.nodes = append(s.nodes, n)
	return n
}

func (s *swarm) join(n, m *node) {
	n.pipes = append(n.pipes, &pipe{from: n, to: m})
	m.pipes = append(m.pipes, &pipe{from: m, to: n})
	n.step(PeerUp{Peer: m.id, Epoch: 1, Latency: s.rtt})
	m.step(PeerUp{Peer: n.id, Epoch: 1, Latency: s.rtt})
}

// run goes on until every node has what it asked for.
func (s *swarm) run(limit time.Duration) {
	s.t.Helper()
	end := s.begun.Add(limit)
	for !s.done() {
		if len(s.agenda) == 0 || s.agenda[0].at.After(end) {
			for _, n := range s.nodes {
				if len(n.wanted) > 0 {
					s.t.Logf("%s lacks %d blocks:\n%s", n.id, len(n.wanted), dump(n.e))
				}
			}
			s.t.Fatalf("it is not over after %v", limit)
		}
		x := heap.Pop(&s.agenda).(appointment)
		s.now = x.at
		x.do()
	}
}

func (s *swarm) done() bool {
	for _, n := range s.nodes {
		if len(n.wanted) > 0 && !n.unneeded {
			return false
		}
	}
	return true
}

// has puts blocks into the store of a node.
func (n *node) has(size int, list ...wire.Address) {
	for _, a := range list {
		n.stored[a] = size
	}
}

// get makes one request.
func (n *node) get(g GetterID, size int, list ...wire.Address) {
	ev := Want{Getter: g, Session: 1}
	for _, a := range list {
		n.wanted[a] = size
		ev.Wants = append(ev.Wants, wire.WantCid(a.Root))
	}
	n.step(ev)
}

func (n *node) pipe(to peer.ID) *pipe {
	for _, p := range n.pipes {
		if p.to.id == to {
			return p
		}
	}
	return nil
}

// wake has the engine called at its deadline.
func (n *node) wake() {
	at := n.e.Deadline()
	if at.IsZero() || !n.wakeAt.IsZero() && !at.Before(n.wakeAt) {
		return
	}
	n.wakeAt = at
	n.s.at(at, func() {
		if n.wakeAt.Equal(at) {
			n.wakeAt = time.Time{}
			n.step(Tick{})
		}
	})
}

func (n *node) step(ev Event) {
	s := n.s
	n.e.Step(s.now, ev)
	var stored []Block
	took := map[GetterID]*Took{}
	for _, a := range n.e.Actions() {
		switch a := a.(type) {
		case Send:
			n.send(a)
		case SendBlocks:
			n.sendBlocks(a)
		case Lookup:
			ev := Looked{Peer: a.Peer, Epoch: a.Epoch}
			s.in(swarmLookup, func() {
				for _, x := range a.Addresses {
					size, held := n.stored[x]
					ev.Items = append(ev.Items, LookedItem{Address: x, Size: size, Held: held})
				}
				n.step(ev)
			})
		case Deliver:
			size, ok := n.wanted[a.Address]
			if !ok {
				s.t.Fatalf("%s was given %s, which it does not wait for", n.id, spell(a.Address))
			}
			delete(n.wanted, a.Address)
			n.got = append(n.got, a.Address)
			stored = append(stored, Block{Address: a.Address, Size: size})
			if took[a.Getter] == nil {
				took[a.Getter] = &Took{Getter: a.Getter}
			}
			took[a.Getter].Blocks++
			took[a.Getter].Bytes += size
			if len(n.wanted) == 0 {
				n.doneAt = s.now
			}
			if n.onGot != nil {
				s.in(0, func() { n.onGot(a.Address) })
			}
		}
	}
	for _, g := range slices.Sorted(maps.Keys(took)) {
		ev := took[g]
		s.in(swarmStore, func() { n.step(*ev) })
	}
	for _, b := range stored {
		s.in(swarmStore, func() {
			n.stored[b.Address] = b.Size
			n.step(Stored{Blocks: []Block{b}})
		})
	}
	if s.steps++; s.watch && s.steps%997 == 0 {
		if err := check(n.e, s.now); err != nil {
			s.t.Fatalf("%s: %v\n%s", n.id, err, dump(n.e))
		}
	}
	n.wake()
}

func (n *node) send(a Send) {
	p := n.pipe(a.Peer)
	p.lists = append(p.lists, &parcel{
		left: 20 + 50*len(a.List.Entries) + 80*len(a.Presences),
		arrive: func() {
			if len(a.List.Entries) > 0 {
				p.to.step(WantlistIn{Peer: n.id, List: a.List})
			}
			if len(a.Presences) > 0 {
				p.to.step(PresencesIn{Peer: n.id, Presences: a.Presences})
			}
		},
		written: func() { n.step(Sent{Peer: a.Peer, Epoch: a.Epoch, OK: true}) },
	})
	p.write()
}

func (n *node) sendBlocks(a SendBlocks) {
	p := n.pipe(a.Peer)
	bytes := 20
	for _, b := range a.Blocks {
		bytes += b.Size + 100
		n.sent += b.Size
	}
	p.blocks = append(p.blocks, &parcel{
		left:    bytes,
		arrive:  func() { p.to.step(BlocksIn{Peer: n.id, Blocks: a.Blocks}) },
		written: func() { n.step(Sent{Peer: a.Peer, Epoch: a.Epoch, Blocks: true, Message: a.Message, OK: true}) },
	})
	p.write()
}

// write puts into the socket what fits.
func (p *pipe) write() {
	for p.buffered < swarmSocket {
		if p.writing == nil {
			switch {
			case len(p.lists) > 0:
				p.writing, p.lists = p.lists[0], p.lists[1:]
			case len(p.blocks) > 0:
				p.writing, p.blocks = p.blocks[0], p.blocks[1:]
			default:
				return
			}
		}
		x := p.writing
		c := chunk{bytes: min(x.left, swarmChunk)}
		if x.left -= c.bytes; x.left == 0 {
			c.last = x
			p.writing = nil
			p.from.s.in(0, x.written)
		}
		p.socket = append(p.socket, c)
		p.buffered += c.bytes
		p.from.transmit()
	}
}

// transmit puts the next chunk on the way out, of each pipe in turn.
func (n *node) transmit() {
	if n.sending {
		return
	}
	for range n.pipes {
		p := n.pipes[n.turn%len(n.pipes)]
		n.turn++
		if len(p.socket) == 0 {
			continue
		}
		c := p.socket[0]
		p.socket = p.socket[1:]
		p.buffered -= c.bytes
		n.sending = true
		n.s.in(lasts(c.bytes, n.up), func() {
			n.sending = false
			n.s.in(n.s.rtt/2, func() { p.to.receive(c) })
			p.write()
			n.transmit()
		})
		return
	}
}

func (n *node) receive(c chunk) {
	if n.inUntil.Before(n.s.now) {
		n.inUntil = n.s.now
	}
	n.inUntil = n.inUntil.Add(lasts(c.bytes, n.down))
	if c.last != nil {
		n.s.at(n.inUntil, c.last.arrive)
	}
}

func lasts(bytes int, rate float64) time.Duration {
	if rate == 0 {
		return 0
	}
	return time.Duration(float64(bytes) / rate * float64(time.Second))
}

const mbit = 1e6 / 8 // bytes/s

// A crowd is one seeder and some leechers that all want what it has.
type crowdOf struct {
	rtt      time.Duration
	rate     float64 // of each node, bytes/s each way
	leechers int
	size     int // of a block
	blocks   int
	stagger  time.Duration // between the starts of two leechers
}

type crowdResult struct {
	copies float64 // that the seeder sent
	bound  float64 // the time it took ÷ the time of one copy over the seeder's link
	dups   float64 // the most that a leecher got twice, ÷ data
	took   time.Duration
}

func (r crowdResult) String() string {
	return fmt.Sprintf("seeder sent %.2f copies, %.2f of the bound (%v), duplicates %.3f", r.copies, r.bound, r.took.Round(time.Millisecond), r.dups)
}

func (c crowdOf) run(t *testing.T, change ...func(*Config)) crowdResult {
	t.Helper()
	s := newSwarm(t, c.rtt)
	data := c.size * c.blocks
	x := many("swarm", c.blocks)
	seeder := s.node("seeder", c.rate, c.rate, change...)
	seeder.has(c.size, x...)
	for i := range c.leechers {
		n := s.node(fmt.Sprint("leecher", i), c.rate, c.rate, change...)
		for _, a := range x {
			n.wanted[a] = c.size
		}
		s.in(time.Duration(i)*c.stagger+time.Second, func() { n.get(1, c.size, x...) })
	}
	s.watch = true
	s.run(10 * time.Minute)
	var r crowdResult
	for _, n := range s.nodes[1:] {
		r.took = max(r.took, n.doneAt.Sub(s.begun)-time.Second)
		r.dups = max(r.dups, float64(n.e.Stats().DuplicateBytes)/float64(data))
	}
	r.copies = float64(seeder.sent) / float64(data)
	r.bound = r.took.Seconds() / (float64(data) / c.rate)
	return r
}

func TestCrowdServesItself(t *testing.T) {
	link, loopback := 20*time.Millisecond, time.Millisecond
	for _, c := range []struct {
		crowdOf
		copies, bound float64
	}{
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 4, size: 64 << 10, blocks: 1024}, 1.1, 1.15}, // 1.17 with messages of 1 MiB
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 4, size: 256 << 10, blocks: 256}, 1.1, 1.15},
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 4, size: 1 << 20, blocks: 64}, 1.5, 2},
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 4, size: 64 << 10, blocks: 4096}, 1.5, 2}, // four windows
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 4, size: 64 << 10, blocks: 1024, stagger: 300 * time.Millisecond}, 1.5, 2},
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 12, size: 64 << 10, blocks: 1024}, 1.5, 2},
		{crowdOf{rtt: loopback, rate: 4000 * mbit, leechers: 4, size: 64 << 10, blocks: 2048}, 1.5, 2},
		{crowdOf{rtt: 5 * link, rate: 200 * mbit, leechers: 4, size: 256 << 10, blocks: 512}, 1.5, 2},
		{crowdOf{rtt: link, rate: 200 * mbit, leechers: 1, size: 64 << 10, blocks: 1024}, 1, 1.05},
	} {
		r := c.run(t)
		t.Logf("%d leechers, %d blocks of %d KiB, round trip %v, %v apart: %v", c.leechers, c.blocks, c.size>>10, c.rtt, c.stagger, r)
		if r.copies > c.copies || r.bound > c.bound || r.dups > 0.15 {
			t.Errorf("want at most %.1f copies, %.2f of the bound, and 0.15 duplicates", c.copies, c.bound)
		}
	}
}

// read has a node read a list in order, wanting the next blocks up to a window ahead.
func (n *node) read(window, size int, list []wire.Address) {
	for _, a := range list {
		n.wanted[a] = size
	}
	asked, read := 0, 0
	more := func() {
		for read < asked && !n.lacks(list[read]) {
			read++
		}
		for asked < len(list) && asked < read+window {
			asked++
			n.step(Want{Getter: GetterID(asked), Session: 1, Wants: []wire.Want{wire.WantCid(list[asked-1].Root)}})
		}
	}
	n.onGot = func(wire.Address) { more() }
	more()
}

func (n *node) lacks(a wire.Address) bool { _, ok := n.wanted[a]; return ok }

// Readers are in a hurry for what they read next, so that a crowd of them serves
// itself less well.
func TestCrowdOfReaders(t *testing.T) {
	for _, size := range []int{64 << 10, 256 << 10} {
		for _, apart := range []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond} {
			s := newSwarm(t, 20*time.Millisecond)
			x := many("swarm", 64<<20/size)
			seeder := s.node("seeder", 200*mbit, 200*mbit)
			seeder.has(size, x...)
			for i := range 4 {
				n := s.node(fmt.Sprint("leecher", i), 200*mbit, 200*mbit)
				n.wanted[x[0]] = size
				s.in(time.Second+time.Duration(i)*apart, func() { n.read(8<<20/size, size, x) })
			}
			s.run(time.Minute)
			var last time.Duration
			for _, n := range s.nodes[1:] {
				last = max(last, n.doneAt.Sub(s.begun)-time.Second)
			}
			copies := float64(seeder.sent) / (64 << 20)
			t.Logf("4 readers, %d KiB, %v apart: seeder sent %.2f copies, it took %v", size>>10, apart, copies, last)
			if copies > 2 || last > 6*time.Second {
				t.Errorf("want 2 copies and 6 s at most; without each other it would be 4 and 11 s")
			}
		}
	}
}

func TestAFastNodeInASlowCrowd(t *testing.T) {
	// Who is to fetch what hangs on the names of the peers, so there are several crowds.
	for _, slow := range []float64{100, 20, 4} {
		var worst time.Duration
		for crowd := range 8 {
			s := newSwarm(t, 20*time.Millisecond)
			const size = 256 << 10
			x := many("swarm", 64<<20/size)
			seeder := s.node("seeder", 1000*mbit, 1000*mbit)
			seeder.has(size, x...)
			fast := s.node("fast", 1000*mbit, 1000*mbit)
			fast.wanted[x[0]] = size
			s.in(time.Second, func() { fast.get(1, size, x...) })
			for i := range 3 {
				n := s.node(fmt.Sprintf("slow%d of %d", i, crowd), slow*mbit, slow*mbit)
				n.unneeded = true
				s.in(time.Second, func() { n.get(1, size, x...) })
			}
			s.run(time.Minute)
			worst = max(worst, fast.doneAt.Sub(s.begun)-time.Second)
		}
		t.Logf("among three with %v Mbit/s: %v at most", slow, worst)
		if worst > 4*time.Second {
			t.Errorf("a node with 1 Gbit/s took %v, want 4 s at most; alone it takes 0.7 s, waiting for the others 11", worst)
		}
	}
}

func TestB26PipelineFillsTheLink(t *testing.T) {
	// One block in flight is never the limit, however long the round trip.
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		for _, rtt := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond} {
			s := newSwarm(t, rtt)
			x := many("swarm", 256<<20/size)
			seeder := s.node("seeder", 1000*mbit, 1000*mbit)
			seeder.has(size, x...)
			n := s.node("leecher", 1000*mbit, 1000*mbit)
			n.get(1, size, x...)
			s.run(time.Minute)
			took := n.doneAt.Sub(s.begun)
			share := float64(256<<20) / (1000 * mbit) / took.Seconds()
			t.Logf("%d KiB, round trip %v: %.2f of the link", size>>10, rtt, share)
			if share < 0.8 {
				t.Errorf("want 0.8 of the link at least")
			}
		}
	}
}

func TestALoneGetBlockIsSentAtOnce(t *testing.T) {
	// One block after another costs a round trip each, and its time on the link.
	s := newSwarm(t, 100*time.Millisecond)
	x := many("swarm", 20)
	seeder := s.node("seeder", 1000*mbit, 1000*mbit)
	seeder.has(64<<10, x...)
	n := s.node("leecher", 1000*mbit, 1000*mbit)
	n.read(1, 64<<10, x)
	s.run(time.Minute)
	each := n.doneAt.Sub(s.begun) / 20
	if each > 115*time.Millisecond {
		t.Errorf("a block takes %v, want 1.15 round trips at most: 115 ms", each)
	}
}
