package integration

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/codexchange/codexchange/adapter/bitswap"
	adapter "github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
)

// BenchmarkTransfer moves blocks between two nodes in this process over libp2p on
// loopback, through a blockservice session and stores in memory, by each exchange
// in turn. An iteration is one data set of 64 MiB (20,000 blocks for 1 KiB).
func BenchmarkTransfer(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 256 << 10, 1 << 20} {
		count := min(64<<20/size, 20000)
		list := make([]blocks.Block, count)
		keys := make([]cid.Cid, count)
		for i := range list {
			data := random(byte(i), size)
			copy(data, fmt.Sprint(i))
			blk, err := blocks.NewBlockWithCid(data, sum(1, cid.Raw, data))
			must(b, "make block", err)
			list[i], keys[i] = blk, blk.Cid()
		}
		for _, name := range []string{"blockexc", "bitswap"} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size * count))
				var cpu time.Duration
				for b.Loop() {
					b.StopTimer()
					from, to, stop := pair(b, name)
					must(b, "store", from.store.PutMany(context.Background(), list))
					runtime.GC()
					before := cpuTime()
					b.StartTimer()
					got := fetchWindowed(to.service, keys)
					b.StopTimer()
					cpu += cpuTime() - before
					if got != count {
						b.Fatalf("got %d of %d blocks", got, count)
					}
					stop()
					b.StartTimer()
				}
				b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
				b.ReportMetric(cpu.Seconds()/(float64(size*count)*float64(b.N)/1e9), "CPU-s/GB")
			})
		}
	}
}

type benchNode struct {
	host    host.Host
	store   blockstore.Blockstore
	service blockservice.BlockService
}

func pair(b *testing.B, name string) (from, to benchNode, stop func()) {
	var stops []func()
	start := func() benchNode {
		key, err := p2p.NewIdentity()
		must(b, "make identity", err)
		limits, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
		must(b, "lift limits", err)
		h, err := libp2p.New(append(p2p.HostOptions(), libp2p.Identity(key), libp2p.NoListenAddrs,
			libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(limits))...)
		must(b, "make host", err)
		n := benchNode{host: h, store: blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))}
		var ex boxo.Interface
		if name == "bitswap" {
			ex, err = bitswap.New(context.Background(), h, n.store, bitswap.Options{})
		} else {
			var network *p2p.Network
			network, err = p2p.New(h, p2p.Options{})
			must(b, "make network", err)
			ex, err = exchange.New(exchange.Config{Network: network, Blocks: adapter.New(n.store)})
		}
		must(b, "start exchange", err)
		n.service = blockservice.New(n.store, ex)
		must(b, "listen", h.Network().Listen(loopback))
		stops = append(stops, func() { _ = n.service.Close(); _ = h.Close() })
		return n
	}
	from, to = start(), start()
	must(b, "connect", to.host.Connect(context.Background(), peer.AddrInfo{ID: from.host.ID(), Addrs: from.host.Addrs()}))
	return from, to, func() {
		for _, s := range stops {
			s()
		}
	}
}

// fetchWindowed gets blocks through one session, 512 wanted at a time, for
// Bitswap loses what is beyond 1,024.
func fetchWindowed(service blockservice.BlockService, keys []cid.Cid) (got int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	session := blockservice.NewSession(ctx, service)
	const part, parallel = 32, 16
	jobs, done := make(chan []cid.Cid), make(chan int)
	for range parallel {
		go func() {
			n := 0
			for p := range jobs {
				for range session.GetBlocks(ctx, p) {
					n++
				}
			}
			done <- n
		}()
	}
	for len(keys) > 0 {
		n := min(part, len(keys))
		jobs <- keys[:n]
		keys = keys[n:]
	}
	close(jobs)
	for range parallel {
		got += <-done
	}
	return got
}

// cpuTime is what this process has used, in user and system mode.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
