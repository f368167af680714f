package placements

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockservice"
	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	unixfs "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"
)

// kuboVariable names the program of a real Kubo; see integration/kubo.
const kuboVariable = "CODEXCHANGE_KUBO"

// A kubo is a daemon of its own, on 127.0.0.1, without routing, that ends with the
// test.
type kubo struct {
	testing.TB
	program, repo string
	log           lockedBuffer
}

// startKubo starts one, or skips the test.
func startKubo(t testing.TB) *kubo {
	t.Helper()
	k := &kubo{TB: t, program: os.Getenv(kuboVariable), repo: filepath.Join(t.TempDir(), "repo")}
	if k.program == "" {
		t.Skipf("%s names no ipfs: build one with go build -C integration/kubo -o ipfs github.com/ipfs/kubo/cmd/ipfs", kuboVariable)
	}
	k.run(nil, "init", "--profile=test")
	k.run(nil, "config", "Routing.Type", "none")

	daemon := k.command("daemon")
	daemon.Stderr = &k.log
	stdout, err := daemon.StdoutPipe()
	must(t, "make pipe", err)
	must(t, "start the daemon", daemon.Start())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(stdout)
		for said := false; lines.Scan(); {
			fmt.Fprintln(&k.log, lines.Text())
			if !said && strings.Contains(lines.Text(), "Daemon is ready") {
				said = true
				close(ready)
			}
		}
		ended <- daemon.Wait() // when its output has ended
	}()
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("the daemon, pid %d, does not end", daemon.Process.Pid)
			_ = daemon.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the daemon said:\n%s", k.log.String())
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err // for the cleanup
		t.Fatalf("the daemon ended: %v", err)
	case <-time.After(60 * time.Second):
		t.Fatal("the daemon is not ready after 60s")
	}
	return k
}

func (k *kubo) command(args ...string) *exec.Cmd {
	c := exec.Command(k.program, args...)
	c.Env = append(os.Environ(), "IPFS_PATH="+k.repo, "IPFS_TELEMETRY=off")
	return c
}

// run runs one command, and returns what it prints.
func (k *kubo) run(in []byte, args ...string) string {
	k.Helper()
	c := k.command(args...)
	c.Stdin = bytes.NewReader(in)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		k.Fatalf("ipfs %s: %v\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String()
}

// info is where the daemon is to be found.
func (k *kubo) info() peer.AddrInfo {
	k.Helper()
	var addr string
	for a := range strings.Lines(k.run(nil, "id", "-f", "<addrs>")) {
		if strings.Contains(a, "/ip4/127.0.0.1/tcp/") && !strings.Contains(a, "/ws") {
			addr = strings.TrimSpace(a)
		}
	}
	info, err := peer.AddrInfoFromString(addr)
	must(k, "parse the daemon's address "+addr, err)
	return *info
}

// A lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// addFile stores a file as Kubo does, and returns its root.
func addFile(t testing.TB, dag ipld.DAGService, content []byte) cid.Cid {
	t.Helper()
	params := helpers.DagBuilderParams{
		Dagserv: dag, RawLeaves: true, Maxlinks: helpers.DefaultLinksPerBlock, CidBuilder: merkledag.V1CidPrefix(),
	}
	b, err := params.New(chunk.NewSizeSplitter(bytes.NewReader(content), 64<<10))
	must(t, "read file", err)
	root, err := balanced.Layout(b)
	must(t, "store file", err)
	return root.Cid()
}

// A real Kubo and a plugin that is boxo's Bitswap fetch files from each other, of
// more leaves than fit into one node of the tree.
func TestKubo(t *testing.T) {
	k := startKubo(t)
	n := newBitswapNode(t)
	ctx := soon(t)
	info := k.info()
	must(t, "connect", n.Host.Connect(ctx, info))
	list, _ := data(6, 400, 64<<10)
	var content bytes.Buffer
	for _, b := range list {
		content.Write(b.RawData())
	}
	theirs, ours := content.Bytes()[:content.Len()/2], content.Bytes()[content.Len()/2:]

	root, err := cid.Decode(strings.TrimSpace(k.run(theirs, "add", "-Q", "--cid-version=1", "--chunker=size-65536")))
	must(t, "parse what Kubo calls its file", err)
	dag := merkledag.NewDAGService(blockservice.New(n.Blockstore, n.Plugin.Exchange()))
	node, err := dag.Get(ctx, root)
	must(t, "get the root from Kubo", err)
	file, err := unixfs.NewDagReader(ctx, node, dag)
	must(t, "read the root", err)
	var got bytes.Buffer
	_, err = file.WriteTo(&got)
	must(t, "get the file from Kubo", err)
	if !bytes.Equal(got.Bytes(), theirs) {
		t.Errorf("from Kubo come %d bytes, want the %d of its file", got.Len(), len(theirs))
	}
	if s, err := n.Blockstore.Has(ctx, root); err != nil || !s {
		t.Errorf("the root in the node's store: %v, %v, want it there", s, err)
	}

	root = addFile(t, dag, ours)
	if out := k.run(nil, "cat", "/ipfs/"+root.String()); out != string(ours) {
		t.Errorf("Kubo gets %d bytes, want the %d of the node's file", len(out), len(ours))
	}
}
