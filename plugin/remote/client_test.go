package remote

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
)

// TestBlocksComeOnceOverRestarts shows that a request outlives the plugins that
// serve it: each of a thousand blocks comes once, though three plugins die over
// them, and the window stays what it is.
func TestBlocksComeOnceOverRestarts(t *testing.T) {
	list := makeBlocks(1, 1000, 10_000)
	c := newClient(t, ClientOptions{Window: 200_000, Verify: true})
	ch, err := c.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	left := missing(list)
	for life := range 4 {
		m := exchangetest.NewMesh(2)
		m.Blocks(0).PutMany(t.Context(), list)
		m.Connect(0, 1)
		p := serve(t, c, m.Exchange(1), nil)
		if life == 3 {
			collect(t, "the last plugin lives", ch, left)
			break
		}
		for range 250 {
			b := take(t, "the plugin runs", ch)
			if !left[b.Cid()] {
				t.Fatalf("block %s came twice", b.Cid())
			}
			delete(left, b.Cid())
			c.check(t, 10_000)
		}
		p.kill()
		if err := wait(t, "a torn connection ends Run", p.ended); !errors.Is(err, errs.Crashed) {
			t.Fatalf("Run of a plugin that was killed: got %v, want %v", err, errs.Crashed)
		}
		if got := c.Pending(); got != 1 {
			t.Fatalf("%d requests are pending between two plugins, want 1", got)
		}
		if got := len(c.GetWantlist()); got > len(left) || got == 0 {
			t.Fatalf("%d blocks are pending, want no more than the %d that have not come", got, len(left))
		}
	}
	if len(left) != 0 {
		t.Fatalf("%d blocks are missing at the end, want none", len(left))
	}
	if s := c.Counters(); s.Results != 1000 || s.Incarnations != 4 || s.Bytes != 10_000_000 {
		t.Errorf("got %+v, want 1000 results of 10,000,000 bytes from 4 incarnations", s)
	}
}

func window(r *request) int { return r.credit + r.owed + r.queued }

// check holds a Client to what must always be true, while the payload of at most
// one result of so many bytes is being read.
func (c *Client) check(t testing.TB, reading int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	waits := 0
	for seq, r := range c.pending {
		_, unsent := c.unsent[seq]
		switch {
		case unsent != (r.number == 0):
			t.Errorf("request %d is unsent: %v, and has number %d", seq, unsent, r.number)
		case !unsent && (c.run == nil || c.run.sent[r.number] != r):
			t.Errorf("request %d has number %d, which no plugin has", seq, r.number)
		case !unsent && window(r) != c.opt.Window && window(r) != c.opt.Window-cost(reading):
			t.Errorf("request %d: credit %d + owed %d + queued %d, want %d together, or %d less", seq, r.credit, r.owed, r.queued, c.opt.Window, cost(reading))
		case r.over || r.need.empty():
			t.Errorf("request %d is pending and over", seq)
		}
		waits += len(r.need.missing)
	}
	for k, list := range c.waiting {
		waits -= len(list)
		for _, r := range list {
			if _, missing := r.need.missing[k]; !missing || c.pending[r.seq] != r {
				t.Errorf("request %d waits for %s and does not miss it", r.seq, k)
			}
		}
	}
	if waits != 0 {
		t.Errorf("%d missing blocks are not waited for", waits)
	}
}

// TestFailAndRecover shows that Fail ends what waits and what comes later with its
// error, but no NotifyNewBlocks, and that Recover undoes it.
func TestFailAndRecover(t *testing.T) {
	list := makeBlocks(2, 3, 100)
	c := newClient(t, ClientOptions{})
	gone := errs.E(errs.Crashed, errs.Plugin, "run plugin", "codex", errors.New("it has crashed five times"))
	one := later(func() error { _, err := c.GetBlock(t.Context(), list[0].Cid()); return err })
	many, err := c.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are pending", func() bool { return c.Pending() == 2 })

	c.Fail(gone)
	if err := wait(t, "GetBlock ends", one); err != gone {
		t.Errorf("GetBlock: got %v, want %v", err, gone)
	}
	collect(t, "GetBlocks ends", many, nil)
	if _, err := c.GetBlock(t.Context(), list[0].Cid()); err != gone {
		t.Errorf("a later GetBlock: got %v, want %v", err, gone)
	}
	if _, err := c.NewSession(t.Context()).GetBlocks(t.Context(), keysOf(list)); err != gone {
		t.Errorf("a later GetBlocks: got %v, want %v", err, gone)
	}
	if err := c.NotifyNewBlocks(t.Context(), list...); err != nil {
		t.Errorf("NotifyNewBlocks: got %v, want none", err)
	}

	c.Recover()
	m := exchangetest.NewMesh(2)
	m.Blocks(0).PutMany(t.Context(), list)
	m.Connect(0, 1)
	serve(t, c, m.Exchange(1), nil)
	if _, err := c.GetBlock(t.Context(), list[0].Cid()); err != nil {
		t.Errorf("GetBlock after Recover: %v", err)
	}
}

