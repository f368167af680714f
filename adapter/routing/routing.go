// Package routing is exchange.Router over libp2p's content discovery: a DHT, a
// delegated HTTP router, or several as one. It drops what an exchange has no use
// for, and sees to it that a search ends.
//
// When to search, and how many searches may run at once, is for the exchange to
// decide; caching and addresses are the router's.
package routing

import (
	"context"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/codexchange/codexchange/exchange"
)

// A Router is exchange.Router over content discovery, made by New. Its methods
// may be called from any goroutine.
type Router struct {
	self peer.ID
	r    routing.ContentDiscovery
}

var _ exchange.Router = (*Router)(nil)

// New searches with r, on behalf of the node self.
func New(self peer.ID, r routing.ContentDiscovery) *Router { return &Router{self: self, r: r} }

// FindProviders sends each provider once, as it was named first, and never this
// node. Nothing is sent if max is 0 or less. The search is cancelled when max
// providers have been sent.
//
// One goroutine goes with each search. Once the router has returned it closes the
// channel when ctx ends, even if nobody receives; then it waits for the router to
// close its own. The router has to return, and to close, when its context ends.
func (r *Router) FindProviders(ctx context.Context, c cid.Cid, max int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo)
	if max <= 0 || !c.Defined() || ctx.Err() != nil {
		close(out)
		return out
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		// Asked for all, because some of those it finds do not count. Routers that are
		// made of others return only when the first of these has an answer.
		found := r.r.FindProvidersAsync(ctx, c, 0)
		r.forward(ctx, out, found, max)
		close(out)
		cancel()
		if found != nil {
			for range found { // a router may be about to send
			}
		}
	}()
	return out
}

func (r *Router) forward(ctx context.Context, out chan<- peer.AddrInfo, found <-chan peer.AddrInfo, max int) {
	sent := make(map[peer.ID]struct{})
	for len(sent) < max {
		var p peer.AddrInfo
		select {
		case <-ctx.Done():
			return
		case info, ok := <-found:
			if !ok {
				return
			}
			p = info
		}
		if _, again := sent[p.ID]; again || p.ID == "" || p.ID == r.self {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case out <- p:
			sent[p.ID] = struct{}{}
		}
	}
}
