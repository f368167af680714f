package crossing

import (
	"fmt"
	"slices"
	"testing"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

// A speaker is a peer with one exchange: a node of ours, or one of somebody else.
type speaker interface {
	testing.TB
	Add(content []byte, chunk int64) (root string, err error)
	Fetch(root string) (sum string, err error)
	Address() string
	Peers() []string
}

// Nodes with Bitswap only and with Codex only.
func TestCross(t *testing.T) {
	cross(t, start(t, "bitswap", host.Bitswap))
}

// cross moves files from a peer that has Bitswap only to a node that has Codex
// only, and back. They never meet: each fetches from a node with both exchanges,
// that has fetched from the other; an exchange serves what is stored.
func cross(t *testing.T, outer speaker) {
	middle := start(t, "both", host.Bitswap, host.Blockexc)
	codex := start(t, "codex", host.Blockexc)
	must(t, "connect to the Bitswap peer", middle.Connect(outer.Address()))
	must(t, "connect to the Codex peer", middle.Connect(codex.Addr))

	for i, way := range []struct {
		name     string
		from, to speaker
		by       string // the exchange that brings it to the middle
		other    string
		chunk    int64
		leaves   int
	}{
		{"Bitswap to Codex", outer, codex, host.Bitswap, host.Blockexc, 64 << 10, 200}, // leaves of one level more than fit into a node
		{"Bitswap to Codex", outer, codex, host.Bitswap, host.Blockexc, 1 << 20, 8},
		{"Codex to Bitswap", codex, outer, host.Blockexc, host.Bitswap, 64 << 10, 200},
		{"Codex to Bitswap", codex, outer, host.Blockexc, host.Bitswap, 1 << 20, 8},
	} {
		t.Run(fmt.Sprintf("%s/%d KiB", way.name, way.chunk>>10), func(t *testing.T) {
			content, want := random(uint64(i), way.leaves*int(way.chunk)+1000)
			root, err := way.from.Add(content, way.chunk)
			must(t, "add the file", err)
			before, otherBefore := middle.Received(way.by), middle.Received(way.other)
			for _, n := range []speaker{middle, way.to} {
				if sum, err := n.Fetch(root); err != nil || sum != want {
					t.Fatalf("fetch: SHA-256 is %q, %v; want %s", sum, err, want)
				}
			}
			if got := middle.Received(way.by) - before; got < uint64(way.leaves) {
				t.Errorf("by %s came %d blocks, want %d or more", way.by, got, way.leaves)
			}
			if got := middle.Received(way.other) - otherBefore; got != 0 {
				t.Errorf("by %s came %d blocks, want none: nobody has them who speaks it", way.other, got)
			}
		})
	}
	for _, n := range []speaker{outer, codex} {
		if got := n.Peers(); !slices.Equal(got, []string{middle.ID}) {
			t.Errorf("an outer peer is connected to %v, want %s only", got, middle.ID)
		}
	}
}

// A node is stopped, one value of its configuration is changed, and it is started:
// it is the same peer and has the same blocks, another exchange runs, the files
// still read, and the next comes from a peer that the node could not fetch from
// before.
func TestSwap(t *testing.T) {
	dir := nodetest.Repo(t, host.Bitswap)
	old := nodetest.Launch(t, "with Bitswap", dir)
	bitswap, codex := start(t, "bitswap", host.Bitswap), start(t, "codex", host.Blockexc)
	must(t, "connect to the Bitswap peer", old.Connect(bitswap.Addr))
	files := make(map[string]string) // SHA-256 by root
	content, sum := random(10, 6<<20)
	added, err := old.Add(content, 64<<10)
	must(t, "add file", err)
	files[added] = sum
	content, sum = random(11, 6<<20)
	fetched, err := bitswap.Add(content, 64<<10)
	must(t, "add file at the Bitswap peer", err)
	_, err = old.Fetch(fetched)
	must(t, "fetch by Bitswap", err)
	files[fetched] = sum
	before := old.Stored()
	old.Stop()

	nodetest.SetUse(t, dir, host.Blockexc)
	n := nodetest.Launch(t, "with Codex", dir)
	if n.ID != old.ID {
		t.Errorf("the peer is %s, want %s as before", n.ID, old.ID)
	}
	if got := n.Stored(); len(got.Keys) != len(before.Keys) || got.Sum != before.Sum {
		t.Errorf("%d blocks with sum %s, want %d with %s as before", len(got.Keys), got.Sum, len(before.Keys), before.Sum)
	}
	if x := n.Status().Exchanges; len(x) != 1 || x[0].Name != host.Blockexc || x[0].State != "running" {
		t.Errorf("exchanges are %+v, want %s alone, running", x, host.Blockexc)
	}
	must(t, "connect to the Codex peer", n.Connect(codex.Addr))
	content, sum = random(12, 6<<20)
	next, err := codex.Add(content, 64<<10)
	must(t, "add file at the Codex peer", err)
	_, err = n.Fetch(next)
	must(t, "fetch by Codex", err)
	files[next] = sum
	for root, want := range files {
		if got, err := n.Sum(root); err != nil || got != want {
			t.Errorf("file %s: SHA-256 is %q, %v, want %s", root, got, err, want)
		}
	}
	for _, root := range []string{added, fetched} {
		if got, err := codex.Fetch(root); err != nil || got != files[root] {
			t.Errorf("the Codex peer fetches %s: SHA-256 is %q, %v, want %s", root, got, err, files[root])
		}
	}
}
