package blockexc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// The functions below write protobuf fields by hand.

func varint(num int, x uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(num)<<3), x)
}

func field(num int, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	return slices.Concat(announce(num, len(body)), body)
}

// announce is the beginning of a field of n bytes.
func announce(num, n int) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(num)<<3|2), uint64(n))
}

func frame(parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	return slices.Concat(binary.AppendUvarint(nil, uint64(len(body))), body)
}

var (
	cidA  = codexCid(0xCD02, "a")
	cidB  = codexCid(0xCD02, "b")
	treeT = codexCid(0xCD03, "t")
	treeU = codexCid(0xCD03, "u")
)

func codexCid(codec uint64, content string) cid.Cid {
	c, err := cid.Prefix{Version: 1, Codec: codec, MhType: multihash.SHA2_256, MhLength: -1}.Sum([]byte(content))
	if err != nil {
		panic(err)
	}
	return c
}

func plainAddress(num int, c cid.Cid) []byte { return field(num, field(4, c.Bytes())) }

func leafAddress(num int, c cid.Cid, index uint64) []byte {
	return field(num, varint(1, 1), field(2, c.Bytes()), varint(3, index))
}

func wants(entries ...wire.Entry) wire.Message {
	return wire.Message{WantList: wire.WantList{Entries: entries}}
}

