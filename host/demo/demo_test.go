package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
)

func TestMain(m *testing.M) {
	host.Main()
	// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// recorder keeps what a Progress hears.
type recorder struct {
	stages []string
	moved  map[string]int64
	onMove func(stage string)
}

func (r *recorder) Begin(stage string, size int64) {
	r.stages = append(r.stages, fmt.Sprintf("%s (%d)", stage, size))
}

func (r *recorder) Moved(bytes int64) {
	stage := r.stages[len(r.stages)-1]
	if r.moved == nil {
		r.moved = make(map[string]int64)
	}
	r.moved[stage] = max(r.moved[stage], bytes)
	if r.onMove != nil {
		r.onMove(stage)
	}
}

func (r *recorder) End(string) {}

// empty fails the test unless nothing is left in dir.
func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind in the directory: %v, %v", left, err)
	}
}

// Each exchange brings the whole file in each of its turns, the order
// alternates, progress reaches the end, and nothing is left behind.
func TestRun(t *testing.T) {
	const leaves, chunk = 20, 16 << 10
	dir, heard := t.TempDir(), &recorder{}
	config := Config{Source: Generated(leaves * chunk), Runs: 2, Chunk: chunk, Dir: dir, Progress: heard}
	result, err := config.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	empty(t, dir)

	all := host.Exchanges()
	order := append(slices.Clone(all), reversed(all)...)
	var got []string
	for _, r := range result.Runs {
		got = append(got, r.Exchange)
		if !r.Verified || r.Blocks != leaves+1 || r.Seconds <= 0 || r.MBPerS <= 0 || r.CPUSeconds <= 0 {
			t.Errorf("run %+v: want it verified, %d blocks, and positive figures", r, leaves+1)
		}
	}
	if !slices.Equal(got, order) {
		t.Errorf("order of the runs is %v, want %v", got, order)
	}
	data := read(t, config.Source)
	if result.Size != int64(len(data)) || result.SHA256 != sha256.Sum256(data) || !result.Verified() {
		t.Errorf("result is of %d bytes with SHA-256 %x, verified %v", result.Size, result.SHA256, result.Verified())
	}
	if len(heard.stages) != 1+len(order) {
		t.Errorf("stages are %q, want one to add and %d runs", heard.stages, len(order))
	}
	for _, stage := range heard.stages {
		if !strings.Contains(stage, fmt.Sprintf("(%d)", heard.moved[stage])) {
			t.Errorf("progress of stage %q ended at %d", stage, heard.moved[stage])
		}
	}
	rows := result.Medians(all)
	if len(rows) != len(all) || rows[0].Exchange != all[0] {
		t.Errorf("medians are %+v, want one row for each of %v", rows, all)
	}
}

func reversed(names []string) []string {
	names = slices.Clone(names)
	slices.Reverse(names)
	return names
}

func read(t *testing.T, s Source) []byte {
	t.Helper()
	r, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// One wrong byte in the fetching node's store, and the run is not verified; the
// other runs are.
func TestWrongByte(t *testing.T) {
	dir, turns := t.TempDir(), 0
	config := Config{Source: Generated(100_000), Exchanges: []string{host.Bitswap}, Runs: 2, Chunk: 4096, Dir: dir}
	config.Inspect = func(ctx context.Context, fetcher *host.Node) error {
		turns++
		if turns > 1 {
			return nil
		}
		leaf := read(t, config.Source)[:4096]
		return spoil(ctx, fetcher, leaf)
	}
	result, err := config.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	empty(t, dir)
	if len(result.Runs) != 2 || result.Runs[0].Verified || !result.Runs[1].Verified {
		t.Errorf("runs are %+v, want the first wrong and the second right", result.Runs)
	}
	if rows := result.Medians(config.Exchanges); result.Verified() || rows[0].Verified {
		t.Errorf("result is verified %v, its medians %+v, want neither verified", result.Verified(), rows)
	}
}

// spoil changes a byte of a leaf in the store of a node.
func spoil(ctx context.Context, n *host.Node, leaf []byte) error {
	hash, err := mh.Sum(leaf, mh.SHA2_256, -1)
	if err != nil {
		return err
	}
	c := cid.NewCidV1(cid.Raw, hash)
	leaf = bytes.Clone(leaf)
	leaf[len(leaf)/2] ^= 1
	wrong, err := blocks.NewBlockWithCid(leaf, c)
	if err != nil {
		return err
	}
	// flatfs does not write over what it has.
	if _, err := n.Blockstore().Get(ctx, c); err != nil {
		return fmt.Errorf("the leaf to spoil: %w", err)
	}
	if err := n.Blockstore().DeleteBlock(ctx, c); err != nil {
		return err
	}
	return n.Blockstore().Put(ctx, wrong)
}

// A transfer in which nothing arrives ends with an error that says so.
func TestStall(t *testing.T) {
	dir := t.TempDir()
	// So short that it is over before the nodes are connected.
	config := Config{Source: Generated(1000), Exchanges: []string{host.Bitswap}, Dir: dir, Stall: time.Nanosecond}
	_, err := config.Run(t.Context())
	var stall *StallError
	if !errors.As(err, &stall) || stall.After != time.Nanosecond || stall.Bytes != 0 {
		t.Errorf("got %v, want a StallError after 1ns and 0 bytes", err)
	}
	if err == nil || !strings.Contains(err.Error(), "run 1 of 3, bitswap: ") {
		t.Errorf("got %v, want the run named", err)
	}
	empty(t, dir)
}

// Ending the context ends any stage, and nothing is left behind.
func TestInterrupted(t *testing.T) {
	for _, during := range []string{"add ", "run 1 of 3"} {
		t.Run(during, func(t *testing.T) {
			dir := t.TempDir()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			heard := &recorder{onMove: func(stage string) {
				if strings.HasPrefix(stage, during) {
					cancel()
				}
			}}
			config := Config{Source: Generated(3 << 20), Dir: dir, Progress: heard}
			// A fast transfer may be over before the first word of its progress.
			config.Inspect = func(ctx context.Context, _ *host.Node) error { return ctx.Err() }
			if _, err := config.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context canceled", err)
			}
			empty(t, dir)
		})
	}
}

