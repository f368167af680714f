package subprocess

import (
	"os"
	"runtime"
	"runtime/debug"
)

const (
	gcPercent   = 400
	memoryLimit = 160 << 20
)

// tune sets up the runtime of a plugin, but for what the environment says.
//
// Memory is collected less often than by default: an exchange lets much pass
// through it and keeps little, so its heap would be collected each time that 4 MiB
// of blocks have come; as it grows, the limit makes up for it.
//
// It runs on half of the cores. The host has the other half of the work, and what
// goes from one goroutine to the next on a core that is awake costs a fraction of
// what it costs to wake another.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS((runtime.GOMAXPROCS(0) + 1) / 2)
	}
}
