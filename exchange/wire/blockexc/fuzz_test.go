package blockexc_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// fuzzLimits are small, so that the fuzzer reaches them.
var fuzzLimits = blockexc.Limits{MaxFrame: 1 << 20, MaxEntries: 20, MaxProof: 300, MaxPayment: 1000}

// FuzzMessage: a message that can be read can be written, and reads the same
// again; one that cannot be read is the sender's fault. Neither takes memory out
// of proportion.
func FuzzMessage(f *testing.F) {
	v := readVectors(f)
	for _, m := range v.Messages {
		f.Add([]byte(m.Encoded))
	}
	for _, c := range v.DecodeTolerance {
		f.Add([]byte(c.Bytes))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var m wire.Message
		var err error
		// Nothing lies far beyond what arrives, apart from the read buffer and
		// the reasons of what was rejected.
		if got, most := allocated(func() { err = blockexc.Unmarshal(in, fuzzLimits, &m) }), 256<<10+128*len(in); got > uint64(most) {
			t.Errorf("%d bytes took %d bytes of memory, want at most %d", len(in), got, most)
		}
		if err != nil {
			if e, ok := err.(*errs.Error); !ok || e.Fault != errs.Peer {
				t.Fatalf("error is %v (%T), want an *errs.Error that blames the peer", err, err)
			}
			return
		}
		if n := len(m.Rejected); n > 65 {
			t.Errorf("%d rejected, want at most 65", n)
		}
		encoded, err := blockexc.Append(nil, &m)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if n := blockexc.Size(&m); n != len(encoded) {
			t.Errorf("size is %d, but %d bytes were written", n, len(encoded))
		}
		var again wire.Message
		if err := blockexc.Unmarshal(encoded, blockexc.Limits{}, &again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if len(again.Rejected) > 0 {
			t.Errorf("of what was written, %v is rejected", again.Rejected)
		}
		for i := range m.WantList.Entries {
			// The one thing that is not written as it was read.
			m.WantList.Entries[i].Priority = max(m.WantList.Entries[i].Priority, 0)
		}
		sameMessage(t, &again, &m)
	})
}

// FuzzFrame: a stream reads the same however it is cut into pieces.
func FuzzFrame(f *testing.F) {
	var all []byte
	for _, m := range readVectors(f).Messages {
		one := slices.Concat(m.Prefix, m.Encoded)
		all = append(all, one...)
		f.Add([]byte(one))
	}
	f.Add(all)
	f.Add(encodeFrame(f, deliveries(3, 20_000, 300)))
	f.Add(encodeFrame(f, deliveries(3, 1_000, 100))[:2500])

	type result struct {
		messages [][]byte
		rejected []string
		err      error
	}
	read := func(t *testing.T, in io.Reader) (res result) {
		r := blockexc.NewReader(in, fuzzLimits)
		var m wire.Message
		for {
			if res.err = r.Next(&m); res.err != nil {
				return res
			}
			b, err := blockexc.Append(nil, &m)
			if err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			res.messages = append(res.messages, b)
			for _, j := range m.Rejected {
				res.rejected = append(res.rejected, j.Error())
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		want := read(t, bytes.NewReader(in))
		var e *errs.Error
		if want.err != io.EOF && want.err != io.ErrUnexpectedEOF && !errors.As(want.err, &e) {
			t.Errorf("error is %v (%T)", want.err, want.err)
		}
		for name, r := range map[string]io.Reader{
			"byte by byte":         iotest.OneByteReader(bytes.NewReader(in)),
			"in halves":            iotest.HalfReader(bytes.NewReader(in)),
			"with the end in one":  iotest.DataErrReader(bytes.NewReader(in)),
			"in pieces of 7 bytes": pieces{bytes.NewReader(in), 7},
			"in pieces of 16385":   pieces{bytes.NewReader(in), 16<<10 + 1},
		} {
			got := read(t, r)
			if !slices.EqualFunc(got.messages, want.messages, bytes.Equal) {
				t.Errorf("%s: messages\n %x, want\n %x", name, got.messages, want.messages)
			}
			if !slices.Equal(got.rejected, want.rejected) {
				t.Errorf("%s: rejected %q, want %q", name, got.rejected, want.rejected)
			}
			if got.err.Error() != want.err.Error() {
				t.Errorf("%s: error %v, want %v", name, got.err, want.err)
			}
		}
	})
}

// pieces reads at most n bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
