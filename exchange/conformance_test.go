package exchange_test

import (
	"testing"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
)

// The whole conformance suite in virtual time, over a network in memory.
func TestConformance(t *testing.T) {
	exchangetest.Run(t, exchangetest.Suite{New: memoryNodes, Bubble: true})
}

func memoryNodes(t testing.TB, n int) exchangetest.Group {
	return nodesOver(t, n, func(n exchange.Network) exchange.Network { return n })
}
