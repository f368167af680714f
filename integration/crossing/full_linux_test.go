package crossing

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/codexchange/codexchange/host"
)

// A node whose disk becomes full while it fetches says so on the command line and in
// its log, goes on serving, and goes on fetching when garbage was collected.
func TestFullDisk(t *testing.T) {
	p := newProgram(t)
	d := p.daemon(p.onSmallDisk("24m"))
	source, leech := start(t, "source", host.Blockexc), start(t, "leech", host.Blockexc)
	add := func(seed uint64, size int) (root, sum string) {
		t.Helper()
		content, sum := random(seed, size)
		root, err := source.Add(content, 256<<10)
		must(t, "add file", err)
		return root, sum
	}
	kept, keptSum := add(60, 6<<20)
	large, _ := add(61, 64<<20)
	after, afterSum := add(62, 6<<20)

	d.must("swarm", "connect", source.Addr)
	d.must("pin", "add", kept)
	began := time.Now()
	out, err := d.run("get", "--output="+filepath.Join(t.TempDir(), "large"), large)
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Fatalf("get of more than the disk holds: got %q, %v, want exit status 1 and %q", out, err, syscall.ENOSPC)
	}
	t.Logf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
	eventually(t, "the log says that the disk is full", 30*time.Second, func() bool { return strings.Contains(d.said(), "the disk is full") })

	if addrs := strings.Fields(d.must("id", "-f", "<addrs>")); len(addrs) == 0 {
		t.Fatal("the daemon listens nowhere")
	} else {
		must(t, "connect to the node with the full disk", leech.Connect(addrs[0]))
	}
	if sum, err := leech.Fetch(kept); err != nil || sum != keptSum {
		t.Errorf("a file from the node with the full disk: got %s, %v, want %s", sum, err, keptSum)
	}

	d.must("repo", "gc", "--quiet")
	target := filepath.Join(t.TempDir(), "after")
	d.must("get", "--output="+target, after)
	if got, err := os.ReadFile(target); err != nil || sumOf(got) != afterSum {
		t.Errorf("a file after the garbage was collected: got %d bytes, %v, want those of the source", len(got), err)
	}
	if out := d.must("pin", "ls", "--type=recursive", "--quiet"); out != kept {
		t.Errorf("pins: got %q, want %s", out, kept)
	}
	eventually(t, "the log says that there is room again", 30*time.Second, func() bool { return strings.Contains(d.said(), "room again") })
}

// onSmallDisk is a daemon over a new repo on a file system of its own, which goes away
// with it. Where that cannot be mounted, the test is skipped.
func (p program) onSmallDisk(size string) *exec.Cmd {
	p.Helper()
	disk := p.TB.TempDir()
	apart := func(ctx context.Context, script string) *exec.Cmd {
		c := p.command(ctx)
		c.Path, c.Args = "/bin/sh", []string{"sh", "-ec", `mount -t tmpfs -o size="$1" none "$2"; ` + script, "sh", size, disk, p.path}
		c.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		return c
	}
	if out, err := apart(p.Context(), "exit 0").CombinedOutput(); err != nil {
		p.Skipf("no file system can be mounted here: %v %s", err, out)
	}
	// The context of a test ends before its clean-up, which ends the daemon.
	return apart(context.Background(), `"$3" --repo-dir="$2/repo" init --profile=test; exec "$3" --repo-dir="$2/repo" daemon`)
}
