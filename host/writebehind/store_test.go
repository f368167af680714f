package writebehind_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/writebehind"
)

// four is room for four blocks of one byte.
var four = writebehind.Options{Bytes: 4 * 513}

func noSpace(blocks.Block) error {
	return fmt.Errorf("write temp-1: %w", syscall.ENOSPC)
}

// TestWay: a fetched block can be read at once, is written 5 ms later, and is
// told then.
func TestWay(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		c.fetch("a")
		time.Sleep(writebehind.DefaultDelay - time.Nanosecond)
		c.state("before its time", "a", true, false, 0)
		time.Sleep(time.Nanosecond)
		c.state("after 5 ms", "a", true, true, 1)
		c.fetch("a")
		c.state("fetched again: written already, but held like any other", "a", true, true, 1)
		time.Sleep(writebehind.DefaultDelay)
		c.state("and told again", "a", true, true, 2)
		if got := c.Stats(); got != (writebehind.Stats{}) {
			c.Errorf("stats at rest: got %+v, want zero", got)
		}
	})
}

// TestHalf: when half of the memory is taken, writing begins without delay.
func TestHalf(t *testing.T) {
	play(t, writebehind.Options{Bytes: four.Bytes, Delay: time.Hour}, func(c *scene) {
		c.fetch("a")
		c.state("a quarter", "a", true, false, 0)
		c.fetch("b")
		c.state("half", "a", true, true, 1)
	})
}

// TestFull: a full store makes Put wait for room and for ctx, and no longer.
func TestFull(t *testing.T) {
	play(t, four, func(c *scene) {
		release := c.disk.hold()
		for _, data := range []string{"a", "b", "c", "d"} {
			c.fetch(data)
		}
		ctx, cancel := context.WithTimeout(c.Context(), time.Second)
		defer cancel()
		if err := c.Put(ctx, block("e")); !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("put into a full store: got %v, want the end of ctx", err)
		}
		if err := c.Put(ctx, block("d")); err != nil {
			c.Errorf("put of what is held: %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- c.Put(c.Context(), block("f")) }()
		synctest.Wait()
		select {
		case err := <-done:
			c.Fatalf("put into a full store returned: %v", err)
		default:
		}
		release()
		if err := <-done; err != nil {
			c.Errorf("put when there is room: %v", err)
		}
		if err := c.Flush(c.Context()); err != nil {
			c.Error(err)
		}
		c.state("its ctx had ended", "e", false, false, 0)
		c.state("it waited", "f", true, true, 0)
	})
	play(t, writebehind.Options{Bytes: 1}, func(c *scene) {
		c.fetch("longer than all memory")
		c.fetch("next") // waits
		c.state("no room beside it", "longer than all memory", true, true, 1)
	})
}

// TestNoSpace: on a full disk blocks stay readable and untold, Put goes on while
// there is memory and then says why it does not, adding fails, and everything
// works again when there is space.
func TestNoSpace(t *testing.T) {
	play(t, four, func(c *scene) {
		if err := c.PutMany(c.Context(), []blocks.Block{block("old")}); err != nil {
			c.Fatal(err)
		}
		c.disk.setFail(noSpace)
		for _, data := range []string{"a", "b", "c"} {
			c.fetch(data)
		}
		time.Sleep(time.Minute)
		c.state("a minute later", "a", true, false, 0)
		if n := c.disk.begun("a"); n < 30 || n > 80 {
			c.Errorf("tried %d times in a minute, want about once a second", n)
		}
		c.fetch("d")

		clear := func(what string, err error) {
			c.Helper()
			if !errors.Is(err, errs.Storage) || !errors.Is(err, syscall.ENOSPC) ||
				!strings.Contains(err.Error(), "no space left on device") {
				c.Errorf("%s: got %v, want kind Storage because of ENOSPC", what, err)
			}
		}
		clear("put with memory full", c.Put(c.Context(), block("e")))
		clear("put many", c.PutMany(c.Context(), []blocks.Block{block("f"), block("g")}))
		clear("add", c.Adding().Put(c.Context(), block("h")))
		clear("flush", c.Flush(c.Context()))
		clear("stats", errs.E(errs.Storage, errs.Ours, "", "", c.Stats().Err))
		_, err := c.Adding().Has(c.Context(), block("a").Cid())
		clear("has, of who adds", err)
		c.state("served all the time", "old", true, true, 0)

		c.disk.setFail(nil)
		time.Sleep(time.Second)
		c.state("with space again", "a", true, true, 1)
		c.fetch("e")
		if err := c.Flush(c.Context()); err != nil {
			c.Error(err)
		}
		c.state("fetching goes on", "e", true, true, 1)
		if got := c.Stats(); got != (writebehind.Stats{}) {
			c.Errorf("stats after all: got %+v, want zero", got)
		}
	})
}

// TestNoSpaceWakes: who waits in Put when the disk turns out to be full hears of
// it.
func TestNoSpaceWakes(t *testing.T) {
	play(t, four, func(c *scene) {
		release := c.disk.hold()
		for _, data := range []string{"a", "b", "c", "d"} {
			c.fetch(data)
		}
		done := make(chan error)
		go func() { done <- c.Put(c.Context(), block("e")) }()
		synctest.Wait()
		c.disk.setFail(noSpace)
		release()
		if err := <-done; !errors.Is(err, syscall.ENOSPC) {
			c.Errorf("waiting put: got %v, want ENOSPC", err)
		}
		c.disk.setFail(nil)
	})
}

// TestOneBad: one block that cannot be written keeps no other from the disk and
// the exchange, and stays readable.
func TestOneBad(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		c.disk.setFail(func(b blocks.Block) error {
			if string(b.RawData()) == "bad" {
				return syscall.EIO
			}
			return nil
		})
		c.fetch("bad")
		time.Sleep(time.Minute)
		for i := range 100 {
			data := fmt.Sprint("good ", i)
			c.fetch(data)
			time.Sleep(maxWait)
			c.state("good", data, true, true, 1)
		}
		c.state("bad", "bad", true, false, 0)
		if err := c.Flush(c.Context()); !errors.Is(err, syscall.EIO) {
			c.Errorf("flush: got %v, want EIO", err)
		}
		if err := c.DeleteBlock(c.Context(), block("bad").Cid()); err != nil {
			c.Error(err)
		}
		c.state("deleted", "bad", false, false, 0)
		if err := c.Flush(c.Context()); err != nil {
			c.Errorf("flush without it: %v", err)
		}
	})
}

