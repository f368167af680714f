package blockexc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/wire"
)

// A lender is a stream of bytes, in pieces of which every other is lent if it lends.
type lender struct {
	b     []byte
	piece int
	lends bool
	n     int
	out   int // pieces that are lent
}

func (l *lender) Read([]byte) (int, error) { panic("Read of a stream that lends") }
func (l *lender) Ref()                     { l.out++ }
func (l *lender) Free()                    { l.out-- }

func (l *lender) ReadLent(p []byte) ([]byte, lent.Buffer, error) {
	n := min(len(l.b), l.piece)
	l.n++
	var buf lent.Buffer
	b := l.b[:n]
	if l.lends && l.n%2 == 0 && n > 0 {
		l.out++
		buf = l
	} else {
		n = copy(p, b)
		b = p[:n]
	}
	l.b = l.b[n:]
	if len(l.b) == 0 {
		return b, buf, io.EOF // with the last bytes
	}
	return b, buf, nil
}

// TestLentBlocks shows that blocks come whole out of pieces of any size, lent or not, the
// end with the last of them; that only long ones are lent; and that all that is lent
// comes back when the blocks are freed, or their message is cut off.
func TestLentBlocks(t *testing.T) {
	list := [][]byte{make([]byte, 100), make([]byte, 40_000), make([]byte, minLent+1), make([]byte, 300_000)}
	m := &wire.Message{}
	for i, data := range list {
		for j := range data {
			data[j] = byte(i + j*j>>3)
		}
		c := cid.NewCidV1(cid.Raw, append([]byte{0x12, 0x20}, bytes.Repeat([]byte{byte(i)}, 32)...))
		m.Deliveries = append(m.Deliveries, wire.Delivery{Address: wire.Block(c), Cid: c, Data: data})
	}
	var frame bytes.Buffer
	if err := NewWriter(&frame, Limits{}).Write(m); err != nil {
		t.Fatal(err)
	}
	for _, piece := range []int{1, 1000, 65_536, 1 << 20} {
		for _, cut := range []int{0, 1, 200_000} {
			l := &lender{b: frame.Bytes()[:frame.Len()-cut], piece: piece, lends: true}
			r := NewReader(l, Limits{})
			var got wire.Message
			err := r.Next(&got)
			if cut > 0 {
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("pieces of %d, cut: got %v, want %v", piece, err, io.ErrUnexpectedEOF)
				}
			} else if err != nil || len(got.Deliveries) != len(list) {
				t.Fatalf("pieces of %d: got %d blocks, %v, want %d", piece, len(got.Deliveries), err, len(list))
			}
			for i, d := range got.Deliveries {
				data := d.Data
				if d.Lent != nil {
					data = d.Lent.Copy()
				}
				if (d.Lent != nil) != (len(list[i]) > minLent) || d.Size() != len(list[i]) || !bytes.Equal(data, list[i]) {
					t.Errorf("pieces of %d: block %d has %d bytes, lent %v, the same: %v", piece, i, d.Size(), d.Lent != nil, bytes.Equal(data, list[i]))
				}
				d.Lent.Free()
			}
			r.Close()
			if l.out != 0 {
				t.Errorf("pieces of %d, %d bytes cut off: %d are still lent, want none", piece, cut, l.out)
			}
		}
	}
}

// TestInlineInProportion shows that a block which comes in small pieces that are not lent
// costs memory in proportion to what has come, and not to what was announced.
func TestInlineInProportion(t *testing.T) {
	const announced, reads = 8 << 20, 2000
	for _, piece := range []int{1, 64, 4096} {
		body := binary.AppendUvarint(binary.AppendUvarint(nil, deliveryData), announced)
		head := binary.AppendUvarint(binary.AppendUvarint(nil, messageDelivery), uint64(len(body)+announced))
		frame := binary.AppendUvarint(nil, uint64(len(head)+len(body)+announced))
		frame = append(append(frame, head...), body...)
		l := &lender{b: append(frame, make([]byte, reads*piece)...), piece: piece}
		r := NewReader(l, Limits{})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := r.Next(new(wire.Message))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v, want %v", err, io.ErrUnexpectedEOF)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 2*reads*uint64(piece)+4*spareRoom {
			t.Errorf("%d bytes arrived %d at a time and took %d bytes of memory", reads*piece, piece, took)
		}
	}
}
