//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	pluginrunner "github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Process is a plugin process. Its methods may be called from any goroutine.
type Process struct {
	name   string
	client *plugin.Client
	runner *runner
	out    *output
	conn   *grpc.ClientConn
	pid    int

	stdout, stderr *lockedSplitter // what comes through go-plugin

	done chan struct{} // closed after err is set
	err  error
}

// Start starts a plugin process, and returns when its gRPC server answers. The
// context and StartTimeout bound the start alone. If it returns an error, no
// process is left; the error is of kind errs.Invalid if another try would end in
// the same way.
func Start(ctx context.Context, c Config) (*Process, error) {
	c, err := c.fill()
	if err != nil {
		return nil, err
	}
	path, arg0, err := c.program()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.StartTimeout,
		errs.Errorf(errs.Crashed, errs.Plugin, opStart+" "+c.Name, "not ready after %v", c.StartTimeout))
	defer cancel()

	out := &output{log: c.Log}
	r := newRunner(c.Dir, out, c.Stderr)
	p := &Process{
		name: c.Name, runner: r, out: out, done: make(chan struct{}),
		stdout: newLockedSplitter(out.stdout), stderr: newLockedSplitter(out.stderr),
	}
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: plugins(nil),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     c.StartTimeout + time.Minute, // ctx ends it before
		GRPCDialOptions:  DialOptions(),
		Logger:           hclogTo(c.Log, slog.LevelDebug),
		SyncStdout:       p.stdout,
		SyncStderr:       p.stderr,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: c.Dir},
		RunnerFunc: func(_ hclog.Logger, spec *exec.Cmd, unused string) (pluginrunner.Runner, error) {
			_ = os.Remove(unused) // a directory for sockets, but the plugin's are in c.Dir
			r.cmd = &exec.Cmd{Path: path, Args: append([]string{arg0}, c.Args...), Env: c.environment(spec.Env)}
			return r, nil
		},
	})
	stop := context.AfterFunc(ctx, r.kill)
	conn, err := p.connect()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if r.proc == nil {
		return nil, notStarted(c.Name, path, err)
	}
	if err != nil {
		r.kill()
		p.reap()
		return nil, p.notReady(ctx, err)
	}
	p.conn, p.pid = conn, r.proc.Pid
	go p.reap()
	return p, nil
}

// connect starts the process and connects to its server. go-plugin must not learn
// that the process has ended before it has returned: it would leave a connection
// behind.
func (p *Process) connect() (*grpc.ClientConn, error) {
	if _, err := p.client.Start(); err != nil {
		return nil, err
	}
	protocol, err := p.client.Client() // of the life of p.client
	if err != nil {
		return nil, err
	}
	return protocol.(*plugin.GRPCClient).Conn, protocol.Ping()
}

// reap waits for the process and for everything that belongs to it.
func (p *Process) reap() {
	p.runner.end()
	how := p.runner.how()
	if words, panicked := p.out.lastWords(); panicked {
		how += ": " + words
	}
	p.err = errs.E(errs.Crashed, errs.Plugin, "run plugin", p.name, errors.New(how))
	close(p.runner.release)
	p.client.Kill() // closes the connection, waits for go-plugin's goroutines
	p.stdout.flush()
	p.stderr.flush()
	close(p.done)
}

// Conn is the connection to the plugin's gRPC server. It ends with the process.
func (p *Process) Conn() grpc.ClientConnInterface { return p.conn }

// Pid is the process id.
func (p *Process) Pid() int { return p.pid }

// Done is closed when the process has ended and has been waited for, and what it
// has written has been logged.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process has ended, nil before Done: always an error of kind
// errs.Crashed, with the exit status or the signal in words, and what the plugin
// wrote if it was a panic (at most 16 KiB).
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Kill ends the process with SIGKILL and waits until Done. It may be called at
// any time.
func (p *Process) Kill() {
	p.runner.kill()
	<-p.done
}

// notStarted says why there is no process.
func notStarted(name, path string, err error) error {
	kind, fault := errs.Other, errs.Ours
	for _, e := range []error{fs.ErrNotExist, fs.ErrPermission, syscall.ENOEXEC, syscall.ENOTDIR, syscall.EISDIR} {
		if errors.Is(err, e) {
			kind, fault = errs.Invalid, errs.Caller
		}
	}
	if errors.Is(err, syscall.ENOEXEC) {
		err = fmt.Errorf("%s is no program for this machine: %w", path, err)
	}
	return errs.E(kind, fault, opStart, name, err)
}

// notReady says why a process that was started, and is gone now, did not become
// a plugin.
func (p *Process) notReady(ctx context.Context, err error) error {
	fail := func(kind errs.Kind, format string, args ...any) error {
		return errs.Errorf(kind, errs.Plugin, opStart+" "+p.name, format, args...)
	}
	words, _ := p.out.lastWords()
	if words != "" {
		words = ": " + words
	}
	line := <-p.runner.first
	if said := strings.Split(strings.TrimSpace(line), "|"); len(said) >= 5 {
		switch v, convErr := strconv.Atoi(said[1]); {
		case said[0] != strconv.Itoa(plugin.CoreProtocolVersion):
			return fail(errs.Invalid, "its go-plugin speaks version %.20q, want %d", said[0], plugin.CoreProtocolVersion)
		case convErr != nil || v != Version:
			return fail(errs.Invalid, "it speaks version %.20q of the contract, want %d", said[1], Version)
		case said[4] != string(plugin.ProtocolGRPC):
			return fail(errs.Invalid, "it serves %.20q, want %s", said[4], plugin.ProtocolGRPC)
		}
	} else if line != "" {
		return fail(errs.Invalid, "its first line on standard output is %.200q, want the handshake: a plugin writes nothing there before", line)
	}
	if cause := context.Cause(ctx); cause != nil {
		var e *errs.Error
		if errors.As(cause, &e) {
			return fmt.Errorf("%w%s", cause, words)
		}
		return errs.E(errs.Other, errs.Unknown, opStart, p.name, cause)
	}
	if line == "" {
		return fail(errs.Crashed, "ended before the handshake, %s%s", p.runner.how(), words)
	}
	return fail(errs.Crashed, "%w%s", err, words)
}