// TestLoad: under a load that never ends, Flush and the exchange do not wait for
// its end.
func TestLoad(t *testing.T) {
	play(t, writebehind.Options{Bytes: 64 * 515}, func(c *scene) {
		c.disk.setFail(func(blocks.Block) error { time.Sleep(time.Millisecond); return nil })
		ctx, cancel := context.WithCancel(c.Context())
		var load sync.WaitGroup
		for g := range 16 {
			load.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					c.Put(ctx, block(string([]byte{byte(g), byte(i), byte(i >> 8)})))
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		start := time.Now()
		c.fetch("a")
		if err := c.Flush(c.Context()); err != nil {
			c.Error(err)
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			c.Errorf("put and flush took %v, want a few writes of 1 ms", took)
		}
		c.state("flushed", "a", true, true, 1)
		cancel()
		load.Wait()
	})
}

// TestLarge: who waits for more room than blocks that cannot be written leave is
// told why.
func TestLarge(t *testing.T) {
	play(t, writebehind.Options{Bytes: 3 * 513}, func(c *scene) {
		c.disk.setFail(func(b blocks.Block) error {
			if string(b.RawData()) == "bad" {
				return syscall.EIO
			}
			return nil
		})
		c.fetch("bad")
		time.Sleep(time.Minute)
		c.fetch("good") // so that something can be written
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
		defer cancel()
		if err := c.Put(ctx, block(strings.Repeat("large", 150))); !errors.Is(err, syscall.EIO) {
			c.Errorf("put: got %v, want EIO", err)
		}
		c.disk.setFail(nil)
	})
}

// maxWait is how long a block waits at most beside one that fails.
const maxWait = time.Second

// TestPatience: on a full disk few of many blocks are tried in a round, and none
// is tried for ever before the others.
func TestPatience(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		var tried atomic.Int64
		c.disk.setFail(func(blocks.Block) error { tried.Add(1); return syscall.ENOSPC })
		for i := range 1000 {
			c.fetch(fmt.Sprint(i))
		}
		time.Sleep(writebehind.DefaultDelay)
		synctest.Wait()
		if n := tried.Load(); n < 16 || n > 24 {
			c.Errorf("%d of 1000 blocks tried in the first round, want 16 and those under way", n)
		}
		time.Sleep(2 * time.Minute)
		for i := range 1000 {
			if c.disk.begun(fmt.Sprint(i)) == 0 {
				c.Fatalf("block %d was not tried in two minutes", i)
			}
		}
		c.disk.setFail(nil)
		time.Sleep(time.Second)
		c.state("with space", "999", true, true, 1)
	})
}

