package blockexc_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// writes remembers each Write by its own slice.
type writes [][]byte

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, p[:len(p):len(p)])
	return len(p), nil
}

// TestBlocksAreNotCopied: a block goes to the stream from where it is; small
// ones do not cost a write each.
func TestBlocksAreNotCopied(t *testing.T) {
	m := deliveries(5, 64<<10, depth20)
	var out writes
	if err := blockexc.NewWriter(&out, blockexc.Limits{}).Write(m); err != nil {
		t.Fatal(err)
	}
	i := 0
	for _, p := range out {
		if i < len(m.Deliveries) && &p[0] == &m.Deliveries[i].Data[0] && len(p) == 64<<10 {
			i++
		}
	}
	if i != len(m.Deliveries) {
		t.Errorf("%d of %d blocks were written from their own memory", i, len(m.Deliveries))
	}
	if want := 2*len(m.Deliveries) + 1; len(out) != want {
		t.Errorf("%d writes, want %d: headers and blocks in turn", len(out), want)
	}

	m = deliveries(100, 1<<10, depth20)
	var small writes
	if err := blockexc.NewWriter(&small, blockexc.Limits{}).Write(m); err != nil {
		t.Fatal(err)
	}
	if most := blockexc.Size(m)/(16<<10) + 1; len(small) > most {
		t.Errorf("%d writes for 100 small blocks, want at most %d", len(small), most)
	}
	for _, p := range small {
		if len(p) > 24<<10 {
			t.Errorf("write of %d bytes, want at most little more than 16 KiB", len(p))
		}
	}
}

// TestSize: sizes are those of the encoded bytes.
func TestSize(t *testing.T) {
	v0 := cid.NewCidV0(multihash.Multihash(cidA.Hash()))
	m := &wire.Message{PendingBytes: 1 << 40, Account: make([]byte, 20), Payment: make([]byte, 300)}
	for _, d := range []struct {
		address wire.Address
		data    int
		proof   []byte
	}{
		{wire.Block(cidA), 0, nil},
		{wire.Block(v0), 127, nil},
		{wire.Block(cidA), 128, []byte("has no place here")},
		{wire.Leaf(treeT, 0), 16383, nil},
		{wire.Leaf(treeT, 127), 16384, make([]byte, 1)},
		{wire.Leaf(treeT, 128), 1 << 20, make([]byte, 127)},
		{wire.Leaf(treeT, blockexc.MaxIndex), 5, make([]byte, depth20)},
	} {
		before := blockexc.Size(m)
		m.Deliveries = append(m.Deliveries, wire.Delivery{Address: d.address, Cid: cidA, Data: make([]byte, d.data), Proof: d.proof})
		if got, want := blockexc.DeliverySize(d.address, cidA, d.data, len(d.proof)), blockexc.Size(m)-before; got != want {
			t.Errorf("delivery of %d bytes to %v: size %d, but it adds %d", d.data, d.address, got, want)
		}
	}
	m.WantList.Entries = []wire.Entry{{Address: wire.Block(v0), Priority: 300}, {Address: wire.Leaf(treeT, 1<<20), Priority: -5}}
	m.Presences = []wire.Presence{{Address: wire.Block(v0)}, {Address: wire.Leaf(treeT, 1<<20), Price: price(1)}}
	b, err := blockexc.Append([]byte("before"), m)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := blockexc.Size(m), len(b)-len("before"); got != want {
		t.Errorf("size is %d, but %d bytes were written", got, want)
	}
	if !bytes.HasPrefix(b, []byte("before")) {
		t.Error("Append wrote over what was there")
	}
}

