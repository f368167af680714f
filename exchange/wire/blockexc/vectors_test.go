package blockexc_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// vectors is testdata/messages.json: messages as the Codex node encodes them,
// with their fields, and unusual bytes with what its decoder says to them.
type vectors struct {
	Messages []struct {
		Name    string
		Encoded hexBytes
		Prefix  hexBytes `json:"framedPrefix"`
		Fields  struct {
			WantList struct {
				Entries []struct {
					Address      vectorAddress
					Priority     int32
					Cancel       bool
					WantType     wire.WantType
					SendDontHave bool
				}
				Full bool
			}
			Payload []struct {
				Cid     vectorCid
				Data    hexBytes
				Address vectorAddress
				Proof   *struct{ Encoded hexBytes }
			}
			BlockPresences []struct {
				Address vectorAddress
				Type    wire.PresenceType
				Price   hexBytes
			}
			PendingBytes uint64
			Account      struct{ Address hexBytes }
			Payment      struct{ Update hexBytes }
		}
	}
	DecodeTolerance []struct {
		Name  string
		Bytes hexBytes
	}
}

type vectorCid struct{ Bytes hexBytes }

type vectorAddress struct {
	Leaf    bool
	TreeCid vectorCid
	Index   uint64
	Cid     vectorCid
}

type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

func (c vectorCid) cid() cid.Cid {
	parsed, err := cid.Cast(c.Bytes)
	if err != nil {
		panic(err)
	}
	return parsed
}

func (a vectorAddress) address() wire.Address {
	if a.Leaf {
		return wire.Leaf(a.TreeCid.cid(), a.Index)
	}
	return wire.Block(a.Cid.cid())
}

func readVectors(tb testing.TB) vectors {
	tb.Helper()
	b, err := os.ReadFile("testdata/messages.json")
	if err != nil {
		tb.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		tb.Fatal(err)
	}
	if len(v.Messages) == 0 || len(v.DecodeTolerance) == 0 {
		tb.Fatal("testdata/messages.json has no vectors")
	}
	return v
}

// TestVectors: messages of the Codex node are read to their fields, and written
// to the same bytes.
func TestVectors(t *testing.T) {
	for _, v := range readVectors(t).Messages {
		t.Run(v.Name, func(t *testing.T) {
			var want wire.Message
			want.WantList.Full = v.Fields.WantList.Full
			for _, e := range v.Fields.WantList.Entries {
				want.WantList.Entries = append(want.WantList.Entries, wire.Entry{
					Address: e.Address.address(), Priority: e.Priority, Cancel: e.Cancel,
					Type: e.WantType, SendDontHave: e.SendDontHave,
				})
			}
			for _, p := range v.Fields.Payload {
				d := wire.Delivery{Address: p.Address.address(), Cid: p.Cid.cid(), Data: p.Data}
				if p.Proof != nil {
					d.Proof = p.Proof.Encoded
				}
				want.Deliveries = append(want.Deliveries, d)
			}
			for _, p := range v.Fields.BlockPresences {
				price, ok := wire.PriceFrom(p.Price)
				if !ok {
					t.Fatalf("vector has a price of %d bytes", len(p.Price))
				}
				want.Presences = append(want.Presences, wire.Presence{Address: p.Address.address(), Type: p.Type, Price: price})
			}
			want.PendingBytes = v.Fields.PendingBytes
			if len(v.Fields.Account.Address) > 0 {
				want.Account = v.Fields.Account.Address
			}
			if len(v.Fields.Payment.Update) > 0 {
				want.Payment = v.Fields.Payment.Update
			}

			var got wire.Message
			if err := blockexc.Unmarshal(v.Encoded, blockexc.Limits{}, &got); err != nil {
				t.Fatal(err)
			}
			sameMessage(t, &got, &want)

			frame := slices.Concat(v.Prefix, v.Encoded)
			if err := blockexc.NewReader(bytes.NewReader(frame), blockexc.Limits{}).Next(&got); err != nil {
				t.Fatalf("as a frame: %v", err)
			}
			sameMessage(t, &got, &want)

			encoded, err := blockexc.Append(nil, &want)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(encoded, v.Encoded) {
				t.Errorf("encoded\n %x, want\n %x", encoded, []byte(v.Encoded))
			}
			var out bytes.Buffer
			if err := blockexc.NewWriter(&out, blockexc.Limits{}).Write(&want); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), frame) {
				t.Errorf("frame\n %x, want\n %x", out.Bytes(), frame)
			}
		})
	}
}

