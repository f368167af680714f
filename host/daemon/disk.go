package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host/repo"
)

const (
	// minFree is how much room the disk must have, bytes: the largest block and what
	// a file system needs beside it.
	minFree = 4 << 20
	// remembered is how long a command that found the disk full counts, unless
	// there is more room since.
	remembered = time.Minute
)

// disk knows whether there is room on the disk of the repo.
type disk struct {
	full atomic.Bool

	mu    sync.Mutex
	found error     // with which a command ended for want of room
	when  time.Time // that was
	free  uint64    // when check first looked after that
	fresh bool      // it has not looked yet
}

// listen makes a command tell when it finds the disk full. A fetch does not find it:
// boxo says only that blocks are missing, so what failing says, the last write behind,
// is added to its error.
func (d *disk) listen(c *cmds.Command, failing func() error) {
	run := c.Run
	if run == nil {
		return
	}
	c.Run = func(req *cmds.Request, re cmds.ResponseEmitter, env cmds.Environment) error {
		err := run(req, re, env)
		if err == nil {
			return nil
		}
		var stated cmds.Error // with a status for its client
		if why := failing(); repo.DiskFull(why) && !repo.DiskFull(err) && !errors.As(err, &stated) && req.Context.Err() == nil {
			err = fmt.Errorf("%w: the disk is full, make room or collect garbage: %w", err, why)
		}
		if repo.DiskFull(err) {
			d.mu.Lock()
			d.found, d.when, d.fresh = err, time.Now(), true
			d.mu.Unlock()
		}
		return err
	}
}

// check logs when the state changes. failing is why the last write behind failed,
// nil if it did not; free is what the disk has. It is called by one goroutine.
func (d *disk) check(log *slog.Logger, failing error, free uint64) {
	d.mu.Lock()
	if d.fresh {
		d.free, d.fresh = free, false
	}
	why := failing
	if !repo.DiskFull(why) {
		why = nil
		if time.Since(d.when) < remembered && (free < d.free || free-d.free < minFree) {
			why = d.found
		}
	}
	d.mu.Unlock()
	full := why != nil || free < minFree
	if !d.full.CompareAndSwap(!full, full) {
		return
	}
	if full {
		log.Error("the disk is full: nothing can be fetched or added until there is room; what is stored is still served", "free", free, "err", why)
	} else {
		log.Info("the disk has room again: fetching goes on", "free", free)
	}
}
