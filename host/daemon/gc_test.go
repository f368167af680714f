package daemon

import (
	"context"
	"testing"
	"time"

	"github.com/codexchange/codexchange/host/repo"
)

// With EnableGC, a repo above its watermark loses what no pin keeps, and nothing else.
func TestCollect(t *testing.T) {
	small := func(c *repo.Config, _ *patience) {
		c.Datastore.GCPeriod, c.Datastore.StorageMax = "10ms", "1MB"
		c.Datastore.StorageGCWatermark = 90
	}
	d := launch(t, Options{RepoDir: newRepo(t, small), EnableGC: true}, small)
	d.ready()
	root, _ := d.addFile()
	pinned, err := d.env.node.DAG().Get(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.env.node.Pinner().Pin(t.Context(), pinned, true, "kept"); err != nil {
		t.Fatal(err)
	}
	garbage := newBlock(t, d, 1<<20)
	for late := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) { // the ticks are the daemon's own
		if has, err := d.env.node.Blockstore().Has(t.Context(), garbage); err != nil {
			t.Fatal(err)
		} else if !has {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("the garbage is still there after %v", deadline)
		}
	}
	if err := d.env.node.Fetch(t.Context(), root, nil); err != nil {
		t.Errorf("what is pinned: got %v, want all of it", err)
	}
	d.stop()
}

// At or below the watermark nothing is removed; on a full disk, garbage is.
func TestCollectOnce(t *testing.T) {
	d := start(t)
	of := &daemon{repo: d.env.repo, node: d.env.node, log: testLog(t)}
	garbage := newBlock(t, d, 1<<10)
	has := func(why string, want bool) {
		t.Helper()
		if got, err := d.env.node.Blockstore().Has(t.Context(), garbage); err != nil || got != want {
			t.Errorf("%s: the garbage is there: %t, %v, want %t", why, got, err, want)
		}
	}
	size, err := d.env.repo.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	of.collectOnce(t.Context(), size.RepoSize)
	has("at the watermark", true)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	of.disk.full.Store(true)
	of.collectOnce(ended, size.RepoSize)
	has("when the daemon ends", true)
	of.collectOnce(t.Context(), size.RepoSize)
	has("on a full disk", false)
}

// Values that are not set are Kubo's.
func TestGCLimits(t *testing.T) {
	if period, above := gcPeriod(repo.Datastore{}), gcAbove(repo.Datastore{}); period != time.Hour || above != 9e9 {
		t.Errorf("by default: got %v, %d, want 1h, 90%% of 10 GB", period, above)
	}
	c := repo.Datastore{GCPeriod: "2m", StorageMax: "1000B", StorageGCWatermark: 50}
	if period, above := gcPeriod(c), gcAbove(c); period != 2*time.Minute || above != 500 {
		t.Errorf("as configured: got %v, %d, want 2m, 500", period, above)
	}
}
