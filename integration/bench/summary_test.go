package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{3, 1, 2}, 0, 1},
		{[]float64{3, 1, 2}, 1, 3},
		{[]float64{7}, 0.99, 7},
	} {
		if got := quantile(c.values, c.q); got != c.want {
			t.Errorf("quantile %v of %v is %v, want %v", c.q, c.values, got, c.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v, want NaN", got)
	}
}

// Ratios are those of the same round of the same measurement, not of medians.
func TestSummary(t *testing.T) {
	in := `
{"run":"a","suite":"bulk","case":"stream/tcp-noise","round":1,"figures":{"MBps":800}}
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"bitswap","round":1,"figures":{"MBps":200,"cpu_s_per_GB":6}}
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"blockexc-inprocess","round":1,"figures":{"MBps":400,"rss_leecher_mib":90,"duplicates":0}}
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"blockexc-inprocess","round":2,"figures":{"MBps":900,"rss_leecher_mib":110}}
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"bitswap","round":2,"figures":{"MBps":300,"cpu_s_per_GB":8}}
{"run":"b","suite":"bulk","case":"64KiB/mem","exchange":"bitswap","round":1,"failed":"leecher0: fetch: stalled"}
{"run":"b","suite":"bulk","case":"64KiB/mem","exchange":"blockexc-inprocess","round":1,"figures":{"MBps":500,"rss_leecher_mib":95}}
{"run":"a","suite":"latency","case":"session","exchange":"bitswap","round":1,"figures":{"p50_us":20000}}
{"run":"a","suite":"latency","case":"session","exchange":"blockexc-inprocess","round":1,"figures":{"p50_us":500}}
{"run":"a","suite":"rtt","round":0,"skipped":"not permitted"}
`
	const want = `### bulk: a list of blocks from one seeder

| case | exchange | runs | MB/s | ÷ bitswap | ÷ stream | CPU s/GB | RSS leecher MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |
| stream/tcp-noise |  | 1 | 800 |  |  |  |  |
| 64KiB/mem | bitswap | 2 of 3 | 250 (200–300) |  | 0.25 | 7.00 |  |
| 64KiB/mem | blockexc-inprocess | 3 | 500 (400–900) | 2.50 (2.00–3.00) | 0.50 |  | 95.0 (90.0–110) |

64KiB/mem bitswap failed: leecher0: fetch: stalled

### latency: one block after another

| case | exchange | runs | p50 µs | ÷ bitswap |
| --- | --- | --- | --- | --- |
| session | bitswap | 1 | 20000 |  |
| session | blockexc-inprocess | 1 | 500 | 40.0 |

### rtt: links of 20 and 100 ms


Skipped: not permitted

`
	var out bytes.Buffer
	if err := summarize(nil, false, strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("summary is\n%s\nwant\n%s", &out, want)
	}
}

// What cannot be read is said, and so is what cannot stand in one table.
func TestSummaryRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"suite":"bulk","round":1}{"suite":`, "read figures from standard input: record 2"},
		{`{"suite":"bulk","round":1,"mib":4}{"suite":"dag","round":1,"mib":8}{"suite":"bulk","round":1,"mib":8}`,
			"summarize suite bulk: some figures are of -mib 4, others of 8"},
	} {
		err := summarize(nil, false, strings.NewReader(c.in), &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error is %v, want %q", err, c.want)
		}
	}
}
