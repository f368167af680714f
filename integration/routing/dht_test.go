package routing

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	corerouting "github.com/libp2p/go-libp2p/core/routing"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/finding"
	"github.com/codexchange/codexchange/host/peerstore"
)

// What is added to one node is found and fetched by another that was never told of
// it: both know a third, which has nothing (B38, B39). Over each exchange, and in
// each place where one can run.
func TestFetchFromStranger(t *testing.T) {
	for _, c := range []struct {
		name, exchange string
		place          func(*host.Options)
	}{
		{"bitswap", host.Bitswap, func(*host.Options) {}},
		{"blockexc in process", host.Blockexc, func(*host.Options) {}},
		{"blockexc as a plugin", host.Blockexc, asPlugin},
	} {
		t.Run(c.name, func(t *testing.T) {
			hub := start(t, host.Bitswap, inDHT())
			has := start(t, c.exchange, inDHT(hub), providing(host.ProvideAll), c.place)
			root := add(t, has, 1)
			await(t, "the provider is found", func() bool { return providers(t, hub, root)[id(has)] })

			wants := start(t, c.exchange, inDHT(hub), providing(host.ProvideAll), c.place)
			if connected(wants, has) {
				t.Fatal("the two know each other before they should")
			}
			fetch(t, wants, root)
			if !connected(wants, has) {
				t.Error("fetched, and not connected to the only node that has it")
			}
			// What the DHT says of a peer is claimed by the DHT (PS-13).
			if info, _ := wants.Peerstore().Peer(id(has)); !claimed(info, peerstore.DHT) {
				t.Errorf("what is known of the provider: got %+v, want an address that the DHT claims", info.Addrs)
			}
			// What was fetched is provided as well.
			await(t, "the second provider is found", func() bool { return providers(t, hub, root)[id(wants)] })
		})
	}
}

func claimed(info peerstore.Info, by peerstore.Source) bool {
	for _, a := range info.Addrs {
		for _, c := range a.Claims {
			if c.Source == by {
				return true
			}
		}
	}
	return false
}

// A peer of which only the id is known is looked for when it is dialled.
func TestFindPeer(t *testing.T) {
	hub := start(t, host.Bitswap, inDHT())
	a, b := start(t, host.Bitswap, inDHT(hub)), start(t, host.Bitswap, inDHT(hub))
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for _, n := range []*host.Node{a, b} {
		await(t, "bootstrap", func() bool { return connected(n, hub) })
	}
	var err error
	await(t, "the peer is found", func() bool {
		_, err = a.Routing().FindPeer(ctx, id(b))
		return err == nil
	})
	info := b.AddrInfo()
	info.Addrs = nil
	if err := a.Connect(ctx, info); err != nil {
		t.Fatal(err)
	}
}

// A node whose DHT has no peers says what to do about it.
func TestAlone(t *testing.T) {
	n := start(t, host.Bitswap, inDHT())
	root := add(t, n, 8)
	_, find := n.Routing().FindPeer(t.Context(), "somebody")
	for name, err := range map[string]error{"find peer": find, "provide": n.Provide(t.Context(), root, false, nil)} {
		if err == nil || !strings.Contains(err.Error(), "connect to one, or name bootstrap nodes") {
			t.Errorf("%s: got %v, want an error that says what to do", name, err)
		}
	}
}

// With strategies other than all, others are told of what is pinned, or of its root
// only, and of what somebody asks to be told (B38 and B39 of docs/behaviours.md).
func TestProvideStrategies(t *testing.T) {
	hub := start(t, host.Bitswap, inDHT())
	for _, c := range []struct {
		strategy string
		leaves   bool // are told of as well
	}{{host.ProvidePinned, true}, {host.ProvideRoots, false}} {
		t.Run(c.strategy, func(t *testing.T) {
			n := start(t, host.Bitswap, inDHT(hub), providing(c.strategy))
			await(t, "bootstrap", func() bool { return connected(n, hub) })
			pinned, loose := add(t, n, 2), add(t, n, 3)
			node, err := n.LocalDAG().Get(t.Context(), pinned)
			if err != nil {
				t.Fatal(err)
			}
			leaf := node.Links()[0].Cid
			if err := n.Pinner().Pin(t.Context(), node, true, "a"); err != nil {
				t.Fatal(err)
			}
			await(t, "the root is told of", func() bool { return providers(t, hub, pinned)[id(n)] })
			if c.leaves {
				await(t, "the leaf is told of", func() bool { return providers(t, hub, leaf)[id(n)] })
			} else if providers(t, hub, leaf)[id(n)] {
				t.Error("the leaf of a pinned root is told of, want the root only")
			}
			if providers(t, hub, loose)[id(n)] {
				t.Error("what is not pinned is told of")
			}

			told := cid.NewSet()
			if err := n.Provide(t.Context(), loose, true, func(c cid.Cid) { told.Add(c) }); err != nil {
				t.Fatal(err)
			}
			if got, want := told.Len(), 6; got != want { // a root and five leaves
				t.Errorf("told of %d CIDs, want %d", got, want)
			}
			if !providers(t, hub, loose)[id(n)] {
				t.Error("what was asked to be told is not found")
			}
		})
	}
}

// Without routing, searches end at once, and what cannot be told says so.
func TestNone(t *testing.T) {
	n := start(t, host.Bitswap, func(o *host.Options) { o.Routing.Type = finding.None }, providing(host.ProvideAll))
	root := add(t, n, 4)
	if found := providers(t, n, root); len(found) > 0 {
		t.Errorf("got providers %v, want none", found)
	}
	if err := n.Provide(t.Context(), root, false, nil); !errors.Is(err, corerouting.ErrNotSupported) {
		t.Errorf("provide: got %v, want %v", err, corerouting.ErrNotSupported)
	}
	if _, err := n.Routing().FindPeer(t.Context(), id(n)); !errors.Is(err, corerouting.ErrNotFound) {
		t.Errorf("find peer: got %v, want %v", err, corerouting.ErrNotFound)
	}
}
