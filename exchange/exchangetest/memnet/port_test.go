package memnet_test

import (
	"fmt"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
)

func TestPort(t *testing.T) { port(t, false) }

// A network whose streams put blocks in keeps the same contract.
func TestPortFilled(t *testing.T) { port(t, true) }

func port(t *testing.T, filled bool) {
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
			if filled {
				store := exchangetest.NewBlocks()
				net.Node(id).FillFrom(store)
				nodes[i].Put = func(b blocks.Block) error { return store.Put(t.Context(), b) }
			}
		}
		return nodes
	})
}
