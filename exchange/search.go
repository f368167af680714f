package exchange

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/spans"
)

const (
	searchesAtOnce = 8                // of all sessions together
	searchesWait   = 1024             // searches that may wait; the session asks again later
	searchWithin   = 10 * time.Second // for the router
	dialsAtOnce    = 4                // of one search
	dialWithin     = 10 * time.Second // for one provider
	dialAgain      = time.Minute      // after a dial that failed
)

// search starts the searches that wait, as far as there may be more. Each is a
// goroutine that ends with its time limits at the latest.
func (l *loop) search() {
	for len(l.searches) > 0 && l.searching < searchesAtOnce {
		key := l.searches[0]
		l.searches = l.searches[1:]
		l.searching++
		ctx := l.searchContext(key)
		l.exchange.wg.Go(func() {
			l.finder.find(ctx, key)
			l.exchange.post(input{event: engine.Searched{Key: key}})
		})
	}
}

// A finder looks for providers and connects to them. It may be used from any
// goroutine.
type finder struct {
	exchange *Exchange

	mu     sync.Mutex
	failed map[peer.ID]time.Time // when the dial failed; the old ones are thrown out
}

func newFinder(e *Exchange) *finder {
	return &finder{exchange: e, failed: make(map[peer.ID]time.Time)}
}

// find asks the router for providers of key and connects to them, until there
// are enough or the time is over. What they have shows when they are up.
func (f *finder) find(closing context.Context, key cid.Cid) {
	e := f.exchange
	closing, span := spans.Start(closing, "exchange.FindProviders")
	span.Cid(key)
	defer span.End(nil)
	ctx, cancel := context.WithTimeout(closing, searchWithin)
	defer cancel()
	var dials sync.WaitGroup
	defer dials.Wait()
	slots := make(chan struct{}, dialsAtOnce)
	for p := range e.cfg.Router.FindProviders(ctx, key, e.cfg.SearchPeers) {
		if p.ID == e.cfg.Network.Self() || f.triedLately(p.ID) {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			continue // the router closes its channel
		}
		dials.Go(func() {
			defer func() { <-slots }()
			f.dial(closing, key, p)
		})
	}
}

func (f *finder) dial(ctx context.Context, key cid.Cid, p peer.AddrInfo) {
	e := f.exchange
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	ctx, span := spans.Start(ctx, "exchange.Connect")
	span.Peer(p.ID)
	err := e.cfg.Network.Connect(ctx, p)
	span.End(err)
	if err != nil {
		e.cfg.Logger.Debug("provider cannot be dialled", "peer", p.ID, "err", err)
		if errors.Is(ctx.Err(), context.Canceled) {
			return // the exchange closes: that is not the peer's doing
		}
		f.mu.Lock()
		f.failed[p.ID] = time.Now()
		f.mu.Unlock()
		return
	}
	e.post(input{event: engine.Found{Key: key, Peer: p.ID}})
}

// triedLately reports whether a dial of the peer failed a short while ago.
func (f *finder) triedLately(p peer.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for id, at := range f.failed {
		if now.Sub(at) >= dialAgain {
			delete(f.failed, id)
		}
	}
	_, failed := f.failed[p]
	return failed
}
