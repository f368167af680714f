// Package merkle owns Codex's Merkle trees over datasets: building them, proving
// that a block stands at an index, and checking such proofs, which [VerifyLeaf]
// does for every block of a dataset that comes from a peer.
//
// The leaves of a tree are the sha2-256 digests of the blocks, in order. A parent
// is the digest of its children and of one byte, the key, which says whether the
// children are leaves and whether the right one is missing; 32 zero bytes stand
// for a missing one. There is always at least one layer above the leaves, so
// the root of a single leaf is not that leaf. The CID of a tree is its root,
// wrapped (package codex).
//
// Only trees over sha2-256 are known here, which is all the block exchange uses:
// anything else is refused. How large a dataset is and what it is called is for
// package manifest; storing leaves and proofs is for the user of both.
package merkle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
)

// A Digest is a node of a tree: the sha2-256 digest of a block, or of two nodes
// below it.
type Digest [sha256.Size]byte

// String gives the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// absent stands for the right child of a node that has none.
var absent Digest

// Bits of the key of a parent.
const (
	keyBottom = 1 // the children are leaves
	keyOdd    = 2 // the right child is missing
)

func parent(left, right *Digest, key byte) Digest {
	var b [2*sha256.Size + 1]byte
	copy(b[:], left[:])
	copy(b[sha256.Size:], right[:])
	b[2*sha256.Size] = key
	return sha256.Sum256(b[:])
}

// Depth is the number of layers above the leaves in a tree of n leaves, and the
// number of nodes in its proofs: at least 1. Depth(0) is 0, there is no such tree.
func Depth(n uint64) int {
	if n == 0 {
		return 0
	}
	return max(1, bits.Len64(n-1))
}

// above is the length of the layer over one of m nodes.
func above(m uint64) uint64 { return m/2 + m%2 }

// size is the number of all nodes of a tree of n leaves, n ≥ 1.
func size(n uint64) uint64 {
	total := n
	for range Depth(n) {
		n = above(n)
		total += n
	}
	return total
}

// A Tree holds all nodes of a Merkle tree, about 64 bytes per leaf. It does not
// change once it is built: its methods may be called from any goroutine.
type Tree struct {
	nodes  []Digest // layer by layer, leaves first, root last
	leaves uint64
}

// Build makes the tree over leaves, which it copies. No leaves are an error of
// kind [errs.Invalid]: an empty dataset has no tree.
func Build(leaves []Digest) (*Tree, error) {
	var b Builder
	b.Grow(uint64(len(leaves)))
	b.nodes = append(b.nodes, leaves...)
	return b.Tree()
}

// A Builder collects the leaves of a tree whose number need not be known
// beforehand. The zero Builder is empty and ready to use, by one goroutine at a
// time.
type Builder struct {
	nodes []Digest
}

// Grow makes room for n more leaves and the tree over them.
func (b *Builder) Grow(n uint64) {
	if n > 0 {
		b.nodes = slices.Grow(b.nodes, int(size(uint64(len(b.nodes))+n))-len(b.nodes))
	}
}

// Add appends a leaf: the digest of the next block.
func (b *Builder) Add(leaf Digest) { b.nodes = append(b.nodes, leaf) }

// Len is the number of leaves added.
func (b *Builder) Len() uint64 { return uint64(len(b.nodes)) }

// Tree builds the tree over the leaves added, and empties the Builder. Without
// leaves the error is of kind [errs.Invalid].
func (b *Builder) Tree() (*Tree, error) {
	n := b.Len()
	if n == 0 {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "build tree", "got no leaves, want at least 1")
	}
	total := int(size(n))
	t := &Tree{nodes: slices.Grow(b.nodes, total-len(b.nodes))[:total], leaves: n}
	b.nodes = nil
	for at, node := range t.parents() {
		t.nodes[at] = node
	}
	return t, nil
}

// parents computes every node above the leaves from the nodes below it, in the
// order of t.nodes, and yields its position and value. A node must be in its
// place before the layer above it is reached.
func (t *Tree) parents() iter.Seq2[uint64, Digest] {
	return func(yield func(uint64, Digest) bool) {
		var layer uint64
		m, key := t.leaves, byte(keyBottom)
		for range Depth(t.leaves) {
			at := layer + m
			for k := uint64(0); k+1 < m; k += 2 {
				if !yield(at, parent(&t.nodes[layer+k], &t.nodes[layer+k+1], key)) {
					return
				}
				at++
			}
			if m%2 == 1 && !yield(at, parent(&t.nodes[layer+m-1], &absent, key|keyOdd)) {
				return
			}
			layer, m, key = layer+m, above(m), 0
		}
	}
}

