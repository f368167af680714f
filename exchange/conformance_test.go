package exchange_test

import (
	"fmt"
	"testing"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
)

// The whole conformance suite in virtual time, over a network in memory.
func TestConformance(t *testing.T) {
	exchangetest.Run(t, exchangetest.Suite{New: memoryNodes, Bubble: true})
}

func memoryNodes(t testing.TB, n int) exchangetest.Group {
	net := memnet.New()
	var g exchangetest.Group
	for i := range n {
		id := memnet.ID(fmt.Sprint("node ", i))
		store := exchangetest.NewBlocks()
		ex, err := exchange.New(exchange.Config{Network: net.Node(id), Blocks: store, Seed: uint64(i + 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ex.Close() })
		g.Nodes = append(g.Nodes, exchangetest.Node{Exchange: ex, Blockstore: store, ID: id})
	}
	g.Connect = func(i, j int) error { net.Connect(g.Nodes[i].ID, g.Nodes[j].ID); return nil }
	g.Disconnect = func(i, j int) error { net.Disconnect(g.Nodes[i].ID, g.Nodes[j].ID); return nil }
	return g
}
