package exchangetest

import (
	"context"
	"slices"

	blocks "github.com/ipfs/go-block-format"
)

// lasting: wants outlive what happens around them: new blocks, new peers, lost
// peers.
var lasting = []testCase{
	{"a new block is served to who waits for it", 2, func(c *cast) {
		list := c.blocks(2, 1000)
		c.connect(0, 1)
		one := c.getting(c.ctx, c.exchange(1), list[0])
		many := c.open(c.ctx, c.exchange(1), list)
		c.wanted(1, list...)
		c.asked(0, 1, list...)
		c.add(0, list...)
		c.succeeds("GetBlock gets it", one)
		c.wait("GetBlocks gets all", func() error { return c.collect(many, list) })
	}},
	{"a new block of one's own ends the waiting", 1, func(c *cast) {
		list := c.blocks(2, 1000)
		one := c.getting(c.ctx, c.exchange(0), list[0])
		many := c.open(c.ctx, c.exchange(0), list)
		session := c.open(c.ctx, c.session(c.ctx, 0), list)
		c.wanted(0, list...)
		// The want list shows that somebody waits, not who: tell until all have it.
		stop := make(chan struct{})
		told := later(func() error {
			for {
				if err := c.tryAdd(0, list...); err != nil {
					return err
				}
				select {
				case <-stop:
					return nil
				case <-c.ctx.Done():
					return c.ctx.Err()
				case <-c.pause():
				}
			}
		})
		c.succeeds("GetBlock gets it", one)
		c.wait("GetBlocks gets all", func() error { return c.collect(many, list) })
		c.wait("so does a session", func() error { return c.collect(session, list) })
		close(stop)
		c.succeeds("the exchange was told", told)
	}},
	{"a late seeder", 2, func(c *cast) {
		list := c.blocks(50, 1000)
		c.add(0, list...)
		ch := c.open(c.ctx, c.exchange(1), list)
		c.wanted(1, list...)
		c.connect(0, 1)
		c.wait("who connects after the request is asked", func() error { return c.collect(ch, list) })
	}},
	{"two seeders with half each", 3, func(c *cast) {
		list := c.blocks(200, 1000)
		for k, b := range list {
			c.add(k%2, b)
		}
		c.connect(0, 2)
		c.connect(1, 2)
		c.getAll("between them they have all", c.exchange(2), list)
	}},
	{"two seeders with all", 3, func(c *cast) {
		list := c.blocks(200, 1000)
		for i := range 2 {
			c.add(i, list...)
			c.connect(i, 2)
		}
		c.getAll("each block comes once", c.exchange(2), list)
	}},
	{"a seeder is lost midway", 3, func(c *cast) {
		list := c.blocks(300, 10_000)
		for i := range 2 {
			c.add(i, list...)
			c.connect(i, 2)
		}
		ch := c.open(c.ctx, c.exchange(2), list)
		rest := c.read("both seeders are there", ch, 50, list)
		c.disconnect(0, 2)
		c.wait("the other seeder has the rest", func() error { return c.collect(ch, rest) })
	}},
	{"the only seeder is lost and another comes", 3, func(c *cast) {
		list := c.blocks(200, 1000)
		c.add(0, list[:100]...)
		c.add(1, list...)
		c.connect(0, 2)
		ch := c.open(c.ctx, c.exchange(2), list)
		rest := c.read("the first has half", ch, 50, list)
		c.disconnect(0, 2)
		c.connect(1, 2)
		c.wait("the second has all", func() error { return c.collect(ch, rest) })
	}},
	{"a seeder goes and comes back", 2, func(c *cast) {
		list := c.blocks(100, 1000)
		c.add(0, list[:50]...)
		c.connect(0, 1)
		ch := c.open(c.ctx, c.exchange(1), list)
		rest := c.read("it has half", ch, 50, list)
		if slices.ContainsFunc(rest, func(b blocks.Block) bool { return slices.Contains(list[:50], b) }) {
			c.Fatal("a block of the other half came, which nobody has")
		}
		c.disconnect(0, 1)
		c.add(0, list[50:]...)
		c.connect(0, 1)
		c.wait("back, it has all", func() error { return c.collect(ch, rest) })
	}},
}

// ending: what Close does.
var ending = []testCase{
	{"close while waiting", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.connect(0, 1)
		session := c.session(c.ctx, 1)
		getters := map[string]<-chan error{
			"GetBlock":            c.getting(c.ctx, c.exchange(1), b),
			"GetBlock of session": c.getting(c.ctx, session, b),
		}
		requests := map[string]<-chan blocks.Block{
			"GetBlocks":            c.open(c.ctx, c.exchange(1), []blocks.Block{b}),
			"GetBlocks of session": c.open(c.ctx, session, []blocks.Block{b}),
		}
		c.wanted(1, b)
		c.closeExchange(1)
		for name, g := range getters {
			c.fails(name+" returns when the exchange closes", g, nil)
		}
		for name, ch := range requests {
			if n := c.closes(name+" closes its channel when the exchange closes", ch); n != 0 {
				c.Fatalf("%s: got %d blocks that nobody has", name, n)
			}
		}
	}},
	{"close twice", 2, func(c *cast) {
		c.connect(0, 1)
		c.closeExchange(1)
		c.closeExchange(1)
		c.all("and at once", 4, func(int) error { return c.exchange(0).Close() })
	}},
	{"a get after close fails", 2, func(c *cast) {
		b := c.blocks(1, 1000)[0]
		c.add(0, b)
		c.connect(0, 1)
		before := c.session(c.ctx, 1)
		c.closeExchange(1)
		after := c.session(c.ctx, 1)
		c.fails("GetBlock", c.getting(c.ctx, c.exchange(1), b), nil)
		c.fails("GetBlock of an old session", c.getting(c.ctx, before, b), nil)
		c.fails("GetBlock of a new session", c.getting(c.ctx, after, b), nil)
		if ch, err := c.exchange(1).GetBlocks(c.ctx, keys([]blocks.Block{b})); err == nil {
			if n := c.closes("GetBlocks", ch); n != 0 {
				c.Fatalf("GetBlocks: got %d blocks from an exchange that is closed", n)
			}
		}
	}},
	{"new blocks after close are no error", 2, func(c *cast) {
		c.closeExchange(0)
		c.wait("a blockservice fails the read if this does", func() error {
			return c.exchange(0).NotifyNewBlocks(context.WithoutCancel(c.ctx), c.blocks(1, 1000)...)
		})
	}},
	{WantListsEmpty, 2, func(c *cast) {
		list := c.blocks(400, 1000)
		c.add(0, list[:300]...)
		c.connect(0, 1)
		s := c.session(c.ctx, 1)
		c.getAll("some are got", c.exchange(1), list[:100])
		c.all("some one by one", 100, func(k int) error { return c.tryGet(c.ctx, c.exchange(1), list[100+k]) })
		c.getAll("some in a session that goes on", s, list[200:300])
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		ch := c.open(ctx, s, list[300:])
		c.wanted(1, list[300:]...)
		cancel()
		c.closes("some are cancelled", ch)
		c.wantNothing("when nobody waits any more")
	}},
	{"a peer that has closed is not waited for", 3, func(c *cast) {
		list := c.blocks(100, 1000)
		for i := range 2 {
			c.add(i, list...)
			c.connect(i, 2)
		}
		c.closeExchange(0)
		c.getAll("the other seeder has all", c.exchange(2), list)
	}},
}

func (c *cast) closeExchange(i int) {
	c.Helper()
	c.wait("close", c.exchange(i).Close)
}
