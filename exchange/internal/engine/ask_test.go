package engine

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/wire"
)

func TestB13LoneWant(t *testing.T) {
	s := start(t, "a lone want leaves at once: it is probed for and asked for in one message, the probe in front")
	alice := s.peer("alice")
	g := s.get(0, A)
	if e := alice.last.List.Entries; len(e) != 2 || lineOf(e[0]) != have(A)[0] || lineOf(e[1]) != block(A)[0] || !e[0].SendDontHave {
		s.fail("the message holds %v, want want-have and then want-block of A", e)
	}
	alice.wantsFull("the first list is full", probe(A))
	alice.delivers(A)
	s.gets("the block is handed on", g, A)
	s.finished("there is nothing else", g)
	alice.idle("nothing is left to say")
}

func TestB3ManyPeers(t *testing.T) {
	s := start(t, "want-have goes to all connected peers and want-block to one")
	alice, bob, carol := s.peer("alice"), s.peer("bob"), s.peer("carol")
	g := s.get(0, A)
	alice.wants("the first is asked on trial", probe(A))
	bob.wants("the second is told", have(A))
	carol.wants("and the third", have(A))
	alice.delivers(A)
	s.gets("the block is handed on", g, A)
	bob.wants("it is over", cancel(A))
	carol.wants("for all that were told", cancel(A))
	alice.idle("but for the one that knows")
}

func TestB8BroadcastBound(t *testing.T) {
	s := start(t, "no more peers are told at a time than allowed, and others when those have nothing", func(c *Config) { c.BroadcastPeers = 2 })
	alice, bob, carol, dave := s.peer("alice"), s.peer("bob"), s.peer("carol"), s.peer("dave")
	s.get(0, A)
	alice.wants("she is asked", probe(A))
	bob.wants("he is told", have(A))
	carol.idle("two are enough")
	dave.idle("two are enough")
	alice.hasNot(A)
	bob.wants("he is asked next", block(A))
	carol.idle("he may have it")
	bob.hasNot(A)
	carol.wants("nobody of the first two is left", probe(A))
	dave.wants("nobody of the first two is left", have(A))
}

func TestB6SharedWant(t *testing.T) {
	s := start(t, "several getters of one block share one want, and each is given the block")
	alice := s.peer("alice")
	g, h := s.get(0, A), s.get(0, A, B)
	alice.wants("A is asked for once", probe(A), have(B), block(B))
	alice.delivers(A)
	s.gets("the first has it", g, A)
	s.gets("the second has it", h, A)
	s.finished("the first wants nothing else", g)
	s.unfinished("the second wants B", h)
}

func TestB6CancelOneOfTwo(t *testing.T) {
	s := start(t, "a getter that goes harms nobody, and only the last takes the want with it")
	alice, bob := s.peer("alice"), s.peer("bob")
	g, h := s.get(0, A), s.get(0, A)
	alice.wants("asked", probe(A))
	bob.wants("told", have(A))
	s.drop(g)
	alice.idle("the other still waits")
	bob.idle("the other still waits")
	alice.delivers(A)
	s.gets("the other has it", h, A)
	s.gets("the one that went has nothing", g)
	bob.deaf()

	g, h = s.get(0, B), s.get(0, B)
	alice.deaf()
	bob.deaf()
	s.drop(h)
	alice.idle("the first still waits")
	s.drop(g)
	alice.wants("the last takes the want back", cancel(B))
	bob.wants("from all who were told", cancel(B))
}

func TestCancelOwnerInEveryState(t *testing.T) {
	s := start(t, "when the getter that a want is counted at goes, the next one takes over, whatever state the want is in",
		func(c *Config) { c.BufferedBytes = 2 * blockSize })
	wants := many("x", 6)
	g, h := s.get(0, wants...), s.get(0, wants...)
	s.drop(g) // all are seeking: nobody is there
	alice := s.peer("alice")
	alice.deaf()
	alice.has(wants...) // two are asked, four are ready
	i := s.get(0, wants...)
	s.drop(h)
	alice.delivers(wants[0], wants[1])
	s.gets("the last getter is given what was asked for the others", i, wants[0], wants[1])
	s.took(i, 2)
	alice.delivers(wants[2], wants[3])
	s.took(i, 2)
	alice.delivers(wants[4], wants[5])
	s.gets("and the rest", i, wants[2:]...)
	s.finished("that is all", i)
}

