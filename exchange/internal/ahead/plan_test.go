package ahead

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

const kib = 1 << 10

// cidOf names a block: those that begin with "n" are nodes, others have no links.
func cidOf(name string) cid.Cid {
	codec := uint64(cid.Raw)
	if strings.HasPrefix(name, "n") {
		codec = cid.DagProtobuf
	}
	hash, err := mh.Sum([]byte(name), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(codec, hash)
}

// A script plays a walker, and what is fetched for it.
type script struct {
	testing.TB
	p     *Plan
	names map[cid.Cid]string
	size  int // of links
}

func newScript(t testing.TB, limit int) *script {
	return &script{t, NewPlan(limit), make(map[cid.Cid]string), 64 * kib}
}

func (s *script) cid(name string) cid.Cid {
	c := cidOf(name)
	s.names[c] = name
	return c
}

func (s *script) name(list []cid.Cid) string {
	var names []string
	for _, c := range list {
		names = append(names, s.names[c])
	}
	return strings.Join(names, " ")
}

// node makes links known: "prefix0 prefix1 …", or those named.
func (s *script) node(name string, named bool, links ...string) {
	n := Node{Named: named}
	for _, l := range links {
		k := branch
		switch c := s.cid(l); {
		case strings.HasPrefix(l, "nshard"):
			k = shard
		case !HasLinks(c):
			k = leaf
		}
		n.Links = append(n.Links, Link{Cid: s.cid(l), Size: s.size, kind: k})
	}
	s.p.Add(s.cid(name), n)
	s.check()
}

func numbered(prefix string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprint(prefix, i))
	}
	return list
}

func (s *script) ask(want State, names ...string) {
	s.Helper()
	for _, name := range names {
		if got := s.p.Ask(s.cid(name)); got != want {
			s.Fatalf("%s is asked for: state %d, want %d", name, got, want)
		}
		s.check()
	}
}

// guesses is what is fetched next.
func (s *script) guesses(why, want string) {
	s.Helper()
	got := s.name(s.p.Next(100, 1<<30))
	s.check()
	if got != want {
		s.Fatalf("%s: guessed %q, want %q\n%+v", why, got, want, s.p.stats)
	}
}

func (s *script) come(size int, keep bool, names ...string) {
	s.Helper()
	for _, name := range names {
		if got := s.p.Came(s.cid(name), size, 1<<30); got != keep {
			s.Fatalf("%s comes: kept is %v, want %v", name, got, keep)
		}
		s.check()
	}
}

func (s *script) drops(why, want string) {
	s.Helper()
	list := s.p.Dropped()
	slices.SortFunc(list, func(a, b cid.Cid) int { return strings.Compare(s.names[a], s.names[b]) })
	if got := s.name(list); got != want {
		s.Fatalf("%s: dropped %q, want %q", why, got, want)
	}
}

// check compares what the plan keeps twice, and its bounds.
func (s *script) check() {
	s.Helper()
	p := s.p
	open, out, strange, links := 0, 0, 0, 0
	in := make(map[*frame]int)
	held := 0
	for _, g := range p.guesses {
		if g.held {
			held += g.size
		}
		if g.asked {
			continue
		}
		open++
		out += g.size
		in[g.frame] += g.size
		if g.frame.asked == 0 {
			strange += g.size
		}
	}
	for f, bytes := range in {
		if f.out != bytes {
			s.Fatalf("a frame counts %d bytes, want %d", f.out, bytes)
		}
	}
	for c, f := range p.frames {
		if f.node != c || f.links == nil {
			s.Fatal("a frame is listed that is forgotten")
		}
		links += len(f.links)
	}
	for c, at := range p.places {
		if !at.frame.links[at.index].Cid.Equals(c) {
			s.Fatal("a place is not that of its link")
		}
	}
	if open != p.open || out != p.out || strange != p.strange || links != p.links || len(p.oldest) != len(p.frames) {
		s.Fatalf("counted %d open, %d bytes, %d strange, %d links in %d frames, want %d, %d, %d, %d, %d",
			p.open, p.out, p.strange, p.links, len(p.oldest), open, out, strange, links, len(p.frames))
	}
	if open > MaxOpen || held > p.limit || p.window > p.limit {
		s.Fatalf("%d open, %d bytes held, window %d: want at most %d, %d, %d", open, held, p.window, MaxOpen, p.limit, p.limit)
	}
	if links > maxLinks && len(p.frames) > 1 {
		s.Fatalf("%d links are known in %d frames, want at most %d", links, len(p.frames), maxLinks)
	}
}

