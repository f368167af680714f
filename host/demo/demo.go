package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/codexchange/codexchange/host"
)

// DefaultStall is how long a run may go on without receiving anything.
const DefaultStall = time.Minute

// Config says what to compare. Only Source is required.
type Config struct {
	Source Source

	// Exchanges are names of host.Exchanges. nil is all of them.
	Exchanges []string
	// InProcess runs the Codex block exchange in this process rather than as a
	// plugin. As a plugin it needs host.Main to have been called.
	InProcess bool
	// Runs is how often each exchange has its turn, at least 1. 0 is 3.
	Runs int
	// Chunk is the size of a leaf of the file in bytes, host.MinChunk to
	// host.MaxChunk. 0 is host.DefaultChunk.
	Chunk int64
	// Dir is where the directory of the two nodes is made, which is removed at
	// the end. "" is the system's directory for temporary files.
	Dir string
	// Stall ends a run that has received nothing for so long. 0 is
	// DefaultStall.
	Stall time.Duration
	// Progress hears how far things are. nil if nobody wants to know.
	Progress Progress
	// Log is told what goes wrong in the nodes. nil is slog.Default().
	Log *slog.Logger
	// Inspect, if set, is given the fetching node after each transfer and
	// before what arrived is compared. Its time does not count.
	Inspect func(ctx context.Context, fetcher *host.Node) error
}

// A Progress hears how far things are. Calls come one at a time.
type Progress interface {
	// Begin opens a stage, such as "run 1 of 3, bitswap", that has size bytes
	// to move.
	Begin(stage string, size int64)
	// Moved says how many bytes of the stage are done.
	Moved(bytes int64)
	// End closes the stage. The summary is one line about it, or why it
	// failed.
	End(summary string)
}

// Run adds the source to one node and fetches it on the other, Runs times by
// each exchange. A run that brings something else than the source is not an
// error: it is in the result as not verified. Nothing is left behind, whether
// Run succeeds, fails or is ended by ctx.
func (c Config) Run(ctx context.Context) (_ *Result, err error) {
	d := demo{Config: c}
	if d.Exchanges == nil {
		d.Exchanges = host.Exchanges()
	}
	if d.Runs == 0 {
		d.Runs = 3
	}
	if d.Chunk == 0 {
		d.Chunk = host.DefaultChunk
	}
	if d.Stall == 0 {
		d.Stall = DefaultStall
	}
	if d.Progress == nil {
		d.Progress = silent{}
	}
	if d.Source.Open == nil || d.Source.Size < 1 {
		return nil, fmt.Errorf("compare exchanges: source %q of %d bytes, want at least 1 byte", d.Source.Name, d.Source.Size)
	}
	if d.Runs < 1 || len(d.Exchanges) == 0 {
		return nil, fmt.Errorf("compare exchanges: %d runs of %d exchanges, want at least 1 of 1", d.Runs, len(d.Exchanges))
	}

	dir, err := os.MkdirTemp(d.Dir, "codexchange-demo-")
	if err != nil {
		return nil, fmt.Errorf("make directory for two nodes: %w", err)
	}
	defer func() {
		if e := os.RemoveAll(dir); e != nil && err == nil {
			err = fmt.Errorf("remove directory of the two nodes: %w", e)
		}
	}()
	if err := d.seeder.init(dir, "seeder", &d.Config); err != nil {
		return nil, err
	}
	if err := d.fetcher.init(dir, "fetcher", &d.Config); err != nil {
		return nil, err
	}

	if err := d.add(ctx); err != nil {
		return nil, err
	}
	order := slices.Clone(d.Exchanges)
	for i := range d.Runs {
		for _, name := range order {
			if err := d.run(ctx, fmt.Sprintf("run %d of %d, %s", i+1, d.Runs, name), name); err != nil {
				return nil, err
			}
		}
		slices.Reverse(order)
	}
	return &d.result, nil
}

// demo is one Config.Run. It is used from one goroutine.
type demo struct {
	Config
	seeder, fetcher place
	dagSize         uint64
	result          Result
}

// place is a node between its starts: what stays the same.
type place struct {
	dir       string
	key       crypto.PrivKey
	inProcess bool
	log       *slog.Logger
}

func (p *place) init(parent, name string, c *Config) (err error) {
	p.dir, p.inProcess, p.log = filepath.Join(parent, name), c.InProcess, c.Log
	p.key, err = host.NewIdentity()
	return err
}

func (p *place) start(ctx context.Context, exchange string) (*host.Node, error) {
	return host.New(ctx, host.Options{
		Dir: p.dir, Identity: p.key, Use: []string{exchange},
		Plugins: map[string]host.Plugin{host.Blockexc: {InProcess: p.inProcess}},
		Log:     p.log,
		Direct:  true, // what is compared is the exchange
	})
}

// add puts the source into the seeder's store.
func (d *demo) add(ctx context.Context) (err error) {
	d.Progress.Begin("add "+d.Source.Name, d.Source.Size)
	start := time.Now()
	defer func() { d.end(err, "%s", time.Since(start).Round(time.Millisecond)) }()

	node, err := d.seeder.start(ctx, d.Exchanges[0])
	if err != nil {
		return err
	}
	defer closeNode(node, &err)
	file, err := d.Source.Open()
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	r := &counter{r: io.TeeReader(file, sum), moved: d.Progress.Moved}
	d.result.Root, d.dagSize, err = node.Add(ctx, r, d.Chunk)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Source.Name, err)
	}
	d.result.Size = r.n
	sum.Sum(d.result.SHA256[:0])
	return nil
}

