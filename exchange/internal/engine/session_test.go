package engine

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/wire"
)

func TestB1SessionReuse(t *testing.T) {
	s := start(t, "the second request of a session goes straight to the peer that served the first, and to nobody else")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(1, A)
	alice.deaf()
	alice.delivers(A)
	s.finished("the first is served", g)
	alice.deaf()
	bob.deaf()
	h := s.get(1, B)
	alice.wants("want-block without a probe", block(B))
	bob.idle("he need not know")
	alice.delivers(B)
	s.gets("served", h, B)

	s.get(0, C)
	alice.wants("another session knows nothing of it", probe(C))
	bob.wants("and probes everybody", have(C))

	s.step(CloseSession{Session: 1})
	alice.deaf()
	bob.deaf()
	s.get(1, D)
	alice.wants("what a session knew goes with it", probe(D))
	bob.wants("what a session knew goes with it", have(D))
}

func TestB18TrustGrowsAndDrops(t *testing.T) {
	s := start(t, "how much a member is asked on trust doubles with each hit and is cut by each miss, and then everybody is probed again")
	alice, bob := s.peer("alice"), s.peer("bob")
	s.get(1, A)
	alice.delivers(A)
	alice.deaf()
	bob.deaf()
	x := many("x", 8)
	s.get(1, x...)
	alice.wants("two on trust after one hit", block(x[:2]...))
	alice.delivers(x[0])
	alice.wants("four after two", block(x[2:5]...))
	alice.hasNot(x[1])
	alice.wants("one after a miss: nobody is proven, all are probed", have(x[5:]...))
	bob.wants("he too", have(x[1]), have(x[5:]...), block(x[1]))
	alice.delivers(x[2])
	alice.idle("what she is asked for still is trust enough")
}

func TestTrustOfSilence(t *testing.T) {
	s := start(t, "a member that leaves a want unanswered is trusted no more, and what relied on it is probed for at once")
	alice, bob := s.peer("alice"), s.peer("bob")
	alice.deaf()
	s.get(1, A)
	s.advance(10 * time.Millisecond)
	alice.delivers(A)
	x := many("x", 4)
	alice.deaf()
	bob.deaf()
	s.get(1, x...)
	alice.wants("on trust", block(x[:2]...))
	bob.wants("he has shown nothing yet") // and is no member
	s.advance(minPatience)
	bob.wants("now he is told of all", have(x...), block(x[0]))
	alice.wants("and so is she of what she does not know", have(x[2:]...))
}

func TestAnnouncerHurriesGuess(t *testing.T) {
	s := start(t, "when another announces what a peer was asked for on trust, that peer has little time left")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(0, A)
	alice.wants("asked on trust", probe(A))
	bob.deaf()
	s.advance(40 * time.Millisecond)
	bob.has(A)
	s.advance(79 * time.Millisecond)
	alice.idle("as long again as he took, twice")
	bob.idle("not yet")
	s.advance(time.Millisecond)
	alice.wants("over", cancel(A))
	bob.wants("his turn", block(A))
	bob.delivers(A)
	s.gets("his", g, A)

	h := s.get(0, B)
	alice.deaf()
	bob.deaf()
	for _, p := range []*player{alice, bob} {
		if s.e.wants[B].peer.id == p.id {
			p.has(B)
		}
	}
	s.advance(20 * time.Millisecond)
	for _, p := range []*player{alice, bob} {
		if s.e.wants[B].peer.id != p.id {
			p.has(B)
		}
	}
	s.advance(400 * time.Millisecond)
	alice.idle("who has announced a block has the usual time")
	bob.idle("and nobody hurries it")
	_ = h
}

func TestHurryAllowsForTheQueue(t *testing.T) {
	s := start(t, "a peer that is hurried has the time it needs for what else it was asked for")
	alice, bob := s.peer("alice"), s.peer("bob")
	s.get(1, A, B)
	alice.has(B)
	s.advance(100 * time.Millisecond)
	alice.delivers(A)
	s.advance(100 * time.Millisecond)
	alice.delivers(B) // 10 blocks/s
	x := many("x", 2)
	s.get(1, x...)
	alice.deaf()
	bob.deaf()
	bob.has(x[1])
	s.advance(200 * time.Millisecond)
	alice.idle("two blocks take her 200 ms")
	s.advance(minGrace)
	alice.wants("and no longer", cancel(x[1]))
	bob.wants("his turn", block(x[1]))
}

