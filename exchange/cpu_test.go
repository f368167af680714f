package exchange_test

import (
	"syscall"
	"testing"
	"time"
)

// cpuTime is the CPU time that this process has used. Unlike the clock it does not
// depend on what else the machine is doing, and it passes in a bubble.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
