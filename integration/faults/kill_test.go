package faults

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/host"
)

const (
	kills  = 20
	chunk  = 64 << 10
	leaves = 640 // more than what a node holds before it is written
)

// A seeder is a node in this process that has one file.
type seeder struct {
	*host.Node
	root cid.Cid
	sum  string
}

func seed(t *testing.T, exchange string) seeder {
	t.Helper()
	n, err := host.New(host.Options{Dir: t.TempDir(), Use: []string{exchange},
		Plugins: map[string]host.Plugin{host.Blockexc: {InProcess: true}}})
	must(t, "start seeder", err)
	t.Cleanup(func() { must(t, "close seeder", n.Close()) })
	data := make([]byte, leaves*chunk)
	rand.NewChaCha8([32]byte{3}).Read(data)
	root, _, err := n.Add(t.Context(), bytes.NewReader(data), chunk)
	must(t, "add file", err)
	sum := sha256.Sum256(data)
	return seeder{n, root, hex.EncodeToString(sum[:])}
}

// stored counts the blocks that a node has on disk.
func stored(t testing.TB, dir string) (n int) {
	t.Helper()
	_ = filepath.WalkDir(filepath.Join(dir, host.BlocksDir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".data") {
			n++
		}
		return nil // what vanishes while we look does not count
	})
	return n
}

// at waits until a share of the file's blocks is stored, from 0.1 to 0.9.
func at(t testing.TB, dir string, share float64) {
	t.Helper()
	want := int(share * leaves)
	eventually(t, "blocks are stored", time.Minute, func() bool { return stored(t, dir) >= want })
}

// kill -9 of the plugin at random points of a transfer: the transfer completes
// with the right bytes, by one restart; the host's connections stay, and nothing
// is left over in the host.
func TestKillPlugin(t *testing.T) {
	s := seed(t, host.Blockexc)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range kills {
		share := 0.1 + 0.8*r.Float64()
		p := launch(t, "fetcher", t.TempDir(), socketDir(t))
		p.start(host.Blockexc)
		p.connect(s.Node)
		before := p.status()

		fetched := p.ask(request{Op: "fetch", Root: s.root.String()})
		at(t, p.dir, share)
		must(t, "kill the plugin", signal(before.Pid, syscall.SIGKILL))
		p.answered("fetch", fetched)

		if got := p.do(request{Op: "sum", Root: s.root.String()}).Sum; got != s.sum {
			t.Errorf("kill %d at %.2f: SHA-256 is %s, want %s", i, share, got, s.sum)
		}
		var after answer
		eventually(t, "the plugin is back", 10*time.Second, func() bool {
			after = p.status()
			return after.State == "running" && after.Restarts > 0
		})
		if after.Restarts != 1 || after.Pid == before.Pid || after.Conns != before.Conns {
			t.Errorf("kill %d at %.2f: %d restarts, pid %d after %d, %d connections; want 1 restart, another pid, %d connections",
				i, share, after.Restarts, after.Pid, before.Pid, after.Conns, before.Conns)
		}
		// What the first plugin had is gone when the second has the same.
		eventually(t, "descriptors and goroutines are back to what they were", 20*time.Second, func() bool {
			after = p.status()
			return after.Files <= before.Files+2 && after.Goroutines <= before.Goroutines+10
		})
		if alive(before.Pid) {
			t.Errorf("kill %d: the killed plugin, pid %d, is still there", i, before.Pid)
		}
		p.in.Close()
		<-p.ended
	}
}

