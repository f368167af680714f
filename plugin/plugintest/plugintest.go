// Package plugintest runs a plugin as a host does, in tests: over libp2p hosts on
// 127.0.0.1 and stores in memory. What it gives is made for exchangetest.Run, so
// that an exchange is held to the same suite wherever it runs:
//
//	func TestMain(m *testing.M) {
//		plugin.Main("test", map[string]plugin.New{"mine": newMine})
//		os.Exit(m.Run())
//	}
//
//	func TestConformance(t *testing.T) {
//		path, sum := plugintest.Build(t, "example.org/mine/cmd/mine")
//		for name, c := range map[string]plugin.Config{
//			"in this process": {Name: "mine", Here: newMine},
//			"in another":      {Name: "mine"},
//			"as a program":    {Name: "mine", Path: path, SHA256: sum},
//		} {
//			t.Run(name, func(t *testing.T) {
//				exchangetest.Run(t, exchangetest.Suite{New: func(t testing.TB, n int) exchangetest.Group {
//					return plugintest.Nodes(t, n, c)
//				}})
//			})
//		}
//	}
//
// In this process everything is as between two processes but the processes: the
// same gRPC, the same byte channels. A debugger sees both sides there.
//
// Goroutines: one for each node while they are started, and while they end, which
// are waited for. All that nodes run ends with the test.
package plugintest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/plugin"
)

// connectTimeout is how long two nodes on loopback may take to connect.
const connectTimeout = 30 * time.Second

var loopback = multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")

// A Node is a libp2p host and a store, and the plugin that has borrowed both. It
// ends with the test: the plugin first, then the host.
type Node struct {
	Host       host.Host
	Blockstore blockstore.Blockstore
	Plugin     *plugin.Plugin
}

// New makes a node that listens on a free port of 127.0.0.1. Host and Blocks of
// the configuration are the node's own and must be nil; Log is [Log] if it is nil.
// The options are for the libp2p host, beside those that New gives it; one that
// carries something that belongs to a single host, such as a resource manager,
// has to make it each time it is called.
func New(t testing.TB, c plugin.Config, options ...libp2p.Option) *Node {
	t.Helper()
	return start(t, 1, c, options)[0]
}

// Nodes makes n nodes that are not connected, each with a plugin of its own; see
// [New].
func Nodes(t testing.TB, n int, c plugin.Config, options ...libp2p.Option) exchangetest.Group {
	t.Helper()
	nodes := start(t, n, c, options)
	g := exchangetest.Group{
		Connect: func(i, j int) error {
			ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
			defer cancel()
			return nodes[i].Host.Connect(ctx, nodes[j].Info())
		},
		Disconnect: func(i, j int) error { return nodes[i].Host.Network().ClosePeer(nodes[j].Host.ID()) },
	}
	for _, node := range nodes {
		g.Nodes = append(g.Nodes, exchangetest.Node{
			Exchange:   node.Plugin.Exchange(),
			Blockstore: node.Blockstore,
			ID:         node.Host.ID(),
		})
	}
	return g
}

// start makes n nodes at once, and has them end at once with the test: most of
// either is waiting for processes.
func start(t testing.TB, n int, c plugin.Config, options []libp2p.Option) []*Node {
	t.Helper()
	if c.Host != nil || c.Blocks != nil {
		t.Fatal("make node: Host and Blocks are the node's own, want nil")
	}
	if c.Log == nil {
		c.Log = Log(t)
	}
	// A process with the race detector sleeps for a second before it exits.
	c.Env = append([]string{"GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0"}, c.Env...)
	nodes, failed := make([]*Node, n), make([]error, n)
	each := func(f func(i int)) {
		var all sync.WaitGroup
		for i := range nodes {
			all.Go(func() { f(i) })
		}
		all.Wait()
	}
	t.Cleanup(func() { each(func(i int) { nodes[i].close() }) })
	each(func(i int) {
		nodes[i] = &Node{Blockstore: blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))}
		failed[i] = nodes[i].open(t.Context(), c, options)
	})
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	return nodes
}

// open makes the host and the plugin. If it fails, close closes what there is.
func (n *Node) open(ctx context.Context, c plugin.Config, options []libp2p.Option) (err error) {
	n.Host, err = libp2p.New(append([]libp2p.Option{
		libp2p.NoListenAddrs, libp2p.Transport(tcp.NewTCPTransport), libp2p.DisableRelay(), libp2p.DisableMetrics(),
	}, options...)...)
	if err != nil {
		return fmt.Errorf("make libp2p host: %w", err)
	}
	c.Host, c.Blocks = n.Host, n.Blockstore
	n.Plugin, err = plugin.Load(ctx, c)
	if err != nil {
		return err
	}
	if err := n.Host.Network().Listen(loopback); err != nil {
		return fmt.Errorf("listen on %v: %w", loopback, err)
	}
	return nil
}

func (n *Node) close() {
	if n.Plugin != nil {
		_ = n.Plugin.Close()
	}
	if n.Host != nil {
		_ = n.Host.Close()
	}
}

// Info is where other hosts find the node.
func (n *Node) Info() peer.AddrInfo {
	return peer.AddrInfo{ID: n.Host.ID(), Addrs: n.Host.Network().ListenAddresses()}
}

// Build compiles a package that is a program, and returns where it is and its
// sum, as [plugin.Config] wants them. The file is gone when the test ends.
func Build(t testing.TB, pkg string) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "plugin")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return path, Sum(t, path)
}

// Sum is the sum of a program, as [plugin.Config].SHA256 wants it.
func Sum(t testing.TB, path string) string {
	t.Helper()
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(program)
	return hex.EncodeToString(sum[:])
}
