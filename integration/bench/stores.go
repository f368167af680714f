package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
)

func newMemStore() blockstore.Blockstore {
	return blockstore.NewBlockstore(dssync.MutexWrap(ds.NewMapDatastore()))
}

// A madeStore holds blocks that are made when they are read: all have the same
// random bytes, but for their number in the first eight. So a data set that is
// larger than the memory costs no more than its CIDs. Other blocks are those of
// the store within.
type madeStore struct {
	blockstore.Blockstore
	pattern []byte
	numbers map[cid.Cid]uint64 // written by make only, before anybody reads
}

// make makes the blocks of a request to gen.
func (s *madeStore) make(q request) error {
	s.pattern = make([]byte, max(q.Size, 8))
	random(q.Seed).Read(s.pattern)
	list, err := s.list(q)
	if err != nil {
		return err
	}
	s.numbers = make(map[cid.Cid]uint64, len(list))
	for i, c := range list {
		s.numbers[c] = uint64(i)
	}
	return nil
}

// list reads the list of CIDs if it is kept from an earlier run, and makes it
// otherwise.
func (s *madeStore) list(q request) (list []cid.Cid, err error) {
	if q.Keep {
		if list, err = readList(q.File); !errors.Is(err, fs.ErrNotExist) {
			return list, err
		}
	}
	list = make([]cid.Cid, q.Count)
	var text bytes.Buffer
	for i := range list {
		if list[i], err = prefix.Sum(s.bytes(uint64(i))); err != nil {
			return nil, err
		}
		fmt.Fprintln(&text, list[i])
	}
	return list, os.WriteFile(q.File, text.Bytes(), 0o644)
}

func (s *madeStore) bytes(number uint64) []byte {
	b := bytes.Clone(s.pattern)
	binary.BigEndian.PutUint64(b, number)
	return b
}

func (s *madeStore) Has(ctx context.Context, c cid.Cid) (bool, error) {
	if _, ok := s.numbers[c]; ok {
		return true, nil
	}
	return s.Blockstore.Has(ctx, c)
}

func (s *madeStore) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	if _, ok := s.numbers[c]; ok {
		return len(s.pattern), nil
	}
	return s.Blockstore.GetSize(ctx, c)
}

func (s *madeStore) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if i, ok := s.numbers[c]; ok {
		return blocks.NewBlockWithCid(s.bytes(i), c)
	}
	return s.Blockstore.Get(ctx, c)
}

// A discardStore forgets what it is given.
type discardStore struct{ blockstore.Blockstore } // an empty one

func (discardStore) Put(context.Context, blocks.Block) error       { return nil }
func (discardStore) PutMany(context.Context, []blocks.Block) error { return nil }
