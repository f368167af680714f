package exchange_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/wire"
)

// TestB22Filter: a block that a peer may not be given is to that peer as if it were
// not there, whether it is held already or comes later; others are served.
func TestB22Filter(t *testing.T) {
	b := makeBlocks(1, 2, 1000)
	play(t, func(s *stage) {
		friend, stranger := s.player("friend"), s.player("stranger")
		n := s.node("node", func(c *exchange.Config) {
			c.Filter = func(p peer.ID, _ wire.Address) bool { return p == friend.id }
		})
		s.meet(n, friend)
		s.meet(n, stranger)
		n.has(b[0])
		for _, block := range b {
			stranger.asks(n, wire.WantBlock, wire.Block(block.Cid()))
			friend.asks(n, wire.WantBlock, wire.Block(block.Cid()))
		}
		n.has(b[1])
		synctest.Wait()
		l, ok := n.Ledger(stranger.id)
		if !ok || l.BlocksSent != 0 {
			s.Errorf("the stranger was sent %d blocks, want none", l.BlocksSent)
		}
		if l, _ := n.Ledger(friend.id); l.BlocksSent != 2 {
			s.Errorf("the friend was sent %d blocks, want 2", l.BlocksSent)
		}
	})
}

// TestB25ScoreHook: what Config.Score says a peer is worth reaches the network.
func TestB25ScoreHook(t *testing.T) {
	b := makeBlocks(1, 1, 1000)
	var asked atomic.Int32
	play(t, func(s *stage) {
		friend := s.player("friend")
		n := s.node("node", func(c *exchange.Config) {
			c.Score = func(l exchange.Ledger) int {
				asked.Add(1)
				if l.BytesSent != 1000 {
					return 0
				}
				return 77
			}
		})
		s.meet(n, friend)
		n.has(b[0])
		friend.asks(n, wire.WantBlock, wire.Block(b[0].Cid()))
		synctest.Wait()
		if got := n.net.TagOf(friend.id); got != 77 || asked.Load() == 0 {
			s.Errorf("the connection is worth %d after %d questions, want 77", got, asked.Load())
		}
	})
}
