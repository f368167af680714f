package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/boxo/verifcid"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/merkle"
	"github.com/codexchange/codexchange/exchange/spans"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// tookBlocks is after how many blocks that a caller has taken the engine hears
// of it, unless the caller has taken all there are.
const tookBlocks = 16

// A getter is one request, between the caller and the loop. The loop sends what
// comes into in, which has room for all that is being asked for, and closes it
// after the last block.
//
// More than that comes when blocks that the request has not got to yet are
// stored, or got by another request. Of those only the address is kept, and the
// block is read from the store when it is its turn.
type getter struct {
	id     engine.GetterID
	in     chan arrival
	traced *traced // nil if it is not
	shared bool    // in belongs to other requests too, and is not closed

	// Owned by loop.
	late []arrival // that found no room in in
	all  bool      // everything has come
}

// give passes an arrival on and does not wait.
func (g *getter) give(a arrival) {
	if len(g.late) == 0 {
		select {
		case g.in <- a:
			return
		default:
		}
	}
	if !a.address.Leaf {
		lent.Free(a.block)
		a.block = nil // see again
	}
	g.late = append(g.late, a)
}

// catchUp is called when the caller has taken something, or everything has come.
func (g *getter) catchUp() {
	for len(g.late) > 0 {
		select {
		case g.in <- g.late[0]:
			g.late[0] = arrival{}
			g.late = g.late[1:]
		default:
			return
		}
	}
	g.late = nil
	if g.all && !g.shared {
		close(g.in)
	}
}

// An arrival is a verified block, with its address, and its proof if it is a leaf.
type arrival struct {
	block   blocks.Block
	address wire.Address
	proof   []byte
	getter  engine.GetterID // that it came for
}

func (e *Exchange) newGetter(session engine.SessionID, wants []wire.Want) (*getter, engine.Want) {
	var n uint64
	for _, w := range wants {
		n += w.Len()
	}
	g := &getter{
		id: engine.GetterID(e.nextID.Add(1)),
		in: make(chan arrival, min(n, uint64(e.cfg.Window))),
	}
	ev := engine.Want{Getter: g.id, Session: session, Wants: wants}
	if n > uint64(e.cfg.Window) && !wants[0].Leaf {
		ev.Later = make(map[cid.Cid]struct{}, len(wants))
		for _, w := range wants {
			ev.Later[w.Root] = struct{}{}
		}
	}
	return g, ev
}

// start begins a request. Who started it calls view.remove with its wants when it
// has ended, if it was started.
func (e *Exchange) start(ctx context.Context, session engine.SessionID, wants []wire.Want) (*getter, bool) {
	g, ev := e.newGetter(session, wants)
	g.traced = newTraced(ctx, wants)
	e.view.add(wants)
	if !e.post(input{event: ev, getter: g}) {
		e.view.remove(wants)
		return nil, false
	}
	return g, true
}

// again gets a block that came when there was no room for it: from the local
// store, where it is by now as a rule, or else from a peer. False means that ctx
// has ended or the exchange has closed.
func (e *Exchange) again(ctx context.Context, a wire.Address) (arrival, bool) {
	b, err := e.cfg.Blocks.Get(ctx, a.Root)
	if err != nil {
		b, err = e.getBlock(ctx, 0, a.Root)
	}
	return arrival{block: b, address: a}, err == nil
}

// drop ends a request of which nobody takes anything any more.
func (e *Exchange) drop(g *getter) {
	e.post(input{event: engine.Drop{Getter: g.id}, getter: g})
}

// leave gives back what was lent of blocks that have come and were not taken.
func (g *getter) leave() {
	for !g.shared {
		select {
		case a, ok := <-g.in:
			if !ok {
				return
			}
			lent.Free(a.block)
		default:
			return
		}
	}
}

