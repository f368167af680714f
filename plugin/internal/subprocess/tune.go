package subprocess

import (
	"os"
	"runtime"

	"github.com/codexchange/codexchange/plugin/heap"
)

// tune sets up the runtime of a plugin, but for what the environment says.
//
// It runs on half of the cores. The host has the other half of the work, and what
// goes from one goroutine to the next on a core that is awake costs a fraction of
// what it costs to wake another.
func tune() {
	heap.Follow(heap.Plugin)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS((runtime.GOMAXPROCS(0) + 1) / 2)
	}
}
