package exchangetest

import (
	"context"
	"sync"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

var _ boxo.SessionExchange = (*MeshExchange)(nil)

// A Mesh is the smallest exchange there can be: nodes in one process that look
// into each other's stores. It passes the whole suite, which shows that the
// suite asks for nothing that needs a protocol; and it stands in for an exchange
// in tests of what lies above one. It starts no goroutine. Its methods may be
// called from any.
type Mesh struct {
	mu    sync.Mutex // guards all below, and the exchanges
	nodes []*MeshExchange
	links map[[2]int]bool // both orders
}

// NewMesh makes n nodes that are not connected.
func NewMesh(n int) *Mesh {
	stores := make([]*Blocks, n)
	for i := range stores {
		stores[i] = NewBlocks()
	}
	return newMesh(stores)
}

// Twin makes another mesh over the same stores, also not connected: a second
// exchange for each node.
func (m *Mesh) Twin() *Mesh {
	var stores []*Blocks
	for _, x := range m.nodes {
		stores = append(stores, x.store)
	}
	return newMesh(stores)
}

func newMesh(stores []*Blocks) *Mesh {
	m := &Mesh{links: make(map[[2]int]bool)}
	for i, store := range stores {
		m.nodes = append(m.nodes, &MeshExchange{mesh: m, index: i, store: store, gets: make(map[*meshGet]struct{})})
	}
	return m
}

// Exchange is the exchange of node i.
func (m *Mesh) Exchange(i int) *MeshExchange { return m.nodes[i] }

// Blocks is the store of node i.
func (m *Mesh) Blocks(i int) *Blocks { return m.nodes[i].store }

// Connect links two nodes; each gets what it waits for from the other.
func (m *Mesh) Connect(i, j int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.links[[2]int{i, j}], m.links[[2]int{j, i}] = true, true
	m.nodes[i].look()
	m.nodes[j].look()
}

// Disconnect cuts the link between two nodes.
func (m *Mesh) Disconnect(i, j int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.links, [2]int{i, j})
	delete(m.links, [2]int{j, i})
}

// A MeshExchange is one node of a Mesh. Blocks are delivered in the order in
// which they were asked for, if they are there.
type MeshExchange struct {
	mesh   *Mesh
	index  int
	store  *Blocks
	closed bool
	gets   map[*meshGet]struct{}
}

// A meshGet is a call of GetBlocks that is under way. Guarded by Mesh.mu.
type meshGet struct {
	keys map[cid.Cid]struct{} // still wanted
	out  chan blocks.Block    // with room for all
	stop []func() bool
}

// find looks into the stores of connected nodes.
func (x *MeshExchange) find(c cid.Cid) blocks.Block {
	for _, y := range x.mesh.nodes {
		if x.mesh.links[[2]int{x.index, y.index}] && !y.closed {
			if b, err := y.store.Get(context.Background(), c); err == nil {
				return b
			}
		}
	}
	return nil
}

// look tries to satisfy everything that this node waits for.
func (x *MeshExchange) look() {
	for g := range x.gets {
		for c := range g.keys {
			if b := x.find(c); b != nil {
				x.deliver(g, b)
			}
		}
	}
}

func (x *MeshExchange) deliver(g *meshGet, b blocks.Block) {
	if _, wanted := g.keys[b.Cid()]; wanted {
		delete(g.keys, b.Cid())
		g.out <- b
		if len(g.keys) == 0 {
			x.end(g)
		}
	}
}

// end closes the channel of a get, once.
func (x *MeshExchange) end(g *meshGet) {
	if _, running := x.gets[g]; running {
		delete(x.gets, g)
		close(g.out)
		for _, stop := range g.stop {
			stop()
		}
	}
}

// get starts a get that ends with any of the contexts.
func (x *MeshExchange) get(keys []cid.Cid, ctxs ...context.Context) (<-chan blocks.Block, error) {
	const op = "get blocks"
	g := &meshGet{keys: make(map[cid.Cid]struct{}), out: make(chan blocks.Block, len(keys))}
	for i, c := range keys {
		if !c.Defined() {
			return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "cid %d of %d is undefined", i+1, len(keys))
		}
		g.keys[c] = struct{}{}
	}
	x.mesh.mu.Lock()
	defer x.mesh.mu.Unlock()
	if x.closed {
		return nil, errs.E(errs.Closed, errs.Caller, op, "", nil)
	}
	for _, ctx := range ctxs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	x.gets[g] = struct{}{}
	if len(g.keys) == 0 {
		x.end(g)
	}
	for _, ctx := range ctxs {
		g.stop = append(g.stop, context.AfterFunc(ctx, func() {
			x.mesh.mu.Lock()
			defer x.mesh.mu.Unlock()
			x.end(g)
		}))
	}
	for _, c := range keys {
		if b := x.find(c); b != nil {
			x.deliver(g, b)
		}
	}
	return g.out, nil
}

func (x *MeshExchange) getOne(c cid.Cid, ctxs ...context.Context) (blocks.Block, error) {
	out, err := x.get([]cid.Cid{c}, ctxs...)
	if err != nil {
		return nil, err
	}
	if b, ok := <-out; ok {
		return b, nil
	}
	for _, ctx := range ctxs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return nil, errs.E(errs.Closed, errs.Caller, "get block", c.String(), nil)
}

// GetBlock implements boxo's exchange.Fetcher.
func (x *MeshExchange) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return x.getOne(c, ctx)
}

// GetBlocks implements boxo's exchange.Fetcher.
func (x *MeshExchange) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	return x.get(keys, ctx)
}

// NewSession implements boxo's exchange.SessionExchange.
func (x *MeshExchange) NewSession(ctx context.Context) boxo.Fetcher { return meshSession{x, ctx} }

type meshSession struct {
	x   *MeshExchange
	ctx context.Context
}

func (s meshSession) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return s.x.getOne(c, ctx, s.ctx)
}

func (s meshSession) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	return s.x.get(keys, ctx, s.ctx)
}

// NotifyNewBlocks implements boxo's exchange.Interface.
func (x *MeshExchange) NotifyNewBlocks(_ context.Context, list ...blocks.Block) error {
	x.mesh.mu.Lock()
	defer x.mesh.mu.Unlock()
	if x.closed {
		return nil
	}
	for g := range x.gets {
		for _, b := range list {
			x.deliver(g, b)
		}
	}
	for _, y := range x.mesh.nodes {
		if x.mesh.links[[2]int{x.index, y.index}] {
			y.look()
		}
	}
	return nil
}

// GetWantlist is what is being waited for, each CID once.
func (x *MeshExchange) GetWantlist() []cid.Cid {
	x.mesh.mu.Lock()
	defer x.mesh.mu.Unlock()
	set := cid.NewSet()
	for g := range x.gets {
		for c := range g.keys {
			set.Add(c)
		}
	}
	return set.Keys()
}

// Close ends everything that waits.
func (x *MeshExchange) Close() error {
	x.mesh.mu.Lock()
	defer x.mesh.mu.Unlock()
	x.closed = true
	for g := range x.gets {
		x.end(g)
	}
	return nil
}