func TestRunRefuses(t *testing.T) {
	good := Generated(100)
	for _, c := range []struct {
		name   string
		config Config
		want   string
	}{
		{"no source", Config{}, "want at least 1 byte"},
		{"negative runs", Config{Source: good, Runs: -1}, "-1 runs"},
		{"no exchanges", Config{Source: good, Exchanges: []string{}}, "of 0 exchanges"},
		{"unknown exchange", Config{Source: good, Exchanges: []string{"smoke signals"}}, "smoke signals"},
		{"no directory", Config{Source: good, Dir: filepath.Join(t.TempDir(), "none")}, "no such file or directory"},
		{"source does not open", Config{Source: Source{Name: "x", Size: 1, Open: func() (io.ReadCloser, error) {
			return nil, os.ErrPermission
		}}}, os.ErrPermission.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config.Dir == "" {
				c.config.Dir = t.TempDir()
				defer empty(t, c.config.Dir)
			}
			if _, err := c.config.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// A file is read as it is; what is no file with bytes in it is refused by name.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	full, hollow := filepath.Join(dir, "full"), filepath.Join(dir, "hollow")
	for path, text := range map[string]string{full: "text", hollow: ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := File(full)
	if err != nil || s.Name != "full" || s.Size != 4 || string(read(t, s)) != "text" {
		t.Errorf("source is %+v, %v", s, err)
	}
	for path, want := range map[string]string{
		hollow:                       "is empty",
		dir:                          "is a directory",
		os.DevNull:                   "is a device",
		filepath.Join(dir, "absent"): "no such file",
	} {
		if _, err := File(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("File(%q): got %v, want an error with that name and %q", path, err, want)
		}
	}
}

func TestGenerated(t *testing.T) {
	a, b := read(t, Generated(1001)), read(t, Generated(1001))
	if len(a) != 1001 || !bytes.Equal(a, b) {
		t.Errorf("two readings of %d and %d bytes, want 1001 the same", len(a), len(b))
	}
	if other := read(t, Generated(1002)); bytes.HasPrefix(other, a) {
		t.Error("another size gives the same bytes")
	}
}

func TestMedians(t *testing.T) {
	r := Result{Size: 6e6, Runs: []Run{
		{Exchange: "a", Seconds: 3, CPUSeconds: 1, Blocks: 10, Duplicates: 4, Verified: true},
		{Exchange: "b", Seconds: 1, CPUSeconds: 1, Blocks: 10, Verified: true, Plugin: true},
		{Exchange: "b", Seconds: 2, CPUSeconds: 3, Blocks: 12, Verified: true, Plugin: true},
		{Exchange: "a", Seconds: 1, CPUSeconds: 9, Blocks: 10, Duplicates: 0, Verified: false},
		{Exchange: "a", Seconds: 2, CPUSeconds: 2, Blocks: 10, Duplicates: 1, Verified: true},
	}}
	want := []Run{
		{Exchange: "b", Plugin: true, Seconds: 1.5, MBPerS: 4, Blocks: 11, CPUSeconds: 2, Verified: true},
		{Exchange: "a", Seconds: 2, MBPerS: 3, Blocks: 10, Duplicates: 1, CPUSeconds: 2},
	}
	if got := r.Medians([]string{"b", "a", "c"}); !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if r.Verified() || (&Result{}).Verified() {
		t.Error("verified, although one run was not, or there was none")
	}
}
