package manifest_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/manifest"
)

type cidVector struct{ Str, Bytes string }

type vector struct {
	Name   string
	Fields struct {
		TreeCid             cidVector
		BlockSize           uint32
		DatasetSize         uint64
		Codec, HCodec       uint64
		Version             uint64
		Protected           bool
		BlocksCount         uint64
		Filename, MimeType  string
		EcK, EcM            uint32
		OriginalTreeCid     cidVector
		OriginalDatasetSize uint64
		ProtectedStrategy   manifest.Strategy
		Verifiable          bool
	}
	Encoded     string
	ManifestCid cidVector
}

func vectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("testdata/manifests.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(text, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) == 0 {
		t.Fatal("no vectors")
	}
	return vs
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decodeCid(t testing.TB, v cidVector) cid.Cid {
	t.Helper()
	c, err := cid.Decode(v.Str)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(c.Bytes()); got != v.Bytes {
		t.Fatalf("cid %s is %s in bytes, want %s", v.Str, got, v.Bytes)
	}
	return c
}

// manifest is what the vector's fields say.
func (v vector) manifest(t testing.TB) manifest.Manifest {
	f := v.Fields
	m := manifest.Manifest{
		TreeCid:     decodeCid(t, f.TreeCid),
		BlockSize:   f.BlockSize,
		DatasetSize: f.DatasetSize,
		Filename:    f.Filename,
		MimeType:    f.MimeType,
	}
	if f.Protected {
		m.Erasure = &manifest.Erasure{
			K: f.EcK, M: f.EcM,
			OriginalTree: decodeCid(t, f.OriginalTreeCid),
			OriginalSize: f.OriginalDatasetSize,
			Strategy:     f.ProtectedStrategy,
		}
	}
	return m
}

// verifiable is a valid manifest with every field set: 5 blocks, K 2, M 1.
func verifiable() manifest.Manifest {
	identity := func(codec uint64, b byte) cid.Cid {
		return cid.NewCidV1(codec, append([]byte{0x00, 0x20, b}, make([]byte, 31)...))
	}
	return manifest.Manifest{
		TreeCid:     codex.TreeCid([32]byte{1}),
		BlockSize:   1000,
		DatasetSize: 9000,
		Filename:    "ä.txt",
		MimeType:    "text/plain",
		Erasure: &manifest.Erasure{
			K: 2, M: 1,
			OriginalTree: codex.TreeCid([32]byte{2}),
			OriginalSize: 4500,
			Strategy:     manifest.Stepped,
			Verification: &manifest.Verification{
				VerifyRoot: identity(codex.ProvingRootCodec, 3),
				SlotRoots: []cid.Cid{
					identity(codex.SlotRootCodec, 4),
					identity(codex.SlotRootCodec, 5),
					identity(codex.SlotRootCodec, 6),
				},
				CellSize: 2048,
				Strategy: manifest.Linear,
			},
		},
	}
}

func wantError(t *testing.T, what string, err error, kind errs.Kind, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got error %v, want kind %q, text with %q", what, err, kind, text)
	}
}

