package plugin

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/internal/subprocess"
	"github.com/codexchange/codexchange/plugin/internal/supervise"
	"github.com/codexchange/codexchange/plugin/lend"
	"github.com/codexchange/codexchange/plugin/pb"
	"github.com/codexchange/codexchange/plugin/remote"
)

// Config says which plugin is loaded, and what it is lent. Name, Host and Blocks
// are required.
type Config struct {
	// Name is how the plugin is called in logs, in the host's resource manager
	// and among the plugins that [Main] was given: letters, digits, "-", "_", ".".
	Name string
	// Path is the program. Empty is this program itself, which then has to call
	// [Main].
	Path string
	// SHA256 is the sum of the program in hexadecimal digits. Required if Path is
	// set: a program of another sum is not started.
	SHA256 string
	// Env is what the plugin finds in its environment beside the few variables
	// that every plugin is given; see package subprocess.
	Env []string
	// Here, if set, is the plugin: no process is started, and it runs in this one
	// over the same contract. It is for tests and debuggers; Path must be empty.
	Here New

	// Config is given to the plugin, as JSON.
	Config json.RawMessage

	// Host is what the plugin borrows its identity and connections from. Load the
	// plugin before it listens.
	Host host.Host
	// Blocks is the store that the plugin serves from.
	Blocks lend.Blocks
	// Leaves is the store of leaf records; nil if there is none.
	Leaves lend.Leaves
	// Router finds and announces providers; nil if there is none.
	Router lend.Router

	// Unverified takes the plugin's word that the bytes of a block hash to its
	// CID. By default they are hashed in this process too, but for a plugin that
	// is this program itself, whose word is as good.
	Unverified bool

	// NoMemory says to share no memory with the plugin. By default large pieces of
	// data cross by memory wherever the system has what it needs.
	NoMemory bool

	// Policy is when a plugin counts as hung, how soon it is started again, and
	// when it is given up. Useful when zero.
	Policy Policy

	// Log is told what happens to the plugin, and what the plugin logs. nil is
	// slog.Default(). Its level may change at any time: the plugin follows with the
	// next ping.
	Log *slog.Logger
}

// Policy is how patient a host is with its plugin.
type Policy = supervise.Policy

// A Status is how things are with a plugin.
type Status = supervise.Status

// A State is what a plugin is at; its String is how people are told.
type State = supervise.State

// The states, in the order of a life.
const (
	Starting   = supervise.Starting   // before it serves for the first time
	Running    = supervise.Running    // it serves
	Restarting = supervise.Restarting // between a crash, or Restart, and serving again
	GivenUp    = supervise.GivenUp    // after too many crashes, until Restart
	Stopped    = supervise.Stopped    // after Close
)

// States returns all of them.
func States() []State { return []State{Starting, Running, Restarting, GivenUp, Stopped} }

// Counters are the bytes and records that have crossed, over all processes of a
// plugin.
type Counters = lend.Counters

// startTimeout is how long a plugin may take from its start until it serves.
const startTimeout = 30 * time.Second

// A Plugin is an exchange in a process that is kept running until Close. Its
// methods may be called from any goroutine.
type Plugin struct {
	cfg        Config
	log        *slog.Logger
	lender     *lend.Lender
	client     *remote.Client
	supervisor *supervise.Supervisor

	mu       sync.Mutex
	caps     *pb.StartReply // of the first process
	exchange boxo.SessionExchange

	close sync.Once
}

