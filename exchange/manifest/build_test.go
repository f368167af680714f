package manifest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/manifest"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// pattern is n bytes, the one at position p being p mod 251.
func pattern(n int) []byte {
	b := make([]byte, n)
	for p := range b {
		b[p] = byte(p % 251)
	}
	return b
}

// The worked example of the format: blocks, tree and manifest of 150,000 bytes,
// with and without names, to the last bit.
func TestBuildWorkedExample(t *testing.T) {
	const (
		plain = "0a380a2601839a0312200760ded886943ed474b6f30a7999ce7d5c53ea9ca5f1dc2003237af4bbd2b7aa1080800418f0930920829a0328123002"
		named = "0a5c0a2601839a0312200760ded886943ed474b6f30a7999ce7d5c53ea9ca5f1dc2003237af4bbd2b7aa1080800418f0930920829a03281230024208646174612e62696e4a186170706c69636174696f6e2f6f637465742d73747265616d"
	)
	want := []string{
		"zDxWB8ED3dHw7Hob9QRy364ZULERsk7CRtaLCfVD2igGJgsgdpfj",
		"zDxWB8EDFgcRM8hkGVPZVS12QaHCaB2RJtEiTFeTYjT568kHLKiD",
		"zDxWB8ED6jixEvrwuaDWavyX21CnT8bGv8vJUWsTJJDi9riof3ST",
	}
	content := pattern(150_000)
	for _, c := range []struct {
		opts         manifest.Options
		encoded, cid string
	}{
		{manifest.Options{}, plain, "zDvZRwzm95hqi5ANR7BhBdSnyHKNjXUtayzGCMNPRS3kfuB7eaek"},
		{manifest.Options{BlockSize: 65536, Filename: "data.bin", MimeType: "application/octet-stream"}, named, "zDvZRwzkwsn2WPHQtdjT9f2voRFw5EU8EusnTptU1j6daXqD26HR"},
	} {
		var got []blocks.Block
		ds, err := manifest.Build(t.Context(), bytes.NewReader(content), c.opts, func(index uint64, block blocks.Block) error {
			if index != uint64(len(got)) {
				t.Errorf("block %d came with index %d", len(got), index)
			}
			got = append(got, block)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}

		var back []byte
		for i, block := range got {
			if s := codex.String(block.Cid()); s != want[i] {
				t.Errorf("block %d: got %s, want %s", i, s, want[i])
			}
			if n := len(block.RawData()); n != 65536 {
				t.Errorf("block %d: got %d bytes, want 65536", i, n)
			}
			part, err := ds.Manifest.Trim(uint64(i), block.RawData())
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, part...)
		}
		if !bytes.Equal(back, content) {
			t.Errorf("trimmed blocks are %d bytes and not the %d that went in", len(back), len(content))
		}

		if got := codex.String(ds.Tree.Cid()); got != "zDzSvJTezuE58sk9JhG8j9Er73Gbf1PQNeP4uGoV11fFR2v2SQch" {
			t.Errorf("tree: got %s", got)
		}
		if ds.Tree.Len() != 3 || ds.Manifest.BlockCount() != 3 || !ds.Manifest.TreeCid.Equals(ds.Tree.Cid()) {
			t.Errorf("got tree of %d leaves, manifest %+v", ds.Tree.Len(), ds.Manifest)
		}
		block, err := ds.Manifest.Block()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(block.RawData()); got != c.encoded {
			t.Errorf("manifest: got %s, want %s", got, c.encoded)
		}
		if got := codex.String(block.Cid()); got != c.cid {
			t.Errorf("manifest cid: got %s, want %s", got, c.cid)
		}
	}
}

