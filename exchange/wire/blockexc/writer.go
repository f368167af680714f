package blockexc

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	// flushAt is how much a Writer collects before it writes, bytes.
	flushAt = 16 << 10
	// directAt is the length from which bytes are written from the caller's
	// slice rather than collected.
	directAt = 4 << 10
)

// A Writer writes messages to a stream. It is for one goroutine at a time.
type Writer struct {
	limits Limits
	cork   corker // nil if the stream is none
	enc    encoder
}

// A blockWriter is a stream that puts blocks in by itself, see Writer.Write.
type blockWriter interface {
	WriteBlock(block cid.Cid, size int) error
}

// A corker is a stream that is told when a message begins and ends.
type corker interface {
	Cork()
	Uncork() error
}

// NewWriter returns a Writer to w. Only MaxFrame of the limits concerns it.
func NewWriter(w io.Writer, l Limits) *Writer {
	refs, _ := w.(blockWriter)
	cork, _ := w.(corker)
	return &Writer{limits: l.withDefaults(), cork: cork, enc: encoder{w: w, refs: refs}}
}

// Write writes m as one frame, in several writes if it is long. The bytes of
// blocks of 4 KiB and more are handed to the stream from where they are; they
// must not change until Write returns, and are not used after.
//
// The block of a delivery by reference is put in by the stream, which has to have
//
//	WriteBlock(block cid.Cid, size int) error
//
// for that. It is called in the place of a Write of the bytes, and not for an
// empty block. If the stream has methods Cork() and Uncork() error, it is told that a
// message is being written.
//
// A message that may not be sent is refused before anything is written, with an
// error of kind errs.Invalid (an undefined or overlong CID, an index beyond
// MaxIndex, an unknown type, an account of wrong length, a reference if the
// stream does not put blocks in) or errs.TooLarge; the Writer stays usable.
// Negative priorities are written as 0. Errors of the stream are returned as they
// are, by every later call too, since the other side has then seen part of a
// frame.
func (w *Writer) Write(m *wire.Message) error {
	if w.enc.err != nil {
		return w.enc.err
	}
	if err := check(m, w.enc.refs != nil); err != nil {
		return err
	}
	n := Size(m)
	if n > w.limits.MaxFrame {
		return errs.Errorf(errs.TooLarge, errs.Caller, opEncode, "message is %d bytes, want at most %d", n, w.limits.MaxFrame)
	}
	if w.cork != nil {
		w.cork.Cork()
	}
	w.enc.uvarint(uint64(n))
	w.enc.message(m)
	w.enc.flush()
	if w.cork != nil {
		if err := w.cork.Uncork(); w.enc.err == nil {
			w.enc.err = err
		}
	}
	return w.enc.err
}

// Append appends the encoded message, without its frame, to dst. It refuses the
// same messages as [Writer.Write], but no length, and deliveries by reference;
// then it returns dst as it was.
func Append(dst []byte, m *wire.Message) ([]byte, error) {
	if err := check(m, false); err != nil {
		return dst, err
	}
	e := encoder{buf: dst}
	e.message(m)
	return e.buf, nil
}

const opEncode = "encode message"

// check reports what must not be sent. Without refs that is every reference.
func check(m *wire.Message, refs bool) error {
	for i := range m.WantList.Entries {
		e := &m.WantList.Entries[i]
		err := checkAddress(e.Address)
		if err == nil && e.Type > wire.WantHave {
			err = fmt.Errorf("want type %d, want 0 or 1", e.Type)
		}
		if err != nil {
			return invalid(wire.InWantList, i, err)
		}
	}
	for i := range m.Deliveries {
		d := &m.Deliveries[i]
		err := checkAddress(d.Address)
		if err == nil {
			err = checkCid(d.Cid)
		}
		if err == nil && d.Ref != 0 {
			err = checkRef(d, refs)
		}
		if err != nil {
			return invalid(wire.InDeliveries, i, err)
		}
	}
	for i := range m.Presences {
		p := &m.Presences[i]
		err := checkAddress(p.Address)
		if err == nil && p.Type > wire.DontHave {
			err = fmt.Errorf("presence type %d, want 0 or 1", p.Type)
		}
		if err != nil {
			return invalid(wire.InPresences, i, err)
		}
	}
	if n := len(m.Account); n != 0 && n != wire.AccountSize {
		return errs.Errorf(errs.Invalid, errs.Caller, opEncode, "account is %d bytes, want %d", n, wire.AccountSize)
	}
	return nil
}

func invalid(s wire.Section, i int, cause error) error {
	return errs.Errorf(errs.Invalid, errs.Caller, opEncode, "%v: entry %d: %w", s, i, cause)
}

func checkAddress(a wire.Address) error {
	if err := checkCid(a.Root); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if a.Leaf && a.Index > MaxIndex {
		return fmt.Errorf("address: index is %d, want at most %d", a.Index, uint64(MaxIndex))
	}
	return nil
}

