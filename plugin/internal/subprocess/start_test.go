//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// A plugin starts, answers, sees none of the host's environment but what is
// listed, and ends in good order when it is asked to.
func TestStart(t *testing.T) {
	t.Setenv("SECRET_OF_THE_HOST", "1")
	t.Setenv("OTEL_SERVICE_NAME", "test")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=secret")
	t.Setenv("CODEXDEBUG", "")
	var log logged
	p := start(t, Config{Log: log.logger(), Args: []string{"one", "two"}, Env: []string{"MINE=1", NameKey + "=other"}})
	if p.Err() != nil {
		t.Errorf("Err of a running plugin is %v, want nil", p.Err())
	}
	x := pb.NewExchangeClient(p.Conn())
	if _, err := x.Ping(t.Context(), &pb.PingRequest{}); err != nil {
		t.Fatal(err)
	}

	var about struct{ Env, Args []string }
	if err := json.Unmarshal([]byte(mustDo(t, p, "about").Version), &about); err != nil {
		t.Fatal(err)
	}
	if want := []string{"one", "two"}; !slices.Equal(about.Args, want) {
		t.Errorf("arguments are %q, want %q", about.Args, want)
	}
	var keys []string
	for _, kv := range about.Env {
		key, _, _ := strings.Cut(kv, "=")
		if !slices.Contains(passedOn, key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	want := []string{CookieKey, "MINE", "OTEL_SERVICE_NAME", "PLUGIN_CLIENT_CERT", "PLUGIN_MAX_PORT", "PLUGIN_MIN_PORT", "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_UNIX_SOCKET_DIR"}
	if slices.Sort(want); !slices.Equal(keys, want) {
		t.Errorf("beside what is passed on, the environment has\n%q, want\n%q", keys, want)
	}
	if pgid, err := syscall.Getpgid(p.Pid()); err != nil || pgid != p.Pid() {
		t.Errorf("process group is %d, %v, want the plugin's own, %d", pgid, err, p.Pid())
	}

	if _, err := x.Stop(t.Context(), &pb.StopRequest{}); err != nil {
		t.Errorf("stop: %v", err)
	}
	ended(t, p)
	if err := p.Err(); !errors.Is(err, errs.Crashed) || !strings.Contains(err.Error(), "exit status 0") {
		t.Errorf("after a stop: %v, want exit status 0", err)
	}
	if !strings.Contains(log.String(), "stopped in good order") {
		t.Errorf("Stop was not called, the log is\n%s", &log)
	}
	if _, err := x.Ping(t.Context(), &pb.PingRequest{}); err == nil {
		t.Error("ping after the end: no error")
	}
}

// SIGTERM ends a plugin in good order, SIGINT does not end it, and of SIGKILL
// and panics Err says what happened.
func TestEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*testing.T, *Process)
		want []string
	}{
		{"SIGTERM", func(t *testing.T, p *Process) {
			syscall.Kill(p.Pid(), syscall.SIGINT)
			mustDo(t, p, "")
			syscall.Kill(p.Pid(), syscall.SIGTERM)
		}, []string{"exit status 0"}},
		{"SIGKILL", func(t *testing.T, p *Process) { syscall.Kill(p.Pid(), syscall.SIGKILL) }, []string{"signal 9 (killed)"}},
		{"Kill", func(t *testing.T, p *Process) { p.Kill() }, []string{"killed by this node"}},
		{"Kill of one that hangs", func(t *testing.T, p *Process) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := pb.NewExchangeClient(p.Conn()).Start(ctx, &pb.StartRequest{Config: []byte("hang")}); err == nil {
				t.Error("a stopped process answers")
			}
			p.Kill()
		}, []string{"killed by this node"}},
		{"panic", func(t *testing.T, p *Process) { do(t, p, "panic") }, []string{"exit status 2", "panic: something is wrong", "goroutine "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log logged
			p := start(t, Config{Log: log.logger()})
			tc.do(t, p)
			ended(t, p)
			err := p.Err()
			if !errors.Is(err, errs.Crashed) {
				t.Errorf("error is %v, want of kind %v", err, errs.Crashed)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want %q in it; the log is\n%s", err, want, &log)
				}
			}
			if tc.name == "panic" && !strings.Contains(log.String(), `"level":"ERROR","msg":"panic: something is wrong"`) {
				t.Errorf("the log has no error about the panic:\n%s", &log)
			}
		})
	}
}

// What cannot become a plugin is refused with the reason, and leaves no process;
// the kind says whether another try makes sense.
func TestNotReady(t *testing.T) {
	for _, tc := range []struct {
		name string
		kind errs.Kind
		want string
	}{
		{"noisy", errs.Invalid, `first line on standard output is "loading configuration ..."`},
		{"newer", errs.Invalid, `version "2" of the contract, want 1`},
		{"exits", errs.Crashed, "exit status 3: no such configuration"},
		{"slow", errs.Crashed, "not ready after 300ms: still thinking"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Config{Name: tc.name, Dir: newDir(t), Log: new(logged).logger()}
			if tc.name == "slow" {
				c.StartTimeout = 300 * time.Millisecond
			}
			p, err := Start(t.Context(), c)
			if p != nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want of kind %v with %q", err, tc.kind, tc.want)
			}
			if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
				t.Errorf("a child is left: %v", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := Start(ctx, Config{Name: "slow", Dir: newDir(t), Log: new(logged).logger()})
		if !errors.Is(err, context.Canceled) || errors.Is(err, errs.Invalid) {
			t.Errorf("error is %v, want %v", err, context.Canceled)
		}
	})
}