// TestTolerated: what a sender may do and still be understood.
func TestTolerated(t *testing.T) {
	a, b := wire.Block(cidA), wire.Block(cidB)
	entryA := field(1, plainAddress(1, cidA))
	skipped := slices.Concat(
		varint(100, 1<<63), // unknown, each wire type
		[]byte{99<<3&0x7f | 1 | 0x80, 6, 1, 2, 3, 4, 5, 6, 7, 8}, // field 99 as fixed64
		[]byte{99<<3&0x7f | 5 | 0x80, 6, 1, 2, 3, 4},             // field 99 as fixed32
		field(1<<28, make([]byte, 40_000)),
		field(0, []byte("field 0")),
	)
	for _, tc := range []struct {
		name string
		in   []byte
		want wire.Message
	}{
		{"a second want list replaces the first", slices.Concat(
			field(1, entryA, varint(2, 1)), field(1, field(1, plainAddress(1, cidB)))), wants(wire.Entry{Address: b})},
		{"a second address replaces the first, which is not merged", field(1, field(1,
			leafAddress(1, treeT, 7), plainAddress(1, cidA))), wants(wire.Entry{Address: a})},
		{"a bad address does not matter if a good one follows", field(1, field(1,
			field(1), plainAddress(1, cidA))), wants(wire.Entry{Address: a})},
		{"the last scalar of an entry counts", field(1, field(1, plainAddress(1, cidA),
			varint(2, 1), varint(2, 2), varint(3, 1), varint(3, 0), varint(4, 9), varint(4, 1), varint(5, 0), varint(5, 1))),
			wants(wire.Entry{Address: a, Priority: 2, Type: wire.WantHave, SendDontHave: true})},
		{"the last fields of an address count", field(1, field(1, field(1,
			varint(1, 0), varint(1, 1), field(2, []byte("no cid")), field(2, treeT.Bytes()), varint(3, 1), varint(3, 2)))),
			wants(wire.Entry{Address: wire.Leaf(treeT, 2)})},
		{"fields of the other kind of address do not matter", field(1, field(1, field(1,
			field(2, []byte("no cid")), varint(3, 1<<63), field(4, cidA.Bytes())))), wants(wire.Entry{Address: a})},
		{"any order of fields", field(1, varint(2, 1), field(1, varint(5, 1), varint(4, 1), field(1,
			varint(3, 5), field(2, treeT.Bytes()), varint(1, 1)))),
			wire.Message{WantList: wire.WantList{Full: true, Entries: []wire.Entry{{Address: wire.Leaf(treeT, 5), Type: wire.WantHave, SendDontHave: true}}}}},
		{"a delivery in any order", field(3, field(4, []byte("proof")), leafAddress(3, treeT, 1), field(2, []byte("data")), field(1, cidA.Bytes())),
			wire.Message{Deliveries: []wire.Delivery{{Address: wire.Leaf(treeT, 1), Cid: cidA, Data: []byte("data"), Proof: []byte("proof")}}}},
		{"the last fields of a delivery count", field(3,
			field(1, cidB.Bytes()), field(1, cidA.Bytes()), field(2, make([]byte, 5000)), field(2, []byte("data")),
			plainAddress(3, cidB), leafAddress(3, treeT, 1), field(4, make([]byte, 9000)), field(4, []byte("long proof")), field(4, []byte("proof"))),
			wire.Message{Deliveries: []wire.Delivery{{Address: wire.Leaf(treeT, 1), Cid: cidA, Data: []byte("data"), Proof: []byte("proof")}}}},
		{"data after the proof, again", field(3,
			field(1, cidA.Bytes()), field(2, make([]byte, 5000)), leafAddress(3, treeT, 1), field(4, bytes.Repeat([]byte("proof"), 20)), field(2, []byte("data"))),
			wire.Message{Deliveries: []wire.Delivery{{Address: wire.Leaf(treeT, 1), Cid: cidA, Data: []byte("data"), Proof: bytes.Repeat([]byte("proof"), 20)}}}},
		{"the proof of a plain block has no meaning", field(3, field(1, cidA.Bytes()), field(2), plainAddress(3, cidA), field(4, make([]byte, 9000))),
			wire.Message{Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Data: []byte{}}}}},
		{"a block under the cid of another is the receiver's to judge", field(3, field(1, cidB.Bytes()), field(2), plainAddress(3, cidA)),
			wire.Message{Deliveries: []wire.Delivery{{Address: a, Cid: cidB, Data: []byte{}}}}},
		{"the last fields of a presence count", field(4, plainAddress(1, cidA), varint(2, 7), varint(2, 1), field(3, make([]byte, 33)), field(3, []byte{1, 0})),
			wire.Message{Presences: []wire.Presence{{Address: a, Type: wire.DontHave, Price: price(256)}}}},
		{"sections between each other", slices.Concat(
			field(4, plainAddress(1, cidA)), field(3, field(1, cidA.Bytes()), field(2), plainAddress(3, cidA)),
			field(4, plainAddress(1, cidB)), field(1, entryA)),
			wire.Message{
				WantList:   wire.WantList{Entries: []wire.Entry{{Address: a}}},
				Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Data: []byte{}}},
				Presences:  []wire.Presence{{Address: a}, {Address: b}},
			}},
		{"the last account, payment and pendingBytes count", slices.Concat(
			field(6, field(1, make([]byte, 20))), field(6, field(1, []byte("short")), field(1, []byte("abcdefghijklmnopqrst"))),
			field(7, field(1, []byte("{}"))), field(7, field(1, []byte("{1}")), field(1, []byte("{2}"))),
			varint(5, 1), varint(5, 2)),
			wire.Message{Account: []byte("abcdefghijklmnopqrst"), Payment: []byte("{2}"), PendingBytes: 2}},
		{"an empty account and payment replace what was there", slices.Concat(
			field(6, field(1, make([]byte, 20))), field(7, field(1, []byte("{}"))), field(6, field(1)), field(7)), wire.Message{}},
		{"unknown fields everywhere", slices.Concat(skipped,
			field(1, skipped, field(1, skipped, field(1, skipped, field(4, cidA.Bytes()), skipped))),
			field(3, field(1, cidA.Bytes()), skipped, field(2), field(3, field(4, cidA.Bytes()), skipped)),
			field(4, skipped, plainAddress(1, cidA)),
			field(6, skipped, field(1, make([]byte, 20))), field(7, skipped, field(1, []byte("{}")))),
			wire.Message{
				WantList:   wire.WantList{Entries: []wire.Entry{{Address: a}}},
				Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Data: []byte{}}},
				Presences:  []wire.Presence{{Address: a}},
				Account:    make([]byte, 20),
				Payment:    []byte("{}"),
			}},
		{"known fields of another wire type", slices.Concat(
			varint(1, 1), varint(3, 1), varint(4, 1), field(5, []byte{1}), varint(6, 1), varint(7, 1),
			field(1, varint(1, 1), field(2, []byte{1}), field(1, varint(1, 1), field(2), field(3, []byte{1}), field(4), field(5),
				field(1, field(1, []byte{1}), varint(2, 1), field(3), varint(4, 1), field(4, cidA.Bytes())))),
			field(3, varint(1, 1), varint(2, 1), varint(3, 1), varint(4, 1), field(1, cidA.Bytes()), field(2), plainAddress(3, cidA)),
			field(4, varint(1, 1), field(2, []byte{1}), varint(3, 1), plainAddress(1, cidA)),
			field(6, varint(1, 1)), field(7, varint(1, 1))),
			wire.Message{
				WantList:   wire.WantList{Entries: []wire.Entry{{Address: a}}},
				Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Data: []byte{}}},
				Presences:  []wire.Presence{{Address: a}},
			}},
		{"booleans are true from 1 to 2^64-1", field(1, varint(2, 1<<64-1), field(1, plainAddress(1, cidA), varint(3, 2), varint(5, 1<<40))),
			wire.Message{WantList: wire.WantList{Full: true, Entries: []wire.Entry{{Address: a, Cancel: true, SendDontHave: true}}}}},
		{"a priority is any number", field(1,
			field(1, plainAddress(1, cidA), varint(2, 1<<31-1)),
			field(1, plainAddress(1, cidA), varint(2, 1<<64-1)),       // -1 in ten bytes
			field(1, plainAddress(1, cidA), varint(2, 1<<32-1)),       // -1 in five
			field(1, plainAddress(1, cidA), varint(2, 1<<32)),         // too large
			field(1, plainAddress(1, cidA), varint(2, 1<<63)),         // too small
			field(1, plainAddress(1, cidA), varint(2, 1<<64-1<<31)),   // least
			field(1, plainAddress(1, cidA), varint(2, 1<<64-1<<31-1)), // too small by one
		), wants(
			wire.Entry{Address: a, Priority: 1<<31 - 1}, wire.Entry{Address: a, Priority: -1}, wire.Entry{Address: a, Priority: -1},
			wire.Entry{Address: a, Priority: 1<<31 - 1}, wire.Entry{Address: a, Priority: -1 << 31},
			wire.Entry{Address: a, Priority: -1 << 31}, wire.Entry{Address: a, Priority: -1 << 31})},
		{"the largest index and the longest price", field(4, leafAddress(1, treeT, blockexc.MaxIndex), field(3, bytes.Repeat([]byte{255}, 32))),
			wire.Message{Presences: []wire.Presence{{Address: wire.Leaf(treeT, blockexc.MaxIndex), Price: wire.Price(bytes.Repeat([]byte{255}, 32))}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got wire.Message
			if err := blockexc.Unmarshal(tc.in, blockexc.Limits{}, &got); err != nil {
				t.Fatal(err)
			}
			sameMessage(t, &got, &tc.want)
			wantRejected(t, &got)
		})
	}
}

