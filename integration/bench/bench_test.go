package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
)

// The test program is a node when it is started as one.
func TestMain(m *testing.M) {
	host.Main()
	if len(os.Args) > 1 && os.Args[1] == "node" {
		if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
			os.Exit(1)
		}
		return
	}
	// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// measure runs the command and returns its records.
func measure(t *testing.T, args ...string) []record {
	t.Helper()
	var out, progress bytes.Buffer
	err := run(t.Context(), append([]string{"-rounds", "1", "-mib", "4", "-dir", t.TempDir()}, args...), nil, &out, &progress)
	if err != nil {
		t.Fatalf("bench %v: %v\n%s", args, err, &progress)
	}
	var all []record
	d := json.NewDecoder(&out)
	d.DisallowUnknownFields()
	for d.More() {
		var r record
		if err := d.Decode(&r); err != nil {
			t.Fatalf("bench %v: record %d: %v", args, len(all)+1, err)
		}
		all = append(all, r)
	}
	return all
}

// A case of each suite goes from end to end, with nodes in processes of their own.
func TestSuites(t *testing.T) {
	usage, nodeUsage := []string{"cpu_s", "rss_seeder_mib", "rss_leecher_mib"}, []string{"cores_node", "rss_node_mib"}
	if runtime.GOOS != "linux" {
		usage, nodeUsage = nil, nil // figures that cannot be had are left out
	}
	for _, c := range []struct {
		suite, only string
		cases       []string // that run, in this order
		figures     []string // that each has
	}{
		{"stream", "tcp-noise|quic|^tcp", []string{"stream/tcp-noise", "stream/quic", "tcp"}, []string{"MBps", "wall_s"}},
		{"bulk", "stream|256KiB/flatfs|1KiB/mem/blockexc$", []string{"stream/tcp-noise", "256KiB/flatfs/bitswap",
			"256KiB/flatfs/blockexc-inprocess", "256KiB/flatfs/blockexc", "256KiB/flatfs/floor", "1KiB/mem/blockexc"}, []string{"MBps"}},
		{"latency", "session", []string{"session/bitswap", "session/blockexc-inprocess", "session/blockexc", "session/floor"},
			[]string{"p50_us", "p99_us"}},
		{"dag", "256KiB/mem/blockexc-", []string{"list/256KiB/mem/blockexc-inprocess", "graph/256KiB/mem/blockexc-inprocess",
			"reader/256KiB/mem/blockexc-inprocess"}, []string{"MBps"}},
		{"multi", "(4to1|1to4)/64KiB/blockexc-", []string{"4to1/64KiB/blockexc-inprocess", "1to4/64KiB/blockexc-inprocess"},
			[]string{"MBps", "sent_by_seeders", "duplicates"}},
		{"memory", "blockexc-", []string{"all/256KiB/blockexc-inprocess", "windowed/256KiB/blockexc-inprocess"}, []string{"MBps"}},
		{"large", "all", []string{"all/64KiB/bitswap", "all/64KiB/blockexc-inprocess", "all/64KiB/blockexc", "all/64KiB/floor"}, []string{"MBps"}},
		{"rtt", "20ms/(tcp$|list/64KiB/blockexc-)|1to4/64KiB/blockexc-", []string{"20ms/tcp", "20ms/list/64KiB/blockexc-inprocess",
			"1to4/64KiB/blockexc-inprocess"}, []string{"MBps"}},
		{"idle", "wants/1000", []string{"wants/1000/bitswap", "wants/1000/blockexc-inprocess", "wants/1000/blockexc"}, []string{"peers", "wants"}},
		{"get", "loopback/256KiB/blockexc$", []string{"loopback/256KiB/blockexc"}, []string{"MBps"}},
	} {
		t.Run(c.suite, func(t *testing.T) {
			all := measure(t, "-only", c.only, c.suite)
			if s, _ := suiteByName(c.suite); s.possible != nil && s.possible(t.Context()) != nil {
				if len(all) != 1 || all[0].Skipped == "" {
					t.Fatalf("records of a suite that is not possible here are %+v, want one with the reason", all)
				}
				t.Skip(all[0].Skipped)
			}
			var got []string
			for _, r := range all {
				got = append(got, benchCase{name: r.Case, exchange: r.Exchange}.String())
				if r.Suite != c.suite || r.Round != 1 || r.Run == "" {
					t.Errorf("record is %+v, want suite %s, round 1 and when it began", r, c.suite)
				}
				used := usage
				if c.suite == "idle" {
					used = nodeUsage
				}
				for _, name := range slices.Concat(c.figures, used) {
					if v, ok := r.Figures[name]; !ok || v < 0 || v == 0 && !slices.Contains([]string{"cpu_s", "cores_node", "duplicates"}, name) {
						t.Errorf("%s by %s: %s is %v, want a figure; all are %v", r.Case, r.Exchange, name, v, r.Figures)
					}
				}
			}
			if !slices.Equal(got, c.cases) {
				t.Errorf("cases are %v, want %v", got, c.cases)
			}
		})
	}
}

