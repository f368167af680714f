package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/wire"
)

// A dialler is a network that counts dials, and can hold them up.
type dialler struct {
	*memnet.Node
	hold func(ctx context.Context, p peer.ID) error // nil for none

	mu       sync.Mutex
	dialled  map[peer.ID]int
	now, max int // dials under way
}

func (d *dialler) Connect(ctx context.Context, p peer.AddrInfo) error {
	d.mu.Lock()
	d.dialled[p.ID]++
	d.now++
	d.max = max(d.max, d.now)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.now--
		d.mu.Unlock()
	}()
	if d.hold != nil {
		if err := d.hold(ctx, p.ID); err != nil {
			return err
		}
	}
	return d.Node.Connect(ctx, p)
}

func (d *dialler) dials(p peer.ID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dialled[p]
}

// searcher makes a node with a router and a network that counts dials.
func (s *stage) searcher(change ...func(*exchange.Config)) (*node, *dialler, *exchangetest.Router) {
	s.Helper()
	d := &dialler{dialled: make(map[peer.ID]int)}
	router := exchangetest.NewRouter()
	n := s.node("searcher", append([]func(*exchange.Config){func(c *exchange.Config) {
		d.Node = c.Network.(*memnet.Node)
		c.Network, c.Router = d, router.For("somebody else") // it finds the node itself too
	}}, change...)...)
	return n, d, router
}

func info(name string) peer.AddrInfo { return peer.AddrInfo{ID: memnet.ID(name)} }

func TestWhenTheRouterIsAsked(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	dontHave := &wire.Message{Presences: []wire.Presence{{Address: wire.Block(b.Cid()), Type: wire.DontHave}}}
	for name, c := range map[string]struct {
		delay time.Duration
		peer  bool
		says  *wire.Message
		after time.Duration
	}{
		"nobody is connected":           {after: 0},
		"a peer says nothing":           {peer: true, after: time.Second},
		"a peer says nothing, no delay": {delay: -1, peer: true, after: 0},
		"a peer does not have it":       {peer: true, says: dontHave, after: 0},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(s *stage) {
				n, _, router := s.searcher(func(cfg *exchange.Config) { cfg.SearchDelay = c.delay })
				start := time.Now()
				var p *player
				if c.peer {
					p = s.player("peer")
					s.meet(n, p)
				}
				s.getting(s.Context(), n, b.Cid())
				if c.says != nil {
					p.send(n, c.says)
				}
				for router.Searches(b.Cid()) == 0 && time.Since(start) < time.Hour {
					synctest.Wait()
					time.Sleep(time.Millisecond)
				}
				if d := time.Since(start).Truncate(100 * time.Millisecond); d != c.after {
					s.Errorf("the router was asked after %v, want %v", d, c.after)
				}
				n.Close()
			})
		})
	}
}

func TestProvidersAreDialled(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		seeder := s.node("seeder")
		seeder.has(b)
		n, d, router := s.searcher(func(c *exchange.Config) { c.SearchPeers = 5 })
		router.Provide(b.Cid(), info("searcher"), info("nowhere"), info("seeder"))
		for i := range 10 {
			router.Provide(b.Cid(), info(fmt.Sprint("more ", i)))
			s.net.Node(info(fmt.Sprint("more ", i)).ID)
		}
		r := s.getting(s.Context(), n, b.Cid())
		r.gets("a provider has it", b)
		for name, want := range map[string]int{"searcher": 0, "nowhere": 1, "seeder": 1, "more 0": 1, "more 1": 1, "more 2": 0} {
			if got := d.dials(memnet.ID(name)); got != want {
				s.Errorf("%s was dialled %d times, want %d", name, got, want)
			}
		}
		if got := n.Stat(); got.Searches != 1 || got.ProvidersFound != 3 {
			s.Errorf("%d searches found %d providers, want 1 and the 3 that could be dialled", got.Searches, got.ProvidersFound)
		}
	})
}

// A provider that could not be dialled is left alone for a minute.
func TestB12ADialThatFailedIsRemembered(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, d, router := s.searcher()
		router.Provide(b.Cid(), info("late"))
		r := s.getting(s.Context(), n, b.Cid())
		late := memnet.ID("late")
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if k := router.Searches(b.Cid()); k < 3 {
			s.Errorf("the router was asked %d times in a minute, want several", k)
		}
		if k := d.dials(late); k != 1 {
			s.Errorf("the provider was dialled %d times in a minute, want once", k)
		}
		r.waits("the provider is not there")
		seeder := s.node("late")
		seeder.has(b)
		r.gets("the provider is there, and is tried again", b)
		if k := d.dials(late); k != 2 {
			s.Errorf("the provider was dialled %d times, want twice", k)
		}
	})
}

