package exchange_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange"
)

// Over a long way one stream brings no more than it holds in a round trip. A peer
// that reads several is sent blocks on as many as it takes, until there are none
// for ten seconds; one that does not is sent all on one.
func TestSeveralStreams(t *testing.T) {
	list := makeBlocks(1, 600, 64<<10)
	fetch := func(s *stage, streams int) (took time.Duration, open int) {
		s.net.SetStreams(streams)
		seeder, n := s.node("seeder"), s.node("node", func(c *exchange.Config) { c.BufferedBytes = 1 << 30 })
		s.net.SetLatency(seeder.id, n.id, 50*time.Millisecond)
		seeder.has(list...)
		s.meet(seeder, n)
		begin := time.Now()
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		if got := collect(s, "over a long way", ch); len(got) != len(list) {
			s.Errorf("got %d blocks, want %d", len(got), len(list))
		}
		took, open = time.Since(begin), s.net.Streams(seeder.id, n.id)
		time.Sleep(time.Minute)
		synctest.Wait()
		if left := s.net.Streams(seeder.id, n.id); left > 2 {
			s.Errorf("a minute later %d streams are open, want one each way", left)
		}
		return took, open
	}
	var alone time.Duration
	play(t, func(s *stage) {
		var open int
		if alone, open = fetch(s, 1); open > 2 {
			s.Errorf("%d streams are open to a peer that reads one, want one each way", open)
		}
	})
	play(t, func(s *stage) {
		took, open := fetch(s, 8)
		if open < 5 || open > 9 {
			s.Errorf("%d streams are open, want some of 8, and one back", open)
		}
		if took > alone/2 {
			s.Errorf("several streams took %v, want less than half of the %v of one", took, alone)
		}
	})
	play(t, func(s *stage) {
		if _, open := fetch(s, 3); open > 4 {
			s.Errorf("%d streams are open to a peer that reads three, want at most 3, and one back", open)
		}
	})
}

// On a short way one stream is enough, whoever reads them.
func TestOneStreamOnAShortWay(t *testing.T) {
	list := makeBlocks(2, 600, 64<<10)
	play(t, func(s *stage) {
		s.net.SetStreams(8)
		seeder, n := s.node("seeder"), s.node("node")
		seeder.has(list...)
		s.meet(seeder, n)
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		collect(s, "on a short way", ch)
		if open := s.net.Streams(seeder.id, n.id); open > 2 {
			s.Errorf("%d streams are open, want one each way", open)
		}
	})
}

// A peer that has several streams and stops reading all of them holds one message for
// each and one more, nobody else up, and is tried again when it reads; and so are blocks
// that were on their way.
func TestAPeerThatStopsReadingSeveralStreams(t *testing.T) {
	list := makeBlocks(1, 900, 64<<10)
	play(t, func(s *stage) {
		s.net.SetStreams(8)
		seeder, n, other := s.node("seeder"), s.node("node", func(c *exchange.Config) { c.BufferedBytes = 1 << 30 }), s.node("other")
		s.net.SetLatency(seeder.id, n.id, 50*time.Millisecond)
		seeder.has(list...)
		s.meet(seeder, n)
		s.meet(seeder, other)
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		got := make(map[cid.Cid]bool)
		for len(got) < 400 {
			got[(<-ch).Cid()] = true
		}
		if open := s.net.Streams(seeder.id, n.id); open < 5 {
			s.Fatalf("%d streams are open, want several", open)
		}
		resume := n.net.StallReads()
		time.Sleep(5 * time.Second)
		if st := seeder.Stat(); st.Flying == 0 || st.Flying > 9<<20 {
			s.Errorf("%d bytes are on their way, want some, and at most nine messages", st.Flying)
		}
		start := time.Now()
		other.gets("others are served meanwhile", list[:100]...)
		if d := time.Since(start); d > time.Second {
			s.Errorf("another peer had to wait %v", d)
		}
		time.Sleep(30 * time.Second)
		resume()
		for b := range ch {
			if got[b.Cid()] {
				s.Errorf("block %s came twice", b.Cid())
			}
			got[b.Cid()] = true
		}
		if len(got) != len(list) {
			s.Errorf("%d blocks came, want all %d", len(got), len(list))
		}
		synctest.Wait()
		if st := seeder.Stat(); st.Flying != 0 || st.Asks != 0 {
			s.Errorf("%d bytes are on their way and %d asks stand in the end, want none", st.Flying, st.Asks)
		}
	})
}

// The exchange closes, or the peer goes, while blocks are on their way to it on several
// streams that nobody reads.
func TestTheEndOfSeveralStreams(t *testing.T) {
	list := makeBlocks(1, 900, 64<<10)
	for name, end := range map[string]func(s *stage, seeder, n *node){
		"close": func(s *stage, seeder, n *node) { seeder.Close() },
		"gone":  func(s *stage, seeder, n *node) { s.net.Disconnect(seeder.id, n.id) },
		"back": func(s *stage, seeder, n *node) {
			s.net.Disconnect(seeder.id, n.id)
			s.meet(seeder, n)
			s.net.Disconnect(seeder.id, n.id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *stage) {
				s.net.SetStreams(8)
				seeder, n := s.node("seeder"), s.node("node", func(c *exchange.Config) { c.BufferedBytes = 1 << 30 })
				s.net.SetLatency(seeder.id, n.id, 50*time.Millisecond)
				seeder.has(list...)
				s.meet(seeder, n)
				ch, err := n.GetBlocks(s.Context(), cids(list))
				if err != nil {
					s.Fatal(err)
				}
				for range 400 {
					<-ch
				}
				defer n.net.StallReads()()
				time.Sleep(time.Second)
				start := time.Now()
				end(s, seeder, n)
				synctest.Wait()
				if st := seeder.Stat(); st.Flying != 0 || st.Peers != 0 {
					s.Errorf("%d bytes are on their way to %d peers, want none", st.Flying, st.Peers)
				}
				if open := s.net.Streams(seeder.id, n.id); open != 0 {
					s.Errorf("%d streams are open, want none", open)
				}
				if d := time.Since(start); d > time.Second {
					s.Errorf("it took %v, want no waiting", d)
				}
			})
		})
	}
}