func price(n uint64) (p wire.Price) {
	binary.BigEndian.PutUint64(p[24:], n)
	return p
}

// TestMessageLost: what breaks the encoding costs the message and the stream.
func TestMessageLost(t *testing.T) {
	long := func(n int) []byte { return append(bytes.Repeat([]byte{0xff}, n), 1) }
	for _, tc := range []struct {
		name string
		in   []byte
		err  string
	}{
		{"start of a group", []byte{0x7b}, "field 15: wire type is 3, want 0, 1, 2 or 5"},
		{"end of a group, deep inside", field(1, field(1, field(1, []byte{0x7c}))), "want list: entry 0: address: field 15: wire type is 4, want 0, 1, 2 or 5"},
		{"unused wire type 6", field(3, []byte{0x0e}), "deliveries: entry 0: field 1: wire type is 6, want 0, 1, 2 or 5"},
		{"unused wire type 7", field(7, []byte{0x0f}), "payment: field 1: wire type is 7, want 0, 1, 2 or 5"},
		{"tag alone", field(1, field(1, plainAddress(1, cidA)), []byte{0x0a}), "want list: entry 1: message ends inside a field"},
		{"varint cut off", field(4, plainAddress(1, cidA), []byte{2 << 3, 0x80}), "presences: entry 0: message ends inside a field"},
		{"fixed64 cut off", field(6, []byte{15<<3 | 1, 1, 2, 3}), "account: field is 8 bytes, but 3 are left"},
		{"fixed32 cut off", []byte{15<<3 | 5, 1, 2, 3}, "field is 4 bytes, but 3 are left"},
		{"list longer than the message", announce(1, 1), "want list: length is 1, but 0 bytes are left"},
		{"entry longer than its list", slices.Concat(field(1, announce(1, 3)), []byte{1, 2, 3}), "want list: entry 0: length is 3, but 0 bytes are left"},
		{"address longer than its entry", slices.Concat(field(1, field(1, announce(1, 2), []byte{1})), make([]byte, 9)), "want list: entry 0: address: length is 2, but 1 bytes are left"},
		{"cid longer than its address", slices.Concat(field(4, field(1, announce(4, 38), make([]byte, 37))), make([]byte, 9)), "presences: entry 0: address: cid: length is 38, but 37 bytes are left"},
		{"data longer than its delivery", slices.Concat(field(3, announce(2, 1<<20)), make([]byte, 1<<20)), "deliveries: entry 0: data: length is 1048576, but 0 bytes are left"},
		{"proof longer than its delivery", field(3, announce(4, 1)), "deliveries: entry 0: proof: length is 1, but 0 bytes are left"},
		{"price longer than its presence", field(4, announce(3, 32)), "presences: entry 0: price: length is 32, but 0 bytes are left"},
		{"unknown field longer than the message", announce(15, 1<<40), "length is 1099511627776, but 0 bytes are left"},
		{"length of 2^63", slices.Concat([]byte{0x1a}, binary.AppendUvarint(nil, 1<<63)), "deliveries: entry 0: length is 9223372036854775808, but 0 bytes are left"},
		{"tag not minimal", []byte{0xa8, 0x00, 0x01}, "varint is not minimal"},
		{"length not minimal", []byte{0x0a, 0x80, 0x00}, "want list: varint is not minimal"},
		{"value not minimal", []byte{0x28, 0x81, 0x00}, "varint is not minimal"},
		{"skipped value not minimal", []byte{0x78, 0x81, 0x00}, "varint is not minimal"},
		{"value of 65 bits", slices.Concat([]byte{0x28}, bytes.Repeat([]byte{0x80}, 9), []byte{2}), "varint has more than 64 bits"},
		{"value of 11 bytes", slices.Concat([]byte{0x28}, long(10)), "varint has more than 64 bits"},
		{"index of 65 bits", field(4, field(1, []byte{0x18}, bytes.Repeat([]byte{0x80}, 9), []byte{2})), "presences: entry 0: address: varint has more than 64 bits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := wants(wire.Entry{Address: wire.Block(cidA)})
			err := blockexc.Unmarshal(tc.in, blockexc.Limits{}, &m)
			wantError(t, err, errs.Malformed, "decode message: "+tc.err)
			if !m.Empty() {
				t.Errorf("message holds %v, want nothing", &m)
			}
			r := blockexc.NewReader(bytes.NewReader(append(frame(tc.in), frame()...)), blockexc.Limits{})
			err = r.Next(&m)
			wantError(t, err, errs.Malformed, "decode message: "+tc.err)
			if again := r.Next(&m); again != err {
				t.Errorf("afterwards the error is %v, want the same", again)
			}
		})
	}
}

