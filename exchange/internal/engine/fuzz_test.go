package engine

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// FuzzEngine feeds an Engine with events that bytes make up. After each it holds
// the state to [check], what is said to [watch], what is delivered to a model that
// knows nothing but who waits for what, and everything to a twin that is fed the
// same. In the end an honest peer comes, and all that is wanted must arrive.
func FuzzEngine(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(noise(seed, 400))
	}
	f.Fuzz(func(t *testing.T, data []byte) { live(t, data) })
}

var rounds = flag.Uint64("rounds", 60, "how many random lives TestRandomLives makes an Engine live")

// TestRandomLives is FuzzEngine with longer lives, for every test run.
func TestRandomLives(t *testing.T) {
	lives := []uint64{1297} // those that once found something
	for seed := range *rounds {
		lives = append(lives, seed)
	}
	for _, seed := range lives {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { live(t, noise(seed, 6000)) })
	}
}

// noise is up to n random bytes.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, n/4+r.IntN(3*n/4))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func live(t *testing.T, data []byte) {
	w := newWorld(t, data)
	for len(w.data) > 0 {
		w.event()
	}
	w.finale()
}

// A world makes up events and judges what an Engine makes of them.
type world struct {
	t     *testing.T
	data  []byte
	now   time.Time
	e     *Engine
	twin  *Engine
	watch *watch
	model map[GetterID]map[wire.Address]bool
	log   []string

	names     []peer.ID
	up        map[peer.ID]uint64
	epoch     uint64
	getters   GetterID
	held      map[GetterID][]int // sizes of blocks that callers have not taken
	writing   map[peer.ID][]Sent // messages that are being written
	looking   map[peer.ID][]Lookup
	searching []cid.Cid
	said      map[peer.ID][]wire.Entry // to the honest peer
}

var (
	fuzzNames  = []peer.ID{"ann", "ben", "cat", "dan", "eve"}
	fuzzBlocks = append(many("f", 14), leaves(tree, 0, 10)...)
)

func newWorld(t *testing.T, data []byte) *world {
	w := &world{
		t: t, data: data, now: time.Unix(1e9, 0), watch: newWatch(), names: fuzzNames,
		model: map[GetterID]map[wire.Address]bool{}, up: map[peer.ID]uint64{}, held: map[GetterID][]int{},
		writing: map[peer.ID][]Sent{}, looking: map[peer.ID][]Lookup{}, said: map[peer.ID][]wire.Entry{},
	}
	b := w.byte()
	cfg := Config{
		Window: pick(b, 1, 1<<20, 3), BufferedBytes: pick(b, 2, 16<<20, 2*blockSize), WantsPerPeer: pick(b, 4, 1<<14, 7),
		ServingBytes: pick(b, 8, 64<<20, 100_000), BroadcastPeers: pick(b, 16, 64, 1),
		SearchDelay: time.Second, Searches: b&32 == 0, Serve: b&64 == 0, Seed: uint64(b),
	}
	if b&128 != 0 {
		cfg.MaxPrice = &wire.Price{31: 100}
	}
	w.e, w.twin = New(cfg), New(cfg)
	for _, p := range w.names[:w.byte()%6] {
		w.epoch++
		w.up[p] = w.epoch
		w.step(PeerUp{Peer: p, Epoch: w.epoch})
	}
	return w
}

func pick(b, bit byte, usual, small int) int {
	if b&bit == 0 {
		return usual
	}
	return small
}

func (w *world) byte() byte {
	if len(w.data) == 0 {
		return 0
	}
	b := w.data[0]
	w.data = w.data[1:]
	return b
}

func (w *world) block() wire.Address { return fuzzBlocks[int(w.byte())%len(fuzzBlocks)] }

