package remote

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// askTimeout is how long a want list is waited for.
	askTimeout = 2 * time.Second
	// maxListed is how many wants of the plugin are listed, and how many pending
	// leaves. What the plugin says beyond that is not read.
	maxListed = 65_536
)

// A Stat is what an exchange has counted, and what stands now.
type Stat struct {
	BlocksReceived  uint64 // duplicates too
	BytesReceived   uint64
	DuplicateBlocks uint64
	DuplicateBytes  uint64
	BlocksSent      uint64
	BytesSent       uint64
	Wants           uint64            // now
	Peers           uint64            // now
	More            map[string]uint64 // whatever else the exchange counts

	// What the plugin's process uses; 0 if it is the host's. The server fills it
	// in.
	CPU    time.Duration // since its start, user and system
	Memory uint64        // that its runtime holds now, bytes
}

func (s Stat) proto() *pb.StatReply {
	return &pb.StatReply{
		BlocksReceived: s.BlocksReceived, BytesReceived: s.BytesReceived,
		DuplicateBlocks: s.DuplicateBlocks, DuplicateBytes: s.DuplicateBytes,
		BlocksSent: s.BlocksSent, BytesSent: s.BytesSent,
		Wants: s.Wants, Peers: s.Peers, More: s.More,
		Cpu: uint64(s.CPU), Memory: s.Memory,
	}
}

func statOf(m *pb.StatReply) Stat {
	return Stat{
		BlocksReceived: m.BlocksReceived, BytesReceived: m.BytesReceived,
		DuplicateBlocks: m.DuplicateBlocks, DuplicateBytes: m.DuplicateBytes,
		BlocksSent: m.BlocksSent, BytesSent: m.BytesSent,
		Wants: m.Wants, Peers: m.Peers, More: m.More,
		CPU: time.Duration(min(m.Cpu, math.MaxInt64)), Memory: m.Memory,
	}
}

// A Ledger is what has passed between an exchange and one peer.
type Ledger struct {
	BlocksReceived uint64
	BytesReceived  uint64
	BlocksSent     uint64
	BytesSent      uint64
	More           map[string]float64 // whatever else the exchange knows
}

func (l Ledger) proto() *pb.LedgerReply {
	return &pb.LedgerReply{
		Known:          true,
		BlocksReceived: l.BlocksReceived, BytesReceived: l.BytesReceived,
		BlocksSent: l.BlocksSent, BytesSent: l.BytesSent, More: l.More,
	}
}

func ledgerOf(m *pb.LedgerReply) Ledger {
	return Ledger{
		BlocksReceived: m.BlocksReceived, BytesReceived: m.BytesReceived,
		BlocksSent: m.BlocksSent, BytesSent: m.BytesSent, More: m.More,
	}
}

// running is the plugin that runs now. The error is of kind errs.Crashed if none
// does, and errs.Invalid if it cannot do what is asked.
func (c *Client) running(op string, can func(*pb.StartReply) bool) (pb.ExchangeClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.run == nil && c.refused(op) != nil:
		return nil, c.refused(op)
	case c.run == nil:
		return nil, errs.E(errs.Crashed, errs.Plugin, op, "", errors.New("the plugin is not running"))
	case !can(c.run.caps):
		return nil, errs.E(errs.Invalid, errs.Plugin, op, "", errors.New("the plugin's exchange cannot tell"))
	}
	return c.run.plugin, nil
}

// Inspect asks the plugin what its exchange has counted.
func (c *Client) Inspect(ctx context.Context) (Stat, error) {
	const op = "inspect exchange"
	x, err := c.running(op, (*pb.StartReply).GetStat)
	if err != nil {
		return Stat{}, err
	}
	m, err := x.Stat(ctx, &pb.StatRequest{})
	if err != nil {
		return Stat{}, pb.FromStatus(ctx, err, errs.Plugin, op)
	}
	return statOf(m), nil
}

// Ledger asks the plugin what has passed between its exchange and a peer; false
// if the exchange does not know the peer.
func (c *Client) Ledger(ctx context.Context, p peer.ID) (Ledger, bool, error) {
	const op = "get ledger"
	x, err := c.running(op, (*pb.StartReply).GetLedger)
	if err != nil {
		return Ledger{}, false, err
	}
	m, err := x.Ledger(ctx, &pb.LedgerRequest{Peer: []byte(p)})
	switch {
	case err != nil:
		return Ledger{}, false, pb.FromStatus(ctx, err, errs.Plugin, op)
	case !m.Known:
		return Ledger{}, false, nil
	}
	return ledgerOf(m), true, nil
}

// Wantlist is what the exchange asks for, in no particular order, the first 65,536
// of it. The plugin has 2 s to say it; otherwise, and with none running, it is what
// is pending here.
func (c *Client) Wantlist() []wire.Address {
	x, err := c.running("get want list", (*pb.StartReply).GetWantlist)
	if err == nil {
		var list []wire.Address
		if list, err = c.wantlist(x, ""); err == nil {
			return list
		}
	}
	return c.pendingWants()
}

// GetWantlist is the CIDs of Wantlist, leaves not included.
func (c *Client) GetWantlist() (list []cid.Cid) { return cids(c.Wantlist()) }

// WantlistForPeer is what a peer asks of this node; none if the plugin does not
// say so within 2 s.
func (c *Client) WantlistForPeer(p peer.ID) []cid.Cid {
	x, err := c.running("get want list", (*pb.StartReply).GetPeerWantlist)
	if err != nil || p == "" {
		return nil
	}
	list, err := c.wantlist(x, p)
	if err != nil {
		return nil
	}
	return cids(list)
}

func cids(wants []wire.Address) (list []cid.Cid) {
	for _, a := range wants {
		if !a.Leaf {
			list = append(list, a.Root)
		}
	}
	return list
}

func (c *Client) wantlist(x pb.ExchangeClient, p peer.ID) (list []wire.Address, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	parts, err := x.Wantlist(ctx, &pb.WantlistRequest{Peer: []byte(p)})
	for err == nil {
		var m *pb.WantlistReply
		if m, err = parts.Recv(); err != nil {
			break
		}
		for _, w := range m.Wants {
			if len(list) == maxListed {
				return list, nil
			}
			if root, err := parseCID(w.GetCid()); err == nil {
				list = append(list, wire.Address{Root: root, Leaf: w.GetLeaf(), Index: w.GetIndex()})
			}
		}
	}
	if err != io.EOF {
		return nil, err
	}
	return list, nil
}

// pendingWants is what the pending requests miss, each address once. Of
// leaves no more than maxListed are listed.
func (c *Client) pendingWants() []wire.Address {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []wire.Address
	for k := range c.waiting {
		list = append(list, wire.Block(k))
	}
	leaves := make(map[cid.Cid][]wire.Range)
	for _, r := range c.pending {
		if r.need.leaves() {
			leaves[r.need.tree.Root] = append(leaves[r.need.tree.Root], r.need.ranges...)
		}
	}
	room := uint64(maxListed)
	for root, ranges := range leaves {
		for _, r := range wire.Ranges(ranges) {
			n := min(r.Count, room)
			room -= n
			for i := range n {
				list = append(list, wire.Leaf(root, r.First+i))
			}
		}
	}
	return list
}