func TestGuessIsPassedOn(t *testing.T) {
	s := start(t, "a want that was asked on trust for one session is so for the next that takes it over")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(1, A)
	s.get(2, A)
	alice.deaf()
	s.drop(g)
	bob.deaf()
	bob.has(A)
	s.advance(minGrace)
	alice.wants("hurried", cancel(A))
	bob.wants("and left for the announcer", block(A))
}

func TestB2NobodyThere(t *testing.T) {
	s := start(t, "without peers providers are searched at once")
	s.get(0, A)
	s.advance(0)
	s.searches("there is nobody to wait for", A.Root)
}

func TestB9SearchDelay(t *testing.T) {
	s := start(t, "connected peers have a second to announce before providers are searched")
	alice := s.peer("alice")
	alice.slow = true
	s.get(0, A, B)
	s.advance(999 * time.Millisecond)
	s.searches("not yet")
	s.advance(time.Millisecond)
	s.searches("now, for what nobody is asked for", B.Root)
}

func TestB12SearchBackOff(t *testing.T) {
	s := start(t, "searches of a session are at least 3 s apart, and twice as far each time until a block comes; one runs for a key at a time")
	s.get(0, A)
	s.advance(0)
	s.searches("first", A.Root)
	s.advance(20 * time.Second)
	s.searches("the first is still running")
	s.step(Searched{Key: A.Root})
	at := s.now
	var gaps []time.Duration
	for len(gaps) < 3 {
		s.advance(100 * time.Millisecond)
		if len(s.searched) > 0 {
			s.searched = nil
			gaps = append(gaps, s.now.Sub(at).Round(100*time.Millisecond))
			at = s.now
			s.step(Searched{Key: A.Root})
		}
		if s.now.Sub(at) > 5*time.Minute {
			s.fail("no search in 5 minutes, gaps were %v", gaps)
		}
	}
	for i := 1; i < len(gaps); i++ {
		if i > 1 && gaps[i] < gaps[i-1] || gaps[i] < firstSearch || gaps[i] > maxSearch {
			s.fail("searches were %v apart, want 3 s at least, growing to a minute", gaps)
		}
	}
}

func TestSearchAfterProgress(t *testing.T) {
	s := start(t, "once blocks come again, a session does not wait as long for the next search as when nothing helped")
	s.get(1, A)
	for s.now.Before(time.Unix(1e9, 0).Add(5 * time.Minute)) {
		s.advance(time.Second)
		s.step(Searched{Key: A.Root})
	}
	s.store(A)
	s.searched = nil
	s.get(1, B)
	s.advance(firstSearch)
	s.searches("3 s are enough", B.Root)
}

func TestB10LastDontHave(t *testing.T) {
	s := start(t, "when the last peer that might have had a block says that it has not, providers are searched at once")
	alice, bob := s.peer("alice"), s.peer("bob")
	s.get(0, A, B)
	alice.wants("asked for A", have(A, B), block(A))
	bob.wants("and he for B", have(A, B), block(B))
	alice.hasNot(A)
	s.advance(0)
	s.searches("bob has not answered yet")
	bob.hasNot(A)
	s.advance(0)
	s.searches("now he has", A.Root)
}

func TestSearchStorm(t *testing.T) {
	s := start(t, "a peer that says now this, now that, does not make us search all the time")
	alice := s.peer("alice")
	s.get(0, A)
	n := 0
	for range 100 {
		alice.has(A)
		alice.hasNot(A)
		s.advance(100 * time.Millisecond)
		for _, k := range s.searched {
			s.step(Searched{Key: k})
			n++
		}
		s.searched = nil
	}
	if n > 3 {
		s.fail("%d searches in 10 s, want 3 at most", n)
	}
}

