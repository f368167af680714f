package finding

import (
	"context"

	"github.com/libp2p/go-libp2p/core/host"
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