// sameMessage compares messages apart from what was rejected. Empty and nil
// lists are the same, empty and nil byte slices are not.
func sameMessage(t *testing.T, got, want *wire.Message) {
	t.Helper()
	plain := func(m wire.Message) wire.Message {
		m.WantList.Entries = append([]wire.Entry{}, m.WantList.Entries...)
		m.Deliveries = append([]wire.Delivery{}, m.Deliveries...)
		m.Presences = append([]wire.Presence{}, m.Presences...)
		m.Rejected = nil
		return m
	}
	if g, w := plain(*got), plain(*want); !reflect.DeepEqual(g, w) {
		t.Errorf("message is\n %+v, want\n %+v", g, w)
	}
}

// TestGoldenFrames: whole frames with their length, around the block "hello".
func TestGoldenFrames(t *testing.T) {
	block := wire.Block(mustCid("01829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"))
	tree := mustCid("01839a0312200760ded886943ed474b6f30a7999ce7d5c53ea9ca5f1dc2003237af4bbd2b7aa")
	single := mustCid("01839a03122024a36dff5424845876451e3261de001745687bc3c9676a27157842270249f244")
	wants := func(full bool, e wire.Entry) wire.Message {
		return wire.Message{WantList: wire.WantList{Entries: []wire.Entry{e}, Full: full}}
	}
	for _, tc := range []struct {
		name  string
		m     wire.Message
		frame string
	}{
		{"empty", wire.Message{}, "0e0a021000280032020a003a020a00"},
		{"want-have, full list", wants(true, wire.Entry{Address: block, Type: wire.WantHave}), "440a380a340a2a0800222601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982410001800200128001001280032020a003a020a00"},
		{"want-block, delta", wants(false, wire.Entry{Address: block, Type: wire.WantBlock}), "440a380a340a2a0800222601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982410001800200028001000280032020a003a020a00"},
		{"cancel", wants(false, wire.Entry{Address: block, Type: wire.WantHave, Cancel: true}), "440a380a340a2a0800222601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982410001801200128001000280032020a003a020a00"},
		{"presence", wire.Message{Presences: []wire.Presence{{Address: block}}}, "600a02100022500a2a0800222601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982410001a200000000000000000000000000000000000000000000000000000000000000000280032020a003a020a00"},
		{"delivery by cid", wire.Message{Deliveries: []wire.Delivery{{Address: block, Cid: block.Root, Data: []byte("hello")}}}, "6b0a0210001a5b0a2601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824120568656c6c6f1a2a0800222601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824280032020a003a020a00"},
		{"want-have of leaf 2, full list", wants(true, wire.Entry{Address: wire.Leaf(tree, 2), Type: wire.WantHave}), "460a3a0a360a2c0801122601839a0312200760ded886943ed474b6f30a7999ce7d5c53ea9ca5f1dc2003237af4bbd2b7aa180210001800200128001001280032020a003a020a00"},
		{
			"delivery of leaf 0 with proof",
			wire.Message{Deliveries: []wire.Delivery{{
				Address: wire.Leaf(single, 0), Cid: block.Root, Data: []byte("hello"),
				Proof: unhex("08121000180122220a200000000000000000000000000000000000000000000000000000000000000000"),
			}}},
			"9a010a0210001a89010a2601829a0312202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824120568656c6c6f1a2c0801122601839a03122024a36dff5424845876451e3261de001745687bc3c9676a27157842270249f2441800222a08121000180122220a200000000000000000000000000000000000000000000000000000000000000000280032020a003a020a00",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got wire.Message
			if err := blockexc.NewReader(bytes.NewReader(unhex(tc.frame)), blockexc.Limits{}).Next(&got); err != nil {
				t.Fatal(err)
			}
			sameMessage(t, &got, &tc.m)
			var out bytes.Buffer
			if err := blockexc.NewWriter(&out, blockexc.Limits{}).Write(&tc.m); err != nil {
				t.Fatal(err)
			}
			if hex.EncodeToString(out.Bytes()) != tc.frame {
				t.Errorf("frame is\n %x, want\n %s", out.Bytes(), tc.frame)
			}
		})
	}
}