// A file is read ahead in the order of its bytes, from one node into the next.
func TestGuessesGoDepthFirst(t *testing.T) {
	s := newScript(t, 16<<20)
	s.ask(Unknown, "nroot")
	s.node("nroot", false, "na", "nb", "nc")
	s.guesses("nothing below the root was asked for", "")
	s.ask(Unknown, "na")
	s.guesses("the walker goes through the root", "nb nc")
	s.node("na", false, numbered("a", 4)...)
	s.ask(Unknown, "a0")
	s.guesses("a is entered, and the rest of the root is known already", "a1 a2 a3")
	s.come(kib, true, "nb", "nc")
	s.node("nb", false, numbered("b", 2)...)
	s.node("nc", false, numbered("c", 2)...)
	s.ask(Coming, "a1", "a2", "a3")
	s.guesses("on in b, and then in c", "b0 b1 c0 c1")
	s.ask(Held, "nb")
	s.ask(Coming, "b0", "b1")
	s.come(64*kib, true, "c0", "c1")
	s.ask(Held, "nc", "c0", "c1")
	s.guesses("nothing is left", "")
	if got := s.p.Stats(); got != (Stats{Used: 4, UsedBytes: 130 * kib}) {
		t.Errorf("got %+v, want the four that were held", got)
	}
}

// The window begins with 256 KiB and grows by what is asked for in order, up to the
// limit; guesses that have come count as they are until they are asked for.
func TestWindowGrowsWithUse(t *testing.T) {
	s := newScript(t, 1<<20)
	s.node("nroot", false, numbered("x", 100)...)
	s.ask(Unknown, "x0") // 64 KiB, so there is room for five
	s.guesses("small at first", "x1 x2 x3 x4 x5")
	s.come(64*kib, true, "x1", "x2", "x3", "x4", "x5")
	s.guesses("full", "")
	s.ask(Held, "x1")
	s.ask(Held, "x2")
	s.guesses("each that is used makes room for itself and another", "x6 x7 x8 x9")
	for i := range 40 {
		name := fmt.Sprint("x", 3+i)
		s.ask(s.p.Ask(s.cid("nothing"))+map[bool]State{true: Held, false: Coming}[i < 3], name)
		s.p.Next(100, 1<<30)
		s.come(64*kib, false, name)
	}
	if _, bytes := s.p.Open(); bytes != 1<<20 {
		t.Errorf("%d bytes are open, want the limit", bytes)
	}
}

// Who jumps in a file has the old guesses dropped, and begins with a small window,
// smaller each time, which does not grow by mere requests as long as more was wasted
// than used.
func TestJumpCollapsesTheWindow(t *testing.T) {
	s := newScript(t, 16<<20)
	s.node("nroot", false, numbered("x", 1000)...)
	s.ask(Unknown, numbered("x", 10)...)
	s.guesses("what was asked for, and 256 KiB", "x10 x11 x12 x13 x14 x15 x16 x17 x18 x19 x20 x21 x22 x23")
	s.come(64*kib, true, "x10")
	s.ask(Unknown, "x500")
	s.drops("whether it has come or not", "x10 x11 x12 x13 x14 x15 x16 x17 x18 x19 x20 x21 x22 x23")
	s.guesses("from the new place", "x501 x502 x503 x504")
	s.ask(Unknown, numbered("x1", 10)...)
	s.drops("many concurrent requests may be late", "")
	s.ask(Unknown, numbered("x2", 10)...)
	s.ask(Unknown, numbered("x3", 10)...)
	s.ask(Unknown, numbered("x4", 10)...)
	s.ask(Unknown, numbered("x5", 8)...)
	s.drops("but not as many", "x501 x502 x503 x504")
	s.ask(Unknown, "x58", "x59", "x60")
	s.guesses("requests are no proof any more", "x61 x62")
	s.ask(Coming, "x61", "x62")
	s.come(64*kib, false, "x61", "x62")
	s.guesses("but use is", "x63 x64 x65 x66")
	if got := s.p.Stats(); got.Wasted != 18 || got.WastedBytes != 18*64*kib {
		t.Errorf("got %+v, want 18 wasted", got)
	}
}