// Load starts a plugin, and returns when its exchange is ready, or with the
// reason why it cannot be. Nothing is left then.
func Load(ctx context.Context, cfg Config) (_ *Plugin, err error) {
	const op = "load plugin"
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s: %w", op, cfg.Name, err)
		}
	}()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	p := &Plugin{cfg: cfg, log: cfg.Log}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.log = p.log.With("plugin", cfg.Name)
	p.lender, err = lend.New(lend.Options{
		Name: cfg.Name, Host: cfg.Host, Blocks: cfg.Blocks, Leaves: cfg.Leaves, Router: cfg.Router, NoMemory: cfg.NoMemory, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	p.client = remote.NewClient(remote.ClientOptions{
		Verify: !cfg.Unverified && cfg.Path != "",
		Held:   cfg.Blocks.Get,
		Log:    p.log,
	})
	launch, err := cfg.launcher(p.log)
	if err == nil {
		p.supervisor, err = supervise.New(ctx, supervise.Config{
			Name:   cfg.Name,
			Launch: launch,
			NewDir: subprocess.NewDir,
			Serve:  p.serve,
			Gone: func(err error) {
				p.client.Fail(err)
				p.lender.Forget() // peers need not wait for what does not come
			},
			Back:     p.client.Recover,
			LogLevel: func() slog.Level { return level(p.log) },
			Policy:   cfg.Policy,
			Log:      p.log,
		})
	}
	if err != nil {
		_ = p.client.Close()
		_ = p.lender.Close()
		return nil, err
	}
	return p, nil
}

// check reports everything that is wrong with the configuration.
func (c *Config) check() error {
	var bad []error
	wrong := func(format string, args ...any) { bad = append(bad, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		wrong("Name is empty")
	}
	for _, r := range c.Name {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.') {
			wrong("Name is %q, want letters, digits, '-', '_' and '.'", c.Name)
			break
		}
	}
	switch sum, err := hex.DecodeString(c.SHA256); {
	case c.Path != "" && c.Here != nil:
		wrong("both Path and Here are set, want one of them")
	case c.Path == "" && c.SHA256 != "":
		wrong("SHA256 is set without a Path")
	case c.Path != "" && c.SHA256 == "":
		wrong("SHA256 is missing: sha256sum %s prints it", c.Path)
	case c.Path != "" && (err != nil || len(sum) != 32):
		wrong("SHA256 is %q, want 64 hexadecimal digits", c.SHA256)
	}
	if len(c.Config) > 0 && !json.Valid(c.Config) {
		wrong("Config is no JSON")
	}
	if err := c.Policy.Check(); err != nil {
		bad = append(bad, err)
	}
	if c.Host == nil {
		wrong("Host is nil")
	}
	if c.Blocks == nil {
		wrong("Blocks is nil")
	}
	return invalid(bad)
}

// launcher is how a process of the plugin is started.
func (c *Config) launcher(log *slog.Logger) (func(context.Context, string) (supervise.Process, error), error) {
	if c.Here != nil {
		return func(_ context.Context, dir string) (supervise.Process, error) {
			return startHere(c.Here, log)
		}, nil
	}
	sum, err := hex.DecodeString(c.SHA256)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, dir string) (supervise.Process, error) {
		p, err := subprocess.Start(ctx, subprocess.Config{Name: c.Name, Path: c.Path, SHA256: sum, Env: c.Env, Dir: dir, Log: log})
		if err != nil {
			return nil, err // not a nil *Process
		}
		return p, nil
	}, nil
}

// serve is the life of one process: it is lent what it needs, starts its
// exchange, and serves until ctx ends or something breaks.
func (p *Plugin) serve(ctx context.Context, dir string, proc supervise.Process, up func()) error {
	lease, err := p.lender.Open(dir)
	if err != nil {
		return err
	}
	defer lease.Close()
	x := pb.NewExchangeClient(proc.Conn())
	req := &pb.StartRequest{Name: p.cfg.Name, Config: p.cfg.Config, LogLevel: int32(level(p.log))}
	lease.Fill(req)

	starting, cancel := context.WithTimeoutCause(ctx, startTimeout,
		errs.Errorf(errs.Crashed, errs.Plugin, "start exchange", "not ready after %v", startTimeout))
	defer cancel()
	caps, err := x.Start(starting, req)
	if err != nil {
		return pb.FromStatus(starting, err, errs.Plugin, "start exchange")
	}
	results, err := lease.Results(starting)
	if err != nil {
		return err
	}
	defer results.Close()
	if err := p.settle(caps); err != nil {
		return err
	}
	shared := remote.Shared{Outbound: lease.Outbound(), Inbound: lease.Inbound(), Returned: lease.Returned}
	err = p.client.Run(ctx, x, caps, results, shared, func() {
		p.log.Info("plugin is ready", "version", caps.Version)
		up()
	})
	if errors.Is(err, remote.ErrStopped) || errors.Is(err, errs.Closed) { // Closed: stopped before it has run
		// Its exchange takes back its handlers, and resets its streams, before the
		// process ends; for that it needs what it was lent.
		select {
		case <-proc.Done():
		case <-ctx.Done():
		case <-time.After(startTimeout):
		}
	}
	return err
}

// settle keeps what the first process can do. Callers have been told by type,
// so every later one has to be able to do it too.
func (p *Plugin) settle(caps *pb.StartReply) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.caps == nil {
		p.caps = caps
		p.exchange = p.shown(p.client.Exchange(caps.Leaves), caps.PeerWantlist)
		return nil
	}
	if p.caps.Leaves && !caps.Leaves {
		return errs.Errorf(errs.Invalid, errs.Plugin, "start exchange", "fetches no leaves any more, want what it could do before")
	}
	return nil
}

