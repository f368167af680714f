package refpeer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxFrame is the largest message that the reference reads, bytes.
const maxFrame = 100 << 20

// Wire types of protobuf that the reference reads; groups kill the message.
const (
	varintType  = 0
	fixed64Type = 1
	bytesType   = 2
	fixed32Type = 5
)

// errCrash is the cause of every error that would have been the end of the
// reference's process, rather than of one stream.
var errCrash = errors.New("crashes the reference")

func crash(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errCrash, fmt.Sprintf(format, args...))
}

// Frame puts the length before a message's bytes.
func Frame(body []byte) []byte {
	return append(binary.AppendUvarint(make([]byte, 0, len(body)+5), uint64(len(body))), body...)
}

// Encode writes a message as the reference does: fields in ascending order,
// every scalar and every section written though it is at its default. A nil
// Delivery.Data is left out, which the reference never does.
func Encode(m Message) []byte {
	size := 64
	for _, d := range m.Deliveries {
		size += len(d.Data) + 256
		if d.Proof != nil {
			size += 40 * len(d.Proof.Path)
		}
	}
	b := make([]byte, 0, size+128*(len(m.WantList.Entries)+len(m.Presences)))

	var wants []byte
	for _, e := range m.WantList.Entries {
		entry := appendBytes(nil, 1, encodeAddress(e.Address))
		entry = appendVarint(entry, 2, uint64(int64(e.Priority)))
		entry = appendVarint(entry, 3, protowire.EncodeBool(e.Cancel))
		entry = appendVarint(entry, 4, uint64(e.Type))
		entry = appendVarint(entry, 5, protowire.EncodeBool(e.SendDontHave))
		wants = appendBytes(wants, 1, entry)
	}
	wants = appendVarint(wants, 2, protowire.EncodeBool(m.WantList.Full))
	b = appendBytes(b, 1, wants)

	for _, d := range m.Deliveries {
		block := make([]byte, 0, len(d.Data)+512)
		block = appendBytes(block, 1, d.Cid.Bytes())
		if d.Data != nil {
			block = appendBytes(block, 2, d.Data)
		}
		block = appendBytes(block, 3, encodeAddress(d.Address))
		if d.Proof != nil {
			block = appendBytes(block, 4, EncodeProof(*d.Proof))
		}
		b = appendBytes(b, 3, block)
	}
	for _, p := range m.Presences {
		pr := appendBytes(nil, 1, encodeAddress(p.Address))
		pr = appendVarint(pr, 2, uint64(p.Type))
		pr = appendBytes(pr, 3, p.Price)
		b = appendBytes(b, 4, pr)
	}
	b = appendVarint(b, 5, m.PendingBytes)
	b = appendBytes(b, 6, appendBytes(nil, 1, m.Account))
	return appendBytes(b, 7, appendBytes(nil, 1, m.Payment))
}

// encodeAddress leaves out a CID that is undefined, which cannot be read back
// when it is empty; the reference has no such address.
func encodeAddress(a Address) []byte {
	b := appendVarint(nil, 1, protowire.EncodeBool(a.Leaf))
	switch {
	case a.Leaf && a.Cid.Defined():
		b = appendVarint(appendBytes(b, 2, a.Cid.Bytes()), 3, a.Index)
	case a.Leaf:
		b = appendVarint(b, 3, a.Index)
	case a.Cid.Defined():
		b = appendBytes(b, 4, a.Cid.Bytes())
	}
	return b
}

// EncodeProof writes a proof as it stands in a delivery.
func EncodeProof(p Proof) []byte {
	b := appendVarint(nil, 1, p.Hash)
	b = appendVarint(b, 2, p.Index)
	b = appendVarint(b, 3, p.Leaves)
	for _, node := range p.Path {
		b = appendBytes(b, 4, appendBytes(nil, 1, node))
	}
	return b
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// readFrame reads one message. The error is io.EOF if the stream ended between
// messages; errors that are the sender's doing wrap errFrame.
func readFrame(r *bufio.Reader) ([]byte, error) {
	n, err := readLength(r)
	if err != nil {
		return nil, err
	}
	if n > maxFrame {
		return nil, fmt.Errorf("%w: length: got %d, want at most %d", errFrame, n, maxFrame)
	}
	var body bytes.Buffer // grows as bytes arrive
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: stream ended after %d of %d bytes", errFrame, body.Len(), n)
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// errFrame is the cause of errors about frames, as opposed to streams.
var errFrame = errors.New("bad frame")

func readLength(r *bufio.Reader) (uint64, error) {
	var b []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			if len(b) > 0 && errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: stream ended within a length", errFrame)
			}
			return 0, err
		}
		b = append(b, c)
		if c < 0x80 || len(b) == 10 {
			break
		}
	}
	n, rest, err := varint(b)
	if err != nil || len(rest) > 0 {
		return 0, fmt.Errorf("%w: length %x: %w", errFrame, b, err)
	}
	return n, nil
}

