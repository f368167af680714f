package main

import (
	"container/heap"
	"fmt"
	"slices"
	"testing"
	"time"
)

// Bytes pass at the rate, one after the other, and what would wait longer than the
// queue is dropped and takes no time.
func TestShaper(t *testing.T) {
	s := shaper{rate: 1000, queue: 2 * time.Second}
	start := time.Unix(0, 0)
	for i, c := range []struct {
		at   time.Duration
		n    int
		want time.Duration
		ok   bool
	}{
		{0, 1000, 1 * time.Second, true},
		{0, 1500, 2500 * time.Millisecond, true},
		{0, 1, 0, false},
		{time.Second, 500, 3 * time.Second, true},
		{time.Minute, 1000, 61 * time.Second, true},
	} {
		got, ok := s.pass(start.Add(c.at), c.n)
		if ok != c.ok || ok && got.Sub(start) != c.want {
			t.Errorf("packet %d has passed at %v, %v, want %v, %v", i+1, got.Sub(start), ok, c.want, c.ok)
		}
	}
}

// Of two senders, one with a long queue of its own, neither keeps the other's packets
// from a way in that is free: they pass in the order in which they get there.
func TestWayInIsSharedAsPacketsCome(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	d := &device{down: shaper{rate: 1000, queue: 2 * time.Second}}
	for _, p := range []packet{ // in the order in which they are sent
		{at(60 * time.Second), 1000, []byte("waited at its sender")},
		{at(10 * time.Second), 1000, []byte("did not wait")},
		{at(10500 * time.Millisecond), 1000, []byte("came while the way in was busy")},
		{at(10600 * time.Millisecond), 1000, []byte("the queue is not full yet")},
		{at(10700 * time.Millisecond), 1000, []byte("the queue is full")},
	} {
		heap.Push(&d.far, p)
	}
	if n := d.admit(at(9 * time.Second)); n != 0 || len(d.near) != 0 {
		t.Errorf("%d packets dropped and %d passed before any has come, want none", n, len(d.near))
	}
	if n := d.admit(at(time.Hour)); n != 1 {
		t.Errorf("%d packets dropped, want 1", n)
	}
	var got []string
	for _, p := range d.near {
		got = append(got, fmt.Sprint(p.at.Sub(start), " ", string(p.data)))
	}
	want := []string{
		"11s did not wait",
		"12s came while the way in was busy",
		"13s the queue is not full yet",
		"1m1s waited at its sender",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A packet goes to the node of its address and counts as long as it would be on a
// wire, where each segment has headers.
func TestRoute(t *testing.T) {
	l := &link{devices: make([]*device, 2)}
	packet := func(size int, last byte, segment int) []byte {
		p := make([]byte, virtioHeader+size)
		p[virtioHeader] = 4 << 4
		p[virtioHeader+19] = last
		if segment > 0 {
			p[1], p[4], p[5] = 1, byte(segment), byte(segment>>8)
		}
		return p
	}
	for _, c := range []struct {
		name     string
		p        []byte
		to, size int
		ok       bool
	}{
		{"whole", packet(1500, 2, 0), 1, 1500, true},
		{"three segments", packet(3500, 1, 1448), 0, 3500 + 2*tcpHeaders, true},
		{"to nobody", packet(100, 3, 0), 2, 100, false},
		{"too short", packet(100, 1, 0)[:virtioHeader+19], 0, 0, false},
		{"not IPv4", make([]byte, 100), 0, 0, false},
	} {
		to, size, ok := l.route(c.p)
		if to != c.to || size != c.size || ok != c.ok {
			t.Errorf("%s: goes to %d, %d bytes, %v, want %d, %d, %v", c.name, to, size, ok, c.to, c.size, c.ok)
		}
	}
}

// Nothing comes sooner than the link lets it.
func TestLinkDelays(t *testing.T) {
	if err := linkPossible(t.Context()); err != nil {
		t.Skip(err)
	}
	for _, r := range measure(t, "-exchanges", "floor,blockexc", "-only", "20ms/list/64KiB", "rtt") {
		if v := r.Figures["first_ms"]; v < 20 {
			t.Errorf("%s: first block came after %v ms, want 20 or more: a round trip", r.Exchange, v)
		}
	}
}
