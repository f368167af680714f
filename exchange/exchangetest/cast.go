package exchangetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"
)

const (
	// defaultPatience is how long a case may take altogether.
	defaultPatience = time.Minute
	// prompt is how soon something must happen that needs no other node.
	prompt = 10 * time.Second
	// glance is the pause between two looks at something that must change.
	glance = 2 * time.Millisecond
)

// A cast is the nodes of one case, and what they can be told to do. Its methods
// fail the case with a reason; they are called from the goroutine of the case,
// unless they say otherwise.
type cast struct {
	testing.TB
	suite    Suite
	group    Group
	patience time.Duration
	ctx      context.Context // ends when patience does
	rand     *rand.ChaCha8
}

func newCast(t testing.TB, s Suite, tc testCase) *cast {
	t.Helper()
	patience := s.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	var seed [32]byte
	copy(seed[:], tc.name)
	c := &cast{TB: t, suite: s, patience: patience, ctx: ctx, rand: rand.NewChaCha8(seed)}
	c.group = s.New(t, tc.nodes)
	// Registered after the nodes' own, so it runs while they are still there.
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			for i := range c.group.Nodes {
				list, ok := c.wants(i)
				t.Logf("node %d: %d wants (known: %v) %v", i, len(list), ok, list[:min(len(list), 10)])
			}
		}
	})
	return c
}

// blocks makes n blocks of random bytes, the same in every run.
func (c *cast) blocks(n, size int) []blocks.Block {
	c.Helper()
	list := make([]blocks.Block, n)
	for i := range list {
		data := make([]byte, size)
		c.rand.Read(data)
		list[i] = c.block(cid.Raw, data)
	}
	return list
}

func (c *cast) block(codec uint64, data []byte) blocks.Block {
	c.Helper()
	k, err := cid.Prefix{Version: 1, Codec: codec, MhType: mh.SHA2_256, MhLength: -1}.Sum(data)
	if err != nil {
		c.Fatal(err)
	}
	b, err := blocks.NewBlockWithCid(data, k)
	if err != nil {
		c.Fatal(err)
	}
	return b
}

func keys(list []blocks.Block) []cid.Cid {
	ks := make([]cid.Cid, len(list))
	for i, b := range list {
		ks[i] = b.Cid()
	}
	return ks
}

func (c *cast) exchange(i int) boxo.Interface { return c.group.Nodes[i].Exchange }

// add stores blocks at a node and tells its exchange, as a node does.
func (c *cast) add(i int, list ...blocks.Block) {
	c.Helper()
	if err := c.tryAdd(i, list...); err != nil {
		c.Fatal(err)
	}
}

// tryAdd is add for any goroutine.
func (c *cast) tryAdd(i int, list ...blocks.Block) error {
	if err := c.group.Nodes[i].Blockstore.PutMany(c.ctx, list); err != nil {
		return fmt.Errorf("put %d blocks at node %d: %w", len(list), i, err)
	}
	if err := c.exchange(i).NotifyNewBlocks(c.ctx, list...); err != nil {
		return fmt.Errorf("notify node %d of %d blocks: %w", i, len(list), err)
	}
	return nil
}

func (c *cast) connect(i, j int) {
	c.Helper()
	if err := c.group.Connect(i, j); err != nil {
		c.Fatalf("connect nodes %d and %d: %v", i, j, err)
	}
}

func (c *cast) disconnect(i, j int) {
	c.Helper()
	if err := c.group.Disconnect(i, j); err != nil {
		c.Fatalf("disconnect nodes %d and %d: %v", i, j, err)
	}
}

// session makes a session of node i that lasts until ctx ends.
func (c *cast) session(ctx context.Context, i int) boxo.Fetcher {
	c.Helper()
	x, ok := c.exchange(i).(boxo.SessionExchange)
	if !ok {
		c.Fatalf("%T has no sessions: it does not implement SessionExchange", c.exchange(i))
	}
	return x.NewSession(ctx)
}

// same checks that got is the block that was wanted.
func same(got, want blocks.Block) error {
	switch {
	case got == nil:
		return fmt.Errorf("got no block and no error, want %s", want.Cid())
	case !got.Cid().Equals(want.Cid()):
		return fmt.Errorf("got block %s, want %s", got.Cid(), want.Cid())
	case !bytes.Equal(got.RawData(), want.RawData()):
		return fmt.Errorf("block %s: got %d other bytes, want %d", want.Cid(), len(got.RawData()), len(want.RawData()))
	}
	return nil
}

