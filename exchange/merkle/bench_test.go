package merkle_test

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// manyLeaves gives n different leaves.
func manyLeaves(n int) []merkle.Digest {
	leaves := make([]merkle.Digest, n)
	for i := range leaves {
		leaves[i] = sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	}
	return leaves
}

// A tree of a million leaves: a dataset of 61 GiB in blocks of 64 KiB.
func BenchmarkBuild(b *testing.B) {
	leaves := manyLeaves(1_000_000)
	b.ReportAllocs()
	for b.Loop() {
		build(b, leaves)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(leaves)), "ns/leaf")
}

// The check of a received leaf of a dataset of 64 GiB.
func BenchmarkVerifyLeaf(b *testing.B) {
	leaves := manyLeaves(1 << 20)
	tree := build(b, leaves)
	const index = 12345
	proof, root, block := proofOf(b, tree, index).Marshal(), tree.Cid(), codex.BlockCidOf(leaves[index])
	b.ReportAllocs()
	for b.Loop() {
		if err := merkle.VerifyLeaf(proof, root, index, block, tree.Len()); err != nil {
			b.Fatal(err)
		}
	}
}

// Making the encoded proof of a leaf of the same dataset.
func BenchmarkProof(b *testing.B) {
	tree := build(b, manyLeaves(1<<20))
	buf := make([]byte, 0, merkle.MaxProofSize)
	b.ReportAllocs()
	for b.Loop() {
		buf = proofOf(b, tree, 12345).Append(buf[:0])
	}
}

// Reading a stored tree of 100,000 leaves, which computes all of it anew.
func BenchmarkUnmarshal(b *testing.B) {
	encoded := build(b, manyLeaves(100_000)).Marshal()
	b.SetBytes(int64(len(encoded)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := merkle.Unmarshal(encoded); err != nil {
			b.Fatal(err)
		}
	}
}
