package routing

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/peerstore"
)

// Peers outlive a node (PS-22), and those that were good are dialled when it starts
// again, with nobody having told it of them (PS-31). They are not known to speak
// what they spoke until they say it again (PS-25).
func TestRestart(t *testing.T) {
	a, b := start(t, host.Bitswap), start(t, host.Bitswap)
	key, err := host.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	kept := memory()
	keep := func(o *host.Options) { o.Datastore, o.Identity = kept, key }
	n := start(t, host.Bitswap, keep)
	for _, p := range []*host.Node{a, b} {
		if err := n.Connect(t.Context(), p.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		if info, _ := n.Peerstore().Peer(id(p)); !claimed(info, peerstore.Manual) {
			t.Errorf("peer that was named: got %+v, want an address claimed by %v", info.Addrs, peerstore.Manual)
		}
	}
	closeNode(t, n)
	await(t, "the peers notice", func() bool { return len(a.Peers())+len(b.Peers()) == 0 })

	offline := start(t, host.Bitswap, keep, func(o *host.Options) { o.Routing.Recall = -1 })
	for _, p := range []*host.Node{a, b} {
		info, known := offline.Peerstore().Peer(id(p))
		if !known || len(info.Recalled) == 0 || len(info.Protocols) > 0 {
			t.Errorf("after a restart: got %+v, want a peer whose protocols are recalled", info)
		}
	}
	if got := offline.Peerstore().RecentlyGood(5); len(got) != 2 {
		t.Errorf("after a restart: recently good are %v, want both peers", got)
	}
	closeNode(t, offline)

	again := start(t, host.Bitswap, keep)
	for _, p := range []*host.Node{a, b} {
		await(t, "a known peer is dialled", func() bool { return connected(again, p) })
	}
}

// Nodes forget when they are told to.
func TestForget(t *testing.T) {
	kept, other := memory(), start(t, host.Bitswap)
	for range 2 {
		n := start(t, host.Bitswap, func(o *host.Options) { o.Datastore, o.Routing.Forget = kept, true })
		if _, known := n.Peerstore().Peer(id(other)); known {
			t.Error("the peer is remembered")
		}
		if err := n.Connect(t.Context(), other.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		closeNode(t, n)
	}
}

// The peers of Peering are dialled, and dialled again when the connection is lost.
func TestPeering(t *testing.T) {
	t.Parallel() // boxo waits several seconds before each dial
	a := start(t, host.Bitswap)
	n := start(t, host.Bitswap, func(o *host.Options) { o.Routing.Peering = []peer.AddrInfo{a.AddrInfo()} })
	if got := n.Peering().ListPeers(); len(got) != 1 || got[0].ID != id(a) {
		t.Errorf("peering: got %v, want %v", got, id(a))
	}
	await(t, "the first connection", func() bool { return connected(n, a) && connected(a, n) })
	if info, _ := n.Peerstore().Peer(id(a)); !claimed(info, peerstore.Peering) {
		t.Errorf("what is known of the peer: got %+v, want an address claimed by %v", info.Addrs, peerstore.Peering)
	}
	before := n.Host().Network().ConnsToPeer(id(a))[0].ID()
	if err := a.Host().Network().ClosePeer(id(n)); err != nil {
		t.Fatal(err)
	}
	await(t, "another connection", func() bool {
		conns := n.Host().Network().ConnsToPeer(id(a))
		return len(conns) > 0 && conns[0].ID() != before
	})
}

// The exchange learns from the peer store who speaks its protocol, and who no longer
// does, whoever has written it there (PS-17): in process and in a plugin.
func TestProtocolsReachExchange(t *testing.T) {
	for _, c := range []struct {
		name  string
		place func(*host.Options)
	}{{"in process", func(*host.Options) {}}, {"as a plugin", asPlugin}} {
		t.Run(c.name, func(t *testing.T) {
			n, other := start(t, host.Blockexc, c.place), start(t, host.Bitswap)
			if err := n.Connect(t.Context(), other.AddrInfo()); err != nil {
				t.Fatal(err)
			}
			await(t, "the exchange has no peers", func() bool { return exchangePeers(t, n) == 0 })
			if err := n.Peerstore().AddProtocols(id(other), exchange.ProtocolID); err != nil {
				t.Fatal(err)
			}
			await(t, "the exchange hears of the peer", func() bool { return exchangePeers(t, n) == 1 })
			if err := n.Peerstore().RemoveProtocols(id(other), exchange.ProtocolID); err != nil {
				t.Fatal(err)
			}
			await(t, "the exchange hears that it is one no longer", func() bool { return exchangePeers(t, n) == 0 })
		})
	}
}

// exchangePeers is how many peers the Codex block exchange of a node has.
func exchangePeers(t *testing.T, n *host.Node) int {
	t.Helper()
	x := n.Exchanges()[0].Exchange
	if p := x.Plugin(); p != nil {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		stat, err := p.Inspect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return int(stat.Peers)
	}
	return int(x.(interface{ Stat() exchange.Stat }).Stat().Peers)
}
