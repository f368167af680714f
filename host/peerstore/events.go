package peerstore

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
)

// An Event is one of EvtPeerDiscovered, EvtPeerAddrsChanged and
// EvtPeerProtocolsChanged. Its slices are shared: nobody changes them.
type Event interface {
	// Name is what the design of the peer store calls the event.
	Name() string
	// Of is the peer that the event is about.
	Of() peer.ID
}

// EvtPeerDiscovered tells of a peer of which nothing was known before. What is
// known now follows in other events.
type EvtPeerDiscovered struct{ Peer peer.ID }

// EvtPeerAddrsChanged tells that the set of a peer's addresses has changed.
type EvtPeerAddrsChanged struct {
	Peer           peer.ID
	Addrs          []multiaddr.Multiaddr // all of them, now
	Added, Removed []multiaddr.Multiaddr // since the last event of this kind
}

// EvtPeerProtocolsChanged tells that the set of protocols that a peer speaks has
// changed.
type EvtPeerProtocolsChanged struct {
	Peer           peer.ID
	Protocols      []protocol.ID // all of them, now
	Added, Removed []protocol.ID // since the last event of this kind
}

func (EvtPeerDiscovered) Name() string       { return "peer" }
func (EvtPeerAddrsChanged) Name() string     { return "change:multiaddrs" }
func (EvtPeerProtocolsChanged) Name() string { return "change:protocols" }

func (e EvtPeerDiscovered) Of() peer.ID       { return e.Peer }
func (e EvtPeerAddrsChanged) Of() peer.ID     { return e.Peer }
func (e EvtPeerProtocolsChanged) Of() peer.ID { return e.Peer }

// A Mode says what a subscription begins with.
type Mode uint8

const (
	// Changes begins with the next change.
	Changes Mode = iota
	// Replay begins with what is known, as if each peer had just been found.
	Replay
)

// A Subscription tells one reader what changes. It is not a queue of what
// happened: for each peer that has changed it holds what its reader believes, and
// works out the difference when the reader asks. So a slow reader misses steps on
// the way and never the result, costs no more than an entry a peer, and keeps
// nobody waiting; and a change that was undone before it was told is not told.
//
// Peers come in the order of their first untold change, and the events of a peer
// in the order peer, change:multiaddrs, change:protocols.
type Subscription struct {
	store *Store
	wake  chan struct{} // capacity 1
	done  chan struct{} // closed by Close

	// Guarded by Store.mu.
	pending map[peer.ID]*list.Element // of told
	order   list.List
	ready   []Event // of the peer that was told last
	closed  bool
}

// told is what a reader believes of a peer.
type told struct {
	peer      peer.ID
	known     bool
	addrs     []multiaddr.Multiaddr // sorted
	protocols []protocol.ID         // sorted
}

// Subscribe returns a subscription, which its reader closes.
func (s *Store) Subscribe(mode Mode) *Subscription {
	sub := &Subscription{
		store: s, wake: make(chan struct{}, 1), done: make(chan struct{}), pending: make(map[peer.ID]*list.Element),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return sub // whose Next sees that the Store is closed
	}
	s.subs[sub] = struct{}{}
	if mode == Replay {
		for p := range s.peers {
			sub.pend(told{peer: p})
		}
	}
	return sub
}

// Next waits for the next event. It fails when ctx ends, and with errs.Closed
// when the Subscription or the Store is closed. Only one goroutine calls it at a
// time.
func (sub *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		select {
		case <-sub.done:
			return nil, errs.E(errs.Closed, errs.Caller, "next event", "", nil)
		case <-sub.store.done:
			return nil, errs.E(errs.Closed, errs.Ours, "next event", "", nil)
		case <-ctx.Done():
			return nil, ctx.Err()
		default:
		}
		if e := sub.take(); e != nil {
			return e, nil
		}
		select {
		case <-sub.wake:
		case <-sub.done:
		case <-sub.store.done:
		case <-ctx.Done():
		}
	}
}

// Close ends the subscription, and a Next that waits.
func (sub *Subscription) Close() {
	sub.store.mu.Lock()
	defer sub.store.mu.Unlock()
	if !sub.closed {
		sub.closed = true
		close(sub.done)
		delete(sub.store.subs, sub)
	}
}

// take returns the next event, or nil if there is none now.
func (sub *Subscription) take() Event {
	s := sub.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(sub.ready) == 0 {
		front := sub.order.Front()
		if front == nil {
			return nil
		}
		before := front.Value.(told)
		now := told{peer: before.peer}
		if e := s.lookup(before.peer); e != nil {
			now.known, now.addrs, now.protocols = true, e.visible(), e.protocols
		}
		// Looking may have changed the entry, or dropped it, and the entry with it.
		if e, still := sub.pending[before.peer]; still {
			sub.order.Remove(e)
			delete(sub.pending, before.peer)
			sub.ready = difference(before, now)
		}
	}
	e := sub.ready[0]
	sub.ready = sub.ready[1:]
	return e
}

func (sub *Subscription) pend(t told) {
	sub.pending[t.peer] = sub.order.PushBack(t)
	wake(sub.wake)
}

