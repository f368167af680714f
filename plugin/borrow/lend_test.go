package borrow

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
	"github.com/codexchange/codexchange/plugin/lend"
	"github.com/codexchange/codexchange/plugin/pb"
)

// The tests in this file run over package lend and real libp2p hosts.

// newHost makes a host on a free port of 127.0.0.1 that ends with the test.
func newHost(t testing.TB) host.Host {
	t.Helper()
	key, err := p2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	h := must[host.Host](t)(libp2p.New(append(p2p.HostOptions(),
		libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())...))
	t.Cleanup(func() { h.Close() })
	return h
}

func info(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

func newStore() blockstore.Blockstore {
	return blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
}

func newLender(t testing.TB, o lend.Options) *lend.Lender {
	t.Helper()
	o.Name, o.Log = "test", quiet
	lender := must[*lend.Lender](t)(lend.New(o))
	t.Cleanup(func() { within(t, "the Lender closes", func() { lender.Close() }) })
	return lender
}

// borrowed is a Node over a new lease.
func borrowed(t testing.TB, lender *lend.Lender) (*lend.Lease, *Node) {
	t.Helper()
	lease := must[*lend.Lease](t)(lender.Open(shortDir(t)))
	req := new(pb.StartRequest)
	lease.Fill(req)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n := must[*Node](t)(Open(ctx, req, Options{Log: quiet}))
	t.Cleanup(func() { within(t, "the Node closes", func() { n.Close() }) })
	return lease, n
}

// lentNode is a Node over a lease of everything.
func lentNode(t testing.TB, o lend.Options) *Node {
	t.Helper()
	_, n := borrowed(t, newLender(t, o))
	return n
}

// The contract of exchange.Network holds over the adapter over a lent host, as it
// does over one that is not; every second node of each test is of either kind.
func TestContract(t *testing.T) {
	porttest.Network(t, func(t *testing.T, count int) []porttest.Node {
		nodes := make([]porttest.Node, count)
		for i := range nodes {
			h := newHost(t)
			node := porttest.Node{Info: info(h), Disconnect: h.Network().ClosePeer}
			over := h
			if i%2 == 0 {
				store := newStore()
				over = lentNode(t, lend.Options{Host: h, Blocks: store}).Host()
				node.Put = func(b blocks.Block) error { return store.Put(context.Background(), b) }
			}
			net, err := p2p.New(over, p2p.Options{})
			if err != nil {
				t.Fatal(err)
			}
			node.Network = net
			nodes[i] = node
		}
		return nodes
	})
}

// boxo's Bitswap runs unchanged over a lent host and store: it fetches blocks
// from a Bitswap of an ordinary host, and serves blocks to it.
func TestBitswap(t *testing.T) {
	const count = 20
	ordinary, lending := newHost(t), newHost(t)
	ours, theirs := newStore(), newStore()
	n := lentNode(t, lend.Options{Host: lending, Blocks: ours})

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	start := func(h host.Host, bs blockstore.Blockstore) *bitswap.Bitswap {
		b := bitswap.New(ctx, bsnet.NewFromIpfsHost(h), nil, bs)
		t.Cleanup(func() { b.Close() })
		return b
	}
	here, there := start(n.Host(), n.Blockstore()), start(ordinary, theirs)

	put := func(bs blockstore.Blockstore) (cids []cid.Cid) {
		for range count {
			data := make([]byte, 50_000)
			rand.Read(data)
			b := blocks.NewBlock(data)
			if err := bs.Put(ctx, b); err != nil {
				t.Fatal(err)
			}
			cids = append(cids, b.Cid())
		}
		return cids
	}
	inTheirs, inOurs := put(theirs), put(ours)
	if err := n.Host().Connect(ctx, info(ordinary)); err != nil {
		t.Fatal(err)
	}
	fetch := func(b *bitswap.Bitswap, cids []cid.Cid) error {
		got, err := b.GetBlocks(ctx, cids)
		if err != nil {
			return err
		}
		n := 0
		for range got {
			n++
		}
		if n != len(cids) {
			return fmt.Errorf("got %d blocks, want %d", n, len(cids))
		}
		return nil
	}
	if err := fetch(here, inTheirs); err != nil {
		t.Errorf("fetch over the lent host: %v", err)
	}
	if err := fetch(there, inOurs); err != nil {
		t.Errorf("fetch from the lent host: %v", err)
	}
	if stat, err := here.Stat(); err != nil || stat.BlocksSent < count || stat.BlocksReceived < count {
		t.Errorf("stat: got %d sent, %d received, %v, want at least %d each", stat.BlocksSent, stat.BlocksReceived, err, count)
	}
}

// A second Node over the next lease finds the peers that the first had, and is
// handed a stream that a peer opened in between.
func TestNextLease(t *testing.T) {
	const proto = "/test/1"
	lending, other := newHost(t), newHost(t)
	lender := newLender(t, lend.Options{Host: lending, Blocks: newStore()})
	lease, first := borrowed(t, lender)
	first.Host().SetStreamHandler(proto, func(s network.Stream) { s.Reset() })
	if err := first.Host().Connect(t.Context(), info(other)); err != nil {
		t.Fatal(err)
	}
	lease.Close()
	receive(t, "the first is over", first.Done())

	theirs, err := other.NewStream(t.Context(), lending.ID(), proto)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Reset()
	if _, err := theirs.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	theirs.CloseWrite()
	_, second := borrowed(t, lender)
	if got := second.Host().Network().Peers(); !slices.Contains(got, other.ID()) {
		t.Errorf("peers: got %v, want %v among them", got, other.ID())
	}
	got := make(chan network.Stream, 1)
	second.Host().SetStreamHandler(proto, func(s network.Stream) { got <- s })
	ours := receive(t, "the stream is handed over", got)
	defer ours.Close()
	if b, err := io.ReadAll(ours); string(b) != "hello" || err != nil || ours.Conn().RemotePeer() != other.ID() {
		t.Errorf("stream of %v: got %q, %v, want hello", ours.Conn().RemotePeer(), b, err)
	}
}