var (
	errCut    = errors.New("truncated")
	errVarint = errors.New("varint is not minimal or exceeds 64 bits")
	errGroup  = errors.New("wire type is not 0, 1, 2 or 5")
)

// varint reads a number as the reference does: minimal and at most 64 bits.
func varint(b []byte) (v uint64, rest []byte, err error) {
	v, n := binary.Uvarint(b)
	switch {
	case n == 0 && len(b) >= binary.MaxVarintLen64, n < 0:
		return 0, nil, errVarint
	case n == 0:
		return 0, nil, errCut
	case n > 1 && b[n-1] == 0:
		return 0, nil, errVarint
	}
	return v, b[n:], nil
}

// A field is one field of a protobuf message: v for varints, data for bytes.
// data is never nil for bytes, though it may be empty.
type field struct {
	num  uint64
	kind uint64
	v    uint64
	data []byte
}

func (f field) isVarint(num uint64) bool { return f.num == num && f.kind == varintType }
func (f field) isBytes(num uint64) bool  { return f.num == num && f.kind == bytesType }

// fields splits a protobuf message. Fields of fixed size are given with
// neither v nor data, since the protocol has none.
func fields(b []byte) ([]field, error) {
	var fs []field
	for len(b) > 0 {
		tag, rest, err := varint(b)
		if err != nil {
			return nil, fmt.Errorf("field tag: %w", err)
		}
		f := field{num: tag >> 3, kind: tag & 7}
		skip := uint64(0)
		switch f.kind {
		case varintType:
			f.v, rest, err = varint(rest)
		case bytesType:
			skip, rest, err = varint(rest)
		case fixed64Type:
			skip = 8
		case fixed32Type:
			skip = 4
		default:
			err = errGroup
		}
		if err == nil && skip > uint64(len(rest)) {
			err = errCut
		}
		if err != nil {
			return nil, fmt.Errorf("field %d: %w", f.num, err)
		}
		if f.kind == bytesType {
			f.data = rest[:skip:skip]
		}
		b = rest[skip:]
		fs = append(fs, f)
	}
	return fs, nil
}

// Decode reads a message by the rules of the reference: missing fields take
// their default, unknown ones are skipped, of a singular field the last counts
// and is not merged with those before, and anything else that is wrong spoils
// the whole message. Data is checked against its CID.
func Decode(body []byte) (Message, error) {
	var m Message
	fs, err := fields(body)
	if err != nil {
		return m, err
	}
	var wants, account, payment []byte
	for _, f := range fs {
		switch {
		case f.isBytes(1):
			wants = f.data
		case f.isBytes(3):
			d, err := decodeDelivery(f.data)
			if err != nil {
				return m, fmt.Errorf("delivery %d: %w", len(m.Deliveries), err)
			}
			m.Deliveries = append(m.Deliveries, d)
		case f.isBytes(4):
			p, err := decodePresence(f.data)
			if err != nil {
				return m, fmt.Errorf("presence %d: %w", len(m.Presences), err)
			}
			m.Presences = append(m.Presences, p)
		case f.isVarint(5):
			m.PendingBytes = f.v
		case f.isBytes(6):
			account = f.data
		case f.isBytes(7):
			payment = f.data
		}
	}
	if m.WantList, err = decodeWantList(wants); err != nil {
		return m, fmt.Errorf("want list: %w", err)
	}
	if m.Account, err = onlyBytes(account); err != nil {
		return m, fmt.Errorf("account: %w", err)
	}
	if m.Payment, err = onlyBytes(payment); err != nil {
		return m, fmt.Errorf("payment: %w", err)
	}
	return m, nil
}

// onlyBytes reads a message of one field of bytes, number 1.
func onlyBytes(b []byte) (v []byte, err error) {
	fs, err := fields(b)
	for _, f := range fs {
		if f.isBytes(1) {
			v = f.data
		}
	}
	return v, err
}

func decodeWantList(b []byte) (WantList, error) {
	var w WantList
	fs, err := fields(b)
	if err != nil {
		return w, err
	}
	for _, f := range fs {
		switch {
		case f.isBytes(1):
			e, err := decodeEntry(f.data)
			if err != nil {
				return w, fmt.Errorf("entry %d: %w", len(w.Entries), err)
			}
			w.Entries = append(w.Entries, e)
		case f.isVarint(2):
			w.Full = f.v != 0
		}
	}
	return w, nil
}

