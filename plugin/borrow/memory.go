package borrow

import (
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

// share maps the memory that the host offers. What cannot be mapped is not used,
// and the host told so.
func (n *Node) share(req *pb.StartRequest) {
	for _, s := range []struct {
		name  string
		offer *pb.Memory
		open  func(string, uint64) (*memory.Memory, error)
		to    **memory.Memory
	}{
		{"inbound", req.GetInbound(), memory.OpenInbound, &n.shared.inbound},
		{"outbound", req.GetOutbound(), memory.OpenOutbound, &n.shared.outbound},
	} {
		if s.offer == nil {
			continue
		}
		m, err := s.open(s.offer.GetPath(), s.offer.GetSize())
		if err != nil {
			n.log.Debug("memory is not shared with the host", "which", s.name, "err", err)
			continue
		}
		*s.to = m
	}
	if n.shared.inbound != nil {
		n.loans = channel.NewLoans(n.shared.inbound)
	}
}

func (n *Node) unshare() {
	for _, m := range []*memory.Memory{n.shared.inbound, n.shared.outbound} {
		if m != nil {
			m.Close()
		}
	}
}

// Loans are the regions that streams have of the memory in which the host puts their
// bytes, nil if none is shared. Who talks to the host tells it which are given back.
func (n *Node) Loans() *channel.Loans { return n.loans }

// Outbound is where payload of results goes, nil if no memory is shared. It is the
// node's: nobody uses it after Close, but who holds it.
func (n *Node) Outbound() *memory.Memory { return n.shared.outbound }
