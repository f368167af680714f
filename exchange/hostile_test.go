package exchange_test

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/wire"
)

// What a peer sends in place of leaf 3 of a dataset. None of it is delivered, the
// peer has a bad block in its ledger, and the leaf comes from an honest peer.
func TestB35FalseLeaves(t *testing.T) {
	d := makeDataset(t, 8)
	other := makeDataset(t, 9)
	const i = 3
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	for name, change := range map[string]func(*wire.Delivery){
		"proof with a changed node":      func(v *wire.Delivery) { v.Proof = flip(v.Proof, len(v.Proof)-1) },
		"proof that is cut":              func(v *wire.Delivery) { v.Proof = v.Proof[:len(v.Proof)-5] },
		"no proof":                       func(v *wire.Delivery) { v.Proof = nil },
		"empty proof":                    func(v *wire.Delivery) { v.Proof = []byte{} },
		"proof of another index":         func(v *wire.Delivery) { v.Proof = d.proof(t, i+1) },
		"block and proof of another":     func(v *wire.Delivery) { a := v.Address; *v = d.delivery(t, i+1); v.Address = a },
		"proof that leads to other root": func(v *wire.Delivery) { v.Proof = other.proof(t, i) },
		"bytes that do not hash":         func(v *wire.Delivery) { v.Data = flip(v.Data, 100) },
		"too few bytes":                  func(v *wire.Delivery) { v.Data = v.Data[:len(v.Data)-1] },
		"too many bytes":                 func(v *wire.Delivery) { v.Data = append(bytes.Clone(v.Data), 0) },
		"no bytes":                       func(v *wire.Delivery) { v.Data = nil },
		"bytes with their own CID": func(v *wire.Delivery) {
			b := makeBlocks(9, 1, leafSize)[0]
			v.Data, v.Cid = b.RawData(), b.Cid()
		},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *stage) {
				n, liar, honest := s.node("node"), s.player("liar"), s.node("honest")
				s.meet(n, liar)
				ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{First: i, Count: 1})
				if err != nil {
					s.Fatal(err)
				}
				liar.isAsked("it is the only peer", wire.Leaf(d.root, i))
				honest.hasLeaves(d, wire.Range{Count: 8})
				s.meet(n, honest)

				v := d.delivery(t, i)
				change(&v)
				liar.send(n, &wire.Message{Deliveries: []wire.Delivery{v}})
				if got := collectLeaves(s, "the honest peer has it", d, ch); len(got) != 1 {
					s.Fatalf("got %d leaves, want 1", len(got))
				}
				if l, _ := n.Ledger(liar.id); l.Bad != 1 || l.BlocksReceived != 0 {
					s.Errorf("the ledger has %d bad blocks and %d good ones of the liar, want 1 and 0", l.Bad, l.BlocksReceived)
				}
				if l, _ := n.Ledger(honest.id); l.BlocksReceived != 1 || l.Bad != 0 {
					s.Errorf("the ledger has %d good and %d bad blocks of the honest peer, want 1 and 0", l.BlocksReceived, l.Bad)
				}
				n.idle("the leaf has come")
			})
		})
	}
}

// The same for a block that was asked for by CID.
func TestB35FalseBlocks(t *testing.T) {
	list := makeBlocks(1, 2, 1000)
	want, other := list[0], list[1]
	for name, v := range map[string]wire.Delivery{
		"bytes that do not hash":            {Data: other.RawData(), Cid: want.Cid()},
		"another block":                     {Data: other.RawData(), Cid: other.Cid()},
		"too few bytes":                     {Data: want.RawData()[:999], Cid: want.Cid()},
		"no bytes":                          {Cid: want.Cid()},
		"bytes that do not hash, and proof": {Data: other.RawData(), Cid: want.Cid(), Proof: []byte{1, 2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *stage) {
				n, liar, honest := s.node("node"), s.player("liar"), s.node("honest")
				s.meet(n, liar)
				r := s.getting(s.Context(), n, want.Cid())
				liar.isAsked("it is the only peer", wire.Block(want.Cid()))
				v.Address = wire.Block(want.Cid())
				liar.send(n, &wire.Message{Deliveries: []wire.Delivery{v}})
				r.waits("what came is not what was asked for")
				honest.has(want)
				s.meet(n, honest)
				r.gets("the honest peer has it", want)
				if got := n.Stat(); got.BadBlocks != 1 || got.Delivered != 1 {
					s.Errorf("%d bad blocks and %d delivered, want 1 and 1", got.BadBlocks, got.Delivered)
				}
			})
		})
	}
}

