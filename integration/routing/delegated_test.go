package routing

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/boxo/routing/http/server"
	"github.com/ipfs/boxo/routing/http/types"
	"github.com/ipfs/boxo/routing/http/types/iter"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	corerouting "github.com/libp2p/go-libp2p/core/routing"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/finding"
)

// A directory is a delegated router that says what it was told in the test.
type directory struct {
	server.DelegatedRouter // nil: nothing else is asked

	mu    sync.Mutex
	has   map[cid.Cid]peer.AddrInfo
	peers map[peer.ID]peer.AddrInfo
	asked int
}

func record(p peer.AddrInfo) *types.PeerRecord {
	r := &types.PeerRecord{Schema: types.SchemaPeer, ID: &p.ID}
	for _, a := range p.Addrs {
		r.Addrs = append(r.Addrs, types.Multiaddr{Multiaddr: a})
	}
	return r
}

func (d *directory) FindProviders(_ context.Context, c cid.Cid, _ int) (iter.ResultIter[types.Record], error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	var found []iter.Result[types.Record]
	if p, ok := d.has[c]; ok {
		found = append(found, iter.Result[types.Record]{Val: record(p)})
	}
	return iter.FromSlice(found), nil
}

func (d *directory) FindPeers(_ context.Context, p peer.ID, _ int) (iter.ResultIter[*types.PeerRecord], error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []iter.Result[*types.PeerRecord]
	if info, ok := d.peers[p]; ok {
		found = append(found, iter.Result[*types.PeerRecord]{Val: record(info)})
	}
	return iter.FromSlice(found), nil
}

func serve(t *testing.T, d *directory) (url string) {
	t.Helper()
	s := httptest.NewServer(server.Handler(d))
	t.Cleanup(s.Close)
	return s.URL
}

// With delegated routing a node asks a server over HTTP who has content and where
// peers are, whatever exchange it uses. Beside a DHT that knows nothing, the server
// is asked as well.
func TestDelegated(t *testing.T) {
	for _, c := range []struct{ exchange, kind string }{
		{host.Bitswap, finding.Delegated}, {host.Blockexc, finding.Delegated}, {host.Blockexc, finding.Auto},
	} {
		t.Run(c.exchange+" "+c.kind, func(t *testing.T) {
			has := start(t, c.exchange)
			root := add(t, has, 5)
			d := &directory{has: map[cid.Cid]peer.AddrInfo{root: has.AddrInfo()}, peers: map[peer.ID]peer.AddrInfo{id(has): has.AddrInfo()}}
			url := serve(t, d)
			delegated := func(o *host.Options) {
				o.Routing.Type, o.Routing.Delegated = c.kind, []string{url}
			}
			fetch(t, start(t, c.exchange, delegated), root)

			n := start(t, c.exchange, delegated)
			if err := n.Connect(t.Context(), peer.AddrInfo{ID: id(has)}); err != nil {
				t.Errorf("connect to a peer whose address the server knows: %v", err)
			}
			err := n.Provide(t.Context(), root, false, nil)
			if c.kind == finding.Delegated && (!errors.Is(err, corerouting.ErrNotSupported) || !strings.Contains(err.Error(), "Routing.Type")) {
				t.Errorf("provide: got %v, want %v that says why", err, corerouting.ErrNotSupported)
			}
		})
	}
}

// The path of a URL says what its server is asked.
func TestDelegatedPath(t *testing.T) {
	has := start(t, host.Bitswap)
	root := add(t, has, 6)
	d := &directory{has: map[cid.Cid]peer.AddrInfo{root: has.AddrInfo()}}
	url := serve(t, d) + "/routing/v1/peers"
	n := start(t, host.Bitswap, func(o *host.Options) { o.Routing.Type, o.Routing.Delegated = finding.Delegated, []string{url} })
	if found := providers(t, n, root); len(found) > 0 || d.asked > 0 {
		t.Errorf("got %v after %d questions, want a server for peers not asked for providers", found, d.asked)
	}
}

// What is wrong with the options is said, and nothing keeps running.
func TestRoutingRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		routing finding.RouterOptions
		provide string
		want    string
	}{
		{"unknown type", finding.RouterOptions{Type: "custom"}, "", `routing of type "custom", want one of auto, autoclient, delegated, dht`},
		{"nobody to ask", finding.RouterOptions{Type: finding.Delegated}, "", "Routing.DelegatedRouters is empty"},
		{"not a URL", finding.RouterOptions{Type: finding.Auto, Delegated: []string{"http://x/y"}}, "", `delegated router "http://x/y"`},
		{"unknown strategy", finding.RouterOptions{}, "some", `strategy of providing is "some", want all, pinned or roots`},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := host.New(t.Context(), host.Options{Blocks: memory(), Use: []string{host.Bitswap},
				Routing: host.Routing{RouterOptions: c.routing, Provide: host.Provide{Strategy: c.provide}}})
			if err == nil {
				n.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}
