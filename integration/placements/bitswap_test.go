package placements

import (
	"testing"

	boxobs "github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/plugin"
	"github.com/codexchange/codexchange/plugin/plugintest"
)

const bitswapProgram = "github.com/codexchange/codexchange/plugin/examples/bitswap"

// newBitswapNode is a node with boxo's Bitswap, unchanged, as a plugin.
func newBitswapNode(t *testing.T) *plugintest.Node {
	t.Helper()
	path, sum := plugintest.Build(t, bitswapProgram)
	return plugintest.New(t, plugin.Config{Name: "plain-bitswap", Path: path, SHA256: sum}, bitswapLimits)
}

// A Bitswap node that knows nothing of plugins fetches from one and serves it:
// the protocol on the wire is the same. It goes on after a restart of the plugin,
// over the connection that was there before.
func TestBitswapSpeaksToBitswap(t *testing.T) {
	ctx := soon(t)
	n := newBitswapNode(t)

	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), bitswapLimits)
	must(t, "make host", err)
	t.Cleanup(func() { h.Close() })
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	peerBitswap := boxobs.New(ctx, bsnet.NewFromIpfsHost(h), nil, store)
	t.Cleanup(func() { peerBitswap.Close() })
	must(t, "connect", n.Host.Connect(ctx, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}))

	theirs, _ := data(2, 50, 10<<10)
	must(t, "store at the peer", store.PutMany(ctx, theirs))
	must(t, "get from the peer", getAll(ctx, n.Plugin.Exchange(), theirs))

	ours, _ := data(3, 50, 10<<10)
	must(t, "store at the node", n.Blockstore.PutMany(ctx, ours))
	must(t, "the peer gets from the node", getAll(ctx, peerBitswap, ours))

	before := n.Host.Network().ConnsToPeer(h.ID())
	n.Plugin.Restart()
	again, _ := data(4, 50, 10<<10)
	must(t, "store at the peer", store.PutMany(ctx, again))
	must(t, "get from the peer after a restart", getAll(ctx, n.Plugin.Exchange(), again))
	if after := n.Host.Network().ConnsToPeer(h.ID()); len(before) != 1 || len(after) != 1 || after[0] != before[0] {
		t.Errorf("connections were %v and are %v, want one, the same", before, after)
	}
}
