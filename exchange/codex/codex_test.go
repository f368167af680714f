package codex_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/ipfs/boxo/verifcid"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
)

// vector is a CID in both forms, its parts, and the data it was made from.
type vector struct {
	Name string
	Cid  struct{ Str, Bytes string }
	// Version is an ordinal: 1 is CIDv0, 2 is CIDv1.
	Version uint64
	Codec   uint64
	MhCodec uint64
	DataLen int
	Data    string
}

func vectors(t *testing.T) []vector {
	t.Helper()
	text, err := os.ReadFile("testdata/cids.json")
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

// data returns what the CID was made from. Vectors of 64 KiB name the byte they
// repeat instead of listing it.
func (v vector) data(t *testing.T) []byte {
	t.Helper()
	repeated := map[string]byte{"block 64KiB of byte 0": 0, "block 64KiB of byte 1": 1, "block 64KiB of byte 255": 255}
	data, err := hex.DecodeString(v.Data)
	if b, ok := repeated[v.Name]; ok {
		data = bytes.Repeat([]byte{b}, 64<<10)
	}
	if err != nil || len(data) != v.DataLen {
		t.Fatalf("data of vector is %d bytes, want %d (%v)", len(data), v.DataLen, err)
	}
	return data
}

// CIDs of every codec and hash are read from bytes and from text, and written
// back as they were, whether or not go-cid and go-multihash know the codes.
func TestCidVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			raw, err := hex.DecodeString(v.Cid.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			c, err := cid.Cast(raw)
			if err != nil {
				t.Fatalf("cast %x: %v", raw, err)
			}
			if fromText, err := cid.Decode(v.Cid.Str); err != nil || !fromText.Equals(c) {
				t.Errorf("decode %s: got %v, %v, want %v", v.Cid.Str, fromText, err, c)
			}
			if got := codex.String(c); got != v.Cid.Str {
				t.Errorf("text: got %s, want %s", got, v.Cid.Str)
			}
			if p := c.Prefix(); p.Version+1 != v.Version || p.Codec != v.Codec || p.MhType != v.MhCodec {
				t.Errorf("parts: got version ordinal %d, codec %#x, hash %#x, want %d, %#x, %#x",
					p.Version+1, p.Codec, p.MhType, v.Version, v.Codec, v.MhCodec)
			}

			digest, err := codex.Digest(c)
			if v.MhCodec != multihash.SHA2_256 {
				if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "want sha2-256") {
					t.Errorf("digest: got %x, %v, want an error that names sha2-256", digest, err)
				}
				return
			}
			if want := sha256.Sum256(v.data(t)); err != nil || digest != want {
				t.Errorf("digest: got %x, %v, want %x", digest, err, want)
			}
		})
	}
}

// Each constructor makes the CID of the vector with its codec.
func TestConstructors(t *testing.T) {
	made := map[uint64]int{}
	for _, v := range vectors(t) {
		if v.MhCodec != multihash.SHA2_256 {
			continue
		}
		data := v.data(t)
		var c cid.Cid
		switch v.Codec {
		case codex.BlockCodec:
			c = codex.BlockCid(data)
			if b := codex.NewBlock(data); !b.Cid().Equals(c) || !bytes.Equal(b.RawData(), data) {
				t.Errorf("%s: block is %v with %d bytes, want %v with %d", v.Name, b.Cid(), len(b.RawData()), c, len(data))
			}
		case codex.ManifestCodec:
			c = codex.ManifestCid(data)
			if b := codex.NewManifestBlock(data); !b.Cid().Equals(c) || !bytes.Equal(b.RawData(), data) {
				t.Errorf("%s: block is %v with %d bytes, want %v with %d", v.Name, b.Cid(), len(b.RawData()), c, len(data))
			}
		case codex.TreeCodec:
			c = codex.TreeCid(sha256.Sum256(data))
		default:
			continue
		}
		made[v.Codec]++
		if got := hex.EncodeToString(c.Bytes()); got != v.Cid.Bytes {
			t.Errorf("%s: got %s, want %s", v.Name, got, v.Cid.Bytes)
		}
	}
	if len(made) != 3 {
		t.Errorf("codecs with a vector: got %v, want block, manifest and tree", made)
	}
}

func TestEmptyBlock(t *testing.T) {
	const want = "zDxWB8EDDsokSpiTXNRpv1jS2LXjEdLgTiDfxFd7Eo8CSPKVj93r"
	if got := codex.String(codex.EmptyBlock); got != want {
		t.Errorf("empty block: got %s, want %s", got, want)
	}
	if got, want := hex.EncodeToString(codex.EmptyBlock.Bytes()),
		"01829a031220e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; got != want {
		t.Errorf("empty block: got %s, want %s", got, want)
	}
}

// boxo's blockservice lets Codex's CIDs pass.
func TestAllowedByBlockservice(t *testing.T) {
	for _, c := range []cid.Cid{codex.EmptyBlock, codex.TreeCid([32]byte{1}), codex.ManifestCid([]byte("m"))} {
		if err := verifcid.ValidateCid(verifcid.DefaultAllowlist, c); err != nil {
			t.Errorf("%s: %v", codex.String(c), err)
		}
	}
}

// Digest answers with an error, not a panic, for CIDs that are not CIDs.
func TestDigestOfStrangeCids(t *testing.T) {
	for name, c := range map[string]cid.Cid{
		"undefined":       cid.Undef,
		"no hash":         cid.NewCidV1(codex.BlockCodec, nil),
		"digest too long": cid.NewCidV1(codex.BlockCodec, append([]byte{0x12, 0x21}, make([]byte, 33)...)),
		"digest cut":      cid.NewCidV1(codex.BlockCodec, append([]byte{0x12, 0x20}, make([]byte, 31)...)),
		"length is wrong": cid.NewCidV1(codex.BlockCodec, append([]byte{0x12, 0x1f}, make([]byte, 32)...)),
		"identity":        cid.NewCidV1(codex.SlotRootCodec, append([]byte{0x00, 0x20}, make([]byte, 32)...)),
	} {
		if d, err := codex.Digest(c); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: got %x, %v, want an error of kind invalid", name, d, err)
		}
	}
	if got := codex.String(cid.Undef); got != "(no cid)" {
		t.Errorf("text of the undefined cid: got %q", got)
	}
}

func TestDigestDoesNotAllocate(t *testing.T) {
	c := codex.BlockCid([]byte("hello"))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := codex.Digest(c); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}
