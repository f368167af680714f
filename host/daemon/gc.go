package daemon

import (
	"context"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/host/commands"
	"github.com/codexchange/codexchange/host/repo"
)

// collect removes what no pin keeps, until ctx ends: each Datastore.GCPeriod, if the
// repo then takes more than Datastore.StorageGCWatermark percent of
// Datastore.StorageMax, or the disk is full.
func (d *daemon) collect(ctx context.Context) {
	c := d.repo.Config().Datastore
	ticks := time.NewTicker(gcPeriod(c))
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			d.collectOnce(ctx, gcAbove(c))
		case <-ctx.Done():
			return
		}
	}
}

// collectOnce collects garbage if the repo takes more than above, bytes.
func (d *daemon) collectOnce(ctx context.Context, above uint64) {
	before, err := d.repo.Size(ctx)
	if err == nil && before.RepoSize <= above && !d.disk.full.Load() {
		return
	}
	removed, begin := 0, time.Now()
	if err == nil {
		err = commands.CollectGarbage(ctx, d.node, func(c cid.Cid, err error) error {
			if err != nil {
				d.log.Warn("garbage stays", "cid", c, "err", err)
			} else {
				removed++
			}
			return nil
		})
	}
	if ctx.Err() != nil {
		return // the daemon ends: the next one goes on
	}
	after, failed := d.repo.Size(ctx)
	if err == nil {
		err = failed
	}
	switch {
	case err != nil:
		d.log.Error("garbage was not collected", "removed", removed, "err", err)
	case after.RepoSize > above:
		d.log.Warn("garbage was collected, and what pins keep is more than the repo shall take: raise Datastore.StorageMax or remove pins",
			"removed", removed, "size", after.RepoSize, "watermark", above)
	default:
		d.log.Info("garbage was collected", "removed", removed, "size before", before.RepoSize, "size", after.RepoSize, "took", time.Since(begin))
	}
}

// gcPeriod is how often it is looked whether there is garbage to collect.
func gcPeriod(c repo.Datastore) time.Duration {
	period := c.GCPeriod
	if period == "" {
		period = repo.DefaultGCPeriod
	}
	every, _ := time.ParseDuration(period) // checked with the configuration, and above 0
	return every
}

// gcAbove is the size of a repo above which garbage is collected, bytes.
func gcAbove(c repo.Datastore) uint64 {
	percent := c.StorageGCWatermark
	if percent == 0 {
		percent = repo.DefaultGCWatermark
	}
	most, _ := c.MaxBytes() // checked with the configuration
	return most / 100 * uint64(percent)
}
