//go:build !unix

package subprocess

import "time"

// Usage is not known here, where there are no plugins.
func Usage() (cpu time.Duration, memory uint64) { return 0, 0 }