func TestB11SearchIsRandom(t *testing.T) {
	s := start(t, "what cannot be found does not stand in the way of what can: any seeking want may be searched")
	s.get(0, many("x", 10)...)
	seen := map[string]bool{}
	for range 100 {
		s.advance(time.Minute)
		for _, k := range s.searched {
			seen[nameOf[k]] = true
			s.step(Searched{Key: k})
		}
		s.searched = nil
	}
	if len(seen) < 8 {
		s.fail("only %d of 10 were ever searched: %v", len(seen), seen)
	}
}

func TestNoSearches(t *testing.T) {
	s := start(t, "without anything to search with nobody searches", func(c *Config) { c.Searches = false })
	s.get(0, A)
	s.advance(time.Minute)
	s.searches("none")
}

func TestFound(t *testing.T) {
	s := start(t, "a provider that is found and connected already is told what it is said to have", func(c *Config) { c.BroadcastPeers = 1 })
	alice, bob := s.peer("alice"), s.peer("bob")
	s.get(0, A)
	alice.deaf()
	bob.idle("one is enough")
	s.step(Found{Key: A.Root, Peer: "bob"})
	bob.wants("he is said to have it", have(A))
	s.step(Found{Key: A.Root, Peer: "carol"})
	carol := s.peer("carol")
	alice.deaf()
	bob.deaf()
	alice.down()
	for _, l := range append(bob.said, carol.said...) {
		if l.a != A {
			s.fail("%v was said, want only A to be spoken of", l)
		}
	}
	if w := s.e.wants[A]; w.state != asked {
		s.fail("A is asked of nobody, want bob or carol")
	}
}

func TestFoundProviderOfTree(t *testing.T) {
	s := start(t, "a provider of a tree is told of its leaves", func(c *Config) { c.BroadcastPeers = 1 })
	s.peer("alice").slow = true
	bob := s.peer("bob")
	s.get(0, leaves(tree, 0, 3)...)
	s.step(Found{Key: tree, Peer: "bob"})
	for _, l := range bob.said {
		if l.a.Root != tree {
			s.fail("%v was said, want leaves of the tree", l)
		}
	}
	if len(bob.said) < 2 {
		s.fail("bob was told %v, want the leaves nobody is asked for", bob.said)
	}
}

func TestLateSeeder(t *testing.T) {
	s := start(t, "a seeder that comes late hears everything in lists of 1024 lines at most, the first of them full, and serves it")
	x := many("x", 1500)
	g := s.get(0, x[:800]...)
	h := s.get(0, x[800:]...)
	s.advance(10 * time.Second)
	alice := s.peer("alice")
	told := map[wire.Address]bool{}
	for _, l := range alice.said {
		if l.verb == "want-have" {
			told[l.a] = true
		}
	}
	if len(told) != len(x) || alice.fulls != 1 {
		s.fail("alice was told of %d wants in %d full lists, want %d in 1", len(told), alice.fulls, len(x))
	}
	alice.has(x...)
	s.fetch(g, time.Minute, map[*player]time.Duration{alice: time.Millisecond})
	s.fetch(h, time.Minute, map[*player]time.Duration{alice: time.Millisecond})
}

func TestManyCallersOneLateSeeder(t *testing.T) {
	s := start(t, "requests made one by one are all heard by a seeder that comes late")
	x := many("x", 2000)
	for _, a := range x {
		s.getter++
		s.e.Step(s.now, Want{Getter: s.getter, Wants: []wire.Want{wire.WantCid(a.Root)}})
	}
	s.e.Actions()
	alice := s.peer("alice")
	told := map[wire.Address]bool{}
	for _, l := range alice.said {
		told[l.a] = true
	}
	if len(told) != 2000 {
		s.fail("alice was told of %d wants, want 2000", len(told))
	}
}

func TestSeederLostMidway(t *testing.T) {
	s := start(t, "when one of two seeders is lost midway the other serves what is left, without waiting")
	alice, bob := s.peer("alice"), s.peer("bob")
	x := many("x", 200)
	g := s.get(0, x...)
	alice.has(x...)
	bob.has(x...)
	for i := range 40 {
		if w := s.e.wants[x[i]]; w != nil && w.peer != nil {
			s.players[w.peer.id].delivers(x[i])
		}
	}
	delete(s.got, g)
	s.took(g, 40)
	alice.down()
	start := s.now
	alice.deaf()
	for !s.done[g] {
		asked := s.e.peers["bob"].asked
		if asked.len == 0 {
			s.fail("bob is asked for nothing")
		}
		bob.delivers(asked.head.address)
		s.took(g, 1)
	}
	if s.now != start {
		s.fail("it took %v, want no waiting", s.now.Sub(start))
	}
}

