package borrow

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/codexchange/codexchange/exchange/errs"
)

// bus is libp2p's event bus, whose subscriptions end with the node, so that a
// subscriber who has forgotten its own holds nobody up.
type bus struct {
	event.Bus
	connectedness, identified, protocols event.Emitter

	mu     sync.Mutex
	closed bool
	subs   map[*subscription]struct{}
}

func newBus() (*bus, error) {
	b := &bus{Bus: eventbus.NewBus(), subs: make(map[*subscription]struct{})}
	for _, e := range []struct {
		emitter *event.Emitter
		of      any
	}{
		{&b.connectedness, new(event.EvtPeerConnectednessChanged)},
		{&b.identified, new(event.EvtPeerIdentificationCompleted)},
		{&b.protocols, new(event.EvtPeerProtocolsUpdated)},
	} {
		var err error
		if *e.emitter, err = b.Emitter(e.of); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Subscribe may wait, as libp2p's does, while an Emit waits for a subscriber.
func (b *bus) Subscribe(types any, opts ...event.SubscriptionOpt) (event.Subscription, error) {
	sub, err := b.Bus.Subscribe(types, opts...)
	if err != nil {
		return nil, err
	}
	s := &subscription{sub, b}
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.subs[s] = struct{}{}
	}
	b.mu.Unlock()
	if closed {
		_ = sub.Close() // cannot fail
		return nil, errs.E(errs.Closed, errs.Caller, "subscribe", "to events of the host", nil)
	}
	return s, nil
}

// close ends all subscriptions, and with them an Emit that waits for one.
func (b *bus) close() {
	b.mu.Lock()
	b.closed = true
	subs := b.subs
	b.subs = nil
	b.mu.Unlock()
	for s := range subs {
		_ = s.Subscription.Close() // cannot fail
	}
}

type subscription struct {
	event.Subscription
	bus *bus
}

func (s *subscription) Close() error {
	s.bus.mu.Lock()
	delete(s.bus.subs, s)
	s.bus.mu.Unlock()
	return s.Subscription.Close()
}
