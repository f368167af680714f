package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// process starts a command line as a process, the first of its group as a shell
// makes it, with a directory for temporary files of its own. Its standard error
// comes over the pipe.
func process(t *testing.T, args ...string) (cmd *exec.Cmd, stderr *os.File, tmp string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	tmp, err = os.MkdirTemp("", "h") // short: it is for sockets
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1", "TMPDIR="+tmp)
	cmd.Stderr = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		os.RemoveAll(tmp)
	})
	return cmd, r, tmp
}

// left fails the test unless the process has ended with a code, and its directory
// for temporary files, sockets among them, is empty.
func left(t *testing.T, cmd *exec.Cmd, code int, tmp string) {
	t.Helper()
	err := cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("it ended with %v, want exit code %d", err, code)
	}
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v, want nothing", entries, err)
	}
}

// An interrupt typed at the terminal, which the whole process group gets, ends a
// demo in good order while its plugins run: no directory and no socket is left.
func TestInterrupt(t *testing.T) {
	cmd, stderr, tmp := process(t, "demo", "--size=8MiB", "--runs=100")
	lines := bufio.NewReader(stderr)
	var line string
	for !strings.HasPrefix(line, "run 1 of 100") { // the next run is under way
		var err error
		if line, err = lines.ReadString('\n'); err != nil {
			t.Fatalf("no run has ended: %q, %v", line, err)
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(lines) // ends with the last process that has the pipe
	left(t, cmd, exitInterrupted, tmp)
	if !strings.HasSuffix(string(rest), "host demo: interrupted\n") {
		t.Errorf("it says %q, want that it was interrupted", rest)
	}
}

// Whoever stops reading what a demo says does not make it leave its directory
// behind.
func TestNobodyReads(t *testing.T) {
	cmd, stderr, tmp := process(t, "demo", "--size=1MiB", "--runs=1")
	stderr.Close()
	left(t, cmd, exitOK, tmp)
}