// TestDelete: a block is gone when its delete returns, whatever it was before,
// and is not told any more.
func TestDelete(t *testing.T) {
	a := block("a").Cid()
	play(t, writebehind.Options{}, func(c *scene) {
		c.fetch("a")
		if err := c.DeleteBlock(c.Context(), a); err != nil {
			c.Error(err)
		}
		c.state("deleted while it waited", "a", false, false, 0)
		time.Sleep(time.Second)
		c.state("nothing comes back", "a", false, false, 0)
		if n := c.disk.begun("a"); n != 0 {
			c.Errorf("it was written %d times, want never", n)
		}

		release := c.disk.hold()
		c.fetch("a")
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(c.Context(), time.Second)
		defer cancel()
		if err := c.DeleteBlock(ctx, a); !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("delete during a write that hangs: got %v, want the end of ctx", err)
		}
		c.state("still there", "a", true, false, 0)
		c.ear.disk = everything{c.disk} // it may hear of the block just after the delete
		deleted, put := make(chan error, 1), make(chan error, 1)
		go func() { deleted <- c.DeleteBlock(c.Context(), a) }()
		synctest.Wait()
		go func() { put <- c.Put(c.Context(), block("a")) }()
		synctest.Wait()
		release()
		if err := <-deleted; err != nil {
			c.Error(err)
		}
		if err := <-put; err != nil {
			c.Error(err)
		}
		time.Sleep(time.Second)
		c.state("put during the delete: there afterwards; the first was written, so told", "a", true, true, 1)

		c.disk.setFail(noSpace)
		if err := c.DeleteBlock(c.Context(), a); err != nil {
			c.Error(err)
		}
		c.fetch("a")
		time.Sleep(time.Second)
		if err := c.DeleteBlock(c.Context(), a); err != nil {
			c.Error(err)
		}
		c.disk.setFail(nil)
		time.Sleep(time.Minute)
		c.state("deleted while it could not be written", "a", false, false, 1)
		if got := c.Stats(); got != (writebehind.Stats{}) {
			c.Errorf("stats: got %+v, want zero", got)
		}
	})
}

// TestAgain: a block that is put while it waits or is being written is written
// and told once.
func TestAgain(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		release := c.disk.hold()
		c.fetch("a")
		c.fetch("a")
		time.Sleep(time.Second)
		c.fetch("a")
		other := cid.NewCidV1(cid.DagProtobuf, block("a").Cid().Hash())
		b, _ := blocks.NewBlockWithCid([]byte("a"), other)
		if err := c.Put(c.Context(), b); err != nil {
			c.Error(err)
		}
		if got, err := c.Get(c.Context(), other); err != nil || got.Cid() != other {
			c.Errorf("by another codec: got %v, %v, want its CID", got, err)
		}
		release()
		c.state("put four times", "a", true, true, 1)
		if n := c.disk.begun("a"); n != 1 {
			c.Errorf("written %d times, want once", n)
		}
	})
}