// level is the lowest level that a logger shows.
func level(log *slog.Logger) slog.Level {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), l) {
			return l
		}
	}
	return slog.LevelError
}

// What callers are given is the exchange as far as the plugin has it: with leaves
// or without, and with the want lists of peers or without. Its Close ends the
// plugin.
type (
	plainExchange struct {
		boxo.SessionExchange
		of *Plugin
	}
	plainExchangePeers struct {
		plainExchange
		peers
	}
	leafExchange struct {
		dataset.LeafExchange
		of *Plugin
	}
	leafExchangePeers struct {
		leafExchange
		peers
	}
	peers struct{ of *Plugin }
)

func (x plainExchange) Close() error             { return x.of.Close() }
func (x plainExchange) GetWantlist() []cid.Cid   { return x.of.GetWantlist() }
func (x plainExchange) Wantlist() []wire.Address { return x.of.Wantlist() }
func (x leafExchange) Close() error              { return x.of.Close() }
func (x leafExchange) GetWantlist() []cid.Cid    { return x.of.GetWantlist() }
func (x leafExchange) Wantlist() []wire.Address  { return x.of.Wantlist() }

func (x peers) WantlistForPeer(id peer.ID) []cid.Cid { return x.of.WantlistForPeer(id) }

// shown gives an exchange the type that tells what it can do.
func (p *Plugin) shown(x boxo.SessionExchange, peerLists bool) boxo.SessionExchange {
	leaves, ok := x.(dataset.LeafExchange)
	switch {
	case ok && peerLists:
		return leafExchangePeers{leafExchange{leaves, p}, peers{p}}
	case ok:
		return leafExchange{leaves, p}
	case peerLists:
		return plainExchangePeers{plainExchange{x, p}, peers{p}}
	}
	return plainExchange{x, p}
}

// Exchange is the exchange of the plugin. It fetches leaves too if the plugin
// does: assert it to dataset.LeafExchange. It stays the same over restarts and
// shows its want list as Plugin does, and those of peers, by WantlistForPeer, if
// the exchange in the plugin has that method. Its Close is [Plugin.Close].
func (p *Plugin) Exchange() boxo.SessionExchange {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exchange
}

// Status is how things are with the process.
func (p *Plugin) Status() Status { return p.supervisor.Status() }

// Restart ends the process and starts a new one, also after it was given up.
func (p *Plugin) Restart() { p.supervisor.Restart() }

// Inspect is what the exchange has counted. The error is of kind errs.Invalid if
// it counts nothing, and errs.Crashed while no process serves.
func (p *Plugin) Inspect(ctx context.Context) (remote.Stat, error) { return p.client.Inspect(ctx) }

// GetWantlist lists the CIDs that the exchange asks for.
func (p *Plugin) GetWantlist() []cid.Cid { return p.client.GetWantlist() }

// Wantlist lists everything that the exchange asks for, leaves too.
func (p *Plugin) Wantlist() []wire.Address { return p.client.Wantlist() }

// WantlistForPeer lists what a peer asks of this node.
func (p *Plugin) WantlistForPeer(id peer.ID) []cid.Cid { return p.client.WantlistForPeer(id) }

// Ledger is what has passed between the exchange and a peer; false if it does
// not know the peer.
func (p *Plugin) Ledger(ctx context.Context, id peer.ID) (remote.Ledger, bool, error) {
	return p.client.Ledger(ctx, id)
}

// Lent is what the plugin has borrowed.
func (p *Plugin) Lent() lend.Stat { return p.lender.Stat() }

// Counters count what crosses between the processes.
func (p *Plugin) Counters() *Counters { return p.lender.Counters() }

// Fetched counts the blocks that the plugin has got for this process, over all of its
// incarnations.
func (p *Plugin) Fetched() remote.Counters { return p.client.Counters() }

// Close ends the exchange and the process, in good order if it still answers.
// It may be called more than once.
func (p *Plugin) Close() error {
	p.close.Do(func() {
		p.supervisor.Close(context.Background())
		_ = p.client.Close()
		_ = p.lender.Close()
	})
	return nil
}

// invalid is one error of everything that is wrong with a configuration.
func invalid(bad []error) error {
	if len(bad) == 0 {
		return nil
	}
	return errs.E(errs.Invalid, errs.Caller, "configuration", "", errors.Join(bad...))
}
