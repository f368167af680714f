package crossing

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/host"
)

// A kubo is a real Kubo with a repo of its own, on 127.0.0.1 and without routing.
type kubo struct {
	testing.TB
	program, repo string
}

// newKubo makes a repo for one, or skips the test.
func newKubo(t testing.TB) *kubo {
	t.Helper()
	k := &kubo{t, variable(t, "CODEXCHANGE_KUBO", "ipfs program: integration/kubo says what to build"), filepath.Join(t.TempDir(), "repo")}
	for _, args := range [][]string{{"init", "--empty-repo", "--profile=test"}, {"config", "Routing.Type", "none"}} {
		_, err := k.run(nil, args...)
		must(t, "make a repo for Kubo", err)
	}
	return k
}

func (k *kubo) command(args ...string) *exec.Cmd {
	c := exec.Command(k.program, args...)
	c.Env = append(os.Environ(), "IPFS_PATH="+k.repo, "IPFS_TELEMETRY=off")
	return c
}

// run runs one command, and returns what it prints.
func (k *kubo) run(in []byte, args ...string) (string, error) {
	c := k.command(args...)
	c.Stdin = bytes.NewReader(in)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("ipfs %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

// daemon starts the daemon, which ends with the test.
func (k *kubo) daemon() *kubo {
	k.Helper()
	var said output
	c := k.command("daemon")
	c.Stdout, c.Stderr = &said, &said
	must(k, "start the daemon", c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	k.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			k.Errorf("the daemon, pid %d, does not end", c.Process.Pid)
			_ = c.Process.Kill()
			<-ended
		}
		if k.Failed() {
			k.Logf("the daemon said:\n%s", said.String())
		}
	})
	eventually(k, "the daemon is ready", time.Minute, func() bool { return strings.Contains(said.String(), "Daemon is ready") })
	return k
}

func (k *kubo) add(content []byte, chunk int64) (string, error) {
	root, err := k.run(content, "add", "-Q", "--cid-version=1", fmt.Sprintf("--chunker=size-%d", chunk))
	return strings.TrimSpace(root), err
}

func (k *kubo) fetch(root string) (sum string, err error) {
	content, err := k.run(nil, "cat", "--timeout=60s", "/ipfs/"+root)
	return sumOf([]byte(content)), err
}

// address is where the daemon is to be found.
func (k *kubo) address() string {
	k.Helper()
	addrs, err := k.run(nil, "id", "-f", "<addrs>")
	must(k, "ask the daemon where it is", err)
	for a := range strings.Lines(addrs) {
		if strings.Contains(a, "/ip4/127.0.0.1/tcp/") && !strings.Contains(a, "/ws") {
			return strings.TrimSpace(a)
		}
	}
	k.Fatalf("the daemon listens on %q, want an address of 127.0.0.1 over TCP", addrs)
	return ""
}

func (k *kubo) peers() (ids []string) {
	k.Helper()
	list, err := k.run(nil, "swarm", "peers")
	must(k, "ask the daemon for its peers", err)
	for a := range strings.Lines(list) {
		_, id, _ := strings.Cut(strings.TrimSpace(a), "/p2p/")
		ids = append(ids, id)
	}
	return ids
}

// Real Kubo as the peer that has Bitswap only.
func TestCrossKubo(t *testing.T) {
	cross(t, newKubo(t).daemon())
}

// emptyDirectory is a block that Kubo puts into every blockstore that it opens.
var emptyDirectory = cid.MustParse("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")

// Kubo's own tools read a blockstore of ours, of which it gets a copy: the files
// in it, every block against its hash, and the same list of blocks. A byte that is
// changed is found, so they do look.
func TestKuboReadsBlocks(t *testing.T) {
	k := newKubo(t)
	n, seeder := start(t, "node", host.Blockexc), start(t, "seeder", host.Blockexc)
	must(t, "connect", n.connect(seeder.addr))
	files := make(map[string]string) // SHA-256 by root
	for i, chunk := range []int64{64 << 10, 1 << 20} {
		content, sum := random(uint64(20+i), 20<<20)
		root, err := n.add(content, chunk)
		must(t, "add file", err)
		files[root] = sum

		content, sum = random(uint64(30+i), 4<<20)
		root, err = seeder.add(content, chunk)
		must(t, "add file at the seeder", err)
		_, err = n.fetch(root)
		must(t, "fetch file", err)
		files[root] = sum
	}
	stored := n.stored()
	n.stop()

	blocks := filepath.Join(k.repo, "blocks")
	must(t, "remove Kubo's blocks", os.RemoveAll(blocks))
	must(t, "copy the blocks", os.CopyFS(blocks, os.DirFS(filepath.Join(n.dir, "blocks"))))
	for root, sum := range files {
		got, err := k.run(nil, "cat", "--offline", root)
		must(t, "read a file", err)
		if sumOf([]byte(got)) != sum {
			t.Errorf("Kubo reads %d bytes of %s, not those that were stored", len(got), root)
		}
	}
	_, err := k.run(nil, "repo", "verify")
	must(t, "verify the blocks", err)

	refs, err := k.run(nil, "refs", "local")
	must(t, "list the blocks", err)
	var keys []string
	for line := range strings.Lines(refs) {
		c, err := cid.Decode(strings.TrimSpace(line))
		must(t, "parse "+line, err)
		if key := c.Hash().HexString(); key != emptyDirectory.Hash().HexString() {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	if !slices.Equal(keys, stored.Keys) {
		t.Errorf("Kubo lists %d blocks, want the %d that were stored", len(keys), len(stored.Keys))
	}

	spoil(t, blocks)
	if out, err := k.run(nil, "repo", "verify"); err == nil {
		t.Errorf("repo verify after a byte was changed: got %q, want an error", out)
	}
}

// spoil changes one byte of one block below a directory.
func spoil(t testing.TB, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.data"))
	if err != nil || len(files) == 0 {
		t.Fatalf("blocks in %s: got %d, %v, want some", dir, len(files), err)
	}
	b, err := os.ReadFile(files[0])
	must(t, "read block", err)
	b[len(b)/2] ^= 1
	must(t, "write block", os.WriteFile(files[0], b, 0o600))
}
