package exchange_test

import (
	"testing"
	"testing/synctest"
	"time"

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
