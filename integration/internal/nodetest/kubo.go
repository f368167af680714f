package nodetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Variable is what an environment variable says, or the test is skipped for want of
// it.
func Variable(t testing.TB, name, names string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Skipf("%s names no %s", name, names)
	}
	return strings.TrimSpace(v)
}

// A Kubo is a real Kubo with a repo of its own, on 127.0.0.1 and without routing.
type Kubo struct {
	testing.TB
	Repo    string // directory
	program string
}

// NewKubo makes a repo for one, or skips the test.
func NewKubo(t testing.TB) *Kubo {
	t.Helper()
	k := &Kubo{t, filepath.Join(t.TempDir(), "repo"), Variable(t, "CODEXCHANGE_KUBO", "ipfs program: integration/kubo says what to build")}
	for _, args := range [][]string{{"init", "--empty-repo", "--profile=test"}, {"config", "Routing.Type", "none"}} {
		_, err := k.Run(nil, args...)
		Must(t, "make a repo for Kubo", err)
	}
	return k
}

func (k *Kubo) command(args ...string) *exec.Cmd {
	c := exec.Command(k.program, args...)
	c.Env = append(os.Environ(), "IPFS_PATH="+k.Repo, "IPFS_TELEMETRY=off")
	return c
}

// Run runs one command, and returns what it prints.
func (k *Kubo) Run(in []byte, args ...string) (string, error) {
	c := k.command(args...)
	c.Stdin = bytes.NewReader(in)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("ipfs %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

// Daemon starts the daemon, which ends with the test.
func (k *Kubo) Daemon() *Kubo {
	k.Helper()
	said := Run(k, "Kubo's daemon", k.command("daemon"), false)
	Eventually(k, "the daemon is ready", time.Minute, func() bool { return strings.Contains(said(), "Daemon is ready") })
	return k
}

// Add stores a file, cut into chunks.
func (k *Kubo) Add(content []byte, chunk int64) (string, error) {
	root, err := k.Run(content, "add", "-Q", "--cid-version=1", fmt.Sprintf("--chunker=size-%d", chunk))
	return strings.TrimSpace(root), err
}

// Fetch gets a file from peers, and returns its SHA-256.
func (k *Kubo) Fetch(root string) (sum string, err error) {
	content, err := k.Run(nil, "cat", "--timeout=60s", "/ipfs/"+root)
	return Sum([]byte(content)), err
}

// Address is where the daemon is to be found.
func (k *Kubo) Address() string {
	k.Helper()
	addrs, err := k.Run(nil, "id", "-f", "<addrs>")
	Must(k, "ask the daemon where it is", err)
	for a := range strings.Lines(addrs) {
		if strings.Contains(a, "/ip4/127.0.0.1/tcp/") && !strings.Contains(a, "/ws") {
			return strings.TrimSpace(a)
		}
	}
	k.Fatalf("the daemon listens on %q, want an address of 127.0.0.1 over TCP", addrs)
	return ""
}

// Peers are the ids of the peers that are connected.
func (k *Kubo) Peers() (ids []string) {
	k.Helper()
	list, err := k.Run(nil, "swarm", "peers")
	Must(k, "ask the daemon for its peers", err)
	for a := range strings.Lines(list) {
		_, id, _ := strings.Cut(strings.TrimSpace(a), "/p2p/")
		ids = append(ids, id)
	}
	return ids
}
