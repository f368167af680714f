package exchange_test

import (
	"encoding/binary"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// encode gives the bytes of a message, without frame.
func encode(s *stage, m *wire.Message) []byte {
	s.Helper()
	b, err := blockexc.Append(nil, m)
	if err != nil {
		s.Fatal(err)
	}
	return b
}

// frame puts the length in front.
func frame(b []byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(b))), b...) }

func writeFrame(s *stage, out exchange.Stream, b []byte) {
	s.Helper()
	if _, err := out.Write(frame(b)); err != nil {
		s.Fatal(err)
	}
	synctest.Wait()
}

// What cannot be read ends the stream it came on, and nothing else.
func TestAStreamEndsAlone(t *testing.T) {
	list := makeBlocks(1, 2, 1000)
	for name, c := range map[string]struct {
		bytes     []byte
		malformed float64
	}{
		"frame beyond the limit":  {binary.AppendUvarint(nil, 200<<20), 1},
		"frame length too long":   {[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 1},
		"a group":                 {frame([]byte{0x0b, 0x0c}), 1},
		"field beyond its end":    {frame([]byte{0x0a, 0x7f, 0}), 1},
		"a cut frame, then reset": {[]byte{100, 0x0a}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			registry := newRegistry()
			play(t, func(s *stage) {
				n := s.node("node", func(c *exchange.Config) { c.Metrics = registry })
				peer := s.player("peer")
				s.meet(n, peer)
				n.has(list[0])
				good, bad := peer.open(n), peer.open(n)
				if _, err := bad.Write(c.bytes); err != nil {
					s.Fatal(err)
				}
				synctest.Wait()
				if c.malformed == 0 {
					bad.Reset()
				}
				peer.ends("it cannot be read", bad)
				writeFrame(s, good, encode(s, &wire.Message{WantList: wire.WantList{Entries: []wire.Entry{{Address: wire.Block(list[0].Cid())}}}}))
				peer.gets("the other stream is read on", wire.Block(list[0].Cid()))
				r := s.getting(s.Context(), n, list[1].Cid())
				peer.isAsked("the peer is asked", wire.Block(list[1].Cid()))
				writeFrame(s, peer.open(n), encode(s, &wire.Message{Deliveries: deliveries(list[1])}))
				r.gets("and a new stream is read", list[1])
				if got := registry.value(s, "malformed_messages_total"); got != c.malformed {
					s.Errorf("%v malformed messages are counted, want %v", got, c.malformed)
				}
			})
		})
	}
}

// As many streams as both sides may open, and half as many again, are read of a peer.
func TestAPeerMayHaveSomeStreams(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	ask := &wire.Message{WantList: wire.WantList{Entries: []wire.Entry{{Address: wire.Block(b.Cid())}}}}
	play(t, func(s *stage) {
		n, greedy, other := s.node("node"), s.player("greedy"), s.player("other")
		s.meet(n, greedy)
		s.meet(n, other)
		var streams []exchange.Stream
		for range 24 {
			streams = append(streams, greedy.open(n))
		}
		synctest.Wait()
		greedy.ends("one more is refused", greedy.open(n))
		if got := s.net.Streams(n.id, greedy.id); got != 24 {
			s.Errorf("%d streams are open, want 24", got)
		}
		other.asks(n, wire.WantHave, wire.Block(b.Cid()))
		other.hears("another peer has streams of its own", func(m *wire.Message) bool { return len(m.Presences) == 1 })

		streams[0].Reset()
		synctest.Wait()
		again := greedy.open(n)
		streams[1].Reset() // room for the stream that the node opens to answer
		synctest.Wait()
		n.has(b)
		writeFrame(s, again, encode(s, ask))
		greedy.gets("when one has ended there is room for another", wire.Block(b.Cid()))
	})
}