// TestTolerance: what this decoder does with the unusual bytes of the vectors.
// Some of them end the Codex node, some make it drop the whole message.
func TestTolerance(t *testing.T) {
	hello := wire.Block(mustCid("01829a031220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"))
	raw := wire.Block(mustCid("01551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"))
	empty := wire.Block(mustCid("01829a031220e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))
	tree := mustCid("01839a031220aebd83d64471fba7f518bd01c1caa167b1345096e5b5ff88f1c2dec17d816478")
	wants := func(e wire.Entry) wire.Message {
		return wire.Message{WantList: wire.WantList{Entries: []wire.Entry{e}}}
	}
	deliver := func(d wire.Delivery) wire.Message { return wire.Message{Deliveries: []wire.Delivery{d}} }

	cases := map[string]struct {
		want     wire.Message
		rejected string // Rejected[0], if one item is dropped
		err      string // if the message is
	}{
		"zero bytes":                                                {},
		"empty wantlist submessage only (0a00)":                     {},
		"unknown field 15 varint":                                   {},
		"entry, leaf address, index omitted (0)":                    {want: wants(wire.Entry{Address: wire.Leaf(tree, 0)})},
		"entry with raw-codec cid":                                  {want: wants(wire.Entry{Address: raw})},
		"entry with cancel=2 (bool not 0/1)":                        {want: wants(wire.Entry{Address: hello, Cancel: true})},
		"presence minimal proto3 (have, no price)":                  {want: wire.Message{Presences: []wire.Presence{{Address: hello}}}},
		"entry, proto3-minimal plain cid (only field 4 in address)": {want: wants(wire.Entry{Address: hello})},
		"entry, leaf address with field 4 also set":                 {want: wants(wire.Entry{Address: wire.Leaf(tree, 3)})},
		// The last list counts, and it is not merged with the first.
		"two wantlist fields (protobuf merge / last wins)": {want: wire.Message{WantList: wire.WantList{Full: true}}},

		// The Codex node keeps an address of nothing.
		"entry without address at all": {rejected: "want list: entry 0: address is missing"},
		// It drops the whole message.
		"entry with bad cid bytes": {rejected: "want list: entry 0: address: cid is malformed: length greater than remaining number of bytes in buffer"},

		// The Codex node ends. A priority is a number, in five bytes too.
		"entry with priority 2^31":            {want: wants(wire.Entry{Address: hello, Priority: -1 << 31})},
		"entry with wantType 2 (out of enum)": {rejected: "want list: entry 0: want type 2, want 0 or 1"},
		"entry leaf index 2^63":               {rejected: "want list: entry 0: address: index is 9223372036854775808, want at most 9223372036854775807"},
		"presence with type 2 (out of enum)":  {rejected: "presences: entry 0: presence type 2, want 0 or 1"},
		"delivery without data field":         {rejected: "deliveries: entry 0: data is missing"},

		// Hashes and proofs are for the receiver to check, one delivery at a time;
		// the Codex node drops the whole message here.
		"delivery whose data does not match its cid": {want: deliver(wire.Delivery{Address: hello, Cid: hello.Root, Data: []byte("tampered")})},
		"delivery leaf, proof field empty bytes":     {want: deliver(wire.Delivery{Address: wire.Leaf(tree, 0), Cid: hello.Root, Data: []byte("hello world"), Proof: []byte{}})},
		"delivery leaf, proof mcodec 0 (identity)": {want: deliver(wire.Delivery{
			Address: wire.Leaf(tree, 0), Cid: hello.Root, Data: []byte("hello world"),
			Proof: unhex("08001000180122220a200000000000000000000000000000000000000000000000000000000000000000"),
		})},
		"delivery of the empty block (data field present, 0 bytes)": {want: deliver(wire.Delivery{Address: empty, Cid: empty.Root, Data: []byte{}})},

		"group wire type": {err: "decode message: field 1: wire type is 3, want 0, 1, 2 or 5"},
	}

	seen := 0
	for _, v := range readVectors(t).DecodeTolerance {
		t.Run(v.Name, func(t *testing.T) {
			tc, ok := cases[v.Name]
			if !ok {
				t.Fatal("there is no expectation for this vector")
			}
			seen++
			var got wire.Message
			err := blockexc.Unmarshal(v.Bytes, blockexc.Limits{}, &got)
			if tc.err != "" {
				wantError(t, err, errs.Malformed, tc.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sameMessage(t, &got, &tc.want)
			wantRejected(t, &got, tc.rejected)
		})
	}
	if seen != len(cases) {
		t.Errorf("%d of %d expectations have a vector", seen, len(cases))
	}
}

// wantRejected checks the texts of what was dropped.
func wantRejected(t *testing.T, m *wire.Message, want ...string) {
	t.Helper()
	var got []string
	for _, r := range m.Rejected {
		got = append(got, r.Error())
		if e, ok := r.Err.(*errs.Error); !ok || e.Fault != errs.Peer {
			t.Errorf("rejected %v: %T, want an *errs.Error that blames the peer", r, r.Err)
		}
	}
	want = slices.DeleteFunc(want, func(s string) bool { return s == "" })
	if !slices.Equal(got, want) {
		t.Errorf("rejected\n %s, want\n %s", strings.Join(got, "\n "), strings.Join(want, "\n "))
	}
}

// wantError checks an error of kind and text that blames the peer.
func wantError(t *testing.T, err error, kind errs.Kind, text string) {
	t.Helper()
	e, ok := err.(*errs.Error)
	if !ok || e.Kind != kind || e.Fault != errs.Peer || e.Error() != text {
		t.Errorf("error is %q (%T), want %q (%v, the peer's fault)", err, err, text, kind)
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func mustCid(s string) cid.Cid {
	c, err := cid.Cast(unhex(s))
	if err != nil {
		panic(err)
	}
	return c
}