func TestB28Coalescing(t *testing.T) {
	s := start(t, "wants gather only while a message is under way")
	alice := s.peer("alice")
	alice.slow = true
	s.get(0, A)
	alice.wants("the first leaves at once", probe(A))
	s.get(0, B)
	s.get(0, C)
	alice.idle("the others wait until it is written")
	alice.reads()
	alice.wants("and leave together", probe(B), probe(C))
	if len(alice.sends) != 1 {
		s.fail("%d messages, want 1", len(alice.sends))
	}
}

func TestSettledMeanwhile(t *testing.T) {
	s := start(t, "what is settled while a message is under way is never said")
	alice, bob := s.peer("alice"), s.peer("bob")
	bob.slow = true
	s.get(0, A)
	bob.wants("told", have(A))
	g := s.get(0, B)
	s.get(0, C)
	alice.delivers(B)
	s.gets("it has come from elsewhere", g, B)
	bob.reads()
	bob.wants("only C is of interest", have(C))
}

func TestB13AnnouncedIsAsked(t *testing.T) {
	s := start(t, "who announces a block is asked for it, and who does not is not")
	alice, bob := s.peer("alice"), s.peer("bob")
	x := many("x", 8)
	s.get(0, x...)
	alice.wants("each is probed, one is asked on trial", have(x...), block(x[0]))
	bob.wants("and another of him", have(x...), block(x[1]))
	bob.has(x[2], x[4])
	bob.wants("asked for what he has", block(x[2], x[4]))
	alice.has(x[5])
	alice.wants("asked for what she has", block(x[5]))
	bob.idle("and for nothing else")
}

func TestPresenceIsWhatWeWant(t *testing.T) {
	s := start(t, "a peer context record holds what the peer has and we want, with its price, and nothing else")
	alice := s.peer("alice")
	g := s.get(0, A, B)
	alice.hasFor(7, A, C)
	alice.has(B)
	want := map[wire.Address]wire.Price{A: {31: 7}, B: {}}
	got := s.e.Has("alice")
	for _, r := range got {
		if p, ok := want[r.Address]; !ok || p != r.Price {
			s.fail("the record holds %s at %v, which is not so", spell(r.Address), r.Price)
		}
	}
	if len(got) != 2 {
		s.fail("the record holds %d lines, want 2", len(got))
	}
	if n := s.e.Stats().UnwantedPresences; n != 1 {
		s.fail("%d presences were unwanted, want 1", n)
	}
	alice.delivers(A)
	s.drop(g)
	if got := s.e.Has("alice"); len(got) != 0 {
		s.fail("the record holds %v, want nothing, for nothing is wanted any more", got)
	}
}

func TestUnaskedPresence(t *testing.T) {
	s := start(t, "a presence that nobody asked for is as good as any")
	alice := s.peer("alice")
	alice.slow = true
	s.get(0, A)
	alice.deaf()
	s.get(0, B, C)
	alice.has(C) // its want-have has not left yet
	alice.reads()
	alice.wants("C is asked for", have(B), block(B), have(C), block(C))
}

// spread sets the stage so that 20 blocks are announced by both bob and carol before
// anybody is asked for them, and returns how many each of them is asked for then.
func spread(t *testing.T, proves string, seed uint64, prepare func(bob, carol *peerCtx)) (ofBob, ofCarol int) {
	t.Helper()
	s := start(t, proves, func(c *Config) { c.Seed, c.BufferedBytes = seed, 20*blockSize })
	alice := s.peer("alice")
	y := many("y", 20)
	x := many("x", 20)
	g := s.get(0, append(y, x...)...)
	alice.has(y...)
	alice.delivers(y...)
	alice.down()
	bob, carol := s.peer("bob"), s.peer("carol")
	bob.has(x...)
	carol.has(x...)
	p, q := s.e.peers["bob"], s.e.peers["carol"]
	if p.asked.len+q.asked.len > 0 {
		s.fail("something is asked for though the caller does not keep up")
	}
	prepare(p, q)
	s.took(g, 20)
	if n := p.asked.len + q.asked.len; n != 20 {
		s.fail("%d blocks are asked for, want 20", n)
	}
	return p.asked.len, q.asked.len
}

