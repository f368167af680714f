package peerstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/peerstore"
)

// Who goes when there is no room: gossip first, then whom we have not seen for
// longest; never who is connected, permanent, or ourselves.
func TestEviction(t *testing.T) {
	has := func(t *testing.T, why string, s *peerstore.Store, n int, want bool) {
		t.Helper()
		if _, got := s.Peer(id(n)); got != want {
			t.Errorf("%s: got peer %d known %v, want %v", why, n, got, want)
		}
	}
	meet := func(s *peerstore.Store, n int) {
		c := conn{remote: id(n), addr: addr(n), dialled: true}
		s.Notifiee().Connected(nil, c)
		s.Notifiee().Disconnected(nil, c)
		time.Sleep(time.Second)
	}
	tests := []struct {
		name string
		run  func(t *testing.T, s *peerstore.Store)
	}{
		{"the peer heard of longest ago goes", func(t *testing.T, s *peerstore.Store) {
			for n := range 17 {
				s.View(peerstore.DHT).AddAddrs(id(n), addrs(n), hour)
				s.View(peerstore.DHT).AddAddrs(id(0), addrs(0), hour)
			}
			has(t, "heard of all the time", s, 0, true)
			has(t, "heard of once, first", s, 1, false)
			has(t, "heard of once, second", s, 2, true)
		}},
		{"gossip does not push out whom we met", func(t *testing.T, s *peerstore.Store) {
			for n := range 10 {
				meet(s, n)
			}
			for n := 100; n < 200; n++ {
				s.View(peerstore.DHT).AddAddrs(id(n), addrs(n), hour)
			}
			for n := range 10 {
				has(t, "met", s, n, true)
			}
			has(t, "the last that was heard of", s, 199, true)
			has(t, "the first", s, 100, false)
		}},
		{"a store full of old friends has room to dial a few new ones", func(t *testing.T, s *peerstore.Store) {
			for n := range 16 {
				meet(s, n)
			}
			s.View(peerstore.Host).AddAddrs(id(100), addrs(100), core.TempAddrTTL)
			s.View(peerstore.Host).AddAddrs(id(101), addrs(101), core.TempAddrTTL)
			has(t, "about to be dialled", s, 100, true)
			has(t, "about to be dialled", s, 101, true)
			has(t, "met longest ago", s, 0, false)
			has(t, "met last", s, 15, true)
		}},
		{"connected and permanent peers and ourselves stay, whatever comes", func(t *testing.T, s *peerstore.Store) {
			private, self := key(0)
			if err := s.AddPrivKey(self, private); err != nil {
				t.Fatal(err)
			}
			for n := 1; n < 20; n++ {
				s.Notifiee().Connected(nil, conn{remote: id(n), addr: addr(n)})
			}
			s.View(peerstore.Peering).AddAddrs(id(20), addrs(20), core.PermanentAddrTTL)
			for n := 100; n < 150; n++ {
				meet(s, n)
			}
			for n := range 21 {
				has(t, "pinned", s, n, true)
			}
			if got := s.Stats().Peers; got != 22 {
				t.Errorf("peers: got %d, want 22: the pinned ones and the last", got)
			}
			for n := 1; n < 20; n++ {
				s.Notifiee().Disconnected(nil, conn{remote: id(n), addr: addr(n)})
			}
			meet(s, 200)
			if got := s.Stats().Peers; got > 16 {
				t.Errorf("peers when the connections are gone: got %d, want at most 16", got)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := open(t, peerstore.Options{MaxPeers: 16})
				test.run(t, s)
				if err := s.Check(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Bytes are bounded as well as peers: few peers that say much are as bad as many.
func TestByteBound(t *testing.T) {
	const bound = 256 << 10
	s := open(t, peerstore.Options{MaxBytes: bound, MaxMetadata: 8})
	for n := range 100 {
		for k := range 8 {
			if err := s.Put(id(n), fmt.Sprint(k), strings.Repeat("x", 4000)); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Stats().Bytes; got > bound {
			t.Fatalf("after peer %d: got %d bytes, want at most %d", n, got, bound)
		}
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// One peer has only so much: addresses, protocols, metadata, and the length of
// each.
func TestPeerBounds(t *testing.T) {
	s := open(t, peerstore.Options{MaxAddrs: 4, MaxProtocols: 4, MaxMetadata: 4})
	p := id(1)
	for n := range 8 {
		s.AddAddrs(p, addrs(n), time.Duration(n+1)*hour)
	}
	wantAddrs(t, "those that expire first made room", s.Addrs(p), addrs(4, 5, 6, 7))
	s.AddAddrs(p, addrs(100, 101, 102), core.ConnectedAddrTTL)
	if got := len(s.Addrs(p)); got != 7 {
		t.Errorf("with a connection's: got %d addresses, want 7", got)
	}
	for n := range 1000 {
		s.AddAddrs(p, addrs(1000+n), core.ConnectedAddrTTL)
	}
	if got := len(s.Addrs(p)); got != 516 {
		t.Errorf("a connection's thousand: got %d addresses, want 516", got)
	}
	long := multiaddr.StringCast("/dns4/" + strings.Repeat("a", 2000) + "/tcp/1")
	s.AddAddr(id(2), long, hour)
	s.AddAddr(peer.ID(strings.Repeat("x", 1000)), addr(1), hour)
	if got := len(s.Peers()); got != 1 {
		t.Errorf("an address of 2,000 bytes and a peer of 1,000: got %d peers, want 1", got)
	}

	if err := s.SetProtocols(p, "a", "b", "c", "d", "e"); !errors.Is(err, errs.Invalid) {
		t.Errorf("5 protocols: got %v, want %v", err, errs.Invalid)
	}
	if err := s.SetProtocols(p, "a", "a", "a", "a", "a", protocol.ID(strings.Repeat("x", 1000))); err != nil {
		t.Errorf("one protocol many times, and a long one: got %v, want none", err)
	}
	if got, _ := s.GetProtocols(p); len(got) != 1 {
		t.Errorf("protocols: got %v, want a", got)
	}
	for n := range 5 {
		if err := s.Put(p, fmt.Sprint(n), "v"); (err != nil) != (n == 4) {
			t.Errorf("key %d: got %v", n, err)
		}
	}
	for _, err := range []error{s.Put(p, strings.Repeat("k", 129), "v"), s.Put(p, "0", strings.Repeat("v", 9000)), s.Put(p, "9", "v")} {
		if !errors.Is(err, errs.TooLarge) {
			t.Errorf("too long or too many: got %v, want %v", err, errs.TooLarge)
		}
	}
	for n := range 20 { // addresses remembered because they were good
		c := conn{remote: id(3), addr: addr(n), dialled: true}
		s.Notifiee().Connected(nil, c)
		s.Notifiee().Disconnected(nil, c)
		s.View(peerstore.Host).ClearAddrs(id(3))
	}
	if got := s.RecentlyGood(1); len(got) != 1 || len(got[0].Addrs) != 8 {
		t.Errorf("good addresses remembered: got %v, want 8", got)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// A hundred goroutines at once, on few peers and with little room, leave the
// store consistent, and a reader's belief is what the store says.
func TestConcurrent(t *testing.T) {
	d := newDisk()
	s := open(t, peerstore.Options{Datastore: d, FlushPeers: 10, MaxPeers: 20, MaxAddrs: 5, MaxProtocols: 5, MaxMetadata: 5})
	ids := make([]peer.ID, 40)
	for n := range ids {
		ids[n] = id(n)
	}
	reader := s.Subscribe(peerstore.Changes)
	believed := make(map[peer.ID]string)
	believe := func(ctx context.Context) {
		for {
			e, err := reader.Next(ctx)
			if err != nil {
				return
			}
			switch e := e.(type) {
			case peerstore.EvtPeerAddrsChanged:
				believed[e.Peer+"a"] = fmt.Sprint(e.Addrs)
			case peerstore.EvtPeerProtocolsChanged:
				believed[e.Peer+"p"] = fmt.Sprint(e.Protocols)
			}
		}
	}
	reading, stop := context.WithCancel(context.Background())
	var readers, writers sync.WaitGroup
	readers.Go(func() { believe(reading) })
	for g := range 100 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 1))
			for range 100 {
				act(s, random, ids)
			}
		})
	}
	writers.Wait()
	stop()
	readers.Wait()
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	for _, p := range ids {
		s.Peer(p) // what has expired is noticed
	}
	idle, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	believe(idle)
	for _, p := range ids {
		spoken, _ := s.GetProtocols(p)
		for what, now := range map[string]string{believed[p+"a"]: fmt.Sprint(s.Addrs(p)), believed[p+"p"]: fmt.Sprint(spoken)} {
			if what == "" {
				what = "[]"
			}
			if what != now {
				t.Errorf("%s: the reader believes %s, the store says %s", p, what, now)
			}
		}
	}
	reader.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What is on disk is what was in memory, the pinned peers beyond the bound too.
	again := open(t, peerstore.Options{Datastore: d, MaxAddrs: 5, MaxProtocols: 5, MaxMetadata: 5})
	if err := again.Check(); err != nil {
		t.Error(err)
	}
	for _, p := range ids {
		before, _ := s.Peer(p)
		after, _ := again.Peer(p)
		if got, want := fmt.Sprint(after.Metadata, after.Recalled), fmt.Sprint(before.Metadata, append(before.Protocols, before.Recalled...)); len(before.Recalled) == 0 && got != want {
			t.Errorf("%s after a restart: got %s, want %s", p, got, want)
		}
	}
}

// act does one thing at random.
func act(s *peerstore.Store, random *rand.Rand, ids []peer.ID) {
	p := ids[random.IntN(len(ids))]
	view := s.View(peerstore.Source(random.IntN(5)))
	list := addrs(random.IntN(10), random.IntN(10))
	ttls := []time.Duration{time.Nanosecond, core.TempAddrTTL, hour, core.RecentlyConnectedAddrTTL, core.ConnectedAddrTTL, core.PermanentAddrTTL}
	ttl := ttls[random.IntN(len(ttls))]
	protocols := []protocol.ID{"a", "b", "c", "d", "e", "f"}[random.IntN(3):][:random.IntN(4)]
	c := conn{remote: p, addr: list[0], dialled: random.IntN(2) == 0}
	switch random.IntN(20) {
	case 0, 1, 2:
		view.AddAddrs(p, list, ttl)
	case 3:
		view.SetAddrs(p, list, ttl)
	case 4:
		view.UpdateAddrs(p, ttl, ttls[random.IntN(len(ttls))])
	case 5:
		s.UpdateAddrs(p, ttl, 0)
	case 6:
		view.ClearAddrs(p)
	case 7:
		s.ReplaceAddrs(p, list, ttl)
	case 8:
		_ = s.SetProtocols(p, protocols...)
	case 9:
		_ = s.AddProtocols(p, protocols...)
	case 10:
		_ = s.RemoveProtocols(p, protocols...)
	case 11:
		_ = s.Put(p, fmt.Sprint(random.IntN(8)), fmt.Sprint(random.IntN(8)))
	case 12:
		s.DeleteMetadata(p, fmt.Sprint(random.IntN(8)))
	case 13:
		view.RemovePeer(p)
	case 14:
		s.Forget(p)
	case 15:
		s.Notifiee().Connected(nil, c)
		s.Notifiee().Disconnected(nil, c)
	case 16:
		s.RecentlyGood(3)
		s.Peer(p)
		s.PeersWithAddrs()
	case 17:
		_ = s.Flush(context.Background())
	case 18:
		s.RecordLatency(p, time.Millisecond)
		s.LatencyEWMA(p)
	case 19:
		ctx, cancel := context.WithCancel(context.Background())
		stream := s.AddrStream(ctx, p)
		sub := s.Subscribe(peerstore.Replay)
		_, _ = sub.Next(ctx)
		sub.Close()
		cancel()
		for range stream {
		}
	}
}

// The same acts one after the other, with the store's invariants checked after
// each: what TestConcurrent finds only now and then, this finds with its seed.
func TestRandomActs(t *testing.T) {
	var ids []peer.ID
	for n := range 12 {
		ids = append(ids, id(n))
	}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			s := open(t, peerstore.Options{Datastore: memory(), MaxPeers: 8, MaxAddrs: 3, MaxProtocols: 5, MaxMetadata: 5})
			for p := range 2 {
				private, self := key(p)
				_ = s.AddPubKey(self, private.GetPublic())
			}
			random := rand.New(rand.NewPCG(seed, 2))
			for step := range 500 {
				act(s, random, ids)
				if random.IntN(10) == 0 {
					time.Sleep(time.Duration(random.IntN(100)) * time.Second)
				}
				if err := s.Check(); err != nil {
					t.Fatalf("seed %d step %d: %v", seed, step, err)
				}
			}
		})
	}
}
