package borrow

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

// maxLeaves is how many leaves are asked for in one call.
const maxLeaves = 1024

// Leaves reads which blocks stand at which places of a tree. Its methods may be
// called from any goroutine.
type Leaves struct{ n *Node }

// A Leaf is one place of a tree.
type Leaf struct {
	Cid   cid.Cid // of the block; undefined if the leaf is not known
	Proof []byte  // encoded
	Size  int     // of the block, -1 if the store does not have it
}

// Leaf returns the block at one place and its proof, or errs.NotFound.
func (l *Leaves) Leaf(ctx context.Context, root cid.Cid, index uint64) (block cid.Cid, proof []byte, err error) {
	leaves, err := l.LeafBatch(ctx, root, []uint64{index})
	if err != nil {
		return cid.Undef, nil, err
	}
	if !leaves[0].Cid.Defined() {
		return cid.Undef, nil, errs.E(errs.NotFound, errs.Unknown, "read leaf", fmt.Sprintf("%d of %v", index, root), nil)
	}
	return leaves[0].Cid, leaves[0].Proof, nil
}

// LeafBatch returns what is known of several places, in their order.
func (l *Leaves) LeafBatch(ctx context.Context, root cid.Cid, indices []uint64) ([]Leaf, error) {
	leaves := make([]Leaf, 0, len(indices))
	for len(indices) > 0 {
		n := min(len(indices), maxLeaves)
		some, err := l.ask(ctx, root, indices[:n])
		for errors.Is(err, errs.TooLarge) && n > 1 {
			n /= 2 // the proofs are long
			some, err = l.ask(ctx, root, indices[:n])
		}
		if err != nil {
			return nil, err
		}
		leaves, indices = append(leaves, some...), indices[n:]
	}
	return leaves, nil
}

// ask is one call.
func (l *Leaves) ask(ctx context.Context, root cid.Cid, indices []uint64) ([]Leaf, error) {
	op := fmt.Sprintf("read leaves of %v", root)
	reply, err := l.n.client.Leaves(ctx, &pb.LeavesRequest{Root: root.Bytes(), Indices: indices})
	if err != nil {
		return nil, l.n.failed(ctx, err, op)
	}
	if reply.GetError() != nil {
		return nil, reply.GetError().Err()
	}
	if got := len(reply.GetLeaves()); got != len(indices) {
		return nil, malformed(op, "%d leaves, want %d", got, len(indices))
	}
	leaves := make([]Leaf, len(indices))
	for i, msg := range reply.GetLeaves() {
		if leaves[i], err = parseLeaf(msg); err != nil {
			return nil, malformed(op, "leaf %d: %w", indices[i], err)
		}
	}
	return leaves, nil
}

func parseLeaf(msg *pb.Leaf) (Leaf, error) {
	if len(msg.GetCid()) == 0 {
		return Leaf{Size: -1}, nil
	}
	c, err := cid.Cast(msg.GetCid())
	if err != nil {
		return Leaf{}, err
	}
	if size := msg.GetSize(); size < -1 || size > channel.MaxBlock {
		return Leaf{}, fmt.Errorf("size is %d, want -1 to %d", size, channel.MaxBlock)
	}
	return Leaf{Cid: c, Proof: msg.GetProof(), Size: int(msg.GetSize())}, nil
}
