package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/wire"
)

// The tests whose names begin with a B and a number hold the behaviours of
// docs/behaviours.md. Those here are of behaviours that no other file is about.

func TestB4WhoShowsSomethingJoins(t *testing.T) {
	s := start(t, "a peer that announces a block, or delivers one, is asked by the session from then on, and others are not")
	alice, bob, carol := s.peer("alice"), s.peer("bob"), s.peer("carol")
	s.get(1, A, B)
	alice.delivers(A)
	bob.has(B)
	bob.delivers(B)
	for _, p := range []*player{alice, bob, carol} {
		p.deaf()
	}
	s.get(1, C, D)
	if n := len(alice.said) + len(bob.said); n < 2 {
		s.fail("alice and bob were told %d lines, want C and D asked of them", n)
	}
	carol.idle("she has shown nothing")
}

func TestB7AnEndedRequestIsTakenBack(t *testing.T) {
	s := start(t, "when a request ends, what nobody else waits for is taken back from all who were told")
	alice, bob := s.peer("alice"), s.peer("bob")
	g := s.get(1, A, B)
	s.get(2, B)
	alice.deaf()
	bob.deaf()
	s.drop(g)
	alice.wants("A is over, B is not", cancel(A))
	bob.wants("A is over, B is not", cancel(A))
}

func TestB8BroadcastControl(t *testing.T) {
	s := start(t, "in a large neighbourhood those are told that are near or have shown something, and of the others a few, picked at random",
		func(c *Config) { c.BroadcastPeers = 20 })
	near := &player{s: s, id: "near", prices: map[wire.Address]wire.Price{}}
	var far []*player
	for i := range 60 {
		far = append(far, s.peer(fmt.Sprint("far", i)))
	}
	s.players[near.id] = near
	s.order = append(s.order, near)
	near.epoch = 1000
	s.step(PeerUp{Peer: near.id, Epoch: 1000, Near: true})
	s.get(1, A)
	told := func() (list []*player) {
		for _, p := range far {
			if len(p.said) > 0 {
				list = append(list, p)
			}
			p.deaf()
		}
		return list
	}
	near.wants("always", probe(A))
	if n := len(told()); n != 20 {
		s.fail("%d strangers were told while nobody had shown anything, want the bound of 20", n)
	}
	far[3].delivers(A)
	near.deaf()
	told()
	random := map[*player]bool{}
	for i := range 20 {
		s.get(0, many("x", 20)[i])
		if near.said = nil; len(far[3].said) == 0 {
			s.fail("who has shown something was not told")
		}
		list := told()
		if len(list) > 1+randomPeers {
			s.fail("%d were told, want the one that has shown something and %d others", len(list), randomPeers)
		}
		for _, p := range list {
			random[p] = true
		}
	}
	if len(random) < 30 {
		s.fail("only %d of 60 were ever told in 20 requests, want most", len(random))
	}
}

func TestB12SearchesOfAllSessions(t *testing.T) {
	s := start(t, "many sessions that want what cannot be found search for it no more often than one")
	n := 0
	for range 300 {
		s.get(0, A)
		s.advance(100 * time.Millisecond)
		for _, k := range s.searched {
			n++
			s.step(Searched{Key: k})
		}
		s.searched = nil
	}
	// 3 s, 3, 6, 12 and 24 apart: that is 4 in 30 s.
	if n < 2 || n > 5 {
		s.fail("%d searches in 30 s, want about 4", n)
	}
}

func TestB15ALatePeerRises(t *testing.T) {
	for _, measured := range []bool{false, true} {
		s := start(t, "a peer that comes late, or was slow at first, and is ten times as fast, delivers most in the end")
		alice := s.peer("alice")
		var bob *player
		x := many("x", 1200)
		speed := map[*player]time.Duration{alice: 10 * time.Millisecond}
		if measured {
			bob = s.peer("bob")
			speed[bob] = 100 * time.Millisecond
		}
		g := s.get(1, x[:200]...)
		for _, p := range s.order {
			p.has(x[:200]...)
		}
		s.fetch(g, time.Minute, speed)
		if !measured {
			bob = s.peer("bob")
		}
		speed[bob] = time.Millisecond
		s.advance(staleRate + time.Second)
		h := s.get(1, x[200:]...)
		alice.has(x[200:]...)
		bob.has(x[200:]...)
		n := s.fetch(h, time.Minute, speed)
		if n[bob] < 3*n[alice] {
			t.Errorf("slow at first: %v: bob delivered %d and alice %d, want bob most", measured, n[bob], n[alice])
		}
	}
}

func TestB16Hedge(t *testing.T) {
	s := start(t, "one of the last blocks that is late for its peer's own measure is asked of a second, and whoever is first is good")
	alice, bob := s.peer("alice"), s.peer("bob")
	for _, p := range []*player{alice, bob} { // both are known to answer within 10 ms
		for i := range 4 {
			a := many(string(p.id), 4)[i]
			s.get(1, a)
			for _, q := range s.order {
				q.deaf()
			}
			p.has(a)
			s.advance(10 * time.Millisecond)
			p.delivers(a)
		}
	}
	alice.deaf()
	bob.deaf()
	g := s.get(2, A)
	alice.has(A)
	bob.has(A)
	first, second := alice, bob
	if s.e.wants[A].peer.id == bob.id {
		first, second = bob, alice
	}
	first.deaf()
	second.deaf()
	s.advance(minLate - time.Millisecond)
	second.idle("it is not late yet")
	s.advance(100 * time.Millisecond)
	second.wants("it is now", block(A))
	first.idle("who may still deliver is not told")
	second.delivers(A)
	s.gets("from the second", g, A)
	first.wants("it is over", cancel(A))
	if n := s.e.Stats().Hedged; n != 1 {
		s.fail("%d were hedged, want 1", n)
	}
}