// TestRefused: what would harm the reader is not written, not even in part.
func TestRefused(t *testing.T) {
	long := cid.NewCidV1(cid.Raw, multihash.Multihash(append([]byte{0, 100}, make([]byte, 100)...)))
	a := wire.Block(cidA)
	for _, tc := range []struct {
		name string
		m    wire.Message
		kind errs.Kind
		err  string
	}{
		{"no address", wants(wire.Entry{Address: a}, wire.Entry{}), errs.Invalid, "want list: entry 1: address: cid is undefined"},
		{"long cid", wants(wire.Entry{Address: wire.Block(long)}), errs.Invalid, "want list: entry 0: address: cid is 104 bytes, want at most 100"},
		{"index 2^63", wants(wire.Entry{Address: wire.Leaf(treeT, 1<<63)}), errs.Invalid, "want list: entry 0: address: index is 9223372036854775808, want at most 9223372036854775807"},
		{"want type", wants(wire.Entry{Address: a, Type: 2}), errs.Invalid, "want list: entry 0: want type 2, want 0 or 1"},
		{"delivery without cid", wire.Message{Deliveries: []wire.Delivery{{Address: a}}}, errs.Invalid, "deliveries: entry 0: cid is undefined"},
		{"delivery without address", wire.Message{Deliveries: []wire.Delivery{{Cid: cidA}}}, errs.Invalid, "deliveries: entry 0: address: cid is undefined"},
		{"reference of negative length", wire.Message{Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Ref: -1}}}, errs.Invalid, "deliveries: entry 0: reference to -1 bytes, want 0 or more"},
		{"bytes and a reference", wire.Message{Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Data: []byte("abc"), Ref: 3}}}, errs.Invalid, "deliveries: entry 0: 3 bytes and a reference to 3, want one of them"},
		{"reference to a stream that cannot", wire.Message{Deliveries: []wire.Delivery{{Address: a, Cid: cidA}, {Address: a, Cid: cidA, Ref: 3}}}, errs.Invalid, "deliveries: entry 1: reference to 3 bytes, want the bytes: nothing here puts them in"},
		{"presence type", wire.Message{Presences: []wire.Presence{{Address: a, Type: 255}}}, errs.Invalid, "presences: entry 0: presence type 255, want 0 or 1"},
		{"presence without address", wire.Message{Presences: []wire.Presence{{}}}, errs.Invalid, "presences: entry 0: address: cid is undefined"},
		{"account of 19 bytes", wire.Message{Account: make([]byte, 19)}, errs.Invalid, "account is 19 bytes, want 20"},
		{"too long", wire.Message{Deliveries: []wire.Delivery{{Address: a, Cid: cidA, Data: make([]byte, 1000)}}}, errs.TooLarge, "too large: message is 1104 bytes, want at most 1000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			w := blockexc.NewWriter(&out, blockexc.Limits{MaxFrame: 1000})
			err := w.Write(&tc.m)
			e, ok := err.(*errs.Error)
			if !ok || e.Kind != tc.kind || e.Fault != errs.Caller || e.Error() != "encode message: "+tc.err {
				t.Errorf("error is %q, want %q (%v, the caller's fault)", err, "encode message: "+tc.err, tc.kind)
			}
			if out.Len() > 0 {
				t.Errorf("%d bytes were written", out.Len())
			}
			if tc.kind == errs.Invalid {
				if b, err := blockexc.Append([]byte("x"), &tc.m); err == nil || string(b) != "x" {
					t.Errorf("Append gives %q, %v; want an error and what was there", b, err)
				}
			}
			if err := w.Write(&wire.Message{}); err != nil || out.Len() != 15 {
				t.Errorf("the next message: %v, %d bytes", err, out.Len())
			}
		})
	}
}

// TestNegativePriority: a Codex node that reads a negative priority ends, so 0
// is written instead.
func TestNegativePriority(t *testing.T) {
	a := wire.Block(cidA)
	m := wants(wire.Entry{Address: a, Priority: -1}, wire.Entry{Address: a, Priority: -1 << 31}, wire.Entry{Address: a, Priority: 1<<31 - 1})
	b, err := blockexc.Append(nil, &m)
	if err != nil {
		t.Fatal(err)
	}
	var got wire.Message
	if err := blockexc.Unmarshal(b, blockexc.Limits{}, &got); err != nil {
		t.Fatal(err)
	}
	want := wants(wire.Entry{Address: a}, wire.Entry{Address: a}, wire.Entry{Address: a, Priority: 1<<31 - 1})
	sameMessage(t, &got, &want)
}

// failing is a stream that fails after so many bytes.
type failing struct {
	left int
	err  error
}

func (f *failing) Write(p []byte) (int, error) {
	if len(p) > f.left {
		return f.left, f.err
	}
	f.left -= len(p)
	return len(p), nil
}

// TestStreamFails: the error of the stream comes back as it was, wherever it
// happened, and the Writer is of no more use.
func TestStreamFails(t *testing.T) {
	m := deliveries(3, 8<<10, depth20)
	cause := errors.New("stream reset")
	for _, after := range []int{0, 100, 10 << 10, 20 << 10, blockexc.Size(m) + 2} {
		f := &failing{left: after, err: cause}
		w := blockexc.NewWriter(f, blockexc.Limits{})
		if err := w.Write(m); err != cause {
			t.Errorf("after %d bytes: error %v, want %v", after, err, cause)
		}
		f.left = 1 << 30
		if err := w.Write(&wire.Message{}); err != cause {
			t.Errorf("after %d bytes, the next message: error %v, want %v", after, err, cause)
		}
		if f.left != 1<<30 {
			t.Errorf("after %d bytes: something was written behind the error", after)
		}
	}
}

// TestStreamOfMessages: a Writer's frames are a Reader's.
func TestStreamOfMessages(t *testing.T) {
	var sent []*wire.Message
	for _, size := range []int{0, 1, 4095, 4096, 16 << 10, 100 << 10} {
		sent = append(sent, deliveries(7, size, 0), &wire.Message{PendingBytes: uint64(size)}, deliveries(7, size, depth20))
	}
	pr, pw := io.Pipe()
	go func() {
		w := blockexc.NewWriter(pw, blockexc.Limits{})
		for _, m := range sent {
			if err := w.Write(m); err != nil {
				pw.CloseWithError(err)
				return
			}
		}
		pw.Close()
	}()
	r := blockexc.NewReader(pr, blockexc.Limits{})
	var got wire.Message
	for i, m := range sent {
		if err := r.Next(&got); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		sameMessage(t, &got, m)
		if len(got.Rejected) > 0 {
			t.Errorf("message %d: rejected %v", i, got.Rejected)
		}
	}
	if err := r.Next(&got); err != io.EOF {
		t.Errorf("at the end: %v, want %v", err, io.EOF)
	}
}
