package engine

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

func benchConfig() Config {
	return Config{
		Window: 1024, BufferedBytes: 16 << 20, WantsPerPeer: 16384, ServingBytes: 64 << 20,
		BroadcastPeers: 64, SearchDelay: time.Second, Searches: true, Serve: true, Seed: 1,
	}
}

// BenchmarkStep measures the engine alone at a steady transfer: everything that
// happens to it for one block, where one event carries one message's 20 blocks.
// The exchange promises 100,000 blocks/s (see docs/decisions).
func BenchmarkStep(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprintf("fetch/cids/peers=%d", n), func(b *testing.B) { benchFetch(b, n, 0, false) })
		b.Run(fmt.Sprintf("fetch/leaves/peers=%d", n), func(b *testing.B) { benchFetch(b, n, 0, true) })
	}
	b.Run("fetch/cids/peers=8/idle=1000", func(b *testing.B) { benchFetch(b, 8, 1000, false) })
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprintf("serve/peers=%d", n), func(b *testing.B) { benchServe(b, n) })
	}
}

// benchFetch has a getter fetch b.N blocks from peers that all have everything:
// they announce what they are asked about and deliver what they are asked for, 20
// blocks a message, and the caller takes what it is given. Idle peers are connected
// too, and say that they have nothing.
func benchFetch(b *testing.B, peers, idle int, asLeaves bool) {
	e := New(benchConfig())
	now := time.Unix(1e9, 0)
	var ws []wire.Want
	if asLeaves {
		ws = []wire.Want{wire.WantLeaves(cidOf("bench"), wire.Range{Count: uint64(b.N)})}
	} else {
		ws = make([]wire.Want, b.N)
		for i := range ws {
			ws[i] = wire.WantCid(numbered(i))
		}
	}
	type remote struct {
		owed []Block
		said []wire.Presence
	}
	remotes := map[peer.ID]*remote{}
	var queue []Event
	for i := range peers {
		id := peer.ID(fmt.Sprint("peer", i))
		remotes[id] = &remote{}
		e.Step(now, PeerUp{Peer: id, Epoch: uint64(i + 1)})
	}
	names := e.Peers()
	for i := range idle {
		e.Step(now, PeerUp{Peer: peer.ID(fmt.Sprint("idle", i)), Epoch: uint64(peers + i + 1)})
	}
	done := false
	delivered, steps := 0, 0
	step := func(ev Event) {
		steps++
		e.Step(now, ev)
		took := 0
		for _, a := range e.Actions() {
			switch a := a.(type) {
			case Send:
				queue = append(queue, Sent{Peer: a.Peer, Epoch: a.Epoch, OK: true})
				r := remotes[a.Peer]
				if r == nil {
					lack := PresencesIn{Peer: a.Peer}
					for _, en := range a.List.Entries {
						if !en.Cancel {
							lack.Presences = append(lack.Presences, wire.Presence{Address: en.Address, Type: wire.DontHave})
						}
					}
					queue = append(queue, lack)
					continue
				}
				for _, en := range a.List.Entries {
					switch {
					case en.Cancel:
					case en.Type == wire.WantBlock:
						r.owed = append(r.owed, Block{Address: en.Address, Size: blockSize})
					default:
						r.said = append(r.said, wire.Presence{Address: en.Address})
					}
				}
			case Deliver:
				took++
			case Finish:
				done = true
			}
		}
		if took > 0 {
			delivered += took
			queue = append(queue, Took{Getter: 1, Blocks: took, Bytes: took * blockSize})
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	step(Want{Getter: 1, Wants: ws})
	for !done {
		for len(queue) > 0 {
			ev := queue[0]
			queue = queue[1:]
			step(ev)
		}
		for _, id := range names {
			r := remotes[id]
			if len(r.said) > 0 {
				said := r.said
				r.said = nil
				step(PresencesIn{Peer: id, Presences: said})
			}
			if n := min(20, len(r.owed)); n > 0 {
				message := r.owed[:n:n]
				r.owed = r.owed[n:]
				step(BlocksIn{Peer: id, Blocks: message})
			}
			now = now.Add(100 * time.Microsecond)
		}
	}
	b.StopTimer()
	if delivered != b.N {
		b.Fatalf("%d blocks were delivered, want %d", delivered, b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
	b.ReportMetric(float64(steps)/float64(b.N), "steps/block")
}

// benchServe serves b.N blocks to peers that ask for 20 at a time.
func benchServe(b *testing.B, peers int) {
	e := New(benchConfig())
	now := time.Unix(1e9, 0)
	for i := range peers {
		e.Step(now, PeerUp{Peer: peer.ID(fmt.Sprint("peer", i)), Epoch: uint64(i + 1)})
	}
	names := e.Peers()
	cids := make([]wire.Address, 4096)
	for i := range cids {
		cids[i] = wire.Block(numbered(i))
	}
	var queue []Event
	served := 0
	step := func(ev Event) {
		e.Step(now, ev)
		for _, a := range e.Actions() {
			switch a := a.(type) {
			case Send:
				queue = append(queue, Sent{Peer: a.Peer, Epoch: a.Epoch, OK: true})
			case Lookup:
				ev := Looked{Peer: a.Peer, Epoch: a.Epoch, Items: make([]LookedItem, len(a.Addresses))}
				for i, x := range a.Addresses {
					ev.Items[i] = LookedItem{Address: x, Size: blockSize, Held: true}
				}
				queue = append(queue, ev)
			case SendBlocks:
				served += len(a.Blocks)
				queue = append(queue, Sent{Peer: a.Peer, Epoch: a.Epoch, Blocks: true, Message: a.Message, OK: true})
			}
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for next := 0; served < b.N; {
		for _, id := range names {
			list := wire.WantList{Entries: make([]wire.Entry, 20)}
			for i := range list.Entries {
				list.Entries[i] = wire.Entry{Address: cids[next%len(cids)]}
				next++
			}
			step(WantlistIn{Peer: id, List: list})
		}
		for len(queue) > 0 {
			ev := queue[0]
			queue = queue[1:]
			step(ev)
		}
		now = now.Add(100 * time.Microsecond)
	}
	b.ReportMetric(float64(served)/b.Elapsed().Seconds(), "blocks/s")
}

// numbered makes a CID out of a number, without a hash.
func numbered(i int) cid.Cid {
	var raw [36]byte
	raw[0], raw[1], raw[2], raw[3] = 1, cid.Raw, 0x12, 32
	for k := range 8 {
		raw[4+k] = byte(i >> (8 * k))
	}
	_, c, err := cid.CidFromBytes(raw[:])
	if err != nil {
		panic(err)
	}
	return c
}

// BenchmarkIdlePeers has 1000 peers that each ask for 1000 blocks we do not have,
// their own or all the same, and reports what an ask costs to keep and what a step
// costs when one of them asks for its 1000 again.
func BenchmarkIdlePeers(b *testing.B) {
	for _, same := range []bool{false, true} {
		name := "own"
		if same {
			name = "same"
		}
		b.Run(name, func(b *testing.B) {
			const peers, each = 1000, 1000
			var before, after runtime.MemStats
			lists := make([]wire.WantList, peers)
			for i := range lists {
				for k := range each {
					n := k
					if !same {
						n += i * each
					}
					lists[i].Entries = append(lists[i].Entries, wire.Entry{Address: wire.Block(numbered(n))})
				}
			}
			now := time.Unix(1e9, 0)
			e := New(benchConfig())
			names := make([]peer.ID, peers)
			answer := func() {
				for again := true; again; {
					again = false
					for _, a := range append([]Action(nil), e.Actions()...) {
						switch a := a.(type) {
						case Lookup:
							ev := Looked{Peer: a.Peer, Epoch: a.Epoch, Items: make([]LookedItem, len(a.Addresses))}
							for i, x := range a.Addresses {
								ev.Items[i].Address = x
							}
							e.Step(now, ev)
						case Send:
							e.Step(now, Sent{Peer: a.Peer, Epoch: a.Epoch, OK: true})
						}
						again = true
					}
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := range lists {
				names[i] = peer.ID(fmt.Sprint("peer", i))
				e.Step(now, PeerUp{Peer: names[i], Epoch: uint64(i + 1)})
				e.Step(now, WantlistIn{Peer: names[i], List: lists[i]})
				answer()
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if n := e.Stats().Asks; n != peers*each {
				b.Fatalf("the ledger holds %d asks, want %d", n, peers*each)
			}
			i := 0
			for b.Loop() {
				e.Step(now, WantlistIn{Peer: names[i%peers], List: lists[i%peers]})
				answer()
				i++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/each, "ns/entry")
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/peers/each, "B/ask")
			runtime.KeepAlive(lists)
		})
	}
}
