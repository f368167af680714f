package main

import (
	"bytes"
	"strings"
	"testing"
)

// A bar shows the stage, and at its end the summary in place of the counters.
// The next stage has a bar of its own.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	p := &bars{w: &out}
	p.Begin("run 1 of 2, bitswap", 2<<20)
	p.Moved(1 << 20)
	p.End("0.10 s, verified")
	p.Begin("run 2 of 2, bitswap", 2<<20)
	p.End("not finished")
	got := out.String()
	for _, want := range []string{"run 1 of 2, bitswap", "0.10 s, verified", "run 2 of 2, bitswap", "not finished"} {
		i := strings.Index(got, want)
		if i < 0 {
			t.Fatalf("no %q in this order in the output:\n%q", want, out.String())
		}
		got = got[i+len(want):]
	}
}

// What is no terminal gets one line for each stage.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.Begin("add data", 3<<20)
	p.Moved(1 << 20)
	p.End("1.2 s")
	if got, want := out.String(), "add data: 3 MiB, 1.2 s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
