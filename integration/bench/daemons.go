package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	kubo = "kubo" // in the place of an exchange: whole nodes, driven by their commands

	kuboVariable = "CODEXCHANGE_KUBO"
	modulePath   = "github.com/codexchange/codexchange"

	readyLimit = time.Minute // from the start of a daemon until it says that it is ready
)

// A software is a node that people run: one program with a repo, a daemon, and
// commands that are called the same in all of them.
type software struct {
	exchange string
	path     string
	repo     string     // the variable that names the directory of its repo
	config   [][]string // arguments of its command config, beside the address
}

// kuboConfig leaves Kubo alone with its peer, as our profile "test" does with ours.
var kuboConfig = [][]string{
	{"Routing.Type", "none"},
	{"--json", "Bootstrap", "[]"},
	{"--json", "AutoConf.Enabled", "false"},
	{"--json", "DNS.Resolvers", "{}"},
	{"--json", "Routing.DelegatedRouters", "[]"},
	{"--json", "Ipns.DelegatedPublishers", "[]"},
	{"--json", "AutoTLS.Enabled", "false"},
	{"--json", "Discovery.MDNS.Enabled", "false"},
	{"--json", "Swarm.RelayClient.Enabled", "false"},
	{"--json", "Swarm.RelayService.Enabled", "false"},
	{"--json", "Swarm.EnableHolePunching", "false"},
	{"--json", "Swarm.DisableNatPortMap", "true"},
	{"--json", "HTTPRetrieval.Enabled", "false"},
	{"--json", "Provide.Enabled", "false"},
}

// hostConfigs are the ways to run our own node.
var hostConfigs = map[string][][]string{
	asPlugin:  {{"--json", "Exchange.Use", `["blockexc"]`}},
	inProcess: {{"--json", "Exchange.Use", `["blockexc"]`}, {"--json", "Exchange.Plugins.blockexc.InProcess", "true"}},
	"bitswap": {{"--json", "Exchange.Use", `["bitswap"]`}},
}

// softwareOf finds Kubo, or builds our node with an exchange; the error says what
// is missing.
func (b *bench) softwareOf(ctx context.Context, exchange string) (software, error) {
	if exchange == kubo {
		path, err := kuboProgram(ctx)
		return software{kubo, path, "IPFS_PATH", kuboConfig}, err
	}
	path := filepath.Join(b.dir, "host")
	if !b.built {
		out, err := exec.CommandContext(ctx, "go", "build", "-o", path, modulePath+"/cmd/host").CombinedOutput()
		if err != nil {
			return software{}, fmt.Errorf("build cmd/host: %w: %.500s", err, out)
		}
		b.built = true
	}
	return software{exchange, path, "CODEXCHANGE_PATH", hostConfigs[exchange]}, nil
}

// kuboProgram is the program that the environment names, or bin/ipfs of this
// module.
func kuboProgram(ctx context.Context) (string, error) {
	if path := strings.TrimSpace(os.Getenv(kuboVariable)); path != "" {
		return exec.LookPath(path)
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", modulePath).Output()
	if err != nil {
		return "", fmt.Errorf("no Kubo: %s is not set, and bin/ipfs is looked for in this module only: go list: %w", kuboVariable, err)
	}
	path, err := exec.LookPath(filepath.Join(strings.TrimSpace(string(out)), "bin", "ipfs"))
	if err != nil {
		return "", fmt.Errorf("no Kubo: %s is not set, and %w; make e2e builds it", kuboVariable, err)
	}
	return path, nil
}

// A daemon is a running node of some software.
type daemon struct {
	software
	dir   string // of the repo
	netns string // "": that of this process
	process
	said output
}

// An output keeps what a daemon says. Its methods may be called from any goroutine.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{} // closed when the daemon has said that it is ready
}

const readyText = "Daemon is ready"

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := bytes.Contains(o.text.Bytes(), []byte(readyText))
	o.text.Write(p)
	if !was && bytes.Contains(o.text.Bytes(), []byte(readyText)) {
		close(o.ready)
	}
	return len(p), nil
}

// end is the last of what was said.
func (o *output) end() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := bytes.TrimSpace(o.text.Bytes())
	return string(b[max(0, len(b)-500):])
}

func (d *daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append([]string{d.path}, args...)
	if d.netns != "" {
		argv = append([]string{"ip", "netns", "exec", d.netns}, argv...)
	}
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = append(os.Environ(), d.repo+"="+d.dir, "IPFS_TELEMETRY=off")
	c.WaitDelay = patience
	return c
}

