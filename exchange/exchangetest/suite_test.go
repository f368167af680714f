package exchangetest_test

import (
	"os"
	"slices"
	"strings"
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

// TestConformanceIsWrittenDown holds the table to the cases: a row for each, in
// order, with a cell for each placement, and no skip of ours. That the skips of
// others are those that are played is checked where they are played.
func TestConformanceIsWrittenDown(t *testing.T) {
	table, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	var header, rows []string
	for line := range strings.Lines(string(table)) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		switch {
		case cells[0] == "case":
			header = cells
			continue
		case !strings.HasPrefix(line, "| ") || cells[0] == "---":
			continue
		case len(cells) != len(header):
			t.Errorf("%s: got %d cells, want %d", line, len(cells), len(header))
			continue
		}
		rows = append(rows, cells[0])
		for i, cell := range cells[1:] {
			if placement := header[i+1]; strings.HasPrefix(placement, "blockexc ") && cell != "pass" {
				t.Errorf("%s: %s is %q, want pass", line, placement, cell)
			}
		}
	}
	if want := exchangetest.Cases(); !slices.Equal(rows, want) {
		t.Errorf("docs/conformance.md has rows %q, want %q", rows, want)
	}
}
