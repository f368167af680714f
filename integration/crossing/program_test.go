package crossing

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

// A program is cmd/host, as a person runs it. Its methods may be called from any
// goroutine, but for those that return no error.
type program struct {
	testing.TB
	path string
	tmp  string // $TMPDIR: the sockets of plugins
}

// newProgram builds one.
func newProgram(t testing.TB) program {
	t.Helper()
	p := program{t, filepath.Join(t.TempDir(), "host"), socketDir(t)}
	if out, err := exec.Command("go", "build", "-o", p.path, "github.com/codexchange/codexchange/cmd/host").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return p
}

func (p program) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, p.path, args...)
	c.Env = append(os.Environ(), "TMPDIR="+p.tmp)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = pluginEnds
	return c
}

// run runs one command to its end, and returns what it prints. The error has what
// it says on standard error.
func (p program) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := p.command(ctx, args...)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("host %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// must is run for what has to succeed.
func (p program) must(args ...string) string {
	p.Helper()
	out, err := p.run(args...)
	must(p, "run a command", err)
	return out
}

// A programDaemon is one that runs as a daemon.
type programDaemon struct {
	program
	api  string // multiaddr
	said func() string
}

// daemon starts c, which becomes a daemon, and waits until it is ready. It ends with
// the test.
func (p program) daemon(c *exec.Cmd) programDaemon {
	p.Helper()
	d := programDaemon{p, "", nodetest.Run(p, "the daemon", c, true)}
	eventually(p, "the daemon is ready", time.Minute, func() bool { return strings.Contains(d.said(), "Daemon is ready") })
	for line := range strings.Lines(d.said()) {
		if addr, ok := strings.CutPrefix(line, "RPC API server listening on "); ok {
			d.api = strings.TrimSpace(addr)
		}
	}
	return d
}

// run runs a command by the API.
func (d programDaemon) run(args ...string) (string, error) {
	return d.program.run(append([]string{"--api=" + d.api}, args...)...)
}

func (d programDaemon) must(args ...string) string {
	d.Helper()
	out, err := d.run(args...)
	must(d, "run a command", err)
	return out
}
