package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A daemon serves the commands of other command lines on its repo until it is stopped
// by one of them, and another until it is interrupted.
func TestDaemon(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repo")
	t.Setenv("CODEXCHANGE_PATH", dir)
	if o := command(t, t.Context(), "init", "--profile=test"); o.code != exitOK {
		t.Fatal(o)
	}
	if o := command(t, t.Context(), "swarm", "peers"); o.code != exitFailed || !strings.Contains(o.stderr, "start one with 'host daemon'") {
		t.Errorf("want that no daemon runs\n%v", o)
	}

	// start runs a daemon until it is ready.
	start := func(ctx context.Context) (ended chan int) {
		c, ended := &cli{}, make(chan int, 1)
		files := t.TempDir()
		for name, f := range map[string]**os.File{"stdin": &c.stdin, "stdout": &c.stdout, "stderr": &c.stderr} {
			var err error
			if *f, err = os.Create(filepath.Join(files, name)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { (*f).Close() })
		}
		go func() { ended <- c.run(ctx, []string{"daemon"}) }()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			out, _ := os.ReadFile(c.stdout.Name())
			if strings.Contains(string(out), "Daemon is ready") {
				return ended
			}
			if time.Now().After(deadline) {
				log, _ := os.ReadFile(c.stderr.Name())
				t.Fatalf("the daemon is not ready after 30 s\nstdout:\n%s\nstderr:\n%s", out, log)
			}
		}
	}
	ended := start(t.Context())
	if o := command(t, t.Context(), "swarm", "peers"); o.code != exitOK || o.stdout+o.stderr != "" {
		t.Errorf("want no peers\n%v", o)
	}
	if o := command(t, t.Context(), "add", "-Q", file(t, []byte("hello\n"))); o.code != exitOK || o.stdout != "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN\n" {
		t.Errorf("want that a file is added\n%v", o)
	}
	if o := command(t, t.Context(), "daemon"); o.code != exitFailed || !strings.Contains(o.stderr, "in use by") {
		t.Errorf("want that the repo is in use\n%v", o)
	}
	if o := command(t, t.Context(), "shutdown"); o.code != exitOK || o.stdout+o.stderr != "" {
		t.Errorf("want that the daemon is stopped\n%v", o)
	}
	if code := <-ended; code != exitOK {
		t.Errorf("the daemon that was stopped exited with %d, want %d", code, exitOK)
	}
	if o := command(t, t.Context(), "cat", "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN"); o.stdout != "hello\n" {
		t.Errorf("want the file without a daemon\n%v", o)
	}

	ctx, interrupt := context.WithCancel(t.Context())
	ended = start(ctx)
	interrupt()
	if code := <-ended; code != exitOK {
		t.Errorf("the daemon that was interrupted exited with %d, want %d: it has ended in good order", code, exitOK)
	}
}