// TestItemDropped: what is wrong in one item costs that item only.
func TestItemDropped(t *testing.T) {
	data := field(2, []byte("data"))
	long := make([]byte, blockexc.MaxCID+1)
	entry := func(parts ...[]byte) []byte { return field(1, field(1, parts...)) }
	delivery := func(parts ...[]byte) []byte { return field(3, parts...) }
	presence := func(parts ...[]byte) []byte { return field(4, parts...) }
	identity := cid.NewCidV1(cid.Raw, multihash.Multihash{0, 0})

	for _, tc := range []struct {
		name    string
		in      []byte
		section wire.Section
		addr    wire.Address
		err     string
	}{
		{"entry without address", entry(varint(4, 1)), wire.InWantList, wire.Address{}, "address is missing"},
		{"entry with an empty address", entry(field(1)), wire.InWantList, wire.Address{}, "address: cid is missing"},
		{"entry whose last address is empty", entry(plainAddress(1, cidA), field(1)), wire.InWantList, wire.Address{}, "address: cid is missing"},
		{"entry with an empty cid", entry(field(1, field(4))), wire.InWantList, wire.Address{}, "address: cid is missing"},
		{"leaf without tree", entry(field(1, varint(1, 1), field(4, cidA.Bytes()))), wire.InWantList, wire.Address{}, "address: tree cid is missing"},
		{"tree cid that is none", entry(field(1, varint(1, 1), field(2, []byte{1, 2}))), wire.InWantList, wire.Address{}, "address: tree cid is malformed: multihash too short. must be >= 2 bytes"},
		{"cid with bytes behind it", entry(field(1, field(4, cidA.Bytes(), []byte{0}))), wire.InWantList, wire.Address{}, "address: cid is malformed: trailing bytes in data buffer passed to cid Cast"},
		{"cid too long", entry(field(1, field(4, long))), wire.InWantList, wire.Address{}, "too large: address: cid is 101 bytes, want at most 100"},
		{"index 2^63", entry(leafAddress(1, treeT, 1<<63)), wire.InWantList, wire.Leaf(treeT, 1<<63), "address: index is 9223372036854775808, want at most 9223372036854775807"},
		{"want type 2", entry(plainAddress(1, cidA), varint(4, 2)), wire.InWantList, wire.Block(cidA), "want type 2, want 0 or 1"},
		{"want type 2^32", entry(plainAddress(1, cidA), varint(4, 1<<32)), wire.InWantList, wire.Block(cidA), "want type 4294967296, want 0 or 1"},

		{"delivery without anything", delivery(), wire.InDeliveries, wire.Address{}, "address is missing"},
		{"delivery without cid", delivery(data, plainAddress(3, cidA)), wire.InDeliveries, wire.Block(cidA), "cid is missing"},
		{"delivery without address", delivery(field(1, cidA.Bytes()), data), wire.InDeliveries, wire.Address{}, "address is missing"},
		{"delivery without data", delivery(field(1, cidA.Bytes()), leafAddress(3, treeT, 1)), wire.InDeliveries, wire.Leaf(treeT, 1), "data is missing"},
		{"delivery with a bad cid", delivery(field(1, []byte{1}), data, leafAddress(3, treeT, 1)), wire.InDeliveries, wire.Leaf(treeT, 1), "cid is malformed: varints malformed, could not reach the end"},
		{"delivery with a long cid", delivery(field(1, long), data, plainAddress(3, cidA)), wire.InDeliveries, wire.Block(cidA), "too large: cid is 101 bytes, want at most 100"},
		{"delivery with a long proof", delivery(field(1, cidA.Bytes()), data, leafAddress(3, treeT, 1), field(4, make([]byte, 8193))), wire.InDeliveries, wire.Leaf(treeT, 1), "too large: proof is 8193 bytes, want at most 8192"},

		{"presence without address", presence(varint(2, 1)), wire.InPresences, wire.Address{}, "address is missing"},
		{"presence type 2", presence(plainAddress(1, cidA), varint(2, 2)), wire.InPresences, wire.Block(cidA), "presence type 2, want 0 or 1"},
		{"price of 33 bytes", presence(plainAddress(1, cidA), field(3, make([]byte, 33))), wire.InPresences, wire.Block(cidA), "too large: price is 33 bytes, want at most 32"},

		{"account of 19 bytes", field(6, field(1, make([]byte, 19))), wire.InAccount, wire.Address{}, "address is 19 bytes, want 20"},
		{"account of 21 bytes", field(6, field(1, make([]byte, 20)), field(1, make([]byte, 21))), wire.InAccount, wire.Address{}, "address is 21 bytes, want 20"},
		{"payment too long", field(7, field(1, make([]byte, 64<<10+1))), wire.InPayment, wire.Address{}, "too large: update is 65537 bytes, want at most 65536"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// Around it, one good item of each section.
			var around []byte
			want := wire.Message{
				WantList:   wire.WantList{Entries: []wire.Entry{{Address: wire.Block(cidB)}}},
				Deliveries: []wire.Delivery{{Address: wire.Leaf(treeU, 0), Cid: identity, Data: []byte("data")}},
				Presences:  []wire.Presence{{Address: wire.Block(cidB)}},
			}
			in := tc.in
			if tc.section == wire.InWantList {
				in = field(1, in[2:], field(1, plainAddress(1, cidB)))
				if len(tc.in)-2 > 127 {
					t.Fatal("the test's entry is too long")
				}
			} else {
				around = field(1, field(1, plainAddress(1, cidB)))
			}
			in = slices.Concat(around, in,
				field(3, field(1, identity.Bytes()), data, leafAddress(3, treeU, 0)),
				field(4, plainAddress(1, cidB)))
			var got wire.Message
			if err := blockexc.Unmarshal(in, blockexc.Limits{}, &got); err != nil {
				t.Fatal(err)
			}
			sameMessage(t, &got, &want)
			wantRejected(t, &got, wire.Rejected{Section: tc.section, Err: errors.New(tc.err)}.Error())
			if len(got.Rejected) == 1 && got.Rejected[0].Address != tc.addr {
				t.Errorf("rejected address %v, want %v", got.Rejected[0].Address, tc.addr)
			}
		})
	}
}

