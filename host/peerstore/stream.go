package peerstore

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// maxStreamed is the number of addresses that wait for a reader of AddrStream.
// When there are more, the oldest is left out.
const maxStreamed = 1024

// A stream is one call of AddrStream.
type stream struct {
	waiting []multiaddr.Multiaddr // guarded by Store.mu
	wake    chan struct{}         // capacity 1
}

// AddrStream returns a channel of the addresses of a peer: those it has, then
// each as it is added. The channel is closed when ctx ends or the Store closes.
func (s *Store) AddrStream(ctx context.Context, p peer.ID) <-chan multiaddr.Multiaddr {
	out := make(chan multiaddr.Multiaddr)
	st := &stream{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		close(out)
		return out
	}
	if e := s.lookup(p); e != nil {
		st.waiting = e.visible()
	}
	if s.streams[p] == nil {
		s.streams[p] = make(map[*stream]struct{})
	}
	s.streams[p][st] = struct{}{}
	s.working.Go(func() {
		defer close(out)
		s.stream(ctx, st, out)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams[p], st)
		if len(s.streams[p]) == 0 {
			delete(s.streams, p)
		}
	})
	return out
}

// stream passes on what waits, until ctx or the Store ends.
func (s *Store) stream(ctx context.Context, st *stream, out chan<- multiaddr.Multiaddr) {
	for {
		s.mu.Lock()
		waiting := st.waiting
		st.waiting = nil
		s.mu.Unlock()
		for _, addr := range waiting {
			select {
			case out <- addr:
			case <-ctx.Done():
				return
			case <-s.done:
				return
			}
		}
		if len(waiting) > 0 {
			continue
		}
		select {
		case <-st.wake:
		case <-ctx.Done():
			return
		case <-s.done:
			return
		}
	}
}

// publish gives an address that has become visible to the streams of its peer.
func (s *Store) publish(p peer.ID, addr multiaddr.Multiaddr) {
	for st := range s.streams[p] {
		if len(st.waiting) >= maxStreamed {
			st.waiting = append(st.waiting[:0], st.waiting[1:]...)
		}
		st.waiting = append(st.waiting, addr)
		wake(st.wake)
	}
}
