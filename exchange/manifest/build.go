package manifest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// Options say how a dataset is made. The zero Options are useful.
type Options struct {
	BlockSize uint32 // bytes, at most codex.MaxBlockSize; 0 means codex.DefaultBlockSize
	Filename  string // UTF-8, "" to leave it out
	MimeType  string // UTF-8, "" to leave it out
}

// A Dataset is what Build makes, apart from the blocks.
type Dataset struct {
	Manifest Manifest
	Tree     *merkle.Tree
}

// Build makes a dataset of everything r gives. It cuts the stream into blocks,
// fills the last one up with zeros, and hands each to put, in order and with its
// index; put may keep the block. Build has one block in memory at a time, and 64
// bytes for each block that it has put. If put is nil, blocks are only hashed.
//
// It is for the caller to store, after the blocks, their proofs (Tree.Proof), and
// last the manifest (Manifest.Block): peers who see a manifest then find all of it.
//
// An empty stream is an error of kind [errs.Invalid], as are Options that cannot
// be used, which are looked at before r is. Errors of r, put and ctx are wrapped.
func Build(ctx context.Context, r io.Reader, opts Options, put func(index uint64, block blocks.Block) error) (*Dataset, error) {
	m := Manifest{BlockSize: opts.BlockSize, Filename: opts.Filename, MimeType: opts.MimeType}
	if m.BlockSize == 0 {
		m.BlockSize = codex.DefaultBlockSize
	}
	// The longest manifest that can come out must be one.
	m.TreeCid, m.DatasetSize = codex.TreeCid([32]byte{}), math.MaxUint64
	if err := m.Validate(); err != nil {
		return nil, err
	}

	var leaves merkle.Builder
	m.DatasetSize = 0
	var data []byte // the block being read; nil if put has it
	for last := false; !last; {
		if err := ctx.Err(); err != nil {
			return nil, buildError(leaves.Len(), err)
		}
		if data == nil {
			data = make([]byte, m.BlockSize)
		}
		n, err := readBlock(r, data)
		if err != nil && err != io.EOF {
			return nil, buildError(leaves.Len(), fmt.Errorf("read: %w", err))
		}
		last = err == io.EOF
		if n == 0 {
			continue
		}
		clear(data[n:]) // a reader may use what it does not fill
		m.DatasetSize += uint64(n)

		digest := sha256.Sum256(data)
		if put != nil {
			block, err := blocks.NewBlockWithCid(data, codex.BlockCidOf(digest))
			if err == nil {
				err = put(leaves.Len(), block)
			}
			if err != nil {
				return nil, buildError(leaves.Len(), fmt.Errorf("put: %w", err))
			}
			data = nil
		}
		leaves.Add(digest)
	}

	if leaves.Len() == 0 {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "build dataset", "input is empty, want at least 1 byte")
	}
	tree, err := leaves.Tree()
	if err != nil {
		return nil, err
	}
	m.TreeCid = tree.Cid()
	return &Dataset{Manifest: m, Tree: tree}, nil
}

// readBlock reads until b is full. It returns io.EOF, with fewer bytes, at the end
// of the stream and only there: io.ReadFull's io.ErrUnexpectedEOF could as well
// come from a reader that was cut off, and be taken for a shorter dataset.
func readBlock(r io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b) && err == nil; {
		var k int
		k, err = r.Read(b[n:])
		n += k
		if k > 0 {
			idle = 0
		} else if idle++; idle > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	if n == len(b) {
		err = nil // the next read will say it again
	}
	return n, err
}

// buildError says at which block it went wrong, and keeps the kind and fault of
// the cause.
func buildError(index uint64, err error) error {
	kind, fault := errs.Other, errs.Unknown
	if e, ok := errors.AsType[*errs.Error](err); ok {
		kind, fault = e.Kind, e.Fault
	}
	return errs.E(kind, fault, "build dataset", fmt.Sprintf("block %d", index), err)
}
