package writebehind_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/blockservice"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/host/writebehind"
)

// TestTell: an exchange hears of a block after its write, once, and of others at
// once; what it answers does not reach the caller.
func TestTell(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		c.ear.err = errors.New("nobody home")
		second := newEar(c, c.disk)
		x2 := c.Exchange(second)
		c.fetch("a")
		for _, x := range []boxo.Interface{c.x, c.x, x2} {
			if err := x.NotifyNewBlocks(c.Context(), block("a")); err != nil {
				c.Errorf("notify: %v", err)
			}
		}
		if _, ok := x2.(dataset.LeafExchange); ok {
			c.Error("an exchange without leaves got them")
		}
		if err := c.Adding().Put(c.Context(), block("b")); err != nil {
			c.Fatal(err)
		}
		if err := c.x.NotifyNewBlocks(c.Context(), block("b"), block("a")); err != nil {
			c.Error(err)
		}
		if n := c.ear.heard("b"); n != 1 {
			c.Errorf("of a block that is stored it heard %d times, want once, at once", n)
		}
		c.state("held", "a", true, false, 0)
		time.Sleep(writebehind.DefaultDelay)
		c.state("written", "a", true, true, 1)
		if n := second.heard("a"); n != 1 {
			c.Errorf("the second heard of it %d times, want 1", n)
		}

		c.fetch("c")
		if err := x2.NotifyNewBlocks(c.Context(), block("c")); err != nil {
			c.Error(err)
		}
		for range 2 {
			if err := x2.Close(); err != nil {
				c.Error(err)
			}
		}
		time.Sleep(writebehind.DefaultDelay)
		c.state("the other has closed", "c", true, true, 1)
		if err := x2.NotifyNewBlocks(c.Context(), block("c")); err != nil || second.heard("c") != 0 || second.closed != 1 {
			c.Errorf("after close: %v, heard %d times, closed %d times; want silence and one close", err, second.heard("c"), second.closed)
		}
		if got := c.Stats(); got != (writebehind.Stats{}) {
			c.Errorf("stats: got %+v, want zero", got)
		}
	})
}

// TestHangs: an exchange that hangs keeps no block from the disk and no adder
// from its answer; the memory of what it has not heard is bounded, and comes back
// with its Close.
func TestHangs(t *testing.T) {
	play(t, four, func(c *scene) {
		hung := newEar(c, c.disk)
		hung.gate = make(chan struct{})
		x := c.Exchange(hung)
		for _, data := range []string{"a", "b", "c", "d"} {
			c.fetch(data)
			if err := x.NotifyNewBlocks(c.Context(), block(data)); err != nil {
				c.Error(err)
			}
			if err := c.Flush(c.Context()); err != nil {
				c.Error(err)
			}
			synctest.Wait() // it hangs with the first, the others wait
		}
		if err := c.Adding().Put(c.Context(), block("f")); err != nil {
			c.Error(err)
		}
		c.state("the other exchange has heard", "d", true, true, 1)
		if got := c.Stats(); got.Blocks != 0 || got.Bytes != four.Bytes {
			c.Errorf("stats: got %+v, want %d bytes of no blocks", got, four.Bytes)
		}
		ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
		defer cancel()
		if err := c.Put(ctx, block("e")); !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("put: got %v, want the end of ctx", err)
		}
		go func() { time.Sleep(time.Second); close(hung.gate) }()
		if err := x.Close(); err != nil {
			c.Error(err)
		}
		if got := c.Stats(); got != (writebehind.Stats{}) {
			c.Errorf("stats: got %+v, want zero", got)
		}
	})
}

// TestLeaves: leaves are told when what was held before is written, whatever
// becomes of it, and their number is bounded while nothing is written.
func TestLeaves(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		x := c.x.(dataset.LeafExchange)
		notify := func(i uint64) {
			c.Helper()
			if err := x.NotifyNewLeaves(c.Context(), block("root").Cid(), wire.Range{First: i, Count: 1}); err != nil {
				c.Error(err)
			}
		}
		expect := func(why string, want int) {
			c.Helper()
			synctest.Wait()
			if n := (leafEar{c.ear}).ranges(); n != want {
				c.Errorf("%s: %d ranges were told, want %d", why, n, want)
			}
		}
		notify(0)
		expect("nothing is held", 1)

		release := c.disk.hold()
		c.fetch("a")
		notify(1)
		time.Sleep(time.Second)
		notify(2)
		expect("being written", 1)
		release()
		expect("written", 3)

		c.disk.setFail(noSpace)
		c.fetch("b")
		notify(3)
		time.Sleep(time.Minute)
		expect("not written", 3)
		c.disk.setFail(nil)
		time.Sleep(time.Second)
		expect("written at last", 4)

		c.fetch("c")
		notify(4)
		if err := c.DeleteBlock(c.Context(), block("c").Cid()); err != nil {
			c.Error(err)
		}
		expect("deleted: nothing to wait for", 5)

		c.disk.setFail(noSpace)
		c.fetch("d")
		for i := range uint64(5000) {
			notify(i)
		}
		c.disk.setFail(nil)
		time.Sleep(time.Second)
		expect("the newest of too many", 5+4096)
	})
}

