package commands

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

// An Env is what commands work on: the node of a daemon, or the repo that a command
// line names, opened when a command asks for it. Its methods may be called from
// any goroutine.
type Env struct {
	dir      string
	log      *slog.Logger
	shutdown func()   // stops the daemon; nil on a command line
	stderr   *os.File // nil in a daemon

	mu    sync.Mutex
	repo  *repo.Repo
	node  *host.Node
	owned bool // by the Env, for Close to close
}

// NewEnv is the environment for the commands of a daemon. Node and repo remain the
// caller's, and shutdown, which stops the daemon, returns at once.
func NewEnv(node *host.Node, repo *repo.Repo, shutdown func()) *Env {
	return &Env{dir: repo.Path(), shutdown: shutdown, repo: repo, node: node}
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
	if e.node, err = host.Open(r, true, e.log); err != nil {
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
	if e.node != nil {
		err = e.node.Close()
	}
	err = errors.Join(err, e.repo.Close())
	e.node, e.repo, e.owned = nil, nil, false
	return err
}