func (e *Exchange) getBlock(ctx context.Context, session engine.SessionID, c cid.Cid) (_ blocks.Block, err error) {
	const op = "get block"
	ctx, span := spans.Start(ctx, "exchange.GetBlock")
	span.Cid(c)
	defer func() { span.End(err) }()
	if err := checkKey(op, c); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, gaveUp(ctx, op, c)
	}
	wants := []wire.Want{wire.WantCid(c)}
	g, ok := e.start(ctx, session, wants)
	if !ok {
		return nil, closed(op, wire.CidString(c))
	}
	defer e.view.remove(wants)
	select {
	case a := <-g.in:
		return a.block, nil
	case <-ctx.Done():
		e.drop(g)
		return nil, gaveUp(ctx, op, c)
	case <-e.stopped:
		return nil, closed(op, wire.CidString(c))
	}
}

// gaveUp says that a context has ended, and why if it says more than that.
func gaveUp(ctx context.Context, op string, c cid.Cid) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return errs.E(errs.Other, errs.Caller, op, wire.CidString(c), err)
}

func closed(op, subject string) error { return errs.E(errs.Closed, errs.Caller, op, subject, nil) }

// checkKey refuses CIDs that cannot be asked for: those that no message can carry,
// and those that prove nothing of a block, which no peer must be blamed for.
func checkKey(op string, c cid.Cid) error {
	invalid := func(cause error) error {
		return errs.E(errs.Invalid, errs.Caller, op, wire.CidString(c), cause)
	}
	if !c.Defined() {
		return invalid(errors.New("the cid is undefined"))
	}
	if n := c.ByteLen(); n > blockexc.MaxCID {
		return invalid(fmt.Errorf("cid is %d bytes, want at most %d", n, blockexc.MaxCID))
	}
	if err := verifcid.ValidateCid(verifcid.DefaultAllowlist, c); err != nil {
		return invalid(fmt.Errorf("hash function is 0x%x: %w", c.Prefix().MhType, err))
	}
	return nil
}

// checkTree refuses what is not the root of a tree that proofs can lead to.
func checkTree(op string, root cid.Cid) error {
	invalid := func(cause error) error {
		return errs.E(errs.Invalid, errs.Caller, op, wire.CidString(root), cause)
	}
	if !root.Defined() {
		return invalid(errors.New("the cid is undefined"))
	}
	if codec := root.Prefix().Codec; codec != codex.TreeCodec {
		return invalid(fmt.Errorf("codec is 0x%x, want 0x%x (the root of a Codex tree)", codec, codex.TreeCodec))
	}
	if _, err := codex.Digest(root); err != nil {
		return invalid(err)
	}
	return nil
}

// checkIndices refuses indices that no tree has.
func checkIndices(op string, tree Tree, indices []wire.Range) error {
	end := uint64(merkle.MaxLeaves)
	if tree.Leaves > 0 {
		end = min(end, tree.Leaves)
	}
	for _, r := range indices {
		if r.Count > 0 && (r.First >= end || r.Count > end-r.First) {
			return errs.E(errs.Invalid, errs.Caller, op, wire.CidString(tree.Root),
				fmt.Errorf("range is %d indices from %d, want them less than %d", r.Count, r.First, end))
		}
	}
	return nil
}

// getBlocks calls see, if it is not nil, with each block before it is passed on.
func (e *Exchange) getBlocks(ctx context.Context, session engine.SessionID, keys []cid.Cid, see func(blocks.Block), done ...func()) (<-chan blocks.Block, error) {
	wants := make([]wire.Want, 0, len(keys))
	seen := make(map[cid.Cid]struct{}, len(keys))
	for _, c := range keys {
		if err := checkKey("get blocks", c); err != nil {
			for _, f := range done {
				f()
			}
			return nil, err
		}
		if _, again := seen[c]; !again {
			seen[c] = struct{}{}
			wants = append(wants, wire.WantCid(c))
		}
	}
	return pump(ctx, e, session, "get blocks", wants, func(a arrival) blocks.Block {
		if see != nil {
			see(a.block)
		}
		return a.block
	}, done)
}