// do runs a command to its end and returns what it prints.
func (d *daemon) do(ctx context.Context, args ...string) (string, error) {
	var said bytes.Buffer
	c := d.command(ctx, args...)
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %s %s: %w: %.500s", d.role, d.exchange, strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// startDaemon makes a repo and starts a daemon over it, which listens on an
// address of its network.
func (b *bench) startDaemon(ctx context.Context, s software, role, dir, netns, ip string) (_ *daemon, err error) {
	d := &daemon{software: s, dir: dir, netns: netns, process: process{role: role}, said: output{ready: make(chan struct{})}}
	if _, err := d.do(ctx, "init", "--profile=test"); err != nil {
		return nil, err
	}
	for _, args := range append(s.config, []string{"--json", "Addresses.Swarm", fmt.Sprintf(`["/ip4/%s/tcp/0"]`, orLoopback(ip))}) {
		if _, err := d.do(ctx, append([]string{"config"}, args...)...); err != nil {
			return nil, err
		}
	}
	d.cmd = d.command(ctx, "daemon")
	d.cmd.Stdout, d.cmd.Stderr = &d.said, &d.said
	if b.verbose {
		d.cmd.Stderr = io.MultiWriter(os.Stderr, &d.said)
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	late := time.NewTimer(readyLimit)
	defer late.Stop()
	select {
	case <-d.said.ready:
	case <-late.C:
		err = fmt.Errorf("%s: not ready after %v: %s", role, readyLimit, d.said.end())
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		err = d.find(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// find asks the daemon where it is to be found, and in which process its exchange
// runs.
func (d *daemon) find(ctx context.Context) error {
	addrs, err := d.do(ctx, "id", "-f", "<addrs>")
	if err != nil {
		return err
	}
	d.addr, _, _ = strings.Cut(addrs, "\n")
	if d.exchange != asPlugin {
		return nil
	}
	list, err := d.do(ctx, "plugin", "ls")
	if err != nil {
		return err
	}
	_, pid, _ := strings.Cut(list, "process ")
	if _, err := fmt.Sscan(pid, &d.plugin); err != nil {
		return fmt.Errorf("%s: plugin ls prints %.200q, want a process: %w", d.role, list, err)
	}
	return nil
}

// close ends the daemon in good order. A nil daemon is closed already.
func (d *daemon) close() error {
	if d == nil {
		return nil
	}
	d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	kill := time.AfterFunc(patience, func() { d.cmd.Process.Kill() })
	defer kill.Stop()
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("%s ended badly: %w: %s", d.role, err, d.said.end())
	}
	return nil
}

// get has one daemon add a file and another get it, by their commands. What is
// measured begins and ends with the command get.
func (b *bench) get(ctx context.Context, exchange string, l layout, bytes int64) (_ figures, err error) {
	s, err := b.softwareOf(ctx, exchange)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "get-")
	if err != nil {
		return nil, err
	}
	var daemons []*daemon
	defer func() {
		list := []error{err}
		for _, d := range daemons {
			list = append(list, d.close())
		}
		err = errors.Join(append(list, os.RemoveAll(dir))...)
	}()
	file, err := b.file(bytes)
	if err != nil {
		return nil, err
	}
	for i, role := range []string{"seeder0", "leecher0"} {
		netns, ip := l.link.place(i)
		d, err := b.startDaemon(ctx, s, role, filepath.Join(dir, role), netns, ip)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
	}
	seeder, leecher := daemons[0], daemons[1]
	root, err := seeder.do(ctx, "add", "-Q", "--raw-leaves", "--cid-version=1", fmt.Sprintf("--chunker=size-%d", 256*kib), file)
	if err != nil {
		return nil, err
	}
	if _, err := leecher.do(ctx, "swarm", "connect", seeder.addr); err != nil {
		return nil, err
	}
	m, err := b.measure(&seeder.process, &leecher.process)
	if err != nil {
		return nil, err
	}
	out := filepath.Join(dir, "out")
	cmd := leecher.command(ctx, "get", "-o", out, root)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s get: %w: %.500s", exchange, err, said)
	}
	u, err := m.end()
	if err != nil {
		return nil, err
	}
	if err := same(out, file); err != nil {
		return nil, err
	}
	f := throughput(bytes, time.Duration(u.wall*float64(time.Second)))
	f["cpu_command_s"] = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	u.unknown -= f["cpu_command_s"]
	u.add(f, 1)
	f["cpu_s"] += f["cpu_command_s"]
	f["cpu_s_per_GB"] = f["cpu_s"] / (float64(bytes) / 1e9)
	return f, nil
}

// file is a file of random bytes, which is kept for the next run.
func (b *bench) file(size int64) (string, error) {
	path := filepath.Join(b.dir, fmt.Sprintf("file-%d", size))
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return path, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	_, err = io.CopyN(f, random(uint64(size)), size)
	return path, errors.Join(err, f.Close())
}

// same says how two files differ.
func same(got, want string) error {
	g, err := os.Open(got)
	if err != nil {
		return err
	}
	defer g.Close()
	w, err := os.Open(want)
	if err != nil {
		return err
	}
	defer w.Close()
	a, b := make([]byte, mib), make([]byte, mib)
	for at := 0; ; at += mib {
		n, errGot := io.ReadFull(g, a)
		k, errWant := io.ReadFull(w, b)
		switch {
		case !bytes.Equal(a[:n], b[:k]):
			return fmt.Errorf("compare %s: differs from what was added in the MiB from byte %d", got, at)
		case errGot == nil && errWant == nil:
		case errors.Is(errGot, io.EOF) || errors.Is(errGot, io.ErrUnexpectedEOF):
			return nil
		default:
			return errors.Join(errGot, errWant)
		}
	}
}
