package p2p

import (
	"github.com/ipfs/boxo/peering"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/codexchange/codexchange/exchange"
)

var _ exchange.Neighbourhood = (*Network)(nil)

// Near reports whether a peer is on the local network, by the addresses that it is
// connected from, or is one that the operator peers with.
func (n *Network) Near(p peer.ID) bool {
	if n.host.ConnManager().IsProtected(p, peering.ConnmgrTag) {
		return true
	}
	for _, c := range n.host.Network().ConnsToPeer(p) {
		if local(c) {
			return true
		}
	}
	return false
}

func local(c network.Conn) bool {
	if c.Stat().Limited {
		return false // it goes by way of a relay
	}
	a := c.RemoteMultiaddr()
	return manet.IsPrivateAddr(a) || manet.IsIPLoopback(a)
}