// Dials that hang end after their time, are bounded in number, and hold nobody
// up.
func TestDialsThatHang(t *testing.T) {
	list := makeBlocks(1, 20, 1000)
	play(t, func(s *stage) {
		n, d, router := s.searcher()
		good := memnet.ID("good")
		d.hold = func(ctx context.Context, p peer.ID) error {
			if p == good {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		for i, b := range list {
			for j := range 10 {
				router.Provide(b.Cid(), info(fmt.Sprint("hangs ", i, j)))
			}
		}
		ctx, cancel := context.WithCancel(s.Context())
		for _, b := range list { // each in a session of its own, so each is searched
			s.getting(ctx, n, b.Cid())
		}
		synctest.Wait()
		d.mu.Lock()
		under, most := d.now, d.max
		d.mu.Unlock()
		if under != 32 || most != 32 {
			s.Errorf("%d dials are under way and at most %d were, want 8 searches with 4 each", under, most)
		}
		other := makeBlocks(2, 1, 1000)[0]
		router.Provide(other.Cid(), info("good"))
		s.node("good").has(other)
		s.getting(s.Context(), n, other.Cid()).gets("its search gets its turn", other)
		cancel()
		start := time.Now()
		n.Close()
		if took := time.Since(start); took != 0 {
			s.Errorf("Close waited %v for dials, want none", took)
		}
		if d.now != 0 {
			s.Errorf("%d dials are under way after Close", d.now)
		}
	})
}

// A dial that the end of the search would cut short has its own time.
func TestADialMayOutliveItsSearch(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, d, _ := s.searcher(func(c *exchange.Config) { c.Router = slowRouter{9 * time.Second, info("seeder")} })
		d.hold = func(ctx context.Context, _ peer.ID) error {
			select {
			case <-time.After(5 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s.node("seeder").has(b)
		start := time.Now()
		s.getting(s.Context(), n, b.Cid()).gets("9 s to find, 5 s to dial", b)
		if took := time.Since(start); took != 14*time.Second {
			s.Errorf("the block came after %v, want 14s", took)
		}
	})
}

// A slowRouter finds one provider after a time, and goes on searching.
type slowRouter struct {
	after time.Duration
	who   peer.AddrInfo
}

func (r slowRouter) FindProviders(ctx context.Context, _ cid.Cid, _ int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo)
	go func() {
		defer close(out)
		select {
		case <-time.After(r.after):
		case <-ctx.Done():
			return
		}
		select {
		case out <- r.who:
		case <-ctx.Done():
		}
		<-ctx.Done()
	}()
	return out
}

func TestASearchEnds(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	t.Run("with Close", func(t *testing.T) {
		play(t, func(s *stage) {
			n, _, _ := s.searcher(func(c *exchange.Config) { c.Router = slowRouter{time.Hour, info("nobody")} })
			s.getting(s.Context(), n, b.Cid())
			if k := n.Stat().Searches; k != 1 {
				s.Errorf("%d searches, want 1", k)
			}
			start := time.Now()
			n.Close()
			if took := time.Since(start); took != 0 {
				s.Errorf("Close waited %v for the router, want none", took)
			}
		})
	})
	t.Run("after ten seconds", func(t *testing.T) {
		play(t, func(s *stage) {
			n, _, _ := s.searcher(func(c *exchange.Config) { c.Router = slowRouter{time.Hour, info("nobody")} })
			r := s.getting(s.Context(), n, b.Cid())
			time.Sleep(9 * time.Second)
			synctest.Wait()
			if k := n.Stat().Searches; k != 1 {
				s.Errorf("%d searches after 9 s, want the first to go on", k)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if k := n.Stat().Searches; k < 2 {
				s.Errorf("%d searches after a minute, want another", k)
			}
			r.waits("nobody has it")
			n.Close()
		})
	})
}

// Leaves are searched by the CID of their tree.
func TestTheTreeOfALeafIsSearched(t *testing.T) {
	d := makeDataset(t, 4)
	play(t, func(s *stage) {
		n, _, router := s.searcher()
		seeder := s.node("seeder")
		seeder.hasLeaves(d, wire.Range{Count: 4})
		router.Provide(d.root, info("seeder"))
		ch, err := n.GetLeaves(s.Context(), exchange.Tree{Root: d.root}, wire.Range{Count: 4})
		if err != nil {
			s.Fatal(err)
		}
		if got := collectLeaves(s, "the provider of the tree has them", d, ch); len(got) != 4 {
			s.Errorf("got %d leaves, want 4", len(got))
		}
		if k := router.Searches(d.root); k != 1 {
			s.Errorf("the router was asked %d times for the tree, want once", k)
		}
	})
}

var errRefused = errors.New("refused")

// A connection that is refused costs nothing but the try.
func TestConnectFails(t *testing.T) {
	b := makeBlocks(1, 1, 1000)[0]
	play(t, func(s *stage) {
		n, d, router := s.searcher()
		d.hold = func(_ context.Context, p peer.ID) error {
			if p == memnet.ID("refuses") {
				return errRefused
			}
			return nil
		}
		s.node("refuses").has(b)
		s.node("seeder").has(b)
		router.Provide(b.Cid(), info("refuses"), peer.AddrInfo{}, info("seeder"))
		s.getting(s.Context(), n, b.Cid()).gets("the next provider has it", b)
		if got := n.Stat().ProvidersFound; got != 1 {
			s.Errorf("%d providers found, want 1", got)
		}
		if s.net.Connected(n.id, memnet.ID("refuses")) {
			s.Error("connected to the one that refuses")
		}
	})
}
