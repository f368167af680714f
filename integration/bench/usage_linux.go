package main

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"
)

// tick is the unit of CPU time in /proc, seconds: USER_HZ is 100 on every
// architecture that Go runs on.
const tick = 0.01

// processCPU is the CPU time of a process, seconds; NaN if it cannot be read.
func processCPU(pid int) float64 {
	stat := readProc(pid, "stat")
	_, rest, ok := strings.Cut(stat, ") ") // the name before may hold spaces
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return math.NaN()
	}
	return (number(fields[11]) + number(fields[12])) * tick
}

// systemCPU is what all cores together spent on anything, seconds; NaN if it
// cannot be read.
func systemCPU() float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return math.NaN()
	}
	line, _, _ := bytes.Cut(stat, []byte{'\n'})
	fields := strings.Fields(string(line)) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 {
		return math.NaN()
	}
	var sum float64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		sum += number(fields[i])
	}
	return sum * tick
}

// resetPeak makes the peak of a process start again from what is resident now.
// Where that is not allowed, the peak is that of its whole life.
func resetPeak(pid int) {
	os.WriteFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", []byte("5"), 0)
}

func peakMiB(pid int) float64     { return statusMiB(pid, "VmHWM:") }
func residentMiB(pid int) float64 { return statusMiB(pid, "VmRSS:") }

func statusMiB(pid int, name string) float64 {
	for line := range strings.Lines(readProc(pid, "status")) {
		if v, ok := strings.CutPrefix(line, name); ok {
			return number(strings.Fields(v)[0]) / 1024
		}
	}
	return math.NaN()
}

func readProc(pid int, name string) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + name)
	if err != nil {
		return ""
	}
	return string(b)
}

func number(s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return math.NaN()
	}
	return v
}
