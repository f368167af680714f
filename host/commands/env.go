package commands

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/peerstore"
	"github.com/codexchange/codexchange/host/repo"
)

// An Env is what commands work on: the node of a daemon, or the repo that a command
// line names, opened when a command asks for it. Its methods may be called from
// any goroutine.
type Env struct {
	dir      string
	log      *slog.Logger
	running  context.Context // of a daemon: ends when that begins to stop
	shutdown func()          // stops the daemon; nil on a command line
	stderr   *os.File        // nil in a daemon

	searches searches

	editing sync.Mutex // held while the configuration is read, changed and written; taken before mu

	mu    sync.Mutex
	repo  *repo.Repo
	node  *host.Node
	peers *peerstore.Store // opened without a node, on a command line
	owned bool             // repo, node and peers, by the Env, for close to close
}

// NewEnv is the environment for the commands of a daemon. Those that go on until somebody
// ends them end with running, which is over when the daemon begins to stop. Node and
// repo remain the caller's, and shutdown, which stops the daemon, returns at once.
func NewEnv(running context.Context, node *host.Node, repo *repo.Repo, shutdown func()) *Env {
	return &Env{dir: repo.Path(), running: running, shutdown: shutdown, repo: repo, node: node}
}

// errStopping is why a command ends that would have gone on.
var errStopping = errors.New("the daemon is stopping")

// endless is the context of a command that goes on until somebody ends it: it ends with
// ctx, and when a daemon begins to stop, with errStopping.
func (e *Env) endless(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(ctx)
	stop := func() bool { return true }
	if e.running != nil {
		stop = context.AfterFunc(e.running, func() { end(errStopping) })
	}
	return ctx, func() {
		stop()
		end(nil)
	}
}

// env is the environment of a command.
func env(e cmds.Environment) *Env { return e.(*Env) }

// Dir is the directory of the repo, which may not be there yet.
func (e *Env) Dir() string { return e.dir }

// Repo is the repo. On a command line it is opened by the first call, and closed by
// Close.
func (e *Env) Repo() (*repo.Repo, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.openRepo()
}

func (e *Env) openRepo() (*repo.Repo, error) {
	if e.repo == nil {
		r, err := repo.Open(e.dir)
		if err != nil {
			return nil, err
		}
		e.repo, e.owned = r, true
	}
	return e.repo, nil
}

// Node is the node. On a command line it is opened without a network by the first
// call, and closed by Close.
func (e *Env) Node() (*host.Node, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.node != nil {
		return e.node, nil
	}
	r, err := e.openRepo()
	if err != nil {
		return nil, err
	}
	if e.node, err = host.Open(context.Background(), r, true, e.log); err != nil {
		return nil, err
	}
	return e.node, nil
}

// errOffline is for commands that need peers where the node has no network.
var errOffline = errors.New("the node has no network: run this against a daemon, which 'host daemon' starts")

// online is the node of a daemon that has a network.
func (e *Env) online() (*host.Node, error) {
	n, err := e.Node()
	if err == nil && !n.Online() {
		return nil, errOffline
	}
	return n, err
}

// peerstore is what is known of peers: by the node of a daemon, or, on a command line,
// as it is in the repo.
func (e *Env) peerstore(ctx context.Context) (*peerstore.Store, error) {
	if e.shutdown != nil {
		n, err := e.online()
		if err != nil {
			return nil, err
		}
		return n.Peerstore(), nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.peers != nil {
		return e.peers, nil
	}
	r, err := e.openRepo()
	if err != nil {
		return nil, err
	}
	e.peers, err = peerstore.New(ctx, peerstore.Options{Datastore: r.Datastore(), Log: e.log})
	return e.peers, err
}

// config is the configuration as it is in the file, opened without the stores if
// nothing else needs them. The caller closes it.
func (e *Env) config() (*repo.ConfigFile, func(), error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.repo != nil {
		return e.repo.ConfigFile(), func() {}, nil
	}
	f, err := repo.OpenConfig(e.dir)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}

// close closes what was opened for a command line.
func (e *Env) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.owned {
		return nil
	}
	var err error
	if e.peers != nil {
		err = e.peers.Close()
	}
	if e.node != nil {
		err = errors.Join(err, e.node.Close())
	}
	err = errors.Join(err, e.repo.Close())
	e.peers, e.node, e.repo, e.owned = nil, nil, nil, false
	return err
}