// TestNotifyWithoutPlugin shows that with no plugin running new blocks reach those
// who wait for them, and that any number of them is told without waiting, the
// last of them kept.
func TestNotifyWithoutPlugin(t *testing.T) {
	list := makeBlocks(3, 2, 100)
	c := newClient(t, ClientOptions{})
	one := later(func() error { _, err := c.GetBlock(t.Context(), list[0].Cid()); return err })
	many, err := c.NewSession(t.Context()).GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are pending", func() bool { return c.Pending() == 2 })
	c.NotifyNewBlocks(t.Context(), list...)
	if err := wait(t, "GetBlock", one); err != nil {
		t.Error(err)
	}
	left := missing(list)
	collect(t, "GetBlocks", many, left)
	if len(left) != 0 {
		t.Errorf("%d blocks did not come", len(left))
	}

	for range MaxPending + 1000 {
		c.NotifyNewBlocks(t.Context(), list[0])
	}
	if got := c.Counters().Dropped; got != 1002 {
		t.Errorf("dropped %d notifications, want 1002", got)
	}
	s := script(t, c)
	var blocks, missed uint64
	for blocks < MaxPending {
		m := s.next("the first to be told of stored blocks").GetStored()
		blocks += uint64(len(m.GetBlocks()))
		missed += m.GetMissed()
	}
	if blocks != MaxPending || missed != 1002 {
		t.Errorf("the plugin was told of %d blocks and %d missed, want %d and 1002", blocks, missed, MaxPending)
	}
}

// TestSlowCallers shows that a caller who takes nothing holds no more than its
// window and one block, and keeps no other caller waiting.
func TestSlowCallers(t *testing.T) {
	const size, window = 10_000, 100_000
	list := makeBlocks(4, 500, size)
	m := exchangetest.NewMesh(2)
	m.Blocks(0).PutMany(t.Context(), list)
	m.Connect(0, 1)
	c := newClient(t, ClientOptions{Window: window})
	serve(t, c, m.Exchange(1), nil)
	slow, err := c.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	full := uint64(window/(size+ResultCost) + 1)
	eventually(t, "the window is full", func() bool { return c.Counters().Results == full })

	for range 3 {
		ch, err := c.GetBlocks(t.Context(), keysOf(list))
		if err != nil {
			t.Fatal(err)
		}
		left := missing(list)
		collect(t, "another caller", ch, left)
		if len(left) > 0 {
			t.Fatalf("another caller misses %d blocks", len(left))
		}
	}
	if got := c.Counters().Results; got != full+1500 {
		t.Errorf("%d results, want %d: 500 for each of three, and %d for the slow one", got, full+1500, full)
	}
	left := missing(list)
	collect(t, "the slow caller begins to read", slow, left)
	if len(left) > 0 {
		t.Fatalf("the slow caller misses %d blocks", len(left))
	}
}

// TestNotifyForASlowCaller shows that blocks of the host's own do not pile up for a
// caller who is slow either: they are read again from the store.
func TestNotifyForASlowCaller(t *testing.T) {
	list := makeBlocks(5, 100, 10_000)
	store := exchangetest.NewBlocks(list...)
	reads := make(chan cid.Cid, len(list))
	c := newClient(t, ClientOptions{Window: 100_000, Held: func(ctx context.Context, k cid.Cid) (blocks.Block, error) {
		reads <- k
		return store.Get(ctx, k)
	}})
	ch, err := c.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	c.NotifyNewBlocks(t.Context(), list...)
	left := missing(list)
	collect(t, "all are there", ch, left)
	if len(left) > 0 || len(reads) < 96 {
		t.Errorf("%d are missing and %d were read from the store, want 0 and all but a quarter of the window", len(left), len(reads))
	}
}

