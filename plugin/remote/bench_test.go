package remote

import (
	"fmt"
	"testing"

	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/plugin/memory"
)

// BenchmarkGetBlocks is what the boundary costs: a thousand blocks of an exchange
// that has them at hand, got through Client and Server over a unix socket, inline
// or in memory, and, to compare, without them.
func BenchmarkGetBlocks(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		n := min(1000, 256<<20/size)
		list := makeBlocks(30, n, size)
		m := exchangetest.NewMesh(2)
		m.Blocks(0).PutMany(b.Context(), list)
		m.Connect(0, 1)
		c, inMemory := newClient(b, ClientOptions{}), newClient(b, ClientOptions{})
		serve(b, c, m.Exchange(1), nil)
		ours, its := shared(b, memory.Outbound)
		serveShared(b, inMemory, m.Exchange(1), nil, Shared{Outbound: ours}, Instance{Outbound: its})
		for name, x := range map[string]exchange{"inline": c, "memory": inMemory, "direct": nil} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.SetBytes(int64(n * size))
				b.ReportAllocs()
				for b.Loop() {
					get := m.Exchange(1).GetBlocks
					if x != nil {
						get = x.GetBlocks
					}
					ch, err := get(b.Context(), keysOf(list))
					if err != nil {
						b.Fatal(err)
					}
					got := 0
					for range ch {
						got++
					}
					if got != n {
						b.Fatalf("got %d blocks, want %d", got, n)
					}
				}
			})
		}
	}
}

// BenchmarkGetBlock is one block at a time, there and back.
func BenchmarkGetBlock(b *testing.B) {
	list := makeBlocks(31, 1, 64<<10)
	c := newClient(b, ClientOptions{})
	serve(b, c, seeded(b, list), nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.GetBlock(b.Context(), list[0].Cid()); err != nil {
			b.Fatal(err)
		}
	}
}
