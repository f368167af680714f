package exchangetest

import (
	"context"
	"slices"
	"sync"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
)

var (
	_ exchange.Blocks       = (*Blocks)(nil)
	_ blockstore.Blockstore = (*Blocks)(nil)
	_ exchange.Leaves       = (*Leaves)(nil)
	_ exchange.Router       = routerView{}
)

// Blocks is a block store in memory: an exchange.Blocks to serve from, and a
// boxo Blockstore to put under a blockservice. As every boxo store it looks
// blocks up by multihash: a block that was put under one codec is found under
// another, with the CID that was asked for. Its methods may be called from any
// goroutine. Stored bytes are shared, not copied.
type Blocks struct {
	mu   sync.Mutex
	data map[string][]byte // by multihash
}

// NewBlocks makes a store that holds the blocks given.
func NewBlocks(list ...blocks.Block) *Blocks {
	b := &Blocks{data: make(map[string][]byte)}
	for _, blk := range list {
		b.data[string(blk.Cid().Hash())] = blk.RawData()
	}
	return b
}

func (b *Blocks) find(op string, c cid.Cid) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.data[string(c.Hash())]
	if !ok {
		return nil, errs.E(errs.NotFound, errs.Caller, op, c.String(), ipld.ErrNotFound{Cid: c})
	}
	return data, nil
}

// Size implements exchange.Blocks.
func (b *Blocks) Size(_ context.Context, c cid.Cid) (int, error) {
	data, err := b.find("size of block", c)
	return len(data), err
}

// Get implements exchange.Blocks and blockstore.Blockstore. Its error is of both
// kinds: errs.NotFound, and what ipld.IsNotFound looks for.
func (b *Blocks) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := b.find("get block", c)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, c)
}

// GetSize implements blockstore.Blockstore.
func (b *Blocks) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	n, err := b.Size(ctx, c)
	if err != nil {
		return -1, err
	}
	return n, nil
}

// Has implements blockstore.Blockstore.
func (b *Blocks) Has(_ context.Context, c cid.Cid) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.data[string(c.Hash())]
	return ok, nil
}

// Put implements blockstore.Blockstore.
func (b *Blocks) Put(ctx context.Context, blk blocks.Block) error {
	return b.PutMany(ctx, []blocks.Block{blk})
}

// PutMany implements blockstore.Blockstore.
func (b *Blocks) PutMany(_ context.Context, list []blocks.Block) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, blk := range list {
		b.data[string(blk.Cid().Hash())] = blk.RawData()
	}
	return nil
}

// DeleteBlock implements blockstore.Blockstore.
func (b *Blocks) DeleteBlock(_ context.Context, c cid.Cid) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.data, string(c.Hash()))
	return nil
}

// AllKeysChan implements blockstore.Blockstore: raw CIDs of what was there at the
// call.
func (b *Blocks) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(chan cid.Cid, len(b.data))
	for hash := range b.data {
		out <- cid.NewCidV1(cid.Raw, []byte(hash))
	}
	close(out)
	return out, nil
}

// Leaves is a store of leaf records in memory. Its methods may be called from
// any goroutine.
type Leaves struct {
	mu      sync.Mutex
	records map[leafKey]leafRecord
}

type leafKey struct {
	root  cid.Cid
	index uint64
}

type leafRecord struct {
	block cid.Cid
	proof []byte
}

// NewLeaves makes an empty store.
func NewLeaves() *Leaves { return &Leaves{records: make(map[leafKey]leafRecord)} }

// PutLeaf stores one record in place of what was there.
func (l *Leaves) PutLeaf(root cid.Cid, index uint64, block cid.Cid, proof []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[leafKey{root, index}] = leafRecord{block, proof}
}

// Leaf implements exchange.Leaves.
func (l *Leaves) Leaf(_ context.Context, root cid.Cid, index uint64) (block cid.Cid, proof []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.records[leafKey{root, index}]
	if !ok {
		return cid.Undef, nil, errs.Errorf(errs.NotFound, errs.Caller, "get leaf", "index %d of %s", index, root)
	}
	return r.block, r.proof, nil
}

// Router is content routing in memory, one for all nodes of a test: they find who
// was told to provide. Its methods may be called from any goroutine.
type Router struct {
	mu        sync.Mutex
	providers map[cid.Cid][]peer.AddrInfo
	searches  map[cid.Cid]int
}

// NewRouter makes a router that knows nobody.
func NewRouter() *Router {
	return &Router{providers: make(map[cid.Cid][]peer.AddrInfo), searches: make(map[cid.Cid]int)}
}

// Provide adds providers of c, to be found in this order.
func (r *Router) Provide(c cid.Cid, who ...peer.AddrInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.providers[c] = append(r.providers[c], who...)
}

// Searches is how often c was searched for, by any node.
func (r *Router) Searches(c cid.Cid) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.searches[c]
}

// For is the router as one node sees it: it does not find itself.
func (r *Router) For(self peer.ID) exchange.Router { return routerView{r, self} }

type routerView struct {
	router *Router
	self   peer.ID
}

// FindProviders implements exchange.Router. It starts no goroutine: the channel
// holds all that it will send.
func (v routerView) FindProviders(ctx context.Context, c cid.Cid, limit int) <-chan peer.AddrInfo {
	r := v.router
	r.mu.Lock()
	r.searches[c]++
	found := slices.Clone(r.providers[c])
	r.mu.Unlock()
	found = slices.DeleteFunc(found, func(p peer.AddrInfo) bool { return p.ID == v.self })
	found = found[:min(len(found), max(limit, 0))]
	if ctx.Err() != nil {
		found = nil
	}
	out := make(chan peer.AddrInfo, len(found))
	for _, p := range found {
		out <- p
	}
	close(out)
	return out
}
