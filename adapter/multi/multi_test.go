package multi_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/adapter/multi"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const delay = time.Second

// A player is an exchange that does what the test says: it has some blocks, and
// takes some time for each. It waits for others until the context ends, or gives
// up if it is told to. It writes down what it is asked.
type player struct {
	takes  time.Duration // for each block
	gives  error         // what it answers instead of waiting; nil: it waits
	notify error
	close  error

	mu     sync.Mutex
	has    map[cid.Cid]blocks.Block
	asked  []time.Duration // since start, each call
	keys   int             // in all calls
	open   int             // calls under way
	told   int
	closed int
	start  time.Time
}

func play(list ...blocks.Block) *player {
	p := &player{has: make(map[cid.Cid]blocks.Block), start: time.Now()}
	for _, b := range list {
		p.has[b.Cid()] = b
	}
	return p
}

func (p *player) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ch, _ := p.GetBlocks(ctx, []cid.Cid{c})
	if b, ok := <-ch; ok {
		return b, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, p.gives
}

func (p *player) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	p.mu.Lock()
	p.asked = append(p.asked, time.Since(p.start))
	p.keys += len(keys)
	p.open++
	p.mu.Unlock()
	out := make(chan blocks.Block)
	go func() {
		defer func() {
			p.mu.Lock()
			p.open--
			p.mu.Unlock()
			close(out)
		}()
		lacks := false
		for _, c := range keys {
			p.mu.Lock()
			b := p.has[c]
			p.mu.Unlock()
			if b == nil {
				lacks = true
				continue
			}
			if !pass(ctx, p.takes) {
				return
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
		if lacks && p.gives == nil {
			<-ctx.Done()
		}
	}()
	return out, nil
}

// pass lets some time pass, unless ctx ends before.
func pass(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *player) NotifyNewBlocks(_ context.Context, list ...blocks.Block) error {
	p.told += len(list)
	return p.notify
}

func (p *player) Close() error {
	p.closed++
	return p.close
}

// expect checks when the player was asked and for how many keys, and that nothing is under way.
func (p *player) expect(t *testing.T, why string, keys int, asked ...time.Duration) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.asked, asked) || p.keys != keys {
		t.Errorf("%s: asked at %v for %d keys in all, want at %v for %d", why, p.asked, p.keys, asked, keys)
	}
	if p.open != 0 {
		t.Errorf("%s: %d calls are still under way, want none", why, p.open)
	}
}

func data(n int) (list []blocks.Block, keys []cid.Cid) {
	for i := range n {
		b := blocks.NewBlock([]byte(fmt.Sprint("block ", i)))
		list, keys = append(list, b), append(keys, b.Cid())
	}
	return list, keys
}

// collect reads a channel to its end and checks that no block comes twice.
func collect(t *testing.T, ch <-chan blocks.Block) int {
	t.Helper()
	seen := cid.NewSet()
	for b := range ch {
		if !seen.Visit(b.Cid()) {
			t.Errorf("block %s came twice", b.Cid())
		}
	}
	return seen.Len()
}

// get gets keys through several players, and checks that n come.
func get(t *testing.T, f boxo.Fetcher, keys []cid.Cid, n int) {
	t.Helper()
	ch, err := f.GetBlocks(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	if got := collect(t, ch); got != n {
		t.Fatalf("got %d blocks, want %d", got, n)
	}
}

func TestTheFirstIsAskedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(100)
		first, second := play(list...), play(list...)
		first.takes = delay * 9 / 10
		get(t, multi.New(multi.Options{Delay: delay}, first, second), keys, 100)
		first.expect(t, "it is slow, but delivers", 100, 0)
		second.expect(t, "so nobody else is asked", 0)
	})
}

func TestTheSecondIsAskedWhenNothingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(100)
		first, second, third := play(list[:10]...), play(list...), play(list...)
		get(t, multi.New(multi.Options{Delay: delay}, first, second, third), keys, 100)
		first.expect(t, "it has ten and waits for the rest", 100, 0)
		second.expect(t, "it is asked for a share after the delay, and for more as it delivers", 90, delay, delay)
		third.expect(t, "no third is needed", 0)
	})
}

