package codex_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/codexchange/codexchange/exchange/codex"
)

// fields reads a whole message and writes it down as "number:value …".
func fields(msg []byte) (string, error) {
	var b strings.Builder
	for len(msg) > 0 {
		f, rest, err := codex.NextField(msg)
		if err != nil {
			return b.String(), err
		}
		switch f.Type {
		case protowire.VarintType:
			fmt.Fprintf(&b, "%d:%d ", f.Num, f.Varint)
		case protowire.BytesType:
			fmt.Fprintf(&b, "%d:%x ", f.Num, f.Bytes)
		default:
			fmt.Fprintf(&b, "%d:skipped ", f.Num)
		}
		msg = rest
	}
	return strings.TrimSpace(b.String()), nil
}

func TestNextField(t *testing.T) {
	for _, c := range []struct{ name, msg, want, err string }{
		{name: "nothing"},
		{name: "varint and bytes", msg: "0812" + "2203aabbcc", want: "1:18 4:aabbcc"},
		{name: "explicit zero and empty bytes", msg: "0800" + "2200", want: "1:0 4:"},
		{name: "largest varint", msg: "08ffffffffffffffffff01", want: "1:18446744073709551615"},
		{name: "largest field number", msg: "f8ffffff0f00", want: "536870911:0"},
		{name: "fixed32 and fixed64", msg: "0d01020304" + "090102030405060708" + "1005", want: "1:skipped 1:skipped 2:5"},

		{name: "group", msg: "0b0c", err: "field 1: wire type 3"},
		{name: "end of group", msg: "0c", err: "field 1: wire type 4"},
		{name: "wire type 6", msg: "0e", err: "field 1: wire type 6"},
		{name: "field number 0", msg: "0000", err: "no such field number"},
		{name: "field number too large", msg: "808080801000", err: "no such field number"},
		{name: "tag cut short", msg: "88", err: "tag: varint is cut short"},
		{name: "value missing", msg: "08", err: "field 1: varint is cut short"},
		{name: "value cut short", msg: "0880", err: "field 1: varint is cut short"},
		{name: "padded value", msg: "088100", err: "field 1: varint is not in its shortest form"},
		{name: "padded tag", msg: "880001", err: "tag: varint is not in its shortest form"},
		{name: "padded length", msg: "228100aa", err: "field 4: varint is not in its shortest form"},
		{name: "value of 65 bits", msg: "08ffffffffffffffffff02", err: "field 1: varint is longer than 64 bits"},
		{name: "length beyond the end", msg: "2203aabb", err: "field 4: length is 3, but 2 bytes are left"},
		{name: "length near 2^64", msg: "22ffffffffffffffffff01aa", err: "field 4: length is 18446744073709551615"},
		{name: "fixed32 cut short", msg: "0d010203", err: "field 1: value is 4 bytes, but 3 are left"},
		{name: "fixed64 cut short", msg: "0901", err: "field 1: value is 8 bytes, but 1 are left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			msg, err := hex.DecodeString(c.msg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := fields(msg)
			if c.err == "" {
				if err != nil || got != c.want {
					t.Errorf("got %q, %v, want %q", got, err, c.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v, want an error with %q", got, err, c.err)
			}
		})
	}
}

// Appending to a value does not write into the field after it.
func TestNextFieldKeepsValuesApart(t *testing.T) {
	msg := []byte{0x0a, 0x01, 0xaa, 0x12, 0x01, 0xbb}
	f, _, err := codex.NextField(msg)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(f.Bytes, 0xff)
	if got, _ := fields(msg); got != "1:aa 2:bb" {
		t.Errorf("message after append: got %q", got)
	}
}
