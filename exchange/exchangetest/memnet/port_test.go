package memnet_test

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
)

func TestPort(t *testing.T) {
	porttest.Network(t, func(t *testing.T, n int) []porttest.Node {
		net := memnet.New()
		nodes := make([]porttest.Node, n)
		for i := range nodes {
			id := memnet.ID(fmt.Sprint(i))
			nodes[i] = porttest.Node{
				Network:    net.Node(id),
				Info:       peer.AddrInfo{ID: id},
				Disconnect: func(p peer.ID) error { net.Disconnect(id, p); return nil },
			}
		}
		return nodes
	})
}
