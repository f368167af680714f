package exchangetest

import (
	"context"
	"fmt"
	"time"

	"github.com/ipfs/boxo/blockservice"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// fetching: one node has blocks, another gets them.
var fetching = []testCase{
	{"get one block", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.add(0, b)
		c.connect(0, 1)
		c.get("node 0 has it", c.exchange(1), b)
	}},
	{"get many blocks", 2, func(c *cast) {
		list := c.blocks(200, 1000)
		c.add(0, list...)
		c.connect(0, 1)
		c.getAll("node 0 has all", c.exchange(1), list)
	}},
	{"get ten thousand small blocks", 2, func(c *cast) {
		list := c.blocks(10_000, 100)
		c.add(0, list...)
		c.connect(0, 1)
		c.getAll("node 0 has all", c.exchange(1), list)
	}},
	{"get a block of two mebibytes", 2, func(c *cast) {
		b := c.blocks(1, 2<<20)[0]
		c.add(0, b)
		c.connect(0, 1)
		c.get("node 0 has it", c.exchange(1), b)
	}},
	{"get an empty block", 2, func(c *cast) {
		b := c.blocks(1, 0)[0]
		c.add(0, b)
		c.connect(0, 1)
		c.get("no bytes are a block too", c.exchange(1), b)
	}},
	{"get the same bytes under two CIDs", 2, func(c *cast) {
		data := []byte{0xa0} // the empty map of CBOR
		list := []blocks.Block{c.block(cid.Raw, data), c.block(cid.DagCBOR, data)}
		c.add(0, list...)
		c.connect(0, 1)
		c.getAll("each comes with the CID that was asked for", c.exchange(1), list)
	}},
	{"two nodes swap blocks", 2, func(c *cast) {
		list := c.blocks(400, 1000)
		halves := [][]blocks.Block{list[:200], list[200:]}
		c.add(0, halves[0]...)
		c.add(1, halves[1]...)
		c.connect(0, 1)
		c.all("each gets what the other has", 2, func(i int) error {
			return c.tryGetAll(c.exchange(i), halves[1-i])
		})
	}},
	{"fetched blocks are served on", 3, func(c *cast) {
		list := c.blocks(50, 1000)
		c.add(0, list...)
		c.connect(0, 1)
		c.connect(1, 2)
		service := blockservice.New(c.group.Nodes[1].Blockstore, c.exchange(1))
		c.wait("node 1 gets from node 0 through a blockservice", func() error {
			return c.collect(service.GetBlocks(c.ctx, keys(list)), list)
		})
		for _, b := range list {
			if has, err := c.group.Nodes[1].Blockstore.Has(c.ctx, b.Cid()); err != nil || !has {
				c.Fatalf("the blockservice of node 1 has stored %s: %v, %v, want true", b.Cid(), has, err)
			}
		}
		c.getAll("node 2 knows only node 1", c.exchange(2), list)
	}},
}

// asking: what a request may look like, and how it can end.
var asking = []testCase{
	{"an empty request ends at once", 2, func(c *cast) {
		c.connect(0, 1)
		if n := c.closes("nothing was asked for", c.open(c.ctx, c.exchange(1), nil)); n != 0 {
			c.Fatalf("got %d blocks, want none", n)
		}
	}},
	{"duplicates in a request come once", 2, func(c *cast) {
		list := c.blocks(3, 1000)
		c.add(0, list...)
		c.connect(0, 1)
		twice := []blocks.Block{list[0], list[0], list[1], list[2], list[1], list[0]}
		ch := c.open(c.ctx, c.exchange(1), twice)
		c.wait("three CIDs were named six times", func() error { return c.collect(ch, list) })
	}},
	{"an undefined CID is refused", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.add(0, b)
		c.connect(0, 1)
		c.fails("it names nothing", later(func() error {
			_, err := c.exchange(1).GetBlock(c.ctx, cid.Undef)
			return err
		}), nil)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		c.wait("beside another it must not stay in the way of the end", func() error {
			ch, err := c.exchange(1).GetBlocks(ctx, []cid.Cid{b.Cid(), cid.Undef})
			if err == nil {
				cancel()
				c.drain(ch)
			}
			return nil
		})
	}},
	{"a context that has ended asks for nothing", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		cancel()
		c.fails("the context had been cancelled", c.getting(ctx, c.exchange(1), b), context.Canceled)
		if ch, err := c.exchange(1).GetBlocks(ctx, []cid.Cid{b.Cid()}); err == nil {
			if n := c.closes("the context had been cancelled", ch); n != 0 {
				c.Fatalf("got %d blocks that nobody has", n)
			}
		}
	}},
	{"a block that nobody has is waited for until cancelled", 2, func(c *cast) {
		list := c.blocks(2, 1000)
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		one := c.getting(ctx, c.exchange(1), list[0])
		many := c.open(ctx, c.exchange(1), list)
		c.wanted(1, list...)
		cancel()
		c.fails("GetBlock says that it was cancelled", one, context.Canceled)
		if n := c.closes("GetBlocks closes its channel", many); n != 0 {
			c.Fatalf("got %d blocks that nobody has", n)
		}
	}},
	{"a block that nobody has is waited for until the deadline", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.connect(0, 1)
		ctx, cancel := context.WithTimeout(c.ctx, 50*time.Millisecond)
		defer cancel()
		c.fails("GetBlock says that its time is over", c.getting(ctx, c.exchange(1), b), context.DeadlineExceeded)
	}},
	{"a reader who stops early leaves nothing behind", 2, func(c *cast) {
		list := c.blocks(100, 1000)
		c.add(0, list[:90]...)
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		ch := c.open(ctx, c.exchange(1), list)
		c.read("node 0 has 90", ch, 10, list)
		cancel()
		c.closes("the request was cancelled", ch)
	}},
	{"a reader who does not read holds nobody up", 2, func(c *cast) {
		list := c.blocks(101, 10_000)
		c.add(0, list...)
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		idle := c.open(ctx, c.exchange(1), list[:100])
		c.get("another request does not wait for it", c.exchange(1), list[100])
		c.getAll("even for the same blocks", c.exchange(1), list[:100])
		cancel()
		c.closes("the idle request was cancelled", idle)
	}},
}