// A source is an exchange that has every block there is, from its own memory.
type source struct {
	*ear
	blocks   map[cid.Cid]blocks.Block
	sessions int
}

func (x *source) GetBlock(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if b := x.blocks[c]; b != nil {
		return b, nil
	}
	return nil, errs.NotFound
}

func (x *source) GetBlocks(_ context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	ch := make(chan blocks.Block, len(keys))
	defer close(ch)
	for _, c := range keys {
		ch <- x.blocks[c]
	}
	return ch, nil
}

func (x *source) NewSession(context.Context) boxo.Fetcher {
	x.sessions++
	return x
}

// TestService: what a blockservice fetches is held, what it adds is on the disk
// when the call returns, and sessions are one session of the exchange.
func TestService(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		src := &source{ear: c.ear, blocks: map[cid.Cid]blocks.Block{}}
		var keys []cid.Cid
		for _, data := range []string{"a", "b", "c", "d"} {
			b := block(data)
			src.blocks[b.Cid()] = b
			keys = append(keys, b.Cid())
		}
		service := c.Service(c.Exchange(src))
		defer service.Close()

		if b, err := service.GetBlock(c.Context(), keys[0]); err != nil || b.Cid() != keys[0] {
			c.Errorf("get: got %v, %v, want the block", b, err)
		}
		c.state("fetched", "a", true, false, 0)
		if err := service.AddBlock(c.Context(), block("a")); err != nil {
			c.Error(err)
		}
		c.state("added while held: stored by then, so not added again", "a", true, true, 0)
		time.Sleep(writebehind.DefaultDelay)
		c.state("flushed", "a", true, true, 1)

		ctx := blockservice.ContextWithSession(c.Context(), service)
		if _, err := service.GetBlock(ctx, keys[1]); err != nil {
			c.Error(err)
		}
		for b := range service.GetBlocks(ctx, keys) {
			if !slices.Contains(keys, b.Cid()) {
				c.Errorf("got %s, want one of %s", b.Cid(), keys)
			}
		}
		for range service.GetBlocks(c.Context(), keys) {
		}
		if src.sessions != 1 {
			c.Errorf("%d sessions were made, want 1", src.sessions)
		}
		c.state("fetched in a session", "d", true, false, 0)

		if err := service.AddBlock(c.Context(), block("e")); err != nil {
			c.Error(err)
		}
		if n := c.ear.heard("e"); n != 1 {
			c.Errorf("an added block was told %d times when AddBlock returned, want 1", n)
		}
		if err := service.AddBlocks(c.Context(), []blocks.Block{block("d"), block("f"), block("g")}); err != nil {
			c.Error(err)
		}
		c.state("added", "g", true, true, 1)
		c.state("added while held", "d", true, true, 0)

		c.disk.setFail(noSpace)
		if err := service.AddBlock(c.Context(), block("h")); !errors.Is(err, syscall.ENOSPC) {
			c.Errorf("add on a full disk: got %v, want ENOSPC", err)
		}
		c.disk.setFail(nil)
		offline := c.Service(nil)
		if _, err := offline.GetBlock(c.Context(), block("h").Cid()); err == nil {
			c.Error("offline: got a block that is nowhere")
		}
		if err := offline.AddBlock(c.Context(), block("h")); err != nil {
			c.Error(err)
		}
	})
}

// TestSuite: an exchange whose notifications go through a Store is an exchange
// like any other.
func TestSuite(t *testing.T) {
	exchangetest.Run(t, suite())
}

func suite() exchangetest.Suite {
	return exchangetest.Suite{Bubble: true, New: func(t testing.TB, n int) exchangetest.Group {
		m := exchangetest.NewMesh(n)
		g := exchangetest.Group{
			Connect:    func(i, j int) error { m.Connect(i, j); return nil },
			Disconnect: func(i, j int) error { m.Disconnect(i, j); return nil },
		}
		for i := range n {
			s, err := writebehind.New(m.Blocks(i), writebehind.Options{})
			if err != nil {
				t.Fatal(err)
			}
			x := s.Exchange(m.Exchange(i))
			t.Cleanup(func() {
				if err := errors.Join(x.Close(), s.Close()); err != nil {
					t.Error(err)
				}
			})
			g.Nodes = append(g.Nodes, exchangetest.Node{Exchange: x, Blockstore: s})
		}
		return g
	}}
}
