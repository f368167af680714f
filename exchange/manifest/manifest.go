// Package manifest owns Codex manifests: the blocks that say how large a dataset
// is, how it is cut into blocks, and which Merkle tree its blocks are in. It
// reads and writes them ([Decode], [Manifest.Block]), makes a dataset from a
// stream ([Build]), and tells a reader which blocks hold which bytes
// ([Manifest.BlockRange], [Manifest.Trim]).
//
// Block i of a dataset is asked for as leaf i of the tree TreeCid; a manifest
// does not list the CIDs of its blocks. Trees and proofs are in package merkle;
// fetching and storing blocks is for the users of both.
package manifest

import (
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf8"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
)

// MaxSize is the longest manifest that is read or written, bytes.
const MaxSize = 1 << 20

// A Manifest describes one dataset. It is plain data: anybody may read it, nobody
// changes it while others do. The zero Manifest is not valid.
type Manifest struct {
	TreeCid cid.Cid // of the tree over all blocks, parity blocks too

	// BlockSize is the length of every block, in bytes, from 1 to
	// codex.MaxBlockSize. The last block is filled up with zeros.
	BlockSize uint32

	// DatasetSize is the length of the dataset in bytes, without the zeros at
	// its end. For protected datasets it includes the parity blocks: see
	// ContentSize.
	DatasetSize uint64

	// Filename and MimeType are what the author of the manifest wrote, UTF-8,
	// or "" for nothing. Nothing makes a Filename safe to be used as a path.
	Filename string
	MimeType string

	// Erasure is set if the dataset is protected by erasure coding.
	Erasure *Erasure
}

// Erasure says how a protected dataset was made from the original one. The
// blocks of the original stand first in it, then empty blocks up to a multiple of
// K, then the parity blocks.
type Erasure struct {
	K, M         uint32  // blocks of data and of parity in each coding step, at least 1
	OriginalTree cid.Cid // of the tree of the original dataset
	OriginalSize uint64  // of the original dataset, bytes
	Strategy     Strategy

	// Verification is set if storage of the dataset can be proved.
	Verification *Verification
}

// Verification holds the commitments that storage proofs refer to. They are
// carried, not checked, and use other hashes than the dataset.
type Verification struct {
	VerifyRoot cid.Cid   // over the slot roots
	SlotRoots  []cid.Cid // K+M of them
	CellSize   uint64    // bytes, 2048 as a rule, 0 if left out
	Strategy   Strategy
}

// Strategy says which blocks are taken together, in a coding step or in a slot.
type Strategy uint8

const (
	Linear  Strategy = 0 // neighbours
	Stepped Strategy = 1 // blocks at equal distances, as is usual for coding
)

func (s Strategy) String() string {
	switch s {
	case Linear:
		return "linear"
	case Stepped:
		return "stepped"
	}
	return fmt.Sprintf("strategy %d", uint8(s))
}

// Decode reads the manifest in a block. The block's bytes are taken to be those
// of its CID. A block that has no manifest's CID, or does not hold a valid
// manifest, is refused with kind [errs.Malformed], one that is too long with
// [errs.TooLarge].
//
// Unknown fields are skipped. Of a manifest that has any, the block is another
// than Block returns, with another CID: pass on the block, not the Manifest.
func Decode(block blocks.Block) (Manifest, error) {
	subject := codex.String(block.Cid())
	if codec := block.Cid().Type(); codec != codex.ManifestCodec {
		return Manifest{}, errs.E(errs.Malformed, errs.Caller, "decode manifest", subject,
			fmt.Errorf("codec is %#x, want %#x: not a manifest", codec, codex.ManifestCodec))
	}
	return decode(block.RawData(), subject)
}

// Unmarshal is Decode for the bytes of a block.
func Unmarshal(b []byte) (Manifest, error) { return decode(b, "") }

func decode(b []byte, subject string) (Manifest, error) {
	if len(b) > MaxSize {
		return Manifest{}, errs.E(errs.TooLarge, errs.Caller, "decode manifest", subject,
			fmt.Errorf("%d bytes, want at most %d", len(b), MaxSize))
	}
	m, err := parse(b)
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return Manifest{}, errs.E(errs.Malformed, errs.Caller, "decode manifest", subject, err)
	}
	return m, nil
}

// Marshal encodes the manifest, if it is valid. The same Manifest always gives
// the same bytes, those that Codex nodes write, because its CID depends on them.
func (m Manifest) Marshal() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m.encode(), nil
}

