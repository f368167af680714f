package writebehind_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/writebehind"
)

// FuzzModel plays operations on a few blocks, two bytes each, against a map of
// what is there. After each the store answers as
// the map does, and what an exchange was told was on the disk by then.
func FuzzModel(f *testing.F) {
	f.Add([]byte("\x00\x01\x05\x00\x00\x02\x07\x05\x02\x01\x06\x00\x01\x03\x07\x10"))
	f.Add([]byte("\x00\x00\x00\x01\x00\x02\x00\x03\x06\x00\x07\x01\x00\x04\x00\x05\x00\x06\x02\x01\x06\x00\x05\x00"))
	f.Add([]byte("\x06\x00\x00\x00\x00\x01\x00\x02\x00\x03\x00\x04\x07\xff\x03\x01\x02\x00\x01\x02\x06\x01\x04\x00\x07\xff"))
	f.Fuzz(model)
}

func model(t *testing.T, script []byte) {
	if len(script) > 400 {
		return
	}
	play(t, four, func(c *scene) {
		const keys = 8
		names := strings.Split("abcdefgh", "")
		present := map[string]bool{}
		failing := false
		var cleared time.Time // when it ended
		refused := func(what string, err error) {
			c.Helper()
			if err != nil && (!failing || !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, errs.Storage)) {
				c.Fatalf("%s while the disk is full (%v): got %v, want ENOSPC or nothing", what, failing, err)
			}
		}
		for i := 0; i+1 < len(script); i += 2 {
			data := names[script[i+1]%keys]
			b := block(data)
			switch script[i] % 8 {
			case 0: // fetch
				err := c.Put(c.Context(), b)
				// The store learns that there is space when it tries again.
				if err == nil || time.Since(cleared) > maxWait {
					refused("put", err)
				}
				if err == nil {
					present[data] = true
					if err := c.x.NotifyNewBlocks(c.Context(), b); err != nil {
						c.Fatal(err)
					}
				}
			case 1: // add
				err := c.PutMany(c.Context(), []blocks.Block{b})
				refused("put many", err)
				if err == nil {
					present[data] = true
				}
			case 2:
				if err := c.DeleteBlock(c.Context(), b.Cid()); err != nil {
					c.Fatal(err)
				}
				delete(present, data)
			case 3:
				has, err := c.Adding().Has(c.Context(), b.Cid())
				refused("adder's has", err)
				if on, _ := c.disk.Has(c.Context(), b.Cid()); err == nil && has != present[data] || has && !on {
					c.Fatalf("adder has %q: got %v, on disk %v, want %v", data, has, on, present[data])
				}
			case 4:
				n := 0
				ch, ended, err := c.AllKeysChanWithErr(c.Context())
				if err != nil {
					c.Fatal(err)
				}
				for range ch {
					n++
				}
				if err := ended(); err != nil || n != len(present) {
					c.Fatalf("%d keys listed, %v, want %d", n, err, len(present))
				}
			case 5:
				err := c.Flush(c.Context())
				refused("flush", err)
				for data := range present {
					if on, _ := c.disk.Has(c.Context(), block(data).Cid()); err == nil && !on {
						c.Fatalf("%q after a flush: not on the disk", data)
					}
				}
			case 6:
				if failing = script[i+1]%2 == 0; failing {
					c.disk.setFail(noSpace)
				} else {
					c.disk.setFail(nil)
					cleared = time.Now()
				}
			case 7:
				time.Sleep(time.Duration(script[i+1]) * 8 * time.Millisecond)
			}
			synctest.Wait() // what is written has been told, so that a delete is not between
			for _, data := range names {
				if has, err := c.Has(c.Context(), block(data).Cid()); err != nil || has != present[data] {
					c.Fatalf("step %d: has %q: got %v, %v, want %v", i/2, data, has, err, present[data])
				}
			}
			if st := c.Stats(); st.Bytes != int64(st.Blocks)*513 || st.Bytes > four.Bytes {
				c.Fatalf("step %d: stats are %+v, want 513 bytes a block and at most %d", i/2, st, four.Bytes)
			}
		}
		c.disk.setFail(nil)
		if err := c.Close(); err != nil {
			c.Fatal(err)
		}
		synctest.Wait()
		for _, data := range names {
			if on, _ := c.disk.Has(c.Context(), block(data).Cid()); on != present[data] {
				c.Fatalf("%q is on the disk at the end: %v, want %v", data, on, present[data])
			}
		}
		if st := c.Stats(); st != (writebehind.Stats{}) {
			c.Fatalf("stats at the end: got %+v, want zero", st)
		}
	})
}