// get gets one block and checks it.
func (c *cast) get(why string, f boxo.Fetcher, want blocks.Block) {
	c.Helper()
	c.wait(why, func() error { return c.tryGet(c.ctx, f, want) })
}

// tryGet is get for any goroutine.
func (c *cast) tryGet(ctx context.Context, f boxo.Fetcher, want blocks.Block) error {
	got, err := f.GetBlock(ctx, want.Cid())
	if err != nil {
		return fmt.Errorf("get %s: %w", want.Cid(), err)
	}
	return same(got, want)
}

// getAll gets blocks, in windows if the exchange has them, and checks that each
// comes once and that the channel is closed then.
func (c *cast) getAll(why string, f boxo.Fetcher, want []blocks.Block) {
	c.Helper()
	c.wait(why, func() error { return c.tryGetAll(f, want) })
}

// tryGetAll is getAll for any goroutine.
func (c *cast) tryGetAll(f boxo.Fetcher, want []blocks.Block) error {
	window := len(want)
	if c.suite.Window > 0 {
		window = c.suite.Window
	}
	for len(want) > 0 {
		n := min(window, len(want))
		ch, err := f.GetBlocks(c.ctx, keys(want[:n]))
		if err != nil {
			return fmt.Errorf("get %d blocks: %w", n, err)
		}
		if err := c.collect(ch, want[:n]); err != nil {
			return err
		}
		want = want[n:]
	}
	return nil
}

// collect reads a channel until it is closed, and checks that the blocks wanted
// have come, each once.
func (c *cast) collect(ch <-chan blocks.Block, want []blocks.Block) error {
	missing := make(map[cid.Cid]blocks.Block, len(want))
	for _, b := range want {
		missing[b.Cid()] = b
	}
	for {
		select {
		case got, ok := <-ch:
			if !ok {
				if len(missing) > 0 {
					return fmt.Errorf("channel closed with %d of %d blocks missing", len(missing), len(want))
				}
				return nil
			}
			if missing[got.Cid()] == nil {
				return fmt.Errorf("block %s came again, or was not asked for", got.Cid())
			}
			if err := same(got, missing[got.Cid()]); err != nil {
				return err
			}
			delete(missing, got.Cid())
		case <-c.ctx.Done():
			return fmt.Errorf("%d of %d blocks missing, channel open: %w", len(missing), len(want), c.ctx.Err())
		}
	}
}

// open starts a request whose channel the case reads itself.
func (c *cast) open(ctx context.Context, f boxo.Fetcher, list []blocks.Block) <-chan blocks.Block {
	c.Helper()
	ch, err := f.GetBlocks(ctx, keys(list))
	if err != nil {
		c.Fatalf("get %d blocks: %v", len(list), err)
	}
	return ch
}

// read takes n blocks of those wanted from a channel that stays open.
func (c *cast) read(why string, ch <-chan blocks.Block, n int, want []blocks.Block) (rest []blocks.Block) {
	c.Helper()
	missing := make(map[cid.Cid]bool, len(want))
	for _, b := range want {
		missing[b.Cid()] = true
	}
	for k := range n {
		select {
		case b, ok := <-ch:
			if !ok {
				c.Fatalf("%s: channel closed after %d blocks, want %d", why, k, n)
			}
			if !missing[b.Cid()] {
				c.Fatalf("%s: block %s came again, or was not asked for", why, b.Cid())
			}
			delete(missing, b.Cid())
		case <-c.ctx.Done():
			c.Fatalf("%s: %d blocks after %v, want %d", why, k, c.patience, n)
		}
	}
	for _, b := range want {
		if missing[b.Cid()] {
			rest = append(rest, b)
		}
	}
	return rest
}

// closes waits until a channel is closed, and counts the blocks that come before.
func (c *cast) closes(why string, ch <-chan blocks.Block) (n int) {
	c.Helper()
	t := time.NewTimer(prompt)
	defer t.Stop()
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return n
			}
			n++
		case <-t.C:
			c.Fatalf("%s: channel still open after %v", why, prompt)
		}
	}
}

