package subprocess

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	gcPercent   = 400
	memoryLimit = 160 << 20
)

// tune sets up the runtime of a plugin, but for what the environment says.
//
// Memory is collected less often than by default: an exchange lets much pass
// through it and keeps little, so its heap would be collected each time that 4 MiB
// of blocks have come; as it grows, the limit makes up for it. Where an exchange
// does keep much, the limit is half as much again, for a limit that is reached makes
// the collector run without end.
//
// It runs on half of the cores. The host has the other half of the work, and what
// goes from one goroutine to the next on a core that is awake costs a fraction of
// what it costs to wake another.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		followHeap()
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS((runtime.GOMAXPROCS(0) + 1) / 2)
	}
}

// followHeap sets the memory limit by what is alive, now and after each collection.
func followHeap() {
	debug.SetMemoryLimit(limitFor(liveHeap()))
	// What becomes of garbage is told after each collection; this tells of itself.
	runtime.AddCleanup(new([16]byte), func(struct{}) { followHeap() }, struct{}{})
}

// limitFor is the limit for so much that is alive, bytes.
func limitFor(live uint64) int64 { return int64(max(memoryLimit, live+live/2)) }

// liveHeap is what the latest collection has found alive, bytes.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