// A peer that sends bad blocks is not asked any more, stays connected, and is
// served.
func TestAPeerThatGoesOnLyingIsNotAsked(t *testing.T) {
	list := makeBlocks(1, 5, 1000)
	play(t, func(s *stage) {
		n, liar, honest := s.node("node"), s.player("liar"), s.node("honest")
		s.meet(n, liar)
		s.meet(n, honest)
		var m wire.Message
		var waiting []*result
		for _, b := range list[:3] {
			waiting = append(waiting, s.getting(s.Context(), n, b.Cid()))
		}
		liar.announces(n, list[:3]...)
		for _, b := range list[:3] {
			liar.isAsked("it announced it", wire.Block(b.Cid()))
			v := deliveries(b)[0]
			v.Data = []byte("something else")
			m.Deliveries = append(m.Deliveries, v)
		}
		liar.send(n, &m)
		liar.forget()
		if got := n.Stat(); got.PeersShunned != 1 || got.BadBlocks != 3 {
			s.Errorf("%d peers shunned for %d bad blocks, want 1 for 3", got.PeersShunned, got.BadBlocks)
		}
		waiting = append(waiting, s.getting(s.Context(), n, list[3].Cid()))
		liar.announces(n, list[3])
		liar.silent("it is not asked again", time.Hour)

		honest.has(list...)
		for i, r := range waiting {
			r.gets("the honest peer has it", list[i])
		}
		n.has(list[4])
		liar.asks(n, wire.WantBlock, wire.Block(list[4].Cid()))
		liar.gets("it is served all the same", wire.Block(list[4].Cid()))
		if !s.net.Connected(n.id, liar.id) {
			s.Error("the peer was disconnected, but the host is shared: that is not ours to do")
		}
	})
}

// Blocks that nobody asked for are thrown away without a look: had these been
// hashed, they would have been bad.
func TestB36BlocksNobodyAskedFor(t *testing.T) {
	d := makeDataset(t, 8)
	list := makeBlocks(1, 100, 1000)
	play(t, func(s *stage) {
		n, pusher := s.node("node"), s.player("pusher")
		s.meet(n, pusher)
		ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{Count: 2})
		if err != nil {
			s.Fatal(err)
		}
		var m wire.Message
		for _, b := range list {
			m.Deliveries = append(m.Deliveries, wire.Delivery{Address: wire.Block(b.Cid()), Cid: b.Cid(), Data: []byte("not its bytes")})
		}
		notAsked := d.delivery(t, 2) // of a root that is wanted, but not this index
		notAsked.Proof = nil
		m.Deliveries = append(m.Deliveries, notAsked)
		byCid := deliveries(d.blocks[0])[0] // a leaf that is wanted, but not by CID
		byCid.Data = nil
		m.Deliveries = append(m.Deliveries, byCid)
		pusher.send(n, &m)
		got := n.Stat()
		if got.UnrequestedBlocks != 102 || got.BadBlocks != 0 || got.Delivered != 0 {
			s.Errorf("%d unrequested, %d bad, %d delivered, want 102, 0 and 0", got.UnrequestedBlocks, got.BadBlocks, got.Delivered)
		}
		if l, _ := n.Ledger(pusher.id); l.Unrequested != 102 {
			s.Errorf("the ledger has %d unrequested blocks, want 102", l.Unrequested)
		}

		pusher.send(n, &wire.Message{Deliveries: []wire.Delivery{d.delivery(t, 0), d.delivery(t, 1)}})
		if got := collectLeaves(s, "what was asked for is welcome", d, ch); len(got) != 2 {
			s.Errorf("got %d leaves, want 2", len(got))
		}
	})
}

