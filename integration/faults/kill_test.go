package faults

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
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
	n, err := host.New(t.Context(), host.Options{Dir: t.TempDir(), Use: []string{exchange},
		Plugins: map[string]host.Plugin{host.Blockexc: {InProcess: true}}})
	must(t, "start seeder", err)
	t.Cleanup(func() { must(t, "close seeder", n.Close()) })
	data, sum := nodetest.Random(3, leaves*chunk)
	root, _, err := n.Add(t.Context(), bytes.NewReader(data), chunk)
	must(t, "add file", err)
	return seeder{n, root, sum}
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
		p := fetch(t, s)
		before, pid := p.Status(), p.plugin().Pid

		done := p.begin(s.root.String())
		at(t, p.Dir, share)
		must(t, "kill the plugin", signal(pid, syscall.SIGKILL))
		p.finish(done, s.sum)

		var after nodetest.Status
		eventually(t, "the plugin is back", 10*time.Second, func() bool {
			after = p.Status()
			return after.Exchanges[0].State == "running" && after.Exchanges[0].Restarts > 0
		})
		if x := after.Exchanges[0]; x.Restarts != 1 || x.Pid == pid || len(after.Peers) != len(before.Peers) {
			t.Errorf("kill %d at %.2f: %d restarts, pid %d after %d, %d peers; want 1 restart, another pid, %d peers",
				i, share, x.Restarts, x.Pid, pid, len(after.Peers), len(before.Peers))
		}
		// What the first plugin had is gone when the second has the same, and the further
		// streams that the seeder has opened meanwhile are gone when they have been idle.
		eventually(t, "descriptors and goroutines are back to what they were", time.Minute, func() bool {
			after = p.Status()
			return after.Files <= before.Files+2 && after.Goroutines <= before.Goroutines+10
		})
		if alive(pid) {
			t.Errorf("kill %d: the killed plugin, pid %d, is still there", i, pid)
		}
		p.Stop()
	}
}

// kill -9 of the host at random points of a transfer: its plugin ends, no socket
// is left, the store opens again, and every block in it hashes to its CID.
func TestKillHost(t *testing.T) {
	s := seed(t, host.Blockexc)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range kills {
		share := 0.1 + 0.8*r.Float64()
		p := fetch(t, s)
		pid := p.plugin().Pid
		p.begin(s.root.String())
		at(t, p.Dir, share)
		p.Kill()
		killed := time.Now()

		eventually(t, "the plugin has ended", 5*time.Second, func() bool { return !alive(pid) })
		eventually(t, "its sockets are gone", time.Until(killed.Add(5*time.Second)), func() bool { return len(sockets(t, p.Tmp)) == 0 })

		again, err := repo.Open(p.Dir)
		must(t, "open the repo again", err)
		n, err := host.Open(t.Context(), again, true, nil)
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
		must(t, "close the repo", again.Close())
	}
}

// A plugin that hangs is replaced, and the transfer completes.
func TestHang(t *testing.T) {
	s := seed(t, host.Blockexc)
	p := fetch(t, s)
	pid := p.plugin().Pid
	done := p.begin(s.root.String())
	at(t, p.Dir, 0.3)
	must(t, "stop the plugin", signal(pid, syscall.SIGSTOP))
	p.finish(done, s.sum)
	if after := p.plugin(); after.Restarts != 1 || alive(pid) {
		t.Errorf("%d restarts, the hanging plugin is alive: %v; want 1, gone", after.Restarts, alive(pid))
	}
}

// A plugin that crashes again and again is given up, which the host says; after a
// restart by hand it works again.
func TestGiveUp(t *testing.T) {
	s := seed(t, host.Blockexc)
	p := fetch(t, s)
	seen := map[int]bool{}
	eventually(t, "it is given up", time.Minute, func() bool {
		x := p.plugin()
		if x.State == "running" && x.Pid == 0 {
			t.Errorf("the plugin is running and has no process: %+v", x)
		}
		if x.State == "running" && !seen[x.Pid] {
			seen[x.Pid] = true
			_ = signal(x.Pid, syscall.SIGKILL) // it may have ended
		}
		return x.State == "given up"
	})
	if log := p.Said(); !strings.Contains(log, "given up") {
		t.Errorf("the log does not say that the plugin was given up:\n%s", log)
	}
	if got := <-p.begin(s.root.String()); got.err == nil || !strings.Contains(got.err.Error(), "crash") {
		t.Errorf("fetch without a plugin: got %v, want an error that says that it crashed", got.err)
	}
	must(t, "restart the plugin", p.Restart(host.Blockexc))
	eventually(t, "it runs again", 10*time.Second, func() bool { return p.plugin().State == "running" })
	p.finish(p.begin(s.root.String()), s.sum)
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
