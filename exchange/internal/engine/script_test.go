package engine

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/wire"
)

// blockSize is what a block of a script measures, unless it says otherwise.
const blockSize = 64 << 10

// cidOf makes a CID out of a name.
func cidOf(name string) cid.Cid {
	sum := sha256.Sum256([]byte(name))
	h, err := mh.Encode(sum[:], mh.SHA2_256)
	if err != nil {
		panic(err)
	}
	c := cid.NewCidV1(cid.Raw, h)
	nameOf[c] = name
	return c
}

// nameOf gives CIDs of scripts their names back.
var nameOf = map[cid.Cid]string{}

// who is a peer's name in scripts.
func who(id peer.ID) string { return string(id) }

func spell(a wire.Address) string {
	n, ok := nameOf[a.Root]
	if !ok {
		n = wire.CidString(a.Root)
	}
	if a.Leaf {
		n += fmt.Sprint("/", a.Index)
	}
	return n
}

// The blocks of scripts.
var (
	A, B, C, D = wire.Block(cidOf("A")), wire.Block(cidOf("B")), wire.Block(cidOf("C")), wire.Block(cidOf("D"))
	tree       = cidOf("tree")
)

// many makes the addresses prefix0, prefix1, …
func many(prefix string, n int) []wire.Address {
	list := make([]wire.Address, n)
	for i := range list {
		list[i] = wire.Block(cidOf(fmt.Sprint(prefix, i)))
	}
	return list
}

func leaves(root cid.Cid, from, to uint64) []wire.Address {
	var list []wire.Address
	for i := from; i < to; i++ {
		list = append(list, wire.Leaf(root, i))
	}
	return list
}

// A line is one thing said by us or to us.
type line struct {
	verb string
	a    wire.Address
}

func (l line) String() string { return l.verb + " " + spell(l.a) }

func say(verb string, list []wire.Address) []line {
	ls := make([]line, len(list))
	for i, a := range list {
		ls[i] = line{verb, a}
	}
	return ls
}

func have(a ...wire.Address) []line    { return say("want-have", a) }
func block(a ...wire.Address) []line   { return say("want-block", a) }
func cancel(a ...wire.Address) []line  { return say("cancel", a) }
func has_(a ...wire.Address) []line    { return say("HAVE", a) }
func hasNot_(a ...wire.Address) []line { return say("DONT_HAVE", a) }
func probe(a ...wire.Address) []line   { return append(say("want-have", a), say("want-block", a)...) }
func text(a ...wire.Address) []string  { return spelled(say("", a)) }
func spelled(list []line) []string {
	var ss []string
	for _, l := range list {
		ss = append(ss, strings.TrimSpace(l.String()))
	}
	slices.Sort(ss)
	return ss
}

// A script is an Engine with virtual time and players around it: peers, a store
// that answers at once, and callers.
type script struct {
	t      *testing.T
	e      *Engine
	now    time.Time
	watch  *watch
	log    []string // what happened, for when an expectation fails
	stored map[wire.Address]int
	steps  int

	meanwhile func() // what else happens while fetch goes on, each millisecond

	players  map[peer.ID]*player
	order    []*player
	epoch    uint64
	getter   GetterID
	got      map[GetterID][]wire.Address // not looked at yet
	done     map[GetterID]bool
	searched []cid.Cid // not looked at yet
}

// A player is a peer of a script. It reads what it is sent at once and says so,
// unless it is slow.
type player struct {
	s     *script
	id    peer.ID
	epoch uint64
	slow  bool // leaves messages unacknowledged until it reads

	sends   []Send       // unacknowledged
	flights []SendBlocks // unacknowledged
	last    Send         // the last message without blocks
	said    []line       // entries not looked at yet
	fulls   int          // full lists among them
	told    []line       // presences not looked at yet
	value   int
	prices  map[wire.Address]wire.Price
	served  []wire.Address // blocks not looked at yet
	loads   [][]Block      // the same, message by message
}

// start opens a script with what it proves.
func start(t *testing.T, proves string, change ...func(*Config)) *script {
	t.Helper()
	cfg := Config{
		Window: 1024, BufferedBytes: 16 << 20, WantsPerPeer: 16384, ServingBytes: 64 << 20,
		BroadcastPeers: 64, SearchDelay: time.Second, Searches: true, Serve: true, Seed: 1,
	}
	for _, f := range change {
		f(&cfg)
	}
	s := &script{
		t: t, e: New(cfg), now: time.Unix(1e9, 0), watch: newWatch(), stored: map[wire.Address]int{},
		players: map[peer.ID]*player{}, got: map[GetterID][]wire.Address{}, done: map[GetterID]bool{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("it was to prove: %s", proves)
		} else if err := check(s.e, s.now); err != nil {
			t.Errorf("in the end: %v", err)
		}
	})
	return s
}

