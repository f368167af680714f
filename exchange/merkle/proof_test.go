package merkle_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// Of every tree of 1 to 40 leaves, every proof verifies for its leaf, index,
// root and number of leaves, and for nothing else.
func TestProofsProveOnlyTheirLeaf(t *testing.T) {
	for n := 1; n <= 40; n++ {
		leaves := bytesAsLeaves(n)
		tree, count := build(t, leaves), uint64(n)
		for i, leaf := range leaves {
			index, block := uint64(i), codex.BlockCidOf(leaf)
			p := proofOf(t, tree, index)
			encoded := p.Marshal()
			verify := func(proof []byte, index uint64, block cid.Cid) error {
				return merkle.VerifyLeaf(proof, tree.Cid(), index, block, count)
			}
			if err := verify(encoded, index, block); err != nil {
				t.Fatal(err)
			}
			if err := merkle.VerifyLeaf(encoded, tree.Cid(), index, block, 0); err != nil {
				t.Fatalf("number of leaves unknown: %v", err)
			}
			refused := func(what string, err error) {
				t.Helper()
				wantError(t, fmt.Sprintf("leaf %d of %d, %s", i, n, what), err, errs.BadProof, errs.Peer, "")
			}

			// One bit of each byte, another one for each leaf.
			for at := range encoded {
				bad := bytes.Clone(encoded)
				bad[at] ^= 1 << ((at + i) % 8)
				if q, err := merkle.DecodeProof(bad); err == nil && sameProof(p, q) {
					continue // an explicit zero has become an unknown field
				}
				refused(fmt.Sprintf("byte %d changed", at), verify(bad, index, block))
			}
			for at := range leaf {
				bad := leaf
				bad[at] ^= 1 << ((at + i) % 8)
				refused("another block", verify(encoded, index, codex.BlockCidOf(bad)))
			}
			other := tree.Root()
			other[i%32] ^= 1
			refused("another root", merkle.VerifyLeaf(encoded, codex.TreeCid(other), index, block, count))
			refused("cut short", verify(encoded[:len(encoded)-1], index, block))
			refused("with garbage after it", verify(append(bytes.Clone(encoded), 0xff), index, block))

			for j := range uint64(2*n + 2) {
				if j == index {
					continue
				}
				refused(fmt.Sprintf("asked for index %d", j), verify(encoded, j, block))
				shifted := p
				shifted.Index = j
				refused(fmt.Sprintf("claiming index %d", j), verify(shifted.Marshal(), j, block))
			}
			for m := range uint64(2*n + 2) {
				if m == count {
					continue
				}
				other := p
				other.Leaves = m
				refused(fmt.Sprintf("claiming %d leaves", m), verify(other.Marshal(), index, block))
				if merkle.Depth(m) != merkle.Depth(count) {
					refused(fmt.Sprintf("claiming %d leaves of unknown", m), other.Verify(tree.Root(), leaf))
				}
			}
		}
	}
}

// No claim of index and number of leaves makes a path stand for a second index,
// even if the true number of leaves is not known to the one who checks.
func TestNoSecondIndex(t *testing.T) {
	for n := 1; n <= 9; n++ {
		leaves := bytesAsLeaves(n)
		tree := build(t, leaves)
		for i, leaf := range leaves {
			p := proofOf(t, tree, uint64(i))
			for index := range uint64(34) {
				for count := range uint64(66) {
					p.Index, p.Leaves = index, count
					if err := p.Verify(tree.Root(), leaf); err == nil && index != uint64(i) {
						t.Errorf("leaf %d of %d passes for leaf %d of %d", i, n, index, count)
					}
				}
			}
		}
	}
}

// The hashing alone would let the first leaf of five pass for index 8 of 1000,
// because its path is hashed alike; the depth gives it away.
func TestShortPathInDeepTree(t *testing.T) {
	leaves := bytesAsLeaves(5)
	tree := build(t, leaves)
	p := proofOf(t, tree, 0)
	p.Index, p.Leaves = 8, 1000
	wantError(t, "verify", p.Verify(tree.Root(), leaves[0]), errs.BadProof, errs.Peer, "path has 3 nodes, want 10 for 1000 leaves")
	err := merkle.VerifyLeaf(p.Marshal(), tree.Cid(), 8, codex.BlockCidOf(leaves[0]), 0)
	wantError(t, "verify leaf", err, errs.BadProof, errs.Peer, "path has 3 nodes, want 10 for 1000 leaves")
}

