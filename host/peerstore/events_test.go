package peerstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/peerstore"
)

// A script changes a store and says which events must follow. Peers are id(1),
// id(2) …, written 1, 2 …; addresses and protocols are written alike.
type script struct {
	*peerstore.Store
	t   *testing.T
	sub *peerstore.Subscription
}

// play runs a script in a bubble, whose clock is the store's.
func play(t *testing.T, o peerstore.Options, mode peerstore.Mode, run func(s *script)) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{Store: open(t, o), t: t}
		s.sub = s.Subscribe(mode)
		defer s.sub.Close()
		run(s)
	})
}

// expect waits until the store is idle and compares what it has told since.
func (s *script) expect(why string, want ...string) {
	s.t.Helper()
	var got []string
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
		e, err := s.sub.Next(ctx)
		cancel()
		if err != nil {
			break
		}
		got = append(got, text(e))
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("%s:\n got %q\nwant %q", why, got, want)
	}
	if err := s.Check(); err != nil {
		s.t.Errorf("%s: %v", why, err)
	}
}

// text writes an event as "change:multiaddrs 1 = 1 2 +2 -3": the peer, what it
// has, what came and what went.
func text(e peerstore.Event) string {
	var b strings.Builder
	name := func(p peer.ID) string {
		for n := range 50 {
			if id(n) == p {
				return fmt.Sprint(n)
			}
		}
		return p.String()
	}
	fmt.Fprintf(&b, "%s %s", e.Name(), name(e.Of()))
	list := func(sign string, all []string) {
		for _, one := range all {
			fmt.Fprintf(&b, " %s%s", sign, one)
		}
	}
	short := func(all []multiaddr.Multiaddr) (out []string) {
		for _, a := range all {
			ip, _, _ := strings.Cut(strings.TrimPrefix(a.String(), "/ip4/10.0.0."), "/")
			out = append(out, ip)
		}
		return out
	}
	ids := func(all []protocol.ID) []string { return protocol.ConvertToStrings(all) }
	switch e := e.(type) {
	case peerstore.EvtPeerAddrsChanged:
		b.WriteString(" =")
		list("", short(e.Addrs))
		list("+", short(e.Added))
		list("-", short(e.Removed))
	case peerstore.EvtPeerProtocolsChanged:
		b.WriteString(" =")
		list("", ids(e.Protocols))
		list("+", ids(e.Added))
		list("-", ids(e.Removed))
	}
	return b.String()
}