// Whoever fetches from one seeder gets everything from it, once; nothing is lost
// on the way into the figures.
func TestCounts(t *testing.T) {
	for _, r := range measure(t, "-exchanges", "bitswap,boxo,blockexc-inprocess,blockexc,floor", "-only", "256KiB/mem", "bulk") {
		if v := r.Figures["sent_by_seeders"]; v != 1 {
			t.Errorf("%s: seeders sent %v of the data, want 1", r.Exchange, v)
		}
		if v := r.Figures["bytes"]; v != 4*mib {
			t.Errorf("%s: leecher got %v bytes, want 4 MiB", r.Exchange, v)
		}
	}
}

// Leechers' files lose their bytes when their run ends, and are gone when the bench ends;
// what seeders hold stays for the next time.
func TestLeft(t *testing.T) {
	dir := t.TempDir()
	measure(t, "-dir", dir, "-only", "1MiB/flatfs/floor", "bulk")
	var got []string
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := []string{"4x1048576-flatfs-seeder0.cids", "seeder0-4x1048576"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("directory has %v, %v, want %v", got, err, want)
	}

	file := filepath.Join(dir, "seeder0-4x1048576", "SHARDING")
	if err := empty(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(file); err != nil || i.Size() != 0 {
		t.Errorf("an emptied file is %v, %v, want it there with 0 bytes", i, err)
	}
}

// Each node leaves a profile.
func TestProfile(t *testing.T) {
	dir := t.TempDir()
	measure(t, "-only", "64KiB/mem/blockexc$", "-profile", dir, "bulk")
	for _, role := range []string{"seeder0", "leecher0"} {
		file := filepath.Join(dir, "bulk-64KiB-mem-blockexc-1-"+role+".pprof")
		if info, err := os.Stat(file); err != nil || info.Size() == 0 {
			t.Errorf("profile of %s: %v, want a file with something in it", role, err)
		}
	}
}

// A run that fails is recorded with its reason, the others go on, and the command
// fails. A case that is not possible is no failure.
func TestFailure(t *testing.T) {
	var out, progress bytes.Buffer
	b := &bench{rounds: 2, mib: 1, only: regexp.MustCompile(""), dir: t.TempDir(), out: &out, progress: &progress}
	s := suite{name: "bulk", cases: func(b *bench) []benchCase {
		return []benchCase{
			{name: "lost", exchange: inProcess, run: func(ctx context.Context) (figures, error) {
				return b.between(ctx, layout{exchange: inProcess}, func(*cluster) (request, error) {
					return request{Op: "fetch", File: "no-such-list"}, nil
				})
			}},
			{name: "odd", exchange: "nonesuch", run: func(ctx context.Context) (figures, error) {
				return b.fetch(ctx, layout{exchange: "nonesuch"}, dataset{1, 1}, 0)
			}},
			{name: "good", run: func(context.Context) (figures, error) { return figures{"MBps": 1}, nil }},
			{name: "impossible", possible: func(context.Context) error { return errors.New("not here") }},
		}
	}}
	err := b.run(t.Context(), []suite{s})
	if err == nil || err.Error() != "4 of 6 runs failed" {
		t.Errorf("error is %v, want that 4 of 6 runs failed", err)
	}
	if n := strings.Count(out.String(), `"case":"impossible","round":0,"mib":1,"skipped":"not here"`); n != 1 {
		t.Errorf("the case that is not possible is recorded %d times, want once, with the reason:\n%s", n, &out)
	}
	for _, want := range []string{"leecher0: fetch: open no-such-list", "unknown exchange", "want one of blockexc", `"MBps":1`} {
		if n := strings.Count(out.String(), want); n != 2 {
			t.Errorf("%q is in the output %d times, want once each round:\n%s", want, n, &out)
		}
	}
}

// A node that is killed is a failed run, not a hanging one.
func TestNodeGone(t *testing.T) {
	b := &bench{dir: t.TempDir()}
	c, err := b.start(t.Context(), layout{})
	if err != nil {
		t.Fatal(err)
	}
	c.leechers[0].cmd.Process.Kill()
	if err := c.connect(); err == nil || !strings.Contains(err.Error(), "leecher0: connect: "+errGone.Error()) {
		t.Errorf("error is %v, want that the leecher is gone", err)
	}
	if err := c.close(); err == nil || !strings.Contains(err.Error(), "leecher0 ended badly") {
		t.Errorf("close says %v, want how the leecher ended", err)
	}
	for _, p := range c.all {
		if p.cmd.ProcessState == nil {
			t.Errorf("%s still runs", p.role)
		}
	}
}

// What the command line gets wrong is said.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "no suite named"},
		{"nonesuch", `unknown suite "nonesuch"`},
		{"-exchanges bitswap,nonesuch bulk", `flag -exchanges: unknown exchange "nonesuch", want one of blockexc-inprocess, blockexc, bitswap, boxo, floor`},
		{"-only ( bulk", "flag -only: "},
		{"-rounds 0 bulk", "flags: -rounds 0 -mib 512, want 1 or more of each"},
		{"-only nothing-like-this bulk", `no case matches "nothing-like-this"`},
		{"summary no-such-file", "no-such-file"},
	} {
		err := run(t.Context(), strings.Fields(c.args), nil, &bytes.Buffer{}, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bench %s: error is %v, want %q", c.args, err, c.want)
		}
	}
}

