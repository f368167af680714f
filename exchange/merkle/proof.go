package merkle

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// MaxLeaves is the largest number of leaves that a proof may claim. Codex
	// nodes hold indices and numbers of leaves in signed integers.
	MaxLeaves = math.MaxInt64

	// MaxDepth is the largest number of nodes in a proof: Depth(MaxLeaves).
	MaxDepth = 63

	// MaxProofSize is the longest encoded proof that is read, bytes. The
	// longest that is written is 2,290; fields that are not known yet may take
	// the rest.
	MaxProofSize = 16 << 10
)

// A Proof says that a leaf stands at an index of a tree: hashed upwards along
// Path, the leaf gives the root. A proof does not contain the leaf or the root.
type Proof struct {
	Index  uint64
	Leaves uint64   // of the whole tree
	Path   []Digest // the siblings on the way up, zero where there is none
}

// Verify checks that leaf stands at p.Index of the tree with the given root.
// Errors are of kind [errs.BadProof] and say what does not fit.
//
// A root does not contain the number of leaves, so p.Leaves is only checked as
// far as the shape of the path depends on it. Where the number is known, compare
// it, or use [VerifyLeaf], which does.
func (p Proof) Verify(root, leaf Digest) error {
	if err := verify(p.Index, p.Leaves, p.Path, root, leaf); err != nil {
		return errs.E(errs.BadProof, errs.Peer, "verify proof of leaf", strconv.FormatUint(p.Index, 10), err)
	}
	return nil
}

// verify does not allocate unless it returns an error.
func verify(index, leaves uint64, path []Digest, root, leaf Digest) error {
	// Were the index not below the number of leaves, or the path not as long
	// as the tree is deep, a true path could serve for a second index.
	if index >= leaves {
		return fmt.Errorf("index is %d, want less than the %d leaves", index, leaves)
	}
	if len(path) != Depth(leaves) {
		return fmt.Errorf("path has %d nodes, want %d for %d leaves", len(path), Depth(leaves), leaves)
	}

	node, k, m, key := leaf, index, leaves, byte(keyBottom)
	for i := range path {
		sibling := &path[i]
		switch {
		case k%2 == 1:
			node = parent(sibling, &node, key)
		case k < m-1:
			node = parent(&node, sibling, key)
		case *sibling != absent:
			return fmt.Errorf("node %d of the path is %v, want zeros: there is no such sibling in a tree of %d leaves",
				i, *sibling, leaves)
		default:
			node = parent(&node, sibling, key|keyOdd)
		}
		k, m, key = k/2, above(m), 0
	}
	if node != root {
		return fmt.Errorf("path leads to %v, want %v", node, root)
	}
	return nil
}

// VerifyLeaf checks an encoded proof, as a peer sends it, that the block with the
// CID block stands at the given index of tree. The number of leaves is compared
// if it is known (from a manifest, say) and given as 0 if not. VerifyLeaf does
// not allocate unless it returns an error. That the block's bytes hash to its CID
// is for the caller to check.
//
// Errors are of kind [errs.BadProof] and the peer's fault, whether the proof is
// missing, malformed, of another leaf or false, or the block is not one of a
// dataset; only if tree is not the CID of a tree they are of kind [errs.Invalid].
func VerifyLeaf(proof []byte, tree cid.Cid, index uint64, block cid.Cid, leaves uint64) error {
	root, err := codex.Digest(tree)
	if err == nil && tree.Type() != codex.TreeCodec {
		err = fmt.Errorf("codec is %#x, want %#x", tree.Type(), codex.TreeCodec)
	}
	if err != nil {
		return errs.E(errs.Invalid, errs.Caller, "verify leaf of tree", codex.String(tree), err)
	}
	if err := verifyLeaf(proof, root, index, block, leaves); err != nil {
		subject := codex.String(tree) + "/" + strconv.FormatUint(index, 10)
		return errs.E(errs.BadProof, errs.Peer, "verify leaf", subject, err)
	}
	return nil
}

func verifyLeaf(proof []byte, root Digest, index uint64, block cid.Cid, leaves uint64) error {
	if block.Type() != codex.BlockCodec { // the empty block's too
		return fmt.Errorf("block %s has codec %#x, want %#x", codex.String(block), block.Type(), codex.BlockCodec)
	}
	leaf, err := codex.Digest(block)
	if err != nil {
		return fmt.Errorf("block: %v", err) // not %w: its kind blames us, but the peer chose this CID
	}
	var p parsed
	if err := p.parse(proof); err != nil {
		return err
	}
	if p.index != index {
		return fmt.Errorf("proof is of leaf %d, want %d", p.index, index)
	}
	if leaves != 0 && p.leaves != leaves {
		return fmt.Errorf("proof is for a tree of %d leaves, want %d", p.leaves, leaves)
	}
	return verify(p.index, p.leaves, p.path[:p.depth], root, leaf)
}

