package porttest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
)

// Router tests an exchange.Router. The function newRouter makes one for the node
// self that knows the given providers, among them self, and no others.
func Router(t *testing.T, newRouter func(t *testing.T, self peer.ID, providers map[cid.Cid][]peer.AddrInfo) exchange.Router) {
	self := NewPeerID(t)
	known := codex.BlockCid([]byte("a block with providers"))
	providers := make([]peer.AddrInfo, 5)
	for i := range providers {
		addr, err := multiaddr.NewMultiaddr(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 1000+i))
		check(t, "make an address", err)
		providers[i] = peer.AddrInfo{ID: NewPeerID(t), Addrs: []multiaddr.Multiaddr{addr}}
	}
	all := append(slices.Clone(providers), peer.AddrInfo{ID: self, Addrs: providers[0].Addrs})
	router := func(t *testing.T) exchange.Router {
		return newRouter(t, self, map[cid.Cid][]peer.AddrInfo{known: all})
	}

	t.Run("all providers", func(t *testing.T) {
		for _, max := range []int{5, 6, 1000} {
			found := collect(t, router(t).FindProviders(t.Context(), known, max))
			if len(found) != len(providers) {
				t.Errorf("max %d: found %d providers, want all %d but this node", max, len(found), len(providers))
			}
			for _, want := range providers {
				got, ok := found[want.ID]
				if !ok || !slices.ContainsFunc(got.Addrs, want.Addrs[0].Equal) {
					t.Errorf("max %d: provider %s is found %v at %v, want it at %v", max, want.ID, ok, got.Addrs, want.Addrs)
				}
			}
		}
	})
	t.Run("at most max", func(t *testing.T) {
		for limit := -1; limit < 5; limit++ {
			found := collect(t, router(t).FindProviders(t.Context(), known, limit))
			if want := max(limit, 0); len(found) != want {
				t.Errorf("max %d: found %d providers, want %d", limit, len(found), want)
			}
		}
	})
	t.Run("nobody has it", func(t *testing.T) {
		found := collect(t, router(t).FindProviders(t.Context(), codex.BlockCid([]byte("nobody has this")), 10))
		if len(found) != 0 {
			t.Errorf("found %d providers of an unknown block, want none", len(found))
		}
	})
	t.Run("ended context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		collect(t, router(t).FindProviders(ctx, known, 10)) // may find some, but ends
	})
	t.Run("context ends while nobody receives", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		found := router(t).FindProviders(ctx, known, 10)
		<-found
		cancel()
		collect(t, found)
	})
	t.Run("searches at once", func(t *testing.T) {
		r := router(t)
		var searches []<-chan peer.AddrInfo
		for range 20 {
			searches = append(searches, r.FindProviders(t.Context(), known, 10))
		}
		for _, found := range searches {
			if n := len(collect(t, found)); n != len(providers) {
				t.Errorf("found %d providers, want %d", n, len(providers))
			}
		}
	})
}

// collect receives until the channel is closed.
func collect(t *testing.T, found <-chan peer.AddrInfo) map[peer.ID]peer.AddrInfo {
	t.Helper()
	got := make(map[peer.ID]peer.AddrInfo)
	late := time.After(limit)
	for {
		select {
		case p, ok := <-found:
			if !ok {
				return got
			}
			if _, again := got[p.ID]; again {
				t.Errorf("provider %s was sent twice", p.ID)
			}
			got[p.ID] = p
		case <-late:
			t.Fatalf("the search has not ended after %v; %d providers were found", limit, len(got))
		}
	}
}
