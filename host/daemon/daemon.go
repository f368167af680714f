package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

// Options say what a daemon works on.
type Options struct {
	// RepoDir is the directory of the repo, as [repo.Dir] takes it: empty is
	// $CODEXCHANGE_PATH, else ~/.codexchange.
	RepoDir string
	// Init makes the repo if there is none.
	Init bool
	// EnableGC collects garbage when the repo has become too large.
	EnableGC bool
	// Out is what a person at a terminal reads: addresses, "Daemon is ready". nil
	// is nobody.
	Out io.Writer
	// Log is told what operators should know. nil is [Logger].
	Log *slog.Logger
}

// A tree makes what is served under /api/v0: the commands, and what they work on.
// running ends when the daemon begins to stop; shutdown makes it do so and returns at
// once.
type tree func(running context.Context, n *host.Node, r *repo.Repo, shutdown func()) (*cmds.Command, cmds.Environment)

// patience is how long a daemon waits for others.
type patience struct {
	finish time.Duration // for requests to end by themselves when the daemon does
	abort  time.Duration // for those that did not, after their contexts have ended
	body   time.Duration // for the next piece of the body of a request
	write  time.Duration // for a client to take up to 64 KiB of a response
	header time.Duration // for the header of a request
	idle   time.Duration // for the next request on a connection
}

var defaultPatience = patience{
	finish: 5 * time.Second,
	abort:  10 * time.Second,
	body:   2 * time.Minute,
	write:  2 * time.Minute,
	header: 10 * time.Second,
	idle:   2 * time.Minute,
}

// errShutdown is why a daemon ends when a command says so.
var errShutdown = errors.New("a command asked for it")

// A daemon is one call of Run.
type daemon struct {
	patience
	out  io.Writer
	log  *slog.Logger
	repo *repo.Repo
	node *host.Node
	disk disk
	gc   bool // Options.EnableGC
	// serving is between "Daemon is ready" and the begin of the end.
	serving atomic.Bool
}

// run is Run with the commands that are served.
func run(ctx context.Context, o Options, commands tree, p patience) (err error) {
	d := &daemon{patience: p, out: o.Out, log: o.Log, gc: o.EnableGC}
	if d.out == nil {
		d.out = io.Discard
	}
	if d.log == nil {
		d.log = Logger()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// What is opened is closed in the opposite order, whatever happens in between.
	var closers []func() error
	defer func() {
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
	}()

	endTracing, err := startTracing(ctx)
	if err != nil {
		return err
	}
	closers = append(closers, endTracing)

	if d.repo, err = openRepo(o, d.out); err != nil {
		return err
	}
	closers = append(closers, d.repo.Close)
	if d.repo.ReadOnly() {
		d.log.Error("the disk was full when the repo was opened: blocks are served, nothing can be added", "repo", d.repo.Path())
	}
	if note := repo.KeyNote(d.repo.Identity()); note != "" {
		d.log.Warn(note)
	}
	m := newMetrics()
	if d.node, err = host.Open(ctx, d.repo, false, d.log, func(o *host.Options) { o.Metrics = m.registry }); err != nil {
		if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
			d.log.Info("daemon is stopping", "why", context.Cause(ctx))
			return nil // nothing was served yet
		}
		return err
	}
	closers = append(closers, d.node.Close)
	self := d.node.AddrInfo()
	fmt.Fprintf(d.out, "PeerID: %s\n", self.ID)
	for _, a := range self.Addrs {
		fmt.Fprintf(d.out, "Swarm listening on %s\n", a)
	}

	m.watch(d)

	root, env := commands(ctx, d.node, d.repo, func() { cancel(errShutdown) })
	failing := func() error { return d.node.Blockstore().Stats().Err }
	root.Walk(func(c *cmds.Command) { d.disk.listen(c, failing) })
	servers, err := d.listen(root, env, m)
	if err != nil {
		return err
	}
	return d.serve(ctx, cancel, servers)
}

// openRepo opens the repo, and makes it first if that is wanted.
func openRepo(o Options, out io.Writer) (*repo.Repo, error) {
	dir, err := repo.Dir(o.RepoDir)
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(dir)
	if !o.Init || !errors.Is(err, errs.NotFound) {
		return r, err
	}
	c, err := repo.Init(dir, repo.InitOptions{})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "Made a repo in %s, peer id %s\n", dir, c.Identity.PeerID)
	return repo.Open(dir)
}

// listen makes the servers that the configuration asks for. They listen when it
// returns, and answer nobody yet.
func (d *daemon) listen(root *cmds.Command, env cmds.Environment, m *metrics) (_ []*server, err error) {
	c := d.repo.Config()
	var servers []*server
	defer func() {
		if err != nil {
			for _, s := range servers {
				s.listener.Close()
			}
		}
	}()
	if len(c.Addresses.API) == 0 {
		d.log.Warn("Addresses.API is empty: nobody can give this daemon commands")
	}
	for _, addr := range c.Addresses.API {
		s, err := d.newServer("API", addr, maxAPIConns)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
		s.handle(d.api(s, c, root, env, m))
		if s.exposed() && len(c.API.Authorizations) == 0 {
			d.log.Warn("whoever reaches the API controls the node: set API.Authorizations, or listen on a loopback address", "api", s.addr)
		}
	}
	if len(c.Addresses.Gateway) == 0 {
		return servers, nil
	}
	g, conns, err := d.gateway(&c.Gateway, m)
	if err != nil {
		return nil, err
	}
	for _, addr := range c.Addresses.Gateway {
		s, err := d.newServer("gateway", addr, conns)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
		s.handle(g)
	}
	return servers, nil
}

// serve answers until ctx ends or something fails, which cancels it, and then ends in
// good order.
func (d *daemon) serve(ctx context.Context, cancel context.CancelCauseFunc, servers []*server) (err error) {
	manager := notifier{log: d.log}
	for _, s := range servers {
		go s.run(cancel)
	}
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { d.beat(ctx, manager) })
	if d.gc {
		background.Go(func() { d.collect(ctx) })
	}

	err = d.announce(servers)
	if err != nil {
		cancel(err)
	} else {
		d.serving.Store(true)
		fmt.Fprintln(d.out, "Daemon is ready")
		manager.notify("READY=1")
		d.log.Info("daemon is ready", "peer", d.node.AddrInfo().ID, "repo", d.repo.Path())
	}

	<-ctx.Done()
	var failed *serverError
	if errors.As(context.Cause(ctx), &failed) {
		err = errors.Join(err, failed)
	}
	d.serving.Store(false)
	manager.notify("STOPPING=1")
	d.log.Info("daemon is stopping", "why", context.Cause(ctx))
	// Nobody new shall come while the last requests are answered.
	err = errors.Join(err, d.repo.SetAPI(nil))
	return errors.Join(err, stop(servers, d.finish, d.abort))
}

// announce says where the daemon can be reached.
func (d *daemon) announce(servers []*server) error {
	told := false
	for _, s := range servers {
		switch s.name {
		case "API":
			fmt.Fprintf(d.out, "RPC API server listening on %s\n", s.addr)
			if !told {
				told = true
				if err := d.repo.SetAPI(s.reachable()); err != nil {
					return err
				}
			}
		default:
			fmt.Fprintf(d.out, "Gateway server listening on %s\n", s.addr)
		}
	}
	return nil
}