// TestRejectedBounded: however many items are dropped, few are told of.
func TestRejectedBounded(t *testing.T) {
	for _, tc := range []struct{ items, told int }{{64, 64}, {65, 65}, {66, 65}, {5000, 65}} {
		t.Run(fmt.Sprint(tc.items), func(t *testing.T) {
			in := bytes.Repeat(field(4, varint(2, 1)), tc.items)
			var m wire.Message
			if err := blockexc.Unmarshal(in, blockexc.Limits{}, &m); err != nil {
				t.Fatal(err)
			}
			if len(m.Rejected) != tc.told {
				t.Fatalf("%d rejected, want %d", len(m.Rejected), tc.told)
			}
			text := "presences: entry 64: address is missing"
			switch {
			case tc.items == 64:
				text = "presences: entry 63: address is missing"
			case tc.items > 65:
				text += fmt.Sprintf(" (and %d more items were dropped)", tc.items-65)
			}
			if got := m.Rejected[len(m.Rejected)-1].Error(); got != text {
				t.Errorf("last is %q, want %q", got, text)
			}
		})
	}
}

// TestMaxEntries: items beyond the limit are dropped, section by section.
func TestMaxEntries(t *testing.T) {
	entry := field(1, plainAddress(1, cidA))
	in := slices.Concat(
		field(1, entry, entry, entry),
		field(1, entry, entry, entry), // counted from 0 again
		bytes.Repeat(field(3, field(1, cidA.Bytes()), field(2), plainAddress(3, cidA)), 3),
		bytes.Repeat(field(4, plainAddress(1, cidA)), 4),
	)
	var m wire.Message
	if err := blockexc.Unmarshal(in, blockexc.Limits{MaxEntries: 2}, &m); err != nil {
		t.Fatal(err)
	}
	if w, d, p := len(m.WantList.Entries), len(m.Deliveries), len(m.Presences); w != 2 || d != 2 || p != 2 {
		t.Errorf("%d entries, %d deliveries, %d presences; want 2 of each", w, d, p)
	}
	wantRejected(t, &m,
		"want list: entry 2: too large: beyond the limit of 2 entries",
		"want list: entry 2: too large: beyond the limit of 2 entries",
		"deliveries: entry 2: too large: beyond the limit of 2 entries",
		"presences: entry 2: too large: beyond the limit of 2 entries",
		"presences: entry 3: too large: beyond the limit of 2 entries")
}

