package host

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// What others are told of the addresses that were found: those that were named
// instead, those beside, and none that is not to be told.
func TestAnnounced(t *testing.T) {
	found := []string{"/ip4/192.0.2.1/tcp/1", "/ip4/10.1.2.3/tcp/1"}
	for _, c := range []struct {
		name  string
		swarm Swarm
		want  string
	}{
		{"as found", Swarm{}, "/ip4/192.0.2.1/tcp/1 /ip4/10.1.2.3/tcp/1"},
		{"instead", Swarm{Announce: []string{"/dns4/example.org/tcp/2"}}, "/dns4/example.org/tcp/2"},
		{"beside", Swarm{AppendAnnounce: []string{"/ip4/192.0.2.2/tcp/2", found[0]}}, "/ip4/192.0.2.1/tcp/1 /ip4/10.1.2.3/tcp/1 /ip4/192.0.2.2/tcp/2"},
		{"not a range", Swarm{NoAnnounce: []string{"/ip4/10.0.0.0/ipcidr/8"}}, "/ip4/192.0.2.1/tcp/1"},
		{"not an address", Swarm{NoAnnounce: found[:1]}, "/ip4/10.1.2.3/tcp/1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			announced, err := c.swarm.announced()
			if err != nil {
				t.Fatal(err)
			}
			in, err := addrs("address", found)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range announced(in) {
				got = append(got, a.String())
			}
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// A node keeps to what Swarm says: addresses that are filtered it neither dials nor
// accepts, connections above the limit it closes, and what cannot be used it says.
func TestSwarm(t *testing.T) {
	seen := func(s Swarm) *Node {
		n, err := New(t.Context(), Options{Dir: t.TempDir(), Swarm: s})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return n
	}
	other := seen(Swarm{})
	deaf := seen(Swarm{Filters: []string{"/ip4/127.0.0.0/ipcidr/8"}})
	if err := deaf.Connect(t.Context(), other.AddrInfo()); err == nil || !strings.Contains(err.Error(), "gater") {
		t.Errorf("dial of a filtered address: got %v, want that the gater refuses it", err)
	}
	if err := other.Connect(t.Context(), deaf.AddrInfo()); err == nil {
		t.Error("a filtered address was accepted")
	}
	if s := (gater{multiaddr.NewFilters()}); !s.InterceptPeerDial("x") || !s.InterceptSecured(network.DirInbound, "x", nil) {
		t.Error("a gater refuses more than addresses")
	}

	managed := seen(Swarm{LowWater: 3, HighWater: 7, Grace: time.Minute})
	info := managed.Host().ConnManager().(*connmgr.BasicConnMgr).GetInfo()
	if info.LowWater != 3 || info.HighWater != 7 || info.GracePeriod != time.Minute {
		t.Errorf("connection manager: got %+v, want 3, 7, 1m", info)
	}
	free := seen(Swarm{Unlimited: true})
	if _, ok := free.Host().Network().ResourceManager().(*network.NullResourceManager); !ok {
		t.Errorf("unlimited: got a resource manager %T, want none", free.Host().Network().ResourceManager())
	}
	tight, err := Swarm{MaxMemory: 256 << 20, Trusted: []string{"/ip4/127.0.0.1"}}.limits()
	if err != nil {
		t.Fatal(err)
	}
	defer tight.Close()
	err = tight.ViewSystem(func(s network.ResourceScope) error {
		big := int(2 << 30)
		span, err := s.BeginSpan()
		if err != nil {
			return err
		}
		defer span.Done()
		if err := span.ReserveMemory(big, network.ReservationPriorityAlways); err == nil {
			t.Errorf("limits for 256 MiB of memory: %d bytes were granted", big)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	for _, c := range []struct {
		swarm Swarm
		want  string
	}{
		{Swarm{Announce: []string{"here"}}, `address to announce "here"`},
		{Swarm{NoAnnounce: []string{"here"}}, `address not to announce "here"`},
		{Swarm{Filters: []string{"/ip4/10.0.0.1/tcp/1"}}, `filter "/ip4/10.0.0.1/tcp/1"`},
		{Swarm{Trusted: []string{"here"}}, `trusted address "here"`},
		{Swarm{LowWater: 2, HighWater: -1}, "HighWater is -1"},
	} {
		if n, err := New(t.Context(), Options{Dir: t.TempDir(), Swarm: c.swarm}); err == nil || !strings.Contains(err.Error(), c.want) {
			if err == nil {
				n.Close()
			}
			t.Errorf("%+v: got %v, want an error with %q", c.swarm, err, c.want)
		}
	}
}

// Addresses outside of a filter are not its business.
func TestGaterAccepts(t *testing.T) {
	denied, err := ranges("filter", []string{"/ip4/10.0.0.0/ipcidr/8"})
	if err != nil {
		t.Fatal(err)
	}
	for ip, want := range map[string]bool{"10.9.9.9": false, "192.0.2.1": true, "2001:db8::1": true} {
		a, err := manet.FromNetAddr(&net.TCPAddr{IP: net.ParseIP(ip), Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		if got := (gater{denied}).InterceptAddrDial("x", a); got != want {
			t.Errorf("dial of %s: allowed is %v, want %v", a, got, want)
		}
	}
}