func checkCid(c cid.Cid) error {
	switch n := c.ByteLen(); {
	case n == 0:
		return fmt.Errorf("cid is undefined")
	case n > MaxCID:
		return fmt.Errorf("cid is %d bytes, want at most %d", n, MaxCID)
	}
	return nil
}

func checkRef(d *wire.Delivery, refs bool) error {
	switch {
	case d.Ref < 0:
		return fmt.Errorf("reference to %d bytes, want 0 or more", d.Ref)
	case len(d.Data) > 0:
		return fmt.Errorf("%d bytes and a reference to %d, want one of them", len(d.Data), d.Ref)
	case !refs:
		return fmt.Errorf("reference to %d bytes, want the bytes: nothing here puts them in", d.Ref)
	}
	return nil
}

// An encoder writes checked messages to buf, and with a w passes them on from
// there. After an error it does nothing more.
type encoder struct {
	w    io.Writer   // nil to keep everything in buf
	refs blockWriter // w, if it puts blocks in; or nil
	buf  []byte
	err  error
}

func (e *encoder) message(m *wire.Message) {
	e.length(messageWantList, wantListSize(&m.WantList))
	for i := range m.WantList.Entries {
		e.entry(&m.WantList.Entries[i])
	}
	e.bool(wantListFull, m.WantList.Full)

	for i := range m.Deliveries {
		e.delivery(&m.Deliveries[i])
	}
	for i := range m.Presences {
		e.presence(&m.Presences[i])
	}
	e.number(messagePending, m.PendingBytes)

	e.length(messageAccount, bytesSize(len(m.Account)))
	e.bytes(accountAddress, m.Account)

	e.length(messagePayment, bytesSize(len(m.Payment)))
	e.bytes(paymentUpdate, m.Payment)
}

func (e *encoder) entry(n *wire.Entry) {
	e.length(wantListEntry, entrySize(n))
	e.address(entryAddress, n.Address)
	e.number(entryPriority, priority(n))
	e.bool(entryCancel, n.Cancel)
	e.number(entryType, uint64(n.Type))
	e.bool(entrySendDontHave, n.SendDontHave)
	e.collected()
}

func (e *encoder) address(tag byte, a wire.Address) {
	e.length(tag, addressSize(a))
	e.bool(addressLeaf, a.Leaf)
	if a.Leaf {
		e.cid(addressTreeCid, a.Root)
		e.number(addressIndex, a.Index)
	} else {
		e.cid(addressCid, a.Root)
	}
}

func (e *encoder) delivery(d *wire.Delivery) {
	e.length(messageDelivery, deliverySize(d))
	e.cid(deliveryCid, d.Cid)
	if d.Ref > 0 {
		e.block(deliveryData, d.Cid, d.Ref)
	} else {
		e.bytes(deliveryData, d.Data)
	}
	e.address(deliveryAddress, d.Address)
	if hasProof(d) {
		e.bytes(deliveryProof, d.Proof)
	}
	e.collected()
}

func (e *encoder) presence(p *wire.Presence) {
	e.length(messagePresence, presenceSize(p))
	e.address(presenceAddress, p.Address)
	e.number(presenceType, uint64(p.Type))
	e.length(presencePrice, len(p.Price))
	e.buf = append(e.buf, p.Price[:]...)
	e.collected()
}

func (e *encoder) uvarint(x uint64) { e.buf = binary.AppendUvarint(e.buf, x) }

func (e *encoder) number(tag byte, x uint64) {
	e.buf = append(e.buf, tag)
	e.uvarint(x)
}

func (e *encoder) bool(tag byte, v bool) {
	var b byte
	if v {
		b = 1
	}
	e.buf = append(e.buf, tag, b)
}

func (e *encoder) length(tag byte, n int) { e.number(tag, uint64(n)) }

func (e *encoder) cid(tag byte, c cid.Cid) {
	e.length(tag, c.ByteLen())
	e.buf = append(e.buf, c.KeyString()...)
}

func (e *encoder) bytes(tag byte, b []byte) {
	e.length(tag, len(b))
	if e.w == nil || len(b) < directAt {
		e.buf = append(e.buf, b...)
		return
	}
	e.flush()
	if e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

// block leaves it to the stream to write the bytes.
func (e *encoder) block(tag byte, c cid.Cid, size int) {
	e.length(tag, size)
	e.flush()
	if e.err == nil {
		e.err = e.refs.WriteBlock(c, size)
	}
}

// collected is called after each item, so that buf stays small.
func (e *encoder) collected() {
	if len(e.buf) >= flushAt {
		e.flush()
	}
}

// flush passes buf on, if there is somebody to pass it to.
func (e *encoder) flush() {
	if e.w == nil || len(e.buf) == 0 {
		return
	}
	if e.err == nil {
		_, e.err = e.w.Write(e.buf)
	}
	e.buf = e.buf[:0]
}
