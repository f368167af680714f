package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// Every target is about cases that there are, of both ways to run our exchange
// unless it compares them, and what it compares with is measured.
func TestTargetsAreMeasured(t *testing.T) {
	b := &bench{mib: 512, exchanges: []string{"bitswap", inProcess, asPlugin, "floor"}}
	for _, g := range targets {
		s, ok := suiteByName(g.suite)
		if !ok {
			t.Errorf("target %s %s: no such suite", g.suite, g.cases)
			continue
		}
		var names []string
		for _, c := range s.cases(b) {
			names = append(names, c.String())
		}
		about := make(map[string]int) // by exchange
		for _, c := range s.cases(b) {
			if _, asked := g.limit(c.exchange); !asked || !g.cases.MatchString(c.name) {
				continue
			}
			about[c.exchange]++
			if other, ok := strings.CutPrefix(g.title, "÷ "); ok && !g.anchor && !slices.Contains(names, c.name+"/"+other) {
				t.Errorf("target %s %s: %s is not measured with %s", g.suite, g.cases, c.name, other)
			}
			if anchor, _ := g.anchorOf(s, c.name); g.anchor && !slices.ContainsFunc(names, func(n string) bool {
				return n == anchor || n == anchor+"/"+c.exchange
			}) {
				t.Errorf("target %s %s: %s is compared with %s, which is not measured", g.suite, g.cases, c.name, anchor)
			}
		}
		_, here := g.limit(inProcess)
		if about[asPlugin] == 0 || here && about[inProcess] != about[asPlugin] {
			t.Errorf("target %s %s: is about %v cases, want some, of each exchange", g.suite, g.cases, about)
		}
	}
}

func (t target) anchorOf(s suite, name string) (string, bool) {
	if s.anchor == nil {
		return "", false
	}
	return s.anchor(name)
}

// The gates are run with what they are compared with, and nothing else.
func TestGates(t *testing.T) {
	b := &bench{mib: 512, exchanges: []string{"bitswap", asPlugin}}
	var got []string
	for _, s := range gates() {
		for _, c := range s.cases(b) {
			if c.exchange != "bitswap" {
				got = append(got, s.name+" "+c.String())
			}
		}
	}
	want := []string{
		"bulk stream/tcp-noise", "bulk 64KiB/mem/blockexc", "bulk 64KiB/flatfs/blockexc", "bulk 256KiB/mem/blockexc",
		"bulk 256KiB/flatfs/blockexc", "bulk 1MiB/mem/blockexc", "bulk 1MiB/flatfs/blockexc", "latency session/blockexc",
		"dag reader/256KiB/mem/blockexc",
		"multi 1to4/64KiB/blockexc", "multi 1to4/256KiB/blockexc",
		"rtt 20ms/tcp", "rtt 20ms/list/1MiB/blockexc", "rtt 20ms/reader/256KiB/blockexc",
		"rtt 100ms/tcp", "rtt 100ms/list/1MiB/blockexc", "rtt 100ms/reader/256KiB/blockexc",
		"rtt 1to4/64KiB/blockexc", "rtt 1to4/256KiB/blockexc",
	}
	if !slices.Equal(got, want) {
		t.Errorf("gates are\n%q\nwant\n%q", got, want)
	}
}

// A summary says which targets are reached: by the median of the rounds, and not if
// a run has failed. What was not measured is named too.
func TestSummaryTargets(t *testing.T) {
	in := `
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"bitswap","round":1,"figures":{"MBps":100}}
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"blockexc-inprocess","round":1,"figures":{"MBps":140}}
{"run":"a","suite":"bulk","case":"64KiB/mem","exchange":"blockexc","round":1,"figures":{"MBps":105}}
{"run":"a","suite":"multi","case":"4to1/64KiB","exchange":"blockexc","round":1,"figures":{"MBps":1,"duplicates":0.002}}
{"run":"a","suite":"multi","case":"1to4/64KiB","exchange":"blockexc","round":1,"figures":{"MBps":1,"sent_by_seeders":1.4}}
{"run":"a","suite":"multi","case":"1to4/64KiB","exchange":"blockexc","round":2,"failed":"stalled"}
{"run":"a","suite":"large","case":"windowed/64KiB","exchange":"blockexc","round":1,"figures":{"MBps":500}}
{"run":"a","suite":"large","case":"all/64KiB","exchange":"blockexc","round":1,"figures":{"MBps":450,"rss_leecher_mib":250}}
`
	var out bytes.Buffer
	if err := summarize(nil, true, strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| 64KiB/mem | bitswap | 1 | 100 |  |  |  |  |",
		"| 64KiB/mem | blockexc-inprocess | 1 | 140 | 1.40 |  | gate: ÷ bitswap ≥ 1.35 | reached 1.40 |",
		"| 64KiB/mem | blockexc | 1 | 105 | 1.05 | 0.75 | gate: ÷ bitswap ≥ 1.10; ÷ blockexc-inprocess ≥ 0.90 | **missed** 1.05; **missed** 0.75 |",
		"| duplicates ≤ 0.01; ÷ bitswap ≥ 1.30 | reached 0.00; not measured |",
		"| gate: sent by seeders ≤ 1.50 | **missed**: 1 of 2 runs failed |",
		"| ÷ windowed ≥ 0.83; RSS leecher MiB ≤ 200 | reached 0.90; **missed** 250 |",
		"Gates: 1 reached, 2 missed, ",
		"- multi 1to4/256KiB blockexc-inprocess: gate: sent by seeders ≤ 1.50: not measured",
		"Others: 2 reached, 2 missed, ",
		"- get 20ms/256KiB blockexc: ÷ kubo ≥ 4.00: not measured",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("summary lacks %q:\n%s", want, &out)
		}
	}
}
