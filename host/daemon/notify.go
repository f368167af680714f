package daemon

import (
	"context"
	"log/slog"
	"math"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/codexchange/codexchange/host/repo"
)

// beatEvery is how often a daemon looks at its disk, unless a service manager
// wants to hear of it more often.
const beatEvery = 5 * time.Second

// A notifier tells the service manager how things are, as sd_notify(3) does: one
// datagram to $NOTIFY_SOCKET. Without one it does nothing.
type notifier struct{ log *slog.Logger }

func (n notifier) notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	// A leading @ is an abstract address, for package net too.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		defer c.Close()
		// A manager that does not read must not stop the daemon.
		c.SetWriteDeadline(time.Now().Add(time.Second))
		_, err = c.Write([]byte(state))
	}
	if err != nil {
		n.log.Warn("the service manager was not told", "state", state, "err", err)
	}
}

// watchdog is how often the service manager wants to hear from this process, 0 if
// it does not.
func watchdog() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(time.Hour/time.Microsecond)*24 {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// beat looks at the disk now and then, and tells the service manager that the
// daemon lives, until ctx ends. A node whose store hangs does not live: it is asked
// each time.
func (d *daemon) beat(ctx context.Context, manager notifier) {
	every, watched := beatEvery, watchdog()
	if watched > 0 {
		every = min(every, watched/2)
	}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		held := d.node.Blockstore().Stats()
		free, err := repo.FreeSpace(d.repo.Path())
		if err != nil {
			free = math.MaxUint64 // not known: what fails will tell
		}
		d.disk.check(d.log, held.Err, free)
		if watched > 0 {
			manager.notify("WATCHDOG=1")
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}
