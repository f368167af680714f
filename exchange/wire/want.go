package wire

import (
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
)

// Range is the indices First, First+1, … First+Count-1.
type Range struct {
	First uint64
	Count uint64
}

// End is the first index after the range.
func (r Range) End() uint64 { return r.First + r.Count }

func (r Range) String() string {
	switch r.Count {
	case 0:
		return "(none)"
	case 1:
		return fmt.Sprintf("%d", r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.End()-1)
}

// Want is a root and the set of its indices that somebody asks for. A plain CID
// is a set of one: Leaf is false and Indices is nil. For a tree, Indices are
// sorted ranges that do not overlap or touch, as [Ranges] makes them.
type Want struct {
	Root    cid.Cid
	Leaf    bool
	Indices []Range
}

// WantCid is the want of one block by CID.
func WantCid(c cid.Cid) Want { return Want{Root: c} }

// WantLeaves is the want of blocks of a tree. The ranges may be in any order and
// may overlap.
func WantLeaves(root cid.Cid, ranges ...Range) Want {
	return Want{Root: root, Leaf: true, Indices: Ranges(ranges)}
}

// Len is the number of blocks in the want.
func (w Want) Len() uint64 {
	if !w.Leaf {
		return 1
	}
	var n uint64
	for _, r := range w.Indices {
		n += r.Count
	}
	return n
}

// Contains reports whether the address is part of the want.
func (w Want) Contains(a Address) bool {
	if a.Leaf != w.Leaf || !a.Root.Equals(w.Root) {
		return false
	}
	if !w.Leaf {
		return true
	}
	i, found := slices.BinarySearchFunc(w.Indices, a.Index, func(r Range, x uint64) int {
		switch {
		case x < r.First:
			return 1
		case x >= r.End():
			return -1
		}
		return 0
	})
	return found && i < len(w.Indices)
}

// Ranges sorts and joins ranges, dropping the empty ones. A range that would
// run past the largest index is cut there. The argument is not changed.
func Ranges(in []Range) []Range {
	rs := make([]Range, 0, len(in))
	for _, r := range in {
		if r.First+r.Count < r.First {
			r.Count = ^uint64(0) - r.First
		}
		if r.Count > 0 {
			rs = append(rs, r)
		}
	}
	slices.SortFunc(rs, func(a, b Range) int {
		switch {
		case a.First < b.First:
			return -1
		case a.First > b.First:
			return 1
		}
		return 0
	})
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && r.First <= out[n-1].End() {
			if r.End() > out[n-1].End() {
				out[n-1].Count = r.End() - out[n-1].First
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// Indices makes ranges of single indices, in any order and with repeats.
func Indices(list ...uint64) []Range {
	rs := make([]Range, len(list))
	for i, x := range list {
		rs[i] = Range{First: x, Count: 1}
	}
	return Ranges(rs)
}
