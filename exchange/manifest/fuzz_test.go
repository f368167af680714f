package manifest_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/manifest"
)

// What decodes is valid, and encodes to a manifest with the same fields, always in
// the same bytes.
func FuzzManifest(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(unhex(f, v.Encoded))
	}
	full, err := verifiable().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := manifest.Unmarshal(b)
		if err != nil {
			return
		}
		encoded, err := m.Marshal()
		if err != nil {
			t.Fatalf("decoded %+v, which does not encode: %v", m, err)
		}
		again, err := manifest.Unmarshal(encoded)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("decoded %+v, encoded %x, decoded %+v, %v", m, encoded, again, err)
		}
		block, err := again.Block()
		if err != nil || !bytes.Equal(block.RawData(), encoded) || !block.Cid().Equals(codex.ManifestCid(encoded)) {
			t.Fatalf("encoded %x, then %v, %v", encoded, block, err)
		}
		if n := m.BlockCount(); n == 0 || m.ContentBlocks() == 0 || m.ContentBlocks() > n {
			t.Fatalf("%+v has %d blocks, %d of content", m, n, m.ContentBlocks())
		}
		if first, count := m.BlockRange(0, m.ContentSize()); first != 0 || count != m.ContentBlocks() {
			t.Fatalf("%+v: all of the content is in %d blocks from %d", m, count, first)
		}
	})
}
