package host

import (
	"context"
	"runtime/debug"
	"strings"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/routing"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/plugin"
	"github.com/codexchange/codexchange/plugin/borrow"
	"github.com/codexchange/codexchange/plugin/heap"
	"github.com/codexchange/codexchange/plugin/remote"
)

// inspectTimeout is how long a plugin may take to say what it has counted.
const inspectTimeout = 5 * time.Second

// Main has to be called first in the main function of a program that opens
// nodes, and in TestMain of its tests: a node starts the program anew for each
// plugin that has no path, and in such a process Main does not return.
func Main() {
	plugin.Main(Version(), map[string]plugin.New{Blockexc: serveBlockexc})
}

// Tune is for a program that is a node and little else: it has its garbage collected less
// often than Go does by default, unless the environment has GOGC. What it keeps may
// grow by 32 MiB before it is, or to twice as much if that is more. Plugins do so by themselves.
func Tune() { heap.Follow(heap.Node) }

// Version is that of this program, a semantic version without "v"; 0.0.0-devel if
// it was built from a working tree.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || !strings.HasPrefix(info.Main.Version, "v") {
		return "0.0.0-devel"
	}
	return info.Main.Version[1:]
}

// serveBlockexc makes the Codex block exchange in a plugin.
func serveBlockexc(_ context.Context, env plugin.Env) (boxo.Interface, error) {
	cfg := exchange.Config{Blocks: blocks.New(env.Blockstore), Logger: env.Log}
	if env.Leaves != nil {
		cfg.Leaves = borrowedLeaves{env.Leaves}
	}
	if env.Router != nil {
		cfg.Router = routing.New(env.Host.ID(), env.Router)
	}
	x, err := newBlockexc(env.Host, env.Config, cfg)
	if err != nil {
		return nil, err
	}
	return inspected{x}, nil
}

// borrowedLeaves is the host's store of leaf records, as the exchange asks it.
type borrowedLeaves struct{ *borrow.Leaves }

func (l borrowedLeaves) LeafBatch(ctx context.Context, root cid.Cid, indices []uint64) ([]exchange.Leaf, error) {
	found, err := l.Leaves.LeafBatch(ctx, root, indices)
	leaves := make([]exchange.Leaf, len(found))
	for i, f := range found {
		leaves[i] = exchange.Leaf(f)
	}
	return leaves, err
}

// inspected lets the host see what an exchange in a plugin does.
type inspected struct{ *exchange.Exchange }

func (x inspected) Inspect() (remote.Stat, error) {
	s := x.Stat()
	return remote.Stat{
		BlocksReceived: s.BlocksReceived, BytesReceived: s.BytesReceived,
		DuplicateBlocks: s.DuplicateBlocks, DuplicateBytes: s.DuplicateBytes,
		BlocksSent: s.BlocksSent, BytesSent: s.BytesSent,
		Wants: uint64(s.Wants), Peers: uint64(s.Peers),
		More: map[string]uint64{
			"bad_blocks":         s.BadBlocks,
			"unrequested_blocks": s.UnrequestedBlocks,
			"asked":              s.Asked,
			"timed_out":          s.TimedOut,
			"sends_failed":       s.SendsFailed,

			"read_ahead_used":         s.ReadAheadUsed,
			"read_ahead_used_bytes":   s.ReadAheadUsedBytes,
			"read_ahead_wasted":       s.ReadAheadWasted,
			"read_ahead_wasted_bytes": s.ReadAheadWastedBytes,
		},
	}, nil
}

func (x inspected) PeerLedger(p peer.ID) (remote.Ledger, bool) {
	l, ok := x.Ledger(p)
	return remote.Ledger{
		BlocksReceived: l.BlocksReceived, BytesReceived: l.BytesReceived,
		BlocksSent: l.BlocksSent, BytesSent: l.BytesSent,
		More: map[string]float64{
			"duplicates":  float64(l.Duplicates),
			"unrequested": float64(l.Unrequested),
			"bad":         float64(l.Bad),
			"asked":       float64(l.Asked),
			"timed_out":   float64(l.TimedOut),
			"outstanding": float64(l.Outstanding),
			"window":      float64(l.Window),
			"rate":        l.Rate,
			"latency_ms":  l.Latency.Seconds() * 1e3,
		},
	}, ok
}

// lentBlocks is what a plugin is lent of the store: what the exchange in this
// process would serve too.
type lentBlocks struct{ exchange.Blocks }

func (b lentBlocks) GetSize(ctx context.Context, c cid.Cid) (int, error) { return b.Size(ctx, c) }

// pluginExchange is an exchange in a plugin.
type pluginExchange struct {
	boxo.SessionExchange
	plugin *plugin.Plugin
}

func startPlugin(ctx context.Context, name string, p Plugin, n needs) (Exchange, error) {
	loaded, err := plugin.Load(ctx, plugin.Config{
		Name: name, Path: p.Path, SHA256: p.SHA256, Config: p.Config,
		Host: n.host, Blocks: lentBlocks{blocks.New(n.store)}, Leaves: n.leaves, Router: n.router, Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	return pluginExchange{loaded.Exchange(), loaded}, nil
}

func (x pluginExchange) Plugin() *plugin.Plugin { return x.plugin }

func (x pluginExchange) Counts() (Counts, error) {
	ctx, cancel := context.WithTimeout(context.Background(), inspectTimeout)
	defer cancel()
	s, err := x.plugin.Inspect(ctx)
	if err != nil {
		return Counts{}, err
	}
	return Counts{Blocks: s.BlocksReceived - s.DuplicateBlocks, Duplicates: s.DuplicateBlocks, Bytes: s.BytesReceived}, nil
}