func (e *Exchange) getLeaves(ctx context.Context, session engine.SessionID, tree Tree, indices []wire.Range, done ...func()) (<-chan LeafBlock, error) {
	const op = "get leaves"
	if err := checkTree(op, tree.Root); err != nil {
		return nil, err
	}
	if err := checkIndices(op, tree, indices); err != nil {
		return nil, err
	}
	var wants []wire.Want
	if want := wire.WantLeaves(tree.Root, indices...); want.Len() > 0 {
		wants = []wire.Want{want}
	}
	return pump(ctx, e, session, op, wants, func(a arrival) LeafBlock {
		return LeafBlock{Block: a.block, Root: a.address.Root, Index: a.address.Index, Proof: proofFor(tree, a)}
	}, done)
}

// proofFor gives the proof of a leaf as it belongs into a tree with a known number of
// leaves. The root does not contain the number, so a proof may state another one
// of the same depth and lead to the root all the same; the path, which is what
// is hashed, is that of the true number then. Whoever is served the proof later
// may compare. If the path does not fit, it is the tree that states a wrong number,
// and the proof stays as it came.
func proofFor(tree Tree, a arrival) []byte {
	if tree.Leaves == 0 {
		return a.proof
	}
	p, err := merkle.DecodeProof(a.proof)
	if err != nil || p.Leaves == tree.Leaves {
		return a.proof
	}
	p.Leaves = tree.Leaves
	proof := p.Marshal()
	if merkle.VerifyLeaf(proof, a.address.Root, a.address.Index, a.block.Cid(), tree.Leaves) != nil {
		return a.proof
	}
	return proof
}

// pump starts a request, and a goroutine that passes on to the caller what comes
// and tells the engine how much the caller has taken. It ends, after closing the
// channel and calling done, when everything has come, ctx ends or the exchange
// closes.
func pump[T any](ctx context.Context, e *Exchange, session engine.SessionID, op string, wants []wire.Want, as func(arrival) T, done []func()) (<-chan T, error) {
	finish := func() {
		for _, f := range done {
			f()
		}
	}
	out := make(chan T)
	if len(wants) == 0 || ctx.Err() != nil {
		close(out)
		finish()
		select {
		case <-e.stopped:
			return nil, closed(op, "")
		default:
			return out, nil
		}
	}
	traced, span := traceMany(ctx, wants)
	g, started := e.start(traced, session, wants)
	if started && e.goes(func() {
		defer finish()
		defer close(out)
		defer e.view.remove(wants)
		if forward(traced, e, g, out, as) {
			span.End(nil)
		} else {
			span.End(errLeft)
			e.drop(g)
		}
	}) {
		return out, nil
	}
	span.End(errs.Closed)
	if started {
		e.view.remove(wants)
	}
	finish()
	return nil, closed(op, "")
}

// forward reports whether everything came and was taken.
func forward[T any](ctx context.Context, e *Exchange, g *getter, out chan<- T, as func(arrival) T) bool {
	took := engine.Took{Getter: g.id}
	for {
		var a arrival
		var more bool
		select {
		case a, more = <-g.in:
			if !more {
				return true
			}
			if a.block == nil {
				if a, more = e.again(ctx, a.address); !more {
					return false
				}
			}
		case <-ctx.Done():
			return false
		case <-e.stopped:
			return false
		}
		select {
		case out <- as(a):
		case <-ctx.Done():
			lent.Free(a.block)
			return false
		case <-e.stopped:
			lent.Free(a.block)
			return false
		}
		took.Blocks++
		took.Bytes += sizeOf(a.block)
		if len(g.in) == 0 || took.Blocks >= tookBlocks || took.Bytes >= e.cfg.BufferedBytes/4 {
			e.post(input{event: took})
			took.Blocks, took.Bytes = 0, 0
		}
	}
}