func TestVerifyRefusesImpossibleShapes(t *testing.T) {
	leaf := bytesAsLeaves(1)[0]
	tree := build(t, []merkle.Digest{leaf})
	true0 := proofOf(t, tree, 0)

	// A tree of one leaf whose missing sibling is not zero, with the root that
	// belongs to it.
	sibling := merkle.Digest{31: 1}
	forged := merkle.Digest(sha256.Sum256(append(append(leaf[:], sibling[:]...), 3)))

	for _, c := range []struct {
		name string
		p    merkle.Proof
		root merkle.Digest
		err  string
	}{
		{"no leaves", merkle.Proof{Index: 0, Leaves: 0, Path: true0.Path}, tree.Root(), "index is 0, want less than the 0 leaves"},
		{"index is the number of leaves", merkle.Proof{Index: 1, Leaves: 1, Path: true0.Path}, tree.Root(), "index is 1, want less than the 1 leaves"},
		{"no path", merkle.Proof{Index: 0, Leaves: 1}, leaf, "path has 0 nodes, want 1 for 1 leaves"},
		{"path too long", merkle.Proof{Index: 0, Leaves: 1, Path: make([]merkle.Digest, 2)}, tree.Root(), "path has 2 nodes, want 1 for 1 leaves"},
		{"as many leaves as can be written", merkle.Proof{Index: 1<<64 - 2, Leaves: 1<<64 - 1, Path: make([]merkle.Digest, 64)}, tree.Root(), "path leads to"},
		{"missing sibling is not zero", merkle.Proof{Index: 0, Leaves: 1, Path: []merkle.Digest{sibling}}, forged, "there is no such sibling in a tree of 1 leaves"},
		{"another root", true0, leaf, "path leads to " + tree.Root().String() + ", want " + leaf.String()},
	} {
		wantError(t, c.name, c.p.Verify(c.root, leaf), errs.BadProof, errs.Peer, c.err)
	}
}

func TestVerifyLeafRefuses(t *testing.T) {
	leaves := bytesAsLeaves(5)
	tree := build(t, leaves)
	proof, block := proofOf(t, tree, 4).Marshal(), codex.BlockCidOf(leaves[4])
	rawCid := cid.NewCidV1(cid.Raw, block.Hash())
	poseidon := cid.NewCidV1(codex.BlockCodec, append([]byte{0x90, 0x9a, 0x03, 0x20}, leaves[4][:]...))

	for _, c := range []struct {
		name   string
		proof  []byte
		tree   cid.Cid
		index  uint64
		block  cid.Cid
		leaves uint64
		kind   errs.Kind
		fault  errs.Fault
		err    string
	}{
		{"no proof", nil, tree.Cid(), 4, block, 5, errs.BadProof, errs.Peer, "proof is empty"},
		{"malformed proof", []byte{0x0b}, tree.Cid(), 4, block, 5, errs.BadProof, errs.Peer, "wire type 3"},
		{"another index", proof, tree.Cid(), 3, block, 5, errs.BadProof, errs.Peer, "proof is of leaf 4, want 3"},
		{"another number of leaves", proof, tree.Cid(), 4, block, 6, errs.BadProof, errs.Peer, "proof is for a tree of 5 leaves, want 6"},
		{"another block", proof, tree.Cid(), 4, codex.EmptyBlock, 5, errs.BadProof, errs.Peer, "path leads to"},
		{"block of another codec", proof, tree.Cid(), 4, rawCid, 5, errs.BadProof, errs.Peer, "has codec 0x55, want 0xcd02"},
		{"block of another hash", proof, tree.Cid(), 4, poseidon, 5, errs.BadProof, errs.Peer, "0xcd10 of 32 bytes, want sha2-256"},
		{"no block", proof, tree.Cid(), 4, cid.Undef, 5, errs.BadProof, errs.Peer, "has codec 0x0, want 0xcd02"},
		{"tree of another codec", proof, codex.BlockCidOf(tree.Root()), 4, block, 5, errs.Invalid, errs.Caller, "codec is 0xcd02, want 0xcd03"},
		{"no tree", proof, cid.Undef, 4, block, 5, errs.Invalid, errs.Caller, "hash is missing"},
	} {
		err := merkle.VerifyLeaf(c.proof, c.tree, c.index, c.block, c.leaves)
		wantError(t, c.name, err, c.kind, c.fault, c.err)
		for _, k := range errs.Kinds() {
			if k != c.kind && errors.Is(err, k) {
				t.Errorf("%s: error is also of kind %v", c.name, k)
			}
		}
	}
}

// The empty block is a leaf like any other: erasure coded datasets have it.
func TestEmptyBlockAsLeaf(t *testing.T) {
	empty, err := codex.Digest(codex.EmptyBlock)
	if err != nil {
		t.Fatal(err)
	}
	tree := build(t, append(bytesAsLeaves(2), empty))
	if err := merkle.VerifyLeaf(proofOf(t, tree, 2).Marshal(), tree.Cid(), 2, codex.EmptyBlock, 3); err != nil {
		t.Error(err)
	}
}

