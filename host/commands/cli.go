package commands

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	cmdhttp "github.com/ipfs/go-ipfs-cmds/http"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/repo"
)

// Exit codes of [Main].
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitInterrupted = 130
)

// APIPath is where a daemon serves the commands.
const APIPath = "/api/v0"

// patience is how long a command may take to end after it was interrupted.
const patience = time.Second

// Main runs one command line, of which args[0] is the name of the program, and
// returns the exit code. When ctx ends the command is stopped.
func Main(ctx context.Context, root *cmds.Command, args []string, stdin, stdout, stderr *os.File) int {
	args = rephrase(args)
	var e *Env
	orderly := make(chan struct{}) // closed if the command is one
	build := func(_ context.Context, req *cmds.Request) (cmds.Environment, error) {
		if _, ok := req.Command.Extra.GetValue(orderlyKey{}); ok {
			close(orderly)
		}
		var err error
		e, err = newEnv(req, stderr)
		return e, err
	}
	done := make(chan error, 1)
	go func() {
		err := cli.Run(ctx, root, args, stdin, stdout, stderr, build, executor)
		if e != nil {
			// What was written is on the disk when the command reports success.
			if failed := e.close(); failed != nil {
				fmt.Fprintf(stderr, "Error: close repo: %v\n", failed)
				err = errors.Join(err, failed)
			}
		}
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-orderly:
			err = <-done
		case <-time.After(patience): // it reads from a terminal, say
			return ExitInterrupted
		}
	}
	switch {
	case err == nil:
		return ExitOK
	case ctx.Err() != nil:
		return ExitInterrupted
	}
	return ExitFailed
}

// rephrase makes options of `help COMMAND` and `--version`.
func rephrase(args []string) []string {
	if len(args) < 2 {
		return args
	}
	switch args[1] {
	case "--version":
		return append([]string{args[0], "version"}, args[2:]...)
	case "help":
		return append(append([]string{args[0]}, args[2:]...), "--help")
	}
	return args
}

// newEnv is the environment of a command line.
func newEnv(req *cmds.Request, stderr *os.File) (*Env, error) {
	dir, err := repo.Dir(option[string](req, repoOption))
	if err != nil {
		return nil, err
	}
	level := slog.LevelWarn
	if option[bool](req, debugOption) {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	return &Env{dir: dir, log: log, stderr: stderr}, nil
}

// hereKey marks commands that run in the process of the command line also where a
// daemon would do.
type hereKey struct{}

func here() *cmds.Extra { return new(cmds.Extra).SetValue(hereKey{}, true) }

// orderlyKey marks commands that Main waits for however long they take to end.
type orderlyKey struct{}

// Orderly marks a command that runs only in the process of the command line, and that
// after an interrupt takes its time to end in good order, as a daemon does.
func Orderly() *cmds.Extra { return new(cmds.Extra).SetValue(orderlyKey{}, true) }

// executor decides where a command runs.
func executor(req *cmds.Request, environment any) (cmds.Executor, error) {
	e, command := env(environment), strings.Join(req.Path, " ")
	local := cmds.NewExecutor(req.Root)
	if _, ok := req.Command.Extra.GetValue(hereKey{}); ok {
		return local, nil
	}
	named := option[string](req, apiOption)
	if req.Command.NoRemote {
		if named != "" {
			return nil, fmt.Errorf("'%s' works on the repo of this machine: leave --%s out", command, apiOption)
		}
		return local, nil
	}
	api, err := daemonOf(e.dir, named)
	switch {
	case err != nil:
		return nil, err
	case api != nil:
		return remote(req, api, e.stderr)
	case req.Command.NoLocal:
		return nil, fmt.Errorf("'%s' needs a running node, and no daemon runs on %s: start one with 'host daemon'", command, e.dir)
	}
	return local, nil
}

// daemonOf is where the daemon serves its API; nil if none runs.
func daemonOf(dir, named string) (multiaddr.Multiaddr, error) {
	if named != "" {
		a, err := multiaddr.NewMultiaddr(named)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w; want a multiaddr, such as /ip4/127.0.0.1/tcp/5001", apiOption, err)
		}
		return a, nil
	}
	a, err := repo.APIAddr(dir)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return a, err
}

// remote runs a command by the API at addr.
func remote(req *cmds.Request, addr multiaddr.Multiaddr, stderr *os.File) (cmds.Executor, error) {
	network, address, err := manet.DialArgs(addr)
	if err != nil {
		return nil, fmt.Errorf("use API at %s: %w", addr, err)
	}
	server := "http://" + address
	switch network {
	case "tcp", "tcp4", "tcp6":
		for _, p := range addr.Protocols() {
			if p.Code == multiaddr.P_HTTPS || p.Code == multiaddr.P_TLS {
				server = "https://" + address
			}
		}
	case "unix":
		server = "http://unix" // the name of the host, which nobody looks up
	default:
		return nil, fmt.Errorf("use API at %s: it is on %s, want tcp or unix", addr, network)
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, at string) (net.Conn, error) {
			if network == "unix" {
				at = address
			}
			c, err := new(net.Dialer).DialContext(ctx, network, at)
			if err != nil {
				return nil, fmt.Errorf("reach the daemon at %s: %v; start one with 'host daemon', or give its address with --%s", addr, err, apiOption)
			}
			return c, nil
		},
	}}
	opts := []cmdhttp.ClientOpt{cmdhttp.ClientWithAPIPrefix(APIPath), cmdhttp.ClientWithHTTPClient(client)}
	header := make(http.Header)
	if secret := option[string](req, authOption); secret != "" {
		header.Set("Authorization", authorization(secret))
		opts = append(opts, cmdhttp.ClientWithHeader("Authorization", authorization(secret)))
	}
	// These are for this process. The secret does not belong into a URL.
	for _, name := range []string{repoOption, authOption, debugOption} {
		delete(req.Options, name)
	}
	return &patient{
		Executor: cmdhttp.NewClient(server, opts...), api: addr.String(), stderr: stderr, ask: askSearches(client, server, header),
	}, nil
}

// authorization is the header for a secret as API.Authorizations has it.
func authorization(secret string) string {
	kind, rest, ok := strings.Cut(secret, ":")
	switch {
	case ok && kind == "basic":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(rest))
	case ok && kind == "bearer":
		return "Bearer " + rest
	}
	return "Bearer " + secret
}
