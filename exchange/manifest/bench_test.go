package manifest_test

import (
	"bytes"
	"testing"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/manifest"
)

// Making a dataset of 16 MiB in blocks of 64 KiB whose blocks go nowhere.
func BenchmarkBuild(b *testing.B) {
	content := pattern(16 << 20)
	put := func(uint64, blocks.Block) error { return nil }
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := manifest.Build(b.Context(), bytes.NewReader(content), manifest.Options{}, put); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	encoded := unhex(b, vectors(b)[3].Encoded)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := manifest.Unmarshal(encoded); err != nil {
			b.Fatal(err)
		}
	}
}