func TestTheNextIsAskedAtOnceForWhatTheFirstLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(100)
		first, second := play(list[:10]...), play(list...)
		first.gives = errs.NotFound
		start := time.Now()
		get(t, multi.New(multi.Options{Delay: delay}, first, second), keys, 100)
		if d := time.Since(start); d != 0 {
			t.Errorf("the request took %v, want no delay", d)
		}
		second.expect(t, "the first ended with 90 missing", 90, 0)
	})
}

func TestALoserIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(1)
		first, second := play(list...), play(list...)
		first.takes = time.Minute
		x := multi.New(multi.Options{Delay: delay}, first, second)
		b, err := x.GetBlock(t.Context(), keys[0])
		if err != nil || !b.Cid().Equals(keys[0]) {
			t.Fatalf("got %v, %v", b, err)
		}
		first.expect(t, "its call has ended though it had not answered", 1, 0)
		second.expect(t, "it was faster", 1, delay)
	})
}

func TestAStalledLeadIsReplacedWithoutItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(2000)
		// The second lacks every third block, so that no share of it is ever full.
		var most []blocks.Block
		for i, b := range list {
			if i%3 != 0 {
				most = append(most, b)
			}
		}
		first, second, third := play(), play(most...), play(list...)
		start := time.Now()
		get(t, multi.New(multi.Options{Delay: delay}, first, second, third), keys, 2000)
		if d := time.Since(start); d > 5*delay {
			t.Errorf("the request took %v with a delay of %v", d, delay)
		}
		first.expect(t, "it is asked once and waits", 2000, 0)
	})
}

func TestASessionRemembersWhoDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(3)
		first, second := play(), play(list...)
		x := multi.New(multi.Options{Delay: delay}, first, second)
		s := x.NewSession(t.Context())
		for _, c := range keys {
			if _, err := s.GetBlock(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		first.expect(t, "the first is asked once", 1, 0)
		second.expect(t, "the second after a delay, and from then on at once", 3, delay, delay, delay)
	})
}

func TestWithoutDelayAllAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(50)
		first, second := play(list...), play(list...)
		first.takes = time.Second
		get(t, multi.New(multi.Options{Delay: -1}, first, second), keys, 50)
		first.expect(t, "at once", 50, 0)
		second.expect(t, "at once", 50, 0)
	})
}

func TestWhenAllGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(40)
		broken := errors.New("broken")
		first, second := play(list[:1]...), play()
		first.gives, second.gives = errs.NotFound, broken
		x := multi.New(multi.Options{}, first, second)
		get(t, x, keys, 1)
		_, err := x.GetBlock(t.Context(), keys[39])
		if !errors.Is(err, errs.NotFound) || !errors.Is(err, broken) {
			t.Fatalf("error is %v, want those of both exchanges", err)
		}
	})
}

func TestASlowReaderIsNotAQuietExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, keys := data(20)
		first, second := play(list...), play(list...)
		ch, err := multi.New(multi.Options{Delay: delay}, first, second).GetBlocks(t.Context(), keys)
		if err != nil {
			t.Fatal(err)
		}
		for range ch {
			pass(t.Context(), 10*delay)
		}
		second.expect(t, "the first was not slow, the reader was", 0)
	})
}

func TestNewBlocksAreToldToAll(t *testing.T) {
	list, _ := data(3)
	first, second, third := play(), play(), play()
	first.notify, third.notify = errors.New("one"), errors.New("three")
	err := multi.New(multi.Options{}, first, second, third).NotifyNewBlocks(t.Context(), list...)
	for i, p := range []*player{first, second, third} {
		if p.told != 3 {
			t.Errorf("exchange %d was told of %d blocks, want 3", i+1, p.told)
		}
	}
	if !errors.Is(err, first.notify) || !errors.Is(err, third.notify) {
		t.Errorf("error is %v, want those of the first and the third", err)
	}
}