// Root is the topmost node.
func (t *Tree) Root() Digest { return t.nodes[len(t.nodes)-1] }

// Cid is the CID of the tree.
func (t *Tree) Cid() cid.Cid { return codex.TreeCid(t.Root()) }

// Len is the number of leaves.
func (t *Tree) Len() uint64 { return t.leaves }

// Leaf returns leaf i, the digest of block i. If there is none the error is of
// kind [errs.NotFound].
func (t *Tree) Leaf(i uint64) (Digest, error) {
	if err := t.has(i); err != nil {
		return Digest{}, err
	}
	return t.nodes[i], nil
}

// Proof returns the proof of leaf i. If there is none the error is of kind
// [errs.NotFound].
func (t *Tree) Proof(i uint64) (Proof, error) {
	if err := t.has(i); err != nil {
		return Proof{}, err
	}
	p := Proof{Index: i, Leaves: t.leaves, Path: make([]Digest, Depth(t.leaves))}
	var layer uint64
	k, m := i, t.leaves
	for d := range p.Path {
		if sibling := k ^ 1; sibling < m {
			p.Path[d] = t.nodes[layer+sibling]
		}
		layer, k, m = layer+m, k/2, above(m)
	}
	return p, nil
}

func (t *Tree) has(i uint64) error {
	if i >= t.leaves {
		return errs.Errorf(errs.NotFound, errs.Caller, fmt.Sprintf("leaf %d of tree %s", i, codex.String(t.Cid())),
			"index is %d, want less than %d", i, t.leaves)
	}
	return nil
}

// Fields of an encoded tree. A node is a sub-message.
const (
	treeHash   = 1
	treeLeaves = 2
	treeNode   = 3
)

// Marshal encodes the tree with all its nodes, about 72 bytes per leaf. Nodes
// store trees like this; they do not send them to each other.
func (t *Tree) Marshal() []byte {
	b := make([]byte, 0, 3+varintLen+len(t.nodes)*nodeLen)
	b = protowire.AppendTag(b, treeHash, protowire.VarintType)
	b = protowire.AppendVarint(b, multihash.SHA2_256)
	b = protowire.AppendTag(b, treeLeaves, protowire.VarintType)
	b = protowire.AppendVarint(b, t.leaves)
	for i := range t.nodes {
		b = appendNode(b, treeNode, &t.nodes[i])
	}
	return b
}

// Unmarshal decodes a tree and computes every node anew: the tree it returns is
// the one that Build makes of its leaves. Errors are of kind [errs.Malformed].
func Unmarshal(b []byte) (*Tree, error) {
	t, err := unmarshal(b)
	if err != nil {
		return nil, errs.E(errs.Malformed, errs.Caller, "decode tree", "", err)
	}
	return t, nil
}

func unmarshal(b []byte) (*Tree, error) {
	var hash uint64
	t := &Tree{nodes: make([]Digest, 0, len(b)/nodeLen)}
	for len(b) > 0 {
		f, rest, err := codex.NextField(b)
		if err != nil {
			return nil, err
		}
		b = rest
		switch {
		case f.Num == treeHash && f.Type == protowire.VarintType:
			hash = f.Varint
		case f.Num == treeLeaves && f.Type == protowire.VarintType:
			t.leaves = f.Varint
		case f.Num == treeNode && f.Type == protowire.BytesType:
			node, err := readNode(f.Bytes)
			if err != nil {
				return nil, fmt.Errorf("node %d: %w", len(t.nodes), err)
			}
			t.nodes = append(t.nodes, node)
		}
	}

	if hash != multihash.SHA2_256 {
		return nil, errHash(hash)
	}
	// Compare with the nodes that are there before computing with the number.
	if t.leaves == 0 {
		return nil, errors.New("tree has no leaves, want at least 1")
	}
	if n := uint64(len(t.nodes)); t.leaves > n || size(t.leaves) != n {
		return nil, fmt.Errorf("%d nodes do not make a tree of %d leaves", n, t.leaves)
	}
	for at, want := range t.parents() {
		if got := t.nodes[at]; got != want {
			return nil, fmt.Errorf("node %d is %v, want %v, which its children make", at, got, want)
		}
	}
	return t, nil
}
