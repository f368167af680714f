package writebehind_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/host/writebehind"
)

// A disk is a blockstore in memory whose writes fail or wait as a test says.
type disk struct {
	blockstore.Blockstore

	mu     sync.Mutex
	fail   func(blocks.Block) error // nil: nothing fails
	gate   chan struct{}            // writes wait until it is closed; nil: they do not
	writes map[string]int           // begun, by the bytes of the block
}

func newDisk() *disk {
	return &disk{
		Blockstore: blockstore.NewBlockstore(dssync.MutexWrap(ds.NewMapDatastore())),
		writes:     make(map[string]int),
	}
}

func (d *disk) Put(ctx context.Context, b blocks.Block) error {
	d.mu.Lock()
	gate := d.gate
	d.writes[string(b.RawData())]++
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	d.mu.Lock()
	fail := d.fail
	d.mu.Unlock()
	if fail != nil {
		if err := fail(b); err != nil {
			return err
		}
	}
	return d.Blockstore.Put(ctx, b)
}

func (d *disk) setFail(fail func(blocks.Block) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = fail
}

// hold makes writes wait until what it returns is called.
func (d *disk) hold() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	gate := make(chan struct{})
	d.gate = gate
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.gate = nil
		close(gate)
	}
}

func (d *disk) begun(data string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes[data]
}

// An ear is an exchange that records what it is told, and complains about blocks
// that are not on the disk by then.
type ear struct {
	boxo.SessionExchange // nil: nothing is fetched
	t                    testing.TB
	disk                 blockstore.Blockstore
	gate                 chan struct{} // NotifyNewBlocks waits until it is closed; nil: it does not
	err                  error         // what the calls answer

	mu     sync.Mutex
	told   map[string]int // by bytes
	leaves []wire.Range
	closed int
}

func newEar(t testing.TB, disk blockstore.Blockstore) *ear {
	return &ear{t: t, disk: disk, told: make(map[string]int)}
}

func (x *ear) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	if x.gate != nil {
		<-x.gate
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range list {
		x.told[string(b.RawData())]++
		if has, err := x.disk.Has(ctx, b.Cid()); !has && ctx.Err() == nil {
			x.t.Errorf("told of %q while the disk has it: got %v, %v, want true", b.RawData(), has, err)
		}
	}
	return x.err
}

func (x *ear) heard(data string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.told[data]
}

func (x *ear) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed++
	return x.err
}

// A leafEar is an ear that has leaves.
type leafEar struct{ *ear }

func (x leafEar) GetLeaves(context.Context, dataset.Tree, ...wire.Range) (<-chan dataset.LeafBlock, error) {
	return nil, errs.NotFound
}

func (x leafEar) NotifyNewLeaves(_ context.Context, _ cid.Cid, indices ...wire.Range) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.leaves = append(x.leaves, indices...)
	return x.err
}

func (x leafEar) ranges() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.leaves)
}

// A scene is a Store over a disk, and an exchange that listens, in a bubble.
type scene struct {
	*testing.T
	*writebehind.Store
	disk *disk
	ear  *ear
	x    boxo.SessionExchange
}

// play runs a script in virtual time and then closes what the script has not.
func play(t *testing.T, o writebehind.Options, script func(*scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		o.Log = slog.New(slog.DiscardHandler)
		s, err := writebehind.New(d, o)
		if err != nil {
			t.Fatal(err)
		}
		c := &scene{T: t, Store: s, disk: d, ear: newEar(t, d)}
		c.x = s.Exchange(leafEar{c.ear})
		defer s.Close()
		defer c.x.Close()
		script(c)
	})
}

// fetch does what boxo's blockservice does with a block that has come.
func (c *scene) fetch(data string) {
	c.Helper()
	if err := c.Put(c.Context(), block(data)); err != nil {
		c.Fatalf("put %q: %v", data, err)
	}
	if err := c.x.NotifyNewBlocks(c.Context(), block(data)); err != nil {
		c.Fatalf("notify of %q: %v", data, err)
	}
}

// state checks what is true of a block: seen by readers of the store, on the
// disk, and how many times it was told.
func (c *scene) state(why, data string, seen, stored bool, told int) {
	c.Helper()
	synctest.Wait()
	b := block(data)
	got, err := c.Get(c.Context(), b.Cid())
	if (err == nil) != seen || seen && string(got.RawData()) != data {
		c.Errorf("%s: get %q: %v, want it to be there: %v", why, data, err, seen)
	}
	if has, err := c.Has(c.Context(), b.Cid()); has != seen || err != nil {
		c.Errorf("%s: has %q: got %v, %v, want %v", why, data, has, err, seen)
	}
	if size, err := c.GetSize(c.Context(), b.Cid()); (err == nil) != seen || seen && size != len(data) {
		c.Errorf("%s: size of %q: got %d, %v, want it to be there: %v", why, data, size, err, seen)
	}
	viewed := false
	err = c.View(c.Context(), b.Cid(), func(v []byte) error { viewed = string(v) == data; return nil })
	if viewed != seen || (err == nil) != seen {
		c.Errorf("%s: view of %q: got %v, %v, want %v", why, data, viewed, err, seen)
	}
	if has, _ := c.disk.Has(c.Context(), b.Cid()); has != stored {
		c.Errorf("%s: %q is on the disk: %v, want %v", why, data, has, stored)
	}
	if n := c.ear.heard(data); n != told {
		c.Errorf("%s: %q was told %d times, want %d", why, data, n, told)
	}
}
