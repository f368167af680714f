// Package codex holds what is private to Codex and shared by everything that
// speaks to it: its multicodecs, the CIDs made with them, and its reading of
// protobuf ([NextField]). What the identified bytes mean is for others: package
// merkle for trees and proofs, package manifest for manifests.
//
// None of the codes is in the public multicodec table, and none needs to be
// registered: go-cid and go-multihash parse, compare and print CIDs with codes
// they have no name for. They cannot hash with the Poseidon2 codes; this
// package does not either, because blocks, trees and manifests use sha2-256.
//
// All functions may be called from any goroutine.
package codex

import (
	"crypto/sha256"
	"fmt"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Content codecs.
const (
	ManifestCodec    = 0xCD01 // an encoded manifest
	BlockCodec       = 0xCD02 // a block of a dataset
	TreeCodec        = 0xCD03 // the root of a dataset's Merkle tree
	SlotRootCodec    = 0xCD04 // the root over one storage slot
	ProvingRootCodec = 0xCD05 // the root over slot roots
	SlotCellCodec    = 0xCD06 // the digest of a cell of a slot
)

// Multihash codes. They occur only in the verification part of manifests.
const (
	Poseidon2Sponge        = 0xCD10 // poseidon2-alt_bn_128-sponge-r2
	Poseidon2Merkle        = 0xCD11 // poseidon2-alt_bn_128-merkle-2kb
	Poseidon2KeyedCompress = 0xCD12 // poseidon2-alt_bn_128-keyed-compress
)

// DefaultBlockSize is the length of the blocks of a dataset unless its manifest
// says otherwise, bytes.
const DefaultBlockSize = 64 << 10

// MaxBlockSize is the longest block that nodes accept, bytes.
const MaxBlockSize = 100 << 20

// EmptyBlock is the CID of the block without bytes. It fills up datasets that
// are protected by erasure coding, is never stored, and everybody has it.
var EmptyBlock = BlockCid(nil)

// BlockCid hashes a block and returns its CID.
func BlockCid(data []byte) cid.Cid { return BlockCidOf(sha256.Sum256(data)) }

// BlockCidOf is the CID of the block with the given sha2-256 digest.
func BlockCidOf(digest [32]byte) cid.Cid { return newCid(BlockCodec, &digest) }

// TreeCid is the CID of the tree with the given root. The root is the digest in
// it and is not hashed again.
func TreeCid(root [32]byte) cid.Cid { return newCid(TreeCodec, &root) }

// ManifestCid hashes an encoded manifest and returns its CID.
func ManifestCid(encoded []byte) cid.Cid {
	digest := sha256.Sum256(encoded)
	return newCid(ManifestCodec, &digest)
}

func newCid(codec uint64, digest *[32]byte) cid.Cid {
	var hash [2 + len(digest)]byte
	hash[0], hash[1] = multihash.SHA2_256, byte(len(digest))
	copy(hash[2:], digest[:])
	return cid.NewCidV1(codec, hash[:])
}

// NewBlock makes a block of a dataset. It keeps data, which must not change
// afterwards.
func NewBlock(data []byte) blocks.Block { return blockOf(data, BlockCid(data)) }

// NewManifestBlock makes the block that holds an encoded manifest. It keeps
// encoded, which must not change afterwards.
func NewManifestBlock(encoded []byte) blocks.Block { return blockOf(encoded, ManifestCid(encoded)) }

func blockOf(data []byte, c cid.Cid) blocks.Block {
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil { // only if c is not the hash of data
		panic(fmt.Sprintf("codex: new block %s: %v", String(c), err))
	}
	return b
}

// Digest returns the sha2-256 digest in a CID of any codec, without allocating.
// For CIDs made with another hash the error is of kind [errs.Invalid].
func Digest(c cid.Cid) (digest [32]byte, err error) {
	hash := c.KeyString()
	if c.Version() == 1 { // version and codec come first
		hash = skipVarint(skipVarint(hash))
	}
	if len(hash) != 2+len(digest) || hash[0] != multihash.SHA2_256 || hash[1] != byte(len(digest)) {
		return digest, errs.Errorf(errs.Invalid, errs.Caller, "read digest of cid "+String(c),
			"hash is %s, want sha2-256 of 32 bytes", hashName(c))
	}
	copy(digest[:], hash[2:])
	return digest, nil
}

func skipVarint(s string) string {
	for i := range len(s) {
		if s[i] < 0x80 {
			return s[i+1:]
		}
	}
	return ""
}

// hashName describes the hash of a CID for an error.
func hashName(c cid.Cid) string {
	if !c.Defined() {
		return "missing"
	}
	hash, err := multihash.Decode(c.Hash())
	if err != nil {
		return "malformed"
	}
	if hash.Name == "" {
		return fmt.Sprintf("0x%x of %d bytes", hash.Code, hash.Length)
	}
	return fmt.Sprintf("%s of %d bytes", hash.Name, hash.Length)
}

// String is the text form of a CID as Codex writes it: base58btc ("z…") whatever
// the codec, and without prefix for version 0. The texts of Codex's own CIDs
// begin with zDx (block), zDz (tree) and zDv (manifest).
func String(c cid.Cid) string {
	if !c.Defined() {
		return "(no cid)"
	}
	if c.Version() == 0 {
		return c.String()
	}
	// The version was checked above, which leaves nothing to fail.
	s, _ := c.StringOfBase(multibase.Base58BTC)
	return s
}
