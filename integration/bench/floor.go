package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	floorProtocol protocol.ID = "/codexchange/bench/floor/1"

	floorAhead = 16      // blocks read from the store ahead of what is being written
	floorBlock = 4 << 20 // largest block, bytes
)

// A floor is the least that a transfer can be: each GetBlocks opens one stream
// to the only peer and sends all CIDs, each after a byte of length; the blocks
// come back in order, each after four bytes of length, and are verified. A block
// that is missing ends the stream.
type floor struct {
	host           host.Host
	store          blockstore.Blockstore
	received, sent atomic.Uint64 // bytes of blocks
}

func newFloor(h host.Host, store blockstore.Blockstore) *floor {
	f := &floor{host: h, store: store}
	h.SetStreamHandler(floorProtocol, f.serve)
	return f
}

// serve answers one list. One goroutine reads CIDs, one for each block ahead
// reads the store, and this one writes; all end with the stream.
func (f *floor) serve(s network.Stream) {
	type loaded struct {
		data []byte
		err  error
	}
	ahead := make(chan chan loaded, floorAhead)
	go func() {
		defer close(ahead)
		r := bufio.NewReaderSize(s, 64<<10)
		for {
			c, err := readFloorCid(r)
			if err != nil {
				return
			}
			slot := make(chan loaded, 1)
			ahead <- slot
			go func() {
				b, err := f.store.Get(context.Background(), c)
				if err != nil {
					slot <- loaded{err: err}
					return
				}
				slot <- loaded{data: b.RawData()}
			}()
		}
	}()
	defer func() {
		for range ahead { // lets the reader end
		}
	}()
	w := bufio.NewWriterSize(s, 64<<10)
	for slot := range ahead {
		b := <-slot
		if b.err == nil {
			var size [4]byte
			binary.BigEndian.PutUint32(size[:], uint32(len(b.data)))
			w.Write(size[:])
			_, b.err = w.Write(b.data)
		}
		if b.err == nil && len(ahead) == 0 {
			b.err = w.Flush()
		}
		if b.err != nil {
			s.Reset()
			return
		}
		f.sent.Add(uint64(len(b.data)))
	}
	if w.Flush() != nil {
		s.Reset()
		return
	}
	s.Close()
}

func readFloorCid(r *bufio.Reader) (cid.Cid, error) {
	n, err := r.ReadByte()
	if err != nil {
		return cid.Undef, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return cid.Undef, err
	}
	return cid.Cast(b)
}

// GetBlocks implements boxo's Fetcher. The channel is closed early if anything
// goes wrong.
func (f *floor) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	peers := f.host.Network().Peers()
	if len(peers) == 0 {
		return nil, errors.New("floor: no peer")
	}
	s, err := f.host.NewStream(ctx, peers[0], floorProtocol)
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	go func() {
		w := bufio.NewWriterSize(s, 64<<10)
		for _, c := range keys {
			w.WriteByte(byte(c.ByteLen()))
			w.Write(c.Bytes())
		}
		w.Flush() // an error shows on the way back
		s.CloseWrite()
	}()

	type arrived struct {
		cid  cid.Cid
		data []byte
	}
	in := make(chan arrived, floorAhead)
	go func() {
		defer close(in)
		defer s.Close()
		defer stop()
		r := bufio.NewReaderSize(s, 256<<10)
		for _, c := range keys {
			var size [4]byte
			if _, err := io.ReadFull(r, size[:]); err != nil {
				return
			}
			n := binary.BigEndian.Uint32(size[:])
			if n > floorBlock {
				s.Reset()
				return
			}
			data := make([]byte, n)
			if _, err := io.ReadFull(r, data); err != nil {
				return
			}
			f.received.Add(uint64(n))
			in <- arrived{c, data}
		}
	}()

	out := make(chan blocks.Block, floorAhead)
	var verifiers sync.WaitGroup
	for range 2 {
		verifiers.Go(func() {
			for a := range in {
				if got, err := a.cid.Prefix().Sum(a.data); err != nil || !got.Equals(a.cid) {
					continue
				}
				b, err := blocks.NewBlockWithCid(a.data, a.cid)
				if err != nil {
					continue
				}
				select {
				case out <- b:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() {
		verifiers.Wait()
		close(out)
	}()
	return out, nil
}

// GetBlock implements boxo's Fetcher.
func (f *floor) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ch, err := f.GetBlocks(ctx, []cid.Cid{c})
	if err != nil {
		return nil, err
	}
	b, ok := <-ch
	if !ok {
		return nil, fmt.Errorf("floor: get %s: no block came", c)
	}
	return b, nil
}

// NewSession implements boxo's SessionExchange: there is nothing to share.
func (f *floor) NewSession(context.Context) boxo.Fetcher { return f }

// NotifyNewBlocks implements boxo's Interface: nobody waits.
func (f *floor) NotifyNewBlocks(context.Context, ...blocks.Block) error { return nil }

// Close implements boxo's Interface. Streams end with the host.
func (f *floor) Close() error {
	f.host.RemoveStreamHandler(floorProtocol)
	return nil
}