func TestEvents(t *testing.T) {
	tests := []struct {
		name string
		run  func(s *script)
	}{
		{"PS-3 PS-9 PS-18 a peer that discovery finds is new once, and its addresses with it", func(s *script) {
			found := s.View(peerstore.Discovery)
			found.AddAddrs(id(1), addrs(2, 1), hour)
			s.expect("first data: the peer, then the change", "peer 1", "change:multiaddrs 1 = 1 2 +1 +2")
			found.AddAddrs(id(1), addrs(3), hour)
			s.expect("a known peer only changes", "change:multiaddrs 1 = 1 2 3 +3")
		}},
		{"PS-18 a peer is new whichever book hears of it first", func(s *script) {
			_ = s.Put(id(1), "k", "v")
			_ = s.SetProtocols(id(2), "a")
			key, p := key(3)
			_ = s.AddPubKey(p, key.GetPublic())
			s.expect("three books", "peer 1", "peer 2", "change:protocols 2 = a +a", "peer 3")
		}},
		{"PS-19 PS-13 the DHT adds, and tells only what is new", func(s *script) {
			s.AddAddrs(id(1), addrs(1), hour)
			s.expect("there", "peer 1", "change:multiaddrs 1 = 1 +1")
			s.View(peerstore.DHT).AddAddrs(id(1), addrs(1), hour)
			s.expect("known already, by somebody else's word")
			s.View(peerstore.DHT).AddAddrs(id(1), addrs(2), hour)
			s.expect("one is new", "change:multiaddrs 1 = 1 2 +2")
		}},
		{"PS-21 equal sets are no change, whatever their order and how often something is in them", func(s *script) {
			s.AddAddrs(id(1), addrs(1, 2), hour)
			_ = s.SetProtocols(id(1), "a", "b")
			s.expect("there", "peer 1", "change:multiaddrs 1 = 1 2 +1 +2", "change:protocols 1 = a b +a +b")
			s.ReplaceAddrs(id(1), addrs(2, 1, 2, 1), 2*hour)
			_ = s.SetProtocols(id(1), "b", "a", "b")
			_ = s.AddProtocols(id(1), "a")
			s.UpdateAddrs(id(1), 2*hour, hour)
			s.expect("the same sets")
		}},
		{"PS-20 protocols, with what came and what went", func(s *script) {
			_ = s.SetProtocols(id(1), "a", "b")
			s.expect("first", "peer 1", "change:protocols 1 = a b +a +b")
			_ = s.SetProtocols(id(1), "b", "c")
			s.expect("replaced", "change:protocols 1 = b c +c -a")
			_ = s.SetProtocols(id(1))
			s.expect("none left; the peer says nothing more", "change:protocols 1 = -b -c")
		}},
		{"PS-15 protocols can be added and removed one by one", func(s *script) {
			_ = s.AddProtocols(id(1), "a")
			_ = s.AddProtocols(id(1), "b")
			_ = s.RemoveProtocols(id(1), "a", "z")
			s.expect("told as one difference", "peer 1", "change:protocols 1 = b +b")
		}},
		{"PS-11 PS-12 replacing tells the difference", func(s *script) {
			host := s.View(peerstore.Host)
			host.ReplaceAddrs(id(1), addrs(1, 2), hour)
			s.expect("first", "peer 1", "change:multiaddrs 1 = 1 2 +1 +2")
			host.ReplaceAddrs(id(1), addrs(2, 3), hour)
			s.expect("replaced", "change:multiaddrs 1 = 2 3 +3 -1")
		}},
		{"PS-19 PS-28 expiry is a change, with nobody looking", func(s *script) {
			s.AddAddrs(id(1), addrs(1), time.Minute)
			s.AddAddrs(id(1), addrs(2), hour)
			s.AddAddrs(id(2), addrs(3), time.Minute)
			s.expect("there", "peer 1", "change:multiaddrs 1 = 1 2 +1 +2", "peer 2", "change:multiaddrs 2 = 3 +3")
			time.Sleep(time.Minute + time.Second)
			s.expect("the short ones are gone", "change:multiaddrs 1 = 2 -1", "change:multiaddrs 2 = -3")
			time.Sleep(hour)
			s.expect("the long one too", "change:multiaddrs 1 = -2")
			if got := s.Peers(); len(got) != 0 {
				s.t.Errorf("peers of which nothing is known: got %v, want none", got)
			}
		}},
		{"an address that two sources claim goes with the last of them", func(s *script) {
			s.View(peerstore.DHT).AddAddrs(id(1), addrs(1), time.Minute)
			s.View(peerstore.Peering).AddAddrs(id(1), addrs(1), 2*time.Minute)
			s.expect("once", "peer 1", "change:multiaddrs 1 = 1 +1")
			time.Sleep(time.Minute + time.Second)
			s.expect("still claimed")
			time.Sleep(time.Minute)
			s.expect("by nobody", "change:multiaddrs 1 = -1")
		}},
		{"a reader that is late gets the difference, not the steps", func(s *script) {
			for n := range 30 {
				s.AddAddrs(id(1), addrs(n), hour)
				s.SetAddrs(id(1), addrs(n), -1)
			}
			s.AddAddrs(id(2), addrs(1), hour)
			s.Forget(id(2))
			s.AddAddrs(id(3), addrs(1), hour)
			s.expect("what came and went was never told", "peer 3", "change:multiaddrs 3 = 1 +1")
			s.Forget(id(3))
			s.AddAddrs(id(3), addrs(1), hour)
			s.expect("gone and back is as before")
			s.Forget(id(3))
			s.expect("deleting a peer takes its addresses", "change:multiaddrs 3 = -1")
			s.AddAddrs(id(3), addrs(1), hour)
			s.expect("and then it is new again", "peer 3", "change:multiaddrs 3 = 1 +1")
		}},
		{"peers come in the order of their first change", func(s *script) {
			for n := range 5 {
				_ = s.SetProtocols(id(5-n), "a")
			}
			_ = s.SetProtocols(id(5), "b")
			s.expect("5 was first",
				"peer 5", "change:protocols 5 = b +b", "peer 4", "change:protocols 4 = a +a", "peer 3", "change:protocols 3 = a +a",
				"peer 2", "change:protocols 2 = a +a", "peer 1", "change:protocols 1 = a +a")
		}},
		{"the end of the last connection withdraws what the peer speaks", func(s *script) {
			host := s.View(peerstore.Host)
			_ = host.SetProtocols(id(1), "a")
			host.RemovePeer(id(1))
			s.expect("nothing was told meanwhile but the peer", "peer 1")
			_ = host.SetProtocols(id(1), "a")
			s.expect("identify says it again", "change:protocols 1 = a +a")
		}},
		{"the owner's word replaces every source's, a view's only its own", func(s *script) {
			s.View(peerstore.DHT).AddAddrs(id(1), addrs(1), hour)
			s.View(peerstore.Peering).SetAddrs(id(1), addrs(1), time.Minute)
			time.Sleep(2 * time.Minute)
			s.expect("the DHT's claim is as it was", "peer 1", "change:multiaddrs 1 = 1 +1")
			s.SetAddrs(id(1), addrs(1), time.Minute)
			time.Sleep(2 * time.Minute)
			s.expect("now it is not", "change:multiaddrs 1 = -1")
		}},
		{"a signed record replaces the one before", func(s *script) {
			private, p := key(1)
			for n, list := range [][]multiaddr.Multiaddr{addrs(1, 2), addrs(2, 3)} {
				if ok, err := s.ConsumePeerRecord(signed(s.t, private, uint64(n+1), list), hour); !ok || err != nil {
					s.t.Errorf("record %d: got %v, %v, want it accepted", n, ok, err)
				}
			}
			wantAddrs(s.t, "of the later record", s.Addrs(p), addrs(2, 3))
			s.expect("one difference", "peer 1", "change:multiaddrs 1 = 2 3 +2 +3")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { play(t, peerstore.Options{}, peerstore.Changes, test.run) })
	}
}

// Loading tells nothing (PS-25); a reader that wants to know asks for a replay.
func TestReplay(t *testing.T) {
	disk := memory()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, peerstore.Options{Datastore: disk})
		s.AddAddrs(id(1), addrs(1), hour)
		_ = s.SetProtocols(id(1), "a")
	})
	play(t, peerstore.Options{Datastore: disk}, peerstore.Changes, func(s *script) {
		s.expect("loading is no change")
		s.AddAddrs(id(1), addrs(2), hour)
		s.expect("nor is a loaded peer new", "change:multiaddrs 1 = 1 2 +2")
	})
	play(t, peerstore.Options{Datastore: disk}, peerstore.Replay, func(s *script) {
		s.expect("from the beginning; nobody has confirmed its protocols", "peer 1", "change:multiaddrs 1 = 1 2 +1 +2")
		_ = s.SetProtocols(id(1), "a")
		s.expect("now somebody has", "change:protocols 1 = a +a")
	})
}