// kill -9 of the host at random points of a transfer: its plugin ends, no socket
// is left, the store opens again, and every block in it hashes to its CID.
func TestKillHost(t *testing.T) {
	s := seed(t, host.Blockexc)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range kills {
		share := 0.1 + 0.8*r.Float64()
		tmp := socketDir(t)
		p := launch(t, "fetcher", t.TempDir(), tmp)
		p.start(host.Blockexc)
		p.connect(s.Node)
		pid := p.info.Pid
		p.ask(request{Op: "fetch", Root: s.root.String()})
		at(t, p.dir, share)
		p.kill()
		killed := time.Now()

		eventually(t, "the plugin has ended", 5*time.Second, func() bool { return !alive(pid) })
		eventually(t, "its sockets are gone", time.Until(killed.Add(5*time.Second)), func() bool { return len(sockets(t, tmp)) == 0 })

		n, err := host.New(host.Options{Dir: p.dir, Use: []string{host.Bitswap}})
		must(t, "open the node again", err)
		store := &blockstore.ValidatingBlockstore{Blockstore: n.Blockstore()}
		keys, err := store.AllKeysChan(t.Context())
		must(t, "list blocks", err)
		count := 0
		for c := range keys {
			count++
			if _, err := store.Get(t.Context(), c); err != nil {
				t.Errorf("kill %d at %.2f: block %s: %v", i, share, c, err)
			}
		}
		if want := int(share * leaves); count < want {
			t.Errorf("kill %d at %.2f: %d blocks are left, want at least %d", i, share, count, want)
		}
		must(t, "close the node", n.Close())
	}
}

// A plugin that hangs is replaced, and the transfer completes.
func TestHang(t *testing.T) {
	s := seed(t, host.Blockexc)
	p := launch(t, "fetcher", t.TempDir(), socketDir(t))
	p.start(host.Blockexc)
	p.connect(s.Node)
	before := p.status()
	fetched := p.ask(request{Op: "fetch", Root: s.root.String()})
	at(t, p.dir, 0.3)
	must(t, "stop the plugin", signal(before.Pid, syscall.SIGSTOP))
	p.answered("fetch", fetched)
	if got := p.do(request{Op: "sum", Root: s.root.String()}).Sum; got != s.sum {
		t.Errorf("SHA-256 is %s, want %s", got, s.sum)
	}
	if after := p.status(); after.Restarts != 1 || alive(before.Pid) {
		t.Errorf("%d restarts, the hanging plugin is alive: %v; want 1, gone", after.Restarts, alive(before.Pid))
	}
}

// A plugin that crashes again and again is given up, which the host says; after a
// restart by hand it works again.
func TestGiveUp(t *testing.T) {
	s := seed(t, host.Blockexc)
	p := launch(t, "fetcher", t.TempDir(), socketDir(t))
	p.start(host.Blockexc)
	p.connect(s.Node)
	seen := map[int]bool{}
	eventually(t, "it is given up", time.Minute, func() bool {
		st := p.status()
		if st.State == "running" && st.Pid == 0 {
			t.Errorf("the plugin is running and has no process: %+v", st)
		}
		if st.State == "running" && !seen[st.Pid] {
			seen[st.Pid] = true
			_ = signal(st.Pid, syscall.SIGKILL) // it may have ended
		}
		return st.State == "given up"
	})
	if log := p.log.String(); !strings.Contains(log, "given up") {
		t.Errorf("the log does not say that the plugin was given up:\n%s", log)
	}
	a := <-p.ask(request{Op: "fetch", Root: s.root.String()})
	if !strings.Contains(a.Err, "crash") {
		t.Errorf("fetch without a plugin: got %q, want an error that says that it crashed", a.Err)
	}
	p.do(request{Op: "restart"})
	eventually(t, "it runs again", 10*time.Second, func() bool { return p.status().State == "running" })
	p.do(request{Op: "fetch", Root: s.root.String()})
	if got := p.do(request{Op: "sum", Root: s.root.String()}).Sum; got != s.sum {
		t.Errorf("after a restart by hand: SHA-256 is %s, want %s", got, s.sum)
	}
}

// socketDir is a short directory for the sockets of a process.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "f")
	must(t, "make directory", err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sockets lists the sockets below a directory, and the directories for them.
func sockets(t testing.TB, dir string) (list []string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			list = append(list, path)
		}
		return nil
	})
	return list
}
