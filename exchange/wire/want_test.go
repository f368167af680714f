package wire_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/codexchange/codexchange/exchange/wire"
)

const top = ^uint64(0)

func TestRanges(t *testing.T) {
	type ranges = []wire.Range
	for _, tc := range []struct {
		name     string
		in, want ranges
	}{
		{"none", nil, nil},
		{"empty ones", ranges{{5, 0}, {0, 0}, {top, 0}}, nil},
		{"one", ranges{{5, 3}}, ranges{{5, 3}}},
		{"out of order", ranges{{9, 1}, {0, 2}, {5, 1}}, ranges{{0, 2}, {5, 1}, {9, 1}}},
		{"touching", ranges{{2, 2}, {0, 2}, {4, 1}}, ranges{{0, 5}}},
		{"overlapping", ranges{{0, 5}, {3, 5}}, ranges{{0, 8}}},
		{"one within another", ranges{{0, 10}, {3, 2}, {9, 1}, {11, 1}}, ranges{{0, 10}, {11, 1}}},
		{"the same twice", ranges{{7, 1}, {7, 1}}, ranges{{7, 1}}},
		{"same start", ranges{{7, 1}, {7, 4}, {7, 2}}, ranges{{7, 4}}},
		{"an empty one between", ranges{{0, 1}, {1, 0}, {2, 1}}, ranges{{0, 1}, {2, 1}}},
		{"past the largest index", ranges{{top - 2, 100}}, ranges{{top - 2, 2}}},
		{"past it and overlapping", ranges{{top - 2, top}, {top - 5, 4}}, ranges{{top - 5, 5}}},
		{"everything", ranges{{0, top}, {5, top}}, ranges{{0, top}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := slices.Clone(tc.in)
			if got := wire.Ranges(tc.in); !slices.Equal(got, tc.want) {
				t.Errorf("%v becomes %v, want %v", in, got, tc.want)
			}
			if !slices.Equal(tc.in, in) {
				t.Errorf("the argument is changed to %v, was %v", tc.in, in)
			}
		})
	}
}

// TestRangesAgainstSet holds Ranges, Len and Contains against a plain set.
func TestRangesAgainstSet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var in []wire.Range
		set := map[uint64]bool{}
		for range random.IntN(8) {
			r := wire.Range{First: random.Uint64N(40), Count: random.Uint64N(10)}
			in = append(in, r)
			for x := r.First; x < r.End(); x++ {
				set[x] = true
			}
		}
		w := wire.WantLeaves(tree, in...)
		if w.Len() != uint64(len(set)) {
			t.Fatalf("%v has %d indices, want %d", in, w.Len(), len(set))
		}
		for x := range uint64(60) {
			if got := w.Contains(wire.Leaf(tree, x)); got != set[x] {
				t.Fatalf("%v as %v contains %d: %v, want %v", in, w.Indices, x, got, set[x])
			}
		}
		for i := 1; i < len(w.Indices); i++ {
			if w.Indices[i].First <= w.Indices[i-1].End() {
				t.Fatalf("%v becomes %v, where two overlap or touch", in, w.Indices)
			}
		}
	}
}

func TestWant(t *testing.T) {
	plain := wire.WantCid(block)
	if plain.Leaf || plain.Len() != 1 || plain.Indices != nil {
		t.Errorf("want of a cid is %+v", plain)
	}
	leaves := wire.WantLeaves(tree, wire.Range{First: 3, Count: 2}, wire.Range{First: 0, Count: 1})
	for _, tc := range []struct {
		want    wire.Want
		address wire.Address
		in      bool
	}{
		{plain, wire.Block(block), true},
		{plain, wire.Block(raw), false},
		{plain, wire.Leaf(block, 0), false},
		{leaves, wire.Leaf(tree, 0), true},
		{leaves, wire.Leaf(tree, 1), false},
		{leaves, wire.Leaf(tree, 4), true},
		{leaves, wire.Leaf(tree, 5), false},
		{leaves, wire.Leaf(block, 0), false},
		{leaves, wire.Block(tree), false},
		{wire.WantLeaves(tree), wire.Leaf(tree, 0), false},
		{wire.WantLeaves(tree, wire.Range{First: top - 1, Count: 1}), wire.Leaf(tree, top-1), true},
	} {
		if got := tc.want.Contains(tc.address); got != tc.in {
			t.Errorf("%+v contains %v: %v, want %v", tc.want, tc.address, got, tc.in)
		}
	}
}

func TestIndices(t *testing.T) {
	if got, want := wire.Indices(5, 1, 2, 5, 0), []wire.Range{{First: 0, Count: 3}, {First: 5, Count: 1}}; !slices.Equal(got, want) {
		t.Errorf("ranges are %v, want %v", got, want)
	}
	if got := wire.Indices(); len(got) > 0 {
		t.Errorf("ranges of nothing are %v", got)
	}
}

func TestRangeString(t *testing.T) {
	for want, r := range map[string]wire.Range{"7": {First: 7, Count: 1}, "7-9": {First: 7, Count: 3}, "(none)": {First: 7}} {
		if got := r.String(); got != want {
			t.Errorf("range of %d from %d is %q, want %q", r.Count, r.First, got, want)
		}
	}
}
