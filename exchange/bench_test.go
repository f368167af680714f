package exchange_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
)

// A pair is a seeder, its store, and a node connected to it.
type pair struct {
	store        *exchangetest.Blocks
	seeder, node *exchange.Exchange
}

// networks are what two exchanges can be connected by.
var networks = map[string]func(testing.TB) (a, b exchange.Network, connect func() error){
	"memnet": func(testing.TB) (a, b exchange.Network, connect func() error) {
		net := memnet.New()
		x, y := net.Node(memnet.ID("a")), net.Node(memnet.ID("b"))
		return x, y, func() error { net.Connect(x.Self(), y.Self()); return nil }
	},
	"libp2p": func(t testing.TB) (a, b exchange.Network, connect func() error) {
		x, y := newHost(t), newHost(t)
		a, err := p2p.New(x, p2p.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if b, err = p2p.New(y, p2p.Options{}); err != nil {
			t.Fatal(err)
		}
		return a, b, func() error {
			return x.Connect(context.Background(), peer.AddrInfo{ID: y.ID(), Addrs: y.Addrs()})
		}
	},
}

// newHost makes a host on the loopback interface, as a node of ours has it.
func newHost(t testing.TB) host.Host {
	t.Helper()
	key, err := p2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(append(p2p.HostOptions(), libp2p.Identity(key),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func newPair(t testing.TB, network string) pair {
	t.Helper()
	a, b, connect := networks[network](t)
	p := pair{store: exchangetest.NewBlocks()}
	var err error
	if p.seeder, err = exchange.New(exchange.Config{Network: a, Blocks: p.store}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.seeder.Close() })
	if p.node, err = exchange.New(exchange.Config{Network: b, Blocks: exchangetest.NewBlocks()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.node.Close() })
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	late := time.After(10 * time.Second)
	for len(p.node.Peers()) == 0 || len(p.seeder.Peers()) == 0 {
		select {
		case <-late:
			t.Fatal("the two do not know of each other after ten seconds")
		default:
		}
	}
	return p
}

// Two exchanges in one process: what one has, the other gets in one request.
func BenchmarkTransfer(b *testing.B) {
	for _, network := range []string{"memnet", "libp2p"} {
		for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", network, size>>10), func(b *testing.B) {
				p := newPair(b, network)
				list := makeBlocks(1, max(64, min(4096, 32<<20/size)), size)
				p.store.PutMany(b.Context(), list)
				keys := cids(list)
				b.SetBytes(int64(len(list) * size))
				b.ReportAllocs()
				for b.Loop() {
					ch, err := p.node.GetBlocks(b.Context(), keys)
					if err != nil {
						b.Fatal(err)
					}
					n := 0
					for range ch {
						n++
					}
					if n != len(keys) {
						b.Fatalf("got %d blocks, want %d", n, len(keys))
					}
				}
				each := float64(b.N) * float64(len(keys))
				b.ReportMetric(each/b.Elapsed().Seconds(), "blocks/s")
				if got := p.node.Stat(); got.DuplicateBlocks > 0 {
					b.ReportMetric(float64(got.DuplicateBlocks)/each, "duplicates/block")
				}
			})
		}
	}
}

// One block after the other, each asked for when the last has come: what a walk
// through a DAG does.
func BenchmarkLoneGet(b *testing.B) {
	for _, network := range []string{"memnet", "libp2p"} {
		for _, kind := range []string{"session", "exchange"} {
			b.Run(network+"/"+kind, func(b *testing.B) {
				p := newPair(b, network)
				var f interface {
					GetBlock(context.Context, cid.Cid) (blocks.Block, error)
				} = p.node
				if kind == "session" {
					f = p.node.NewSession(b.Context())
				}
				list := makeBlocks(1, 1000, 1<<10)
				p.store.PutMany(b.Context(), list)
				var took []time.Duration
				for b.Loop() {
					start := time.Now()
					if _, err := f.GetBlock(b.Context(), list[len(took)%len(list)].Cid()); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
}