// Fields of an encoded proof. A node is a sub-message.
const (
	proofHash   = 1
	proofIndex  = 2
	proofLeaves = 3
	proofNode   = 4
)

// Append appends the encoded proof to dst.
func (p Proof) Append(dst []byte) []byte {
	dst = protowire.AppendTag(dst, proofHash, protowire.VarintType)
	dst = protowire.AppendVarint(dst, multihash.SHA2_256)
	dst = protowire.AppendTag(dst, proofIndex, protowire.VarintType)
	dst = protowire.AppendVarint(dst, p.Index)
	dst = protowire.AppendTag(dst, proofLeaves, protowire.VarintType)
	dst = protowire.AppendVarint(dst, p.Leaves)
	for i := range p.Path {
		dst = appendNode(dst, proofNode, &p.Path[i])
	}
	return dst
}

// Marshal encodes the proof.
func (p Proof) Marshal() []byte {
	return p.Append(make([]byte, 0, 4+2*varintLen+len(p.Path)*nodeLen))
}

// DecodeProof decodes a proof; it does not verify it. Unknown fields are skipped,
// so what it returns may encode to other bytes, with the same meaning. Errors are
// of kind [errs.Malformed].
func DecodeProof(b []byte) (Proof, error) {
	var p parsed
	if err := p.parse(b); err != nil {
		return Proof{}, errs.E(errs.Malformed, errs.Peer, "decode proof", "", err)
	}
	return Proof{Index: p.index, Leaves: p.leaves, Path: append([]Digest(nil), p.path[:p.depth]...)}, nil
}

// parsed is a decoded proof that needs no memory of its own, so that it can be
// read on the stack.
type parsed struct {
	index, leaves uint64
	depth         int // nodes of path in use
	path          [MaxDepth]Digest
}

// parse does not allocate unless it returns an error.
func (p *parsed) parse(b []byte) error {
	if len(b) == 0 {
		return errors.New("proof is empty")
	}
	if len(b) > MaxProofSize {
		return fmt.Errorf("proof is %d bytes, want at most %d", len(b), MaxProofSize)
	}

	var hash uint64
	for len(b) > 0 {
		f, rest, err := codex.NextField(b)
		if err != nil {
			return err
		}
		b = rest
		switch {
		case f.Num == proofHash && f.Type == protowire.VarintType:
			hash = f.Varint
		case f.Num == proofIndex && f.Type == protowire.VarintType:
			p.index = f.Varint
		case f.Num == proofLeaves && f.Type == protowire.VarintType:
			p.leaves = f.Varint
		case f.Num == proofNode && f.Type == protowire.BytesType:
			if p.depth == MaxDepth {
				return fmt.Errorf("path has more than %d nodes", MaxDepth)
			}
			if p.path[p.depth], err = readNode(f.Bytes); err != nil {
				return fmt.Errorf("node %d of the path: %w", p.depth, err)
			}
			p.depth++
		}
	}

	switch {
	case hash != multihash.SHA2_256:
		return errHash(hash)
	case p.index > MaxLeaves:
		return fmt.Errorf("index is %d, want at most %d", p.index, uint64(MaxLeaves))
	case p.leaves > MaxLeaves:
		return fmt.Errorf("number of leaves is %d, want at most %d", p.leaves, uint64(MaxLeaves))
	case p.depth == 0:
		return errors.New("path has no nodes, want at least 1")
	}
	return nil
}

const (
	// nodeLen is the length of an encoded node in a tree or proof.
	nodeLen = 4 + len(Digest{})
	// varintLen is the length of the longest varint.
	varintLen = 10
	// nodeDigest is the only field of a node.
	nodeDigest = 1
)

func appendNode(dst []byte, num protowire.Number, d *Digest) []byte {
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(nodeLen-2))
	dst = protowire.AppendTag(dst, nodeDigest, protowire.BytesType)
	return protowire.AppendBytes(dst, d[:])
}

// readNode reads the sub-message of a node.
func readNode(b []byte) (d Digest, err error) {
	var digest []byte
	for len(b) > 0 {
		f, rest, err := codex.NextField(b)
		if err != nil {
			return d, err
		}
		b = rest
		if f.Num == nodeDigest && f.Type == protowire.BytesType {
			digest = f.Bytes
		}
	}
	if len(digest) != len(d) {
		return d, fmt.Errorf("digest is %d bytes, want %d", len(digest), len(d))
	}
	copy(d[:], digest)
	return d, nil
}

func errHash(code uint64) error {
	return fmt.Errorf("hash is %#x, want %#x (sha2-256)", code, multihash.SHA2_256)
}
