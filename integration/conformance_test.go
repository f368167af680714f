package integration

import (
	"testing"

	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
)

var loopback = multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")

func exchangeRange(n uint64) wire.Range { return wire.Range{Count: n} }

// The whole conformance suite over libp2p hosts on loopback.
func TestConformance(t *testing.T) {
	exchangetest.Run(t, exchangetest.Suite{New: func(t testing.TB, n int) exchangetest.Group {
		nodes := make([]*node, n)
		g := exchangetest.Group{
			Connect: func(i, j int) error {
				return nodes[i].host.Connect(soon(t), nodes[j].info())
			},
			Disconnect: func(i, j int) error { return nodes[i].host.Network().ClosePeer(nodes[j].host.ID()) },
		}
		for i := range nodes {
			nodes[i] = newNode(t)
			g.Nodes = append(g.Nodes, exchangetest.Node{Exchange: nodes[i].ex, Blockstore: nodes[i].store, ID: nodes[i].host.ID()})
		}
		return g
	}})
}
