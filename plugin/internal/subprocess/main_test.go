//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"
	golog "github.com/ipfs/go-log/v2"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/plugin/pb"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// hostKey makes this binary play the host of TestHostDies and TestReplaced.
const hostKey = "SUBPROCESS_TEST_HOST"

// The test binary is also its own plugin, under several names, and a host.
func TestMain(m *testing.M) {
	switch name := PluginName(); name {
	case "":
	case "noisy":
		fmt.Println("loading configuration ...")
		serve()
	case "newer":
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig:  handshake(),
			VersionedPlugins: map[int]plugin.PluginSet{Version + 1: {"exchange": services{register: func(*grpc.Server) {}}}},
			GRPCServer:       plugin.DefaultGRPCServer,
		})
	case "exits":
		fmt.Fprintln(os.Stderr, "no such configuration")
		os.Exit(3)
	case "slow":
		fmt.Fprintln(os.Stderr, "still thinking")
		select {}
	default:
		serve()
	}
	if dir := os.Getenv(hostKey); dir != "" {
		playHost(dir)
	}
	Ready()
	goleak.VerifyTestMain(m)
}

func serve() {
	x := &exchange{}
	Serve(ServeConfig{
		Register: func(s *grpc.Server) { pb.RegisterExchangeServer(s, x) },
		Stop:     func() { Log().Info("stopped in good order") },
	})
}

// exchange is the service of the plugins here. Start does what its Config says.
type exchange struct{ pb.UnimplementedExchangeServer }

func (*exchange) Ping(context.Context, *pb.PingRequest) (*pb.PingReply, error) {
	return &pb.PingReply{}, nil
}

func (*exchange) Stop(context.Context, *pb.StopRequest) (*pb.StopReply, error) {
	return &pb.StopReply{}, nil
}

func (*exchange) Start(_ context.Context, req *pb.StartRequest) (*pb.StartReply, error) {
	reply := &pb.StartReply{}
	switch string(req.Config) {
	case "about":
		about, _ := json.Marshal(struct{ Env, Args []string }{os.Environ(), os.Args[1:]})
		reply.Version = string(about)
	case "log":
		SetLogLevel(slog.LevelDebug)
		Log().Debug("a debug line", "n", 7, "peer", "12D3", slog.Group("block", "size", 65536, "held", true))
		Log().With("logger", "sub").Warn("a warning", "err", fmt.Errorf("why"))
		golog.Logger("bitswap").Errorw("from go-log", "wants", 3)
		fmt.Println("noise on stdout")
		fmt.Fprintln(os.Stderr, "noise on os.Stderr")
		syscall.Write(1, []byte("raw noise on stdout\n"))
		syscall.Write(2, []byte("[WARN] raw noise on stderr\n{\"@message\":7,\"@level\":null}\n{\n\n"))
		Log().Info("a long line", "long", strings.Repeat("x", 100<<10))
		long := strings.Repeat("y", 200<<10) + "\n"
		for b := []byte(long); len(b) > 0; {
			n, err := syscall.Write(2, b)
			if err != nil {
				return nil, err
			}
			b = b[n:]
		}
		Log().Info("the last line", "msg", "of all", "took", 1500*time.Millisecond)
	case "panic":
		go panic("something is wrong")
		select {}
	case "hang":
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {}
	case "chatter":
		go func() {
			for {
				Log().Info("chatter")
			}
		}()
	case "itself":
		_, err := Start(context.Background(), Config{Name: "echo", Dir: "/tmp"})
		return nil, pb.Status(err)
	}
	return reply, nil
}

// do makes the plugin do something, see exchange.Start.
func do(t testing.TB, p *Process, what string) (*pb.StartReply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return pb.NewExchangeClient(p.Conn()).Start(ctx, &pb.StartRequest{Config: []byte(what)})
}

func mustDo(t testing.TB, p *Process, what string) *pb.StartReply {
	t.Helper()
	reply, err := do(t, p, what)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return reply
}

// logged is what a host's log shows.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// lines are the records, without the time.
func (l *logged) lines(t testing.TB) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v in %.200q", err, line)
		}
		delete(m, "time")
		lines = append(lines, m)
	}
	return lines
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// newDir is NewDir for a test.
func newDir(t testing.TB) string {
	t.Helper()
	dir, cleanup, err := NewDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cleanup()
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("directory %s is still there after cleanup", dir)
		}
	})
	return dir
}

// start starts a plugin that ends with the test.
func start(t testing.TB, c Config) *Process {
	t.Helper()
	if c.Name == "" {
		c.Name = "echo"
	}
	if c.Dir == "" {
		c.Dir = newDir(t)
	}
	if c.Log == nil {
		c.Log = new(logged).logger()
	}
	p, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// ended waits for the end of a process.
func ended(t testing.TB, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatalf("plugin %d still runs after %v", p.Pid(), patience)
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, limit time.Duration, cond func() bool) {
	t.Helper()
	end := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, limit)
		}
		<-tick.C
	}
}

// alive reports whether there is a process, not counting one that has ended and
// that nobody has waited for.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !os.IsNotExist(err) || !hasProc()
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func hasProc() bool {
	_, err := os.Stat("/proc/self/exe")
	return err == nil
}

// playHost is the main function of a host in a process of its own: it does what
// the first line on its standard input says, prints the plugin's pid and
// directory, and goes on until it is killed or its standard input ends.
func playHost(what string) {
	Ready()
	dir, cleanup, err := NewDir()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	defer cleanup()
	if what == "replaced" {
		exe, _ := os.Executable()
		if err := os.Rename(exe, exe+".old"); err != nil {
			fmt.Println("error", err)
		}
		if err := os.WriteFile(exe, []byte("#!/bin/false\n"), 0o755); err != nil {
			fmt.Println("error", err)
		}
		os.Remove(exe + ".old")
	}
	p, err := Start(context.Background(), Config{Name: "echo", Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
	if what == "chatter" {
		pb.NewExchangeClient(p.Conn()).Start(context.Background(), &pb.StartRequest{Config: []byte("chatter")})
	}
	fmt.Println(p.Pid(), dir)
	io.Copy(io.Discard, os.Stdin)
	p.Kill()
	cleanup()
	os.Exit(0)
}
