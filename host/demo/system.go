package demo

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/codexchange/codexchange/host"
)

// cpuTime is what this process and the plugins of nodes have used so far, user
// and system.
func cpuTime(ctx context.Context, nodes ...*host.Node) (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read cpu time: %w", err)
	}
	total := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	for _, n := range nodes {
		for _, x := range n.Exchanges() {
			if x.Plugin() == nil {
				continue
			}
			s, err := x.Plugin().Inspect(ctx)
			if err != nil {
				return 0, fmt.Errorf("read cpu time of plugin %s: %w", x.Name, err)
			}
			total += s.CPU
		}
	}
	return total, nil
}

// flushDisk writes to the disk what waits for that, so that it does not happen
// while something is measured.
func flushDisk() { syscall.Sync() }
