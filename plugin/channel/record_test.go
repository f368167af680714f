package channel

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// parse reads one record from b, as a Conn does, and returns the rest.
func parse(b []byte) (Record, []byte, error) {
	if len(b) < headerSize {
		return Record{}, nil, errors.New("cut")
	}
	k, n, err := parseHeader(b)
	if err != nil {
		return Record{}, nil, err
	}
	b = b[headerSize:]
	if len(b) < n {
		return Record{}, nil, errors.New("cut")
	}
	body, rest := b[:n], b[n:]
	if k == KindData || k >= firstOptional {
		return Record{Kind: k, Data: body}, rest, nil
	}
	r, err := parseBody(k, body)
	return r, rest, err
}

// Each kind of record has the bytes that the package documentation says, and
// is the same record when it is read again.
func TestRecordBytes(t *testing.T) {
	block := cidOf([]byte("x"))
	for _, tc := range []struct {
		name string
		rec  Record
		want string
	}{
		{"data", Record{Kind: KindData, Data: []byte("hello")}, "\x01\x05\x00\x00\x00hello"},
		{"block", Record{Kind: KindBlock, Cid: block, Size: 65536}, "\x02\x28\x00\x00\x00\x00\x00\x01\x00" + block.KeyString()},
		{"empty block", Record{Kind: KindBlock, Cid: block}, "\x02\x28\x00\x00\x00\x00\x00\x00\x00" + block.KeyString()},
		{"region", Record{Kind: KindRegion, Offset: 0x0102030405060708, Size: 9}, "\x03\x0c\x00\x00\x00\x08\x07\x06\x05\x04\x03\x02\x01\x09\x00\x00\x00"},
		{"close-write", Record{Kind: KindCloseWrite}, "\x04\x00\x00\x00\x00"},
		{"reset", Record{Kind: KindReset, Code: 0xCD01}, "\x05\x04\x00\x00\x00\x01\xcd\x00\x00"},
		{"credit", Record{Kind: KindCredit, Size: 65536}, "\x06\x04\x00\x00\x00\x00\x00\x01\x00"},
		{"close-read", Record{Kind: KindCloseRead}, "\x07\x00\x00\x00\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := tc.rec.Append([]byte("before"))
			if err != nil {
				t.Fatal(err)
			}
			if got := string(b); got != "before"+tc.want {
				t.Fatalf("bytes are %q, want %q", got, "before"+tc.want)
			}
			got, rest, err := parse(append([]byte(tc.want), "after"...))
			if err != nil || string(rest) != "after" || !reflect.DeepEqual(got, tc.rec) {
				t.Fatalf("read again: %+v, rest %q, %v; want %+v", got, rest, err, tc.rec)
			}
		})
	}
}

// A record that nobody could read is not written.
func TestRecordRefusedByWriter(t *testing.T) {
	block := cidOf(nil)
	long, err := cid.V1Builder{Codec: cid.Raw, MhType: 0}.Sum(bytes.Repeat([]byte{1}, MaxCid))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		rec  Record
	}{
		{"no kind", Record{}},
		{"unknown kind", Record{Kind: 8}},
		{"optional kind", Record{Kind: 0x80}},
		{"no data", Record{Kind: KindData}},
		{"too much data", Record{Kind: KindData, Data: make([]byte, MaxData+1)}},
		{"no cid", Record{Kind: KindBlock, Size: 1}},
		{"long cid", Record{Kind: KindBlock, Cid: long, Size: 1}},
		{"negative block", Record{Kind: KindBlock, Cid: block, Size: -1}},
		{"large block", Record{Kind: KindBlock, Cid: block, Size: MaxBlock + 1}},
		{"empty region", Record{Kind: KindRegion}},
		{"large region", Record{Kind: KindRegion, Size: MaxBlock + 1}},
		{"region past the end", Record{Kind: KindRegion, Offset: math.MaxUint64, Size: 2}},
		{"no credit", Record{Kind: KindCredit}},
		{"large credit", Record{Kind: KindCredit, Size: MaxWindow + 1}},
	} {
		b, err := tc.rec.Append([]byte("x"))
		if !errors.Is(err, errs.Invalid) || string(b) != "x" {
			t.Errorf("%s: bytes %q, error %v, want none and %v", tc.name, b, err, errs.Invalid)
		}
	}
}

