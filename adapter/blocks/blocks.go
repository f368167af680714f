// Package blocks is exchange.Blocks over a boxo blockstore: the blocks that the
// exchange serves. It decides what the store's errors mean, and answers for two
// kinds of blocks that stores do not hold: the empty block of Codex, which every
// node has without storing it, and blocks whose CID contains them.
//
// It neither writes nor checks. Fetched blocks are stored by whoever asked for
// them (boxo's blockservice), and a store whose bytes may rot is given wrapped in
// boxo's blockstore.ValidatingBlockstore.
package blocks

import (
	"context"
	"fmt"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
)

// A Store is exchange.Blocks over a blockstore, made by New. Its methods may be
// called from any goroutine.
//
// Errors are of kind errs.NotFound, or errs.Storage and our fault; both name the
// block. If the context has ended the error wraps the context's.
type Store struct {
	bs blockstore.Blockstore
}

var _ exchange.Blocks = (*Store)(nil)

// New reads from bs, which remains the caller's to close. If bs has the method of
// exchange.Sizer, as the store that a host lends to its plugin, what is returned
// is one too, and passes each list on in one call. It is a *Store otherwise.
func New(bs blockstore.Blockstore) exchange.Blocks {
	s := &Store{bs: bs}
	if sizer, ok := bs.(exchange.Sizer); ok {
		return &sizingStore{Store: s, sizer: sizer}
	}
	return s
}

// A sizingStore is a Store over a blockstore that is asked about many blocks at
// once.
type sizingStore struct {
	*Store
	sizer exchange.Sizer // the blockstore
}

var _ exchange.Sizer = (*sizingStore)(nil)

// Sizes is the length of each block, -1 if it is not there.
func (s *sizingStore) Sizes(ctx context.Context, list []cid.Cid) ([]int, error) {
	const op = "sizes of blocks from"
	sizes := make([]int, len(list))
	var ask []cid.Cid
	var at []int // in list
	for i, c := range list {
		if data, ok := builtIn(c); ok {
			sizes[i] = len(data)
			continue
		}
		ask, at = append(ask, c), append(at, i)
	}
	if len(ask) == 0 {
		return sizes, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, fail(ctx, op, ask[0], err)
	}
	got, err := s.sizer.Sizes(ctx, ask)
	if err == nil && len(got) != len(ask) {
		err = fmt.Errorf("store gave %d sizes, want %d", len(got), len(ask))
	}
	if err != nil {
		return nil, fail(ctx, op, ask[0], err)
	}
	for j, i := range at {
		sizes[i] = got[j]
	}
	return sizes, nil
}

// Size is the length of a block in bytes.
func (s *Store) Size(ctx context.Context, c cid.Cid) (int, error) {
	const op = "size of block"
	if data, ok := builtIn(c); ok {
		return len(data), nil
	}
	if err := ctx.Err(); err != nil {
		return 0, fail(ctx, op, c, err)
	}
	n, err := s.bs.GetSize(ctx, c)
	if err != nil {
		return 0, fail(ctx, op, c, err)
	}
	return n, nil
}

// Get reads a block.
func (s *Store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	const op = "read block"
	if data, ok := builtIn(c); ok {
		b, err := blocks.NewBlockWithCid(data, c)
		if err != nil {
			return nil, fail(ctx, op, c, err)
		}
		return b, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, fail(ctx, op, c, err)
	}
	b, err := s.bs.Get(ctx, c)
	if err != nil {
		return nil, fail(ctx, op, c, err)
	}
	return b, nil
}

// builtIn gives the bytes of a block that needs no store. It does not allocate
// for others.
func builtIn(c cid.Cid) ([]byte, bool) {
	if c.Equals(codex.EmptyBlock) {
		return []byte{}, true
	}
	if !c.Defined() || c.Prefix().MhType != multihash.IDENTITY {
		return nil, false
	}
	mh, err := multihash.Decode(c.Hash())
	if err != nil {
		return nil, false
	}
	return mh.Digest, true
}

func fail(ctx context.Context, op string, c cid.Cid, err error) error {
	switch {
	case ipld.IsNotFound(err):
		return errs.E(errs.NotFound, errs.Unknown, op, codex.String(c), nil)
	case ctx.Err() != nil:
		return errs.E(errs.Other, errs.Caller, op, codex.String(c), ctx.Err())
	}
	return errs.E(errs.Storage, errs.Ours, op, codex.String(c), err)
}