func TestStallAfterAnnouncing(t *testing.T) {
	s := start(t, "a peer that announces everything and delivers nothing is left soon, and an honest one delivers all of it")
	mallory, bob := s.peer("mallory"), s.peer("bob")
	x := many("x", 500)
	g := s.get(0, x...)
	mallory.has(x...)
	bob.has(x...)
	began := s.now
	s.fetch(g, 15*time.Second, map[*player]time.Duration{bob: 2 * time.Millisecond})
	if d := s.now.Sub(began); d > 12*time.Second {
		s.fail("it took %v, want little more than one time-out", d)
	}
}

func TestStallerInACrowd(t *testing.T) {
	s := start(t, "a peer that asks for the same, announces everything and delivers nothing does not keep us from who has it")
	mallory, bob := s.peer("mallory"), s.peer("bob")
	x := many("x", 500)
	mallory.asks(have(x...))
	g := s.get(0, x...)
	mallory.has(x...)
	bob.has(x...)
	began := s.now
	s.fetch(g, 15*time.Second, map[*player]time.Duration{bob: 2 * time.Millisecond})
	if d := s.now.Sub(began); d > 12*time.Second {
		s.fail("it took %v, want little more than one time-out", d)
	}
}

func TestFellowThatNeverHandsOn(t *testing.T) {
	for _, asksOn := range []bool{false, true} {
		s := start(t, "a peer that asks for the same and never announces anything, as a reference node, costs a second or two and no more")
		mallory, bob := s.peer("mallory"), s.peer("bob")
		x := many("x", 500)
		mallory.asks(have(x...))
		g := s.get(0, x...)
		bob.has(x...)
		if s.e.leaving == 0 {
			s.fail("nothing is left to mallory, want some")
		}
		began := s.now
		if asksOn {
			mallory.asks(have(x...))
		}
		s.fetch(g, time.Minute, map[*player]time.Duration{bob: time.Millisecond})
		if d := s.now.Sub(began); d > 2500*time.Millisecond {
			s.fail("it took %v, want two seconds more than the half that it takes bob at most", d)
		}
	}
}

func TestStallerWithPartOfItAlone(t *testing.T) {
	s := start(t, "what only a stalling peer has announced does not keep others from serving what they have")
	mallory, bob := s.peer("mallory"), s.peer("bob")
	x := many("x", 400)
	g := s.get(0, x...)
	mallory.has(x[:200]...)
	bob.has(x[200:]...)
	n := 0
	for again := true; again; {
		again = false
		for w := s.e.peers["bob"].asked.head; w != nil; w = w.next {
			if slices.Contains(x[200:], w.address) {
				bob.delivers(w.address)
				s.took(g, 1)
				n++
				again = true
				break
			}
		}
	}
	if n != 200 {
		s.fail("bob delivered %d blocks at once, want all 200 that he has", n)
	}
}

func TestBackPressure(t *testing.T) {
	s := start(t, "a caller that does not take its blocks is not asked for beyond its buffer, and goes on when it does",
		func(c *Config) { c.BufferedBytes = 10 * blockSize })
	alice := s.peer("alice")
	x := many("x", 100)
	g := s.get(0, x...)
	alice.has(x...)
	deliver := func() int {
		n := 0
		for p := s.e.peers["alice"]; p.asked.len > 0; n++ {
			alice.delivers(p.asked.head.address)
		}
		return n
	}
	if n := deliver(); n != 10 {
		s.fail("%d blocks were asked for, want 10", n)
	}
	s.advance(time.Minute)
	if n := deliver(); n != 0 {
		s.fail("%d more were asked for, want none before the caller has taken some", n)
	}
	s.took(g, 4)
	if n := deliver(); n != 4 {
		s.fail("%d were asked for when 4 were taken", n)
	}
	for range 100 {
		s.took(g, 10)
		deliver()
	}
	s.finished("all came", g)
}

