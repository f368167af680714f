package main

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A target is what is asked of our exchange in some cases of a suite: a bound on
// the median over the rounds.
type target struct {
	gate  bool // must hold; the others are reached or reported
	suite string
	cases *regexp.Regexp
	metric
	bound             bound
	inProcess, plugin float64 // NaN: nothing is asked of it
}

// A metric is a figure of each round that can be bounded.
type metric struct {
	title  string
	values func(*table, *row) []float64
	anchor bool // needs the case that the suite compares with
}

// A bound says on which side of the value a figure is good.
type bound string

const (
	atLeast bound = "≥"
	atMost  bound = "≤"
)

func (b bound) holds(v, limit float64) bool {
	if b == atLeast {
		return v >= limit
	}
	return v <= limit
}

// over is the speed as a part of another exchange's; where one block comes after
// another, how many times as long that one takes.
func over(exchange string) metric {
	return metric{title: "÷ " + exchange, values: func(t *table, w *row) []float64 { return t.ratios(w, w.name, exchange) }}
}

// overAnchor is the speed as a part of what the suite compares with.
func overAnchor(title string) metric {
	return metric{title: "÷ " + title, anchor: true, values: func(t *table, w *row) []float64 { return t.anchored(w) }}
}

func figure(title, name string) metric {
	return metric{title: title, values: func(_ *table, w *row) []float64 { return w.figure(name) }}
}

// cpuOverBitswap is the CPU time of all nodes as a part of what they need with
// Bitswap.
var cpuOverBitswap = metric{title: "CPU ÷ bitswap", values: func(t *table, w *row) []float64 {
	return t.parts(w, w.name, "bitswap", func(r record) float64 {
		if v, ok := r.Figures["cpu_s_per_GB"]; ok {
			return v
		}
		return math.NaN()
	})
}}

// targets are those of the table of goals, in its order. What a link allows a lone
// block is 1.15 round trips and the time that 64 KiB take at 1 Gbit/s.
var targets = []target{
	gate("bulk", `(64KiB|256KiB|1MiB)/mem`, over("bitswap"), atLeast, 1.35, 1.1),
	gate("bulk", `(64KiB|256KiB|1MiB)/flatfs`, over("floor"), atLeast, 0.95, 0.85),
	gate("bulk", `(64KiB|256KiB|1MiB)/flatfs`, cpuOverBitswap, atMost, 0.85, 1.05),
	goal("bulk", `1KiB/mem`, over("bitswap"), atLeast, 4, 2),
	goal("bulk", `1KiB/flatfs`, over("bitswap"), atLeast, 1.2, 1.1),
	gate("latency", `session`, over("bitswap"), atLeast, 20, 12),
	goal("rtt", `20ms/session`, figure("p50 µs", "p50_us"), atMost, loneBlock(20*time.Millisecond), loneBlock(20*time.Millisecond)),
	goal("rtt", `100ms/session`, figure("p50 µs", "p50_us"), atMost, loneBlock(100*time.Millisecond), loneBlock(100*time.Millisecond)),
	gate("rtt", `(20|100)ms/list/1MiB`, overAnchor("tcp"), atLeast, 0.8, 0.8),
	goal("rtt", `(20|100)ms/list/256KiB`, overAnchor("tcp"), atLeast, 0.8, 0.8),
	goal("rtt", `(20|100)ms/list/64KiB`, overAnchor("tcp"), atLeast, 0.9, 0.9),
	gate("dag", `reader/256KiB/mem`, over("bitswap"), atLeast, 2, 2),
	gate("rtt", `20ms/reader/256KiB`, over("bitswap"), atLeast, 4, 4),
	gate("rtt", `100ms/reader/256KiB`, over("bitswap"), atLeast, 3.5, 3.5),
	goal("rtt", `(20|100)ms/graph/256KiB`, over("bitswap"), atLeast, 2, 2),
	goal("multi", `4to1/64KiB`, figure("duplicates", "duplicates"), atMost, 0.01, 0.01),
	goal("multi", `4to1/64KiB`, over("bitswap"), atLeast, 1.3, 1.3),
	gate("multi", `1to4/.*`, figure("sent by seeders", "sent_by_seeders"), atMost, 1.5, 1.5),
	gate("rtt", `1to4/.*`, figure("sent by seeders", "sent_by_seeders"), atMost, 1.5, 1.5),
	gate("rtt", `1to4/.*`, figure("time ÷ bound", "time_over_bound"), atMost, 2, 2),
	goal("large", `all/64KiB`, overAnchor("windowed"), atLeast, 1/1.2, 1/1.2),
	goal("large", `all/64KiB`, figure("RSS leecher MiB", "rss_leecher_mib"), atMost, 200, 200),
	goal("idle", `wants/1000`, figure("RSS node MiB", "rss_node_mib"), atMost, 400, 400),
	goal("idle", `wants/1000`, figure("cores of node", "cores_node"), atMost, 0.05, 0.05),
	goal("bulk", `.*`, over(inProcess), atLeast, math.NaN(), 0.9),
	goal("get", `loopback/256KiB`, over(kubo), atLeast, 2, 2),
	goal("get", `20ms/256KiB`, over(kubo), atLeast, 4, 4),
}

func goal(suite, cases string, m metric, b bound, inProcess, plugin float64) target {
	return target{suite: suite, cases: regexp.MustCompile("^(" + cases + ")$"), metric: m, bound: b, inProcess: inProcess, plugin: plugin}
}