func TestB15LoadIsShared(t *testing.T) {
	for seed := range uint64(10) {
		n, m := spread(t, "peers that are equally fast are asked for about the same", seed, func(bob, carol *peerCtx) {})
		if n < 8 || m < 8 {
			t.Errorf("seed %d: %d blocks are asked of bob and %d of carol, want 8 at least of each", seed, n, m)
		}
	}
}

func TestB15SpeedIsRegarded(t *testing.T) {
	for seed := range uint64(10) {
		n, m := spread(t, "a peer that is 4 times as fast is asked for about 4 times as much", seed, func(bob, carol *peerCtx) {
			bob.rate, carol.rate = 8<<20, 2<<20
		})
		if n < 14 || m < 2 {
			t.Errorf("seed %d: %d blocks are asked of bob and %d of carol, want about 16 and 4", seed, n, m)
		}
	}
}

// takeAll lets the callers take what they were given.
func (s *script) takeAll() {
	s.t.Helper()
	for _, g := range slices.Sorted(maps.Keys(s.got)) {
		n := len(s.got[g])
		delete(s.got, g)
		s.took(g, n)
	}
}

// fetch lets players deliver what they are asked for, each at its own speed, until
// the getter has everything, and returns how many came from each.
func (s *script) fetch(g GetterID, limit time.Duration, speed map[*player]time.Duration) map[*player]int {
	s.t.Helper()
	count := map[*player]int{}
	owed := map[*player][]wire.Address{}
	next := map[*player]time.Time{}
	for end := s.now.Add(limit); !s.done[g]; {
		if s.now.After(end) {
			s.fail("getter %d has not everything after %v", g, limit)
		}
		for _, p := range s.order {
			d, ok := speed[p]
			if !ok {
				continue
			}
			for _, l := range p.said {
				switch l.verb {
				case "want-block":
					owed[p] = append(owed[p], l.a)
				case "cancel":
					for i, a := range owed[p] {
						if a == l.a {
							owed[p] = append(owed[p][:i], owed[p][i+1:]...)
							break
						}
					}
				}
			}
			p.said = nil
			if len(owed[p]) > 0 && next[p].IsZero() {
				next[p] = s.now.Add(d)
			}
			if len(owed[p]) > 0 && !next[p].After(s.now) {
				a := owed[p][0]
				owed[p] = owed[p][1:]
				next[p] = time.Time{}
				if len(owed[p]) > 0 {
					next[p] = s.now.Add(d)
				}
				count[p]++
				p.delivers(a)
				s.takeAll()
			}
		}
		if s.meanwhile != nil {
			s.meanwhile()
		}
		s.advance(time.Millisecond)
	}
	return count
}

func TestB15SpeedIsFollowed(t *testing.T) {
	s := start(t, "of two peers that have everything the faster one delivers most of it")
	alice, bob := s.peer("alice"), s.peer("bob")
	x := many("x", 600)
	g := s.get(0, x...)
	alice.has(x...)
	bob.has(x...)
	n := s.fetch(g, time.Minute, map[*player]time.Duration{alice: 2 * time.Millisecond, bob: 20 * time.Millisecond})
	if n[alice] < 4*n[bob] {
		s.fail("alice delivered %d and bob %d, want alice 4 times as many, for she is 10 times as fast", n[alice], n[bob])
	}
	if n[bob] == 0 {
		s.fail("bob delivered nothing, want some")
	}
	if d := s.e.Stats().DuplicateBlocks; d > 6 {
		s.fail("%d of 600 blocks came twice", d)
	}
}

// choice sets the stage so that B is announced by both bob and carol before
// anybody is asked for it: the caller does not keep up, and then it does.
func choice(t *testing.T, proves string, change ...func(*Config)) (s *script, bob, carol *player, decide func()) {
	t.Helper()
	s = start(t, proves, append(change, func(c *Config) { c.BufferedBytes = blockSize })...)
	alice := s.peer("alice")
	g := s.get(0, A, B)
	alice.delivers(A)
	alice.down()
	bob, carol = s.peer("bob"), s.peer("carol")
	return s, bob, carol, func() {
		t.Helper()
		bob.deaf()
		carol.deaf()
		s.took(g, 1)
	}
}

