package blockexc_test

import (
	"io"
	"testing"

	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// BenchmarkReader reads messages of 8 blocks each.
func BenchmarkReader(b *testing.B) {
	for _, tc := range blockCases() {
		b.Run(tc.name, func(b *testing.B) {
			const n = 8
			stream := encodeFrame(b, deliveries(n, tc.size, tc.proof))
			r := blockexc.NewReader(&repeat{b: stream}, blockexc.Limits{})
			var m wire.Message
			next := func() {
				if err := r.Next(&m); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				next()
			}
			b.StopTimer()
			b.ReportMetric(testing.AllocsPerRun(10, next)/n, "allocs/block")
			if tc.size == 1<<10 {
				b.ReportMetric(pinned(b, 4096, tc.size, tc.proof), "pinned-B/block")
			}
		})
	}
}

// BenchmarkWriter writes messages of 8 blocks each to nowhere.
func BenchmarkWriter(b *testing.B) {
	for _, tc := range blockCases() {
		b.Run(tc.name, func(b *testing.B) {
			m := deliveries(8, tc.size, tc.proof)
			w := blockexc.NewWriter(io.Discard, blockexc.Limits{})
			b.ReportAllocs()
			b.SetBytes(int64(blockexc.Size(m)))
			for b.Loop() {
				if err := w.Write(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// wantList is a full want list as the Codex node sends it: 1024 leaves.
func wantList() *wire.Message {
	m := &wire.Message{WantList: wire.WantList{Full: true}}
	for i := range 1024 {
		m.WantList.Entries = append(m.WantList.Entries, wire.Entry{Address: wire.Leaf(treeT, uint64(i)), Type: wire.WantHave})
	}
	return m
}

func BenchmarkReadWantList(b *testing.B) {
	stream := encodeFrame(b, wantList())
	r := blockexc.NewReader(&repeat{b: stream}, blockexc.Limits{})
	var m wire.Message
	b.ReportAllocs()
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		if err := r.Next(&m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteWantList(b *testing.B) {
	m := wantList()
	w := blockexc.NewWriter(io.Discard, blockexc.Limits{})
	b.ReportAllocs()
	b.SetBytes(int64(blockexc.Size(m)))
	for b.Loop() {
		if err := w.Write(m); err != nil {
			b.Fatal(err)
		}
	}
}