func decodeEntry(b []byte) (Entry, error) {
	var e Entry
	fs, err := fields(b)
	if err != nil {
		return e, err
	}
	var address []byte
	var priority, kind uint64
	for _, f := range fs {
		switch {
		case f.isBytes(1):
			address = f.data
		case f.isVarint(2):
			priority = f.v
		case f.isVarint(3):
			e.Cancel = f.v != 0
		case f.isVarint(4):
			kind = f.v
		case f.isVarint(5):
			e.SendDontHave = f.v != 0
		}
	}
	if priority > math.MaxInt32 {
		return e, crash("priority: got %d, want 0 to %d", int64(priority), math.MaxInt32)
	}
	if kind > WantHave {
		return e, crash("want type: got %d, want 0 or 1", kind)
	}
	e.Priority, e.Type = int32(priority), uint8(kind)
	e.Address, err = decodeAddress(address)
	return e, err
}

func decodeAddress(b []byte) (Address, error) {
	var a Address
	fs, err := fields(b)
	if err != nil {
		return a, fmt.Errorf("address: %w", err)
	}
	var tree, block []byte
	var index uint64
	for _, f := range fs {
		switch {
		case f.isVarint(1):
			a.Leaf = f.v != 0
		case f.isBytes(2):
			tree = f.data
		case f.isVarint(3):
			index = f.v
		case f.isBytes(4):
			block = f.data
		}
	}
	c := block
	if a.Leaf {
		if index > math.MaxInt64 {
			return a, crash("leaf index: got %d, want less than 2^63", index)
		}
		a.Index, c = index, tree
	}
	if c != nil {
		if a.Cid, err = parseCid(c); err != nil {
			return a, fmt.Errorf("address: %w", err)
		}
	}
	return a, nil
}

func decodePresence(b []byte) (Presence, error) {
	var p Presence
	fs, err := fields(b)
	if err != nil {
		return p, err
	}
	var address []byte
	var kind uint64
	for _, f := range fs {
		switch {
		case f.isBytes(1):
			address = f.data
		case f.isVarint(2):
			kind = f.v
		case f.isBytes(3):
			p.Price = f.data
		}
	}
	if kind > DontHave {
		return p, crash("presence type: got %d, want 0 or 1", kind)
	}
	p.Type = uint8(kind)
	p.Address, err = decodeAddress(address)
	return p, err
}

func decodeDelivery(b []byte) (Delivery, error) {
	var d Delivery
	fs, err := fields(b)
	if err != nil {
		return d, err
	}
	var c, address, proof []byte
	for _, f := range fs {
		switch {
		case f.isBytes(1):
			c = f.data
		case f.isBytes(2):
			d.Data = f.data
		case f.isBytes(3):
			address = f.data
		case f.isBytes(4):
			proof = f.data
		}
	}
	if c != nil {
		if d.Cid, err = parseCid(c); err != nil {
			return d, err
		}
	}
	if d.Data != nil {
		if err := checkHash(d.Cid, d.Data); err != nil {
			return d, err
		}
	}
	if d.Address, err = decodeAddress(address); err != nil {
		return d, err
	}
	if d.Address.Leaf && proof != nil {
		if d.Proof, err = DecodeProof(proof); err != nil {
			return d, fmt.Errorf("proof: %w", err)
		}
	}
	return d, nil
}

// DecodeProof reads a proof. The lengths of its nodes are not looked at here.
func DecodeProof(b []byte) (*Proof, error) {
	fs, err := fields(b)
	if err != nil {
		return nil, err
	}
	p := new(Proof)
	for _, f := range fs {
		switch {
		case f.isVarint(1):
			p.Hash = f.v
		case f.isVarint(2):
			p.Index = f.v
		case f.isVarint(3):
			p.Leaves = f.v
		case f.isBytes(4):
			node, err := onlyBytes(f.data)
			if err != nil {
				return nil, fmt.Errorf("node %d: %w", len(p.Path), err)
			}
			p.Path = append(p.Path, node)
		}
	}
	switch {
	case !knownHash(p.Hash):
		return nil, fmt.Errorf("unknown hash code 0x%x", p.Hash)
	case len(p.Path) == 0:
		return nil, errors.New("no nodes")
	case p.Index > math.MaxInt64 || p.Leaves > math.MaxInt64:
		return nil, fmt.Errorf("index %d of %d leaves, want both less than 2^63", p.Index, p.Leaves)
	}
	return p, nil
}