// However the stream is cut and wherever it ends, the blocks are the same, each
// owns its bytes, and each can be proved.
func TestBuildChunks(t *testing.T) {
	const blockSize = 100
	for _, size := range []int{1, 99, 100, 101, 199, 200, 201, 1000} {
		content := pattern(size)
		count := (size + blockSize - 1) / blockSize
		padded := append(bytes.Clone(content), make([]byte, count*blockSize-size)...)
		for name, r := range map[string]io.Reader{
			"whole":              bytes.NewReader(content),
			"byte by byte":       iotest.OneByteReader(bytes.NewReader(content)),
			"end with data":      iotest.DataErrReader(bytes.NewReader(content)),
			"scribbling":         &scribbler{r: bytes.NewReader(content)},
			"with empty reads":   &hesitant{r: bytes.NewReader(content)},
			"in halves":          iotest.HalfReader(bytes.NewReader(content)),
			"in several streams": io.MultiReader(bytes.NewReader(content[:size/2]), bytes.NewReader(content[size/2:])),
		} {
			what := fmt.Sprintf("%d bytes, %s", size, name)
			var kept []blocks.Block
			ds, err := manifest.Build(t.Context(), r, manifest.Options{BlockSize: blockSize}, func(_ uint64, b blocks.Block) error {
				kept = append(kept, b)
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			var got []byte
			for i, b := range kept {
				got = append(got, b.RawData()...)
				p, err := ds.Tree.Proof(uint64(i))
				if err != nil {
					t.Fatal(err)
				}
				if err := merkle.VerifyLeaf(p.Marshal(), ds.Manifest.TreeCid, uint64(i), b.Cid(), ds.Manifest.BlockCount()); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if again := codex.BlockCid(b.RawData()); !again.Equals(b.Cid()) {
					t.Errorf("%s: block %d changed after it was put", what, i)
				}
			}
			if !bytes.Equal(got, padded) {
				t.Errorf("%s: got blocks of %d bytes, want %d and zeros at the end", what, len(got), len(padded))
			}
			if ds.Manifest.DatasetSize != uint64(size) || ds.Tree.Len() != uint64(count) {
				t.Errorf("%s: got size %d and %d blocks, want %d", what, ds.Manifest.DatasetSize, ds.Tree.Len(), count)
			}

			// Without put the result is the same.
			only, err := manifest.Build(t.Context(), bytes.NewReader(content), manifest.Options{BlockSize: blockSize}, nil)
			if err != nil || only.Manifest != ds.Manifest || only.Tree.Root() != ds.Tree.Root() {
				t.Errorf("%s, only hashed: got %+v, %v, want %+v", what, only, err, ds)
			}
		}
	}
}

// A scribbler uses all of its buffer as scratch space, as readers may.
type scribbler struct{ r io.Reader }

func (s *scribbler) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	for i := range b[n:] {
		b[n+i] = 0xee
	}
	return n, err
}

// A hesitant reader gives nothing every other time, as readers should not.
type hesitant struct {
	r     io.Reader
	calls int
}

func (h *hesitant) Read(b []byte) (int, error) {
	if h.calls++; h.calls%2 == 1 {
		return 0, nil
	}
	return h.r.Read(b)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestBuildEmpty(t *testing.T) {
	ds, err := manifest.Build(t.Context(), bytes.NewReader(nil), manifest.Options{}, func(uint64, blocks.Block) error {
		t.Error("a block was put")
		return nil
	})
	wantError(t, fmt.Sprint(ds), err, errs.Invalid, "input is empty")
}

// What cannot be used is refused before anything is read.
func TestBuildOptions(t *testing.T) {
	untouched := readerFunc(func([]byte) (int, error) {
		t.Error("the stream was read")
		return 0, io.EOF
	})
	for _, c := range []struct {
		opts manifest.Options
		err  string
	}{
		{manifest.Options{BlockSize: codex.MaxBlockSize + 1}, "block size is 104857601"},
		{manifest.Options{Filename: "\xff"}, "file name"},
		{manifest.Options{MimeType: "\xff"}, "MIME type"},
		{manifest.Options{Filename: string(make([]byte, manifest.MaxSize))}, "want at most 1048576"},
	} {
		_, err := manifest.Build(t.Context(), untouched, c.opts, nil)
		wantError(t, fmt.Sprintf("%.40v", c.opts), err, errs.Invalid, c.err)
	}
}

// A stream that is cut off is an error, not a shorter dataset: readers of
// compressed or framed data say io.ErrUnexpectedEOF then.
func TestBuildErrors(t *testing.T) {
	broken := errors.New("disk on fire")
	full := errs.E(errs.Storage, errs.Ours, "put", "", broken)
	keep := func(uint64, blocks.Block) error { return nil }
	opts := manifest.Options{BlockSize: 100}
	cut := func(err error) io.Reader {
		return io.MultiReader(bytes.NewReader(pattern(250)), iotest.ErrReader(err))
	}

	for _, c := range []struct {
		name string
		r    io.Reader
		put  func(uint64, blocks.Block) error
		is   error
		text string
	}{
		{"broken reader", cut(broken), keep, broken, "build dataset block 2: read: disk on fire"},
		{"stream cut off", cut(io.ErrUnexpectedEOF), keep, io.ErrUnexpectedEOF, "block 2"},
		{"stuck reader", readerFunc(func([]byte) (int, error) { return 0, nil }), keep, io.ErrNoProgress, "block 0"},
		{"store failed", bytes.NewReader(pattern(250)), func(i uint64, _ blocks.Block) error {
			if i == 1 {
				return full
			}
			return nil
		}, errs.Storage, "block 1"},
	} {
		ds, err := manifest.Build(t.Context(), c.r, opts, c.put)
		if ds != nil || !errors.Is(err, c.is) {
			t.Errorf("%s: got %v, %v, want error %v", c.name, ds, err, c.is)
		}
		wantError(t, c.name, err, kindOf(c.is), c.text)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var puts int
	_, err := manifest.Build(ctx, bytes.NewReader(pattern(1000)), opts, func(i uint64, _ blocks.Block) error {
		if puts++; i == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || puts != 3 {
		t.Errorf("cancelled while block 2 is put: got %d puts, %v", puts, err)
	}
}

func kindOf(err error) errs.Kind {
	if k, ok := err.(errs.Kind); ok {
		return k
	}
	return errs.Other
}

func TestBlockRange(t *testing.T) {
	plain := manifest.Manifest{TreeCid: codex.TreeCid([32]byte{1}), BlockSize: 100, DatasetSize: 250}
	protected := verifiable() // 4,500 bytes in blocks of 1,000, of 9,000
	for _, c := range []struct {
		m              manifest.Manifest
		offset, length uint64
		first, count   uint64
	}{
		{plain, 0, 250, 0, 3},
		{plain, 0, 1, 0, 1},
		{plain, 0, 100, 0, 1},
		{plain, 0, 101, 0, 2},
		{plain, 99, 1, 0, 1},
		{plain, 99, 2, 0, 2},
		{plain, 100, 100, 1, 1},
		{plain, 249, 1, 2, 1},
		{plain, 249, 1000, 2, 1},
		{plain, 100, 1<<64 - 1, 1, 2},
		{plain, 0, 0, 0, 0},
		{plain, 250, 1, 0, 0},
		{plain, 1<<64 - 1, 1<<64 - 1, 0, 0},
		{protected, 0, 9000, 0, 5},
		{protected, 4500, 1, 0, 0},
		{manifest.Manifest{}, 0, 1, 0, 0},
		{manifest.Manifest{DatasetSize: 5}, 0, 1, 0, 0},
	} {
		if first, count := c.m.BlockRange(c.offset, c.length); first != c.first || count != c.count {
			t.Errorf("blocks of %d bytes from %d, of %d: got %d from %d, want %d from %d",
				c.length, c.offset, c.m.ContentSize(), count, first, c.count, c.first)
		}
	}
}

func TestCounts(t *testing.T) {
	m := verifiable()
	if m.BlockCount() != 9 || m.ContentBlocks() != 5 || m.ContentSize() != 4500 {
		t.Errorf("protected: got %d blocks, %d of content, %d bytes, want 9, 5, 4500", m.BlockCount(), m.ContentBlocks(), m.ContentSize())
	}
	m.Erasure = nil
	if m.BlockCount() != 9 || m.ContentBlocks() != 9 || m.ContentSize() != 9000 {
		t.Errorf("plain: got %d blocks, %d of content, %d bytes, want 9, 9, 9000", m.BlockCount(), m.ContentBlocks(), m.ContentSize())
	}
	m.BlockSize, m.DatasetSize = 2, 1<<64-1
	if got := m.BlockCount(); got != 1<<63 {
		t.Errorf("blocks of 2 bytes in 2^64-1: got %d, want 2^63", got)
	}
	if got := (manifest.Manifest{}).BlockCount(); got != 0 {
		t.Errorf("zero manifest: got %d blocks, want 0", got)
	}
}

func TestTrim(t *testing.T) {
	m := verifiable() // blocks 0 to 4 hold 4,500 bytes of content, 5 to 8 none
	full := pattern(1000)
	for index, want := range []int{1000, 1000, 1000, 1000, 500, 0, 0, 0, 0} {
		got, err := m.Trim(uint64(index), full)
		if err != nil || !bytes.Equal(got, full[:want]) {
			t.Errorf("block %d: got %d bytes, %v, want %d", index, len(got), err, want)
		}
		if got, err = m.Trim(uint64(index), nil); err != nil || !bytes.Equal(got, make([]byte, want)) {
			t.Errorf("empty block as block %d: got %x, %v, want %d zeros", index, got, err, want)
		}
	}
	_, err := m.Trim(9, full)
	wantError(t, "index", err, errs.Invalid, "block index is 9, want less than 9")
	_, err = m.Trim(0, full[:999])
	wantError(t, "short", err, errs.Invalid, "block 0 is 999 bytes, want 1000")
	_, err = m.Trim(4, full[:500])
	wantError(t, "without padding", err, errs.Invalid, "block 4 is 500 bytes, want 1000")
	_, err = m.Trim(1, make([]byte, 1001))
	wantError(t, "long", err, errs.Invalid, "block 1 is 1001 bytes, want 1000")
}