// TestAdding: what a user adds is on the disk when the call returns, also if it
// was fetched and is still held, and takes no memory of fetched blocks.
func TestAdding(t *testing.T) {
	play(t, writebehind.Options{Delay: time.Hour}, func(c *scene) {
		ctx := c.Context()
		if err := c.PutMany(ctx, []blocks.Block{block("a"), block("b"), block("c"), block("d"), block("e"), block("a")}); err != nil {
			c.Error(err)
		}
		c.state("put many", "e", true, true, 0)
		if err := c.Adding().Put(ctx, block("f")); err != nil {
			c.Error(err)
		}
		c.state("put of adding", "f", true, true, 0)

		c.fetch("g")
		if has, err := c.Adding().Has(ctx, block("g").Cid()); !has || err != nil {
			c.Errorf("has of adding: got %v, %v, want true", has, err)
		}
		c.state("held, then asked for by who adds", "g", true, true, 0)
		if has, err := c.Adding().Has(ctx, block("h").Cid()); has || err != nil {
			c.Errorf("has of adding: got %v, %v, want false", has, err)
		}

		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := c.PutMany(ended, []blocks.Block{block("i")}); !errors.Is(err, context.Canceled) {
			c.Errorf("put many after the end of ctx: got %v, want it", err)
		}
		if err := c.PutMany(ctx, nil); err != nil {
			c.Errorf("put none: %v", err)
		}
		c.fetch("k")
		if err := c.Flush(ctx); err != nil {
			c.Error(err)
		}
		c.state("flushed", "k", true, true, 1)
	})
}

// TestIdentity: a block that is in its CID is always there, and never held,
// stored, deleted or waited for.
func TestIdentity(t *testing.T) {
	play(t, writebehind.Options{Bytes: 1}, func(c *scene) {
		data := []byte(strings.Repeat("inline ", 100)) // too long for a file name
		h, err := mh.Sum(data, mh.IDENTITY, -1)
		if err != nil {
			c.Fatal(err)
		}
		id := cid.NewCidV1(cid.Raw, h)
		b, _ := blocks.NewBlockWithCid(data, id)
		for _, err := range []error{
			c.Put(c.Context(), b), c.PutMany(c.Context(), []blocks.Block{b}),
			c.x.NotifyNewBlocks(c.Context()), c.DeleteBlock(c.Context(), id),
		} {
			if err != nil {
				c.Error(err)
			}
		}
		got, err := c.Get(c.Context(), id)
		if err != nil || string(got.RawData()) != string(data) {
			c.Errorf("get: got %v, %v, want the block", got, err)
		}
		if has, err := c.Adding().Has(c.Context(), id); !has || err != nil {
			c.Errorf("has: got %v, %v, want true", has, err)
		}
		if has, _ := c.disk.Has(c.Context(), id); has || c.Stats().Blocks != 0 {
			c.Errorf("stored: %v, held: %+v, want neither", has, c.Stats())
		}
		if err := c.Put(c.Context(), undefined{}); !errors.Is(err, errs.Invalid) {
			c.Errorf("put of no CID: got %v, want Invalid", err)
		}
		if _, err := c.Get(c.Context(), cid.Undef); err == nil {
			c.Error("get of no CID: got a block")
		}
	})
}

type undefined struct{ blocks.Block }

func (undefined) Cid() cid.Cid { return cid.Undef }

// TestGC: a collection finds what is held and what is written, each once, and
// frees both, also on a full disk, where the flush before it fails.
func TestGC(t *testing.T) {
	play(t, writebehind.Options{}, func(c *scene) {
		ctx := c.Context()
		gc := blockstore.NewGCBlockstore(c.Store, blockstore.NewGCLocker())
		pin := gc.PinLock(ctx)
		if err := gc.PutMany(ctx, []blocks.Block{block("keep"), block("a")}); err != nil {
			c.Error(err)
		}
		pin.Unlock(ctx)
		c.disk.setFail(noSpace)
		c.fetch("a")
		c.fetch("b")

		lock := gc.GCLock(ctx)
		if err := c.Flush(ctx); !errors.Is(err, syscall.ENOSPC) {
			c.Errorf("flush: got %v, want ENOSPC", err)
		}
		keys, ended, err := c.AllKeysChanWithErr(ctx)
		if err != nil {
			c.Fatal(err)
		}
		seen := map[cid.Cid]int{}
		for k := range keys {
			seen[k]++
			if k != block("keep").Cid() {
				if err := gc.DeleteBlock(ctx, k); err != nil {
					c.Error(err)
				}
			}
		}
		if err := ended(); err != nil {
			c.Error(err)
		}
		lock.Unlock(ctx)
		for _, data := range []string{"keep", "a", "b"} {
			if n := seen[block(data).Cid()]; n != 1 || len(seen) != 3 {
				c.Errorf("%q was listed %d times, of %d, want once, of 3", data, n, len(seen))
			}
		}
		c.disk.setFail(nil)
		time.Sleep(time.Minute)
		c.state("collected", "a", false, false, 0)
		c.state("collected", "b", false, false, 0)
		c.state("kept", "keep", true, true, 0)

		c.fetch("c")
		ctx, cancel := context.WithCancel(ctx)
		keys, ended, err = c.AllKeysChanWithErr(ctx)
		if err != nil {
			c.Fatal(err)
		}
		cancel()
		for range keys {
		}
		if err := ended(); !errors.Is(err, context.Canceled) {
			c.Errorf("listing that was cut: got %v, want the end of ctx", err)
		}
	})
}

