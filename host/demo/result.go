package demo

import (
	"slices"

	"github.com/ipfs/go-cid"
)

// A Run is one transfer, or the medians of several. MB are 10^6 bytes.
type Run struct {
	Exchange   string  `json:"exchange"`
	Plugin     bool    `json:"plugin"` // whether the exchange ran in a subprocess
	Seconds    float64 `json:"seconds"`
	MBPerS     float64 `json:"mb_per_s"`    // bytes of the file, by Seconds
	Blocks     uint64  `json:"blocks"`      // received, without the duplicates
	Duplicates uint64  `json:"duplicates"`  // received although they were there
	CPUSeconds float64 `json:"cpu_seconds"` // user and system, both nodes together
	Verified   bool    `json:"verified"`    // what arrived is what was sent
}

// A Result is everything that [Config.Run] found out.
type Result struct {
	Root   cid.Cid
	Size   int64    // of the file, bytes
	SHA256 [32]byte // of the file
	Runs   []Run    // in the order in which they took place
}

// Medians returns one Run for each exchange, in the order of names: each figure
// is the median of the runs of that exchange, and MBPerS follows from Seconds.
// Verified means that all of them were.
func (r *Result) Medians(names []string) []Run {
	var rows []Run
	for _, name := range names {
		var seconds, cpu []float64
		var blocks, duplicates []uint64
		row := Run{Exchange: name, Verified: true}
		for _, run := range r.Runs {
			if run.Exchange == name {
				seconds, cpu = append(seconds, run.Seconds), append(cpu, run.CPUSeconds)
				blocks, duplicates = append(blocks, run.Blocks), append(duplicates, run.Duplicates)
				row.Plugin = run.Plugin
				row.Verified = row.Verified && run.Verified
			}
		}
		if len(seconds) == 0 {
			continue
		}
		row.Seconds, row.CPUSeconds = median(seconds), median(cpu)
		row.Blocks, row.Duplicates = median(blocks), median(duplicates)
		row.MBPerS = rate(r.Size, row.Seconds)
		rows = append(rows, row)
	}
	return rows
}

// Verified reports whether there was a run, and every run brought the file.
func (r *Result) Verified() bool {
	return len(r.Runs) > 0 && !slices.ContainsFunc(r.Runs, func(run Run) bool { return !run.Verified })
}

// median is the middle value, or the mean of the middle two. It sorts its
// argument, which is not empty.
func median[T float64 | uint64](values []T) T {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// rate is size in 10^6 bytes a second.
func rate(size int64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(size) / 1e6 / seconds
}
