//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// drainTimeout is how long the host reads on after the plugin has ended:
	// children of it may hold its pipes open.
	drainTimeout = time.Second
	// maxHandshake is how long the first line on standard output may be, bytes.
	maxHandshake = 16 << 10
)

// A runner starts a process for go-plugin, and reads what it writes. It takes the
// place of go-plugin's own, see the package comment.
type runner struct {
	cmd *exec.Cmd // set before Start
	dir string    // where the plugin's sockets have to be
	out *output
	tee io.Writer // gets a copy of standard error, or nil

	life           *os.File // its end is the end of the host
	stdout, stderr *os.File
	first          chan string // the first line of standard output, "" if there is none
	toPlugin       *io.PipeReader

	exited  chan struct{}  // closed after waitErr is set
	waitErr error          // of cmd.Wait
	release chan struct{}  // closed when go-plugin may know that the process has ended
	readers sync.WaitGroup // of stdout and stderr

	mu     sync.Mutex
	proc   *os.Process // nil before the start
	killed bool        // by kill
}

func newRunner(dir string, out *output, tee io.Writer) *runner {
	return &runner{
		dir: dir, out: out, tee: tee,
		first: make(chan string, 1), exited: make(chan struct{}), release: make(chan struct{}),
	}
}

// Start starts the process. If it returns nil, the caller calls end.
func (r *runner) Start(context.Context) (err error) {
	var pipes [6]*os.File
	defer func() {
		if err != nil {
			for _, f := range pipes {
				if f != nil {
					f.Close()
				}
			}
		}
	}()
	for i := 0; i < len(pipes); i += 2 {
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			return err
		}
	}
	lifeInPlugin, stdout, stderr := pipes[0], pipes[3], pipes[5]
	r.life, r.stdout, r.stderr = pipes[1], pipes[2], pipes[4]
	r.cmd.Stdout, r.cmd.Stderr = stdout, stderr
	r.cmd.ExtraFiles = []*os.File{lifeInPlugin} // is lifeFD there
	r.cmd.SysProcAttr = sysProcAttr()

	started := make(chan error)
	go r.run(started)
	if err := <-started; err != nil {
		return err
	}
	lifeInPlugin.Close()
	stdout.Close()
	stderr.Close()

	r.mu.Lock()
	r.proc = r.cmd.Process
	if r.killed {
		_ = r.proc.Kill()
	}
	r.mu.Unlock()

	pr, pw := io.Pipe()
	r.toPlugin = pr
	r.readers.Go(func() { r.readStdout(pw) })
	r.readers.Go(r.readStderr)
	return nil
}

// run starts the process and waits for it. On Linux a process gets its Pdeathsig
// when the thread that forked it ends, so this goroutine has its thread for
// itself for as long as the process lives.
func (r *runner) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := r.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	r.waitErr = r.cmd.Wait()
	close(r.exited)
}

// readStdout gives the first line to go-plugin, and logs the others.
func (r *runner) readStdout(handshake *io.PipeWriter) {
	seen := false
	lines := splitter{max: maxHandshake, line: func(line []byte) {
		if seen {
			r.out.stdout(line)
			return
		}
		seen = true
		r.first <- string(line)
		fmt.Fprintf(handshake, "%s\n", line)
	}}
	_, _ = io.Copy(&lines, r.stdout)
	lines.flush()
	if !seen {
		r.first <- ""
	}
	handshake.Close()
}

func (r *runner) readStderr() {
	lines := splitter{max: maxHostLine, line: r.out.stderr}
	var to io.Writer = &lines
	if r.tee != nil {
		to = io.MultiWriter(to, r.tee)
	}
	_, _ = io.Copy(to, r.stderr)
	lines.flush()
}

// kill sends SIGKILL, now or as soon as there is a process.
func (r *runner) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killed = true
	if r.proc != nil {
		_ = r.proc.Kill()
	}
}

// end waits for the process and for what it has written, and closes what the
// host has of it.
func (r *runner) end() {
	<-r.exited
	r.life.Close() // children of the plugin that hold the other end may go too
	late := time.Now().Add(drainTimeout)
	_ = r.stdout.SetReadDeadline(late)
	_ = r.stderr.SetReadDeadline(late)
	r.readers.Wait()
	r.stdout.Close()
	r.stderr.Close()
}

// how says in words how the process has ended.
func (r *runner) how() string {
	r.mu.Lock()
	killed := r.killed
	r.mu.Unlock()
	state := r.cmd.ProcessState
	if state == nil {
		return fmt.Sprintf("not known how it ended: %v", r.waitErr)
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return state.String()
	case status.Signaled() && status.Signal() == syscall.SIGKILL && killed:
		return "killed by this node"
	case status.Signaled() && status.CoreDump():
		return fmt.Sprintf("ended by signal %d (%v), core dumped", status.Signal(), status.Signal())
	case status.Signaled():
		return fmt.Sprintf("ended by signal %d (%v)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// What follows is for go-plugin.

// Wait returns when the process has ended and go-plugin may know it.
func (r *runner) Wait(context.Context) error {
	<-r.release
	return r.waitErr
}

func (r *runner) Kill(context.Context) error {
	r.kill()
	return nil
}

func (r *runner) Stdout() io.ReadCloser           { return r.toPlugin }
func (r *runner) Stderr() io.ReadCloser           { return io.NopCloser(strings.NewReader("")) }
func (r *runner) Name() string                    { return r.cmd.Args[0] }
func (r *runner) Diagnose(context.Context) string { return "" }

func (r *runner) ID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc == nil {
		return ""
	}
	return strconv.Itoa(r.proc.Pid)
}

// PluginToHost checks where the plugin listens.
func (r *runner) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" || filepath.Dir(addr) != r.dir {
		return "", "", fmt.Errorf("it listens at %s %.200q, want a unix socket in %s", network, addr, r.dir)
	}
	return network, addr, nil
}

func (r *runner) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}
