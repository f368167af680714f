package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"

	"github.com/ipfs/boxo/blockservice"
	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

// random returns bytes that are the same for the same seed.
func random(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return rand.NewChaCha8(s)
}

// prefix is what the CIDs of all blocks begin with.
var prefix = cid.Prefix{Version: 1, Codec: cid.Raw, MhType: mh.SHA2_256, MhLength: -1}

// gen stores blocks of random bytes and writes the list of their CIDs. With
// keep, a list that is there means that the blocks are.
func (n *node) gen(ctx context.Context, q request) (answer, error) {
	if s, ok := n.store.(*madeStore); ok {
		return answer{}, s.make(q)
	}
	if q.Keep {
		if _, err := os.Stat(q.File); err == nil {
			return answer{}, nil
		}
	}
	defer debug.FreeOSMemory() // what was needed here is not the exchange's
	bytesOf := random(q.Seed)
	var list bytes.Buffer
	var batch []blocks.Block
	for i := range q.Count {
		data := make([]byte, q.Size)
		bytesOf.Read(data)
		c, err := prefix.Sum(data)
		if err != nil {
			return answer{}, err
		}
		b, err := blocks.NewBlockWithCid(data, c)
		if err != nil {
			return answer{}, err
		}
		fmt.Fprintln(&list, c)
		if batch = append(batch, b); len(batch) == 128 || i == q.Count-1 {
			if err := n.store.PutMany(ctx, batch); err != nil {
				return answer{}, err
			}
			batch = batch[:0]
		}
	}
	return answer{}, os.WriteFile(q.File, list.Bytes(), 0o644)
}

func readList(file string) ([]cid.Cid, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []cid.Cid
	for s := range strings.Lines(string(b)) {
		c, err := cid.Decode(strings.TrimSpace(s))
		if err != nil {
			return nil, &fs.PathError{Op: "read list", Path: file, Err: err}
		}
		list = append(list, c)
	}
	return list, nil
}

// dagAdd stores a UnixFS file of random bytes as Kubo does with
// "ipfs add --cid-version 1".
func (n *node) dagAdd(ctx context.Context, q request) (answer, error) {
	defer debug.FreeOSMemory()
	p := helpers.DagBuilderParams{
		Dagserv:    merkledag.NewDAGService(blockservice.New(n.store, nil)),
		RawLeaves:  true,
		Maxlinks:   helpers.DefaultLinksPerBlock,
		CidBuilder: merkledag.V1CidPrefix(),
	}
	file := chunk.NewSizeSplitter(io.LimitReader(random(q.Seed), q.Bytes), int64(q.Size))
	builder, err := p.New(file)
	if err != nil {
		return answer{}, err
	}
	root, err := balanced.Layout(builder)
	if err != nil {
		return answer{}, err
	}
	return answer{Root: root.Cid().String()}, ctx.Err()
}