// TestHashOnRead: a store that checks hashes finds a bad block in front of the
// Store and behind it, held or written.
func TestHashOnRead(t *testing.T) {
	bad, _ := blocks.NewBlockWithCid([]byte("other bytes"), block("a").Cid())
	play(t, writebehind.Options{}, func(c *scene) {
		front := &blockstore.ValidatingBlockstore{Blockstore: c.Store}
		if err := front.Put(c.Context(), bad); err != nil {
			c.Fatal(err)
		}
		for _, when := range []string{"held", "written"} {
			if _, err := front.Get(c.Context(), bad.Cid()); err != blockstore.ErrHashMismatch {
				c.Errorf("%s: got %v, want %v", when, err, blockstore.ErrHashMismatch)
			}
			time.Sleep(time.Second)
		}
		behind, err := writebehind.New(&blockstore.ValidatingBlockstore{Blockstore: c.disk}, writebehind.Options{})
		if err != nil {
			c.Fatal(err)
		}
		defer behind.Close()
		if _, err := behind.Get(c.Context(), bad.Cid()); err != blockstore.ErrHashMismatch {
			c.Errorf("behind: got %v, want %v", err, blockstore.ErrHashMismatch)
		}
	})
}

// TestClose: Close writes what is held, lets go who waits, says what it could not
// write, and says it again.
func TestClose(t *testing.T) {
	play(t, four, func(c *scene) {
		release := c.disk.hold()
		for _, data := range []string{"a", "b", "c", "d"} {
			c.fetch(data)
		}
		put, closed, flush := make(chan error, 1), make(chan error, 1), make(chan error, 1)
		go func() { put <- c.Put(c.Context(), block("e")) }()
		go func() { flush <- c.Flush(c.Context()) }()
		synctest.Wait()
		go func() { closed <- c.Close() }()
		if err := <-put; !errors.Is(err, errs.Closed) {
			c.Errorf("put that waited: got %v, want Closed", err)
		}
		release()
		for _, ch := range []chan error{flush, closed} {
			if err := <-ch; err != nil {
				c.Error(err)
			}
		}
		c.state("closed", "d", true, true, 1)
		for what, err := range map[string]error{
			"put":      c.Put(c.Context(), block("f")),
			"put many": c.PutMany(c.Context(), []blocks.Block{block("f")}),
			"delete":   c.DeleteBlock(c.Context(), block("a").Cid()),
			"flush":    c.Flush(c.Context()),
		} {
			if !errors.Is(err, errs.Closed) {
				c.Errorf("%s after close: got %v, want Closed", what, err)
			}
		}
	})
	play(t, writebehind.Options{}, func(c *scene) {
		c.disk.setFail(func(b blocks.Block) error {
			if string(b.RawData()) == "a" {
				return nil
			}
			return syscall.ENOSPC
		})
		c.fetch("a")
		c.fetch("bb")
		c.fetch("ccc")
		for range 2 {
			err := c.Close()
			if !errors.Is(err, errs.Storage) || !errors.Is(err, syscall.ENOSPC) ||
				!strings.Contains(err.Error(), "2 blocks of 5 bytes") || !strings.Contains(err.Error(), block("bb").Cid().String()) {
				c.Errorf("close: got %v, want which 2 blocks of 5 bytes", err)
			}
		}
		c.state("written", "a", true, true, 1)
		c.state("not written", "bb", true, false, 0)
	})
}

// TestNew: what cannot be used is refused.
func TestNew(t *testing.T) {
	if _, err := writebehind.New(nil, writebehind.Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("no store: got %v, want Invalid", err)
	}
	if _, err := writebehind.New(newDisk(), writebehind.Options{Bytes: -1}); !errors.Is(err, errs.Invalid) {
		t.Errorf("negative memory: got %v, want Invalid", err)
	}
}
