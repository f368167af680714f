package exchange_test

import (
	"bytes"
	"context"
	"fmt"
	"log"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	adapter "github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/leaves"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/manifest"
	"github.com/codexchange/codexchange/exchange/wire"
)

// A program has a libp2p host and a store, and takes part in the exchange of
// blocks.
type program struct {
	host     host.Host
	store    blockstore.Blockstore
	leaves   *leaves.Store
	exchange *exchange.Exchange
}

// start puts the parts together. The host listens last, when there is somebody to
// answer.
func start() *program {
	key, err := p2p.NewIdentity()
	if err != nil {
		log.Fatal(err)
	}
	h, err := libp2p.New(append(p2p.HostOptions(), libp2p.Identity(key), libp2p.NoListenAddrs)...)
	if err != nil {
		log.Fatal(err)
	}
	network, err := p2p.New(h, p2p.Options{})
	if err != nil {
		log.Fatal(err)
	}
	data := sync.MutexWrap(datastore.NewMapDatastore())
	p := &program{host: h, store: blockstore.NewBlockstore(data), leaves: leaves.New(data)}
	p.exchange, err = exchange.New(exchange.Config{
		Network: network,
		Blocks:  adapter.New(p.store),
		Leaves:  p.leaves,
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := h.Network().Listen(multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		log.Fatal(err)
	}
	return p
}

// stop ends the exchange before the host that it uses.
func (p *program) stop() {
	p.exchange.Close()
	p.host.Close()
}

func (p *program) connect(q *program) {
	if err := p.host.Connect(context.Background(), peer.AddrInfo{ID: q.host.ID(), Addrs: q.host.Addrs()}); err != nil {
		log.Fatal(err)
	}
}

// An exchange under a blockservice: what one program adds, the other reads. The
// blockservice stores what it fetches and tells the exchange, so the block can be
// served on.
func Example() {
	ctx := context.Background()
	alice, bob := start(), start()
	defer alice.stop()
	defer bob.stop()
	bob.connect(alice)

	block := blocks.NewBlock([]byte("a block of Alice's"))
	if err := blockservice.New(alice.store, alice.exchange).AddBlock(ctx, block); err != nil {
		log.Fatal(err)
	}

	got, err := blockservice.New(bob.store, bob.exchange).GetBlock(ctx, block.Cid())
	if err != nil {
		log.Fatal(err)
	}
	stored, err := bob.store.Has(ctx, block.Cid())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s (stored: %v)\n", got.RawData(), stored)

	// Output:
	// a block of Alice's (stored: true)
}

// Requests that belong together go through a session, which learns who has what
// is asked for: here block after block of a list that is only known block by
// block.
func ExampleExchange_NewSession() {
	alice, bob := start(), start()
	defer alice.stop()
	defer bob.stop()
	bob.connect(alice)

	var next cid.Cid
	for i := range 3 { // each block names the one before
		b := blocks.NewBlock(append(next.Bytes(), byte(i)))
		if err := alice.store.Put(context.Background(), b); err != nil {
			log.Fatal(err)
		}
		next = b.Cid()
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends the session, and what it may still be asking for
	session := bob.exchange.NewSession(ctx)
	for next.Defined() {
		b, err := session.GetBlock(ctx, next)
		if err != nil {
			log.Fatal(err)
		}
		data := b.RawData()
		fmt.Println("block", data[len(data)-1])
		if _, next, err = cid.CidFromBytes(data); err != nil {
			next = cid.Undef // the first block names none
		}
	}

	// Output:
	// block 2
	// block 1
	// block 0
}

// A Codex dataset is fetched by its tree and the indices of its blocks. Whoever
// fetches stores block and proof, and can then serve them on.
func ExampleExchange_GetLeaves() {
	ctx := context.Background()
	alice, bob := start(), start()
	defer alice.stop()
	defer bob.stop()
	bob.connect(alice)

	// Alice adds a file: its blocks, their proofs, and last the manifest.
	file := bytes.Repeat([]byte("Codex "), 100_000)
	ds, err := manifest.Build(ctx, bytes.NewReader(file), manifest.Options{Filename: "codex.txt"},
		func(_ uint64, b blocks.Block) error { return alice.store.Put(ctx, b) })
	if err != nil {
		log.Fatal(err)
	}
	if err := alice.leaves.AddTree(ctx, ds.Tree); err != nil {
		log.Fatal(err)
	}
	block, err := ds.Manifest.Block()
	if err != nil {
		log.Fatal(err)
	}
	if err := alice.store.Put(ctx, block); err != nil {
		log.Fatal(err)
	}

	// Bob knows the CID of the manifest, and reads some bytes from the middle.
	if block, err = bob.exchange.GetBlock(ctx, block.Cid()); err != nil {
		log.Fatal(err)
	}
	m, err := manifest.Decode(block)
	if err != nil {
		log.Fatal(err)
	}
	const offset, length = 300_000, 18
	first, count := m.BlockRange(offset, length)
	fmt.Printf("%s: block %d of %d\n", m.Filename, first, m.BlockCount())
	got, err := bob.exchange.GetLeaves(ctx, exchange.Tree{Root: m.TreeCid, Leaves: m.BlockCount()}, wire.Range{First: first, Count: count})
	if err != nil {
		log.Fatal(err)
	}
	for leaf := range got {
		if err := bob.store.Put(ctx, leaf); err != nil {
			log.Fatal(err)
		}
		if err := bob.leaves.Put(ctx, leaf.Root, leaf.Index, leaf.Cid(), leaf.Proof); err != nil {
			log.Fatal(err)
		}
		if err := bob.exchange.NotifyNewLeaves(ctx, leaf.Root, wire.Range{First: leaf.Index, Count: 1}); err != nil {
			log.Fatal(err)
		}
		at := offset - int(leaf.Index)*int(m.BlockSize)
		fmt.Printf("%q\n", leaf.RawData()[at:at+length])
	}

	// Output:
	// codex.txt: block 4 of 10
	// "Codex Codex Codex "
}