// TestHugeRequest shows that a request of very many blocks crosses in parts, none
// near the 4 MiB that gRPC allows, and comes back whole.
func TestHugeRequest(t *testing.T) {
	const n = 100_000
	list := makeBlocks(6, n, 8)
	c := newClient(t, ClientOptions{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.GetBlocks(ctx, keysOf(list)); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; got > 250 {
		t.Errorf("a request of %d blocks takes %d bytes each, want at most 250", n, got)
	}
	s := script(t, c)
	var keys int
	for more := true; more; {
		m := s.next("a part of the request").GetWant()
		keys += len(m.GetCids())
		more = m.GetMore()
		if m.GetRequest() != 1 || len(m.GetCids())*40 > 1<<20 {
			t.Fatalf("request %d has %d CIDs in one message, want request 1 with less than 1 MiB", m.GetRequest(), len(m.GetCids()))
		}
	}
	if keys != n {
		t.Errorf("asked for %d blocks, want %d", keys, n)
	}
	cancel()
	if got := s.next("the request is cancelled").GetCancel().GetRequest(); got != 1 {
		t.Errorf("cancel of request %d, want 1", got)
	}
	s.end()

	list = list[:30_000] // still more than one message
	m := exchangetest.NewMesh(2)
	m.Blocks(0).PutMany(t.Context(), list)
	m.Connect(0, 1)
	serve(t, c, m.Exchange(1), nil)
	ch, err := c.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	left := missing(list)
	collect(t, "all of them", ch, left)
	if len(left) > 0 {
		t.Errorf("%d blocks are missing", len(left))
	}
}

// leafExchange has the leaves that it is given, one after the other.
type leafExchange struct {
	boxo.SessionExchange
	leaves chan dataset.LeafBlock
	asked  chan []wire.Range
	told   chan []wire.Range
}

func newLeafExchange() *leafExchange {
	return &leafExchange{exchangetest.NewMesh(1).Exchange(0), make(chan dataset.LeafBlock), make(chan []wire.Range, 10), make(chan []wire.Range, 10)}
}

func (x *leafExchange) NewSession(ctx context.Context) boxo.Fetcher { return x }

func (x *leafExchange) GetLeaves(ctx context.Context, _ dataset.Tree, ranges ...wire.Range) (<-chan dataset.LeafBlock, error) {
	x.asked <- ranges
	return x.leaves, nil
}

func (x *leafExchange) NotifyNewLeaves(_ context.Context, _ cid.Cid, ranges ...wire.Range) error {
	x.told <- ranges
	return nil
}

// TestLeavesOverARestart shows that leaves come with their proofs, each once, and
// that the next plugin is asked for those that are missing.
func TestLeavesOverARestart(t *testing.T) {
	list := makeBlocks(7, 10, 1000)
	root := makeBlocks(8, 1, 10)[0].Cid()
	leaf := func(i uint64) dataset.LeafBlock {
		return dataset.LeafBlock{Block: list[i], Root: root, Index: i, Proof: []byte{byte(i), 7}}
	}
	c := newClient(t, ClientOptions{Verify: true})
	x := newLeafExchange()
	p := serve(t, c, x, nil)
	if !p.caps.Leaves {
		t.Fatal("the plugin does not say that it has leaves")
	}
	ask, ok := c.Exchange(p.caps.Leaves).NewSession(t.Context()).(dataset.LeafFetcher)
	if !ok {
		t.Fatal("a session of an exchange with leaves has none")
	}
	ch, err := ask.GetLeaves(t.Context(), dataset.Tree{Root: root, Leaves: 10}, wire.Range{First: 0, Count: 4}, wire.Range{First: 6, Count: 4})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{2, 0, 9} {
		x.leaves <- leaf(i)
		if got := take(t, "the leaf", ch); got.Index != i || !got.Cid().Equals(list[i].Cid()) || !slices.Equal(got.Proof, []byte{byte(i), 7}) || got.Root != root {
			t.Errorf("got leaf %d %s with proof %v, want %d", got.Index, got.Cid(), got.Proof, i)
		}
	}
	p.kill()
	wait(t, "Run ends", p.ended)

	y := newLeafExchange()
	serve(t, c, y, nil)
	if got, want := take(t, "the next one is asked", y.asked), []wire.Range{{First: 1, Count: 1}, {First: 3, Count: 1}, {First: 6, Count: 3}}; !slices.Equal(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
	for _, i := range []uint64{7, 7, 0, 1, 3, 8, 6} { // two that are not missing
		y.leaves <- leaf(i)
	}
	var got []uint64
	for b := range ch {
		got = append(got, b.Index)
	}
	if slices.Sort(got); !slices.Equal(got, []uint64{1, 3, 6, 7, 8}) {
		t.Errorf("got leaves %v, want 1, 3, 6, 7, 8", got)
	}

	c.NotifyNewLeaves(t.Context(), root, wire.Range{First: 3, Count: 2}, wire.Range{First: 5, Count: 1})
	if got := take(t, "it is told of leaves", y.told); !slices.Equal(got, []wire.Range{{First: 3, Count: 3}}) {
		t.Errorf("told of leaves %v, want 3-5", got)
	}
}

// TestLeavesAreOfferedOnlyIfThere shows that what callers are given passes for a
// LeafFetcher only if the plugin has leaves, and that bad ranges are refused.
func TestLeavesAreOfferedOnlyIfThere(t *testing.T) {
	c := newClient(t, ClientOptions{})
	for _, leaves := range []bool{false, true} {
		x := c.Exchange(leaves)
		if _, ok := x.(dataset.LeafFetcher); ok != leaves {
			t.Errorf("Exchange(%v) is a LeafFetcher: %v", leaves, ok)
		}
		if _, ok := x.(dataset.LeafExchange); ok != leaves {
			t.Errorf("Exchange(%v) is a LeafExchange: %v", leaves, ok)
		}
		if _, ok := x.NewSession(t.Context()).(dataset.LeafFetcher); ok != leaves {
			t.Errorf("a session of Exchange(%v) is a LeafFetcher: %v", leaves, ok)
		}
		if _, ok := x.(interface{ GetWantlist() []cid.Cid }); !ok {
			t.Errorf("Exchange(%v) does not show its want list", leaves)
		}
	}
	root := makeBlocks(8, 1, 10)[0].Cid()
	for _, r := range []wire.Range{{First: 9, Count: 2}, {First: ^uint64(0), Count: 2}} {
		if _, err := c.GetLeaves(t.Context(), dataset.Tree{Root: root, Leaves: 10}, r); !errors.Is(err, errs.Invalid) {
			t.Errorf("range %d+%d of 10 leaves: got %v, want %v", r.First, r.Count, err, errs.Invalid)
		}
	}
}

// TestCloseInTheMiddle shows that Close ends requests, whatever is under way, has
// the plugin told, and may be called at the same time from several sides.
func TestCloseInTheMiddle(t *testing.T) {
	list := makeBlocks(9, 200, 10_000)
	m := exchangetest.NewMesh(2)
	m.Blocks(0).PutMany(t.Context(), list[:150])
	m.Connect(0, 1)
	c := newClient(t, ClientOptions{Window: 50_000})
	p := serve(t, c, m.Exchange(1), nil)
	var wg sync.WaitGroup
	for i := range 20 {
		ch, err := c.GetBlocks(t.Context(), keysOf(list))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for range i { // some take a few, some none
				<-ch
			}
		})
	}
	wg.Wait()
	for range 3 {
		wg.Go(func() { c.Close() })
	}
	wg.Wait()
	eventually(t, "the plugin hears that nothing is wanted", func() bool { return len(m.Exchange(1).GetWantlist()) == 0 })
	if err := c.NotifyNewBlocks(t.Context(), list...); err != nil {
		t.Errorf("NotifyNewBlocks after Close: got %v, want none", err)
	}
	if _, err := c.GetBlock(t.Context(), list[0].Cid()); !errors.Is(err, errs.Closed) {
		t.Errorf("GetBlock after Close: got %v, want %v", err, errs.Closed)
	}
	if got := c.Pending(); got != 0 {
		t.Errorf("%d requests pending after Close, want 0", got)
	}
	p.end()
	if err := wait(t, "Run ends with its context", p.ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: got %v, want %v", err, context.Canceled)
	}
}

// TestNotifyWithAHungPlugin shows that nobody waits for a plugin that takes no
// commands: new blocks reach those who wait for them, requests begin and end, and
// Run ends when it is told to.
func TestNotifyWithAHungPlugin(t *testing.T) {
	list := makeBlocks(19, 1, 100)
	c := newClient(t, ClientOptions{})
	s := script(t, c)
	many := slices.Repeat(list, 1000)
	for range 4 * MaxPending / len(many) {
		one := getting(t, c, list[0])
		eventually(t, "it is pending", func() bool { return c.Pending() == 1 })
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := c.GetBlocks(ctx, keysOf(makeBlocks(20, 100, 10))); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := c.NotifyNewBlocks(t.Context(), many...); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, "GetBlock gets what the store was given", one); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the other has ended", func() bool { return c.Pending() == 0 })
	}
	if c.Counters().Dropped == 0 {
		t.Errorf("nothing was dropped of %d notifications, want some", 4*MaxPending)
	}
	c.mu.Lock()
	if got := len(c.run.cancels); got > int(c.run.last) {
		t.Errorf("%d cancels wait, want no more than the %d requests that were sent", got, c.run.last)
	}
	c.mu.Unlock()
	s.end()
	if err := wait(t, "Run ends", s.ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: got %v, want %v", err, context.Canceled)
	}
}