// Manifests are the vectors' byte for byte, and are read back to the same fields.
func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			want := v.manifest(t)
			got, err := manifest.Unmarshal(unhex(t, v.Encoded))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("decoded: got %+v, %v, want %+v", got, err, want)
			}
			if f := v.Fields; f.Codec != codex.BlockCodec || f.HCodec != 0x12 || f.Version != 2 || f.Verifiable {
				t.Errorf("vector is of another kind: %+v", f)
			}
			if got := want.BlockCount(); got != v.Fields.BlocksCount {
				t.Errorf("blocks: got %d, want %d", got, v.Fields.BlocksCount)
			}
			encoded, err := want.Marshal()
			if err != nil || hex.EncodeToString(encoded) != v.Encoded {
				t.Errorf("encoded: got %x, %v, want %s", encoded, err, v.Encoded)
			}
			c, err := want.Cid()
			if err != nil || !c.Equals(decodeCid(t, v.ManifestCid)) {
				t.Errorf("cid: got %s, %v, want %s", codex.String(c), err, v.ManifestCid.Str)
			}
			block, err := want.Block()
			if err != nil || !block.Cid().Equals(c) || hex.EncodeToString(block.RawData()) != v.Encoded {
				t.Fatalf("block: got %v, %v", block, err)
			}
			if got, err := manifest.Decode(block); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("decoded from block: got %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

// The verification part is written as documented, and no field is lost.
func TestVerifiable(t *testing.T) {
	m := verifiable()
	encoded, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	root := func(codec, b string) string { return "01" + codec + "9a030020" + b + strings.Repeat("00", 31) }
	verification := "0a26" + root("85", "03") +
		"1226" + root("84", "04") + "1226" + root("84", "05") + "1226" + root("84", "06") +
		"188010" + "2000"
	if !strings.Contains(hex.EncodeToString(encoded), "2801"+"32a501"+verification) {
		t.Errorf("encoded manifest %x\ndoes not contain %s", encoded, verification)
	}
	if got, err := manifest.Unmarshal(encoded); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("decoded: got %+v, %v, want %+v", got, err, m)
	}
}

// Whoever adds a field to a Manifest must make it travel: every field of the full
// manifest is set, and survives (TestVerifiable).
func TestFullManifestHasEveryField(t *testing.T) {
	m := verifiable()
	for _, v := range []reflect.Value{reflect.ValueOf(m), reflect.ValueOf(*m.Erasure), reflect.ValueOf(*m.Erasure.Verification)} {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if v.Field(i).IsZero() && f.Type != reflect.TypeFor[manifest.Strategy]() {
				t.Errorf("%v.%s is not set", v.Type(), f.Name)
			}
		}
	}
}