func TestB16HedgesAreBounded(t *testing.T) {
	s := start(t, "a slow peer does not have everything asked for twice: only the last few of a request, and of them some")
	alice, bob := s.peer("alice"), s.peer("bob")
	x := many("x", 200)
	g := s.get(1, x...)
	alice.has(x...)
	bob.has(x[100:]...)
	s.fetch(g, time.Minute, map[*player]time.Duration{alice: 40 * time.Millisecond, bob: 2 * time.Millisecond})
	if n := s.e.Stats().Hedged; n > maxHedges {
		s.fail("%d of 200 were hedged, want %d at most", n, maxHedges)
	}
}

func TestB17SixteenMisses(t *testing.T) {
	s := start(t, "a member that lacks what it is asked about sixteen times in a row leaves the session")
	alice, bob := s.peer("alice"), s.peer("bob")
	s.get(1, A, B)
	alice.has(A)
	bob.has(B)
	alice.delivers(A)
	bob.delivers(B)
	for i := range 2 * maxMisses {
		a := many("x", 2*maxMisses)[i]
		s.get(1, a)
		bob.hasNot(a)
		alice.has(a)
		alice.delivers(a)
	}
	for _, x := range s.e.sessions[1].members {
		if x.peer.id == bob.id {
			s.fail("bob is a member still, after %d misses", x.misses)
		}
	}
}

func TestB24InTheOrderAsked(t *testing.T) {
	s := start(t, "a peer is served in the order in which it asked")
	alice := s.peer("alice")
	x := many("x", 100)
	s.store(x...)
	alice.asks(block(x[50:]...))
	alice.asks(block(x[:50]...))
	if want := slices.Concat(x[50:], x[:50]); !slices.Equal(alice.served, want) {
		s.fail("alice was served %v, want %v", text(alice.served...), text(want...))
	}
}

func TestB25LeastServedFirst(t *testing.T) {
	s := start(t, "the next message goes to the peer that was sent least since it came into the line, and a newcomer does not wait behind what others were promised",
		func(c *Config) { c.ServingBytes = 1 })
	x := many("x", 400)
	s.store(x...)
	players := s.peers("a", "b", "c")
	sent := map[*player]int{}
	serve := func(n int) {
		for range n {
			for _, p := range players {
				if len(p.flights) > 0 {
					sent[p] += len(p.flights[0].Blocks)
					p.readsBlocks(true)
					break
				}
			}
		}
	}
	for _, p := range players[:2] {
		p.slow = true
		p.asks(block(x...))
	}
	serve(10)
	players[2].slow = true
	players[2].asks(block(x...))
	serve(9)
	a, b, c := sent[players[0]], sent[players[1]], sent[players[2]]
	const each = firstMessage / (64 << 10) // blocks in a message
	if c < 2*each || c > 4*each || a-b > each || b-a > each {
		s.fail("a, b and c were sent %d, %d and %d blocks, want a and b the same, and c a third of the last nine messages", a, b, c)
	}
}

func TestB25Score(t *testing.T) {
	s := start(t, "the score of a peer is the worth of its connection and its share of what is sent", func(c *Config) {
		c.ServingBytes = 1
		c.Score = func(p PeerStats) int {
			if p.Peer == "dear" {
				return 30
			}
			return 10
		}
	})
	x := many("x", 400)
	s.store(x...)
	dear, other := s.peer("dear"), s.peer("other")
	for _, p := range []*player{dear, other} {
		p.slow = true
		p.asks(block(x...))
	}
	sent := map[*player]int{}
	for range 24 {
		for _, p := range []*player{dear, other} {
			if len(p.flights) > 0 {
				sent[p] += len(p.flights[0].Blocks)
				p.readsBlocks(true)
				break
			}
		}
	}
	if dear.value != 30 || other.value != 10 {
		s.fail("the connections are worth %d and %d, want 30 and 10", dear.value, other.value)
	}
	if n, m := sent[dear], sent[other]; n < 2*m || n > 4*m {
		s.fail("%d blocks went to the one and %d to the other, want three times as many", n, m)
	}
}

func TestB25WhatOthersLackFirst(t *testing.T) {
	s := start(t, "peers that ask for the same blocks are sent different ones first, and none waits for ever",
		func(c *Config) { c.ServingBytes = 1 })
	x := many("x", 32)
	s.store(x...)
	players := s.peers("a", "b", "c", "d")
	for _, p := range players {
		p.slow = true
	}
	for _, p := range players {
		p.asks(block(x...))
	}
	first := map[wire.Address]bool{}
	for n := 0; ; n++ {
		any := false
		for _, p := range players {
			if len(p.flights) == 0 {
				continue
			}
			any = true
			if n < 2 {
				for _, b := range p.flights[0].Blocks {
					first[b.Address] = true
				}
			}
			p.readsBlocks(true)
		}
		if !any {
			break
		}
	}
	if len(first) < 24 {
		s.fail("the first two messages to each of 4 had %d blocks among them, want most of 32", len(first))
	}
	for _, p := range players {
		p.gets("everything in the end", x...)
	}
}

func TestB22Filtered(t *testing.T) {
	s := start(t, "where somebody may refuse, a block that comes is looked up before it is served", func(c *Config) { c.Filtered = true })
	alice := s.peer("alice")
	alice.asksQuietly(block(A, B))
	s.stored[B] = blockSize // A is refused: the store that is asked does not show it
	s.step(Stored{Blocks: []Block{{Address: A, Size: blockSize}, {Address: B, Size: blockSize}}})
	alice.gets("what she may have", B)
}