// Concurrent requests come in another order than that of the links, which is no jump.
func TestRequestsOutOfOrder(t *testing.T) {
	s := newScript(t, 16<<20)
	s.node("nroot", false, numbered("x", 300)...)
	var opened []cid.Cid
	r := rand.New(rand.NewPCG(1, 1))
	for first := 0; first < 256; first += 32 {
		for _, i := range r.Perm(32) {
			s.p.Ask(s.cid(fmt.Sprint("x", first+i)))
			s.check()
		}
		opened = append(opened, s.p.Next(100, 1<<30)...)
		s.drops("no guess is given up", "")
	}
	if len(opened) < 200 {
		t.Errorf("%d blocks were guessed, want nearly all", len(opened))
	}
}

// FetchGraph goes breadth first, and through nodes in the order in which they came:
// guesses in the wrong one wait until they are used, and leave room for others.
func TestBreadthFirst(t *testing.T) {
	s := newScript(t, 1<<20)
	s.node("nroot", false, "na", "nb", "nc", "nd")
	s.ask(Unknown, "na", "nb", "nc", "nd")
	for _, x := range []string{"a", "b", "c", "d"} {
		s.node("n"+x, false, numbered(x, 40)...)
	}
	for _, x := range []string{"d", "a", "c", "b"} {
		for i := range 40 {
			name := fmt.Sprint(x, i)
			s.p.Ask(s.cid(name))
			for _, c := range s.p.Next(100, 1<<30) {
				s.come(64*kib, true, s.names[c])
			}
			s.drops(name+" is asked for", "")
		}
	}
	got := s.p.Stats()
	if got.Wasted != 0 || got.Used < 140 {
		t.Errorf("got %+v, want most of 160 used and none wasted", got)
	}
}

// A walker that leaves a file without a jump, to read elsewhere, has its old guesses
// dropped after a while, so that they do not fill the window for ever.
func TestLeftFramesAreDropped(t *testing.T) {
	s := newScript(t, 1<<20)
	s.node("nfile", false, numbered("x", 100)...)
	s.node("nother", false, numbered("y", 100)...)
	s.ask(Unknown, "x0")
	s.guesses("in the file", "x1 x2 x3 x4 x5")
	s.come(64*kib, true, "x1")
	dropped := false
	for i := range 100 {
		s.p.Ask(s.cid(fmt.Sprint("y", i)))
		s.p.Next(100, 1<<30)
		s.check()
		for _, c := range s.p.Dropped() {
			dropped = dropped || s.names[c] == "x1"
		}
	}
	if !dropped {
		t.Errorf("what was read ahead elsewhere is held after 100 requests")
	}
}

// Guesses of a walker that is not heard of any more are dropped, and there are no more
// before it asks again.
func TestDropAll(t *testing.T) {
	s := newScript(t, 1<<20)
	s.node("nroot", false, numbered("x", 100)...)
	s.ask(Unknown, "x0")
	s.guesses("in order", "x1 x2 x3 x4 x5")
	s.ask(Coming, "x1")
	s.p.DropAll()
	s.drops("what was asked for goes on", "x2 x3 x4 x5")
	if s.p.Hungry() {
		t.Error("the plan is hungry after all was dropped")
	}
	s.guesses("nobody asks", "")
	s.ask(Unknown, "x2")
	s.guesses("somebody asks", "x3 x4 x5 x6")
}

// Of a directory one entry may be all that is wanted; who asks for two in order lists
// it, and opens only entries like those.
func TestNamedLinks(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		s := newScript(t, 16<<20)
		s.node("ndir", true, "nfile0", "raw1", "nfile2", "nfile3", "raw4", "nfile5")
		s.ask(Unknown, "nfile0")
		s.guesses("a path is looked up", "")
		s.ask(Unknown, "nfile2")
		s.guesses("the nodes are opened", "nfile3 nfile5")
	})
	t.Run("scattered", func(t *testing.T) {
		s := newScript(t, 16<<20)
		s.node("ndir", true, numbered("raw", 60)...)
		s.ask(Unknown, "raw20", "raw40", "raw41")
		s.guesses("paths are looked up", "")
	})
	t.Run("shards", func(t *testing.T) {
		s := newScript(t, 16<<20)
		s.node("ndir", true, "nshard0", "nfile", "nshard1", "nshard2", "raw")
		s.ask(Unknown, "nshard0", "nshard1")
		s.guesses("names are listed", "nshard2")
	})
	t.Run("everything", func(t *testing.T) {
		s := newScript(t, 16<<20)
		s.node("nroot", true, "na", "nb", "nc")
		s.ask(Unknown, "na")
		s.node("na", true, "a0", "a1", "a2")
		s.ask(Unknown, "a0", "a1")
		s.ask(Unknown, "a2", "nb")
		s.node("nb", true, "b0", "b1", "b2")
		s.ask(Unknown, "b0")
		s.guesses("who has walked one entry walks the next, from the first request", "b1 b2 nc")
	})
	t.Run("one file", func(t *testing.T) {
		s := newScript(t, 16<<20)
		s.node("ndir", true, "nfile0", "nfile1")
		s.ask(Unknown, "nfile0")
		s.node("nfile0", false, "x0", "x1", "x2")
		s.ask(Unknown, "x0")
		s.guesses("and not the next one", "x1 x2")
	})
}