func (w *world) blocks() []wire.Address {
	var list []wire.Address
	for range 1 + w.byte()%6 {
		if a := w.block(); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

func (w *world) size() int { return []int{0, 100, blockSize, blockSize, 2 << 20}[w.byte()%5] }

// event makes up one event.
func (w *world) event() {
	op := w.byte()
	p := w.names[int(w.byte())%len(w.names)]
	switch op % 40 {
	case 0, 1, 2:
		w.want()
	case 3:
		if ids := slices.Sorted(maps.Keys(w.model)); len(ids) > 0 {
			w.step(Drop{Getter: ids[int(w.byte())%len(ids)]})
		}
	case 4, 5, 6, 7:
		if ids := slices.Sorted(maps.Keys(w.held)); len(ids) > 0 {
			w.take(ids[int(w.byte())%len(ids)], 1+int(w.byte())%4)
		}
	case 8:
		w.epoch++
		w.up[p] = w.epoch
		delete(w.writing, p)
		delete(w.looking, p)
		w.step(PeerUp{Peer: p, Epoch: w.epoch, Latency: time.Duration(w.byte()) * time.Millisecond})
	case 9:
		epoch := w.up[p]
		if b := w.byte(); b%4 == 0 && epoch > 0 {
			epoch-- // stale news
		} else {
			delete(w.up, p)
			delete(w.writing, p)
			delete(w.looking, p)
		}
		w.step(PeerDown{Peer: p, Epoch: epoch})
	case 10, 11, 12, 13:
		ev := WantlistIn{Peer: p, List: wire.WantList{Full: w.byte()%2 == 0}}
		for _, a := range w.blocks() {
			b := w.byte()
			ev.List.Entries = append(ev.List.Entries, wire.Entry{Address: a, Cancel: b%5 == 0, Type: wire.WantType(b % 2), SendDontHave: b&4 == 0})
		}
		w.step(ev)
	case 14, 15, 16, 17, 18, 19:
		ev := PresencesIn{Peer: p}
		for _, a := range w.blocks() {
			b := w.byte()
			pr := wire.Presence{Address: a, Type: wire.PresenceType(b % 2)}
			if b&2 != 0 {
				pr.Price[31] = b
			}
			ev.Presences = append(ev.Presences, pr)
		}
		w.step(ev)
	case 20, 21:
		ev := BlocksIn{Peer: p}
		for _, a := range w.blocks() {
			ev.Blocks = append(ev.Blocks, Block{Address: a, Size: w.size()})
		}
		w.step(ev)
	case 22:
		b := w.byte()
		if b%8 == 7 {
			w.step(Streams{Peer: p, Epoch: w.up[p], Streams: len(w.writing[p]) + int(b)%3})
			break
		}
		ev := BlocksIn{Peer: p, Bad: []wire.Address{w.block()}}
		if b%2 == 0 {
			ev.Unwanted = []Block{{Address: w.block(), Size: w.size()}}
		}
		w.step(ev)
	case 23, 24, 25, 26, 27, 28, 29, 30:
		if len(w.writing[p]) > 0 {
			b := w.byte()
			i := int(b>>4) % len(w.writing[p])
			ev := w.writing[p][i]
			ev.OK = b%16 != 0
			if ev.Blocks && ev.OK && b%16 == 1 && len(ev.Missing) > 0 {
				ev.Missing = ev.Missing[:1] // Missing holds what was sent, until now
			} else {
				ev.Missing = nil
			}
			w.writing[p] = slices.Delete(w.writing[p], i, i+1)
			w.step(ev)
		}
	case 31, 32, 33, 34:
		if len(w.looking[p]) > 0 {
			l := w.looking[p][0]
			w.looking[p] = w.looking[p][1:]
			ev := Looked{Peer: p, Epoch: l.Epoch}
			for _, a := range l.Addresses {
				b := w.byte()
				if b%16 == 0 {
					continue // the store cannot tell
				}
				ev.Items = append(ev.Items, LookedItem{Address: a, Size: w.size(), Held: b%2 == 0})
			}
			w.step(ev)
		}
	case 35, 36:
		switch b := w.byte(); {
		case b%4 == 0:
			w.step(StoredLeaves{Want: wire.WantLeaves(tree, wire.Range{First: uint64(b % 10), Count: uint64(b)*uint64(b)*10 + 1})})
		default:
			ev := Stored{}
			for _, a := range w.blocks() {
				ev.Blocks = append(ev.Blocks, Block{Address: a, Size: w.size()})
			}
			w.step(ev)
		}
	case 37:
		b := w.byte()
		switch {
		case b%4 == 0:
			w.step(CloseSession{Session: SessionID(b / 4 % 4)})
		case b%4 == 1 && len(w.searching) > 0:
			k := w.searching[0]
			w.searching = w.searching[1:]
			w.step(Searched{Key: k})
		default:
			w.step(Found{Key: w.block().Root, Peer: p})
		}
	case 38, 39:
		w.advance(time.Duration(w.byte()) * time.Duration(w.byte()) * time.Millisecond)
	}
}

func (w *world) want() {
	w.getters++
	ev := Want{Getter: w.getters, Session: SessionID(w.byte() % 4)}
	set := map[wire.Address]bool{}
	for _, a := range w.blocks() {
		if !a.Leaf {
			ev.Wants = append(ev.Wants, wire.WantCid(a.Root))
			set[a] = true
		}
	}
	if b := w.byte(); b%3 == 0 {
		r := wire.Range{First: uint64(b % 7), Count: uint64(b / 7 % 4)}
		ev.Wants = append(ev.Wants, wire.WantLeaves(tree, r))
		for i := r.First; i < r.End(); i++ {
			set[wire.Leaf(tree, i)] = true
		}
	}
	w.model[ev.Getter] = set
	w.step(ev)
}

func (w *world) take(g GetterID, n int) {
	ev := Took{Getter: g}
	for _, size := range w.held[g][:min(n, len(w.held[g]))] {
		ev.Blocks++
		ev.Bytes += size
	}
	w.held[g] = w.held[g][ev.Blocks:]
	if len(w.held[g]) == 0 {
		delete(w.held, g)
	}
	w.step(ev)
}

func (w *world) advance(d time.Duration) {
	end := w.now.Add(d)
	for n := 0; ; n++ {
		at := w.e.Deadline()
		if at.IsZero() || at.After(end) {
			break
		}
		if n > 100_000 {
			w.fail("%d deadlines in %v", n, d)
		}
		w.now = at
		w.step(Tick{})
	}
	w.now = end
	w.step(Tick{})
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	from := max(0, len(w.log)-80)
	w.t.Fatalf("%s\n--- events:\n%s\n--- state:\n%s", fmt.Sprintf(format, args...), strings.Join(w.log[from:], "\n"), dump(w.e))
}

// step feeds both engines and judges what they make of it.
func (w *world) step(ev Event) {
	w.t.Helper()
	w.log = append(w.log, fmt.Sprintf("%8s %T %s", w.now.Sub(time.Unix(1e9, 0)), ev, tell(ev)))
	w.watch.event(ev)
	w.e.Step(w.now, ev)
	w.twin.Step(w.now, ev)
	actions := w.e.Actions()
	if twin := w.twin.Actions(); len(actions)+len(twin) > 0 && !reflect.DeepEqual(actions, twin) {
		w.fail("the same events led to %v here and to %v there", actions, twin)
	}
	if a, b := w.e.Deadline(), w.twin.Deadline(); !a.Equal(b) {
		w.fail("the same events led to the deadlines %v and %v", a, b)
	}
	var delivered []Deliver
	finished := map[GetterID]bool{}
	for _, a := range actions {
		w.watch.action(a)
		switch a := a.(type) {
		case Send:
			w.log = append(w.log, fmt.Sprintf("           to %s: %s", who(a.Peer), tell(a)))
			w.writing[a.Peer] = append(w.writing[a.Peer], Sent{Peer: a.Peer, Epoch: a.Epoch})
			w.said[a.Peer] = append(w.said[a.Peer], a.List.Entries...)
		case SendBlocks:
			s := Sent{Peer: a.Peer, Epoch: a.Epoch, Blocks: true, Message: a.Message}
			for _, b := range a.Blocks {
				s.Missing = append(s.Missing, b.Address)
			}
			w.writing[a.Peer] = append(w.writing[a.Peer], s)
		case Lookup:
			w.looking[a.Peer] = append(w.looking[a.Peer], a)
		case Search:
			if slices.ContainsFunc(w.searching, a.Key.Equals) {
				w.fail("a second search for %s while the first runs", nameOf[a.Key])
			}
			w.searching = append(w.searching, a.Key)
		case Deliver:
			delivered = append(delivered, a)
		case Finish:
			if finished[a.Getter] {
				w.fail("getter %d is finished twice", a.Getter)
			}
			finished[a.Getter] = true
		}
	}
	w.judge(ev, delivered, finished)
	if err := w.watch.err(); err != nil {
		w.fail("%v", err)
	}
	if err := check(w.e, w.now); err != nil {
		w.fail("%v", err)
	}
}

// judge compares with the model: whoever waits for a block is given it when it
// comes, once, and nobody else; whoever waits for nothing is finished.
func (w *world) judge(ev Event, delivered []Deliver, finished map[GetterID]bool) {
	w.t.Helper()
	var came []Block
	switch ev := ev.(type) {
	case BlocksIn:
		if w.up[ev.Peer] != 0 {
			came = ev.Blocks
		}
	case Stored:
		came = ev.Blocks
	case Drop:
		delete(w.model, ev.Getter)
		delete(w.held, ev.Getter)
	}
	for _, d := range delivered {
		if d.Ref >= len(came) || came[d.Ref].Address != d.Address {
			w.fail("getter %d was given block %d of the event as %s, which it is not", d.Getter, d.Ref, spell(d.Address))
		}
		if !w.model[d.Getter][d.Address] {
			w.fail("getter %d was given %s, for which it does not wait", d.Getter, spell(d.Address))
		}
		delete(w.model[d.Getter], d.Address)
		w.held[d.Getter] = append(w.held[d.Getter], came[d.Ref].Size)
	}
	for _, b := range came {
		// Leaves that wait in a backlog are not looked for there.
		if b.Address.Leaf && w.e.cfg.Window < 100 {
			continue
		}
		for g, set := range w.model {
			if set[b.Address] {
				w.fail("getter %d waits for %s and was not given it", g, spell(b.Address))
			}
		}
	}
	for g, set := range w.model {
		if done := len(set) == 0; done != finished[g] {
			w.fail("getter %d waits for %d blocks, finished: %v", g, len(set), finished[g])
		}
		if finished[g] {
			delete(w.model, g)
			delete(w.held, g)
		}
		delete(finished, g)
	}
	if len(finished) > 0 {
		w.fail("%v are finished, and were before", finished)
	}
}

// finale brings an honest peer, which has everything. Callers take what they are
// given. Everything must have come after a while; the others may do nothing.
func (w *world) finale() {
	w.t.Helper()
	w.want() // some more to do
	const honest = peer.ID("honest")
	w.epoch++
	w.up[honest] = w.epoch
	w.step(PeerUp{Peer: honest, Epoch: w.epoch})
	for end := w.now.Add(10 * time.Minute); len(w.model) > 0; {
		if w.now.After(end) {
			w.fail("10 minutes after an honest peer came getters wait still")
		}
		for _, g := range slices.Sorted(maps.Keys(w.held)) {
			w.take(g, len(w.held[g]))
		}
		for len(w.writing[honest]) > 0 {
			ev := w.writing[honest][0]
			w.writing[honest] = w.writing[honest][1:]
			ev.OK, ev.Missing = true, nil
			w.step(ev)
		}
		presences, blocks := PresencesIn{Peer: honest}, BlocksIn{Peer: honest}
		for _, en := range w.said[honest] {
			switch {
			case en.Cancel:
			case en.Type == wire.WantHave:
				presences.Presences = append(presences.Presences, wire.Presence{Address: en.Address})
			default:
				blocks.Blocks = append(blocks.Blocks, Block{Address: en.Address, Size: blockSize})
			}
		}
		delete(w.said, honest)
		if len(presences.Presences) > 0 {
			w.step(presences)
		}
		if len(blocks.Blocks) > 0 {
			w.step(blocks)
		}
		w.advance(20 * time.Millisecond)
		if at := w.e.Deadline(); len(w.said[honest]) == 0 && len(w.held) == 0 && !at.IsZero() {
			w.advance(max(0, at.Sub(w.now))) // nothing happens before
		}
	}
}

// tell writes down what the log of a world needs of an event or an action.
func tell(x any) string {
	var b strings.Builder
	switch x := x.(type) {
	case Want:
		fmt.Fprintf(&b, "%d in session %d:", x.Getter, x.Session)
		for _, v := range x.Wants {
			fmt.Fprintf(&b, " %s %v", nameOf[v.Root], v.Indices)
		}
	case Send:
		for _, en := range x.List.Entries {
			fmt.Fprintf(&b, " %v,", lineOf(en))
		}
	case WantlistIn:
		fmt.Fprintf(&b, "%s:", who(x.Peer))
		for _, en := range x.List.Entries {
			fmt.Fprintf(&b, " %v,", lineOf(en))
		}
	case PresencesIn:
		fmt.Fprintf(&b, "%s:", who(x.Peer))
		for _, p := range x.Presences {
			fmt.Fprintf(&b, " %v %s,", p.Type, spell(p.Address))
		}
	case BlocksIn:
		fmt.Fprintf(&b, "%s:", who(x.Peer))
		for _, v := range x.Blocks {
			fmt.Fprintf(&b, " %s,", spell(v.Address))
		}
		for _, a := range x.Bad {
			fmt.Fprintf(&b, " bad %s,", spell(a))
		}
	case Stored:
		for _, v := range x.Blocks {
			fmt.Fprintf(&b, " %s,", spell(v.Address))
		}
	case PeerUp:
		fmt.Fprintf(&b, "%s %d", who(x.Peer), x.Epoch)
	case PeerDown:
		fmt.Fprintf(&b, "%s %d", who(x.Peer), x.Epoch)
	case Sent:
		fmt.Fprintf(&b, "%s blocks %v ok %v missing %d", who(x.Peer), x.Blocks, x.OK, len(x.Missing))
	case Drop:
		fmt.Fprintf(&b, "%d", x.Getter)
	case Took:
		fmt.Fprintf(&b, "%d: %d", x.Getter, x.Blocks)
	}
	return b.String()
}