// A good block in one message with bad ones is delivered.
func TestB34GoodAndBadInOneMessage(t *testing.T) {
	list := makeBlocks(1, 3, 1000)
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		good := s.getting(s.Context(), n, list[1].Cid())
		bad := s.getting(s.Context(), n, list[0].Cid())
		peer.announces(n, list[:2]...)
		peer.isAsked("it announced it", wire.Block(list[0].Cid()))
		ds := deliveries(list...)
		ds[0].Data = nil
		peer.send(n, &wire.Message{Deliveries: ds})
		good.gets("it came between a bad and an unwanted one", list[1])
		bad.waits("its block was bad")
	})
}

// A peer that announces everything and sends nothing is given up for one that
// sends.
func TestAPeerThatAnnouncesAndStalls(t *testing.T) {
	list := makeBlocks(1, 50, 1000)
	play(t, func(s *stage) {
		n, staller, honest := s.node("node"), s.player("staller"), s.node("honest")
		honest.has(list...)
		s.meet(n, staller)
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		staller.announces(n, list...)
		staller.isAsked("it announced all", wire.Block(list[0].Cid()))
		start := time.Now()
		s.meet(n, honest)
		if got := collect(s, "the honest peer has all", ch); len(got) != 50 {
			s.Fatalf("got %d blocks, want 50", len(got))
		}
		if d := time.Since(start); d > 15*time.Second {
			s.Errorf("the blocks came after %v, want within the patience of some seconds", d)
		}
		if l, _ := n.Ledger(staller.id); l.TimedOut == 0 {
			s.Error("the ledger of the staller has no time-outs")
		}
	})
}

// Each part of a message that cannot be used is left out alone, and counted.
func TestPartsThatCannotBeUsed(t *testing.T) {
	list := makeBlocks(1, 2, 1000)
	registry := newRegistry()
	play(t, func(s *stage) {
		n := s.node("node", func(c *exchange.Config) { c.Metrics = registry })
		peer := s.player("peer")
		s.meet(n, peer)
		n.has(list[0])
		r := s.getting(s.Context(), n, list[1].Cid())
		peer.isAsked("it is there", wire.Block(list[1].Cid()))
		entry := wire.Entry{Address: wire.Block(list[0].Cid()), Type: wire.WantHave}
		m := encode(s, &wire.Message{
			WantList:   wire.WantList{Entries: []wire.Entry{entry, entry}},
			Deliveries: deliveries(list[1]),
			Presences:  []wire.Presence{{Address: wire.Block(list[1].Cid())}},
			Payment:    []byte("{}"),
		})
		// The type of the second entry becomes 7: the last 20 08 of the want list.
		at := bytes.LastIndex(m[:bytes.Index(m, list[1].RawData())], []byte{0x20, byte(wire.WantHave)})
		m[at+1] = 7
		out := peer.open(n)
		writeFrame(s, out, m)
		peer.hears("the good entry is answered", func(m *wire.Message) bool {
			return slices.ContainsFunc(m.Presences, func(p wire.Presence) bool { return p.Address == entry.Address && p.Type == wire.Have })
		})
		r.gets("and the block is taken", list[1])
		synctest.Wait()
		for name, want := range map[string]float64{"rejected_items_total": 1, "payments_ignored_total": 1, "malformed_messages_total": 0} {
			if got := registry.value(s, name); got != want {
				s.Errorf("metric %s is %v, want %v", name, got, want)
			}
		}
	})
}