// All streams of a peer together have one frame of the longest kind in the making.
func TestStreamsOfAPeerShareOneFrame(t *testing.T) {
	const limit = 1 << 20
	list := makeBlocks(1, 3, 700<<10)
	small := makeBlocks(2, 1, 1000)[0]
	play(t, func(s *stage) {
		s.net.SetBuffer(32 << 10)
		n := s.node("node", func(c *exchange.Config) { c.MaxFrame = limit })
		peer, other := s.player("peer"), s.player("other")
		s.meet(n, peer)
		s.meet(n, other)
		var waiting []*result
		for _, b := range append(list[:2:2], small) {
			waiting = append(waiting, s.getting(s.Context(), n, b.Cid()))
		}
		first, second := peer.open(n), peer.open(n)
		a := frame(encode(s, &wire.Message{Deliveries: deliveries(list[0])}))
		b := frame(encode(s, &wire.Message{Deliveries: deliveries(list[1])}))
		half := len(a) / 2
		if _, err := first.Write(a[:half]); err != nil {
			s.Fatal(err)
		}
		written := make(chan error, 1)
		go func() { _, err := second.Write(b); written <- err }()
		time.Sleep(50 * time.Second)
		select {
		case err := <-written:
			s.Fatalf("two frames of 700 KiB are being read at a time (%v), want one as long as the limit is 1 MiB", err)
		default:
		}
		other.delivers(n, small)
		waiting[2].gets("another peer has a budget of its own", small)
		if _, err := first.Write(a[half:]); err != nil {
			s.Fatal(err)
		}
		waiting[0].gets("the first has arrived", list[0])
		waiting[1].gets("and the second is read", list[1])
		if err := <-written; err != nil {
			s.Error(err)
		}

		// A stream that ends in the middle of a frame gives its share back.
		third := s.getting(s.Context(), n, list[2].Cid())
		if _, err := first.Write(a[:half]); err != nil {
			s.Fatal(err)
		}
		synctest.Wait()
		go func() {
			_, err := second.Write(frame(encode(s, &wire.Message{Deliveries: deliveries(list[2])})))
			written <- err
		}()
		third.waits("the other stream has begun a frame")
		first.Reset()
		third.gets("and has ended", list[2])
		if err := <-written; err != nil {
			s.Error(err)
		}
	})
}

