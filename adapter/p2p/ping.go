package p2p

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	pings      = 3                // to find a latency out; the shortest counts
	pingWithin = 10 * time.Second // all of them
	pingEvery  = 5 * time.Minute  // at the most
)

// latency is what pings have measured of a peer that is up, 0 if they have not. It
// has the peer pinged if that has not been done lately.
func (a *attachment) latency(p peer.ID) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.peers[p]
	if st == nil || a.closed {
		return 0
	}
	if now := time.Now(); st.pinged.IsZero() || now.Sub(st.pinged) > pingEvery {
		st.pinged = now
		a.calls.Go(func() { a.ping(st) })
	}
	return st.rtt
}

// ping measures the latency of a peer over a connection that exists. A peer that
// does not answer has none.
func (a *attachment) ping(st *peerState) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(a.ctx, ServiceName), pingWithin)
	defer cancel()
	best := time.Duration(0)
	results := ping.Ping(ctx, a.net.host, st.id)
	for range pings {
		r, ok := <-results
		if !ok || r.Error != nil {
			break
		}
		if best == 0 || r.RTT < best {
			best = r.RTT
		}
	}
	cancel()
	for range results { // until the stream is closed
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if best > 0 {
		st.rtt = best
	}
}
