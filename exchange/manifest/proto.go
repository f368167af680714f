package manifest

import (
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/codexchange/codexchange/exchange/codex"
)

// A manifest is a message whose only field is a header.
const fieldHeader = 1

// Fields of the header.
const (
	fieldTreeCid     = 1
	fieldBlockSize   = 2
	fieldDatasetSize = 3
	fieldCodec       = 4 // of the blocks
	fieldHash        = 5
	fieldCidVersion  = 6
	fieldErasure     = 7 // left out unless protected
	fieldFilename    = 8 // left out if empty
	fieldMimeType    = 9 // left out if empty
)

// Fields of the erasure information.
const (
	fieldK            = 1
	fieldM            = 2
	fieldOriginalTree = 3
	fieldOriginalSize = 4
	fieldStrategy     = 5
	fieldVerification = 6 // left out unless verifiable
)

// Fields of the verification information.
const (
	fieldVerifyRoot     = 1
	fieldSlotRoot       = 2
	fieldCellSize       = 3
	fieldVerifyStrategy = 4
)

// cidVersion1 stands for version 1 of CIDs: it is not the version but its position
// in a list that begins with "invalid" and 0.
const cidVersion1 = 2

// encode writes the manifest as Codex nodes do: fields in ascending order, numbers
// even if they are 0.
func (m Manifest) encode() []byte {
	var h []byte
	h = appendBytes(h, fieldTreeCid, m.TreeCid.KeyString())
	h = appendVarint(h, fieldBlockSize, uint64(m.BlockSize))
	h = appendVarint(h, fieldDatasetSize, m.DatasetSize)
	h = appendVarint(h, fieldCodec, codex.BlockCodec)
	h = appendVarint(h, fieldHash, multihash.SHA2_256)
	h = appendVarint(h, fieldCidVersion, cidVersion1)
	if m.Erasure != nil {
		h = appendBytes(h, fieldErasure, m.Erasure.encode())
	}
	if m.Filename != "" {
		h = appendBytes(h, fieldFilename, m.Filename)
	}
	if m.MimeType != "" {
		h = appendBytes(h, fieldMimeType, m.MimeType)
	}
	return appendBytes(nil, fieldHeader, h)
}

func (e *Erasure) encode() []byte {
	var b []byte
	b = appendVarint(b, fieldK, uint64(e.K))
	b = appendVarint(b, fieldM, uint64(e.M))
	b = appendBytes(b, fieldOriginalTree, e.OriginalTree.KeyString())
	b = appendVarint(b, fieldOriginalSize, e.OriginalSize)
	b = appendVarint(b, fieldStrategy, uint64(e.Strategy))
	if e.Verification != nil {
		b = appendBytes(b, fieldVerification, e.Verification.encode())
	}
	return b
}