// What the local store has takes no room, is not guessed again, and is followed; but a
// walker that finds everything there is not run ahead of for ever.
func TestLocalBlocks(t *testing.T) {
	s := newScript(t, 16<<20)
	s.node("nroot", false, append([]string{"na", "nb"}, numbered("x", 5000)...)...)
	s.ask(Unknown, "na")
	s.p.Next(1, 1<<30)
	s.p.Local(s.cid("nb"))
	s.node("nb", false, "b0", "b1")
	s.guesses("below what is local, then on", "b0 b1 x0 x1 x2")
	found := 5
	for _, name := range []string{"b0", "b1", "x0", "x1", "x2"} {
		s.p.Local(s.cid(name))
	}
	for list := s.p.Next(64, 1<<30); len(list) > 0; list = s.p.Next(64, 1<<30) {
		for _, c := range list {
			s.p.Local(c)
			found++
		}
		s.check()
	}
	if found < maxLocal || found > maxLocal+64 {
		t.Errorf("%d blocks were looked up, want about %d", found, maxLocal)
	}
	if guesses, bytes := s.p.Open(); guesses+bytes > 0 {
		t.Errorf("%d guesses of %d bytes are open, want none", guesses, bytes)
	}
	s.ask(Unknown, fmt.Sprint("x", found-2))
	s.guesses("when it asks where they end, it goes on", s.name([]cid.Cid{s.cid(fmt.Sprint("x", found-1)), s.cid(fmt.Sprint("x", found)),
		s.cid(fmt.Sprint("x", found+1)), s.cid(fmt.Sprint("x", found+2)), s.cid(fmt.Sprint("x", found+3)), s.cid(fmt.Sprint("x", found+4))}))
}

// A node may lie about the sizes of what it links to: there is never more held than
// the limit, and it is believed once.
func TestSizesThatAreTooSmall(t *testing.T) {
	s := newScript(t, 4<<20)
	s.size = 1
	s.node("nroot", false, numbered("x", 1000)...)
	s.ask(Unknown, "x0")
	list := s.p.Next(MaxOpen, 1<<30)
	if len(list) != (256+4)/4 {
		t.Errorf("%d blocks are guessed, want as many as fit if they measure 4 KiB", len(list))
	}
	var kept []string
	for _, c := range list {
		if s.p.Came(c, 2<<20, 1<<30) {
			kept = append(kept, s.names[c])
		} else {
			break
		}
		s.check()
	}
	if n := len(s.p.Dropped()); n != len(list)-len(kept)-1 {
		t.Errorf("%d are given up when one finds no room, want all %d that are under way", n, len(list)-len(kept)-1)
	}
	if len(kept) == 0 || len(kept) > 2 {
		t.Errorf("%d blocks of 2 MiB are kept, want at most 2", len(kept))
	}
	s.ask(Held, kept...)
	if n := len(s.p.Next(MaxOpen, 1<<30)); n > 2 {
		t.Errorf("%d blocks are guessed where there is room for 2", n)
	}
}

// A chain has nothing beside it to go back to, so it is as long as it likes; a node with
// more links than there is room for replaces all others.
func TestChainsAndWideNodes(t *testing.T) {
	s := newScript(t, 16<<20)
	p := s.p
	for i := range 20_000 {
		p.Add(s.cid(fmt.Sprint("n", i)), Node{Links: []Link{{Cid: s.cid(fmt.Sprint("n", i+1))}}})
		p.Ask(s.cid(fmt.Sprint("n", i+1)))
		if f := p.frames[s.cid(fmt.Sprint("n", i))]; f.up != nil {
			t.Fatalf("frame %d has one above it, want none", i)
		}
	}
	s.check()
	s = newScript(t, 16<<20)
	p = s.p
	s.size = 2 << 20
	for i := range 3 {
		s.node(fmt.Sprint("nwide", i), false, numbered(fmt.Sprint("w", i, "-"), 20_000)...)
		s.ask(Unknown, fmt.Sprint("w", i, "-", 0))
		s.guesses("in the newest", fmt.Sprintf("w%d-1", i))
		s.p.DropAll()
		s.p.Dropped()
	}
	if len(p.frames) != 1 || p.links != 20_000 {
		t.Errorf("%d frames with %d links, want the last", len(p.frames), p.links)
	}
}