// Each rule refuses a manifest that is to be written. TestUnmarshal is the same for
// those that are read.
func TestValidate(t *testing.T) {
	if err := verifiable().Validate(); err != nil {
		t.Fatal(err)
	}
	type (
		M = manifest.Manifest
		E = manifest.Erasure
		V = manifest.Verification
	)
	sha512 := cid.NewCidV1(codex.TreeCodec, append([]byte{0x13, 0x40}, make([]byte, 64)...))
	for _, c := range []struct {
		name   string
		change func(m *M, e *E, v *V)
		err    string
	}{
		{"no tree", func(m *M, e *E, v *V) { m.TreeCid = cid.Undef }, "tree cid: codec is 0x0, want 0xcd03"},
		{"tree is a block", func(m *M, e *E, v *V) { m.TreeCid = codex.EmptyBlock }, "tree cid: codec is 0xcd02, want 0xcd03"},
		{"tree of sha2-512", func(m *M, e *E, v *V) { m.TreeCid = sha512 }, "sha2-512 of 64 bytes, want sha2-256"},
		{"no block size", func(m *M, e *E, v *V) { m.BlockSize = 0 }, "block size is 0, want 1 to 104857600"},
		{"block size too large", func(m *M, e *E, v *V) { m.BlockSize = 100<<20 + 1 }, "block size is 104857601, want 1 to 104857600"},
		{"no size", func(m *M, e *E, v *V) { m.DatasetSize = 0 }, "dataset size is 0"},
		{"file name", func(m *M, e *E, v *V) { m.Filename = "a\xff" }, `file name "a\xff" is not UTF-8`},
		{"MIME type", func(m *M, e *E, v *V) { m.MimeType = "\xc0\x80" }, "is not UTF-8"},
		{"too long", func(m *M, e *E, v *V) { m.Filename = strings.Repeat("x", 1<<20) }, "want at most 1048576"},

		{"no K", func(m *M, e *E, v *V) { e.K = 0 }, "erasure: got K 0 and M 1"},
		{"no M", func(m *M, e *E, v *V) { e.M = 0 }, "erasure: got K 2 and M 0"},
		{"no original tree", func(m *M, e *E, v *V) { e.OriginalTree = cid.Undef }, "original tree cid: codec is 0x0"},
		{"original tree of sha2-512", func(m *M, e *E, v *V) { e.OriginalTree = sha512 }, "original tree cid: "},
		{"no original size", func(m *M, e *E, v *V) { e.OriginalSize = 0 }, "original size is 0"},
		{"coding strategy", func(m *M, e *E, v *V) { e.Strategy = 2 }, "erasure: strategy is 2, want 0 or 1"},
		{"a block less", func(m *M, e *E, v *V) { m.DatasetSize = 8000 }, "dataset has 8 blocks, want 3 for each 2 of the original's 5"},
		{"a block more", func(m *M, e *E, v *V) { m.DatasetSize = 9001 }, "dataset has 10 blocks, want 3 for each 2 of the original's 5"},
		{"another original size", func(m *M, e *E, v *V) { e.OriginalSize = 6001 }, "dataset has 9 blocks, want 3 for each 2 of the original's 7"},
		{"number of blocks beyond 64 bits", func(m *M, e *E, v *V) {
			m.BlockSize, m.DatasetSize, e.OriginalSize = 1, 1<<32, 1<<32+1 // 2^64+2^32 blocks
			e.K, e.M = 1, math.MaxUint32
		}, "want 4294967296 for each 1 of the original's 4294967297"},

		{"no verify root", func(m *M, e *E, v *V) { v.VerifyRoot = cid.Undef }, "verify root: codec is 0x0, want 0xcd05"},
		{"a slot root less", func(m *M, e *E, v *V) { v.SlotRoots = v.SlotRoots[1:] }, "got 2 slot roots, want K+M = 3"},
		{"no slot roots", func(m *M, e *E, v *V) { v.SlotRoots = nil }, "got 0 slot roots, want K+M = 3"},
		{"slot root is a verify root", func(m *M, e *E, v *V) { v.SlotRoots[1] = v.VerifyRoot }, "slot root 1: codec is 0xcd05, want 0xcd04"},
		{"slot strategy", func(m *M, e *E, v *V) { v.Strategy = 255 }, "verification: strategy is 255, want 0 or 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := verifiable()
			c.change(&m, m.Erasure, m.Erasure.Verification)
			wantError(t, "validate", m.Validate(), errs.Invalid, c.err)
			_, err := m.Marshal()
			wantError(t, "marshal", err, errs.Invalid, c.err)
			_, err = m.Cid()
			wantError(t, "cid", err, errs.Invalid, c.err)
			_, err = m.Block()
			wantError(t, "block", err, errs.Invalid, c.err)
		})
	}
}

func TestStrategyText(t *testing.T) {
	for s, want := range map[manifest.Strategy]string{manifest.Linear: "linear", manifest.Stepped: "stepped", 7: "strategy 7"} {
		if got := s.String(); got != want {
			t.Errorf("strategy %d: got %q, want %q", uint8(s), got, want)
		}
	}
}

func TestDecodeRefusesOtherBlocks(t *testing.T) {
	encoded := unhex(t, vectors(t)[0].Encoded)
	_, err := manifest.Decode(codex.NewBlock(encoded))
	wantError(t, "block", err, errs.Malformed, "codec is 0xcd02, want 0xcd01: not a manifest")
	_, err = manifest.Decode(codex.NewManifestBlock([]byte{0x0b}))
	wantError(t, "block of garbage", err, errs.Malformed, "decode manifest zDv")
}

// message wraps the hexadecimal of a message's fields as the bytes of field num.
func message(t testing.TB, num protowire.Number, fields string) string {
	t.Helper()
	b := protowire.AppendTag(nil, num, protowire.BytesType)
	return hex.EncodeToString(protowire.AppendBytes(b, unhex(t, fields)))
}