// TestStream: frames follow each other; where the stream ends says how.
func TestStream(t *testing.T) {
	a := frame(field(1, field(1, plainAddress(1, cidA))))
	big := frame(field(3, field(1, cidB.Bytes()), field(2, make([]byte, 40_000)), leafAddress(3, treeT, 1), field(4, make([]byte, 200))))
	stream := slices.Concat(a, frame(), big, a)
	ends := map[int]int{0: 0, len(a): 1, len(a) + 1: 2, len(a) + 1 + len(big): 3, len(stream): 4} // offset: frames before

	for cut := 0; cut <= len(stream); cut++ {
		if cut > 300 && cut < len(stream)-300 && cut%997 != 0 {
			continue // amid the data
		}
		r := blockexc.NewReader(bytes.NewReader(stream[:cut]), blockexc.Limits{})
		var m wire.Message
		var err error
		n := 0
		for err = r.Next(&m); err == nil; err = r.Next(&m) {
			n++
		}
		want := io.ErrUnexpectedEOF
		frames, clean := ends[cut]
		if clean {
			want = io.EOF
			if n != frames {
				t.Errorf("cut at %d: %d frames, want %d", cut, n, frames)
			}
		}
		if err != want {
			t.Fatalf("cut at %d of %d: error %v after %d frames, want %v", cut, len(stream), err, n, want)
		}
		if !m.Empty() {
			t.Fatalf("cut at %d: message holds %v after the error, want nothing", cut, &m)
		}
	}

	cause := errs.Errorf(errs.Unreachable, errs.Peer, "read", "stream reset")
	r := blockexc.NewReader(io.MultiReader(bytes.NewReader(stream[:len(a)+40]), iotest.ErrReader(cause)), blockexc.Limits{})
	var m wire.Message
	for range 2 {
		if err := r.Next(&m); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Next(&m); err != error(cause) {
		t.Errorf("error of the stream is %#v, want it as it was", err)
	}
}

// TestFrameLength: the length before each frame is exact, and limited.
func TestFrameLength(t *testing.T) {
	limits := blockexc.Limits{MaxFrame: 100}
	for _, tc := range []struct {
		name string
		in   []byte
		kind errs.Kind
		err  string
	}{
		{"at the limit", frame(field(15, make([]byte, 98))), 0, ""},
		{"beyond the limit", frame(field(15, make([]byte, 99))), errs.TooLarge, "decode message: too large: message is 101 bytes, want at most 100"},
		{"far beyond", binary.AppendUvarint(nil, 1<<64-1), errs.TooLarge, "decode message: too large: message is 18446744073709551615 bytes, want at most 100"},
		{"not minimal", []byte{0x80, 0x00}, errs.Malformed, "decode message: frame length: varint is not minimal"},
		{"of 65 bits", append(bytes.Repeat([]byte{0x80}, 9), 2), errs.Malformed, "decode message: frame length: varint has more than 64 bits"},
		{"of 11 bytes", bytes.Repeat([]byte{0x80}, 11), errs.Malformed, "decode message: frame length: varint has more than 64 bits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var m wire.Message
			err := blockexc.NewReader(bytes.NewReader(tc.in), limits).Next(&m)
			if tc.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, tc.kind, tc.err)
		})
	}
	var m wire.Message
	wantError(t, blockexc.Unmarshal(make([]byte, 101), limits, &m), errs.TooLarge, "decode message: too large: message is 101 bytes, want at most 100")
}

