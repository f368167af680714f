package exchangetest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func meshGroup(t testing.TB, n int) exchangetest.Group {
	m := exchangetest.NewMesh(n)
	g := exchangetest.Group{
		Connect:    func(i, j int) error { m.Connect(i, j); return nil },
		Disconnect: func(i, j int) error { m.Disconnect(i, j); return nil },
	}
	for i := range n {
		t.Cleanup(func() { m.Exchange(i).Close() })
		g.Nodes = append(g.Nodes, exchangetest.Node{
			Exchange:   m.Exchange(i),
			Blockstore: m.Blocks(i),
			ID:         memnet.ID(string(rune('a' + i))),
		})
	}
	return g
}

func TestMeshPasses(t *testing.T) {
	for name, s := range map[string]exchangetest.Suite{
		"in real time":    {New: meshGroup},
		"in virtual time": {New: meshGroup, Bubble: true},
		"in windows":      {New: meshGroup, Window: 64},
	} {
		t.Run(name, func(t *testing.T) { exchangetest.Run(t, s) })
	}
}