// run starts both nodes with the exchange, fetches the file on the one from the
// other, and compares it.
func (d *demo) run(ctx context.Context, stage, exchange string) (err error) {
	d.Progress.Begin(stage, int64(d.dagSize))
	row := Run{Exchange: exchange}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", stage, err)
		}
		check := "verified"
		if !row.Verified {
			check = "WRONG CONTENT"
		}
		d.end(err, "%.2f s, %.1f MB/s, %s", row.Seconds, row.MBPerS, check)
	}()

	if err := os.RemoveAll(d.fetcher.dir); err != nil {
		return fmt.Errorf("empty the fetching node: %w", err)
	}
	runtime.GC()
	flushDisk()
	seeder, err := d.seeder.start(ctx, exchange)
	if err != nil {
		return err
	}
	defer closeNode(seeder, &err)
	fetcher, err := d.fetcher.start(ctx, exchange)
	if err != nil {
		return err
	}
	defer closeNode(fetcher, &err)
	if n, err := count(ctx, fetcher.Blockstore()); err != nil {
		return fmt.Errorf("count the blocks of the fetching node: %w", err)
	} else if n != 0 {
		return fmt.Errorf("empty the fetching node: %d blocks are left, want 0", n)
	}

	if err := d.fetch(ctx, seeder, fetcher, &row); err != nil {
		return err
	}
	counts, err := fetcher.Exchanges()[0].Counts()
	if err != nil {
		return fmt.Errorf("read statistics of %s: %w", exchange, err)
	}
	row.Blocks, row.Duplicates = counts.Blocks, counts.Duplicates
	if d.Inspect != nil {
		if err := d.Inspect(ctx, fetcher); err != nil {
			return err
		}
	}
	if row.Verified, err = d.verify(ctx, fetcher); err != nil {
		return err
	}
	d.result.Runs = append(d.result.Runs, row)
	return nil
}

// fetch connects the nodes and measures the transfer.
func (d *demo) fetch(ctx context.Context, seeder, fetcher *host.Node, row *Run) error {
	var progress merkledag.ProgressTracker
	ctx, stop := d.watch(ctx, func() int64 { return int64(progress.ProgressStat().Bytes) })
	defer stop()
	if err := fetcher.Connect(ctx, seeder.AddrInfo()); err != nil {
		return err
	}
	if err := seeder.WaitPeer(ctx, fetcher.AddrInfo().ID); err != nil {
		return err
	}

	row.Plugin = fetcher.Exchanges()[0].Plugin() != nil
	cpu, err := cpuTime(ctx, seeder, fetcher)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := fetcher.Fetch(ctx, d.result.Root, &progress); err != nil {
		return err
	}
	row.Seconds = time.Since(start).Seconds()
	after, err := cpuTime(ctx, seeder, fetcher)
	if err != nil {
		return err
	}
	row.CPUSeconds = (after - cpu).Seconds()
	row.MBPerS = rate(d.result.Size, row.Seconds)
	return nil
}

// watch reports what moved returns until stop is called, which waits for the
// last report. The context it returns ends when moved has not grown for
// d.Stall.
func (d *demo) watch(ctx context.Context, moved func() int64) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(min(100*time.Millisecond, d.Stall))
		defer tick.Stop()
		last, since := int64(0), time.Now()
		for {
			select {
			case <-quit:
				d.Progress.Moved(moved())
				return
			case now := <-tick.C:
				n := moved()
				d.Progress.Moved(n)
				if n != last {
					last, since = n, now
				} else if now.Sub(since) >= d.Stall {
					cancel(&StallError{After: d.Stall, Bytes: n, Of: int64(d.dagSize)})
					since = now
				}
			}
		}
	})
	return ctx, func() {
		close(quit)
		done.Wait()
		cancel(nil)
	}
}

// A StallError says that a transfer stopped moving.
type StallError struct {
	After     time.Duration
	Bytes, Of int64
}

func (e *StallError) Error() string {
	return fmt.Sprintf("stalled: nothing arrived for %v, after %d of %d bytes; run it again, "+
		"and if it stalls again press Ctrl-\\ while it waits and report the stacks it prints", e.After, e.Bytes, e.Of)
}

// verify reads the file back from the fetching node's store.
func (d *demo) verify(ctx context.Context, fetcher *host.Node) (bool, error) {
	file, err := fetcher.Open(ctx, d.result.Root)
	if err != nil {
		return false, err
	}
	defer file.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, file)
	if err != nil {
		return false, fmt.Errorf("read back %s: %w", d.result.Root, err)
	}
	return n == d.result.Size && bytes.Equal(sum.Sum(nil), d.result.SHA256[:]), nil
}

// end closes a stage with its summary, or with its error.
func (d *demo) end(err error, format string, args ...any) {
	if err != nil {
		d.Progress.End("not finished")
		return
	}
	d.Progress.End(fmt.Sprintf(format, args...))
}

// closeNode closes a node and reports a failure of that unless there is an
// error already.
func closeNode(n *host.Node, err *error) {
	if e := n.Close(); e != nil && *err == nil {
		*err = fmt.Errorf("close node: %w", e)
	}
}

// count is the number of blocks in a store.
func count(ctx context.Context, store blockstore.Blockstore) (n int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys, err := store.AllKeysChan(ctx)
	if err != nil {
		return 0, err
	}
	for range keys {
		n++
	}
	return n, ctx.Err()
}

// counter reports how much has been read through it.
type counter struct {
	r     io.Reader
	n     int64
	moved func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.moved(c.n)
	return n, err
}

type silent struct{}

func (silent) Begin(string, int64) {}
func (silent) Moved(int64)         {}
func (silent) End(string)          {}