// Bytes that break the protocol are refused with a reason, and lengths before
// anything else.
func TestRecordRefusedByReader(t *testing.T) {
	block := cidOf(nil).KeyString()
	for _, tc := range []struct{ name, in, want string }{
		{"kind 0", "\x00\x00\x00\x00\x00", "kind is 0, want 1 to 7, or at least 128"},
		{"kind 8", "\x08\x00\x00\x00\x00", "kind is 8"},
		{"last unknown kind", "\x7f\x00\x00\x00\x00", "kind is 127"},
		{"empty data", "\x01\x00\x00\x00\x00", "data: length is 0, want 1 to 262144"},
		{"long data", "\x01\x01\x00\x04\x00", "data: length is 262145, want 1 to 262144"},
		{"4 GiB of data", "\x01\xff\xff\xff\xff", "data: length is 4294967295, want"},
		{"long optional", "\x80\x01\x00\x04\x00", "length is 262145, want 0 to 262144"},
		{"block without cid", "\x02\x04\x00\x00\x00\x00\x00\x00\x00", "block: length is 4, want 5 to 260"},
		{"block with long cid", "\x02\x05\x01\x00\x00", "block: length is 261"},
		{"block with bad cid", "\x02\x06\x00\x00\x00\x00\x00\x00\x00\x07\x07", "block: invalid cid"},
		{"bytes after the cid", "\x02\x29\x00\x00\x00\x00\x00\x00\x00" + block + "x", "1 bytes after the cid"},
		{"large block", "\x02\x28\x00\x00\x00\x01\x00\x40\x06" + block, "size is 104857601, want at most 104857600"},
		{"4 GiB block", "\x02\x28\x00\x00\x00\xff\xff\xff\xff" + block, "size is 4294967295"},
		{"short region", "\x03\x0b\x00\x00\x00", "region: length is 11, want 12 to 12"},
		{"empty region", "\x03\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "region: range is 0 bytes at 0"},
		{"region past the end", "\x03\x0c\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00", "region: range is 2 bytes at 18446744073709551615"},
		{"4 GiB region", "\x03\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", "region: range is"},
		{"close-write with more", "\x04\x01\x00\x00\x00", "close-write: length is 1, want 0 to 0"},
		{"close-read with more", "\x07\x01\x00\x00\x00", "close-read: length is 1, want 0 to 0"},
		{"short reset", "\x05\x03\x00\x00\x00", "reset: length is 3, want 4 to 4"},
		{"long credit", "\x06\x05\x00\x00\x00", "credit: length is 5, want 4 to 4"},
		{"no credit", "\x06\x04\x00\x00\x00\x00\x00\x00\x00", "credit: 0 bytes"},
		{"large credit", "\x06\x04\x00\x00\x00\x01\x00\x00\x01", "credit: 16777217 bytes, want 1 to 16777216"},
	} {
		_, _, err := parse([]byte(tc.in))
		if !errors.Is(err, errs.Malformed) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error is %v, want one with %q", tc.name, err, tc.want)
		}
	}
}

// Whatever can be read is the same bytes when written again, and no bytes make
// the reader fail.
func FuzzRecord(f *testing.F) {
	block := cidOf([]byte("x"))
	for _, r := range []Record{
		{Kind: KindData, Data: []byte("hello")},
		{Kind: KindBlock, Cid: block, Size: 65536},
		{Kind: KindRegion, Offset: 4096, Size: 9},
		{Kind: KindCloseWrite},
		{Kind: KindReset, Code: CodeBlockMissing},
		{Kind: KindCredit, Size: 65536},
		{Kind: KindCloseRead},
	} {
		f.Add(wire(f, r))
	}
	f.Add([]byte("\x80\x01\x00\x00\x00x"))
	f.Add([]byte("\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := parse(b)
		if err != nil || r.Kind >= firstOptional {
			return
		}
		again, err := r.Append(nil)
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", r, err)
		}
		if want := b[:len(b)-len(rest)]; !bytes.Equal(again, want) {
			t.Fatalf("written again: %x, want %x", again, want)
		}
	})
}
