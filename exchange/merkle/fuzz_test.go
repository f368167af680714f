package merkle_test

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// What decodes, encodes to a proof of the same meaning. And of whatever bytes
// verify against the trees here, index, path and leaf are the true ones.
func FuzzProof(f *testing.F) {
	var trees []*merkle.Tree
	for _, n := range []int{1, 2, 3, 5, 8, 9} {
		tree := build(f, bytesAsLeaves(n))
		trees = append(trees, tree)
		for i := range tree.Len() {
			f.Add(proofOf(f, tree, i).Marshal())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := merkle.DecodeProof(b)
		if err != nil {
			return
		}
		encoded := p.Marshal()
		q, err := merkle.DecodeProof(encoded)
		if err != nil || !sameProof(p, q) {
			t.Fatalf("decoded %v, encoded %x, decoded %v, %v", p, encoded, q, err)
		}
		if len(encoded) > len(b)+6 { // the scalars that were left out
			t.Fatalf("encoded proof is %d bytes, was decoded from %d", len(encoded), len(b))
		}

		for _, tree := range trees {
			for i := range tree.Len() {
				leaf, err := tree.Leaf(i)
				if err != nil {
					t.Fatal(err)
				}
				truth := proofOf(t, tree, i)
				verifies := p.Verify(tree.Root(), leaf) == nil
				if verifies && (p.Index != i || !slices.Equal(p.Path, truth.Path)) {
					t.Fatalf("%v verifies for leaf %d of %d, whose proof is %v", p, i, tree.Len(), truth)
				}
				if sameProof(p, truth) && !verifies {
					t.Fatalf("the proof %v of leaf %d of %d does not verify", p, i, tree.Len())
				}
				// Encoded, with the number of leaves known, only the true proof passes.
				err = merkle.VerifyLeaf(b, tree.Cid(), i, codex.BlockCidOf(leaf), tree.Len())
				if (err == nil) != sameProof(p, truth) {
					t.Fatalf("VerifyLeaf of %v for leaf %d of %d: %v, the true proof is %v", p, i, tree.Len(), err, truth)
				}
			}
		}
	})
}

// What decodes is the tree over its own leaves, and encodes to a tree of the same
// meaning.
func FuzzTree(f *testing.F) {
	for _, n := range []int{1, 2, 3, 5, 8, 9} {
		f.Add(build(f, bytesAsLeaves(n)).Marshal())
	}
	if b, err := hex.DecodeString("08137805081210ff01"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := merkle.Unmarshal(b)
		if err != nil {
			return
		}
		encoded := tree.Marshal()
		again, err := merkle.Unmarshal(encoded)
		if err != nil || !bytes.Equal(again.Marshal(), encoded) {
			t.Fatalf("decoded a tree of %d leaves, encoded %x: %v", tree.Len(), encoded, err)
		}
		var leaves merkle.Builder
		for i := range tree.Len() {
			leaf, err := tree.Leaf(i)
			if err != nil {
				t.Fatal(err)
			}
			leaves.Add(leaf)
		}
		built, err := leaves.Tree()
		if err != nil || !bytes.Equal(built.Marshal(), encoded) {
			t.Fatalf("decoded a tree of %d leaves that its leaves do not make: %v", tree.Len(), err)
		}
	})
}
