// Package leaves is exchange.Leaves over a datastore: which block stands at which
// index of which tree, and the proof of it.
//
// Nothing false gets in: a record is verified before it is written, so whichever
// record of a leaf was written last, it is true. What was written comes out as it
// was or not at all: records carry a checksum. The blocks are not kept here; when
// a record is written before its block, or outlives it, the exchange finds that
// out when it reads the block.
//
// A record of leaf i of a tree has the key
//
//	/leaves/<CID of the tree, base32>/<i, 16 hexadecimal digits>
//
// so the records of a tree lie together, in order. Its value is
//
//	version (1 byte, 1) ‖ length of the CID (varint) ‖ CID of the block ‖
//	proof, as package merkle encodes it ‖ CRC-32C of all this (4 bytes, big-endian)
package leaves

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// batchSize is how many records are written or deleted at once.
const batchSize = 1000

// A Record says that Block stands at Index of the tree Root.
type Record struct {
	Root  cid.Cid
	Index uint64
	Block cid.Cid
	Proof []byte // encoded, as package merkle does
}

// A Store is exchange.Leaves over a datastore, made by New. Its methods may be
// called from any goroutine.
//
// Errors are of kind errs.Storage and our fault if the datastore fails or a
// record cannot be read. They name the leaf or the tree. If the context has ended
// they wrap the context's error.
type Store struct {
	d ds.Batching
}

var _ exchange.Leaves = (*Store)(nil)

// New keeps records in d under the key "/leaves". The datastore remains the
// caller's to sync and to close.
func New(d ds.Batching) *Store { return &Store{d: d} }

// Put verifies a record and writes it, in the place of an older one of the same
// leaf. The proof is copied, without fields that are not of a proof. If it does not lead from the block to the root the
// error is of kind errs.BadProof, or errs.Invalid if root is not a tree, and
// nothing is written.
func (s *Store) Put(ctx context.Context, root cid.Cid, index uint64, block cid.Cid, proof []byte) error {
	proof, err := verified(Record{Root: root, Index: index, Block: block, Proof: proof})
	if err != nil {
		return err
	}
	if err := s.d.Put(ctx, key(root, index), encode(block, proof)); err != nil {
		return fail(ctx, "store leaf", leafName(root, index), err)
	}
	return nil
}

// PutMany is Put for many records, of one tree or several, in batches. All are
// verified before the first is written; if writing fails, some may have been
// written.
func (s *Store) PutMany(ctx context.Context, records []Record) error {
	proofs := make([][]byte, len(records))
	for i, r := range records {
		var err error
		if proofs[i], err = verified(r); err != nil {
			return err
		}
	}
	b := batch{ctx: ctx, d: s.d}
	for i, r := range records {
		if err := b.put(key(r.Root, r.Index), encode(r.Block, proofs[i])); err != nil {
			return fail(ctx, "store leaf", leafName(r.Root, r.Index), err)
		}
	}
	if err := b.commit(); err != nil {
		return fail(ctx, "store leaves", "", err)
	}
	return nil
}

// verified checks a record and returns its proof as package merkle writes it: what
// else the peer that it came from may have put beside it is not served on.
func verified(r Record) ([]byte, error) {
	if err := merkle.VerifyLeaf(r.Proof, r.Root, r.Index, r.Block, 0); err != nil {
		return nil, err
	}
	proof, err := merkle.DecodeProof(r.Proof)
	if err != nil {
		return nil, err
	}
	return proof.Marshal(), nil
}

// AddTree writes the record of every leaf of a tree, in batches. What the tree
// says is true by construction and is not verified again. If writing fails, some
// records may have been written; to add the tree again completes it.
func (s *Store) AddTree(ctx context.Context, tree *merkle.Tree) error {
	const op = "store leaves of tree"
	root := tree.Cid()
	b := batch{ctx: ctx, d: s.d}
	var buf []byte
	for i := range tree.Len() {
		leaf, err := tree.Leaf(i)
		if err != nil {
			return err
		}
		proof, err := tree.Proof(i)
		if err != nil {
			return err
		}
		buf = proof.Append(buf[:0])
		if err := b.put(key(root, i), encode(codex.BlockCidOf(leaf), buf)); err != nil {
			return fail(ctx, op, codex.String(root), err)
		}
	}
	if err := b.commit(); err != nil {
		return fail(ctx, op, codex.String(root), err)
	}
	return nil
}