// difference is the events that lead from one belief to another.
func difference(before, now told) []Event {
	var events []Event
	if now.known && !before.known {
		events = append(events, EvtPeerDiscovered{Peer: now.peer})
	}
	if added, removed := diff(before.addrs, now.addrs, multiaddr.Multiaddr.Compare); len(added)+len(removed) > 0 {
		events = append(events, EvtPeerAddrsChanged{Peer: now.peer, Addrs: now.addrs, Added: added, Removed: removed})
	}
	if added, removed := diff(before.protocols, now.protocols, cmp.Compare[protocol.ID]); len(added)+len(removed) > 0 {
		events = append(events, EvtPeerProtocolsChanged{Peer: now.peer, Protocols: now.protocols, Added: added, Removed: removed})
	}
	return events
}

// diff compares two sorted sets.
func diff[T any](before, now []T, compare func(T, T) int) (added, removed []T) {
	for len(before) > 0 && len(now) > 0 {
		switch c := compare(before[0], now[0]); {
		case c < 0:
			removed, before = append(removed, before[0]), before[1:]
		case c > 0:
			added, now = append(added, now[0]), now[1:]
		default:
			before, now = before[1:], now[1:]
		}
	}
	return append(added, now...), append(removed, before...)
}

// changing is called before what readers see of an entry changes.
func (s *Store) changing(e *entry) {
	t, made := told{peer: e.id, known: true}, false
	for sub := range s.subs {
		if _, already := sub.pending[e.id]; already {
			continue
		}
		if !made {
			t.addrs, t.protocols, made = e.visible(), e.protocols, true
		}
		sub.pend(t)
	}
}

// tell notes what readers believe of a peer, for those that have no note of it.
func (s *Store) tell(p peer.ID, t told) {
	t.peer = p
	for sub := range s.subs {
		if _, already := sub.pending[p]; !already {
			sub.pend(t)
		}
	}
}

// untell spares readers the news of a peer that is gone before they heard of it.
func (s *Store) untell(p peer.ID) {
	for sub := range s.subs {
		if e, pending := sub.pending[p]; pending && !e.Value.(told).known {
			sub.order.Remove(e)
			delete(sub.pending, p)
		}
	}
}

// Attach emits events on a host's bus from now on, and those that came up since
// New. It can be done once.
//
// A change of the protocols of a connected peer is emitted as libp2p's own event as
// well, so that those who follow that hear of it whoever made it. Of what identify
// push brings they hear twice.
func (s *Store) Attach(bus event.Bus) error {
	const op = "attach peerstore to event bus"
	s.mu.Lock()
	closed, taken := s.closed, s.forwarding != nil
	if !closed && !taken {
		s.forwarding = make(chan struct{})
	}
	s.mu.Unlock()
	switch {
	case closed:
		return errs.E(errs.Closed, errs.Caller, op, "", nil)
	case taken:
		return errs.Errorf(errs.Invalid, errs.Caller, op, "got a second bus, want one")
	}
	var emitters []event.Emitter
	for _, of := range []any{new(EvtPeerDiscovered), new(EvtPeerAddrsChanged), new(EvtPeerProtocolsChanged), new(event.EvtPeerProtocolsUpdated)} {
		e, err := bus.Emitter(of) // may wait for subscribers of the bus: not under the lock
		if err != nil {
			closeAll(emitters)
			close(s.forwarding)
			return errs.E(errs.Other, errs.Caller, op, "", err)
		}
		emitters = append(emitters, e)
	}
	go s.forward(emitters)
	return nil
}

func closeAll(emitters []event.Emitter) {
	for _, e := range emitters {
		_ = e.Close() // fails only when done twice
	}
}

// forward passes events on to the bus. Emit waits for the slowest subscriber of
// the bus; what is to be told waits with it, as in any Subscription.
func (s *Store) forward(emitters []event.Emitter) {
	defer close(s.forwarding)
	defer closeAll(emitters)
	for {
		e, err := s.bus.Next(context.Background())
		if err != nil {
			return
		}
		switch e := e.(type) {
		case EvtPeerDiscovered:
			err = emitters[0].Emit(e)
		case EvtPeerAddrsChanged:
			err = emitters[1].Emit(e)
		case EvtPeerProtocolsChanged:
			err = emitters[2].Emit(e)
			if s.isConnected(e.Peer) {
				err = errors.Join(err, emitters[3].Emit(event.EvtPeerProtocolsUpdated{Peer: e.Peer, Added: e.Added, Removed: e.Removed}))
			}
		}
		if err != nil {
			s.options.Log.Error("emit event of peerstore", "event", e.Name(), "peer", e.Of(), "err", err)
		}
	}
}

func (s *Store) isConnected(p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.peers[p]
	return e != nil && e.conns > 0
}

// awaitForward waits for forward, but not for ever: a subscriber of the bus that
// neither reads nor closes keeps it in Emit.
func (s *Store) awaitForward(forwarding <-chan struct{}) {
	const patience = time.Second
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-forwarding:
	case <-timer.C:
		s.options.Log.Warn("close peerstore: a subscriber of the event bus does not read", "waited", patience)
	}
}
