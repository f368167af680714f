package blockexc

import (
	"bytes"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	// minLeafAddress and minProof are the least that the address of a leaf and
	// its proof take in a delivery, bytes.
	minLeafAddress = 42
	minProof       = 44
	// smallBlock is the data length up to which a proof may be as long to lie
	// in one piece of memory with it; beyond, a proof may be as long as the data.
	smallBlock = 1 << 10
	// minLent is the data length from which on data stays in memory that is lent,
	// bytes: less is copied for less than it costs to give it back.
	minLent = 16 << 10
)

func (r *Reader) delivery(m *wire.Message, end int) (a wire.Address, drop, err error) {
	var d wire.Delivery
	defer func() {
		if drop != nil || err != nil {
			d.Lent.Free()
		}
	}()
	var spare []byte // memory behind Data, for the proof
	var badProof error
	r.addr.present, r.cid.len = false, 0
	for r.pos < end {
		tag, err := r.tag(end)
		if err != nil {
			return a, nil, err
		}
		switch tag {
		case deliveryCid:
			err = r.cidField(&r.cid, end)
		case deliveryData:
			// A proof behind data that is now replaced must not keep it.
			d.Proof = bytes.Clone(d.Proof)
			d.Lent.Free()
			d.Data, d.Lent, spare, err = r.data(end)
		case deliveryAddress:
			err = r.address(end)
		case deliveryProof:
			d.Proof, badProof, err = r.proof(spare, end)
		default:
			err = r.skip(tag, end)
		}
		if err != nil {
			return a, nil, err
		}
	}
	if d.Address, drop = r.resolve(); drop != nil {
		return d.Address, drop, nil
	}
	if !d.Address.Leaf {
		d.Proof, badProof = nil, nil // has no meaning there
	}
	if !d.Address.Leaf && d.Address.Root.KeyString() == string(r.cid.bytes()) {
		d.Cid = d.Address.Root
	} else if d.Cid, drop = r.parse("cid", &r.cid); drop != nil {
		return d.Address, drop, nil
	}
	if d.Data == nil && d.Lent == nil {
		return d.Address, r.bad(errs.Malformed, "data is missing"), nil
	}
	if badProof != nil {
		return d.Address, badProof, nil
	}
	m.Deliveries = append(m.Deliveries, d)
	return d.Address, nil, nil
}

// data reads the data of a delivery that ends at end: where it was received, if the
// stream lends and it is more than minLent. With small blocks a proof that may follow
// gets room in the same piece of memory.
func (r *Reader) data(end int) (data []byte, where *lent.Data, spare []byte, err error) {
	dataEnd, err := r.length(end)
	if err != nil {
		return nil, nil, nil, within("data", err)
	}
	if n := dataEnd - r.pos; r.in.lend != nil && n > minLent {
		where = lent.NewData()
		n, err := r.in.take(where, n)
		r.pos += n
		return nil, where, nil, inside(err)
	}
	n := dataEnd - r.pos
	room := end - dataEnd - minLeafAddress
	if room < minProof || room > max(n, smallBlock) || room > r.limits.MaxProof {
		room = 0
	}
	b, err := r.bytes(n, room)
	if err != nil {
		return nil, nil, nil, err
	}
	return b[:n:n], nil, b[n:cap(b)], nil
}

func (r *Reader) proof(spare []byte, end int) (proof []byte, bad, err error) {
	end, err = r.length(end)
	if err != nil {
		return nil, nil, within("proof", err)
	}
	switch n := end - r.pos; {
	case n > r.limits.MaxProof:
		return nil, r.bad(errs.TooLarge, "proof is %d bytes, want at most %d", n, r.limits.MaxProof), r.discard(n, end)
	case n > 0 && n <= len(spare):
		proof = spare[:n:n]
		return proof, nil, r.full(proof)
	default:
		proof, err = r.bytes(n, 0)
		return proof, nil, err
	}
}

// address reads an address field into r.addr.
func (r *Reader) address(end int) error {
	end, err := r.length(end)
	if err != nil {
		return within("address", err)
	}
	a := &r.addr
	a.present, a.leaf, a.index, a.tree.len, a.block.len = true, false, 0, 0, 0
	for r.pos < end {
		tag, err := r.tag(end)
		if err != nil {
			return within("address", err)
		}
		switch tag {
		case addressLeaf:
			a.leaf, err = r.bool(end)
		case addressTreeCid:
			err = r.cidField(&a.tree, end)
		case addressIndex:
			a.index, err = r.uvarint(end)
		case addressCid:
			err = r.cidField(&a.block, end)
		default:
			err = r.skip(tag, end)
		}
		if err != nil {
			return within("address", err)
		}
	}
	return nil
}

// resolve makes the address of r.addr, or says why its item must be dropped.
func (r *Reader) resolve() (wire.Address, error) {
	a := &r.addr
	if !a.present {
		return wire.Address{}, r.bad(errs.Malformed, "address is missing")
	}
	if !a.leaf {
		c, drop := r.parse("address: cid", &a.block)
		return wire.Block(c), drop
	}
	if !r.tree.Defined() || r.tree.KeyString() != string(a.tree.bytes()) {
		c, drop := r.parse("address: tree cid", &a.tree)
		if drop != nil {
			return wire.Address{}, drop
		}
		r.tree = c
	}
	leaf := wire.Leaf(r.tree, a.index)
	if a.index > MaxIndex {
		return leaf, r.bad(errs.Malformed, "address: index is %d, want at most %d", a.index, uint64(MaxIndex))
	}
	return leaf, nil
}

