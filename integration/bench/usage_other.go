//go:build !linux

package main

import "math"

// What a process uses is read from /proc, which only Linux has; figures that are
// not numbers are left out of the records.

func processCPU(int) float64  { return math.NaN() }
func systemCPU() float64      { return math.NaN() }
func resetPeak(int)           {}
func peakMiB(int) float64     { return math.NaN() }
func residentMiB(int) float64 { return math.NaN() }
