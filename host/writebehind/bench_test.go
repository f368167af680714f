package writebehind_test

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/codexchange/codexchange/host/writebehind"
)

// A way is one of several to do the same, which are timed one after the other in
// every iteration, so that what else the machine does hits all of them.
type way struct {
	name string
	run  func([]blocks.Block) error
}

// sideBySide gives every way new blocks in each iteration, beginning with another
// each time, and reports medians: MB/s of the first way, and how many times as
// fast the others were in the same iteration, with the quartiles of that. settle
// is called after each, outside the time.
func sideBySide(b *testing.B, n, size int, settle func() error, ways ...way) {
	data := make([]byte, size)
	rand.Read(data)
	took := make([][]float64, len(ways))
	round := 0
	for b.Loop() {
		times := make([]time.Duration, len(ways))
		for i := range ways {
			w := (i + round) % len(ways)
			list := benchBlocks(n, data)
			start := time.Now()
			if err := ways[w].run(list); err != nil {
				b.Fatalf("%s: %v", ways[w].name, err)
			}
			times[w] = time.Since(start)
			if err := settle(); err != nil {
				b.Fatal(err)
			}
		}
		for w, d := range times {
			if w == 0 {
				took[0] = append(took[0], float64(n*size)/1e6/d.Seconds())
			} else {
				took[w] = append(took[w], times[0].Seconds()/d.Seconds())
			}
		}
		round++
	}
	b.ReportMetric(0, "ns/op")
	for w, all := range took {
		slices.Sort(all)
		q := func(f float64) float64 { return all[int(f*float64(len(all)-1)+0.5)] }
		if w == 0 {
			b.ReportMetric(q(.5), "MB/s-"+ways[0].name)
		} else {
			b.ReportMetric(q(.5), "x-"+ways[w].name)
		}
		b.Logf("%-10s median %8.2f  quartiles %.2f to %.2f  n=%d", ways[w].name, q(.5), q(.25), q(.75), len(all))
	}
}

// benchBlocks makes blocks with the same bytes and CIDs of their own: the store
// does not hash.
func benchBlocks(n int, data []byte) []blocks.Block {
	list := make([]blocks.Block, n)
	for i := range list {
		digest := make([]byte, 32)
		rand.Read(digest)
		h, err := mh.Encode(digest, mh.SHA2_256)
		if err != nil {
			panic(err)
		}
		if list[i], err = blocks.NewBlockWithCid(data, cid.NewCidV1(cid.Raw, h)); err != nil {
			panic(err)
		}
	}
	return list
}

// each calls do for every block, from several goroutines.
func each(goroutines int, list []blocks.Block, do func(blocks.Block) error) error {
	var g errgroup.Group
	var next atomic.Int64
	for range goroutines {
		g.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
				if err := do(list[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

var benchSizes = []int{4 << 10, 64 << 10, 256 << 10, 1 << 20}

// BenchmarkFlatfs is how a batch is written best: Puts from several goroutines,
// or PutMany, whole or in parts at the same time.
func BenchmarkFlatfs(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, size := range benchSizes {
			n := min(128, 16<<20/size)
			if sync {
				n /= 4
			}
			b.Run(fmt.Sprintf("sync=%v/%dKiB", sync, size>>10), func(b *testing.B) {
				bs, _ := openFlatfs(b, b.TempDir(), sync)
				ctx := b.Context()
				puts := func(goroutines int) way {
					return way{fmt.Sprintf("put%d", goroutines), func(list []blocks.Block) error {
						return each(goroutines, list, func(x blocks.Block) error { return bs.Put(ctx, x) })
					}}
				}
				many := func(parts int) way {
					return way{fmt.Sprintf("many%d", parts), func(list []blocks.Block) error {
						all := slices.Collect(slices.Chunk(list, len(list)/parts))
						var g errgroup.Group
						for _, part := range all {
							g.Go(func() error { return bs.PutMany(ctx, part) })
						}
						return g.Wait()
					}}
				}
				sideBySide(b, n, size, func() error { return nil }, puts(1), puts(2), puts(4), puts(8), puts(16), many(1), many(2))
			})
		}
	}
}

// BenchmarkFetch is what a fetch pays for storing: blocks Put one at a time, from
// one goroutine (a reader) and from 8, on flatfs and through the Store. Each block
// is hashed before, as a fetch does. "buffered" is at most 12 MiB, which fits into
// memory: the time until the fetch has its blocks. "written" is 64 MiB and the
// flush after it.
func BenchmarkFetch(b *testing.B) {
	for _, goroutines := range []int{1, 8} {
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("%d/%dKiB", goroutines, size>>10), func(b *testing.B) {
				ctx := b.Context()
				put := func(s blockstore.Blockstore) func([]blocks.Block) error {
					return func(list []blocks.Block) error {
						return each(goroutines, list, func(x blocks.Block) error {
							sha256.Sum256(x.RawData())
							return s.Put(ctx, x)
						})
					}
				}
				direct, _ := openFlatfs(b, b.TempDir(), false)
				behind, _ := openFlatfs(b, b.TempDir(), false)
				s, err := writebehind.New(behind, writebehind.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				flush := func() error { return s.Flush(ctx) }
				b.Run("buffered", func(b *testing.B) {
					n := min(2048, 12<<20/size)
					sideBySide(b, n, size, flush,
						way{"flatfs", put(direct)},
						way{"behind", put(s)})
				})
				b.Run("written", func(b *testing.B) {
					sideBySide(b, min(2048, 64<<20/size), size, flush,
						way{"flatfs", put(direct)},
						way{"behind", func(list []blocks.Block) error { return errors.Join(put(s)(list), flush()) }})
				})
			})
		}
	}
}