// Leaf returns the block at an index of a tree and its proof, or errs.NotFound.
// The proof is the caller's.
func (s *Store) Leaf(ctx context.Context, root cid.Cid, index uint64) (block cid.Cid, proof []byte, err error) {
	const op = "read leaf"
	if !root.Defined() {
		return cid.Undef, nil, notFound(op, root, index)
	}
	value, err := s.d.Get(ctx, key(root, index))
	if errors.Is(err, ds.ErrNotFound) {
		return cid.Undef, nil, notFound(op, root, index)
	}
	if err != nil {
		return cid.Undef, nil, fail(ctx, op, leafName(root, index), err)
	}
	block, proof, err = decode(value)
	if err != nil {
		return cid.Undef, nil, errs.E(errs.Storage, errs.Ours, op, leafName(root, index), fmt.Errorf("record is damaged: %w", err))
	}
	return block, proof, nil
}

// Has reports whether there is a record of a leaf. It does not read it.
func (s *Store) Has(ctx context.Context, root cid.Cid, index uint64) (bool, error) {
	if !root.Defined() {
		return false, nil
	}
	has, err := s.d.Has(ctx, key(root, index))
	if err != nil {
		return false, fail(ctx, "look for leaf", leafName(root, index), err)
	}
	return has, nil
}

// Count is the number of leaves of a tree that have a record. It goes through
// all of their keys.
func (s *Store) Count(ctx context.Context, root cid.Cid) (uint64, error) {
	var n uint64
	err := s.each(ctx, root, func(ds.Key) error { n++; return nil })
	if err != nil {
		return 0, fail(ctx, "count leaves of tree", codex.String(root), err)
	}
	return n, nil
}

// Delete deletes every record of a tree; there need not be any. The blocks are
// not touched. If it fails, some records may be left; to delete again goes on.
func (s *Store) Delete(ctx context.Context, root cid.Cid) error {
	const op = "delete leaves of tree"
	b := batch{ctx: ctx, d: s.d}
	err := s.each(ctx, root, b.delete)
	if err == nil {
		err = b.commit()
	}
	if err != nil {
		return fail(ctx, op, codex.String(root), err)
	}
	return nil
}

// each calls f with the key of every record of a tree.
func (s *Store) each(ctx context.Context, root cid.Cid, f func(ds.Key) error) (err error) {
	if !root.Defined() {
		return nil
	}
	results, err := s.d.Query(ctx, query.Query{Prefix: treeKey(root).String(), KeysOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, results.Close()) }()
	for r := range results.Next() {
		if r.Error != nil {
			return r.Error
		}
		if err := f(ds.RawKey(r.Key)); err != nil {
			return err
		}
	}
	return ctx.Err() // a query that is cut short may end like one that is done
}

// batch writes and deletes in portions of batchSize.
type batch struct {
	ctx context.Context
	d   ds.Batching
	b   ds.Batch // nil between portions
	n   int
}

func (b *batch) put(k ds.Key, value []byte) error {
	return b.add(func(to ds.Batch) error { return to.Put(b.ctx, k, value) })
}

func (b *batch) delete(k ds.Key) error {
	return b.add(func(to ds.Batch) error { return to.Delete(b.ctx, k) })
}

func (b *batch) add(f func(ds.Batch) error) error {
	if b.b == nil {
		to, err := b.d.Batch(b.ctx)
		if err != nil {
			return err
		}
		b.b = to
	}
	if err := f(b.b); err != nil {
		return err
	}
	if b.n++; b.n < batchSize {
		return nil
	}
	return b.commit()
}

func (b *batch) commit() error {
	if b.b == nil {
		return nil
	}
	to := b.b
	b.b, b.n = nil, 0
	return to.Commit(b.ctx)
}

var prefix = ds.NewKey("/leaves")

func treeKey(root cid.Cid) ds.Key { return prefix.ChildString(root.String()) }

func key(root cid.Cid, index uint64) ds.Key {
	return ds.RawKey(fmt.Sprintf("/leaves/%s/%016x", root, index))
}

func leafName(root cid.Cid, index uint64) string {
	return codex.String(root) + "/" + strconv.FormatUint(index, 10)
}

func notFound(op string, root cid.Cid, index uint64) error {
	return errs.E(errs.NotFound, errs.Unknown, op, leafName(root, index), nil)
}

func fail(ctx context.Context, op, subject string, err error) error {
	if end := ctx.Err(); end != nil {
		return errs.E(errs.Other, errs.Caller, op, subject, end)
	}
	return errs.E(errs.Storage, errs.Ours, op, subject, err)
}
