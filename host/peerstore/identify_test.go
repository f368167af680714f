package peerstore_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/host/peerstore"
)

// node is a libp2p host over a store, as a node wires it.
func node(t *testing.T, o peerstore.Options) (host.Host, *peerstore.Store) {
	t.Helper()
	s := open(t, o)
	h, err := libp2p.New(libp2p.Peerstore(s.View(peerstore.Host)), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.NoTransports, libp2p.Transport(tcpTransport), libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	h.Network().Notify(s.Notifiee())
	if err := s.Attach(h.EventBus()); err != nil {
		t.Fatal(err)
	}
	return h, s
}

// await polls until what is asked for is so. Identify is libp2p's own, over real
// sockets: there is nothing to wait on for all of it.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// From a dial to the end of the connection, with libp2p's own host and identify:
// what is stored on the way, and what identify may replace (PS-10, PS-11, PS-12,
// PS-14, PS-16).
func TestIdentify(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const blockexc = protocol.ID("/codex/blockexc/1.0.0")
	ha, a := node(t, peerstore.Options{})
	hb, b := node(t, peerstore.Options{})
	hb.SetStreamHandler(blockexc, func(s network.Stream) { s.Close() })
	events, err := ha.EventBus().Subscribe(new(peerstore.EvtPeerProtocolsChanged))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()

	// What others have said of b before, two of the three with the TTL that
	// identify ends by expiring.
	old, gossip, byHand := addr(1), addr(2), addr(3)
	a.View(peerstore.Host).AddAddr(hb.ID(), old, core.TempAddrTTL)
	a.View(peerstore.DHT).AddAddr(hb.ID(), gossip, core.TempAddrTTL)
	a.AddAddr(hb.ID(), byHand, core.PermanentAddrTTL)

	// The dialler takes its addresses from the store (PS-16).
	listen := hb.Addrs()
	a.View(peerstore.Discovery).AddAddrs(hb.ID(), listen, core.AddressTTL)
	if err := ha.Connect(ctx, peer.AddrInfo{ID: hb.ID()}); err != nil {
		t.Fatal(err)
	}
	await(t, "identify of the peer dialled", func() bool {
		got, _ := a.SupportsProtocols(hb.ID(), blockexc)
		return len(got) == 1 && len(a.Addrs(hb.ID())) == 3
	})
	wantAddrs(t, "PS-11 PS-14: libp2p's own claim is replaced, others are not", a.Addrs(hb.ID()), append(slices.Clone(listen), gossip, byHand))
	info, _ := a.Peer(hb.ID())
	if !info.Connected || info.LastSeen.IsZero() || info.PublicKey == nil || info.Metadata["AgentVersion"] == nil {
		t.Errorf("PS-11: got %+v, want it connected and seen, with key and agent", info)
	}
	for _, ai := range info.Addrs {
		if ai.Addr.Equal(listen[0]) {
			sources := make([]peerstore.Source, 0, 2)
			for _, c := range ai.Claims {
				sources = append(sources, c.Source)
			}
			slices.Sort(sources)
			if want := []peerstore.Source{peerstore.Host, peerstore.Discovery}; !slices.Equal(sources, want) {
				t.Errorf("claims of the address dialled: got %v, want %v", sources, want)
			}
			if ai.Good.IsZero() {
				t.Error("PS-10 PS-29: the address dialled is not known as good")
			}
		}
	}
	select {
	case e := <-events.Out():
		if c := e.(peerstore.EvtPeerProtocolsChanged); c.Peer != hb.ID() || !slices.Contains(c.Added, blockexc) {
			t.Errorf("on the bus: got %+v, want %s added for %s", c, blockexc, hb.ID())
		}
	case <-ctx.Done():
		t.Error("PS-17: nothing on the host's event bus")
	}

	// PS-10: b has accepted the connection. It knows a by what a says, not by the
	// port that the connection came from.
	await(t, "identify of the peer that dialled", func() bool { return len(b.Addrs(ha.ID())) > 0 })
	wantAddrs(t, "PS-10: of an accepted connection", b.Addrs(ha.ID()), ha.Addrs())
	if info, _ := b.Peer(ha.ID()); !info.Connected {
		t.Error("the peer that dialled is not known as connected")
	}

	// PS-12: a push is complete too.
	hb.RemoveStreamHandler(blockexc)
	await(t, "the push of what is no longer spoken", func() bool {
		got, _ := a.SupportsProtocols(hb.ID(), blockexc)
		return len(got) == 0
	})

	// The end: the peer stays, as recently connected and good.
	disconnected, err := ha.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged))
	if err != nil {
		t.Fatal(err)
	}
	defer disconnected.Close()
	if err := ha.Network().ClosePeer(hb.ID()); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the connection", func() bool { info, _ := a.Peer(hb.ID()); return !info.Connected })
	await(t, "the peer among those to dial again", func() bool { return len(a.RecentlyGood(5)) == 1 })
	if got := a.RecentlyGood(5)[0]; got.ID != hb.ID() || !got.Addrs[0].Equal(listen[0]) {
		t.Errorf("PS-31: got %v, want %s first at %v", got, hb.ID(), listen)
	}
}

// After a clean stop of the libp2p host, which removes peers as it goes, the next
// start knows whom to dial (PS-31), whom it has met and what they spoke (PS-22),
// but takes no protocol for granted.
func TestRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	disk := memory()
	hb, _ := node(t, peerstore.Options{})
	ha, a := node(t, peerstore.Options{Datastore: disk})
	if err := ha.Connect(ctx, peer.AddrInfo{ID: hb.ID(), Addrs: hb.Addrs()}); err != nil {
		t.Fatal(err)
	}
	await(t, "identify", func() bool { got, _ := a.GetProtocols(hb.ID()); return len(got) > 0 })
	spoke, _ := a.GetProtocols(hb.ID())
	if err := ha.Close(); err != nil {
		t.Fatal(err)
	}

	again := open(t, peerstore.Options{Datastore: disk})
	if got := again.RecentlyGood(5); len(got) != 1 || got[0].ID != hb.ID() || len(got[0].Addrs) == 0 {
		t.Errorf("whom to dial: got %v, want %s", got, hb.ID())
	}
	info, _ := again.Peer(hb.ID())
	if got, _ := again.GetProtocols(hb.ID()); len(got) != 0 || !slices.Equal(info.Recalled, spoke) {
		t.Errorf("protocols: got %v, recalled %v, want none, recalled %v", got, info.Recalled, spoke)
	}
	if _, known := again.Peer(ha.ID()); known {
		t.Error("the node's own addresses and key were written")
	}
	if agent, _ := again.Get(hb.ID(), "AgentVersion"); agent == nil {
		t.Error("metadata: got no AgentVersion")
	}
}
