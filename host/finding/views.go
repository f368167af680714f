package finding

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	corestore "github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/codexchange/codexchange/host/peerstore"
)

// viewed is a host for a subsystem that writes into the peerstore as one source.
type viewed struct {
	host.Host
	view *peerstore.View
}

func (v viewed) Peerstore() corestore.Peerstore { return v.view }

// peered is the host of boxo's peering: what it dials is claimed for longer
// than it waits between two dials.
type peered struct{ viewed }

// Connect fails if the connection is lost again before it returns: boxo's peering,
// which does not hear of a loss while it dials, would never dial again.
func (p peered) Connect(ctx context.Context, info peer.AddrInfo) error {
	p.view.AddAddrs(info.ID, info.Addrs, corestore.RecentlyConnectedAddrTTL)
	if err := p.Host.Connect(ctx, info); err != nil {
		return err
	}
	if p.Network().Connectedness(info.ID) != network.Connected {
		return errLost
	}
	return nil
}

var errLost = errors.New("the connection was lost at once")

// bounded is a host whose dials end with a context.
type bounded struct {
	viewed
	ctx context.Context
}

func (b bounded) Connect(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	return b.viewed.Host.Connect(ctx, info)
}