// A node answers what it does not understand, and goes on.
func TestNodeRefuses(t *testing.T) {
	in := strings.NewReader("nonsense\n{\"op\":\"nonesuch\"}\n{\"op\":\"start\",\"store\":\"tape\"}\n")
	var out bytes.Buffer
	if err := serveNode(t.Context(), in, &out); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{`read request "nonsense\n"`, `unknown operation "nonesuch"`, `unknown store "tape"`} {
		line, err := out.ReadBytes('\n')
		var a answer
		if err == nil {
			err = json.Unmarshal(line, &a)
		}
		if err != nil || !strings.Contains(a.Err, want) {
			t.Errorf("answer %d is %q (%v), want one that says %s", i+1, line, err, want)
		}
	}
}

// A busy system is waited for, but no longer than was asked; a quiet one is not.
func TestSettle(t *testing.T) {
	second := func(busy ...float64) func() float64 { // cores busy between a call and the next
		var cpu float64
		return func() float64 {
			now := cpu
			if len(busy) > 0 {
				cpu += busy[0] * settleLook.Seconds()
				busy = busy[1:]
			}
			return now
		}
	}
	for _, c := range []struct {
		name  string
		quiet time.Duration
		cpu   func() float64
		took  time.Duration
		left  time.Duration
	}{
		{"not asked to wait", 0, second(2, 2), 0, 0},
		{"quiet", time.Minute, second(0.1), settleLook, time.Minute},
		{"busy, then quiet", time.Minute, second(2, 0, 1, 0, 0.1), 3 * settleLook, time.Minute - 2*settleLook},
		{"busy for ever", 2 * settleLook, second(2, 0, 2, 0, 2, 0, 2), 2 * settleLook, 0},
		{"not known", time.Minute, func() float64 { return math.NaN() }, 0, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				b := &bench{quiet: c.quiet}
				b.settle(t.Context(), c.cpu)
				if took := time.Since(start); took != c.took || b.quiet != c.left {
					t.Errorf("took %v and left %v, want %v and %v", took, b.quiet, c.took, c.left)
				}
			})
		})
	}
}
