package merkle_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/merkle"
)

type treeVector struct {
	LeafCount   uint64
	Depth       int
	Leaves      []string // if empty: block i is 64 KiB of the byte i
	Root        string
	RootCid     struct{ Str, Bytes string }
	Proofs      []proofVector
	EncodedTree string
}

type proofVector struct {
	Index, NLeaves uint64
	Path           []string
	Encoded        string
}

func vectors(t *testing.T) (sha256Trees, sha512Trees []treeVector) {
	t.Helper()
	text, err := os.ReadFile("testdata/trees.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Trees, ASCIITrees, SHA512Trees []treeVector }
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Trees) == 0 || len(v.ASCIITrees) == 0 || len(v.SHA512Trees) == 0 {
		t.Fatal("vectors are missing")
	}
	return slices.Concat(v.Trees, v.ASCIITrees), v.SHA512Trees
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func digest(t testing.TB, s string) merkle.Digest {
	t.Helper()
	b := unhex(t, s)
	if len(b) != len(merkle.Digest{}) {
		t.Fatalf("digest is %d bytes", len(b))
	}
	return merkle.Digest(b)
}

// leavesOf gives the leaves a vector lists, or those of its blocks.
func (v treeVector) leavesOf(t *testing.T) []merkle.Digest {
	leaves := make([]merkle.Digest, v.LeafCount)
	for i := range leaves {
		if v.Leaves != nil {
			leaves[i] = digest(t, v.Leaves[i])
		} else {
			leaves[i] = sha256.Sum256(bytes.Repeat([]byte{byte(i)}, 64<<10))
		}
	}
	return leaves
}

// bytesAsLeaves gives n leaves, the digests of the single bytes 0, 1, 2 ….
func bytesAsLeaves(n int) []merkle.Digest {
	leaves := make([]merkle.Digest, n)
	for i := range leaves {
		leaves[i] = sha256.Sum256([]byte{byte(i)})
	}
	return leaves
}

func build(t testing.TB, leaves []merkle.Digest) *merkle.Tree {
	t.Helper()
	tree, err := merkle.Build(leaves)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func proofOf(t testing.TB, tree *merkle.Tree, i uint64) merkle.Proof {
	t.Helper()
	p, err := tree.Proof(i)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sameProof reports whether two proofs say the same.
func sameProof(p, q merkle.Proof) bool {
	return p.Index == q.Index && p.Leaves == q.Leaves && slices.Equal(p.Path, q.Path)
}

// wantError checks the kind of an error, whose fault it is, and part of its text.
func wantError(t *testing.T, what string, err error, kind errs.Kind, fault errs.Fault, text string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Fault != fault || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got error %v, want kind %q, fault of %v, text with %q", what, err, kind, fault, text)
	}
}

// Roots, CIDs, proofs and encoded trees are those of the vectors, in both
// directions, and every proof verifies.
func TestVectors(t *testing.T) {
	trees, _ := vectors(t)
	for i, v := range trees {
		t.Run(fmt.Sprintf("%d of %d leaves", i, v.LeafCount), func(t *testing.T) {
			tree := build(t, v.leavesOf(t))
			if got := tree.Root(); got != digest(t, v.Root) {
				t.Errorf("root: got %v, want %s", got, v.Root)
			}
			if got := codex.String(tree.Cid()); got != v.RootCid.Str {
				t.Errorf("cid: got %s, want %s", got, v.RootCid.Str)
			}
			if got := tree.Len(); got != v.LeafCount {
				t.Errorf("leaves: got %d, want %d", got, v.LeafCount)
			}
			if got := merkle.Depth(v.LeafCount); v.Depth != 0 && got != v.Depth {
				t.Errorf("depth: got %d, want %d", got, v.Depth)
			}

			for _, pv := range v.Proofs {
				p := proofOf(t, tree, pv.Index)
				want := merkle.Proof{Index: pv.Index, Leaves: pv.NLeaves}
				for _, node := range pv.Path {
					want.Path = append(want.Path, digest(t, node))
				}
				if !sameProof(p, want) {
					t.Errorf("proof of leaf %d: got %v, want %v", pv.Index, p, want)
				}
				if got := hex.EncodeToString(p.Marshal()); got != pv.Encoded {
					t.Errorf("proof of leaf %d: got %s, want %s", pv.Index, got, pv.Encoded)
				}
				if q, err := merkle.DecodeProof(unhex(t, pv.Encoded)); err != nil || !sameProof(p, q) {
					t.Errorf("decode proof of leaf %d: got %v, %v, want %v", pv.Index, q, err, p)
				}
				leaf, err := tree.Leaf(pv.Index)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.Verify(tree.Root(), leaf); err != nil {
					t.Error(err)
				}
				if err := merkle.VerifyLeaf(unhex(t, pv.Encoded), tree.Cid(), pv.Index, codex.BlockCidOf(leaf), v.LeafCount); err != nil {
					t.Error(err)
				}
			}

			if v.EncodedTree == "" {
				return
			}
			if got := hex.EncodeToString(tree.Marshal()); got != v.EncodedTree {
				t.Errorf("encoded tree: got %s, want %s", got, v.EncodedTree)
			}
			back, err := merkle.Unmarshal(unhex(t, v.EncodedTree))
			if err != nil {
				t.Fatal(err)
			}
			if back.Root() != tree.Root() || back.Len() != tree.Len() || !bytes.Equal(back.Marshal(), tree.Marshal()) {
				t.Errorf("decoded tree has root %v and %d leaves, want %v and %d", back.Root(), back.Len(), tree.Root(), tree.Len())
			}
		})
	}
}

// Trees over sha2-512 exist, but no dataset is exchanged by them.
func TestSHA512IsRefused(t *testing.T) {
	_, trees := vectors(t)
	for _, v := range trees {
		root, err := cid.Cast(unhex(t, v.RootCid.Bytes))
		if err != nil {
			t.Fatal(err)
		}
		for _, pv := range v.Proofs {
			proof := unhex(t, pv.Encoded)
			_, err := merkle.DecodeProof(proof)
			wantError(t, "decode proof", err, errs.Malformed, errs.Peer, "digest is 64 bytes, want 32")
			err = merkle.VerifyLeaf(proof, root, pv.Index, codex.EmptyBlock, 0)
			wantError(t, "verify leaf", err, errs.Invalid, errs.Caller, "sha2-512 of 64 bytes, want sha2-256")

			// Nodes of the right length do not help, the hash is looked at too.
			short := proofOf(t, build(t, bytesAsLeaves(4)), 0).Marshal()
			short[1] = proof[1]
			_, err = merkle.DecodeProof(short)
			wantError(t, "decode proof", err, errs.Malformed, errs.Peer, "hash is 0x13, want 0x12 (sha2-256)")
		}
	}
}

func TestDepth(t *testing.T) {
	for n, want := range map[uint64]int{
		0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 1 << 20: 20, 1<<20 + 1: 21,
		merkle.MaxLeaves: merkle.MaxDepth, 1 << 63: 63, 1<<64 - 1: 64,
	} {
		if got := merkle.Depth(n); got != want {
			t.Errorf("depth of %d leaves: got %d, want %d", n, got, want)
		}
	}
}

func TestNoLeaves(t *testing.T) {
	_, err := merkle.Build(nil)
	wantError(t, "build", err, errs.Invalid, errs.Caller, "got no leaves, want at least 1")
	var b merkle.Builder
	b.Grow(0)
	_, err = b.Tree()
	wantError(t, "builder", err, errs.Invalid, errs.Caller, "got no leaves, want at least 1")
}

func TestNoSuchLeaf(t *testing.T) {
	tree := build(t, bytesAsLeaves(3))
	for _, i := range []uint64{3, 4, 1 << 32, 1<<64 - 1} {
		_, err := tree.Leaf(i)
		wantError(t, "leaf", err, errs.NotFound, errs.Caller, "want less than 3")
		_, err = tree.Proof(i)
		wantError(t, "proof", err, errs.NotFound, errs.Caller, "want less than 3")
	}
}

// A Builder makes the tree that Build makes, however it grew, and starts anew
// afterwards without touching the tree it gave away.
func TestBuilder(t *testing.T) {
	var b merkle.Builder
	var before *merkle.Tree
	var encoded []byte
	for n := 1; n <= 40; n++ {
		leaves := bytesAsLeaves(n)
		switch n % 3 { // no room, room for some leaves, room for the tree
		case 1:
			b.Grow(uint64(n / 2))
		case 2:
			b.Grow(uint64(n))
		}
		for _, leaf := range leaves {
			b.Add(leaf)
		}
		if b.Len() != uint64(n) {
			t.Errorf("builder has %d leaves, want %d", b.Len(), n)
		}
		tree, err := b.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tree.Marshal(), build(t, leaves).Marshal()) {
			t.Errorf("%d leaves: Builder and Build make different trees", n)
		}
		if b.Len() != 0 {
			t.Errorf("builder has %d leaves after Tree, want 0", b.Len())
		}
		if before != nil && !bytes.Equal(before.Marshal(), encoded) {
			t.Errorf("the tree of %d leaves changed while the next was built", n-1)
		}
		before, encoded = tree, tree.Marshal()
	}
}

// Build does not keep the leaves it is given.
func TestBuildCopies(t *testing.T) {
	leaves := bytesAsLeaves(5)
	tree := build(t, leaves)
	encoded := tree.Marshal()
	clear(leaves)
	if !bytes.Equal(tree.Marshal(), encoded) {
		t.Error("tree changed with the slice it was built from")
	}
}

// A decoded tree is computed anew: one wrong bit anywhere is found.
func TestUnmarshalComputesEveryNode(t *testing.T) {
	encoded := build(t, bytesAsLeaves(11)).Marshal()
	for at := range encoded {
		for bit := range 8 {
			bad := bytes.Clone(encoded)
			bad[at] ^= 1 << bit
			if tree, err := merkle.Unmarshal(bad); !errors.Is(err, errs.Malformed) {
				t.Errorf("bit %d of byte %d flipped: got tree %v, %v, want an error of kind malformed", bit, at, tree, err)
			}
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	good := hex.EncodeToString(build(t, bytesAsLeaves(3)).Marshal())
	const head = "08121003"
	nodes := good[len(head):]
	node := nodes[:72]
	for _, c := range []struct{ name, msg, err string }{
		{"nothing", "", "hash is 0x0"},
		{"no nodes", head, "0 nodes do not make a tree of 3 leaves"},
		{"no leaves", "08121000" + nodes, "tree has no leaves"},
		{"number of leaves missing", "0812" + nodes, "tree has no leaves"},
		{"another hash", "08131003" + nodes, "hash is 0x13"},
		{"a node less", head + nodes[72:], "5 nodes do not make a tree of 3 leaves"},
		{"a node more", good + node, "7 nodes do not make a tree of 3 leaves"},
		{"more leaves than nodes", "081210ffffffffffffffffff01" + nodes, "6 nodes do not make a tree of 18446744073709551615 leaves"},
		{"empty node", head + nodes[72:] + "1a00", "node 5: digest is 0 bytes, want 32"},
		{"short node", head + nodes[72:] + "1a040a02aabb", "node 5: digest is 2 bytes, want 32"},
		{"first node last", head + nodes[72:] + node, "which its children make"},
		{"garbage", good + "ff", "varint is cut short"},
	} {
		_, err := merkle.Unmarshal(unhex(t, c.msg))
		wantError(t, c.name, err, errs.Malformed, errs.Caller, c.err)
	}

	// Unknown fields and repeated numbers are fine, the last one counts.
	tree, err := merkle.Unmarshal(unhex(t, "0813"+"7805"+good+"7a0101"+"1003"))
	if err != nil || hex.EncodeToString(tree.Marshal()) != good {
		t.Errorf("tree with unknown fields: got %v, %v", tree, err)
	}
}
