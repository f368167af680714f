package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockservice"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/boxo/ipld/merkledag"
	unixfs "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// throughput is what all transfers yield.
func throughput(bytes int64, took time.Duration) figures {
	s := took.Seconds()
	return figures{"wall_s": s, "bytes": float64(bytes), "MBps": float64(bytes) / 1e6 / s}
}

// fetch gets every block of a list through a session of a blockservice.
func (n *node) fetch(ctx context.Context, q request) (answer, error) {
	list, err := readList(q.File)
	if err != nil {
		return answer{}, err
	}
	missing := make(map[cid.Cid]bool, len(list))
	for _, c := range list {
		missing[c] = true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	start := time.Now()
	session := blockservice.NewSession(ctx, blockservice.New(n.store, n.exchange))
	get := func(keys []cid.Cid) <-chan blocks.Block { return session.GetBlocks(ctx, keys) }
	var first time.Duration
	var bytes int64
	for b := range windowed(list, q.Window, get) {
		if first == 0 {
			first = time.Since(start)
		}
		if !missing[b.Cid()] {
			return answer{}, fmt.Errorf("block %s: came twice or was not asked for", b.Cid())
		}
		delete(missing, b.Cid())
		bytes += int64(len(b.RawData()))
	}
	took := time.Since(start)
	if len(missing) > 0 {
		return answer{}, fmt.Errorf("%d of %d blocks did not come: %w", len(missing), len(list), context.Cause(ctx))
	}
	f := throughput(bytes, took)
	f["blocks_per_s"] = float64(len(list)) / took.Seconds()
	f["first_ms"] = first.Seconds() * 1e3
	return answer{Figures: f}, nil
}

// windowed asks for a list in parts, so that at most window blocks are wanted at
// a time; 0 asks for everything at once.
func windowed(list []cid.Cid, window int, get func([]cid.Cid) <-chan blocks.Block) <-chan blocks.Block {
	if window == 0 {
		return get(list)
	}
	const part = 32
	parts := make(chan []cid.Cid)
	out := make(chan blocks.Block)
	var getters sync.WaitGroup
	for range max(1, window/part) {
		getters.Go(func() {
			for keys := range parts {
				for b := range get(keys) {
					out <- b
				}
			}
		})
	}
	go func() {
		for len(list) > 0 {
			k := min(part, len(list))
			parts <- list[:k]
			list = list[k:]
		}
		close(parts)
		getters.Wait()
		close(out)
	}()
	return out
}

// latency gets the blocks of a list one after the other from the exchange, which
// stores nothing: in one session, or each without.
func (n *node) latency(ctx context.Context, q request) (answer, error) {
	list, err := readList(q.File)
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var from boxo.Fetcher = n.exchange
	if q.Way == "session" {
		from = n.exchange.NewSession(ctx)
	}
	return timed(len(list), func(i int) error {
		_, err := from.GetBlock(ctx, list[i])
		return err
	})
}

// timed does something count times, one after the other.
func timed(count int, do func(i int) error) (answer, error) {
	var us []float64
	start := time.Now()
	for i := range count {
		begun := time.Now()
		if err := do(i); err != nil {
			return answer{}, err
		}
		us = append(us, float64(time.Since(begun).Nanoseconds())/1e3)
	}
	return answer{Figures: figures{
		"wall_s": time.Since(start).Seconds(), "first_us": us[0],
		"p50_us": median(us), "p99_us": quantile(us, 0.99), "max_us": quantile(us, 1),
	}}, nil
}

// dagWalk fetches a UnixFS file: "graph" all blocks under the root, as
// "ipfs pin add" does; "reader" in the order of its bytes, as "ipfs cat" does.
func (n *node) dagWalk(ctx context.Context, q request) (answer, error) {
	root, err := cid.Decode(q.Root)
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dag := merkledag.NewDAGService(blockservice.New(n.store, n.exchange))
	start := time.Now()
	switch q.Way {
	case "graph":
		err = merkledag.FetchGraph(ctx, root, dag)
	case "reader":
		err = readFile(ctx, root, dag, q.Bytes)
	default:
		err = fmt.Errorf("unknown way %q, want graph or reader", q.Way)
	}
	if err != nil {
		return answer{}, err
	}
	return answer{Figures: throughput(q.Bytes, time.Since(start))}, nil
}

func readFile(ctx context.Context, root cid.Cid, dag ipld.DAGService, size int64) error {
	session := merkledag.NewSession(ctx, dag)
	nd, err := session.Get(ctx, root)
	if err != nil {
		return err
	}
	r, err := unixfs.NewDagReader(ctx, nd, session)
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.Copy(io.Discard, r)
	if err == nil && got != size {
		err = fmt.Errorf("read file %s: got %d bytes, want %d", root, got, size)
	}
	return err
}

const streamProtocol protocol.ID = "/codexchange/bench/stream/1"

// serveStream answers a number of eight bytes with so many bytes.
func serveStream(s network.Stream) {
	if serveBytes(s) != nil {
		s.Reset()
		return
	}
	s.Close()
}

func serveBytes(c io.ReadWriter) error {
	var size [8]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	random(1).Read(buf)
	for left := binary.BigEndian.Uint64(size[:]); left > 0; {
		k, err := c.Write(buf[:min(left, uint64(len(buf)))])
		if err != nil {
			return err
		}
		left -= uint64(k)
	}
	return nil
}

func receiveBytes(c io.ReadWriter, n int64) (answer, error) {
	start := time.Now()
	if err := binary.Write(c, binary.BigEndian, uint64(n)); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 256<<10)
	for left := n; left > 0; {
		k, err := c.Read(buf)
		if left -= int64(k); err != nil && left > 0 {
			return answer{}, fmt.Errorf("%d bytes did not come: %w", left, err)
		}
	}
	return answer{Figures: throughput(n, time.Since(start))}, nil
}

func (n *node) readStream(ctx context.Context, q request) (answer, error) {
	id, err := peer.Decode(q.Peer)
	if err != nil {
		return answer{}, err
	}
	s, err := n.host.NewStream(ctx, id, streamProtocol)
	if err != nil {
		return answer{}, err
	}
	defer s.Close()
	return receiveBytes(s, q.Bytes)
}

// serveTCP serves byte counts as serveStream does, over bare TCP, one after the
// other on each connection.
func (n *node) serveTCP(_ context.Context, q request) (answer, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(orLoopback(q.IP), "0"))
	if err != nil {
		return answer{}, err
	}
	n.closers = append(n.closers, l.Close)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for serveBytes(c) == nil { // an error shows at the other end
			}
			c.Close()
		}
	}()
	return answer{Addr: l.Addr().String()}, nil
}

// readTCP reads from one connection: everything at once, or count pieces of a size,
// each after the one before.
func (n *node) readTCP(ctx context.Context, q request) (answer, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", q.Addr)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	if q.Count == 0 {
		return receiveBytes(c, q.Bytes)
	}
	return timed(q.Count, func(int) error {
		_, err := receiveBytes(c, int64(q.Size))
		return err
	})
}
