// Package routing has nodes find each other, and what they have, over a DHT of
// their own and routers of their own, all on loopback: nothing here leaves the
// machine.
package routing

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/finding"
	"github.com/codexchange/codexchange/plugin/plugintest"
)

func TestMain(m *testing.M) {
	host.Main()
	goleak.VerifyTestMain(m,
		// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		// Bitswap ends these in its own time after Close.
		goleak.IgnoreAnyFunction("github.com/ipfs/boxo/bitswap/network/bsnet.closeStreamAsync.func1"))
}

// within is how long a test waits for what has to happen.
const within = time.Minute

// start starts a node with an exchange, in this process unless said otherwise, and
// closes it with the test.
func start(t *testing.T, exchange string, change ...func(*host.Options)) *host.Node {
	t.Helper()
	o := host.Options{
		Blocks: memory(), Use: []string{exchange}, Log: plugintest.Log(t),
		Plugins: map[string]host.Plugin{host.Blockexc: {InProcess: true}},
	}
	if exchange == host.Bitswap {
		o.Plugins = nil
	}
	for _, c := range change {
		c(&o)
	}
	n, err := host.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, n) })
	return n
}

func closeNode(t *testing.T, n *host.Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// memory is a datastore that outlives a node.
func memory() ds.Batching { return dssync.MutexWrap(ds.NewMapDatastore()) }

// inDHT makes a node part of the DHT that these nodes are in.
func inDHT(through ...*host.Node) func(*host.Options) {
	return func(o *host.Options) {
		o.Routing.Type, o.Routing.Loopback = finding.DHT, true
		o.Routing.Bootstrap = func() []peer.AddrInfo {
			var nodes []peer.AddrInfo
			for _, n := range through {
				nodes = append(nodes, n.AddrInfo())
			}
			return nodes
		}
	}
}

// providing has a node tell others what it has.
func providing(strategy string) func(*host.Options) {
	return func(o *host.Options) { o.Routing.Provide = host.Provide{Strategy: strategy, Interval: time.Hour} }
}

func asPlugin(o *host.Options) { o.Plugins = nil }

// await polls until what is asked for is so. What DHTs do they do over real sockets,
// and tell nobody.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !so() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// providers are those that a node finds.
func providers(t *testing.T, n *host.Node, c cid.Cid) map[peer.ID]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	found := make(map[peer.ID]bool)
	for p := range n.Routing().FindProvidersAsync(ctx, c, 0) {
		found[p.ID] = true
	}
	return found
}

func connected(n *host.Node, p *host.Node) bool {
	return n.Host().Network().Connectedness(id(p)) == network.Connected
}

func id(n *host.Node) peer.ID { return n.Host().ID() }

// add stores a file of a few blocks, and returns its root.
func add(t *testing.T, n *host.Node, seed byte) cid.Cid {
	t.Helper()
	data := make([]byte, 20_000)
	rand.NewChaCha8([32]byte{seed}).Read(data)
	root, _, err := n.Add(t.Context(), bytes.NewReader(data), 4096)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func fetch(t *testing.T, n *host.Node, root cid.Cid) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := n.Fetch(ctx, root, nil); err != nil {
		t.Fatal(err)
	}
}
