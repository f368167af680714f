package engine

import (
	"testing"
	"time"
)

func TestB5Delta(t *testing.T) {
	s := start(t, "only the first list is full; later ones hold what is new")
	alice := s.peer("alice")
	s.get(0, A)
	alice.wantsFull("everything", probe(A))
	s.get(0, B)
	if alice.fulls != 0 {
		s.fail("the second list is full, want an addition")
	}
	alice.wants("what is new", probe(B))
}

func TestB3ListLength(t *testing.T) {
	s := start(t, "a list holds 1024 lines at most; the rest follows in the next, and only the first is full", func(c *Config) { c.Window = 3000 })
	x := many("x", 2500)
	s.get(0, x...)
	alice := s.peer("alice") // up() has gone by with everything acknowledged
	if alice.fulls != 1 {
		s.fail("%d full lists, want 1", alice.fulls)
	}
	alice.wants("all", have(x...), block(x[0]))
	alice.slow = true
	alice.has(x...)
	for n := 0; len(alice.sends) > 0; n++ {
		if l := len(alice.sends[0].List.Entries); l > 1024 {
			s.fail("a list holds %d lines", l)
		}
		alice.reads()
	}
}

func TestOutboxIsBounded(t *testing.T) {
	s := start(t, "what waits for a peer that does not read is bounded, however much comes and goes")
	alice, bob := s.peer("alice"), s.peer("bob")
	alice.slow = true
	s.get(0, A)
	for i := range 200 {
		g := s.get(0, many("x", 100)...)
		bob.deaf()
		s.drop(g)
		if n := len(s.e.peers["alice"].outbox); n > 3*4*listEntries {
			s.fail("%d lines wait after %d requests", n, i)
		}
	}
	bob.down()
	for range 100 {
		s.advance(10 * time.Second)
		if n := len(s.e.peers["alice"].outbox); n > 3*4*listEntries {
			s.fail("%d lines wait", n)
		}
	}
}

func TestB29RepeatedWhileNotRead(t *testing.T) {
	s := start(t, "a line that waits is not put there twice, however often it would be said again", func(c *Config) { c.Searches = false })
	alice := s.peer("alice")
	alice.slow = true
	s.get(0, A, B, C)
	s.advance(time.Hour)
	if n := len(s.e.peers["alice"].outbox); n > 6 {
		s.fail("%d lines wait about three blocks", n)
	}
}

func TestB31CancelToAllThatWereAsked(t *testing.T) {
	s := start(t, "when a block comes, everybody who was asked for it and did not send it is told")
	alice, bob, carol := s.peer("alice"), s.peer("bob"), s.peer("carol")
	g := s.get(0, A)
	s.advance(firstPatience) // alice is slow, bob next
	for _, p := range []*player{alice, bob, carol} {
		p.deaf()
	}
	carol.delivers(A)
	s.gets("from one that was only told", g, A)
	alice.wants("her want-block may stand", cancel(A))
	bob.wants("his too", cancel(A))
	carol.idle("she knows")
	alice.delivers(A)
	if st := s.e.Stats(); st.DuplicateBlocks != 1 || st.UnrequestedBlocks != 1 {
		s.fail("%d duplicates and %d unrequested, want 1 from alice and 1 from carol", st.DuplicateBlocks, st.UnrequestedBlocks)
	}
}

func TestB36Unrequested(t *testing.T) {
	s := start(t, "a block that nobody wants is counted and goes no further")
	alice := s.peer("alice")
	alice.delivers(A)
	st := s.e.Stats()
	if st.UnrequestedBlocks != 1 || st.Delivered != 0 {
		s.fail("%d unrequested and %d delivered, want 1 and 0", st.UnrequestedBlocks, st.Delivered)
	}
	if p, _ := s.e.Peer("alice"); p.Unrequested != 1 {
		s.fail("alice sent %d unrequested blocks, want 1", p.Unrequested)
	}
}