// A program is refused with a sum that is not the one wanted, naming both, and
// when it is no program.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sum := func(text string) []byte { s := sha256.Sum256([]byte(text)); return s[:] }
	text := file("text", "no program\n", 0o644)
	for _, tc := range []struct {
		name, path string
		sum        []byte
		want       []string
	}{
		{"another sum", file("other", "#!/bin/sh\n", 0o755), sum("wanted"), []string{
			fmt.Sprintf("is %x", sum("#!/bin/sh\n")), fmt.Sprintf("want %x", sum("wanted"))}},
		{"no sum", text, nil, []string{"0 bytes, want 32"}},
		{"missing", filepath.Join(dir, "missing"), sum(""), []string{"missing", "no such file"}},
		{"not executable", text, sum("no program\n"), []string{"-rw-r--r--", "want an executable"}},
		{"directory", dir, sum(""), []string{"want an executable file"}},
		{"no format", file("garbage", "\x00\x01\x02", 0o755), sum("\x00\x01\x02"), []string{"no program for this machine"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Start(t.Context(), Config{Name: "x", Path: tc.path, SHA256: tc.sum, Dir: newDir(t), Log: new(logged).logger()})
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("error is %v, want of kind %v", err, errs.Invalid)
			}
			for _, want := range tc.want {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want %q in it", err, want)
				}
			}
		})
	}
	t.Run("good", func(t *testing.T) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(exe)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		mustDo(t, start(t, Config{Path: exe, SHA256: h.Sum(nil)}), "")
	})
}

// A program is its own plugin only if it has said so, under a name that it has,
// and never if it is a plugin itself.
func TestOwnImage(t *testing.T) {
	refused := func(want string) {
		t.Helper()
		_, err := Start(t.Context(), Config{Name: "echo", Dir: "/tmp", Log: new(logged).logger()})
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want of kind %v with %q", err, errs.Invalid, want)
		}
	}
	t.Cleanup(func() { Ready() })
	self.ready = false
	refused("call plugin.Main first")
	Ready("bitswap", "blockexc")
	refused("it has bitswap, blockexc")
	Ready("bitswap", "echo")
	if _, err := do(t, start(t, Config{}), "itself"); err == nil || !strings.Contains(err.Error(), "itself plugin echo") {
		t.Errorf("a plugin that starts itself: %v, want it refused", err)
	}
}

// By hand, a plugin says what it is.
func TestByHand(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = []string{NameKey + "=echo"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "is a plugin: it is started by a host") {
		t.Errorf("it ends with %v and says %q, want exit status 1 and one sentence", err, out)
	}
}

// host starts a host in a process of its own and gives its plugin.
func host(t *testing.T, exe, what string) (cmd *exec.Cmd, pid int, dir string) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), hostKey+"="+what)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scanErr := fmt.Sscan(line, &pid, &dir); scanErr != nil {
		t.Fatalf("the host says %q, %v, want its plugin", line, err)
	}
	return cmd, pid, dir
}

// When the host is killed, its plugin exits and leaves nothing behind, also while
// it writes to a log that nobody reads, and when it has been stopped.
func TestHostDies(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"idle", "chatter", "stopped"} {
		t.Run(what, func(t *testing.T) {
			cmd, pid, dir := host(t, exe, what)
			if !alive(pid) {
				t.Fatalf("plugin %d does not run", pid)
			}
			if _, err := os.Lstat(dir); err != nil {
				t.Fatal(err)
			}
			if what == "stopped" {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				// The system wakes, and so ends, what has stopped when its host dies, and
				// not what is about to stop.
				eventually(t, "the plugin stops", 5*time.Second, func() bool {
					stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
					return !hasProc() || strings.Contains(string(stat), ") T ")
				})
			}
			cmd.Process.Kill()
			eventually(t, "the plugin exits", 5*time.Second, func() bool { return !alive(pid) })
			eventually(t, "its directory is gone", 5*time.Second, func() bool {
				_, err := os.Lstat(dir)
				return errors.Is(err, os.ErrNotExist)
			})
		})
	}
}

// A host whose file was replaced after it was started still has plugins of its
// own build.
func TestReplaced(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the start is refused")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	_, pid, _ := host(t, copied, "replaced")
	if !alive(pid) {
		t.Errorf("plugin %d does not run", pid)
	}
}

// Starting and killing keeps no descriptors.
func TestDescriptors(t *testing.T) {
	if !hasProc() {
		t.Skip("descriptors are counted in /proc")
	}
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	once := func() {
		dir, cleanup, err := NewDir()
		if err != nil {
			t.Fatal(err)
		}
		defer cleanup()
		p, err := Start(t.Context(), Config{Name: "echo", Dir: dir, Log: new(logged).logger()})
		if err != nil {
			t.Fatal(err)
		}
		p.Kill()
	}
	once()
	before := count()
	for range 20 {
		once()
	}
	eventually(t, fmt.Sprintf("%d descriptors again", before), patience, func() bool { return count() <= before })
}