func TestB19PriceAmongEquals(t *testing.T) {
	for seed := range uint64(10) {
		_, bob, carol, decide := choice(t, "of peers that are about equally fast the cheaper one is asked", func(c *Config) { c.Seed = seed })
		bob.hasFor(5, B)
		carol.hasFor(3, B)
		decide()
		carol.wants("she is cheaper", block(B))
		bob.idle("he is dearer")
	}
	for seed := range uint64(10) {
		_, bob, carol, decide := choice(t, "whoever speaks first", func(c *Config) { c.Seed = seed })
		bob.hasFor(2, B)
		carol.hasFor(3, B)
		decide()
		bob.wants("he is cheaper", block(B))
		carol.idle("she is dearer")
	}
}

func TestB19MaxPrice(t *testing.T) {
	s, bob, carol, decide := choice(t, "who asks more than we pay is not asked, on trust neither", func(c *Config) { c.MaxPrice = &wire.Price{31: 4} })
	bob.hasFor(5, B)
	decide()
	bob.idle("too dear")
	carol.deaf()
	carol.hasFor(4, B)
	carol.wants("just right", block(B))
	carol.delivers(B)

	s.get(0, C)
	bob.wants("probed with the others", have(C))
	carol.wants("she delivered lately, and is asked on trial", probe(C))
	carol.hasFor(9, C)
	carol.wants("but not for this", cancel(C))
	bob.wants("he might have it for less", block(C))
	for _, r := range s.e.Has("bob") {
		s.fail("bob's record holds %s, which is too dear", spell(r.Address))
	}
}

func TestB30SilenceIsDontHave(t *testing.T) {
	s := start(t, "who stays silent is taken not to have the block: another is asked, and the silent one told that it is over")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(0, A)
	alice.has(A)
	alice.wants("asked", probe(A))
	bob.wants("told", have(A))
	bob.has(A)
	s.advance(firstPatience - time.Millisecond)
	alice.idle("she has time")
	bob.idle("she has time")
	s.advance(time.Millisecond)
	alice.wants("her time is over", cancel(A))
	bob.wants("his turn", block(A))
	bob.delivers(A)
	s.gets("from him", g, A)
	if n := s.e.Stats().TimedOut; n != 1 {
		s.fail("%d wants have timed out, want 1", n)
	}
}

func TestOneLeftOut(t *testing.T) {
	s := start(t, "a peer that keeps delivering everything else does not keep a want for ever")
	alice, bob := s.peer("alice"), s.peer("bob")
	x := many("x", 500)
	g := s.get(0, append([]wire.Address{A}, x...)...)
	alice.has(append([]wire.Address{A}, x...)...)
	s.advance(100 * time.Millisecond)
	bob.has(A)
	for i := 0; s.e.wants[A].peer == nil || s.e.wants[A].peer.id == "alice"; i++ {
		for w := s.e.peers["alice"].asked.head; w != nil; w = w.next {
			if w.address != A {
				alice.delivers(w.address)
				s.took(g, 1)
				break
			}
		}
		s.advance(100 * time.Millisecond)
		if i > 400 {
			s.fail("A is asked of alice still after %v, want bob to have his turn", s.now.Sub(time.Unix(1e9, 0)))
		}
	}
}

func TestNewcomerHearsWhatIsReady(t *testing.T) {
	s := start(t, "a newcomer is told of what waits for room at another peer, and helps")
	alice := s.peer("alice")
	x := many("x", 100)
	s.get(0, x...)
	alice.has(x...)
	bob := s.peer("bob")
	bob.wantsFull("what alice has no room for", have(x[firstWindow:]...))
	bob.has(x[firstWindow:]...)
	bob.wants("and he has room", block(x[firstWindow:2*firstWindow]...))
}

func TestSilenceOfTheOnlyOne(t *testing.T) {
	s := start(t, "if there is nobody else, the want-block of a silent peer stands, is repeated, and is good when it comes late", func(c *Config) { c.Searches = false })
	alice := s.peer("alice")
	g := s.get(0, A)
	alice.wants("asked", probe(A))
	s.advance(firstPatience)
	alice.idle("no cancel: it may still come")
	s.advance(firstRefresh)
	alice.wantsFull("asked again", block(A))
	alice.delivers(A)
	s.gets("late is good", g, A)
}

func TestB14DontHave(t *testing.T) {
	s := start(t, "who says don't have is believed, and the next is asked")
	alice, bob := s.peer("alice"), s.peer("bob")
	s.get(0, A)
	alice.deaf()
	bob.deaf()
	alice.hasNot(A)
	bob.wants("he is next", block(A))
	alice.idle("nothing to say")
	bob.hasNot(A)
	s.advance(0)
	s.searches("nobody is left", A.Root)
}

