package exchange

import (
	"fmt"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

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
				k.blocks <- k.read(a)
			}
		}
	}
}

// lookUp finds out which blocks the store holds. What the store cannot tell
// counts as not held.
func (k *link) lookUp(a engine.Lookup) engine.Looked {
	ev := engine.Looked{Peer: a.Peer, Epoch: a.Epoch, Items: make([]engine.LookedItem, len(a.Addresses))}
	for i, addr := range a.Addresses {
		ev.Items[i].Address = addr
		c, _, err := k.resolve(addr)
		if err == nil {
			ev.Items[i].Size, err = k.exchange.cfg.Blocks.Size(k.ctx, c)
		}
		if err == nil {
			err = k.fits(addr, ev.Items[i].Size)
		}
		ev.Items[i].Held = err == nil
		k.complain("look up", addr, err)
	}
	return ev
}

// read reads the blocks of a message. Those that are gone are left out, and the
// engine hears of it.
func (k *link) read(a engine.SendBlocks) outgoing {
	out := outgoing{sent: engine.Sent{Peer: a.Peer, Epoch: a.Epoch, Blocks: true}}
	for _, b := range a.Blocks {
		c, proof, err := k.resolve(b.Address)
		var blk blocks.Block
		if err == nil {
			blk, err = k.exchange.cfg.Blocks.Get(k.ctx, c)
		}
		if err == nil {
			err = k.fits(b.Address, len(blk.RawData()))
		}
		if err != nil {
			k.complain("read", b.Address, err)
			out.sent.Missing = append(out.sent.Missing, b.Address)
			continue
		}
		data := blk.RawData()
		out.size += len(data)
		out.message.Deliveries = append(out.message.Deliveries, wire.Delivery{Address: b.Address, Cid: c, Data: data, Proof: proof})
	}
	return out
}

// besideBlock is more than what a message holds beside a block: CIDs, a proof.
const besideBlock = 16 << 10

// fits refuses a block that would make a message longer than those we accept, as
// if it were not there: a peer of our kind would close the stream over it, and ask
// again.
func (k *link) fits(a wire.Address, size int) error {
	if most := k.exchange.cfg.MaxFrame - besideBlock; size > most {
		return errs.E(errs.TooLarge, errs.Ours, "serve block", a.String(), fmt.Errorf("block is %d bytes, want at most %d", size, most))
	}
	return nil
}

// resolve gives the CID of the block at an address, and its proof if it is a
// leaf.
func (k *link) resolve(a wire.Address) (cid.Cid, []byte, error) {
	if !a.Leaf {
		return a.Root, nil, nil
	}
	if k.exchange.cfg.Leaves == nil {
		return cid.Undef, nil, errs.E(errs.NotFound, errs.Ours, "find leaf", a.String(), nil)
	}
	return k.exchange.cfg.Leaves.Leaf(k.ctx, a.Root, a.Index)
}