// sharing: several getters on one node.
var sharing = []testCase{
	{"many getters of one block", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.connect(0, 1)
		var getters []<-chan error
		for range 50 {
			getters = append(getters, c.getting(c.ctx, c.exchange(1), b))
		}
		c.wanted(1, b)
		c.add(0, b)
		for _, g := range getters {
			c.succeeds("each getter gets it", g)
		}
	}},
	{"many nodes get one block", 6, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		for i := 1; i < 6; i++ {
			c.connect(0, i)
		}
		c.add(0, b)
		c.all("each node gets it", 5, func(k int) error { return c.tryGet(c.ctx, c.exchange(k+1), b) })
	}},
	{"cancelling one of two getters leaves the other", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		first := c.getting(ctx, c.exchange(1), b)
		second := c.getting(c.ctx, c.exchange(1), b)
		c.wanted(1, b)
		cancel()
		c.fails("the first was cancelled", first, context.Canceled)
		c.add(0, b)
		c.succeeds("the second still waits, and gets it", second)
	}},
	{"cancelling one of two overlapping requests leaves the other", 2, func(c *cast) {
		list := c.blocks(30, 1000)
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		first := c.open(ctx, c.exchange(1), list[:20])
		second := c.open(c.ctx, c.exchange(1), list[10:])
		c.wanted(1, list...)
		cancel()
		c.closes("the first was cancelled", first)
		c.add(0, list...)
		c.wait("the second gets all", func() error { return c.collect(second, list[10:]) })
	}},
	{"a session gets block after block", 2, func(c *cast) {
		list := c.blocks(60, 1000)
		c.add(0, list...)
		c.connect(0, 1)
		s := c.session(c.ctx, 1)
		for _, b := range list[:20] {
			c.get("one at a time", s, b)
		}
		c.getAll("then some at once", s, list[20:40])
		c.all("then one by one, but at once", 20, func(k int) error { return c.tryGet(c.ctx, s, list[40+k]) })
	}},
	{"two sessions share a want", 2, func(c *cast) {
		list := c.blocks(20, 1000)
		c.connect(0, 1)
		one, two := c.session(c.ctx, 1), c.session(c.ctx, 1)
		first, second := c.open(c.ctx, one, list), c.open(c.ctx, two, list)
		c.wanted(1, list...)
		c.add(0, list...)
		c.wait("the first gets all", func() error { return c.collect(first, list) })
		c.wait("and the second", func() error { return c.collect(second, list) })
	}},
	{"the end of a session closes its channels and no others", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.connect(0, 1)
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		ended, lasting := c.session(ctx, 1), c.session(c.ctx, 1)
		one := c.getting(c.ctx, ended, b)
		many := c.open(c.ctx, ended, []blocks.Block{b})
		other := c.open(c.ctx, lasting, []blocks.Block{b})
		c.wanted(1, b)
		cancel()
		c.fails("a getter of the session", one, nil)
		c.closes("a request of the session", many)
		c.fails("a session that has ended gets nothing", c.getting(c.ctx, ended, b), nil)
		c.add(0, b)
		c.wait("the other session gets it", func() error { return c.collect(other, []blocks.Block{b}) })
	}},
	{"many gets and new blocks at once", 2, func(c *cast) {
		list := c.blocks(320, 1000)
		c.connect(0, 1)
		done := later(func() error {
			for k := 0; k < len(list); k += 8 {
				part := list[len(list)-k-8 : len(list)-k]
				if err := c.tryAdd(0, part...); err != nil {
					return err
				}
				if k%32 != 0 {
					continue
				}
				if err := c.tryAdd(1, part...); err != nil { // on the getting side too
					return err
				}
			}
			return nil
		})
		c.all("each of 16 getters gets its blocks, whoever came first", 16, func(k int) error {
			part := list[k*20 : k*20+20]
			if k%2 == 0 {
				return c.tryGetAll(c.exchange(1), part)
			}
			for _, b := range part {
				if err := c.tryGet(c.ctx, c.exchange(1), b); err != nil {
					return fmt.Errorf("getter %d: %w", k, err)
				}
			}
			return nil
		})
		c.succeeds("all were added", done)
	}},
}
