package borrow

import (
	"context"
	"errors"
	"io"
	"math"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/plugin/pb"
)

// router is the host's content routing.
type router struct{ n *Node }

var _ routing.ContentRouting = (*router)(nil)

// FindProvidersAsync has the host search. The channel is closed when there are
// no more, or ctx ends, or the node is over.
func (r *router) FindProvidersAsync(ctx context.Context, c cid.Cid, limit int) <-chan peer.AddrInfo {
	found := make(chan peer.AddrInfo)
	if !r.n.spawn(func() { r.find(ctx, c, limit, found) }) {
		close(found)
	}
	return found
}

func (r *router) find(ctx context.Context, c cid.Cid, limit int, found chan<- peer.AddrInfo) {
	defer close(found)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the search
	answers, err := r.n.client.FindProviders(ctx, &pb.FindProvidersRequest{Cid: c.Bytes(), Max: uint32(min(max(limit, 0), math.MaxInt32))})
	for err == nil {
		var answer *pb.FindProvidersReply
		if answer, err = answers.Recv(); err != nil {
			break
		}
		info, perr := parseProvider(answer)
		if perr != nil {
			r.n.log.Error("ignored a provider that the host found", "cid", c, "err", perr)
			continue
		}
		select {
		case found <- info:
		case <-ctx.Done():
			return
		case <-r.n.done:
			return
		}
	}
	if !errors.Is(err, io.EOF) && ctx.Err() == nil && r.n.Err() == nil {
		r.n.log.Warn("a search for providers ended early", "err", r.n.failed(ctx, err, "find providers of "+c.String()))
	}
}

func parseProvider(msg *pb.FindProvidersReply) (peer.AddrInfo, error) {
	id, err := peer.IDFromBytes(msg.GetPeer())
	if err != nil {
		return peer.AddrInfo{}, err
	}
	info := peer.AddrInfo{ID: id}
	for _, b := range msg.GetAddrs()[:min(len(msg.GetAddrs()), maxAddrs)] {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info, nil
}

// Provide has the host tell that this node has a block.
func (r *router) Provide(ctx context.Context, c cid.Cid, announce bool) error {
	reply, err := r.n.client.Provide(ctx, &pb.ProvideRequest{Cid: c.Bytes(), Announce: announce})
	if err != nil {
		return r.n.failed(ctx, err, "provide "+c.String())
	}
	return reply.GetError().Err()
}