func TestWindow(t *testing.T) {
	s := start(t, "no more wants than the window are in progress; the rest follows as blocks are taken", func(c *Config) { c.Window = 8 })
	alice := s.peer("alice")
	x := many("x", 20)
	g := s.get(0, x...)
	if n := s.e.Stats().Wants; n != 8 {
		s.fail("%d wants are active, want 8", n)
	}
	alice.has(x[:8]...)
	alice.delivers(x[:8]...)
	if n := s.e.Stats().Wants; n != 0 {
		s.fail("%d wants are active while 8 blocks wait for the caller, want 0", n)
	}
	s.took(g, 5)
	if n := s.e.Stats().Wants; n != 5 {
		s.fail("%d wants are active, want 5", n)
	}
}

func TestStoredWhileWaiting(t *testing.T) {
	s := start(t, "a block that is stored by other means satisfies getters, even before it is their turn to ask", func(c *Config) { c.Window = 2 })
	g := s.get(0, A, B, C, D)
	s.store(A, D)
	s.gets("one in progress and one in the backlog", g, A, D)
	s.took(g, 2)
	s.store(B, C)
	s.gets("the rest", g, B, C)
	s.finished("all are there", g)
}

func TestNothing(t *testing.T) {
	s := start(t, "a request for nothing ends at once")
	g := s.want(0)
	s.finished("no wants", g)
	g = s.want(0, wire.WantLeaves(tree))
	s.finished("no leaves", g)
}

func TestLeaves(t *testing.T) {
	s := start(t, "leaves are wanted by root and ranges, and asked for one by one")
	alice := s.peer("alice")
	g := s.want(0, wire.WantLeaves(tree, wire.Range{First: 5, Count: 2}, wire.Range{First: 100, Count: 1}))
	l := []wire.Address{wire.Leaf(tree, 5), wire.Leaf(tree, 6), wire.Leaf(tree, 100)}
	alice.wants("each leaf", have(l...), block(l[0]))
	alice.has(l...)
	alice.delivers(l...)
	s.gets("each once", g, l...)
	s.finished("all", g)
}

func TestSixteenMillionLeaves(t *testing.T) {
	s := start(t, "16 million leaves can be wanted, by several at a time, and cost no more than their windows")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s.want(0, wire.WantLeaves(tree, wire.Range{Count: 16 << 20}))
	s.want(0, wire.WantLeaves(tree, wire.Range{First: 8 << 20, Count: 16 << 20}))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := s.e.Stats().Wants; n != 2048 {
		s.fail("%d wants are active, want two windows", n)
	}
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("two requests of 16 Mi leaves: %d KiB", grown>>10)
	if grown > 4<<20 {
		s.fail("they cost %d bytes, want 4 MiB at most", grown)
	}
}

func TestB10Refresh(t *testing.T) {
	s := start(t, "who does not answer is asked again after 1, 2, 4 … 36 s, in full lists", func(c *Config) { c.Searches = false })
	alice := s.peer("alice")
	alice.slow = true
	s.get(0, A, B)
	alice.slow = false
	alice.reads()
	alice.deaf()
	began := s.now
	var at []time.Duration
	for s.now.Sub(began) < 3*time.Minute {
		s.advance(time.Second)
		for _, l := range alice.said {
			if l.a == B && l.verb == "want-have" {
				if alice.fulls != 1 {
					s.fail("it was said in %d full lists, want 1", alice.fulls)
				}
				at = append(at, s.now.Sub(began))
				break
			}
		}
		alice.deaf()
	}
	want := []time.Duration{1, 3, 7, 15, 31, 63, 99, 135, 171}
	for i := range want {
		if i >= len(at) || at[i] != want[i]*time.Second {
			s.fail("asked again after %v, want %v seconds", at, want)
		}
	}
}

