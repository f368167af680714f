package finding

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	corestore "github.com/libp2p/go-libp2p/core/peerstore"
)

// peeringPass is the time between two looks at the peers of peering, longer than
// boxo's waits to dial one whose connection has been lost.
const peeringPass = 15 * time.Second

// peered is the host of boxo's peering: what it dials is claimed for longer than it
// waits between two dials.
//
// boxo's peering does not see a loss that comes before its dial is quite done, and
// never dials that peer again. So it is noted which dials have succeeded: who was
// reached and is gone at two passes in a row is forgotten, and dialled.
type peered struct {
	viewed

	mu      sync.Mutex
	reached map[peer.ID]bool // by boxo's last dial
}

func (p *peered) Connect(ctx context.Context, info peer.AddrInfo) error {
	p.view.AddAddrs(info.ID, info.Addrs, corestore.RecentlyConnectedAddrTTL)
	err := p.Host.Connect(ctx, info)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.reached[info.ID] = true
	} else {
		delete(p.reached, info.ID)
	}
	return err
}

// forgotten are those of peers that were reached and are not connected. What was
// noted of others goes.
func (p *peered) forgotten(peers []peer.AddrInfo) map[peer.ID]peer.AddrInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	reached, gone := make(map[peer.ID]bool), make(map[peer.ID]peer.AddrInfo)
	for _, info := range peers {
		if !p.reached[info.ID] {
			continue
		}
		reached[info.ID] = true
		if p.Network().Connectedness(info.ID) != network.Connected {
			gone[info.ID] = info
		}
	}
	p.reached = reached
	return gone
}

// peer dials, until Close, whom boxo's peering has forgotten. Once one is connected
// boxo minds it again.
func (c *Contacts) peer(p *peered) {
	ticks := time.NewTicker(peeringPass)
	defer ticks.Stop()
	var before map[peer.ID]peer.AddrInfo
	for {
		select {
		case <-ticks.C:
		case <-c.ctx.Done():
			return
		}
		now := p.forgotten(c.peering.ListPeers())
		for id, info := range now {
			if _, twice := before[id]; twice {
				c.dial(info)
			}
		}
		before = now
	}
}
