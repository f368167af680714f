package exchange_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/wire"
)

func TestCancellingOneGetterLeavesTheOthers(t *testing.T) {
	list := makeBlocks(1, 30, 1000)
	a := list[0]
	play(t, func(s *stage) {
		seeder, n := s.node("seeder"), s.node("node")
		s.meet(seeder, n)
		session := n.NewSession(s.Context())
		cancelled, cancel := context.WithCancel(s.Context())
		goes := []*result{
			s.getting(cancelled, n, a.Cid()), // it is the first, which the want belongs to
			s.getting(cancelled, session, a.Cid()),
		}
		stays := []*result{
			s.getting(s.Context(), n, a.Cid()),
			s.getting(s.Context(), session, a.Cid()),
			s.getting(s.Context(), n.NewSession(s.Context()), a.Cid()),
		}
		first, err := n.GetBlocks(cancelled, cids(list[:20]))
		if err != nil {
			s.Fatal(err)
		}
		second, err := n.GetBlocks(s.Context(), cids(list[10:]))
		if err != nil {
			s.Fatal(err)
		}
		third, err := session.GetBlocks(s.Context(), cids(list[5:15]))
		if err != nil {
			s.Fatal(err)
		}
		synctest.Wait()

		cancel()
		for _, r := range goes {
			r.fails("it was cancelled", context.Canceled)
		}
		if got := collect(s, "it was cancelled", first); len(got) != 0 {
			s.Fatalf("got %d blocks from nobody", len(got))
		}
		for _, r := range stays {
			r.waits("it was not cancelled")
		}
		synctest.Wait()
		if got := len(n.Wantlist()); got != 26 {
			s.Errorf("%d wants are left, want 26: one alone, and 5 to 29", got)
		}

		seeder.has(list...)
		for _, r := range stays {
			r.gets("the others get it", a)
		}
		if got := collect(s, "overlapping", second); len(got) != 20 {
			s.Errorf("the overlapping request got %d blocks, want 20", len(got))
		}
		if got := collect(s, "in the session", third); len(got) != 10 {
			s.Errorf("the request of the session got %d blocks, want 10", len(got))
		}
		n.idle("all have what they asked for")
	})
}

// The same while blocks are on their way.
func TestCancellingMidwayLeavesTheOthers(t *testing.T) {
	list := makeBlocks(1, 400, 2000)
	play(t, func(s *stage) {
		seeder, n := s.node("seeder"), s.node("node")
		s.net.SetLatency(seeder.id, n.id, 10*time.Millisecond)
		seeder.has(list...)
		s.meet(seeder, n)
		cancelled, cancel := context.WithCancel(s.Context())
		session := n.NewSession(s.Context())
		first, err := session.GetBlocks(cancelled, cids(list))
		if err != nil {
			s.Fatal(err)
		}
		second, err := session.GetBlocks(s.Context(), cids(list[200:]))
		if err != nil {
			s.Fatal(err)
		}
		for range 50 {
			<-first
		}
		cancel()
		if got := collect(s, "half of them", second); len(got) != 200 {
			s.Errorf("got %d blocks, want 200", len(got))
		}
		collect(s, "cancelled", first)
		n.idle("one is cancelled and one is done")
		seeder.s.net.Disconnect(seeder.id, n.id)
	})
}

func TestASessionEndsWithItsContext(t *testing.T) {
	b := makeBlocks(1, 2, 1000)
	play(t, func(s *stage) {
		seeder, n := s.node("seeder"), s.node("node")
		s.meet(seeder, n)
		ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
		defer cancel()
		ended, lasting := n.NewSession(ctx), n.NewSession(s.Context())
		one := s.getting(s.Context(), ended, b[0].Cid())
		other := s.getting(s.Context(), lasting, b[0].Cid())
		many, err := ended.GetBlocks(s.Context(), cids(b))
		if err != nil {
			s.Fatal(err)
		}
		start := time.Now()
		one.fails("the session's time is over", context.DeadlineExceeded)
		collect(s, "the session's time is over", many)
		if d := time.Since(start); d != time.Minute {
			s.Errorf("the session ended after %v, want 1m", d)
		}
		s.getting(s.Context(), ended, b[0].Cid()).fails("and it begins nothing more", context.DeadlineExceeded)
		if ch, err := ended.GetBlocks(s.Context(), cids(b)); err != nil {
			s.Errorf("GetBlocks of a session that has ended: %v", err)
		} else if got := collect(s, "nothing", ch); len(got) != 0 {
			s.Errorf("got %d blocks in a session that has ended", len(got))
		}
		other.waits("the other session goes on")
		if got := n.Stat(); got.Getters != 1 || got.Wants != 1 {
			s.Errorf("%d getters and %d wants, want 1 of each: those of the other session", got.Getters, got.Wants)
		}
		seeder.has(b...)
		other.gets("and gets its block", b[0])
		n.idle("all have ended")
	})
}

// Blocks that are stored while a request waits for them reach it however many
// they are, and however slow its caller is; nobody else has to wait for that.
func TestMoreBlocksAreStoredThanTheCallerTakes(t *testing.T) {
	const window = 8
	list := makeBlocks(1, 200, 1000)
	play(t, func(s *stage) {
		n := s.node("node", func(c *exchange.Config) { c.Window = window })
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		dropped, cancel := context.WithCancel(s.Context())
		idle, err := n.GetBlocks(dropped, cids(list))
		if err != nil {
			s.Fatal(err)
		}
		synctest.Wait()
		n.has(list...)
		other := s.getting(s.Context(), n, makeBlocks(2, 1, 10)[0].Cid())
		other.waits("the exchange is not held up: it takes requests")
		if got := n.Stat(); got.Delivered != 400 {
			s.Errorf("%d blocks were delivered, want 400: they are all there", got.Delivered)
		}
		if got := collect(s, "all were stored", ch); len(got) != len(list) {
			s.Errorf("got %d blocks, want %d", len(got), len(list))
		}
		cancel()
		collect(s, "cancelled", idle)
	})
}