func gate(suite, cases string, m metric, b bound, inProcess, plugin float64) target {
	t := goal(suite, cases, m, b, inProcess, plugin)
	t.gate = true
	return t
}

// loneBlock is how long a block of 64 KiB may take, µs.
func loneBlock(rtt time.Duration) float64 {
	return 1.15*float64(rtt.Microseconds()) + 64*kib*8/1e3
}

// limit is what is asked of an exchange; false if nothing is.
func (t target) limit(exchange string) (float64, bool) {
	v := math.NaN()
	switch exchange {
	case inProcess:
		v = t.inProcess
	case asPlugin:
		v = t.plugin
	}
	return v, !math.IsNaN(v)
}

// targetsOf are what is asked of a case.
func targetsOf(suite, name, exchange string) []target {
	return slices.DeleteFunc(slices.Clone(targets), func(t target) bool {
		_, asked := t.limit(exchange)
		return !asked || t.suite != suite || !t.cases.MatchString(name)
	})
}

// gates are the suites with those of their cases only that a gate is about, or
// that it compares with.
func gates() (list []suite) {
	for _, s := range suites {
		needed := func(name string) bool {
			for _, t := range targets {
				if !t.gate || t.suite != s.name {
					continue
				}
				if t.cases.MatchString(name) {
					return true
				}
			}
			return false
		}
		all := s.cases
		s.cases = func(b *bench) (kept []benchCase) {
			cases := all(b)
			for _, c := range cases {
				if needed(c.name) || s.compares(c.name, cases, needed) {
					kept = append(kept, c)
				}
			}
			return kept
		}
		if slices.ContainsFunc(targets, func(t target) bool { return t.gate && t.suite == s.name }) {
			list = append(list, s)
		}
	}
	return list
}

// compares reports whether a case is the bare one that others, which are needed, are
// compared with.
func (s suite) compares(name string, cases []benchCase, needed func(string) bool) bool {
	return s.anchor != nil && slices.ContainsFunc(cases, func(c benchCase) bool {
		anchor, bare := s.anchor(c.name)
		return bare && anchor == name && needed(c.name)
	})
}

// A verdict is what became of a target.
type verdict string

const (
	reached  verdict = "reached"
	missed   verdict = "missed"
	unproven verdict = "not measured"
)

// judge compares the runs of a row with a target. Who fails misses.
func (t target) judge(of *table, w *row) (verdict, string) {
	limit, _ := t.limit(w.exchange)
	values := t.values(of, w)
	switch {
	case len(w.failed) > 0:
		return missed, fmt.Sprintf("**%s**: %d of %d runs failed", missed, len(w.failed), len(w.runs)+len(w.failed))
	case len(values) == 0:
		return unproven, string(unproven)
	case t.bound.holds(median(values), limit):
		return reached, fmt.Sprintf("%s %s", reached, short(median(values)))
	}
	shown := short(median(values))
	if shown == short(limit) { // by less than one sees
		shown = fmt.Sprintf("%.4g", median(values))
	}
	return missed, fmt.Sprintf("**%s** %s", missed, shown)
}

func (t target) text(exchange string) string {
	limit, _ := t.limit(exchange)
	text := fmt.Sprintf("%s %s %s", t.title, t.bound, short(limit))
	if t.gate {
		return "gate: " + text
	}
	return text
}

// targetColumns are shown if they are asked for.
var targetColumns = []column{
	{"target", func(t *table, w *row) string {
		return joined(t, w, func(g target) string { return g.text(w.exchange) })
	}},
	{"result", func(t *table, w *row) string {
		return joined(t, w, func(g target) string {
			_, text := g.judge(t, w)
			return text
		})
	}},
}

func joined(t *table, w *row, text func(target) string) string {
	var list []string
	for _, g := range targetsOf(t.suite.name, w.name, w.exchange) {
		list = append(list, text(g))
	}
	return strings.Join(list, "; ")
}

// conclude writes how many targets are reached, and which are not, whether their
// cases were measured or not.
func conclude(tables []*table, out io.Writer) error {
	var text strings.Builder
	text.WriteString("### targets\n")
	for _, t := range tables {
		if t.mib != 0 && t.mib != fullMiB {
			fmt.Fprintf(&text, "\n%s was measured with -mib %d; its targets are for %d.\n", t.suite.name, t.mib, fullMiB)
		}
	}
	b := &bench{mib: fullMiB, exchanges: []string{inProcess, asPlugin}}
	for _, kind := range []struct {
		title string
		gate  bool
	}{{"Gates", true}, {"Others", false}} {
		counts, rest := make(map[verdict]int), []string(nil)
		for _, t := range tables {
			for _, c := range t.suite.cases(b) {
				for _, g := range targetsOf(t.suite.name, c.name, c.exchange) {
					if g.gate != kind.gate {
						continue
					}
					v, result := g.judge(t, t.row(c.name, c.exchange))
					if counts[v]++; v != reached {
						rest = append(rest, fmt.Sprintf("- %s %s %s: %s: %s", t.suite.name, c.name, c.exchange, g.text(c.exchange), result))
					}
				}
			}
		}
		fmt.Fprintf(&text, "\n%s: %d reached, %d missed, %d not measured.\n", kind.title, counts[reached], counts[missed], counts[unproven])
		if rest != nil {
			fmt.Fprintf(&text, "\n%s\n", strings.Join(rest, "\n"))
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}
