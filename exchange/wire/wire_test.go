package wire_test

import (
	"bytes"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

func newCid(codec uint64, content string) cid.Cid {
	c, err := cid.Prefix{Version: 1, Codec: codec, MhType: multihash.SHA2_256, MhLength: -1}.Sum([]byte(content))
	if err != nil {
		panic(err)
	}
	return c
}

var (
	block = newCid(0xCD02, "hello world")
	raw   = newCid(cid.Raw, "hello world")
	tree  = newCid(0xCD03, "hello world")
)

func TestAddress(t *testing.T) {
	v0 := cid.NewCidV0(block.Hash())
	for _, tc := range []struct {
		address wire.Address
		want    string
	}{
		{wire.Block(block), "zDxWB8EDB2LXg6kdQfFTX4y3biwJbjc8q4JM1kaziEBHzTH7BmN8"},
		{wire.Leaf(tree, 0), "zDzSvJTfCsmCuEaD7Zq5X2HeNe3vKPJyhqwR7zjgcDqJNwuBADWY/0"},
		{wire.Leaf(tree, 1<<64-1), "zDzSvJTfCsmCuEaD7Zq5X2HeNe3vKPJyhqwR7zjgcDqJNwuBADWY/18446744073709551615"},
		{wire.Block(raw), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"},
		{wire.Block(v0), "QmaozNR7DZHQK1ZcU9p7QdrshMvXqWK6gpu5rmrkPdT3L4"},
		{wire.Address{}, "(no address)"},
	} {
		if got := tc.address.String(); got != tc.want {
			t.Errorf("text is %s, want %s", got, tc.want)
		}
		if got, want := tc.address.Defined(), tc.address != (wire.Address{}); got != want {
			t.Errorf("%v: defined is %v, want %v", tc.address, got, want)
		}
	}
	if got := wire.CidString(cid.Undef); got != "(no cid)" {
		t.Errorf("undefined cid is %q", got)
	}

	// Addresses are map keys; a leaf, another leaf and a block are different.
	m := map[wire.Address]int{wire.Block(tree): 1, wire.Leaf(tree, 0): 2, wire.Leaf(tree, 1): 3}
	same, err := cid.Cast(tree.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(m) != 3 || m[wire.Block(same)] != 1 || m[wire.Leaf(same, 0)] != 2 || m[wire.Leaf(same, 1)] != 3 {
		t.Errorf("map by address is %v", m)
	}
}

func TestPrice(t *testing.T) {
	if p, ok := wire.PriceFrom(nil); !ok || !p.IsZero() || p.String() != "0" {
		t.Errorf("price of no bytes is %v, %v; want 0", p, ok)
	}
	if _, ok := wire.PriceFrom(make([]byte, 33)); ok {
		t.Error("price of 33 bytes is taken")
	}
	top := bytes.Repeat([]byte{255}, 32)
	p, ok := wire.PriceFrom(top)
	if want := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1)); !ok || p.Big().Cmp(want) != 0 {
		t.Errorf("largest price is %v, %v; want %v", p, ok, want)
	}
	short, _ := wire.PriceFrom([]byte{1, 0})
	padded, _ := wire.PriceFrom([]byte{0, 0, 0, 1, 0})
	if short != padded || short.String() != "256" || short.IsZero() {
		t.Errorf("price 01 00 is %v, 00 00 00 01 00 is %v; want 256", short, padded)
	}
	if short.Compare(p) != -1 || p.Compare(short) != 1 || short.Compare(padded) != 0 {
		t.Errorf("%v against %v compares as %d", short, p, short.Compare(p))
	}
}

func TestTexts(t *testing.T) {
	one, _ := wire.PriceFrom([]byte{1})
	a := wire.Block(raw)
	for _, tc := range []struct {
		value interface{ String() string }
		want  string
	}{
		{wire.WantBlock, "want-block"},
		{wire.WantHave, "want-have"},
		{wire.Have, "HAVE"},
		{wire.DontHave, "DONT_HAVE"},
		{wire.InWantList, "want list"},
		{wire.InDeliveries, "deliveries"},
		{wire.InPresences, "presences"},
		{wire.InAccount, "account"},
		{wire.InPayment, "payment"},
		{wire.Entry{Address: a}, "want-block " + a.String()},
		{wire.Entry{Address: a, Type: wire.WantHave, SendDontHave: true}, "want-have+dh " + a.String()},
		{wire.Entry{Address: a, Cancel: true, Type: wire.WantHave, SendDontHave: true}, "cancel " + a.String()},
		{wire.Presence{Address: a}, "HAVE " + a.String()},
		{wire.Presence{Address: a, Type: wire.DontHave, Price: one}, "DONT_HAVE " + a.String() + " at 1"},
		{wire.Delivery{Address: a, Cid: raw, Data: []byte("abc")}, a.String() + " 3 bytes"},
		{wire.Delivery{Address: a, Cid: raw, Ref: 300}, a.String() + " 300 bytes by reference"},
		{wire.Delivery{Address: wire.Leaf(tree, 7), Cid: raw, Proof: []byte{}}, wire.Leaf(tree, 7).String() + " 0 bytes cid " + raw.String() + " proof 0 bytes"},
	} {
		if got := tc.value.String(); got != tc.want {
			t.Errorf("text is %q, want %q", got, tc.want)
		}
	}
}

func TestRejected(t *testing.T) {
	cause := errs.Errorf(errs.TooLarge, errs.Peer, "", "price is 33 bytes, want at most 32")
	r := wire.Rejected{Section: wire.InPresences, Index: 7, Err: cause}
	if got, want := r.Error(), "presences: entry 7: too large: price is 33 bytes, want at most 32"; got != want {
		t.Errorf("text is %q, want %q", got, want)
	}
	if !errors.Is(r, errs.TooLarge) {
		t.Error("it is not of its cause's kind")
	}
	r = wire.Rejected{Section: wire.InPayment, Err: errors.New("is late")}
	if got, want := r.Error(), "payment: is late"; got != want {
		t.Errorf("text is %q, want %q", got, want)
	}
}

// full is a message with every field set.
func full() *wire.Message {
	return &wire.Message{
		WantList:     wire.WantList{Entries: []wire.Entry{{Address: wire.Block(raw)}}, Full: true},
		Deliveries:   []wire.Delivery{{Address: wire.Block(raw), Cid: raw, Data: []byte("a")}},
		Presences:    []wire.Presence{{Address: wire.Block(raw)}},
		PendingBytes: 5,
		Account:      make([]byte, wire.AccountSize),
		Payment:      []byte("{}"),
		Rejected:     []wire.Rejected{{Err: errors.New("x")}},
	}
}

// TestEmpty sets the fields of a message one at a time.
func TestEmpty(t *testing.T) {
	if !new(wire.Message).Empty() {
		t.Error("the zero message is not empty")
	}
	m := reflect.ValueOf(full()).Elem()
	for i := range m.NumField() {
		name := m.Type().Field(i).Name
		if m.Field(i).IsZero() {
			t.Fatalf("the test's message lacks %s", name)
		}
		var one wire.Message
		reflect.ValueOf(&one).Elem().Field(i).Set(m.Field(i))
		// What was rejected is said about a message, not in it.
		if got, want := one.Empty(), name == "Rejected"; got != want {
			t.Errorf("message with %s only: empty is %v, want %v", name, got, want)
		}
	}
	if m := (wire.Message{WantList: wire.WantList{Full: true}}); m.Empty() {
		t.Error("a full want list of nothing says that nothing is wanted; that is not empty")
	}
}

func TestReset(t *testing.T) {
	m := full()
	entries, deliveries, presences, rejected := m.WantList.Entries, m.Deliveries, m.Presences, m.Rejected
	m.Reset()
	if !m.Empty() || len(m.Rejected) > 0 {
		t.Errorf("after Reset it holds %v", m)
	}
	if cap(m.WantList.Entries) == 0 || cap(m.Deliveries) == 0 || cap(m.Presences) == 0 || cap(m.Rejected) == 0 {
		t.Error("the memory of the lists is gone")
	}
	if entries[0].Address.Defined() || deliveries[0].Data != nil || presences[0].Address.Defined() || rejected[0].Err != nil {
		t.Error("the memory of the lists still holds what was in them")
	}
}

func TestMessageString(t *testing.T) {
	m := full()
	a := raw.String()
	want := "{want list full: want-block " + a + "; blocks: " + a + " 1 bytes; presences: HAVE " + a +
		"; pending 5 bytes; account 0x" + strings.Repeat("00", 20) + "; payment of 2 bytes; rejected: want list: entry 0: x}"
	if got := m.String(); got != want {
		t.Errorf("text is\n %s, want\n %s", got, want)
	}
	for _, m := range []*wire.Message{nil, {}} {
		if got := m.String(); got != "{}" {
			t.Errorf("an empty message is %q", got)
		}
	}
	if got, want := (&wire.Message{WantList: wire.WantList{Full: true}}).String(), "{want list full}"; got != want {
		t.Errorf("text is %q, want %q", got, want)
	}

	long := &wire.Message{Payment: make([]byte, 1<<20)}
	for i := range 1000 {
		long.WantList.Entries = append(long.WantList.Entries, wire.Entry{Address: wire.Leaf(tree, uint64(i))})
		long.Deliveries = append(long.Deliveries, wire.Delivery{Address: wire.Leaf(tree, uint64(i)), Cid: block, Data: make([]byte, 10)})
		long.Presences = append(long.Presences, wire.Presence{Address: wire.Leaf(tree, uint64(i))})
	}
	got := long.String()
	if strings.Contains(got, "\n") || len(got) > 5000 || strings.Count(got, ", +992") != 3 || !strings.Contains(got, "/7,") || strings.Contains(got, "/8") {
		t.Errorf("text of 1000 items a section is %d bytes, want 8 items each and +992:\n %s", len(got), got)
	}
}
