package writebehind_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	flatfs "github.com/ipfs/go-ds-flatfs"

	"github.com/codexchange/codexchange/host/writebehind"
)

// victimDir makes the test process a victim, see TestKill.
const victimDir = "WRITEBEHIND_TEST_DIR"

// A mouth prints what an exchange is told.
type mouth struct {
	ear // of which only the type is used
	out chan<- string
}

func (x *mouth) NotifyNewBlocks(_ context.Context, list ...blocks.Block) error {
	for _, b := range list {
		x.out <- "told " + b.Cid().String()
	}
	return nil
}

// victim fetches and adds blocks until it is killed, and prints each CID that an
// exchange is told, or that is added.
func victim(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	shard, err := flatfs.ParseShardFunc("/repo/flatfs/shard/v1/next-to-last/2")
	fail(err)
	fs, err := flatfs.CreateOrOpen(dir, shard, false)
	fail(err)
	s, err := writebehind.New(blockstore.NewBlockstore(fs, blockstore.NoPrefix()), writebehind.Options{})
	fail(err)
	lines := make(chan string)
	x := s.Exchange(&mouth{out: lines})
	service := s.Service(x)
	for range 3 {
		go func() {
			for i := 0; ; i++ {
				data := make([]byte, 1+mrand.IntN(64<<10))
				rand.Read(data)
				b := blocks.NewBlock(data)
				if i%8 == 0 {
					fail(service.AddBlock(context.Background(), b)) // tells before it returns
					lines <- "added " + b.Cid().String()
				} else {
					fail(s.Put(context.Background(), b))
					fail(x.NotifyNewBlocks(context.Background(), b))
				}
			}
		}()
	}
	for l := range lines {
		fmt.Println(l) // one write
	}
}

// TestKill: whenever the process is killed, every block that was told or added is
// in the store and hashes to its CID.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	promised := map[cid.Cid]bool{}
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), victimDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		before, last := len(promised), 1+mrand.IntN(400)
		for n := 0; ; n++ {
			line, err := r.ReadString('\n')
			if err != nil {
				break // of the killed; a line that was cut was not told
			}
			verb, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			c, err := cid.Decode(text)
			if err != nil || verb != "told" && verb != "added" {
				t.Fatalf("victim says %q, want told or added and a CID", line)
			}
			promised[c] = true
			if n == last {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		t.Logf("round %d: killed after %d lines, %d blocks promised", round, last, len(promised)-before)
	}
	bs, _ := openFlatfs(t, dir, false)
	check := &blockstore.ValidatingBlockstore{Blockstore: bs}
	for c := range promised {
		if _, err := check.Get(t.Context(), c); err != nil {
			t.Errorf("get %s of %d promised: %v", c, len(promised), err)
		}
	}
}

// TestFlatfs: over flatfs, many fetchers, adders, deleters and readers at once
// find their own blocks as they left them, and so does who opens the directory
// afterwards; nothing is left in its temporary directory.
func TestFlatfs(t *testing.T) {
	dir := t.TempDir()
	bs, datastore := openFlatfs(t, dir, false)
	s, err := writebehind.New(bs, writebehind.Options{Bytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	told := newEar(t, bs)
	// Blocks are deleted here after they were told, so the ear cannot look.
	told.disk = everything{bs}
	x := s.Exchange(told)
	present := churn(t, s, x, 8, 300, false)
	if err := s.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	datastore.Close()

	again, _ := openFlatfs(t, dir, false)
	listed := map[string]bool{}
	keys, err := again.AllKeysChan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for c := range keys {
		listed[string(c.Hash())] = true
	}
	if len(listed) != len(present) {
		t.Errorf("%d blocks are in the directory, want %d", len(listed), len(present))
	}
	for data := range present {
		if !listed[string(block(data).Cid().Hash())] {
			t.Errorf("%.20q is not in the directory", data)
		}
	}
	filepath.WalkDir(filepath.Join(dir, ".temp"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("left over: %s", path)
		}
		return nil
	})
}

// everything is a blockstore that says it has every block.
type everything struct{ blockstore.Blockstore }

func (everything) Has(context.Context, cid.Cid) (bool, error) { return true, nil }

// churn runs goroutines that each put, add, tell, delete and read blocks of their
// own, and put one that is everybody's. It returns what is there at the end. If
// the disk is failing, errors are no surprise.
func churn(t *testing.T, s *writebehind.Store, x interface {
	NotifyNewBlocks(context.Context, ...blocks.Block) error
}, goroutines, steps int, failing bool) map[string]bool {
	ctx := t.Context()
	var (
		mu  sync.Mutex
		all = map[string]bool{}
		wg  sync.WaitGroup
	)
	for g := range goroutines {
		wg.Go(func() {
			present := map[string]bool{}
			random := mrand.New(mrand.NewPCG(uint64(g), 1))
			for step := range steps {
				data := fmt.Sprintf("%d/%d %s", g, random.IntN(8), strings.Repeat("x", random.IntN(2)*2000))
				b := block(data)
				was := present[data]
				var err error
				switch random.IntN(10) {
				case 0, 1, 2, 3:
					if err = s.Put(ctx, b); err == nil {
						present[data], err = true, x.NotifyNewBlocks(ctx, b)
					}
				case 4:
					if err = s.PutMany(ctx, []blocks.Block{b, block("shared")}); err == nil {
						present[data], err = true, x.NotifyNewBlocks(ctx, b)
					}
				case 5, 6:
					err = s.DeleteBlock(ctx, b.Cid())
					delete(present, data)
				case 7:
					err = s.Put(ctx, block("shared"))
				case 8:
					if step%16 == 0 {
						err = s.Flush(ctx)
					}
				default:
					var has bool
					if has, err = s.Adding().Has(ctx, b.Cid()); err == nil && has != was {
						t.Errorf("step %d: adder has %.20q: got %v, want %v", step, data, has, was)
					}
				}
				if failing && errors.Is(err, syscall.EIO) {
					// What was added before the error is there, the rest is not.
					has, _ := s.Has(ctx, b.Cid())
					if was && !has {
						t.Errorf("step %d: %.20q is gone after: %v", step, data, err)
					}
					if has {
						present[data] = true
					}
				} else if err != nil {
					t.Errorf("step %d: %v", step, err)
				}
				got, err := s.Get(ctx, b.Cid())
				if (err == nil) != present[data] || err == nil && string(got.RawData()) != data {
					t.Errorf("step %d: get %.20q: %v, want it to be there: %v", step, data, err, present[data])
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for data := range present {
				all[data] = true
			}
		})
	}
	wg.Wait()
	if has, _ := s.Has(ctx, block("shared").Cid()); has {
		all["shared"] = true
	}
	return all
}

// TestChurn: the same on a disk that often fails, where what is told must be on
// it, unless it was deleted.
func TestChurn(t *testing.T) {
	d := newDisk()
	d.setFail(func(blocks.Block) error {
		if mrand.IntN(4) == 0 {
			return syscall.EIO
		}
		return nil
	})
	s, err := writebehind.New(d, writebehind.Options{})
	if err != nil {
		t.Fatal(err)
	}
	told := newEar(t, everything{d})
	x := s.Exchange(told)
	present := churn(t, s, x, 8, 500, true)
	d.setFail(nil)
	x.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for data := range present {
		if has, err := d.Has(t.Context(), block(data).Cid()); !has {
			t.Errorf("%.20q is on the disk: %v, %v, want true", data, has, err)
		}
	}
}
