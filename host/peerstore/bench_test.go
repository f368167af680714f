package peerstore_test

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	leveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/libp2p/go-libp2p/core/peer"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/test"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/host/peerstore"
)

// libp2p's benchmarks over its own store in memory, ours in memory, and ours with
// a datastore, side by side.
func BenchmarkSuites(b *testing.B) {
	stores := []struct {
		name string
		make func(b *testing.B) (core.Peerstore, func())
	}{
		{"pstoremem", func(b *testing.B) (core.Peerstore, func()) {
			s, err := pstoremem.NewPeerstore()
			if err != nil {
				b.Fatal(err)
			}
			return s, func() { s.Close() }
		}},
		{"memory", func(b *testing.B) (core.Peerstore, func()) {
			s := open(b, peerstore.Options{})
			return s, func() { s.Close() }
		}},
		{"persistent", func(b *testing.B) (core.Peerstore, func()) {
			s := open(b, peerstore.Options{Datastore: memory()})
			return s, func() { s.Close() }
		}},
	}
	for _, store := range stores {
		b.Run("Peerstore/"+store.name, func(b *testing.B) {
			test.BenchmarkPeerstore(b, func() (core.Peerstore, func()) { return store.make(b) }, "")
		})
	}
	for _, store := range stores {
		b.Run("KeyBook/"+store.name, func(b *testing.B) {
			test.BenchmarkKeyBook(b, func() (core.KeyBook, func()) { return store.make(b) })
		})
	}
}

// many is the number of peers that must fit in 300 MiB and be loaded within 5 s.
const many = 100_000

// fill writes peers as a node in the public IPFS network knows them: five
// addresses, twenty protocols of some fifty, the two values of identify.
func fill(b *testing.B, d datastore.Batching) {
	s := open(b, peerstore.Options{Datastore: d, FlushPeers: -1, FlushEvery: -1})
	host := s.View(peerstore.Host)
	for n := range many {
		p := hashed(n)
		host.AddAddrs(p, typical(n), 24*hour)
		var spoken []protocol.ID
		for k := range 20 {
			spoken = append(spoken, protocol.ID(fmt.Sprintf("/ipfs/protocol-%d/1.%d.0", (n+k*7)%50, k%3)))
		}
		_ = host.SetProtocols(p, spoken...)
		_ = host.Put(p, "ProtocolVersion", "ipfs/0.1.0")
		_ = host.Put(p, "AgentVersion", fmt.Sprintf("kubo/0.%d.0/%x", n%40, n%200))
		c := conn{remote: p, addr: typical(n)[0], dialled: n%2 == 0}
		s.Notifiee().Connected(nil, c)
		s.Notifiee().Disconnected(nil, c)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// typical is the addresses of the nth peer.
func typical(n int) []multiaddr.Multiaddr {
	ip4 := fmt.Sprintf("/ip4/%d.%d.%d.%d", 11+n>>24, n>>16&255, n>>8&255, n&255)
	ip6 := fmt.Sprintf("/ip6/2001:db8::%x:%x", n>>16, n&0xffff)
	const cert = "/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g"
	return []multiaddr.Multiaddr{
		multiaddr.StringCast(ip4 + "/tcp/4001"), multiaddr.StringCast(ip4 + "/udp/4001/quic-v1"),
		multiaddr.StringCast(ip4 + "/udp/4001/quic-v1/webtransport" + cert + cert),
		multiaddr.StringCast(ip6 + "/tcp/4001"), multiaddr.StringCast(ip6 + "/udp/4001/quic-v1"),
	}
}

// Loading 100,000 peers from leveldb: time, and the memory that they take when
// garbage is gone.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	d, err := leveldb.NewDatastore(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	fill(b, d)
	size, err := d.DiskUsage(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		before := heap()
		d, err := leveldb.NewDatastore(dir, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		began, busy := time.Now(), cpu(b)
		s, err := peerstore.New(context.Background(), peerstore.Options{Datastore: d, Log: quiet})
		if err != nil {
			b.Fatal(err)
		}
		took, worked := time.Since(began), cpu(b)-busy
		b.StopTimer()
		takes := heap() - before
		if got := len(s.PeersWithAddrs()); got != many {
			b.Fatalf("peers: got %d, want %d", got, many)
		}
		b.ReportMetric(float64(takes)/(1<<20), "MiB")
		b.ReportMetric(worked.Seconds(), "cpu-s")
		b.ReportMetric(float64(size)/(1<<20), "MiB-disk")
		b.ReportMetric(float64(s.Stats().Bytes)/(1<<20), "MiB-estimated")
		if min(took, worked) > 5*time.Second || takes > 300<<20 { // what others take of the machine does not count
			b.Errorf("%d peers: got %v, %v of CPU and %d MiB, want at most 5 s and 300 MiB", many, took, worked, takes>>20)
		}
		s.Close()
		d.Close()
		b.StartTimer()
	}
}

// cpu is the time that this process has used, which says more than the clock does
// on a machine that others use too.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A write when the store is full: each new peer evicts another.
func BenchmarkEvict(b *testing.B) {
	s := open(b, peerstore.Options{MaxPeers: 10_000})
	ids := make([]peer.ID, 100_000)
	for n := range ids {
		ids[n] = hashed(n)
	}
	list := typical(1)
	b.ResetTimer()
	for n := range b.N {
		s.AddAddrs(ids[n%len(ids)], list, hour)
	}
}
