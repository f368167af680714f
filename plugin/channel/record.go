package channel

import (
	"encoding/binary"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Kind says what a record is. The numbers are those on the wire.
type Kind uint8

const (
	KindData       Kind = 1 // Data
	KindBlock      Kind = 2 // Cid, Size
	KindRegion     Kind = 3 // Offset, Size
	KindCloseWrite Kind = 4
	KindReset      Kind = 5 // Code
	KindCredit     Kind = 6 // Size
	KindCloseRead  Kind = 7

	// Kinds from here on are skipped by who does not know them.
	firstOptional Kind = 0x80
)

var kindText = [...]string{
	KindData:       "data",
	KindBlock:      "block",
	KindRegion:     "region",
	KindCloseWrite: "close-write",
	KindReset:      "reset",
	KindCredit:     "credit",
	KindCloseRead:  "close-read",
}

func (k Kind) String() string {
	if int(k) < len(kindText) && kindText[k] != "" {
		return kindText[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Limits of a record. A length beyond them is refused before memory is taken.
const (
	// MaxData is the most bytes of a stream in one record.
	MaxData = 256 << 10
	// MaxBlock is the largest block that can be named in a block record, bytes.
	MaxBlock = 100 << 20
	// MaxCid is the longest CID that can be named in a block record, bytes.
	MaxCid = 256
	// RefCost is what a block or a region record costs of the credit, bytes.
	RefCost = 8 << 10

	headerSize = 5
	blockSize  = 4 // of a block record, before the CID
	regionSize = 12
)

// Record is one record. Only the fields that its Kind names are used.
type Record struct {
	Kind   Kind
	Data   []byte  // in a received record, part of the buffer given to Next
	Cid    cid.Cid // of the block that stands here
	Size   int     // bytes: of the block, of the range of the region, or of credit
	Offset uint64  // where the range begins in the region, bytes
	Code   uint32  // why the stream was reset; 0 says nothing
}

// Append writes the record after b. The error is of kind errs.Invalid for a
// record that nobody could read; then b is returned unchanged.
func (r Record) Append(b []byte) ([]byte, error) {
	old := b
	switch r.Kind {
	case KindData:
		b = append(appendHeader(b, KindData, len(r.Data)), r.Data...)
	case KindBlock:
		if !r.Cid.Defined() {
			return old, errs.Errorf(errs.Invalid, errs.Caller, "block record", "no cid")
		}
		b = appendHeader(b, KindBlock, blockSize+r.Cid.ByteLen())
		b = binary.LittleEndian.AppendUint32(b, uint32(r.Size))
		b = append(b, r.Cid.KeyString()...)
	case KindRegion:
		b = appendHeader(b, KindRegion, regionSize)
		b = binary.LittleEndian.AppendUint64(b, r.Offset)
		b = binary.LittleEndian.AppendUint32(b, uint32(r.Size))
	case KindReset:
		b = appendReset(b, r.Code)
	case KindCredit:
		b = appendCredit(b, r.Size)
	default:
		b = appendHeader(b, r.Kind, 0)
	}
	if err := r.check(); err != nil {
		return old, errs.E(errs.Invalid, errs.Caller, "write record", "", err)
	}
	if _, _, err := parseHeader(b[len(old):]); err != nil || r.Kind >= firstOptional {
		return old, errs.Errorf(errs.Invalid, errs.Caller, "write record", "%v of %d bytes", r.Kind, len(b)-len(old)-headerSize)
	}
	return b, nil
}

// check tells what the lengths of a record do not.
func (r Record) check() error {
	switch r.Kind {
	case KindBlock:
		if r.Size < 0 || r.Size > MaxBlock {
			return fmt.Errorf("block %v: size is %d, want at most %d", r.Cid, r.Size, MaxBlock)
		}
	case KindRegion:
		if r.Size < 1 || r.Size > MaxBlock || r.Offset+uint64(r.Size) < r.Offset {
			return fmt.Errorf("region: range is %d bytes at %d, want 1 to %d bytes that do not run past the end of numbers", r.Size, r.Offset, MaxBlock)
		}
	case KindCredit:
		if r.Size < 1 || r.Size > MaxWindow {
			return fmt.Errorf("credit: %d bytes, want 1 to %d", r.Size, MaxWindow)
		}
	}
	return nil
}

func appendHeader(b []byte, k Kind, n int) []byte {
	return binary.LittleEndian.AppendUint32(append(b, byte(k)), uint32(n))
}

func appendReset(b []byte, code uint32) []byte {
	return binary.LittleEndian.AppendUint32(appendHeader(b, KindReset, 4), code)
}

func appendCredit(b []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(appendHeader(b, KindCredit, 4), uint32(n))
}

// parseHeader reads the first headerSize bytes of a record and holds its length
// against the limits of its kind.
func parseHeader(b []byte) (k Kind, n int, err error) {
	k = Kind(b[0])
	length := binary.LittleEndian.Uint32(b[1:headerSize])
	lo, hi := uint32(0), uint32(0)
	switch k {
	case KindData:
		lo, hi = 1, MaxData
	case KindBlock:
		lo, hi = blockSize+1, blockSize+MaxCid
	case KindRegion:
		lo, hi = regionSize, regionSize
	case KindReset, KindCredit:
		lo, hi = 4, 4
	case KindCloseWrite, KindCloseRead:
	default:
		if k < firstOptional {
			return k, 0, malformed("kind is %d, want 1 to %d, or at least %d", uint8(k), uint8(KindCloseRead), uint8(firstOptional))
		}
		hi = MaxData
	}
	if length < lo || length > hi {
		return k, 0, malformed("%v: length is %d, want %d to %d", k, length, lo, hi)
	}
	return k, int(length), nil
}

// parseBody reads what follows the header of any record but data and optional
// ones. The record does not refer to body.
func parseBody(k Kind, body []byte) (r Record, err error) {
	r.Kind = k
	switch k {
	case KindBlock:
		size := binary.LittleEndian.Uint32(body)
		if size > MaxBlock {
			return Record{}, malformed("block: size is %d, want at most %d", size, MaxBlock)
		}
		r.Size = int(size)
		n, c, err := cid.CidFromBytes(body[blockSize:])
		switch {
		case err != nil:
			return Record{}, malformed("block: %w", err)
		case n != len(body)-blockSize:
			return Record{}, malformed("block: %d bytes after the cid, want none", len(body)-blockSize-n)
		}
		r.Cid = c
	case KindRegion:
		r.Offset = binary.LittleEndian.Uint64(body)
		r.Size = int(min(binary.LittleEndian.Uint32(body[8:]), MaxBlock+1))
	case KindReset:
		r.Code = binary.LittleEndian.Uint32(body)
	case KindCredit:
		r.Size = int(min(binary.LittleEndian.Uint32(body), MaxWindow+1))
	}
	if err := r.check(); err != nil {
		return Record{}, malformed("%w", err)
	}
	return r, nil
}

// malformed is a protocol error that says nothing yet of whose it is.
func malformed(format string, args ...any) error {
	return errs.Errorf(errs.Malformed, errs.Unknown, "record", format, args...)
}
