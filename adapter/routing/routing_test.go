package routing_test

import (
	"context"
	"testing"
	"time"

	mockrouting "github.com/ipfs/boxo/routing/mock"
	"github.com/ipfs/go-cid"
	testnet "github.com/libp2p/go-libp2p-testing/net"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/adapter/routing"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// identity is a node as the mock router knows it: of these only ID and Address
// are used.
type identity struct{ info peer.AddrInfo }

func (id identity) ID() peer.ID                  { return id.info.ID }
func (id identity) Address() multiaddr.Multiaddr { return id.info.Addrs[0] }
func (id identity) PrivateKey() crypto.PrivKey   { return nil }
func (id identity) PublicKey() crypto.PubKey     { return nil }

var _ testnet.Identity = identity{}

func TestContract(t *testing.T) {
	porttest.Router(t, func(t *testing.T, self peer.ID, providers map[cid.Cid][]peer.AddrInfo) exchange.Router {
		server := mockrouting.NewServer()
		for c, infos := range providers {
			for _, info := range infos {
				if err := server.Client(identity{info}).Provide(t.Context(), c, true); err != nil {
					t.Fatal(err)
				}
			}
		}
		addr := multiaddr.StringCast("/ip4/127.0.0.1/tcp/1")
		me := identity{peer.AddrInfo{ID: self, Addrs: []multiaddr.Multiaddr{addr}}}
		return routing.New(self, server.Client(me))
	})
}

// found is a router that sends what it is told; a nil channel is never closed.
type found struct {
	infos  []peer.AddrInfo
	asked  int
	closed chan struct{} // closed when the search has ended
	cancel chan struct{} // closed when its context ended first
}

func (f *found) FindProvidersAsync(ctx context.Context, _ cid.Cid, count int) <-chan peer.AddrInfo {
	f.asked = count
	f.closed, f.cancel = make(chan struct{}), make(chan struct{})
	out := make(chan peer.AddrInfo)
	go func() {
		defer close(f.closed)
		defer close(out)
		for _, info := range f.infos {
			select {
			case out <- info:
			case <-ctx.Done():
				close(f.cancel)
				return
			}
		}
	}()
	return out
}

func ids(names ...string) []peer.AddrInfo {
	infos := make([]peer.AddrInfo, len(names))
	for i, name := range names {
		infos[i].ID = peer.ID(name)
	}
	return infos
}

// What does not count is not counted: the router is asked for more than max, and
// stopped when max have come.
func TestDropsAndStops(t *testing.T) {
	f := &found{infos: ids("me", "a", "", "a", "me", "b", "b", "c", "d", "e")}
	var got []string
	for p := range routing.New("me", f).FindProviders(t.Context(), codex.BlockCid(nil), 3) {
		got = append(got, string(p.ID))
	}
	if len(got) != 3 || got[0] != "a" || got[1] != "b" || got[2] != "c" {
		t.Errorf("got providers %q, want a, b, c", got)
	}
	if f.asked != 0 {
		t.Errorf("router was asked for %d, want 0, which is all", f.asked)
	}
	select {
	case <-f.closed:
	case <-time.After(30 * time.Second):
		t.Fatal("the router's search was not ended")
	}
	select {
	case <-f.cancel:
	default:
		t.Error("the router's search was not cancelled when enough had come")
	}
}

// nothing is a router that has no channel to give.
type nothing struct{}

func (nothing) FindProvidersAsync(context.Context, cid.Cid, int) <-chan peer.AddrInfo { return nil }

func TestNilChannel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	found := routing.New("me", nothing{}).FindProviders(ctx, codex.BlockCid(nil), 3)
	cancel()
	select {
	case _, ok := <-found:
		if ok {
			t.Error("got a provider from a router that has none")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("search does not end with its context")
	}
}