// TestOwnership: what was read stays as it is, and cannot be written into what
// lies beside it.
func TestOwnership(t *testing.T) {
	one := func(b byte) []byte {
		return frame(field(3, field(1, cidA.Bytes()), field(2, bytes.Repeat([]byte{b}, 1000)), leafAddress(3, treeT, 1), field(4, bytes.Repeat([]byte{b + 1}, 300))),
			field(6, field(1, bytes.Repeat([]byte{b}, 20))), field(7, field(1, bytes.Repeat([]byte{b}, 20))))
	}
	r := blockexc.NewReader(bytes.NewReader(slices.Concat(one('a'), one('c'))), blockexc.Limits{})
	var m wire.Message
	if err := r.Next(&m); err != nil {
		t.Fatal(err)
	}
	d, account, payment := m.Deliveries[0], m.Account, m.Payment
	if cap(d.Data) != len(d.Data) || cap(d.Proof) != len(d.Proof) {
		t.Errorf("room behind data and proof: %d, %d bytes, want none", cap(d.Data)-len(d.Data), cap(d.Proof)-len(d.Proof))
	}
	first := &m.Deliveries[0]
	if err := r.Next(&m); err != nil {
		t.Fatal(err)
	}
	if first != &m.Deliveries[0] {
		t.Error("the list of deliveries is new memory, want it used again")
	}
	for name, b := range map[string][]byte{"data": d.Data, "account": account, "payment": payment} {
		if strings.Trim(string(b), "a") != "" {
			t.Errorf("%s has changed to %q", name, b)
		}
	}
	if strings.Trim(string(d.Proof), "b") != "" {
		t.Errorf("proof has changed to %q", d.Proof)
	}
}