func TestCloseClosesAll(t *testing.T) {
	_, keys := data(1)
	first, second := play(), play()
	first.close = errors.New("stuck")
	x := multi.New(multi.Options{}, first, second)
	for range 2 {
		if err := x.Close(); !errors.Is(err, first.close) {
			t.Errorf("close: %v, want %v", err, first.close)
		}
	}
	if first.closed != 1 || second.closed != 1 {
		t.Errorf("closed %d and %d times, want once each", first.closed, second.closed)
	}
	if _, err := x.GetBlock(t.Context(), keys[0]); !errors.Is(err, errs.Closed) {
		t.Errorf("get after close: %v, want kind %v", err, errs.Closed)
	}
}

// A leafPlayer is a player that has leaves.
type leafPlayer struct {
	*player
	leaves int // told
}

func (p *leafPlayer) NewSession(context.Context) boxo.Fetcher { return p }

func (p *leafPlayer) GetLeaves(context.Context, exchange.Tree, ...wire.Range) (<-chan exchange.LeafBlock, error) {
	ch := make(chan exchange.LeafBlock)
	close(ch)
	return ch, p.gives
}

func (p *leafPlayer) NotifyNewLeaves(context.Context, cid.Cid, ...wire.Range) error {
	p.leaves++
	return p.notify
}

func TestLeavesAreThereIfAMemberHasThem(t *testing.T) {
	_, keys := data(1)
	if _, ok := multi.New(multi.Options{}, play(), play()).(exchange.LeafFetcher); ok {
		t.Error("two exchanges without leaves have leaves together")
	}
	unable, able := &leafPlayer{player: play()}, &leafPlayer{player: play()}
	unable.gives = errs.NotFound
	x, ok := multi.New(multi.Options{}, play(), unable, able).(exchange.LeafExchange)
	if !ok {
		t.Fatal("an exchange with leaves among others has none")
	}
	s, ok := x.NewSession(t.Context()).(exchange.LeafFetcher)
	if !ok {
		t.Fatal("its session has none")
	}
	for name, f := range map[string]exchange.LeafFetcher{"exchange": x, "session": s} {
		ch, err := f.GetLeaves(t.Context(), exchange.Tree{Root: keys[0]}, wire.Range{Count: 1})
		if err != nil {
			t.Fatalf("leaves of the %s: %v, want those of the one that is able", name, err)
		}
		<-ch
	}
	if err := x.NotifyNewLeaves(t.Context(), keys[0], wire.Range{Count: 1}); err != nil || unable.leaves+able.leaves != 2 {
		t.Fatalf("new leaves: %v, told %d and %d times, want once each", err, unable.leaves, able.leaves)
	}
}

// group makes nodes that have two exchanges each over one store, of two meshes.
// The nodes can reach each other by the second, and also by the first if both.
func group(delay time.Duration, both bool) func(t testing.TB, n int) exchangetest.Group {
	return func(t testing.TB, n int) exchangetest.Group {
		one := exchangetest.NewMesh(n)
		two := one.Twin()
		g := exchangetest.Group{
			Connect: func(i, j int) error {
				two.Connect(i, j)
				if both {
					one.Connect(i, j)
				}
				return nil
			},
			Disconnect: func(i, j int) error {
				one.Disconnect(i, j)
				two.Disconnect(i, j)
				return nil
			},
		}
		for i := range n {
			x := multi.New(multi.Options{Delay: delay}, one.Exchange(i), two.Exchange(i))
			t.Cleanup(func() { x.Close() })
			g.Nodes = append(g.Nodes, exchangetest.Node{Exchange: x, Blockstore: one.Blocks(i)})
		}
		return g
	}
}

func TestConformance(t *testing.T) {
	for name, group := range map[string]func(testing.TB, int) exchangetest.Group{
		"one after the other":         group(0, true),
		"both at once":                group(-1, true),
		"peers by the second only":    group(0, false),
		"at once, by the second only": group(-1, false),
	} {
		t.Run(name, func(t *testing.T) {
			exchangetest.Run(t, exchangetest.Suite{New: group, Bubble: true})
		})
	}
}
