package main

import (
	"path/filepath"
	"slices"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	ipld "github.com/ipfs/go-ipld-format"
)

// What is made when it is read has the CIDs of the list, which another store
// takes over, and what is not in the list is not there.
func TestMadeStore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list")
	q := request{Count: 3, Size: 100, Seed: 1, File: file, Keep: true}
	var lists [2][]byte
	for i := range lists {
		s := &madeStore{Blockstore: newMemStore()}
		if err := s.make(q); err != nil {
			t.Fatal(err)
		}
		list, err := readList(file)
		if err != nil || len(list) != 3 {
			t.Fatalf("list of store %d has %d blocks, %v, want 3", i+1, len(list), err)
		}
		for _, c := range list {
			b, err := s.Get(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := c.Prefix().Sum(b.RawData()); err != nil || got != c || len(b.RawData()) != 100 {
				t.Errorf("block has %d bytes and is %s, %v, want 100 and %s", len(b.RawData()), got, err, c)
			}
			if n, err := s.GetSize(t.Context(), c); err != nil || n != 100 {
				t.Errorf("size is %d, %v, want 100", n, err)
			}
			if has, err := s.Has(t.Context(), c); err != nil || !has {
				t.Errorf("has %s: %v, %v, want true", c, has, err)
			}
			lists[i] = append(lists[i], c.Bytes()...)
		}
		if _, err := s.Get(t.Context(), blocks.NewBlock([]byte("other")).Cid()); !ipld.IsNotFound(err) {
			t.Errorf("another block: %v, want that it is not found", err)
		}
	}
	if !slices.Equal(lists[0], lists[1]) {
		t.Error("the second store has other blocks than the first, want the same")
	}
}

// What is put is not kept.
func TestDiscardStore(t *testing.T) {
	s, b := discardStore{newMemStore()}, blocks.NewBlock([]byte("a block"))
	if err := s.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := s.PutMany(t.Context(), []blocks.Block{b}); err != nil {
		t.Fatal(err)
	}
	if has, err := s.Has(t.Context(), b.Cid()); err != nil || has {
		t.Errorf("has the block: %v, %v, want false", has, err)
	}
}
