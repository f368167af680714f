package remote

import (
	"testing"

	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/plugin/memory"
)

// TestConformance shows that an exchange is as good behind Client and Server as
// it is without them.
func TestConformance(t *testing.T) {
	for name, is := range map[string]struct{ verify, shared bool }{
		"trusted": {}, "verified": {verify: true}, "trusted, in memory": {shared: true}, "verified, in memory": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			exchangetest.Run(t, exchangetest.Suite{New: func(t testing.TB, n int) exchangetest.Group {
				m := exchangetest.NewMesh(n)
				g := exchangetest.Group{
					Connect:    func(i, j int) error { m.Connect(i, j); return nil },
					Disconnect: func(i, j int) error { m.Disconnect(i, j); return nil },
				}
				for i := range n {
					store := m.Blocks(i)
					c := newClient(t, ClientOptions{Verify: is.verify, Held: store.Get})
					var ours, its *memory.Memory
					if is.shared {
						ours, its = shared(t, 256<<10)
					}
					p := serveShared(t, c, m.Exchange(i), store.Get, Shared{Outbound: ours}, Instance{Outbound: its})
					// It has no ID, for a mesh does not tell what peers ask for.
					g.Nodes = append(g.Nodes, exchangetest.Node{Exchange: c.Exchange(p.caps.Leaves), Blockstore: store})
				}
				return g
			}})
		})
	}
}