func TestBadBlock(t *testing.T) {
	s := start(t, "a bad block is asked for elsewhere, and of its sender not again")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(0, A)
	alice.has(A)
	bob.has(A)
	alice.deaf()
	bob.deaf()
	alice.forges(A)
	bob.wants("he has it too", block(A))
	alice.idle("she is not asked again")
	alice.has(A)
	bob.forges(A)
	alice.idle("whatever she says")
	s.advance(time.Minute)
	for _, l := range alice.said {
		if l.verb != "cancel" && l.a == A {
			s.fail("alice is asked again: %v", l)
		}
	}
	alice.delivers(A)
	s.gets("a good block is a good block", g, A)
}

func TestShunned(t *testing.T) {
	s := start(t, "after three bad blocks a peer is asked for nothing, while others and its connection go on")
	alice := s.peer("alice")
	g := s.get(0, A, B, C, D)
	alice.has(A, B, C, D)
	alice.deaf()
	alice.forges(A, B)
	alice.idle("two are forgiven")
	alice.forges(C)
	alice.wants("what is left is taken back", cancel(C, D))
	h := s.get(0, block_())
	alice.idle("nothing new is asked of her")
	if n := s.e.Stats().PeersShunned; n != 1 {
		s.fail("%d peers are shunned, want 1", n)
	}
	alice.asks(have(A))
	alice.isTold("she is still served", hasNot_(A))
	bob := s.peer("bob")
	bob.has(A, B, C, D, block_())
	bob.delivers(A, B, C, D)
	bob.delivers(block_())
	s.finished("bob has the rest", g)
	s.finished("bob has the rest", h)
	bob.down()
	alice.down()
	alice.up()
	alice.deaf()
	s.get(0, many("z", 1)[0])
	alice.wants("a new connection is a new start", probe(many("z", 1)...))
}

func TestShunnedOnce(t *testing.T) {
	s := start(t, "a message with many bad blocks has a peer shunned once, and what it was asked for taken back once")
	alice := s.peer("alice")
	x := many("x", 20)
	s.get(0, x...)
	alice.has(x...)
	alice.deaf()
	alice.forges(x...)
	alice.wants("what was left when the last one was too many", cancel(x[maxBad-1:]...))
	st := s.e.Stats()
	if st.PeersShunned != 1 || st.BadBlocks != 20 {
		s.fail("%d peers are shunned for %d bad blocks, want 1 for 20", st.PeersShunned, st.BadBlocks)
	}
}

func block_() wire.Address { return many("other", 1)[0] }

func TestB32Disconnect(t *testing.T) {
	s := start(t, "what was asked of a peer that leaves is asked of another at once")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(0, A)
	alice.deaf()
	bob.deaf()
	alice.down()
	bob.wants("his turn", block(A))
	bob.delivers(A)
	s.gets("from him", g, A)
	alice.idle("she is gone")
}

func TestB32OldEpoch(t *testing.T) {
	s := start(t, "news of an older connection does not touch a newer one")
	alice := s.peer("alice")
	s.get(0, A)
	old := alice.epoch
	alice.deaf()
	alice.up()
	alice.wantsFull("a new connection hears everything anew", probe(A))
	s.step(PeerDown{Peer: "alice", Epoch: old})
	s.step(Sent{Peer: "alice", Epoch: old, OK: false})
	s.step(Sent{Peer: "alice", Epoch: old, Blocks: true, OK: false})
	s.step(Looked{Peer: "alice", Epoch: old, Items: []LookedItem{{Address: A}}})
	alice.idle("nothing has changed")
	if _, up := s.e.Peer("alice"); !up {
		s.fail("alice is gone, want her up")
	}
}

func TestSendFailure(t *testing.T) {
	s := start(t, "what could not be sent is asked of another, and the peer is tried again later, with everything")
	alice, bob := s.peer("alice"), s.peer("bob")
	alice.slow = true
	g := s.get(0, A)
	alice.deaf()
	bob.deaf()
	alice.breaks()
	bob.wants("his turn", block(A))
	bob.delivers(A)
	s.finished("from him", g)
	s.get(0, B, C)
	alice.idle("she is left alone")
	bob.deaf()
	alice.slow = false
	s.advance(time.Second)
	alice.wantsFull("she may not have heard that A is over", cancel(A), have(B, C), block(C))
}
