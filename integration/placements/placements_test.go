// Package placements runs exchanges in every place where they can run, and asks
// the same of them everywhere: by gRPC in one process, in a process of the same
// program, in one of a program by path. The exchanges that run in the process of
// their user are held to the suite elsewhere; docs/conformance.md has the table.
package placements

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/adapter/bitswap"
	adapter "github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
	"github.com/codexchange/codexchange/plugin"
	"github.com/codexchange/codexchange/plugin/borrow"
	"github.com/codexchange/codexchange/plugin/plugintest"
)

func TestMain(m *testing.M) {
	nodetest.Main(m, nil,
		// Bitswap ends these in its own time after Close.
		goleak.IgnoreAnyFunction("github.com/ipfs/boxo/bitswap/network/bsnet.closeStreamAsync.func1"))
}

var must = nodetest.Must

// newBlockexc is the Codex block exchange as a plugin of somebody else's would be,
// with leaves. In a subprocess it is the one that the host brings.
func newBlockexc(_ context.Context, env plugin.Env) (boxo.Interface, error) {
	network, err := p2p.New(env.Host, p2p.Options{})
	if err != nil {
		return nil, err
	}
	c := exchange.Config{Network: network, Blocks: adapter.New(env.Blockstore), Logger: env.Log}
	if env.Leaves != nil {
		c.Leaves = lentLeaves{env.Leaves}
	}
	return exchange.New(c)
}

// lentLeaves is exchange.LeafBatcher over what the host lends.
type lentLeaves struct{ *borrow.Leaves }

func (l lentLeaves) LeafBatch(ctx context.Context, root cid.Cid, indices []uint64) ([]exchange.Leaf, error) {
	lent, err := l.Leaves.LeafBatch(ctx, root, indices)
	if err != nil {
		return nil, err
	}
	list := make([]exchange.Leaf, len(lent))
	for i, leaf := range lent {
		list[i] = exchange.Leaf(leaf)
	}
	return list, nil
}

// What Bitswap does not pass, and why, wherever it runs.
var bitswapSkip = map[string]string{
	"get an empty block":        "boxo v0.42.0 takes a block of size 0 for one that it does not have",
	exchangetest.WantListsEmpty: "some wants stay in the want list of boxo v0.42.0 after their blocks have come",
}

// A placement is an exchange and where it runs: a column of the table.
type placement struct {
	column string
	plugin plugin.Config // but for what build makes
	build  string        // the program, if it is one of its own
	suite  exchangetest.Suite
	host   []libp2p.Option
}

var placements = []placement{
	{
		column: "blockexc over gRPC",
		plugin: plugin.Config{Name: host.Blockexc, Here: newBlockexc},
	},
	{
		column: "blockexc in a subprocess",
		plugin: plugin.Config{Name: host.Blockexc},
	},
	{
		column: "Bitswap in a subprocess",
		plugin: plugin.Config{Name: "plain-bitswap"},
		build:  bitswapProgram,
		host:   []libp2p.Option{bitswapLimits},
		suite: exchangetest.Suite{
			Window: bitswap.DefaultWindow, // a peer keeps 1,024 wants and drops the rest
			// Bitswap loses a want now and then, see docs/conformance.md.
			Patience: 15 * time.Second,
			Attempts: 4,
			Skip:     bitswapSkip,
		},
	},
}

// bitswapLimits lifts the limits of libp2p that Bitswap runs into.
func bitswapLimits(c *libp2p.Config) error {
	limits := bitswap.Limits()
	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		return err
	}
	return c.Apply(libp2p.ResourceManager(manager))
}

// An exchange does the same wherever it runs: the whole suite, in each place.
func TestConformance(t *testing.T) {
	for _, p := range placements {
		t.Run(p.column, func(t *testing.T) {
			if p.build != "" {
				p.plugin.Path, p.plugin.SHA256 = plugintest.Build(t, p.build)
			}
			p.suite.New = func(t testing.TB, n int) exchangetest.Group {
				return plugintest.Nodes(t, n, p.plugin, p.host...)
			}
			exchangetest.Run(t, p.suite)
		})
	}
}

// The table in docs/conformance.md says of each placement what the suite here
// plays and skips.
func TestConformanceIsWrittenDown(t *testing.T) {
	table, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	var header []string
	rows := make(map[string][]string)
	for line := range strings.Lines(string(table)) {
		if cells := strings.Split(strings.Trim(line, "| \n"), " | "); header == nil && cells[0] == "case" {
			header = cells
		} else if header != nil && len(cells) == len(header) {
			rows[cells[0]] = cells
		}
	}
	for _, p := range placements {
		column := slices.Index(header, p.column)
		if column < 0 {
			t.Errorf("docs/conformance.md has columns %q, want one %q", header, p.column)
			continue
		}
		for _, name := range exchangetest.Cases() {
			want := "pass"
			if reason := p.suite.Skip[name]; reason != "" {
				want = "skip: " + reason
			}
			if rows[name] == nil || rows[name][column] != want {
				t.Errorf("docs/conformance.md has row %q, want %q under %q", rows[name], want, p.column)
			}
		}
	}
}

// data makes n blocks of a size, the same in every run of the same seed.
func data(seed byte, n, size int) (list []blocks.Block, keys []cid.Cid) {
	r := rand.NewChaCha8([32]byte{seed})
	for range n {
		b := make([]byte, size)
		_, _ = r.Read(b) // never fails
		list = append(list, blocks.NewBlock(b))
		keys = append(keys, list[len(list)-1].Cid())
	}
	return list, keys
}

// getAll gets blocks, each of which must be the one that was asked for.
func getAll(ctx context.Context, x boxo.Fetcher, want []blocks.Block) error {
	keys := make([]cid.Cid, len(want))
	missing := make(map[cid.Cid]string, len(want))
	for i, b := range want {
		keys[i] = b.Cid()
		missing[b.Cid()] = string(b.RawData())
	}
	ch, err := x.GetBlocks(ctx, keys)
	if err != nil {
		return err
	}
	for b := range ch {
		if data, wanted := missing[b.Cid()]; !wanted || data != string(b.RawData()) {
			return fmt.Errorf("got block %v of %d bytes (wanted: %v), which is not the block", b.Cid(), len(b.RawData()), wanted)
		}
		delete(missing, b.Cid())
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d of %d blocks did not come: %w", len(missing), len(want), context.Cause(ctx))
	}
	return nil
}

// soon is a context that ends long after anything here should have.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}