// The blocks that found no room are read from the store again; one that has gone
// from there meanwhile is asked of peers.
func TestABlockThatCameTooEarlyAndWent(t *testing.T) {
	list := makeBlocks(1, 40, 1000)
	play(t, func(s *stage) {
		seeder := s.node("seeder")
		n := s.node("node", func(c *exchange.Config) { c.Window = 4 })
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		synctest.Wait()
		n.has(list...)
		synctest.Wait()
		for _, b := range list {
			n.store.DeleteBlock(s.Context(), b.Cid())
		}
		seeder.has(list...)
		s.meet(seeder, n)
		if got := collect(s, "a peer has them", ch); len(got) != len(list) {
			s.Errorf("got %d blocks, want %d", len(got), len(list))
		}
		n.idle("all have come")
	})
}

// A caller that does not take blocks stops them from being asked for. What the
// seeder was asked for is what memory was needed for.
func TestACallerThatDoesNotTakeBoundsMemory(t *testing.T) {
	const size, buffered = 64 << 10, 2 << 20
	list := makeBlocks(1, 512, size) // 32 MiB
	play(t, func(s *stage) {
		seeder := s.node("seeder")
		n := s.node("node", func(c *exchange.Config) { c.BufferedBytes = buffered })
		seeder.has(list...)
		s.meet(seeder, n)
		ch, err := n.GetBlocks(s.Context(), cids(list))
		if err != nil {
			s.Fatal(err)
		}
		time.Sleep(time.Hour) // of virtual time: what is going to be asked for has been
		sent := seeder.Stat().BytesSent
		if sent < buffered/2 || sent > 2*buffered {
			s.Errorf("the seeder has sent %d KiB, want about %d, as much as may be buffered", sent>>10, buffered>>10)
		}
		for range 64 {
			<-ch
		}
		time.Sleep(time.Hour)
		if more := seeder.Stat().BytesSent - sent; more < 48*size || more > 96*size {
			s.Errorf("after 64 blocks were taken the seeder has sent %d more, want about as many", more/size)
		}
		other := makeBlocks(2, 1, size)[0]
		seeder.has(other)
		s.getting(s.Context(), n, other.Cid()).gets("another request is not held up", other)
		if got := collect(s, "the rest", ch); len(got) != len(list)-64 {
			s.Errorf("got %d blocks, want %d", len(got), len(list)-64)
		}
	})
}

// A request may name any number of CIDs; each costs what it costs in a small
// request.
func TestAHundredThousandBlocks(t *testing.T) {
	const many = 100_000
	list := make([]blocks.Block, many)
	for i := range list {
		list[i] = blocks.NewBlock([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	cost := func(n int) (each time.Duration) {
		play(t, func(s *stage) {
			seeder, node := s.node("seeder"), s.node("node")
			seeder.store.PutMany(s.Context(), list[:n])
			s.meet(seeder, node)
			start := cpuTime(s.T)
			node.gets("many small blocks", list[:n]...)
			each = (cpuTime(s.T) - start) / time.Duration(n)
			node.idle("all have come")
		})
		return each
	}
	cost(2000) // warm up
	small, large := cost(5000), cost(many)
	t.Logf("CPU time a block, both sides together: %v in a request of 5,000, %v in one of %d", small, large, many)
	if large > 5*small {
		t.Errorf("a block costs %v in a request of %d, want at most five times the %v of one in 5,000", large, many, small)
	}
}

// What waits beyond the window costs the exchange little more than its CID.
func TestWaitingCidsCostLittleMemory(t *testing.T) {
	const many = 100_000
	keys := make([]cid.Cid, many)
	for i := range keys {
		keys[i] = blocks.NewBlock([]byte{byte(i), byte(i >> 8), byte(i >> 16)}).Cid()
	}
	play(t, func(s *stage) {
		n := s.node("node")
		ctx, cancel := context.WithCancel(s.Context())
		before := heap()
		ch, err := n.GetBlocks(ctx, keys)
		if err != nil {
			s.Fatal(err)
		}
		synctest.Wait()
		each := (heap() - before) / many
		s.Logf("%d bytes for each of %d CIDs that wait", each, many)
		if each > 600 {
			s.Errorf("a CID that waits costs %d bytes, want at most 600", each)
		}
		if got := n.Stat().Wants; got != 1024 {
			s.Errorf("%d wants are active, want Config.Window: 1024", got)
		}
		cancel()
		collect(s, "cancelled", ch)
		n.idle("cancelled")
		runtime.KeepAlive(keys)
	})
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func TestClientOnlyAnswersNobody(t *testing.T) {
	b := makeBlocks(1, 2, 1000)
	play(t, func(s *stage) {
		n := s.node("node", func(c *exchange.Config) { c.ClientOnly = true })
		peer := s.player("peer")
		s.meet(n, peer)
		n.has(b[0])
		peer.asks(n, wire.WantHave, wire.Block(b[0].Cid()))
		peer.asks(n, wire.WantBlock, wire.Block(b[0].Cid()))
		peer.silent("it does not serve", time.Hour)
		r := s.getting(s.Context(), n, b[1].Cid())
		peer.isAsked("but it asks", wire.Block(b[1].Cid()))
		peer.delivers(n, b[1])
		r.gets("and gets", b[1])
	})
}
