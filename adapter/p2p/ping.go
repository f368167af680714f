package p2p

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	pings      = 3                // to find a latency out
	pingWithin = 10 * time.Second // all of them
	pingEvery  = 5 * time.Minute  // at the most
)

// measure has a peer that is up pinged if that has not been done lately. The host
// remembers what comes out.
func (a *attachment) measure(p peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.peers[p]
	if st == nil || a.closed {
		return
	}
	if now := time.Now(); st.pinged.IsZero() || now.Sub(st.pinged) > pingEvery {
		st.pinged = now
		a.calls.Go(func() { a.ping(p) })
	}
}

// ping measures the latency of a peer over a connection that exists. A peer that
// does not answer has none.
func (a *attachment) ping(p peer.ID) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(a.ctx, ServiceName), pingWithin)
	defer cancel()
	results := ping.Ping(ctx, a.net.host, p)
	for range pings {
		if r, ok := <-results; !ok || r.Error != nil {
			break
		}
	}
	cancel()
	for range results { // until the stream is closed
	}
}
