package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/wire"
)

// read has a node read a list in order, wanting the next blocks up to a window ahead.
func (n *node) read(window, size int, list []wire.Address) {
	for _, a := range list {
		n.wanted[a] = size
	}
	asked, read := 0, 0
	var more func()
	more = func() {
		for read < asked && !n.lacks(list[read]) {
			read++
		}
		for asked < len(list) && asked < read+window {
			asked++
			n.step(Want{Getter: GetterID(asked), Session: 1, Wants: []wire.Want{wire.WantCid(list[asked-1].Root)}})
		}
	}
	n.onGot = func(wire.Address) { more() }
	more()
}

func (n *node) lacks(a wire.Address) bool { _, ok := n.wanted[a]; return ok }

func TestCrowdOfReaders(t *testing.T) {
	for _, size := range []int{64 << 10, 256 << 10} {
		for _, leechers := range []int{1, 4} {
			for _, stagger := range []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond} {
				s := newSwarm(t, 20*time.Millisecond)
				x := many("swarm", 64<<20/size)
				seeder := s.node("seeder", 200*mbit, 200*mbit)
				seeder.has(size, x...)
				for i := range leechers {
					n := s.node(fmt.Sprint("leecher", i), 200*mbit, 200*mbit)
					n.wanted[x[0]] = size
					s.in(time.Second+time.Duration(i)*stagger, func() { n.read(8<<20/size, size, x) })
				}
				s.run(time.Minute)
				var dup uint64
				var last time.Duration
				for _, n := range s.nodes {
					dup += n.e.Stats().DuplicateBytes
					last = max(last, n.doneAt.Sub(s.begun))
				}
				t.Logf("%d KiB, %d readers %v apart: seeder sent %.2f copies, dup %.3f, took %v", size>>10, leechers, stagger, float64(seeder.sent)/float64(64<<20), float64(dup)/float64(64<<20), last-time.Second)
			}
		}
	}
}

func TestCrowdOfUnequals(t *testing.T) {
	for _, slow := range []float64{1000, 100, 20, 4} {
		s := newSwarm(t, 20*time.Millisecond)
		const size = 256 << 10
		x := many("swarm", 64<<20/size)
		seeder := s.node("seeder", 1000*mbit, 1000*mbit)
		seeder.has(size, x...)
		fast := s.node("fast", 1000*mbit, 1000*mbit)
		s.in(time.Second, func() { fast.get(1, size, x...) })
		fast.wanted[x[0]] = size
		for i := range 3 {
			n := s.node(fmt.Sprint("slow", i), slow*mbit, slow*mbit)
			s.in(time.Second, func() {
				n.get(1, size, x...)
				clear(n.wanted)
				for _, a := range x {
					n.wanted[a] = size
				}
				n.unneeded = true
			})
		}
		s.run(10 * time.Minute)
		t.Logf("slow ones have %v Mbit/s: fast one took %v, seeder sent %.2f", slow, fast.doneAt.Sub(s.begun)-time.Second, float64(seeder.sent)/float64(64<<20))
	}
}
