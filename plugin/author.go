package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/routing"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/borrow"
	"github.com/codexchange/codexchange/plugin/internal/subprocess"
	"github.com/codexchange/codexchange/plugin/pb"
	"github.com/codexchange/codexchange/plugin/remote"
	"github.com/codexchange/codexchange/plugin/tracing"
)

// An Env is what an exchange is given in a plugin. All of it is the host's and
// lasts until the exchange is closed; what is done with it is done by the host.
type Env struct {
	// Name is the name of the plugin in the host's configuration.
	Name string
	// Config is the plugin's part of that configuration, JSON; nil if it has none.
	Config json.RawMessage

	// Host is the node's libp2p host: its identity, its connections, its
	// streams. It neither listens nor closes connections. Its streams have
	//
	//	WriteBlock(c cid.Cid, size int) error
	//
	// which puts the bytes of a block of the host's store there, without their
	// passing through the plugin; Cork() and Uncork() error, between which what is
	// written waits for more; and ReadLent, see package lent.
	Host host.Host
	// Blockstore reads the node's blocks. Writing is refused: whoever asks the
	// exchange for blocks stores them.
	Blockstore blockstore.Blockstore
	// Leaves finds the blocks of datasets; nil if the host does not keep them.
	Leaves *borrow.Leaves
	// Router finds and announces providers; nil if the host has none.
	Router routing.ContentRouting

	// Log is the host's log, under the plugin's name. What is written to
	// standard error appears there too.
	Log *slog.Logger

	level slog.Level // that the host shows
}

// New makes the exchange of a plugin. The context ends when the exchange has to
// end, also while it is being made. The exchange is closed when the host is done
// with it. The contexts of its methods carry the span of whoever asks, if somebody
// traces it; spans of OpenTelemetry within go where the host's go.
//
// Beside exchange.Interface it may have the methods of exchange.SessionExchange
// and dataset.LeafExchange, and these, which let the host show what it does:
//
//	Inspect() (remote.Stat, error)
//	GetWantlist() []cid.Cid
//	Wantlist() []wire.Address
//	WantlistForPeer(peer.ID) []cid.Cid
//	PeerLedger(peer.ID) (remote.Ledger, bool)
type New func(ctx context.Context, env Env) (boxo.Interface, error)

// Serve is the main function of a program that is a plugin and nothing else. It
// does not return: when the host is done with the plugin, or gone, the program
// exits.
func Serve(version string, new New) {
	serve(version, new)
}

// Main is for programs that are also their own plugins: call it first in main,
// and in TestMain. In a process that was started as a plugin it does not return,
// see [Serve]; otherwise it returns at once, and this program can be loaded with
// an empty [Config].Path under each of the names.
func Main(version string, plugins map[string]New) {
	name := subprocess.PluginName()
	if name == "" {
		subprocess.Ready(slices.Sorted(maps.Keys(plugins))...)
		return
	}
	new := plugins[name]
	if new == nil {
		fmt.Fprintf(os.Stderr, "plugin %q is not one of this program: want %s\n", name, strings.Join(slices.Sorted(maps.Keys(plugins)), ", "))
		os.Exit(1)
	}
	serve(version, new)
}

func serve(version string, new New) {
	log := subprocess.Log()
	endTracing := func() error { return nil }
	server := newServer(remote.ServerOptions{
		Version: version, Usage: subprocess.Usage, LogLevel: subprocess.SetLogLevel, Log: log,
	}, func(ctx context.Context, env Env) (boxo.Interface, error) {
		subprocess.SetLogLevel(env.level)
		if end, err := tracing.Start(ctx, "-plugin-"+env.Name, version); err != nil {
			log.Warn("nothing is traced in this process", "err", err)
		} else {
			endTracing = end
		}
		return new(ctx, env)
	})
	subprocess.Serve(subprocess.ServeConfig{
		Register: func(s *grpc.Server) { pb.RegisterExchangeServer(s, server) },
		Stop: func() {
			_ = server.Close() // after which nothing is made any more
			if err := endTracing(); err != nil {
				log.Warn("spans are lost", "err", err)
			}
		},
	})
}

// newServer serves the exchange that new makes.
func newServer(o remote.ServerOptions, new New) *remote.Server {
	o.Open = func(ctx context.Context, req *pb.StartRequest) (*remote.Instance, error) {
		return open(ctx, req, new, o.Log)
	}
	return remote.NewServer(o)
}

// open borrows what the host lends and makes the exchange over it.
func open(ctx context.Context, req *pb.StartRequest, new New, log *slog.Logger) (_ *remote.Instance, err error) {
	node, err := borrow.Open(ctx, req, borrow.Options{Log: log})
	if err != nil {
		return nil, err
	}
	// The exchange lives longer than this call, but its making ends with it.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	made := context.AfterFunc(ctx, end)
	defer func() {
		if err != nil {
			end()
			_ = node.Close()
		}
	}()
	results, err := node.Results(ctx)
	if err != nil {
		return nil, err
	}
	env := Env{
		Name: req.Name, Config: req.Config,
		Host: node.Host(), Blockstore: node.Blockstore(), Leaves: node.Leaves(), Router: node.Router(),
		Log: log, level: slog.Level(req.LogLevel),
	}
	const op = "make exchange"
	x, err := new(life, env)
	switch {
	case !made():
		if err == nil {
			_ = x.Close()
		}
		return nil, errs.E(errs.Closed, errs.Caller, op, req.Name, context.Cause(ctx))
	case err != nil:
		return nil, errs.E(errs.Invalid, errs.Plugin, op, req.Name, err)
	}
	i := &remote.Instance{
		Exchange: x, Results: results, Read: env.Blockstore.Get, Outbound: node.Outbound(),
		Close: func() error {
			end()
			return node.Close()
		},
	}
	if loans := node.Loans(); loans != nil {
		i.Inbound = loans // not a nil *Loans
	}
	return i, nil
}
