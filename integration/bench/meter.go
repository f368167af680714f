package main

import (
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// A meter brackets the measured stretch of some processes.
type meter struct {
	nodes  []*process
	traced []*process // those that write a profile
	cpu    []float64
	busy   float64
	own    float64
	rss    []float64
	begun  time.Time
}

// usage is what the processes used over the stretch, in their order.
type usage struct {
	wall    float64   // s
	cpu     []float64 // s
	peak    []float64 // MiB resident
	before  []float64 // MiB resident at the start
	own     float64   // CPU seconds of this process, which emulates links
	unknown float64   // CPU seconds that the system spent on anything else
}

// measure begins a stretch. What waits to be written to the disk is written
// before.
func (b *bench) measure(nodes ...*process) (*meter, error) {
	m := &meter{nodes: nodes}
	for _, n := range nodes {
		if b.profiles == "" || n.in == nil {
			continue
		}
		m.traced = append(m.traced, n)
		file := filepath.Join(b.profiles, b.label+"-"+n.role+".pprof")
		if _, err := n.call(request{Op: "profile", File: file}); err != nil {
			return nil, err
		}
	}
	syscall.Sync()
	for _, n := range nodes {
		for _, pid := range n.pids() {
			resetPeak(pid)
		}
		m.cpu = append(m.cpu, n.total(processCPU))
		m.rss = append(m.rss, n.total(residentMiB))
	}
	m.own, m.busy, m.begun = ownCPU(), systemCPU(), time.Now()
	return m, nil
}

// end ends the stretch.
func (m *meter) end() (usage, error) {
	u := usage{wall: time.Since(m.begun).Seconds(), own: ownCPU() - m.own, before: m.rss}
	u.unknown = systemCPU() - m.busy - u.own
	for i, n := range m.nodes {
		u.cpu = append(u.cpu, n.total(processCPU)-m.cpu[i])
		u.peak = append(u.peak, n.total(peakMiB))
		u.unknown -= u.cpu[i]
	}
	for _, n := range m.traced {
		if _, err := n.call(request{Op: "profile"}); err != nil {
			return u, fmt.Errorf("end profile: %w", err)
		}
	}
	return u, nil
}

// total is the sum of a figure over the processes of a node.
func (p *process) total(figure func(pid int) float64) (sum float64) {
	for _, pid := range p.pids() {
		sum += figure(pid)
	}
	return sum
}

// add puts the usage among the figures: seeders come first, then leechers. Of
// several, CPU is the sum and memory that of the largest. A node with a plugin is
// the sum of both processes, in which memory that they share counts twice.
func (u usage) add(f figures, seeders int) {
	sum := func(v []float64) (total float64) {
		for _, x := range v {
			total += x
		}
		return total
	}
	f["cpu_seeder_s"], f["cpu_leecher_s"] = sum(u.cpu[:seeders]), sum(u.cpu[seeders:])
	f["cpu_s"] = sum(u.cpu)
	f["rss_seeder_mib"], f["rss_leecher_mib"] = quantile(u.peak[:seeders], 1), quantile(u.peak[seeders:], 1)
	f["rss_seeder_before_mib"], f["rss_leecher_before_mib"] = quantile(u.before[:seeders], 1), quantile(u.before[seeders:], 1)
	f["cores_others"] = max(0, u.unknown/u.wall)
}

// ownCPU is the CPU time of this process, seconds.
func ownCPU() float64 {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
}