// The host's event bus gets what came up before it was there, and everything
// after (PS-3). A subscriber of the bus that does not read keeps nobody waiting,
// Close included.
func TestBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, peerstore.Options{})
		s.AddAddrs(id(1), addrs(1), hour)
		bus := eventbus.NewBus()
		sub, err := bus.Subscribe([]any{
			new(peerstore.EvtPeerDiscovered), new(peerstore.EvtPeerAddrsChanged), new(peerstore.EvtPeerProtocolsChanged),
		}, eventbus.BufSize(4))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Attach(bus); err != nil {
			t.Fatal(err)
		}
		if err := s.Attach(bus); !errors.Is(err, errs.Invalid) {
			t.Errorf("second bus: got %v, want %v", err, errs.Invalid)
		}
		synctest.Wait()
		_ = s.SetProtocols(id(1), "a")
		synctest.Wait()
		for _, want := range []string{"peer 1", "change:multiaddrs 1 = 1 +1", "change:protocols 1 = a +a"} {
			if got := text((<-sub.Out()).(peerstore.Event)); got != want {
				t.Errorf("on the bus: got %q, want %q", got, want)
			}
		}
		for n := range 20 {
			s.AddAddrs(id(n), addrs(n), hour)
		}
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Attach(bus); !errors.Is(err, errs.Closed) {
			t.Errorf("after Close: got %v, want %v", err, errs.Closed)
		}
		sub.Close()
	})
}