// fail ends the script and shows where it stands.
func (s *script) fail(format string, args ...any) {
	s.t.Helper()
	from := max(0, len(s.log)-60)
	s.t.Fatalf("%s\n--- what happened last:\n%s\n--- state:\n%s",
		fmt.Sprintf(format, args...), strings.Join(s.log[from:], "\n"), dump(s.e))
}

func (s *script) note(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%8s  ", s.now.Sub(time.Unix(1e9, 0)).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// step gives the engine an event, hands its actions to the players, checks the
// state, and goes on until everybody has answered who answers at once.
func (s *script) step(ev Event) {
	s.t.Helper()
	events := []Event{ev}
	for len(events) > 0 {
		ev, events = events[0], events[1:]
		s.note("%T", ev)
		s.watch.event(ev)
		s.e.Step(s.now, ev)
		for _, a := range s.e.Actions() {
			events = append(events, s.act(a)...)
		}
		if err := s.watch.err(); err != nil {
			s.fail("%v", err)
		}
		// A check looks at every want and ask: in large scripts it is made now and then.
		if s.steps++; s.steps%(1+(len(s.e.wants)+s.e.Stats().Asks)/32) == 0 {
			if err := check(s.e, s.now); err != nil {
				s.fail("after %T: %v", ev, err)
			}
		}
	}
}

func (s *script) act(a Action) (answers []Event) {
	s.watch.action(a)
	switch a := a.(type) {
	case Send:
		p := s.players[a.Peer]
		p.last = a
		if a.List.Full {
			p.fulls++
		}
		for _, en := range a.List.Entries {
			p.said = append(p.said, lineOf(en))
			s.note("  to %s: %s", who(p.id), p.said[len(p.said)-1])
		}
		for _, pr := range a.Presences {
			p.told = append(p.told, line{pr.Type.String(), pr.Address})
			p.prices[pr.Address] = pr.Price
			s.note("  to %s: %s", who(p.id), p.told[len(p.told)-1])
		}
		if p.slow {
			p.sends = append(p.sends, a)
			return nil
		}
		return []Event{Sent{Peer: a.Peer, Epoch: a.Epoch, OK: true}}
	case SendBlocks:
		p := s.players[a.Peer]
		for _, b := range a.Blocks {
			p.served = append(p.served, b.Address)
		}
		s.note("  to %s: %d blocks", who(p.id), len(a.Blocks))
		p.loads = append(p.loads, a.Blocks)
		if p.slow {
			p.flights = append(p.flights, a)
			return nil
		}
		return []Event{Sent{Peer: a.Peer, Epoch: a.Epoch, Blocks: true, Message: a.Message, OK: true}}
	case Lookup:
		ev := Looked{Peer: a.Peer, Epoch: a.Epoch}
		for _, x := range a.Addresses {
			size, held := s.stored[x]
			ev.Items = append(ev.Items, LookedItem{Address: x, Size: size, Held: held})
		}
		return []Event{ev}
	case Deliver:
		s.note("  deliver %s to %d", spell(a.Address), a.Getter)
		s.got[a.Getter] = append(s.got[a.Getter], a.Address)
	case Finish:
		s.note("  finish %d", a.Getter)
		s.done[a.Getter] = true
	case Value:
		p := s.players[a.Peer]
		s.note("  value of %s: %d", who(p.id), a.Value)
		p.value = a.Value
	case Search:
		s.note("  search %s", nameOf[a.Key])
		s.searched = append(s.searched, a.Key)
	}
	return nil
}

func lineOf(en wire.Entry) line {
	if en.Cancel {
		return line{"cancel", en.Address}
	}
	return line{en.Type.String(), en.Address}
}

// advance moves the clock, and wakes the engine at each of its deadlines.
func (s *script) advance(d time.Duration) {
	s.t.Helper()
	end := s.now.Add(d)
	for {
		at := s.e.Deadline()
		if at.IsZero() || at.After(end) {
			break
		}
		s.now = at
		s.step(Tick{})
	}
	s.now = end
	s.step(Tick{})
}

// peer brings a player onto the stage, connected.
func (s *script) peer(name string) *player {
	s.t.Helper()
	p := &player{s: s, id: peer.ID(name), prices: map[wire.Address]wire.Price{}}
	s.players[p.id] = p
	s.order = append(s.order, p)
	p.up()
	return p
}

func (s *script) peers(names ...string) []*player {
	list := make([]*player, len(names))
	for i, n := range names {
		list[i] = s.peer(n)
	}
	return list
}

// get makes a request; in is its session, 0 if none.
func (s *script) get(in SessionID, list ...wire.Address) GetterID {
	s.t.Helper()
	var ws []wire.Want
	for _, a := range list {
		if a.Leaf {
			ws = append(ws, wire.WantLeaves(a.Root, wire.Range{First: a.Index, Count: 1}))
		} else {
			ws = append(ws, wire.WantCid(a.Root))
		}
	}
	return s.want(in, ws...)
}

func (s *script) want(in SessionID, ws ...wire.Want) GetterID {
	s.t.Helper()
	s.getter++
	g := s.getter
	s.step(Want{Getter: g, Session: in, Wants: ws})
	return g
}

func (s *script) drop(g GetterID) {
	s.t.Helper()
	s.step(Drop{Getter: g})
}

func (s *script) took(g GetterID, blocks int) {
	s.t.Helper()
	s.step(Took{Getter: g, Blocks: blocks, Bytes: blocks * blockSize})
}

// gets expects that exactly these blocks were handed to a getter since last asked.
func (s *script) gets(why string, g GetterID, list ...wire.Address) {
	s.t.Helper()
	got := s.got[g]
	delete(s.got, g)
	s.same(why, fmt.Sprint("getter ", g, " was given"), spelled(say("", got)), text(list...))
}

// finished expects that a getter has everything.
func (s *script) finished(why string, g GetterID) {
	s.t.Helper()
	if !s.done[g] {
		s.fail("%s: getter %d is not finished", why, g)
	}
}

func (s *script) unfinished(why string, g GetterID) {
	s.t.Helper()
	if s.done[g] {
		s.fail("%s: getter %d is finished", why, g)
	}
}

// searches expects that providers of exactly these were searched since last asked.
func (s *script) searches(why string, keys ...cid.Cid) {
	s.t.Helper()
	var got, want []string
	for _, k := range s.searched {
		got = append(got, nameOf[k])
	}
	for _, k := range keys {
		want = append(want, nameOf[k])
	}
	s.searched = nil
	slices.Sort(got)
	slices.Sort(want)
	s.same(why, "searched", got, want)
}

// store puts blocks into the local store and says so.
func (s *script) store(list ...wire.Address) {
	s.t.Helper()
	var bs []Block
	for _, a := range list {
		s.stored[a] = blockSize
		bs = append(bs, Block{Address: a, Size: blockSize})
	}
	s.step(Stored{Blocks: bs})
}

func (s *script) same(why, what string, got, want []string) {
	s.t.Helper()
	if !slices.Equal(got, want) {
		s.fail("%s: %s %s, want %s", why, what, brief(got), brief(want))
	}
}

func brief(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	if len(list) > 40 {
		return fmt.Sprintf("%d lines: %s, …", len(list), strings.Join(list[:40], ", "))
	}
	return strings.Join(list, ", ")
}

func (p *player) up() {
	p.s.t.Helper()
	p.s.epoch++
	p.epoch = p.s.epoch
	p.sends, p.flights = nil, nil
	p.s.step(PeerUp{Peer: p.id, Epoch: p.epoch})
}

func (p *player) down() {
	p.s.t.Helper()
	p.s.step(PeerDown{Peer: p.id, Epoch: p.epoch})
}

// wants expects exactly these lines of want lists since last asked, in any order.
func (p *player) wants(why string, list ...[]line) {
	p.s.t.Helper()
	got := spelled(p.said)
	p.said, p.fulls = nil, 0
	p.s.same(why, string(p.id)+" was asked", got, spelled(slices.Concat(list...)))
}

// wantsFull is wants, in lists of which the first is full.
func (p *player) wantsFull(why string, list ...[]line) {
	p.s.t.Helper()
	if p.fulls != 1 {
		p.s.fail("%s: %s got %d full lists, want 1", why, who(p.id), p.fulls)
	}
	p.wants(why, list...)
}

// told expects exactly these presences since last asked.
func (p *player) isTold(why string, list ...[]line) {
	p.s.t.Helper()
	got := spelled(p.told)
	p.told = nil
	p.s.same(why, string(p.id)+" was told", got, spelled(slices.Concat(list...)))
}

// gets expects that exactly these blocks were sent to the peer since last asked.
func (p *player) gets(why string, list ...wire.Address) {
	p.s.t.Helper()
	got := spelled(say("", p.served))
	p.served, p.loads = nil, nil
	p.s.same(why, string(p.id)+" was sent", got, text(list...))
}

// idle expects that nothing at all was sent to the peer since last asked.
func (p *player) idle(why string) {
	p.s.t.Helper()
	p.wants(why)
	p.isTold(why)
	p.gets(why)
}

// deaf forgets what the peer was sent, because the script does not care.
func (p *player) deaf() { p.said, p.told, p.served, p.loads, p.fulls = nil, nil, nil, nil, 0 }

func (p *player) has(list ...wire.Address) { p.s.t.Helper(); p.presence(wire.Have, wire.Price{}, list) }
func (p *player) hasNot(list ...wire.Address) {
	p.s.t.Helper()
	p.presence(wire.DontHave, wire.Price{}, list)
}
func (p *player) hasFor(price byte, list ...wire.Address) {
	p.s.t.Helper()
	p.presence(wire.Have, wire.Price{31: price}, list)
}

func (p *player) presence(t wire.PresenceType, price wire.Price, list []wire.Address) {
	p.s.t.Helper()
	ev := PresencesIn{Peer: p.id}
	for _, a := range list {
		p.s.note("%s says %v %s", who(p.id), t, spell(a))
		ev.Presences = append(ev.Presences, wire.Presence{Address: a, Type: t, Price: price})
	}
	p.s.step(ev)
}

// delivers sends valid blocks in one message.
func (p *player) delivers(list ...wire.Address) {
	p.s.t.Helper()
	ev := BlocksIn{Peer: p.id}
	for _, a := range list {
		p.s.note("%s delivers %s", who(p.id), spell(a))
		ev.Blocks = append(ev.Blocks, Block{Address: a, Size: blockSize})
	}
	p.s.step(ev)
}

// forges sends blocks that are not what they are called.
func (p *player) forges(list ...wire.Address) {
	p.s.t.Helper()
	p.s.step(BlocksIn{Peer: p.id, Bad: list})
}

// asks sends a want list. Want-haves ask for "don't have" too.
func (p *player) asks(list ...[]line) {
	p.s.t.Helper()
	p.send(true, list...)
}

// asksQuietly sends a want list as the reference does, which does not ask for
// "don't have".
func (p *player) asksQuietly(list ...[]line) {
	p.s.t.Helper()
	p.send(false, list...)
}

func (p *player) send(dontHave bool, list ...[]line) {
	p.s.t.Helper()
	ev := WantlistIn{Peer: p.id}
	for _, l := range slices.Concat(list...) {
		en := wire.Entry{Address: l.a, SendDontHave: dontHave, Type: wire.WantBlock}
		switch l.verb {
		case "want-have":
			en.Type = wire.WantHave
		case "cancel":
			en = wire.Entry{Address: l.a, Cancel: true, Type: wire.WantHave}
		}
		p.s.note("%s asks: %s", who(p.id), l)
		ev.List.Entries = append(ev.List.Entries, en)
	}
	p.s.step(ev)
}

// reads acknowledges one message without blocks.
func (p *player) reads() { p.s.t.Helper(); p.ack(true) }

// breaks lets a message without blocks fail for good.
func (p *player) breaks() { p.s.t.Helper(); p.ack(false) }

func (p *player) ack(ok bool) {
	p.s.t.Helper()
	if len(p.sends) == 0 {
		p.s.fail("%s has no message to acknowledge", who(p.id))
	}
	p.sends = p.sends[1:]
	p.s.step(Sent{Peer: p.id, Epoch: p.epoch, OK: ok})
}

// readsBlocks acknowledges the oldest message of blocks; missing were not in the
// store.
func (p *player) readsBlocks(ok bool, missing ...wire.Address) {
	p.s.t.Helper()
	p.readsMessage(0, ok, missing...)
}

// readsMessage acknowledges message i of blocks of those under way.
func (p *player) readsMessage(i int, ok bool, missing ...wire.Address) {
	p.s.t.Helper()
	if len(p.flights) <= i {
		p.s.fail("%s has %d messages of blocks to acknowledge, want more than %d", who(p.id), len(p.flights), i)
	}
	number := p.flights[i].Message
	p.flights = slices.Delete(p.flights, i, i+1)
	p.s.step(Sent{Peer: p.id, Epoch: p.epoch, Blocks: true, Message: number, OK: ok, Missing: missing})
}
