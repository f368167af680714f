package exchange

import (
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/wire"
)

// ask asks the store, for what the peer wants to know and for what it is sent,
// in the order that the engine says. While one message is being written the next
// is read.
func (k *link) ask() {
	for {
		select {
		case <-k.ctx.Done():
			return
		case a := <-k.jobs:
			switch a := a.(type) {
			case engine.Lookup:
				k.exchange.post(input{event: k.lookUp(a)})
			case engine.SendBlocks:
				k.widen()
				k.under.Add(1)
				k.blocks <- k.read(a, k.exchange.refs.Load())
			}
		}
	}
}

// lookUp finds out which blocks the store holds. What the store cannot tell
// counts as not held.
func (k *link) lookUp(a engine.Lookup) engine.Looked {
	ev := engine.Looked{Peer: a.Peer, Epoch: a.Epoch, Items: make([]engine.LookedItem, len(a.Addresses))}
	found := k.locate(a.Addresses)
	k.measure(a.Addresses, found)
	may := k.exchange.cfg.Filter
	for i, addr := range a.Addresses {
		ev.Items[i].Address = addr
		if may != nil && !may(k.peer, addr) {
			continue
		}
		if size := found[i].Size; size >= 0 && k.fits(addr, size) {
			ev.Items[i].Held, ev.Items[i].Size = true, size
		}
	}
	return ev
}

// read makes a message of blocks: of references, or of the bytes. The size of a
// reference is what the store said when it was asked for the block; if that is no
// longer true, the stream breaks, and the message is made of bytes. Blocks that
// are gone are left out, and the engine hears of it.
func (k *link) read(a engine.SendBlocks, refs bool) outgoing {
	out := outgoing{order: a, refs: refs, sent: engine.Sent{Peer: a.Peer, Epoch: a.Epoch, Blocks: true, Message: a.Message}}
	list := make([]wire.Address, len(a.Blocks))
	for i, b := range a.Blocks {
		list[i] = b.Address
	}
	found := k.locate(list)
	for i, addr := range list {
		if found[i].Size == unasked {
			found[i].Size = a.Blocks[i].Size
		}
		d := wire.Delivery{Address: addr, Cid: found[i].Cid, Proof: found[i].Proof}
		held := found[i].Size != absent
		switch {
		case !held:
		case refs && !inCid(d.Cid):
			d.Ref = found[i].Size
		default:
			d.Data, held = k.load(addr, d.Cid)
		}
		if !held || !k.fits(addr, d.Size()) {
			out.sent.Missing = append(out.sent.Missing, addr)
			continue
		}
		out.size += d.Size()
		out.message.Deliveries = append(out.message.Deliveries, d)
	}
	return out
}

// inCid reports whether a CID contains its block. Such a block need not be in any
// store, and is not shorter by reference.
func inCid(c cid.Cid) bool { return c.Prefix().MhType == multihash.IDENTITY }

// load reads a block.
func (k *link) load(a wire.Address, c cid.Cid) ([]byte, bool) {
	b, err := k.exchange.cfg.Blocks.Get(k.ctx, c)
	if err != nil {
		k.complain("read", a, err)
		return nil, false
	}
	return b.RawData(), true
}

// besideBlock is more than what a message holds beside a block: CIDs, a proof.
const besideBlock = 16 << 10

// fits refuses a block that would make a message longer than those we accept, as
// if it were not there: a peer of our kind would close the stream over it, and ask
// again.
func (k *link) fits(a wire.Address, size int) bool {
	most := k.exchange.cfg.MaxFrame - besideBlock
	if size > most {
		k.complain("serve", a, errs.E(errs.TooLarge, errs.Ours, "serve block", a.String(), fmt.Errorf("block is %d bytes, want at most %d", size, most)))
	}
	return size <= most
}

// Sizes that locate and measure leave in a Leaf beside true ones.
const (
	absent  = -1 // the store does not hold the block, or cannot tell
	unasked = -2 // it is known which block it is, and no more
)

// locate finds out which blocks stand at the addresses, and the proofs of those
// that are leaves.
func (k *link) locate(list []wire.Address) []Leaf {
	leaves := k.exchange.cfg.Leaves
	batch, _ := leaves.(LeafBatcher)
	found := make([]Leaf, len(list))
	for i, a := range list {
		switch {
		case !a.Leaf:
			found[i] = Leaf{Cid: a.Root, Size: unasked}
		case leaves == nil || batch != nil:
			found[i].Size = absent
		default:
			c, proof, err := leaves.Leaf(k.ctx, a.Root, a.Index)
			if found[i] = (Leaf{Cid: c, Proof: proof, Size: unasked}); err != nil {
				k.complain("look up", a, err)
				found[i].Size = absent
			}
		}
	}
	if batch != nil {
		k.locateBatch(batch, list, found)
	}
	return found
}

// locateBatch fills in the leaves, with one question for each tree.
func (k *link) locateBatch(batch LeafBatcher, list []wire.Address, found []Leaf) {
	type part struct {
		indices []uint64
		at      []int // in list
	}
	var roots []cid.Cid // in the order in which they are named
	trees := make(map[cid.Cid]*part)
	for i, a := range list {
		if !a.Leaf {
			continue
		}
		p := trees[a.Root]
		if p == nil {
			p = new(part)
			trees[a.Root], roots = p, append(roots, a.Root)
		}
		p.indices, p.at = append(p.indices, a.Index), append(p.at, i)
	}
	for _, root := range roots {
		p := trees[root]
		got, err := batch.LeafBatch(k.ctx, root, p.indices)
		if err = answered(len(got), len(p.indices), err); err != nil {
			k.complain("look up", list[p.at[0]], err)
			continue
		}
		for j, i := range p.at {
			if got[j].Cid.Defined() && got[j].Size >= 0 {
				found[i] = got[j]
			}
		}
	}
}

// measure finds out how long the blocks are of which that is not known.
func (k *link) measure(list []wire.Address, found []Leaf) {
	batch, _ := k.exchange.cfg.Blocks.(Sizer)
	var cids []cid.Cid
	var at []int // in list
	for i := range found {
		switch {
		case found[i].Size != unasked:
		case batch != nil:
			cids, at = append(cids, found[i].Cid), append(at, i)
		default:
			size, err := k.exchange.cfg.Blocks.Size(k.ctx, found[i].Cid)
			if found[i].Size = size; err != nil {
				k.complain("look up", list[i], err)
				found[i].Size = absent
			}
		}
	}
	if len(cids) == 0 {
		return
	}
	sizes, err := batch.Sizes(k.ctx, cids)
	if err = answered(len(sizes), len(cids), err); err != nil {
		k.complain("look up", list[at[0]], err)
	}
	for j, i := range at {
		found[i].Size = absent
		if err == nil {
			found[i].Size = max(sizes[j], absent)
		}
	}
}

// answered refuses an answer that is not one to the question.
func answered(got, want int, err error) error {
	if err == nil && got != want {
		err = errs.Errorf(errs.Storage, errs.Ours, "look up blocks", "store gave %d answers, want %d", got, want)
	}
	return err
}
