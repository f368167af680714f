package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	adapter "github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/leaves"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A node is the exchange as a program would embed it: over a libp2p host on
// loopback, a blockstore and a leaf store.
type node struct {
	t       testing.TB
	host    host.Host
	store   blockstore.Blockstore
	leaves  *leaves.Store
	ex      *exchange.Exchange
	service blockservice.BlockService
	metrics *prometheus.Registry
}

func newNode(t testing.TB) *node {
	t.Helper()
	key, err := p2p.NewIdentity()
	must(t, "make identity", err)
	h, err := libp2p.New(append(p2p.HostOptions(),
		libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics())...)
	must(t, "make host", err)
	t.Cleanup(func() { _ = h.Close() })
	network, err := p2p.New(h, p2p.Options{})
	must(t, "make network", err)
	n := &node{
		t:      t,
		host:   h,
		store:  blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore())),
		leaves: leaves.New(dssync.MutexWrap(datastore.NewMapDatastore())),

		metrics: prometheus.NewRegistry(),
	}
	n.ex, err = exchange.New(exchange.Config{Network: network, Blocks: adapter.New(n.store), Leaves: n.leaves, Metrics: n.metrics})
	must(t, "start exchange", err)
	t.Cleanup(func() { _ = n.ex.Close() })
	n.service = blockservice.New(n.store, n.ex)
	must(t, "listen", h.Network().Listen(loopback))
	return n
}

func (n *node) info() peer.AddrInfo {
	return peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Network().ListenAddresses()}
}

func (n *node) connect(to peer.AddrInfo) {
	n.t.Helper()
	n.host.Peerstore().AddAddrs(to.ID, to.Addrs, peerstore.PermanentAddrTTL)
	must(n.t, "connect", n.host.Connect(soon(n.t), to))
}

// add stores blocks and says so.
func (n *node) add(list ...blocks.Block) {
	n.t.Helper()
	must(n.t, "store", n.store.PutMany(soon(n.t), list))
	must(n.t, "notify", n.ex.NotifyNewBlocks(soon(n.t), list...))
}

// addDataset stores a dataset as an upload does, and says so.
func (n *node) addDataset(data []byte, blockSize int) *manifest.Dataset {
	n.t.Helper()
	ctx := soon(n.t)
	d, err := manifest.Build(ctx, bytes.NewReader(data), manifest.Options{BlockSize: uint32(blockSize)},
		func(_ uint64, b blocks.Block) error { return n.store.Put(ctx, b) })
	must(n.t, "build dataset", err)
	must(n.t, "store leaves", n.leaves.AddTree(ctx, d.Tree))
	m, err := d.Manifest.Block()
	must(n.t, "encode manifest", err)
	n.add(m)
	must(n.t, "notify leaves", n.ex.NotifyNewLeaves(ctx, d.Manifest.TreeCid, exchangeRange(d.Tree.Len())))
	return d
}

// fetchDataset fetches leaves, stores them as a downloader does, and returns the
// bytes in order.
func (n *node) fetchDataset(ctx context.Context, root cid.Cid, count uint64) ([]byte, error) {
	out, err := n.ex.GetLeaves(ctx, exchange.Tree{Root: root, Leaves: count}, exchangeRange(count))
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, count)
	for b := range out {
		if err := n.store.Put(ctx, b.Block); err != nil {
			return nil, err
		}
		if err := n.leaves.Put(ctx, b.Root, b.Index, b.Cid(), b.Proof); err != nil {
			return nil, err
		}
		if parts[b.Index] != nil {
			return nil, fmt.Errorf("leaf %d came twice", b.Index)
		}
		parts[b.Index] = b.RawData()
	}
	for i, p := range parts {
		if p == nil {
			return nil, fmt.Errorf("leaf %d of %d did not come: %w", i, count, context.Cause(ctx))
		}
	}
	return bytes.Join(parts, nil), nil
}

// soon is a context that ends long after anything here should have.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// random is n bytes that are the same in every run of the same seed.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{seed})
	_, _ = r.Read(b) // never fails
	return b
}
