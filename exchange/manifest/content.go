package manifest

import (
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
)

// BlockCount is the number of blocks of the dataset, parity blocks too: the number
// of leaves of its tree.
func (m Manifest) BlockCount() uint64 { return m.blocks(m.DatasetSize) }

// ContentSize is the number of bytes that were put in and can be read: that of the
// original dataset, if this one is protected.
func (m Manifest) ContentSize() uint64 {
	if m.Erasure != nil {
		return m.Erasure.OriginalSize
	}
	return m.DatasetSize
}

// ContentBlocks is the number of blocks that hold content. They are the first
// blocks of the dataset; those after them need not be fetched to read it.
func (m Manifest) ContentBlocks() uint64 { return m.blocks(m.ContentSize()) }

func (m Manifest) blocks(size uint64) uint64 {
	if m.BlockSize == 0 {
		return 0 // not a valid manifest
	}
	return ceil(size, uint64(m.BlockSize))
}

// BlockRange is the blocks that hold length bytes of content from offset: the
// index of the first and their number. Bytes beyond the content are left out; if
// none remain, count is 0.
func (m Manifest) BlockRange(offset, length uint64) (first, count uint64) {
	total := m.ContentSize()
	if m.BlockSize == 0 || offset >= total || length == 0 {
		return 0, 0
	}
	last := offset + min(length, total-offset) - 1
	first = offset / uint64(m.BlockSize)
	return first, last/uint64(m.BlockSize) - first + 1
}

// Trim returns the content in block index: all of data, except for the last block
// of content, of which it cuts the padding, and for blocks after it, which hold
// none. The result is part of data. For the empty block, which stands for a block
// of zeros, it is new.
//
// If data has another length than the blocks of the dataset, or there is no such
// block, the error is of kind [errs.Invalid]: the author of the dataset made it
// so, the block's hash and proof may well be right.
func (m Manifest) Trim(index uint64, data []byte) ([]byte, error) {
	if count := m.BlockCount(); index >= count {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, m.op(), "block index is %d, want less than %d", index, count)
	}
	if len(data) != 0 && len(data) != int(m.BlockSize) {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, m.op(), "block %d is %d bytes, want %d", index, len(data), m.BlockSize)
	}
	start := index * uint64(m.BlockSize)
	if start >= m.ContentSize() {
		return nil, nil
	}
	n := min(uint64(m.BlockSize), m.ContentSize()-start)
	if len(data) == 0 {
		return make([]byte, n), nil
	}
	return data[:n], nil
}

func (m Manifest) op() string { return "read dataset " + codex.String(m.TreeCid) }
