package host

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/host/finding"
	"github.com/codexchange/codexchange/host/repo"
)

// openRepo makes a repo for tests if need be, and opens it until the test ends.
func openRepo(t *testing.T, dir string) *repo.Repo {
	t.Helper()
	if _, err := repo.Init(dir, repo.InitOptions{Profiles: []string{"test"}}); err != nil {
		t.Log(err) // there is one
	}
	r, err := repo.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// Peers are kept in the datastore of the repo, which is on disk (PS-22, PS-30), and
// are there when it is opened again.
func TestPeersInRepo(t *testing.T) {
	other, dir := start(t, Bitswap), t.TempDir()
	id := other.AddrInfo().ID
	for i := range 2 {
		r := openRepo(t, dir)
		n, err := Open(t.Context(), r, false, slog.New(slog.DiscardHandler), func(o *Options) { o.Use, o.Routing.Recall = nil, -1 })
		if err != nil {
			t.Fatal(err)
		}
		info, known := n.Peerstore().Peer(id)
		if want := i > 0; known != want || want && (len(info.Addrs) == 0 || len(info.Recalled) == 0) {
			t.Errorf("opened %d times before: got %+v, want the peer known to be %v", i, info, want)
		}
		if err := n.Connect(t.Context(), other.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What the configuration says of connections and routing reaches the node: values
// that are set, and Kubo's for those that are not. Bootstrap nodes that are added
// later are known without a restart.
func TestContactOptions(t *testing.T) {
	r := openRepo(t, t.TempDir())
	c := r.Config()
	var o Options
	if err := o.contact(c, r); err != nil {
		t.Fatal(err)
	}
	if got := o.Routing; got.Type != finding.None || got.MDNS || len(got.Bootstrap()) > 0 || len(got.Delegated) > 0 || got.Loopback {
		t.Errorf("profile test: got %+v, want nobody looked for", got)
	}
	if got, want := o.Routing.Provide, (Provide{ProvideAll, repo.DefaultProvideInterval}); got != want {
		t.Errorf("providing: got %+v, want %+v", got, want)
	}
	if got := o.Swarm; got.LowWater != 32 || got.HighWater != 96 || got.Grace != 20*time.Second || got.MapPorts || got.Unlimited || got.MaxMemory == 0 {
		t.Errorf("swarm: got %+v, want 32, 96, 20s, no ports mapped, and limits", got)
	}

	const somebody = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"
	c.Routing.Type, c.Routing.DelegatedRouters, c.Routing.LoopbackAddressesOnLanDHT = repo.Some("delegated"), []string{"http://127.0.0.1:1"}, repo.Some(true)
	c.Peering.Peers = []repo.Peer{{ID: somebody, Addrs: []string{"/ip4/127.0.0.1/tcp/1"}}}
	c.Provide.Enabled = repo.Some(false)
	c.Swarm.ConnMgr.Type, c.Swarm.ResourceMgr.MaxMemory = repo.Some("none"), repo.Some("1GiB")
	c.Bootstrap = []string{"/ip4/127.0.0.1/tcp/2/p2p/" + somebody}
	bootstrap := o.Routing.Bootstrap
	if err := r.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	if got := bootstrap(); len(got) != 1 || got[0].ID.String() != somebody {
		t.Errorf("bootstrap nodes that were added: got %v, want %s", got, somebody)
	}
	o = Options{}
	if err := o.contact(c, r); err != nil {
		t.Fatal(err)
	}
	if got := o.Routing; got.Type != finding.Delegated || !slices.Equal(got.Delegated, c.Routing.DelegatedRouters) || !got.Loopback || got.Provide != (Provide{}) {
		t.Errorf("routing: got %+v, want what was set", got)
	}
	if got := o.Routing.Peering; len(got) != 1 || got[0].ID != must(t, somebody) || len(got[0].Addrs) != 1 {
		t.Errorf("peering: got %v, want %s with an address", got, somebody)
	}
	if got := o.Swarm; got.HighWater != 0 || got.MaxMemory != 1<<30 {
		t.Errorf("swarm: got %+v, want no limit of connections, and 1 GiB", got)
	}
}

func must(t *testing.T, s string) peer.ID {
	t.Helper()
	p, err := peer.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