func TestUnmarshal(t *testing.T) {
	named, protected := vectors(t)[1], vectors(t)[3]
	var (
		rawCid = named.Fields.TreeCid.Bytes
		tree   = "0a26" + rawCid
		block  = "10808004"
		size   = "18808014"
		codec  = "20829a03"
		hash   = "2812"
		vers   = "3002"
		name   = "420968656c6c6f2e747874"
		mime   = "4a0a746578742f706c61696e"

		treeP     = "0a26" + protected.Fields.TreeCid.Bytes
		sizeP     = "18808024"
		k, m      = "0802", "1001"
		original  = "1a26" + rawCid
		originalN = "20808014"
		strategy  = "2801"

		identity = func(codec string) string { return "01" + codec + "9a030020" + strings.Repeat("07", 32) }
		root     = "0a26" + identity("85")
		slot     = "1226" + identity("84")
	)
	plain := func(fields ...string) string { return message(t, 1, strings.Join(fields, "")) }
	erasure := func(fields ...string) string {
		return plain(treeP, block, sizeP, codec, hash, vers, message(t, 7, strings.Join(fields, "")))
	}
	verification := func(fields ...string) string {
		return erasure(k, m, original, originalN, strategy, message(t, 6, strings.Join(fields, "")))
	}
	withNames, withErasure := named.manifest(t), protected.manifest(t)
	noNames := withNames
	noNames.Filename, noNames.MimeType = "", ""

	for _, c := range []struct {
		name, msg string
		want      manifest.Manifest
		err       string
	}{
		{name: "as encoded", msg: plain(tree, block, size, codec, hash, vers, name, mime), want: withNames},
		{name: "other order", msg: plain(mime, name, vers, hash, codec, size, block, tree), want: withNames},
		{name: "unknown fields", msg: "7805" + plain("5007", tree, block, "5a0101", size, codec, hash, vers, name, mime, "0d01020304") + "120100", want: withNames},
		{name: "known numbers with other types", msg: plain(tree, "0805", block, "1200", size, codec, hash, vers, name, mime, "4005") + "0805", want: withNames},
		{name: "last one wins", msg: plain("0a0100", "1000", "2000", "2800", "30ff01", tree, block, size, codec, hash, vers, name, mime), want: withNames},
		{name: "last one wins, although it is empty", msg: plain(tree, block, size, codec, hash, vers, name, mime, "4200", "4a00"), want: noNames},
		{name: "the last header wins, they are not merged", msg: plain(name, mime, "1001") + plain(tree, block, size, codec, hash, vers), want: noNames},
		{name: "empty erasure", msg: plain(tree, block, size, codec, hash, vers, "3a00"), want: noNames},
		{name: "erasure", msg: erasure(k, m, original, originalN, strategy), want: withErasure},
		{name: "erasure, empty verification", msg: erasure(k, m, original, originalN, strategy, "3200"), want: withErasure},

		{name: "nothing", msg: "", err: "no header"},
		{name: "empty header", msg: "0a00", err: "no header"},
		{name: "the last header is empty", msg: plain(tree, block, size, codec, hash, vers) + "0a00", err: "no header"},
		{name: "cut", msg: plain(tree, block, size, codec, hash, vers)[:40], err: "bytes are left"},
		{name: "garbage after it", msg: plain(tree, block, size, codec, hash, vers) + "00", err: "no such field number"},
		{name: "garbage in it", msg: plain(tree, block, size, codec, hash, vers, "0b"), err: "header: field 1: wire type 3"},
		{name: "no tree", msg: plain(block, size, codec, hash, vers), err: "tree cid : "},
		{name: "tree that is no cid", msg: plain("0a03010203", block, size, codec, hash, vers), err: "tree cid 010203: "},
		{name: "tree with a byte too many", msg: plain("0a27"+rawCid+"00", block, size, codec, hash, vers), err: "tree cid " + rawCid + "00: "},
		{name: "tree of version 0", msg: plain("0a22"+rawCid[8:], block, size, codec, hash, vers), err: "tree cid: codec is 0x70, want 0xcd03"},
		{name: "tree is a block", msg: plain("0a26"+"01829a03"+rawCid[8:], block, size, codec, hash, vers), err: "tree cid: codec is 0xcd02, want 0xcd03"},
		{name: "no block size", msg: plain(tree, size, codec, hash, vers), err: "block size is 0"},
		{name: "block size too large", msg: plain(tree, "1081808032", size, codec, hash, vers), err: "block size is 104857601, want 1 to 104857600"},
		{name: "block size of 33 bits", msg: plain(tree, "1080808080"+"10", size, codec, hash, vers), err: "block size is 4294967296, want at most 4294967295"},
		{name: "no size", msg: plain(tree, block, codec, hash, vers), err: "dataset size is 0"},
		{name: "no codec", msg: plain(tree, block, size, hash, vers), err: "codec of blocks is 0x0, want 0xcd02"},
		{name: "raw blocks", msg: plain(tree, block, size, "2055", hash, vers), err: "codec of blocks is 0x55, want 0xcd02"},
		{name: "no hash", msg: plain(tree, block, size, codec, vers), err: "hash is 0x0, want 0x12"},
		{name: "sha2-512", msg: plain(tree, block, size, codec, "2813", vers), err: "hash is 0x13, want 0x12"},
		{name: "no version", msg: plain(tree, block, size, codec, hash), err: "cid version is written as 0, want 2"},
		{name: "version 1 in plain", msg: plain(tree, block, size, codec, hash, "3001"), err: "cid version is written as 1, want 2, which stands for version 1"},
		{name: "version beyond the list", msg: plain(tree, block, size, codec, hash, "3004"), err: "cid version is written as 4, want 2"},
		{name: "file name", msg: plain(tree, block, size, codec, hash, vers, "4201ff"), err: `file name "\xff" is not UTF-8`},
		{name: "MIME type", msg: plain(tree, block, size, codec, hash, vers, "4a01ff"), err: `MIME type "\xff" is not UTF-8`},

		{name: "garbage in erasure", msg: erasure("0b"), err: "erasure: field 1: wire type 3"},
		{name: "no K", msg: erasure(m, original, originalN, strategy), err: "got K 0 and M 1"},
		{name: "no M", msg: erasure(k, original, originalN, strategy), err: "got K 2 and M 0"},
		{name: "K of 33 bits", msg: erasure("088280808010", m, original, originalN, strategy), err: "K is 4294967298, want at most"},
		{name: "M of 33 bits", msg: erasure(k, "108180808010", original, originalN, strategy), err: "M is 4294967297, want at most"},
		{name: "no original tree", msg: erasure(k, m, originalN, strategy), err: "original tree cid"},
		{name: "no original size", msg: erasure(k, m, original, strategy), err: "original size is 0"},
		{name: "coding strategy", msg: erasure(k, m, original, originalN, "2802"), err: "strategy is 2, want 0 or 1"},
		{name: "coding strategy of 9 bits", msg: erasure(k, m, original, originalN, "288102"), err: "strategy is 257, want 0 or 1"},
		{name: "number of blocks", msg: erasure("0803", m, original, originalN, strategy), err: "dataset has 9 blocks, want 4 for each 3 of the original's 5"},

		{name: "garbage in verification", msg: verification("0b"), err: "verification: field 1: wire type 3"},
		{name: "no verify root", msg: verification(slot, slot, slot), err: "verify root"},
		{name: "no slot roots", msg: verification(root), err: "got 0 slot roots, want K+M = 3"},
		{name: "two slot roots", msg: verification(root, slot, slot), err: "got 2 slot roots, want K+M = 3"},
		{name: "slot root that is no cid", msg: verification(root, slot, slot, "120100"), err: "slot root 2 00: "},
		{name: "slot strategy", msg: verification(root, slot, slot, slot, "2003"), err: "strategy is 3, want 0 or 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := manifest.Unmarshal(unhex(t, c.msg))
			if c.err != "" {
				wantError(t, "unmarshal", err, errs.Malformed, c.err)
				return
			}
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}

	if got, err := manifest.Unmarshal(unhex(t, verification(root, slot, slot, slot))); err != nil || got.Erasure.Verification.CellSize != 0 {
		t.Errorf("verification without numbers: got %+v, %v", got, err)
	}
	_, err := manifest.Unmarshal(make([]byte, 1<<20+1))
	wantError(t, "too long", err, errs.TooLarge, "1048577 bytes, want at most 1048576")
}