// A registrar hears who starts and who stops speaking its protocol (PS-17),
// without polling (PS-1), and decides for itself.
func TestRegistrar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blockexc = "/codex/blockexc/1.0.0"
		s := open(t, peerstore.Options{})
		_ = s.SetProtocols(id(1), blockexc, "/ping")
		sub := s.Subscribe(peerstore.Replay)
		speaks := make(map[peer.ID]bool)
		ended := make(chan error)
		go func() {
			for {
				e, err := sub.Next(context.Background())
				if err != nil {
					ended <- err
					return
				}
				if c, ok := e.(peerstore.EvtPeerProtocolsChanged); ok {
					if slices.Contains(c.Added, blockexc) {
						speaks[c.Peer] = true
					}
					if slices.Contains(c.Removed, blockexc) {
						delete(speaks, c.Peer)
					}
				}
			}
		}()
		step := func(why string, change func(), want ...int) {
			change()
			synctest.Wait()
			if len(speaks) != len(want) {
				t.Errorf("%s: got %v, want %v", why, speaks, want)
			}
			for _, n := range want {
				if !speaks[id(n)] {
					t.Errorf("%s: got %v, want %v", why, speaks, want)
				}
			}
		}
		step("who was there before", func() {}, 1)
		step("identify names it", func() { _ = s.SetProtocols(id(2), blockexc) }, 1, 2)
		step("another protocol", func() { _ = s.AddProtocols(id(3), "/ping") }, 1, 2)
		step("one stops", func() { _ = s.SetProtocols(id(1), "/ping") }, 2)
		step("one leaves", func() { s.View(peerstore.Host).RemovePeer(id(2)) })
		s.Close()
		if err := <-ended; !errors.Is(err, errs.Closed) {
			t.Errorf("Next after Close: got %v, want %v", err, errs.Closed)
		}
		sub.Close()
	})
}

// An address stream ends with its context and with the store, read or not.
func TestStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, peerstore.Options{})
		s.AddAddrs(id(1), addrs(1, 2), hour)
		ctx, cancel := context.WithCancel(context.Background())
		one, two := s.AddrStream(ctx, id(1)), s.AddrStream(context.Background(), id(1))
		<-one
		cancel()
		for range one {
		}
		s.Close()
		for range two {
		}
		if _, ok := <-s.AddrStream(context.Background(), id(1)); ok {
			t.Error("stream of a closed store: got an address, want the end")
		}
		if got := len(s.Addrs(id(1))); got != 2 {
			t.Errorf("addresses after Close: got %d, want 2: the store still answers", got)
		}
	})
}

// What a view may touch (PS-14): its own claims, and nobody else's.
func TestViews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, peerstore.Options{})
		host, dht, manual := s.View(peerstore.Host), s.View(peerstore.DHT), s.View(peerstore.Manual)
		p := id(1)
		host.AddAddrs(p, addrs(1, 2), core.TempAddrTTL)
		dht.AddAddrs(p, addrs(2, 3), core.TempAddrTTL)
		manual.AddAddrs(p, addrs(4), core.PermanentAddrTTL)

		host.UpdateAddrs(p, core.TempAddrTTL, 0)
		wantAddrs(t, "what the DHT says stays", s.Addrs(p), addrs(2, 3, 4))
		host.SetAddrs(p, addrs(3), 0)
		host.ClearAddrs(p)
		wantAddrs(t, "the host claims nothing any more", s.Addrs(p), addrs(2, 3, 4))
		dht.ReplaceAddrs(p, addrs(3, 5), hour)
		wantAddrs(t, "the DHT replaces its own", s.Addrs(p), addrs(3, 4, 5))
		host.AddAddrs(p, addrs(6), core.RecentlyConnectedAddrTTL)
		time.Sleep(10 * time.Minute)
		dht.UpdateAddrs(p, core.RecentlyConnectedAddrTTL, core.RecentlyConnectedAddrTTL)
		time.Sleep(10 * time.Minute)
		wantAddrs(t, "a refresh reaches what identify brought", s.Addrs(p), addrs(3, 4, 5, 6))
		s.ClearAddrs(p)
		wantAddrs(t, "the owner clears all", s.Addrs(p), nil)
	})
}
