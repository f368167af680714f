package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are the suffixes that sizes may have. Those of powers of 1024 are the
// ones that formatSize writes.
var units = []struct {
	suffix string
	factor float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// parseSize reads a number of bytes, such as 64MiB, 1.5GB or 1000.
func parseSize(s string) (int64, error) {
	number, factor := strings.TrimSpace(s), 1.0
	for _, u := range units {
		if n := len(number) - len(u.suffix); n > 0 && strings.EqualFold(number[n:], u.suffix) {
			number, factor = strings.TrimSpace(number[:n]), u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || v < 0 || v*factor >= math.MaxInt64 {
		return 0, errors.New("want bytes, like 64MiB, 1.5GB or 1000")
	}
	return int64(v * factor), nil
}

// formatSize writes a number of bytes for people, in powers of 1024.
func formatSize(n int64) string {
	for _, u := range units[:4] {
		if v := float64(n) / u.factor; v >= 1 {
			return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + u.suffix
		}
	}
	return fmt.Sprintf("%d B", n)
}

// size is a flag.Value for a number of bytes.
type size int64

func (s *size) String() string { return formatSize(int64(*s)) }

func (s *size) Set(text string) error {
	n, err := parseSize(text)
	*s = size(n)
	return err
}