// TestSharedCids: equal CIDs where they are to be expected share memory.
func TestSharedCids(t *testing.T) {
	same := func(a, b cid.Cid) bool {
		return a == b && unsafe.StringData(a.KeyString()) == unsafe.StringData(b.KeyString())
	}
	plain := field(3, field(1, cidA.Bytes()), field(2), plainAddress(3, cidA))
	leaf := field(3, field(1, cidB.Bytes()), field(2), leafAddress(3, treeT, 1))
	entry := field(1, leafAddress(1, treeT, 2))
	r := blockexc.NewReader(bytes.NewReader(slices.Concat(frame(plain, leaf, field(1, entry, entry)), frame(plain, leaf))), blockexc.Limits{})
	var m wire.Message
	if err := r.Next(&m); err != nil {
		t.Fatal(err)
	}
	if d := m.Deliveries[0]; !same(d.Cid, d.Address.Root) {
		t.Error("cid and address of a plain delivery have memory of their own")
	}
	tree := m.Deliveries[1].Address.Root
	for _, e := range m.WantList.Entries {
		if !same(e.Address.Root, tree) {
			t.Error("equal trees in a message have memory of their own")
		}
	}
	known := cid.MustParse(cidA.String())
	var asked []cid.Cid
	r.Intern = func(b []byte) (cid.Cid, bool) {
		c, err := cid.Cast(b)
		if err != nil {
			t.Error(err)
		}
		asked = append(asked, c)
		return known, c == known
	}
	if err := r.Next(&m); err != nil {
		t.Fatal(err)
	}
	if !same(m.Deliveries[0].Cid, known) || m.Deliveries[1].Cid != cidB {
		t.Errorf("cids are %v, %v, want the known one and %v", m.Deliveries[0].Cid, m.Deliveries[1].Cid, cidB)
	}
	if !same(m.Deliveries[1].Address.Root, tree) {
		t.Error("equal trees of messages that follow each other have memory of their own")
	}
	if !slices.Equal(asked, []cid.Cid{cidA, cidB}) {
		t.Errorf("asked for %v, want %v and %v", asked, cidA, cidB)
	}
}