func TestFullGetterHoldsUpNobody(t *testing.T) {
	s := start(t, "a caller that does not take its blocks does not hold up others that wait for the same ones, however they come to share them",
		func(c *Config) { c.BufferedBytes = 10 * blockSize })
	alice := s.peer("alice")
	x := many("x", 100)
	idle := s.get(0, x...)
	alice.has(x...)
	deliver := func() {
		for p := s.e.peers["alice"]; p.asked.len > 0; {
			alice.delivers(p.asked.head.address)
		}
	}
	early := s.get(0, x[50])
	deliver()
	s.gets("it was there when the other became full", early, x[50])
	s.finished("and has what it wanted", early)
	late := s.get(0, x[60])
	deliver()
	s.gets("it came when the other was full already", late, x[60])
	s.finished("and has what it wanted", late)
	s.unfinished("who takes nothing gets no more", idle)
}

func TestSearchWhileOnTrial(t *testing.T) {
	s := start(t, "a peer that is asked on trial and keeps silent does not put off the search for providers",
		func(c *Config) { c.SearchDelay = time.Second })
	alice := s.peer("alice")
	s.get(0, A)
	alice.wants("the only peer is asked on trial", probe(A))
	s.advance(999 * time.Millisecond)
	s.searches("she is given some time")
	s.advance(time.Millisecond)
	s.searches("then providers are searched, though she may still answer", A.Root)
	alice.delivers(A)
	s.step(Searched{Key: A.Root})
	s.advance(time.Minute)
	s.searches("nobody waits any more")
}

func TestB36ValueOfConnections(t *testing.T) {
	s := start(t, "the more blocks went between us and a peer, the more its connection is worth; pushes count for nothing")
	alice := s.peer("alice")
	if alice.value != 0 {
		s.fail("a new connection is worth %d, want 0", alice.value)
	}
	s.get(0, A)
	alice.delivers(A)
	if alice.value != 8 {
		s.fail("worth %d after one block, want 8", alice.value)
	}
	alice.delivers(many("pushed", 40)...)
	if alice.value != 8 {
		s.fail("worth %d after 40 blocks that nobody asked for, want 8", alice.value)
	}
	s.store(B, C, D)
	alice.asks(block(B, C, D))
	if alice.value != 24 {
		s.fail("worth %d after four blocks, want 24", alice.value)
	}
}

func TestForgottenBacklogs(t *testing.T) {
	s := start(t, "a request that is dropped leaves nothing of its backlog behind, though no block ever comes")
	for range 20 {
		g := s.get(0, many("x", 3000)...)
		s.drop(g)
	}
	if n := len(s.e.waiting); n != 0 {
		s.fail("%d getters still wait for what is in their backlog, want none", n)
	}
}

func TestRefusalIsNoReasonToAskEverybody(t *testing.T) {
	s := start(t, "while somebody who was told may still answer, a refusal does not have further peers told",
		func(c *Config) { c.BroadcastPeers = 3 })
	ps := s.peers("a", "b", "c", "d", "e", "f", "g")
	s.get(1, A)
	ps[0].hasNot(A)
	ps[1].hasNot(A)
	for _, p := range ps[3:] {
		p.idle("c has not answered")
	}
	ps[2].hasNot(A)
	ps[3].wants("nobody is left of the first three", probe(A))
	ps[4].wants("nobody is left of the first three", have(A))
	ps[5].wants("nobody is left of the first three", have(A))
	ps[6].idle("three at a time")
}

func TestLaterMayBeBroughtAlong(t *testing.T) {
	for _, brought := range []bool{false, true} {
		s := start(t, "blocks that are stored while they wait in a backlog are handed over, whoever made the set of what waits",
			func(c *Config) { c.Window = 2 })
		alice := s.peer("alice")
		x := many("x", 5)
		ev := Want{Getter: 99}
		for _, a := range x {
			ev.Wants = append(ev.Wants, wire.WantCid(a.Root))
		}
		if brought {
			ev.Later = map[cid.Cid]struct{}{}
			for _, a := range x {
				ev.Later[a.Root] = struct{}{}
			}
		}
		s.step(ev)
		alice.wants("two are active", probe(x[0]), have(x[1]))
		s.store(x[3], x[0])
		s.gets("one waited, one was active", 99, x[3], x[0])
		s.took(99, 2)
		s.store(x[1], x[2], x[4])
		s.gets("the rest", 99, x[1], x[2], x[4])
		s.finished("each came once", 99)
		if len(s.e.waiting) != 0 {
			s.fail("%d getters wait, want none", len(s.e.waiting))
		}
	}
}
