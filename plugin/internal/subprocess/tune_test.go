package subprocess

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestLimitFollowsHeap shows that the memory limit makes room for what a plugin
// keeps, and comes back when it keeps it no more.
func TestLimitFollowsHeap(t *testing.T) {
	followHeap()
	limit := func() int64 { return debug.SetMemoryLimit(-1) }
	if got := limit(); got != memoryLimit {
		t.Errorf("the limit is %d at first, want %d", got, memoryLimit)
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); runtime.GC() {
			if time.Now().After(end) {
				t.Fatalf("%s: the limit is %d, and %d bytes are alive", what, limit(), liveHeap())
			}
		}
	}
	kept := make([]byte, memoryLimit)
	wait("much is kept", func() bool { return limit() >= memoryLimit*3/2 })
	runtime.KeepAlive(kept)
	kept = nil
	wait("it is not any more", func() bool { return limit() == memoryLimit })
}
