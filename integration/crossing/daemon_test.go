package crossing

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/daemon"
	"github.com/codexchange/codexchange/host/repo"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

// daemonRole is this test program as a daemon.
const daemonRole = "daemon"

// serveDaemon is a daemon over the repo in dir, until it is told to end.
func serveDaemon(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return daemon.Run(ctx, daemon.Options{RepoDir: dir})
}

// startDaemon starts a daemon with the Codex block exchange, which ends with the
// test, and returns the host and port of its API.
func startDaemon(t testing.TB) (api string) {
	t.Helper()
	dir := nodetest.Repo(t, host.Blockexc)
	nodetest.Run(t, "the daemon", nodetest.Command(t, daemonRole, dir, socketDir(t)), true)
	eventually(t, "the daemon serves its API", 30*time.Second, func() bool {
		addr, err := repo.APIAddr(dir)
		if err != nil {
			return false
		}
		_, api, err = manet.DialArgs(addr)
		return err == nil
	})
	return api
}

// npm's kubo-rpc-client drives a daemon by the commands that it shares with Kubo; a
// file comes from a Codex peer that it connects the daemon to.
func TestRPCClient(t *testing.T) {
	program, dir := node(t)
	api, peer := startDaemon(t), start(t, "codex", host.Blockexc)
	content, sum := random(40, 4<<20)
	root, err := peer.Add(content, 64<<10)
	must(t, "add file", err)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, program, "rpc.js", "http://"+api, peer.Addr, root, sum)
	c.Dir = dir
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Fatalf("kubo-rpc-client ended: %v\n%s", err, said.String())
	}
	var done []string
	must(t, "parse what it says: "+string(out), json.Unmarshal(out, &done))
	t.Logf("as Kubo does: %s", strings.Join(done, ", "))
}

// Kubo's own command line drives a daemon of ours, by --api: what it adds it finds
// again, under the CIDs that Kubo itself gives, and a file comes from a Codex peer
// that it connects the daemon to.
func TestKuboCommands(t *testing.T) {
	k := nodetest.NewKubo(t)
	api, peer := startDaemon(t), start(t, "codex", host.Blockexc)
	addr, port, err := net.SplitHostPort(api)
	must(t, "parse "+api, err)
	ours := func(in []byte, args ...string) string {
		t.Helper()
		out, err := k.Run(in, append([]string{"--api=/ip4/" + addr + "/tcp/" + port}, args...)...)
		must(t, "drive the daemon", err)
		return strings.TrimSuffix(out, "\n")
	}
	theirs := func(in []byte, args ...string) string {
		t.Helper()
		out, err := k.Run(in, append([]string{"--offline"}, args...)...)
		must(t, "run Kubo", err)
		return strings.TrimSuffix(out, "\n")
	}
	same := func(in []byte, args ...string) (out string) {
		t.Helper()
		got, want := ours(in, args...), theirs(in, args...)
		if got != want {
			t.Errorf("ipfs %s: the daemon gives %.300q, Kubo %.300q", strings.Join(args, " "), got, want)
		}
		return got
	}

	content, _ := random(50, 3<<20)
	root := same(content, "add", "-Q", "--cid-version=1", "--chunker=size-65536")
	old := same(content, "add", "-Q") // CIDs of version 0, no raw leaves
	for _, args := range [][]string{
		{"cat", root}, {"cat", "--offset=1000", "--length=500", old}, {"ls", root}, {"refs", "-r", root}, {"block", "get", root},
		{"block", "stat", root}, {"dag", "export", "--progress=false", root}, {"pin", "ls", "--type=recursive", root},
		{"pin", "rm", old}, {"pin", "add", "--progress=false", old},
	} {
		same(nil, args...)
	}
	same([]byte("a block"), "block", "put")
	if got := ours(nil, "repo", "verify"); !strings.Contains(got, "all blocks validated") {
		t.Errorf("repo verify: got %q, want that all blocks are valid", got)
	}

	nobody := "/ip4/192.0.2.7/tcp/4001/p2p/" + peer.ID
	for _, args := range [][]string{
		{"list"}, {"add", nobody, "/ip4/192.0.2.8/tcp/4001/p2p/" + peer.ID}, {"list"}, {"rm", nobody}, {"rm", nobody},
		{"rm", "all"}, {},
	} {
		same(nil, append([]string{"bootstrap"}, args...)...)
	}
	if got, want := ours(nil, "swarm", "peering", "add", nobody), "add "+peer.ID+" success"; got != want {
		t.Errorf("swarm peering add: got %q, want %q", got, want)
	}
	if got, want := ours(nil, "swarm", "peering", "ls"), peer.ID+"\n\t/ip4/192.0.2.7/tcp/4001"; got != want {
		t.Errorf("swarm peering ls: got %q, want %q", got, want)
	}
	if got, want := ours(nil, "swarm", "peering", "rm", peer.ID), "remove "+peer.ID+" success"; got != want {
		t.Errorf("swarm peering rm: got %q, want %q", got, want)
	}

	file, want := random(51, 4<<20)
	root, err = peer.Add(file, 64<<10)
	must(t, "add file at the peer", err)
	ours(nil, "swarm", "connect", peer.Addr)
	if got := ours(nil, "swarm", "peers"); got != peer.Addr {
		t.Errorf("swarm peers: got %q, want %q", got, peer.Addr)
	}
	if got := ours(nil, "swarm", "peers", "-v"); !strings.HasPrefix(got, peer.Addr+" ") || !strings.Contains(got, " outbound") {
		t.Errorf("swarm peers -v: got %q, want %s, the latency and the direction", got, peer.Addr)
	}
	if got, err := k.Run(nil, "--api=/ip4/"+addr+"/tcp/"+port, "cat", root); err != nil || sumOf([]byte(got)) != want {
		t.Errorf("cat of the peer's file: got %d bytes, %v, want its %d", len(got), err, len(file))
	}
}
