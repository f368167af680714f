package blockexc_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// A filling stream puts blocks in by itself. It has them in the order in which
// the message does, for the vectors have several blocks under one CID.
type filling struct {
	bytes.Buffer
	blocks  []wire.Delivery // with their Data, those still to come
	filled  int             // bytes put in
	written int             // bytes that it was given
	err     error           // of the next WriteBlock
}

func (f *filling) Write(p []byte) (int, error) {
	f.written += len(p)
	return f.Buffer.Write(p)
}

func (f *filling) WriteBlock(c cid.Cid, size int) error {
	if f.err != nil {
		return f.err
	}
	for len(f.blocks) > 0 && len(f.blocks[0].Data) == 0 {
		f.blocks = f.blocks[1:] // the writer does not ask for empty ones
	}
	if len(f.blocks) == 0 || !f.blocks[0].Cid.Equals(c) || len(f.blocks[0].Data) != size {
		return fmt.Errorf("asked for %d bytes of %s, which is not the next block", size, c)
	}
	f.Buffer.Write(f.blocks[0].Data)
	f.blocks = f.blocks[1:]
	f.filled += size
	return nil
}

// byReference is the message with a reference in the place of each block.
func byReference(m *wire.Message) *wire.Message {
	refs := *m
	refs.Deliveries = make([]wire.Delivery, len(m.Deliveries))
	for i, d := range m.Deliveries {
		d.Ref, d.Data = len(d.Data), nil
		refs.Deliveries[i] = d
	}
	return &refs
}

// sameByReference checks that a message with references has the size and gives
// the bytes of the one with blocks, and that no byte of them went through Write.
func sameByReference(tb testing.TB, m *wire.Message) {
	tb.Helper()
	refs := byReference(m)
	if got, want := blockexc.Size(refs), blockexc.Size(m); got != want {
		tb.Errorf("size by reference is %d, want %d", got, want)
	}
	var want bytes.Buffer
	if err := blockexc.NewWriter(&want, blockexc.Limits{}).Write(m); err != nil {
		tb.Fatal(err)
	}
	got := &filling{blocks: m.Deliveries}
	if err := blockexc.NewWriter(got, blockexc.Limits{}).Write(refs); err != nil {
		tb.Fatalf("by reference: %v", err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		tb.Errorf("by reference\n %x, want\n %x", got.Bytes(), want.Bytes())
	}
	payload := 0
	for _, d := range m.Deliveries {
		payload += len(d.Data)
	}
	if got.filled != payload || got.written != want.Len()-payload {
		tb.Errorf("%d bytes put in and %d written, want %d and %d", got.filled, got.written, payload, want.Len()-payload)
	}
}

// TestReferences: a message whose blocks the stream puts in is, byte for byte,
// the message that has them inside: for every message of the Codex node, and for
// blocks on both sides of every length at which the writer does another thing.
func TestReferences(t *testing.T) {
	for _, v := range readVectors(t).Messages {
		t.Run(v.Name, func(t *testing.T) {
			var m wire.Message
			if err := blockexc.Unmarshal(v.Encoded, blockexc.Limits{}, &m); err != nil {
				t.Fatal(err)
			}
			sameByReference(t, &m)
		})
	}
	for _, size := range []int{0, 1, 127, 128, 4095, 4096, 16 << 10, 100 << 10} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			sameByReference(t, deliveries(3, size, 0))
			sameByReference(t, deliveries(3, size, depth20))
		})
	}
}

// TestReferenceFails: an error of the stream about a block is like any other of
// the stream, even one of a kind that the writer has too: part of the frame is
// out, so nothing follows it.
func TestReferenceFails(t *testing.T) {
	gone := errs.E(errs.Invalid, errs.Caller, "write block", "", errors.New("it is gone"))
	out := &filling{err: gone}
	w := blockexc.NewWriter(out, blockexc.Limits{})
	if err := w.Write(byReference(deliveries(2, 1000, 0))); err != error(gone) {
		t.Errorf("error is %v, want %v", err, gone)
	}
	n := out.Len()
	if err := w.Write(&wire.Message{}); err != error(gone) || out.Len() != n {
		t.Errorf("the next message: %v and %d bytes more, want %v and none", err, out.Len()-n, gone)
	}
}

// FuzzReferences: whatever can be read, and so be sent, is the same by reference.
func FuzzReferences(f *testing.F) {
	for _, m := range readVectors(f).Messages {
		f.Add([]byte(m.Encoded))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var m wire.Message
		if blockexc.Unmarshal(in, fuzzLimits, &m) == nil {
			sameByReference(t, &m)
		}
	})
}