func TestB13ReferenceIsNotProbedBehindItsBack(t *testing.T) {
	s := start(t, "a reference peer is never sent want-have while its want-block stands, for it would not answer; after a cancel it may be")
	alice := s.peer("alice")
	g := s.get(0, A)
	alice.wants("want-block stands", probe(A))
	s.drop(g)
	alice.wants("taken back", cancel(A))
	s.get(0, A)
	alice.wants("probed anew", probe(A))
	s.advance(time.Minute)
	for _, l := range alice.said {
		if l.verb == "want-have" {
			s.fail("alice was sent %v though want-block stands", l)
		}
	}
}

func TestFailedListIsForgotten(t *testing.T) {
	s := start(t, "after a failed message the peer may remember a want-block that we do not, so it is taken back first")
	alice := s.peer("alice")
	s.get(0, A)
	alice.wants("want-block stands", probe(A))
	alice.slow = true
	s.get(0, B)
	alice.breaks()
	alice.deaf()
	s.advance(time.Second)
	e := alice.last.List.Entries
	if len(e) < 3 || !e[0].Cancel || !e[1].Cancel {
		s.fail("the list begins with %v, want cancels", e)
	}
}

func TestFailuresBackOff(t *testing.T) {
	s := start(t, "a peer that cannot be reached is tried less and less often, a minute apart at most, and is never dropped", func(c *Config) { c.Searches = false })
	alice := s.peer("alice")
	alice.slow = true
	s.get(0, A)
	var gaps []time.Duration
	at := s.now
	for range 9 {
		alice.breaks()
		for len(alice.sends) == 0 {
			s.advance(time.Second)
			if s.now.Sub(at) > 2*time.Minute {
				s.fail("not tried for two minutes")
			}
		}
		gaps = append(gaps, s.now.Sub(at))
		at = s.now
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		if gaps[i] != want*time.Second {
			s.fail("tried after %v, want 1, 2, 4, … 60 s", gaps)
		}
	}
	alice.reads()
	s.advance(time.Second)
	if _, up := s.e.Peer("alice"); !up {
		s.fail("alice is gone")
	}
}

func TestAccount(t *testing.T) {
	s := start(t, "where a peer is paid is remembered while it is connected")
	alice := s.peer("alice")
	s.step(AccountIn{Peer: "alice", Account: []byte("12345678901234567890")})
	if p, _ := s.e.Peer("alice"); string(p.Account) != "12345678901234567890" {
		s.fail("the account is %q", p.Account)
	}
	alice.down()
	if _, up := s.e.Peer("alice"); up {
		s.fail("alice is still there")
	}
}

func TestMessagesThatFailTogether(t *testing.T) {
	s := start(t, "messages that were under way on several streams when the peer stopped reading count as one failure")
	alice := s.peer("alice")
	alice.slow = true
	s.step(Streams{Peer: alice.id, Epoch: alice.epoch, Streams: 8})
	x := many("x", 200)
	alice.asksQuietly(block(x...))
	s.store(x...)
	for range 2 {
		for len(alice.flights) > 0 {
			alice.readsBlocks(false)
		}
		s.advance(2 * time.Second)
		if len(alice.flights) == 0 {
			s.fail("alice is left alone after 2 s, want her to be tried again")
		}
	}
}

func TestAMessageThatEndsAfterThePeerCameBack(t *testing.T) {
	s := start(t, "what ends of messages to a peer that has left since counts for nothing, whether it went well or not")
	alice := s.peer("alice")
	alice.slow = true
	alice.asksQuietly(block(A))
	s.store(A)
	old := alice.flights[0]
	alice.down()
	alice.up()
	alice.asksQuietly(block(A))
	for _, epoch := range []uint64{old.Epoch, alice.epoch} {
		for _, ok := range []bool{true, false} {
			if epoch == alice.epoch && !ok {
				continue // that the peer cannot be reached is true of it now
			}
			s.step(Sent{Peer: alice.id, Epoch: epoch, Blocks: true, Message: old.Message, OK: ok})
			if st := s.e.Stats(); st.Flying != blockSize || st.BlocksSent != 0 || st.SendsFailed != 0 || st.Asks != 1 {
				s.fail("%+v, want one block under way and nothing else", st)
			}
		}
	}
	alice.readsBlocks(true)
	if st := s.e.Stats(); st.Flying != 0 || st.BlocksSent != 1 || st.Asks != 0 {
		s.fail("%+v, want one block sent", st)
	}
}