func TestDecodeProof(t *testing.T) {
	want := proofOf(t, build(t, bytesAsLeaves(3)), 1)
	good := hex.EncodeToString(want.Marshal())
	const head = "081210011803"
	node := "22220a20" + strings.Repeat("ab", 32)
	nodes := good[len(head):]

	for _, c := range []struct{ name, msg, err string }{
		{name: "as encoded", msg: good},
		{name: "unknown fields between", msg: "0812" + "7805" + "1001" + "7a020102" + "1803" + nodes[:72] + "0d01020304" + nodes[72:]},
		{name: "known numbers with other types", msg: good + "0a0101" + "1201aa" + "2005"},
		{name: "last one wins", msg: "08131007187f" + good},
		{name: "other order", msg: nodes[:72] + "1803" + "1001" + nodes[72:] + "0812"},
		{name: "unknown field in a node", msg: head + "2225" + "10aa01" + nodes[4:72] + nodes[72:]},
		{name: "last digest in a node wins", msg: head + "2225" + "0a01ff" + nodes[4:72] + nodes[72:]},

		{name: "empty", msg: "", err: "proof is empty"},
		{name: "no hash", msg: "10011803" + nodes, err: "hash is 0x0, want 0x12"},
		{name: "another hash", msg: "081610011803" + nodes, err: "hash is 0x16, want 0x12"},
		{name: "no path", msg: head, err: "path has no nodes"},
		{name: "node without digest", msg: good + "2200", err: "node 2 of the path: digest is 0 bytes, want 32"},
		{name: "node of 31 bytes", msg: head + "22210a1f" + strings.Repeat("00", 31), err: "node 0 of the path: digest is 31 bytes, want 32"},
		{name: "node of 33 bytes", msg: head + "22230a21" + strings.Repeat("00", 33), err: "node 0 of the path: digest is 33 bytes, want 32"},
		{name: "node that is no message", msg: head + "2220" + strings.Repeat("ff", 32), err: "node 0 of the path: tag: varint"},
		{name: "64 nodes", msg: head + strings.Repeat(node, 64), err: "path has more than 63 nodes"},
		{name: "index beyond int64", msg: "0812" + "1080808080808080808001" + "1803" + nodes, err: "index is 9223372036854775808, want at most 9223372036854775807"},
		{name: "leaves beyond int64", msg: "08121001" + "1880808080808080808001" + nodes, err: "number of leaves is 9223372036854775808, want at most"},
		{name: "cut", msg: good[:len(good)-2], err: "field 4: length is 34, but 33 bytes are left"},
		{name: "garbage", msg: good + "00", err: "no such field number"},
		{name: "padded varint", msg: "0812" + "108100" + "1803" + nodes, err: "shortest form"},
		{name: "too long", msg: good + "7a8080" + "01" + strings.Repeat("00", 16<<10), err: "want at most 16384"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := merkle.DecodeProof(unhex(t, c.msg))
			if c.err != "" {
				wantError(t, "decode", err, errs.Malformed, errs.Peer, c.err)
				return
			}
			if err != nil || !sameProof(got, want) {
				t.Errorf("got %v, %v, want %v", got, err, want)
			}
		})
	}
}

// The longest proof there can be is read, and is as long as the comment says.
func TestLongestProof(t *testing.T) {
	p := merkle.Proof{Index: merkle.MaxLeaves - 1, Leaves: merkle.MaxLeaves, Path: make([]merkle.Digest, merkle.MaxDepth)}
	encoded := p.Marshal()
	if len(encoded) != 2290 {
		t.Errorf("longest proof is %d bytes, want 2290", len(encoded))
	}
	if q, err := merkle.DecodeProof(encoded); err != nil || !sameProof(p, q) {
		t.Errorf("got %v, %v, want %v", q, err, p)
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	p := proofOf(t, build(t, bytesAsLeaves(2)), 1)
	if got := p.Append([]byte("before")); string(got) != "before"+string(p.Marshal()) {
		t.Errorf("got %q", got)
	}
}

func TestVerifyLeafDoesNotAllocate(t *testing.T) {
	leaves := bytesAsLeaves(100)
	tree := build(t, leaves)
	proof, root, block := proofOf(t, tree, 98).Marshal(), tree.Cid(), codex.BlockCidOf(leaves[98])
	if n := testing.AllocsPerRun(100, func() {
		if err := merkle.VerifyLeaf(proof, root, 98, block, 100); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}
