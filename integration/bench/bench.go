package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// figures is what one run yields, by name, with the unit in the name.
type figures map[string]float64

// A record is one line of output: the figures of one run, or why there are none.
type record struct {
	Run      string  `json:"run"`                // when the measurement began; the same in all its records
	Suite    string  `json:"suite"`              //
	Case     string  `json:"case"`               // what was done
	Exchange string  `json:"exchange,omitempty"` // by which exchange; none for bare streams
	Round    int     `json:"round"`              // from 1
	MiB      int     `json:"mib,omitempty"`      // size of the bulk data set
	Figures  figures `json:"figures,omitempty"`
	Failed   string  `json:"failed,omitempty"`  // the run was tried and did not end well
	Skipped  string  `json:"skipped,omitempty"` // the case, or the whole suite, cannot run here
}

// A benchCase is one thing to measure.
type benchCase struct {
	name     string
	exchange string // "" if none takes part
	run      func(context.Context) (figures, error)
	// possible says why the case cannot run here; nil: it can if its suite can.
	possible func(context.Context) error
}

func (c benchCase) String() string { return strings.TrimSuffix(c.name+"/"+c.exchange, "/") }

// A bench is one measurement, from one goroutine.
type bench struct {
	rounds    int
	mib       int // size of the bulk data set
	only      *regexp.Regexp
	exchanges []string
	dir       string // data of seeders that is kept between runs, and leechers
	profiles  string // "": none
	verbose   bool
	quiet     time.Duration // may still be spent on waiting for a quiet system
	out       io.Writer     // records
	progress  io.Writer

	built   bool     // the program host is in dir
	started string   // Run of all records
	label   string   // of the run under way, for file names
	emptied []string // directories of leechers, see empty
}

// run measures suite after suite. A run that fails is recorded and does not stop
// the others; the error then says how many there were.
func (b *bench) run(ctx context.Context, chosen []suite) (err error) {
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "codexchange-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		b.dir = dir
	}
	for _, dir := range []string{b.dir, b.profiles} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	defer func() {
		for _, dir := range b.emptied {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	b.started = time.Now().UTC().Format(time.RFC3339Nano)
	failed, ran, skipped := 0, 0, 0
	for _, s := range chosen {
		if s.possible != nil {
			if err := s.possible(ctx); err != nil {
				if err := b.record(record{Suite: s.name, Skipped: err.Error()}); err != nil {
					return err
				}
				skipped++
				continue
			}
		}
		var cases []benchCase
		for _, c := range s.cases(b) {
			if !b.only.MatchString(c.String()) {
				continue
			}
			if c.possible != nil {
				if err := c.possible(ctx); err != nil {
					if err := b.record(record{Suite: s.name, Case: c.name, Exchange: c.exchange, Skipped: err.Error()}); err != nil {
						return err
					}
					skipped++
					continue
				}
			}
			cases = append(cases, c)
		}
		for round := 1; round <= b.rounds; round++ {
			for _, c := range cases {
				ok, err := b.once(ctx, s, c, round)
				if err != nil {
					return err
				}
				ran++
				if !ok {
					failed++
				}
			}
			slices.Reverse(cases) // so that nobody always comes after the same
		}
	}
	switch {
	case ran+skipped == 0:
		return fmt.Errorf("no case matches %q", b.only)
	case failed > 0:
		return fmt.Errorf("%d of %d runs failed", failed, ran)
	}
	return nil
}

// runLimit is how long one run may take, with all that comes before and after. What
// its nodes do has a limit of its own; beyond this one they are killed.
const runLimit = 6 * time.Minute

// once runs a case once and records what came of it; false if it failed. The
// error is one that ends the measurement.
func (b *bench) once(ctx context.Context, s suite, c benchCase, round int) (bool, error) {
	b.label = strings.ReplaceAll(fmt.Sprintf("%s-%s-%d", s.name, c, round), "/", "-")
	r := record{Suite: s.name, Case: c.name, Exchange: c.exchange, Round: round}
	b.settle(ctx, systemCPU)
	limited, cancel := context.WithTimeoutCause(ctx, runLimit, fmt.Errorf("took longer than %v", runLimit))
	defer cancel()
	f, err := c.run(limited)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if limited.Err() != nil {
		err = errors.Join(context.Cause(limited), err)
	}
	if err != nil {
		r.Failed = err.Error()
	} else {
		r.Figures = f
	}
	return err == nil, b.record(r)
}

const (
	settleLook  = 500 * time.Millisecond
	settleCores = 0.25 // busy, at which the system counts as quiet
)

// settle waits until other programs leave the processors alone, or quiet is used
// up, or ctx ends. The function tells the CPU seconds used by the system so far,
// or NaN if that is not known.
func (b *bench) settle(ctx context.Context, cpu func() float64) {
	for b.quiet > 0 {
		before := cpu()
		if math.IsNaN(before) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settleLook):
		}
		if cpu()-before < settleCores*settleLook.Seconds() {
			return
		}
		b.quiet -= settleLook
	}
}

// record writes one line of output, and one for the eye.
func (b *bench) record(r record) error {
	r.Run, r.MiB = b.started, b.mib
	for name, v := range r.Figures {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			delete(r.Figures, name) // not known here
			continue
		}
		r.Figures[name] = significant(v)
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := b.out.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	fmt.Fprintf(b.progress, "%s %s %s %s #%d %s%s%s\n", time.Now().Format(time.TimeOnly),
		r.Suite, r.Case, r.Exchange, r.Round, r.Figures, r.Failed, r.Skipped)
	return nil
}

// significant rounds to five digits, but for whole numbers.
func significant(v float64) float64 {
	if v == math.Trunc(v) {
		return v
	}
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 5, 64), 64)
	return v
}

// String shows the figures that matter while one waits.
func (f figures) String() string {
	var parts []string
	for _, name := range []string{"MBps", "p50_us", "p99_us", "cpu_s", "rss_leecher_mib", "rss_node_mib", "cores_node", "sent_by_seeders", "cores_others"} {
		if v, ok := f[name]; ok {
			parts = append(parts, fmt.Sprintf("%s=%.4g", name, v))
		}
	}
	return strings.Join(parts, " ")
}

// quantile returns the value below which the part q of the values lies, the mean
// of the two in the middle for an even number and q of one half, NaN for none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	if q == 0.5 && len(s)%2 == 0 {
		return (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[max(0, min(i, len(s)-1))]
}

func median(values []float64) float64 { return quantile(values, 0.5) }

var errGone = errors.New("the node is gone")