// In a DAG of a few blocks and very many paths a call looks at a bounded number of
// links.
func TestManyPaths(t *testing.T) {
	s := newScript(t, 16<<20)
	const levels = 60
	for i := range levels {
		s.node(fmt.Sprint("n", i, "a"), false, fmt.Sprint("n", i+1, "a"), fmt.Sprint("n", i+1, "b"))
		s.node(fmt.Sprint("n", i, "b"), false, fmt.Sprint("n", i+1, "b"), fmt.Sprint("n", i+1, "a"))
	}
	for i := range levels {
		s.ask(Unknown, fmt.Sprint("n", i+1, "a"), fmt.Sprint("n", i+1, "b"))
	}
	c := scan{Plan: s.p, count: MaxOpen, room: 1 << 30}
	c.run()
	if c.visits > maxVisits+1 {
		t.Errorf("%d links were looked at, want at most %d", c.visits, maxVisits)
	}
}

// Whatever happens in whatever order, what the plan counts is true and within bounds.
func FuzzPlan(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, 500)
	}
	f.Fuzz(func(t *testing.T, seed uint64, steps int) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newScript(t, 1<<uint(16+r.IntN(8)))
		name := func() string {
			if r.IntN(3) == 0 {
				return fmt.Sprint("n", r.IntN(60))
			}
			return fmt.Sprint("x", r.IntN(2000))
		}
		last := 0
		for range min(steps, 5000) {
			switch r.IntN(12) {
			case 0, 1:
				s.size = []int{0, 1, 64 * kib, 2 << 20}[r.IntN(4)]
				links, first := 1+r.IntN(200), r.IntN(2000)
				if r.IntN(50) == 0 {
					links = 9000
				}
				seen := make(map[string]bool)
				var list []string
				for i := range links {
					l := fmt.Sprint("x", first+i)
					if r.IntN(20) == 0 {
						l = fmt.Sprint("n", r.IntN(60))
					}
					if !seen[l] {
						seen[l] = true
						list = append(list, l)
					}
				}
				s.node(fmt.Sprint("n", r.IntN(60)), r.IntN(3) == 0, list...)
			case 2:
				s.p.Ask(s.cid(name()))
			case 3, 4, 5, 6:
				last++
				if r.IntN(100) == 0 {
					last = r.IntN(2000)
				}
				s.p.Ask(s.cid(fmt.Sprint("x", last)))
			case 7, 8:
				s.p.Next(1+r.IntN(100), r.IntN(4<<20))
			case 9, 10:
				for c := range s.p.guesses {
					switch r.IntN(8) {
					case 0:
						s.p.Local(c)
					case 1:
						s.p.Forget(c)
					case 2:
					default:
						s.p.Came(c, r.IntN(300*kib), r.IntN(1<<20))
					}
				}
			case 11:
				s.p.Dropped()
				if r.IntN(50) == 0 {
					s.p.DropAll()
				}
			}
			s.check()
		}
	})
}

// A block for which the other sessions leave no room is thrown away; if it is hardly longer
// than it was taken to be, nothing else is.
func TestRoomThatOthersTake(t *testing.T) {
	s := newScript(t, 4<<20)
	s.node("nroot", false, numbered("x", 10)...)
	s.ask(Unknown, "x0")
	s.guesses("the first window", "x1 x2 x3 x4 x5")
	if s.p.Came(s.cid("x1"), s.size+kib, kib-1) {
		t.Error("x1 is kept, want it thrown away: there is less room than it takes")
	}
	s.drops("the others were measured well", "")
	if !s.p.Came(s.cid("x2"), s.size+kib, kib) {
		t.Error("x2 is thrown away, want it kept: there is room")
	}
	if s.p.Came(s.cid("x3"), 3*s.size, kib) {
		t.Error("x3 is kept, want it thrown away")
	}
	s.check()
	if got := len(s.p.Dropped()); got != 2 {
		t.Errorf("%d guesses are given up with x3, want the two that are under way", got)
	}
	s.ask(Held, "x2")
}
