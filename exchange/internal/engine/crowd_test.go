package engine

import (
	"fmt"
	"testing"
	"time"
)

// What a peer can do to us by wanting what we want.

// every calls f once in a while, for script.meanwhile.
func (s *script) every(d time.Duration, f func()) func() {
	next := s.now.Add(d)
	return func() {
		if !s.now.Before(next) {
			next = s.now.Add(d)
			f()
		}
	}
}

// within fetches for a getter from one honest peer, and expects no more time than that.
func (s *script) within(limit time.Duration, g GetterID, honest *player) {
	s.t.Helper()
	began := s.now
	s.fetch(g, time.Minute, map[*player]time.Duration{honest: time.Millisecond})
	if d := s.now.Sub(began); d > limit {
		s.fail("it took %v, want at most %v", d, limit)
	}
}

func TestFellowThatSaysItAgain(t *testing.T) {
	s := start(t, "to announce one block again and again is no progress: what is left to such a fellow is taken back as from a silent one")
	mallory, bob := s.peer("mallory"), s.peer("bob")
	x := many("x", 500)
	mallory.asks(have(x...))
	g := s.get(0, x...)
	bob.has(x...)
	s.meanwhile = s.every(50*time.Millisecond, func() {
		for _, a := range x {
			if w := s.e.wants[a]; w != nil {
				for range 5 {
					mallory.has(a)
				}
				break
			}
		}
	})
	s.within(7*time.Second, g, bob) // one time-out of a peer of which nothing is known
}

func TestFellowThatKeepsNoPromise(t *testing.T) {
	s := start(t, "a fellow that announces a block now and then, and delivers none of them, loses what is left to it when the first is overdue")
	mallory, bob := s.peer("mallory"), s.peer("bob")
	x := many("x", 500)
	mallory.asks(have(x...))
	g := s.get(0, x...)
	bob.has(x...)
	s.meanwhile = s.every(400*time.Millisecond, func() {
		p := s.e.peers["mallory"]
		if w := p.left.head; w != nil {
			mallory.has(w.address)
		}
	})
	s.within(8*time.Second, g, bob)
}

func TestFellowThatTakesItsWordBack(t *testing.T) {
	s := start(t, "a fellow that announces a block and then has it not makes no progress either")
	mallory, bob := s.peer("mallory"), s.peer("bob")
	x := many("x", 500)
	mallory.asks(have(x...))
	g := s.get(0, x...)
	bob.has(x...)
	s.meanwhile = s.every(100*time.Millisecond, func() {
		if w := s.e.peers["mallory"].left.head; w != nil {
			a := w.address
			mallory.has(a)
			mallory.hasNot(a)
		}
	})
	s.within(2500*time.Millisecond, g, bob)
}

func TestSilentFellowAtAColdStart(t *testing.T) {
	s := start(t, "a silent fellow is relied on for about a second, also as long as nothing is known of who has the block, or that one is slow")
	mallory, bob, slow := s.peer("mallory"), s.peer("bob"), s.peer("slow")
	s.get(0, A)
	slow.has(A)
	s.advance(4 * time.Second)
	slow.delivers(A)
	x := many("x", 8)
	mallory.asks(have(x...))
	g := s.get(0, x...)
	bob.has(x...)
	slow.has(x...)
	if s.e.leaving == 0 {
		s.fail("nothing is left to mallory, want some")
	}
	s.within(1500*time.Millisecond, g, bob)
}

func TestOneWhoAnnouncesAgainForAFellow(t *testing.T) {
	s := start(t, "a peer that repeats what it has does not give a silent fellow more time")
	mallory, friend, bob := s.peer("mallory"), s.peer("friend"), s.peer("bob")
	x := many("x", 20)
	mallory.asks(have(x...))
	g := s.get(0, x...)
	bob.has(x...)
	s.meanwhile = s.every(100*time.Millisecond, func() { friend.has(x...) })
	began := s.now
	s.fetch(g, time.Minute, map[*player]time.Duration{bob: time.Millisecond, friend: time.Millisecond})
	if d := s.now.Sub(began); d > 2*time.Second {
		s.fail("it took %v, want about a second", d)
	}
}

func TestLargeCrowd(t *testing.T) {
	s := start(t, "of a large crowd some are told what we want, and only to those is anything left")
	bob := s.peer("bob")
	x := many("x", 200)
	var crowd []*player
	join := func(n int) {
		for range n {
			p := s.peer(fmt.Sprint("fellow", len(crowd)))
			p.deaf()
			crowd = append(crowd, p)
			p.asks(have(x...))
		}
	}
	join(30)
	bob.has(x...) // nobody asked
	s.get(0, x...)
	bob.has(x...)
	join(30)
	for _, w := range s.e.wants {
		told := 0
		for _, l := range w.links {
			if l.peer.asking > 0 && max(l.told, l.queued) >= toldHave {
				told++
			}
		}
		if told > maxFellows {
			s.fail("%d fellows are told of %s, want at most %d", told, spell(w.address), maxFellows)
		}
		if w.state == left {
			if l := w.link(w.to); l == nil || max(l.told, l.queued) < toldHave {
				s.fail("%s is left to %s, which does not know that we want it", spell(w.address), who(w.to.id))
			}
		}
	}
	if s.e.leaving == 0 {
		s.fail("nothing is left to anybody, want some")
	}
}
