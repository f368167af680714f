package refpeer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"github.com/ipfs/go-cid"
)

// Keys of the compression: bit 0 for the layer above the leaves, bit 1 for a
// node whose right child is missing.
const (
	bottomKey = 1
	oddKey    = 2
)

var noChild [32]byte // stands where a right child is missing

// A Proof is the path from one leaf to the root of a tree, as deliveries carry
// it. It does not hold the leaf.
type Proof struct {
	Hash   uint64 // multihash code, 0x12 for sha2-256
	Index  uint64
	Leaves uint64   // number of leaves of the tree
	Path   [][]byte // siblings from the bottom up, 32 zero bytes where there is none
}

// compress is the parent of two nodes. The key comes last.
func compress(left, right []byte, key byte) [32]byte {
	h := sha256.New()
	h.Write(left)
	h.Write(right)
	h.Write([]byte{key})
	return [32]byte(h.Sum(nil))
}

// layers builds a tree from at least one leaf: the leaves first, the layer of
// the root last. Even a single leaf is compressed once.
func layers(leaves [][32]byte) [][][32]byte {
	tree := [][][32]byte{leaves}
	key := byte(bottomKey)
	for at := leaves; len(tree) == 1 || len(at) > 1; key = 0 {
		above := make([][32]byte, 0, (len(at)+1)/2)
		for i := 0; i < len(at); i += 2 {
			if i+1 < len(at) {
				above = append(above, compress(at[i][:], at[i+1][:], key))
			} else {
				above = append(above, compress(at[i][:], noChild[:], key|oddKey))
			}
		}
		tree = append(tree, above)
		at = above
	}
	return tree
}

func rootOf(tree [][][32]byte) [32]byte { return tree[len(tree)-1][0] }

// prove makes the proof of leaf i.
func prove(tree [][][32]byte, i int) Proof {
	p := Proof{Hash: sha256Code, Index: uint64(i), Leaves: uint64(len(tree[0]))}
	for _, layer := range tree[:len(tree)-1] {
		sibling := noChild
		if s := i ^ 1; s < len(layer) {
			sibling = layer[s]
		}
		p.Path = append(p.Path, sibling[:])
		i >>= 1
	}
	return p
}

// evaluate gives the root that a proof leads to from a leaf.
func (p Proof) evaluate(leaf []byte) []byte {
	h, j, m := leaf, p.Index, p.Leaves
	key := byte(bottomKey)
	for _, node := range p.Path {
		var up [32]byte
		switch {
		case j&1 == 1:
			up = compress(node, h, key)
		case j+1 == m:
			up = compress(h, node, key|oddKey)
		default:
			up = compress(h, node, key)
		}
		h, key, j, m = up[:], 0, j>>1, (m+1)>>1
	}
	return h
}

// depth is the number of compressions between a leaf and the root.
func depth(leaves uint64) int {
	if leaves < 2 {
		return 1
	}
	return bits.Len64(leaves - 1)
}

// checkProof refuses what the reference refuses of a leaf: no proof, another
// index, another hash. It does not ask where the proof leads.
func checkProof(block cid.Cid, a Address, p *Proof) (leaf, root []byte, err error) {
	if p == nil {
		return nil, nil, errors.New("no proof")
	}
	if p.Index != a.Index {
		return nil, nil, fmt.Errorf("proof is of index %d, want %d", p.Index, a.Index)
	}
	code, leaf, err := digest(block)
	if err != nil {
		return nil, nil, fmt.Errorf("block cid: %w", err)
	}
	treeCode, root, err := digest(a.Cid)
	if err != nil {
		return nil, nil, fmt.Errorf("tree cid: %w", err)
	}
	if p.Hash != code || p.Hash != treeCode {
		return nil, nil, fmt.Errorf("proof by hash 0x%x, block 0x%x, tree 0x%x, want the same", p.Hash, code, treeCode)
	}
	return leaf, root, nil
}

// verify does what the reference does and then what it forgets: the proof has
// the shape of a tree of that many leaves, and leads to the root.
func verify(block cid.Cid, a Address, p *Proof) error {
	leaf, root, err := checkProof(block, a, p)
	if err != nil {
		return err
	}
	if p.Hash != sha256Code {
		return fmt.Errorf("proof by hash 0x%x, want sha2-256", p.Hash)
	}
	if p.Index >= p.Leaves {
		return fmt.Errorf("proof of index %d in a tree of %d leaves", p.Index, p.Leaves)
	}
	if want := depth(p.Leaves); len(p.Path) != want {
		return fmt.Errorf("proof of %d nodes for %d leaves, want %d", len(p.Path), p.Leaves, want)
	}
	j, m := p.Index, p.Leaves
	for i, node := range p.Path {
		if len(node) != 32 {
			return fmt.Errorf("proof node %d is %d bytes, want 32", i, len(node))
		}
		if j&1 == 0 && j+1 == m && !bytes.Equal(node, noChild[:]) {
			return fmt.Errorf("proof node %d is %x where the tree has none, want zeros", i, node)
		}
		j, m = j>>1, (m+1)>>1
	}
	if got := p.evaluate(leaf); !bytes.Equal(got, root) {
		return fmt.Errorf("proof leads to root %x, want %x", got, root)
	}
	return nil
}