// cidField reads the bytes of a CID, if they are few enough.
func (r *Reader) cidField(c *rawCid, end int) error {
	end, err := r.length(end)
	if err != nil {
		return within("cid", err)
	}
	c.len = end - r.pos
	if c.len > MaxCID {
		return r.discard(c.len, end)
	}
	return r.full(c.buf[:c.len])
}

// bytes are what was read, nothing if that was too long.
func (c *rawCid) bytes() []byte {
	if c.len > MaxCID {
		return nil
	}
	return c.buf[:c.len]
}

// parse makes a CID, or says why its item must be dropped.
func (r *Reader) parse(name string, c *rawCid) (cid.Cid, error) {
	switch {
	case c.len == 0:
		return cid.Undef, r.bad(errs.Malformed, "%s is missing", name)
	case c.len > MaxCID:
		return cid.Undef, r.bad(errs.TooLarge, "%s is %d bytes, want at most %d", name, c.len, MaxCID)
	}
	if r.Intern != nil {
		if known, ok := r.Intern(c.bytes()); ok {
			return known, nil
		}
	}
	parsed, err := cid.Cast(c.bytes())
	if err != nil {
		for e, ok := err.(cid.ErrInvalidCid); ok; e, ok = err.(cid.ErrInvalidCid) {
			err = e.Err // each says "invalid cid"
		}
		return cid.Undef, r.bad(errs.Malformed, "%s is malformed: %w", name, err)
	}
	return parsed, nil
}

// The functions below read parts of a field. A field ends before end, which is
// where the message around it does.

// maxVarint is the length of the longest varint.
const maxVarint = 10

// tag reads field number and wire type.
func (r *Reader) tag(end int) (uint64, error) {
	tag, err := r.uvarint(end)
	if err != nil {
		return 0, err
	}
	switch tag & 7 {
	case typeVarint, typeFixed64, typeBytes, typeFixed32:
		return tag, nil
	}
	return 0, malformed("field %d: wire type is %d, want 0, 1, 2 or 5", tag>>3, tag&7)
}

// length reads the length of a field and returns where it ends.
func (r *Reader) length(end int) (int, error) {
	n, err := r.uvarint(end)
	if err != nil {
		return 0, err
	}
	if left := end - r.pos; n > uint64(left) {
		return 0, malformed("length is %d, but %d bytes are left", n, left)
	}
	return r.pos + int(n), nil
}

func (r *Reader) bool(end int) (bool, error) {
	x, err := r.uvarint(end)
	return x != 0, err
}

func (r *Reader) uvarint(end int) (uint64, error) {
	var x uint64
	for shift := 0; ; shift += 7 {
		if r.pos >= end {
			return 0, malformed("message ends inside a field")
		}
		b, err := r.in.ReadByte()
		if err != nil {
			return 0, inside(err)
		}
		r.pos++
		if shift == 63 && b > 1 {
			return 0, malformed("varint has more than 64 bits")
		}
		x |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if b == 0 && shift > 0 {
				return 0, malformed("varint is not minimal")
			}
			return x, nil
		}
	}
}

// skip passes over a field whose tag has been read.
func (r *Reader) skip(tag uint64, end int) error {
	switch tag & 7 {
	case typeVarint:
		_, err := r.uvarint(end)
		return err
	case typeFixed64:
		return r.discard(8, end)
	case typeFixed32:
		return r.discard(4, end)
	}
	fieldEnd, err := r.length(end)
	if err != nil {
		return err
	}
	return r.discard(fieldEnd-r.pos, end)
}

func (r *Reader) discard(n, end int) error {
	if left := end - r.pos; n > left {
		return malformed("field is %d bytes, but %d are left", n, left)
	}
	n, err := r.in.Discard(n)
	r.pos += n
	return inside(err)
}

// full fills b.
func (r *Reader) full(b []byte) error {
	n, err := io.ReadFull(&r.in, b)
	r.pos += n
	return inside(err)
}

// bytes reads n bytes into memory of their own, with so much room behind them.
// It waits for the first bytes before it takes any memory, and then takes it as
// more arrive.
func (r *Reader) bytes(n, room int) ([]byte, error) {
	arrived, err := r.in.await(n)
	if err != nil {
		return nil, inside(err)
	}
	size := func(next int) int {
		if next == n {
			return n + room
		}
		return next
	}
	next := min(n, max(aheadOfArrival*arrived, readAhead))
	b := make([]byte, next, size(next))
	if err := r.full(b); err != nil {
		return nil, err
	}
	for len(b) < n {
		next = min(n, 4*len(b))
		grown := make([]byte, next, size(next))
		if err := r.full(grown[copy(grown, b):]); err != nil {
			return nil, err
		}
		b = grown
	}
	return b, nil
}

// inside is for errors in the middle of a message, where the stream must not end.
func inside(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