func (v *Verification) encode() []byte {
	var b []byte
	b = appendBytes(b, fieldVerifyRoot, v.VerifyRoot.KeyString())
	for _, c := range v.SlotRoots {
		b = appendBytes(b, fieldSlotRoot, c.KeyString())
	}
	b = appendVarint(b, fieldCellSize, v.CellSize)
	return appendVarint(b, fieldVerifyStrategy, uint64(v.Strategy))
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBytes[T ~string | ~[]byte](b []byte, num protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

// A message is protobuf that has been read through once, so that its fields can
// be looked up without errors. A field that occurs with an unexpected wire type
// is not seen; what is not there is 0 or empty.
type message []byte

func open(b []byte) (message, error) {
	for rest := b; len(rest) > 0; {
		var err error
		if _, rest, err = codex.NextField(rest); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (m message) fields(num protowire.Number, typ protowire.Type) iter.Seq[codex.Field] {
	return func(yield func(codex.Field) bool) {
		for len(m) > 0 {
			f, rest, err := codex.NextField(m)
			if err != nil {
				return // not in an opened message
			}
			m = rest
			if f.Num == num && f.Type == typ && !yield(f) {
				return
			}
		}
	}
}

// number is the last occurrence of a number.
func (m message) number(num protowire.Number) (v uint64) {
	for f := range m.fields(num, protowire.VarintType) {
		v = f.Varint
	}
	return v
}

// number32 is the last occurrence of a number of 32 bits.
func (m message) number32(num protowire.Number, name string) (uint32, error) {
	v := m.number(num)
	if v > math.MaxUint32 {
		return 0, fmt.Errorf("%s is %d, want at most %d", name, v, math.MaxUint32)
	}
	return uint32(v), nil
}

func (m message) strategy(num protowire.Number) (Strategy, error) {
	v := m.number(num)
	if v > uint64(Stepped) {
		return 0, fmt.Errorf("strategy is %d, want %d or %d", v, Linear, Stepped)
	}
	return Strategy(v), nil
}

// bytes is the last occurrence of bytes, a part of the message.
func (m message) bytes(num protowire.Number) (b []byte) {
	for f := range m.fields(num, protowire.BytesType) {
		b = f.Bytes
	}
	return b
}

func (m message) cid(num protowire.Number, name string) (cid.Cid, error) {
	return castCid(m.bytes(num), name)
}

func castCid(b []byte, name string) (cid.Cid, error) {
	c, err := cid.Cast(b)
	if err != nil {
		return cid.Undef, fmt.Errorf("%s %x: %w", name, b, err)
	}
	return c, nil
}

// parse reads a manifest and checks what a Manifest cannot hold. The rest is for
// Manifest.check.
func parse(b []byte) (m Manifest, err error) {
	outer, err := open(b)
	if err != nil {
		return m, err
	}
	header, err := open(outer.bytes(fieldHeader))
	if err != nil {
		return m, fmt.Errorf("header: %w", err)
	}
	if len(header) == 0 {
		return m, errors.New("no header")
	}

	if m.TreeCid, err = header.cid(fieldTreeCid, "tree cid"); err != nil {
		return m, err
	}
	if m.BlockSize, err = header.number32(fieldBlockSize, "block size"); err != nil {
		return m, err
	}
	m.DatasetSize = header.number(fieldDatasetSize)
	if v := header.number(fieldCodec); v != codex.BlockCodec {
		return m, fmt.Errorf("codec of blocks is %#x, want %#x", v, codex.BlockCodec)
	}
	if v := header.number(fieldHash); v != multihash.SHA2_256 {
		return m, fmt.Errorf("hash is %#x, want %#x (sha2-256)", v, multihash.SHA2_256)
	}
	if v := header.number(fieldCidVersion); v != cidVersion1 {
		return m, fmt.Errorf("cid version is written as %d, want %d, which stands for version 1", v, cidVersion1)
	}
	m.Filename = string(header.bytes(fieldFilename))
	m.MimeType = string(header.bytes(fieldMimeType))
	if b := header.bytes(fieldErasure); len(b) > 0 {
		if m.Erasure, err = parseErasure(b); err != nil {
			return m, fmt.Errorf("erasure: %w", err)
		}
	}
	return m, nil
}

func parseErasure(b []byte) (*Erasure, error) {
	msg, err := open(b)
	if err != nil {
		return nil, err
	}
	e := &Erasure{OriginalSize: msg.number(fieldOriginalSize)}
	if e.K, err = msg.number32(fieldK, "K"); err != nil {
		return nil, err
	}
	if e.M, err = msg.number32(fieldM, "M"); err != nil {
		return nil, err
	}
	if e.OriginalTree, err = msg.cid(fieldOriginalTree, "original tree cid"); err != nil {
		return nil, err
	}
	if e.Strategy, err = msg.strategy(fieldStrategy); err != nil {
		return nil, err
	}
	if b := msg.bytes(fieldVerification); len(b) > 0 {
		if e.Verification, err = parseVerification(b); err != nil {
			return nil, fmt.Errorf("verification: %w", err)
		}
	}
	return e, nil
}

func parseVerification(b []byte) (*Verification, error) {
	msg, err := open(b)
	if err != nil {
		return nil, err
	}
	v := &Verification{CellSize: msg.number(fieldCellSize)}
	if v.VerifyRoot, err = msg.cid(fieldVerifyRoot, "verify root"); err != nil {
		return nil, err
	}
	for f := range msg.fields(fieldSlotRoot, protowire.BytesType) {
		c, err := castCid(f.Bytes, fmt.Sprintf("slot root %d", len(v.SlotRoots)))
		if err != nil {
			return nil, err
		}
		v.SlotRoots = append(v.SlotRoots, c)
	}
	if v.Strategy, err = msg.strategy(fieldVerifyStrategy); err != nil {
		return nil, err
	}
	return v, nil
}
