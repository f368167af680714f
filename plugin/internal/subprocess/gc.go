package subprocess

import (
	"os"
	"runtime/debug"
)

const (
	gcPercent   = 400
	memoryLimit = 160 << 20
)

// tuneGC has memory collected less often than by default, unless the environment
// says how often. An exchange lets much pass through it and keeps little, so its
// heap would be collected each time that 4 MiB of blocks have come; as it grows,
// the limit makes up for it.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