// Block is the block that holds the manifest, if it is valid.
func (m Manifest) Block() (blocks.Block, error) {
	b, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	return codex.NewManifestBlock(b), nil
}

// Cid is the CID of the manifest, if it is valid. It is another than TreeCid, and
// another for each file name.
func (m Manifest) Cid() (cid.Cid, error) {
	b, err := m.Marshal()
	if err != nil {
		return cid.Undef, err
	}
	return codex.ManifestCid(b), nil
}

// Validate checks everything that can be checked without the blocks. Errors are
// of kind [errs.Invalid].
func (m Manifest) Validate() error {
	if err := m.check(); err != nil {
		return errs.E(errs.Invalid, errs.Caller, "check manifest", "", err)
	}
	return nil
}

func (m Manifest) check() error {
	if err := checkTree(m.TreeCid); err != nil {
		return fmt.Errorf("tree cid: %w", err)
	}
	if m.BlockSize == 0 || m.BlockSize > codex.MaxBlockSize {
		return fmt.Errorf("block size is %d, want 1 to %d", m.BlockSize, codex.MaxBlockSize)
	}
	if m.DatasetSize == 0 {
		return errors.New("dataset size is 0, want at least 1")
	}
	if !utf8.ValidString(m.Filename) {
		return fmt.Errorf("file name %q is not UTF-8", m.Filename)
	}
	if !utf8.ValidString(m.MimeType) {
		return fmt.Errorf("MIME type %q is not UTF-8", m.MimeType)
	}
	if m.Erasure != nil {
		if err := m.checkErasure(); err != nil {
			return fmt.Errorf("erasure: %w", err)
		}
	}
	if n := len(m.encode()); n > MaxSize {
		return fmt.Errorf("encoded manifest is %d bytes, want at most %d", n, MaxSize)
	}
	return nil
}

func checkTree(c cid.Cid) error {
	if c.Type() != codex.TreeCodec {
		return fmt.Errorf("codec is %#x, want %#x", c.Type(), codex.TreeCodec)
	}
	_, err := codex.Digest(c)
	return err
}

func (m Manifest) checkErasure() error {
	e := m.Erasure
	if e.K == 0 || e.M == 0 {
		return fmt.Errorf("got K %d and M %d, want both at least 1", e.K, e.M)
	}
	if err := checkTree(e.OriginalTree); err != nil {
		return fmt.Errorf("original tree cid: %w", err)
	}
	if e.OriginalSize == 0 {
		return errors.New("original size is 0, want at least 1")
	}
	if e.Strategy > Stepped {
		return fmt.Errorf("strategy is %d, want %d or %d", e.Strategy, Linear, Stepped)
	}
	perStep := uint64(e.K) + uint64(e.M)
	steps := ceil(m.ContentBlocks(), uint64(e.K))
	if over, want := bits.Mul64(steps, perStep); over != 0 || want != m.BlockCount() {
		return fmt.Errorf("dataset has %d blocks, want %d for each %d of the original's %d",
			m.BlockCount(), perStep, e.K, m.ContentBlocks())
	}
	if e.Verification != nil {
		if err := e.checkVerification(); err != nil {
			return fmt.Errorf("verification: %w", err)
		}
	}
	return nil
}

func (e *Erasure) checkVerification() error {
	v := e.Verification
	if codec := v.VerifyRoot.Type(); codec != codex.ProvingRootCodec {
		return fmt.Errorf("verify root: codec is %#x, want %#x", codec, codex.ProvingRootCodec)
	}
	if want := uint64(e.K) + uint64(e.M); uint64(len(v.SlotRoots)) != want {
		return fmt.Errorf("got %d slot roots, want K+M = %d", len(v.SlotRoots), want)
	}
	for i, c := range v.SlotRoots {
		if c.Type() != codex.SlotRootCodec {
			return fmt.Errorf("slot root %d: codec is %#x, want %#x", i, c.Type(), codex.SlotRootCodec)
		}
	}
	if v.Strategy > Stepped {
		return fmt.Errorf("strategy is %d, want %d or %d", v.Strategy, Linear, Stepped)
	}
	return nil
}

// ceil is a/b rounded up, b > 0.
func ceil(a, b uint64) uint64 {
	n := a / b
	if a%b != 0 {
		n++
	}
	return n
}