// later runs f on a goroutine and returns the channel of its result.
func later(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// wait runs f, which must return nil before patience ends.
func (c *cast) wait(why string, f func() error) {
	c.Helper()
	c.succeeds(why, later(f))
}

// succeeds waits for a result, which must be nil.
func (c *cast) succeeds(why string, done <-chan error) {
	c.Helper()
	// A call that has been given c.ctx has a moment to say what it lacks.
	t := time.NewTimer(c.patience + prompt)
	defer t.Stop()
	select {
	case err := <-done:
		if err != nil {
			c.Fatalf("%s: %v", why, err)
		}
	case <-t.C:
		c.Fatalf("%s: no answer, not even %v after the deadline", why, prompt)
	}
}

// fails waits for a result, which must come promptly and be an error; want is
// nil or what it must be.
func (c *cast) fails(why string, done <-chan error, want error) {
	c.Helper()
	t := time.NewTimer(prompt)
	defer t.Stop()
	select {
	case err := <-done:
		if err == nil {
			c.Fatalf("%s: got no error", why)
		}
		if want != nil && !errors.Is(err, want) {
			c.Fatalf("%s: got error %q, want %q", why, err, want)
		}
	case <-t.C:
		c.Fatalf("%s: no answer after %v", why, prompt)
	}
}

// all runs f n times at once; each must succeed.
func (c *cast) all(why string, n int, f func(k int) error) {
	c.Helper()
	var list []<-chan error
	for k := range n {
		list = append(list, later(func() error { return f(k) }))
	}
	for _, done := range list {
		c.succeeds(why, done)
	}
}

// getting starts a GetBlock and returns the channel of its error.
func (c *cast) getting(ctx context.Context, f boxo.Fetcher, want blocks.Block) <-chan error {
	return later(func() error { return c.tryGet(ctx, f, want) })
}

// wants is the want list of a node, if its exchange shows one.
func (c *cast) wants(i int) (list []cid.Cid, known bool) {
	x, known := c.exchange(i).(interface{ GetWantlist() []cid.Cid })
	if !known {
		return nil, false
	}
	return x.GetWantlist(), true
}

// wanted waits until node i wants the blocks, if its exchange shows its wants.
func (c *cast) wanted(i int, list ...blocks.Block) {
	c.Helper()
	if _, known := c.wants(i); !known {
		return
	}
	c.becomes(fmt.Sprintf("node %d wants %d blocks", i, len(list)), c.patience, func() bool {
		have, _ := c.wants(i)
		return containsAll(have, list)
	})
}

// asked waits until node j knows that node i wants the blocks, if its exchange
// shows that.
func (c *cast) asked(j, i int, list ...blocks.Block) {
	c.Helper()
	x, known := c.exchange(j).(interface {
		WantlistForPeer(peer.ID) []cid.Cid
	})
	if !known || c.group.Nodes[i].ID == "" {
		return
	}
	c.becomes(fmt.Sprintf("node %d knows that node %d wants %d blocks", j, i, len(list)), c.patience, func() bool {
		return containsAll(x.WantlistForPeer(c.group.Nodes[i].ID), list)
	})
}

func containsAll(have []cid.Cid, list []blocks.Block) bool {
	set := cid.NewSet()
	for _, k := range have {
		set.Add(k)
	}
	for _, b := range list {
		if !set.Has(b.Cid()) {
			return false
		}
	}
	return true
}

// wantNothing waits until no want list has anything in it.
func (c *cast) wantNothing(why string) {
	c.Helper()
	for i := range c.group.Nodes {
		c.becomes(fmt.Sprintf("%s, the want list of node %d is empty", why, i), prompt, func() bool {
			list, _ := c.wants(i)
			return len(list) == 0
		})
	}
}

// becomes waits until something is true.
func (c *cast) becomes(what string, within time.Duration, f func() bool) {
	c.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	look := time.NewTicker(glance)
	defer look.Stop()
	for !f() {
		select {
		case <-look.C:
		case <-deadline.C:
			c.Fatalf("not so after %v: %s", within, what)
		}
	}
}

// drain reads a channel until it is closed or patience ends. It may be called
// from any goroutine.
func (c *cast) drain(ch <-chan blocks.Block) {
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// pause returns a channel that is ready at the next glance. It may be called
// from any goroutine.
func (c *cast) pause() <-chan time.Time { return time.After(glance) }
