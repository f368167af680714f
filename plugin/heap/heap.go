// Package heap sets how often a process collects garbage: a node, or a plugin.
//
// Both let much pass and keep little. By default the Go runtime collects a heap when
// it has doubled, so a process that keeps 10 MiB, and through which blocks come at
// 500 MB/s, does so fifty times a second. A [Policy] leaves it some room instead,
// whatever it keeps.
//
// Goroutines: none of its own. What follows the heap runs where the runtime runs
// cleanups.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// A Policy says how far a heap may grow beyond what is alive before it is collected:
// by Room, or by Percent of what is alive if that is more. It never grows by more than
// maxPercent; so little that is alive has less room.
type Policy struct {
	Room    int64 // bytes
	Percent int   // as GOGC has it; at least 1
}

// The policies of the processes of a node.
var (
	Node = Policy{Room: 32 << 20, Percent: 100}
	// Plugin has wants and books, no blocks; where those are much, half of them is room
	// enough.
	Plugin = Policy{Room: 32 << 20, Percent: 50}
)

// maxPercent bounds what a heap becomes when what is alive grows all of a sudden: the
// percentage for little would be in force until the next collection has ended.
const maxPercent = 400

// following is the policy that is in force, nil if none is.
var following atomic.Pointer[Policy]

// Follow puts a policy in force, in place of the one before, for as long as the
// process runs. Where the environment has GOGC, it does nothing. GOMEMLIMIT is
// not touched, and holds as it does otherwise.
func Follow(p Policy) {
	if os.Getenv("GOGC") != "" {
		return
	}
	following.Store(&p)
	p.follow(0)
}

// follow sets the percentage by what is alive, now and after each collection. before is
// the one that is set, 0 if none is.
func (p *Policy) follow(before int) {
	if following.Load() != p {
		return
	}
	// To set it stops all goroutines for some microseconds.
	percent := p.percent(live())
	if change := percent - before; before == 0 || max(change, -change) > before/8 {
		debug.SetGCPercent(percent)
		before = percent
	}
	// What becomes of garbage is told after each collection; this tells of itself.
	runtime.AddCleanup(new([16]byte), p.follow, before)
}

// percent is how much of what is alive may come on top of it.
func (p *Policy) percent(live uint64) int {
	room := uint64(max(p.Room, 0)) / max(live/100, 1)
	return int(min(max(room, uint64(p.Percent)), max(maxPercent, uint64(p.Percent))))
}

// live is what the latest collection has found alive, bytes.
func live() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