// A message that has begun and does not go on is given up after a minute, and with
// it the room that it took from the peer's other streams.
func TestAStalledFrame(t *testing.T) {
	const limit = 1 << 20
	b := makeBlocks(1, 1, 700<<10)[0]
	play(t, func(s *stage) {
		s.net.SetBuffer(32 << 10)
		n := s.node("node", func(c *exchange.Config) { c.MaxFrame = limit })
		peer := s.player("peer")
		s.meet(n, peer)
		r := s.getting(s.Context(), n, b.Cid())
		first, second := peer.open(n), peer.open(n)
		body := frame(encode(s, &wire.Message{Deliveries: deliveries(b)}))
		if _, err := first.Write(body[:100]); err != nil {
			s.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		if _, err := second.Write(body); err != nil {
			s.Fatal(err)
		}
		r.gets("the stalled one was given up", b)
		if d := time.Since(start); d > 2*time.Minute {
			s.Errorf("it took %v, want about a minute", d)
		}
	})
}

// One peer that sends the longest want lists on as many streams as it may costs us
// what its frames cost, and holds nobody up: in between it is the others' turn.
func TestAFloodOfWants(t *testing.T) {
	const entries = 1 << 14
	b := makeBlocks(2, 1, 1000)[0]
	play(t, func(s *stage) {
		n, seeder, flood := s.node("node"), s.node("seeder"), s.player("flood")
		seeder.has(b)
		s.meet(n, seeder)
		s.meet(n, flood)
		var body []byte
		{
			m := &wire.Message{}
			for i := range entries {
				m.WantList.Entries = append(m.WantList.Entries, wire.Entry{
					Address: wire.Leaf(codex.TreeCid([32]byte{1}), uint64(i)), Type: wire.WantHave, SendDontHave: true})
			}
			body = frame(encode(s, m))
		}
		stop := make(chan struct{})
		var floods sync.WaitGroup
		for range 12 {
			out := flood.open(n)
			floods.Go(func() {
				for range 20 {
					if _, err := out.Write(body); err != nil {
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		s.getting(s.Context(), n, b.Cid()).gets("another's block comes all the same", b)
		if got := n.Stat().Asks; got > 16384 {
			s.Errorf("%d wants of the peer stand, want at most 16,384", got)
		}
		close(stop)
		n.Close()
		floods.Wait()
	})
}

// A frame may arrive byte by byte.
func TestASlowWriter(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		r := s.getting(s.Context(), n, b.Cid())
		out := peer.open(n)
		for _, x := range frame(encode(s, &wire.Message{Deliveries: deliveries(b)})) {
			if _, err := out.Write([]byte{x}); err != nil {
				s.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		r.gets("its last byte has come", b)
	})
}

func TestAnswersMayComeOnEitherStream(t *testing.T) {
	list := makeBlocks(1, 2, 1000)
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		one := s.getting(s.Context(), n, list[0].Cid())
		peer.isAsked("it is there", wire.Block(list[0].Cid()))
		writeFrame(s, <-peer.streams, encode(s, &wire.Message{Deliveries: deliveries(list[0])}))
		one.gets("on the stream that the node opened", list[0])

		two := s.getting(s.Context(), n, list[1].Cid())
		peer.isAsked("it is there", wire.Block(list[1].Cid()))
		peer.delivers(n, list[1])
		two.gets("on a stream that the peer opened", list[1])
	})
}

// Like the reference, a node writes on the stream that it has opened itself.
func TestTheNodeWritesOnItsOwnStream(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		if k := s.net.Streams(n.id, peer.id); k != 0 {
			s.Errorf("%d streams are open before anything was said, want none", k)
		}
		n.has(b)
		peer.asks(n, wire.WantHave, wire.Block(b.Cid()))
		peer.asks(n, wire.WantBlock, wire.Block(b.Cid()))
		var own exchange.Stream
		for range 2 {
			h := <-peer.heard
			if h.m == nil || h.stream == peer.out {
				s.Fatalf("heard %v, %v on the peer's own stream", h.m, h.err)
			}
			if own != nil && h.stream != own {
				s.Error("two messages came on two streams, want them on one")
			}
			own = h.stream
		}
		if k := s.net.Streams(n.id, peer.id); k != 2 {
			s.Errorf("%d streams are open, want one in each direction", k)
		}
	})
}

// A peer may end a stream whenever it likes; the next message goes on a new one,
// at once.
func TestAStreamThatHasEndedIsOpenedAgain(t *testing.T) {
	for name, end := range map[string]func(*stage, exchange.Stream, *node, *player){
		"closed":           func(_ *stage, out exchange.Stream, _ *node, _ *player) { out.Close() },
		"reset":            func(_ *stage, out exchange.Stream, _ *node, _ *player) { out.Reset() },
		"lost on both":     func(s *stage, _ exchange.Stream, n *node, p *player) { s.net.DropStreams(n.id, p.id) },
		"peer sent rubish": func(s *stage, out exchange.Stream, _ *node, _ *player) { writeFrame(s, out, []byte{0x0b}) },
	} {
		t.Run(name, func(t *testing.T) {
			list := makeBlocks(1, 5, 1000)
			play(t, func(s *stage) {
				n, peer := s.node("node"), s.player("peer")
				s.meet(n, peer)
				start := time.Now()
				for _, b := range list {
					r := s.getting(s.Context(), n, b.Cid())
					peer.isAsked("on a new stream", wire.Block(b.Cid()))
					out := <-peer.streams
					writeFrame(s, peer.open(n), encode(s, &wire.Message{Deliveries: deliveries(b)}))
					r.gets("it was asked for", b)
					end(s, out, n, peer)
					synctest.Wait()
				}
				if d := time.Since(start); d != 0 {
					s.Errorf("five blocks took %v, want no waiting", d)
				}
				if got := n.Stat(); got.SendsFailed != 0 {
					s.Errorf("%d sends failed, want none", got.SendsFailed)
				}
			})
		})
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	for _, c := range []struct {
		refused int
		after   time.Duration
		failed  uint64
	}{
		{1, 200 * time.Millisecond, 0},
		{2, 600 * time.Millisecond, 0},
		{3, 1600 * time.Millisecond, 1}, // given up after 600 ms, and left alone for 1 s
		{6, 600*time.Millisecond + time.Second + 600*time.Millisecond + 2*time.Second, 2},
	} {
		play(t, func(s *stage) {
			n, peer := s.node("node"), s.player("peer")
			s.meet(n, peer)
			n.net.RefuseStreams(c.refused)
			start := time.Now()
			r := s.getting(s.Context(), n, b.Cid())
			peer.isAsked("in the end", wire.Block(b.Cid()))
			if d := time.Since(start); d != c.after {
				s.Errorf("%d refused: asked after %v, want %v", c.refused, d, c.after)
			}
			peer.delivers(n, b)
			r.gets("it was asked for", b)
			if got := n.Stat(); got.SendsFailed != c.failed {
				s.Errorf("%d refused: %d sends failed, want %d", c.refused, got.SendsFailed, c.failed)
			}
		})
	}
}

// A peer that takes nothing off its stream holds up itself: its messages fail
// after a deadline, and it is served when it reads again.
func TestAPeerThatDoesNotRead(t *testing.T) {
	list := makeBlocks(1, 100, 64<<10)
	play(t, func(s *stage) {
		seeder, deaf, other := s.node("seeder"), s.player("deaf"), s.node("other")
		seeder.has(list...)
		s.meet(seeder, deaf)
		s.meet(seeder, other)
		resume := deaf.net.StallReads()
		var all []wire.Address
		for _, b := range list {
			all = append(all, wire.Block(b.Cid()))
		}
		deaf.asks(seeder, wire.WantBlock, all...)
		start := time.Now()
		other.gets("others are served meanwhile", list...)
		if d := time.Since(start); d != 0 {
			s.Errorf("another peer had to wait %v, want 0", d)
		}
		if got := seeder.Stat(); got.Flying == 0 || got.Flying > 512<<10+128<<10 || got.SendsFailed != 0 {
			s.Errorf("%d bytes are on their way to the peer that does not read, %d sends failed, want up to two messages and none", got.Flying, got.SendsFailed)
		}
		// A message of 256 KiB has 10 s, and 2.5 s for its size; it is not tried again
		// at once.
		time.Sleep(12 * time.Second)
		if got := seeder.Stat(); got.SendsFailed != 0 {
			s.Errorf("%d messages have failed after 12 s, want none yet", got.SendsFailed)
		}
		time.Sleep(time.Second)
		if got := seeder.Stat(); got.SendsFailed == 0 {
			s.Error("after 13 s no message has failed")
		}
		time.Sleep(5 * time.Minute)
		resume()
		got := make(map[wire.Address]bool)
		for len(got) < len(list) {
			for _, d := range deaf.hears("it reads again", func(m *wire.Message) bool { return len(m.Deliveries) > 0 }).Deliveries {
				got[d.Address] = true
			}
		}
		synctest.Wait()
		if got := seeder.Stat(); got.Flying != 0 || got.Asks != 0 {
			s.Errorf("%d bytes are on their way and %d asks stand, want none", got.Flying, got.Asks)
		}
	})
}

// A message is being written when its peer goes; the peer comes back, and what
// went before is forgotten on both sides.
func TestAPeerThatGoesWhileItIsSentTo(t *testing.T) {
	list := makeBlocks(1, 50, 64<<10)
	play(t, func(s *stage) {
		seeder, peer := s.node("seeder"), s.player("peer")
		seeder.has(list...)
		for round := range 3 {
			s.meet(seeder, peer)
			resume := peer.net.StallReads()
			peer.out = nil
			peer.asks(seeder, wire.WantBlock, wire.Block(list[0].Cid()), wire.Block(list[1].Cid()), wire.Block(list[2].Cid()),
				wire.Block(list[3].Cid()), wire.Block(list[4].Cid()), wire.Block(list[5].Cid()))
			if got := seeder.Stat(); got.Flying == 0 {
				s.Errorf("round %d: nothing is on its way, want a message that the peer does not read", round)
			}
			s.net.Disconnect(seeder.id, peer.id)
			synctest.Wait()
			if got := seeder.Stat(); got.Flying != 0 || got.Asks != 0 || got.Peers != 0 {
				s.Errorf("round %d: %d bytes, %d asks, %d peers after it went, want none", round, got.Flying, got.Asks, got.Peers)
			}
			resume()
			peer.forget()
		}
		s.meet(seeder, peer)
		peer.silent("it has not asked since it came back", time.Hour)
		peer.out = nil
		peer.asks(seeder, wire.WantBlock, wire.Block(list[7].Cid()))
		peer.gets("now it has", wire.Block(list[7].Cid()))
	})
}

// The same on the asking side: the want is asked again of the peer that comes
// back.
func TestAPeerThatGoesWhileItIsAsked(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		r := s.getting(s.Context(), n, b.Cid())
		for range 5 {
			s.meet(n, peer)
			peer.isAsked("each time it comes", wire.Block(b.Cid()))
			s.net.Disconnect(n.id, peer.id)
			synctest.Wait()
		}
		r.waits("it never answered")
		peer.out = nil
		s.meet(n, peer)
		peer.isAsked("once more", wire.Block(b.Cid()))
		peer.delivers(n, b)
		r.gets("now it answers", b)
	})
}

// A block that no message can hold is as good as none, and in nobody's way.
func TestABlockTooLargeToSend(t *testing.T) {
	small := makeBlocks(1, 1, 1000)[0]
	large := makeBlocks(2, 1, 100<<20)[0]
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		n.store.Put(s.Context(), large)
		peer.asks(n, wire.WantHave, wire.Block(large.Cid()))
		peer.hears("it cannot be sent", func(m *wire.Message) bool {
			return len(m.Presences) == 1 && m.Presences[0].Type == wire.DontHave
		})
		peer.asks(n, wire.WantBlock, wire.Block(large.Cid()))
		n.has(small, large) // the engine hears its size from us
		peer.asks(n, wire.WantBlock, wire.Block(small.Cid()))
		peer.gets("others are served", wire.Block(small.Cid()))
		if got := n.Stat(); got.SendsFailed != 0 {
			s.Errorf("%d sends failed, want none", got.SendsFailed)
		}
	})
}
