package blockexc

import (
	"bytes"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

const (
	// readAhead is how much a Reader takes off the stream at a time, bytes.
	readAhead = 16 << 10
	// aheadOfArrival bounds the memory taken for a block: so many bytes for
	// each that has arrived. With readAhead it lets a block of 2 MiB be
	// allocated at once when its first 16 KiB are there. A block that is lent costs
	// what has arrived of it, and spareRoom.
	aheadOfArrival = 128
	// maxRejected is how many dropped items of a message are told of one by one.
	maxRejected = 64
)

// A Reader reads messages from a stream. It is for one goroutine at a time.
type Reader struct {
	// Intern is asked for the CID of the given bytes before memory is taken
	// for it, so that CIDs that are known already cost none. The bytes are
	// valid until it returns, and may be no CID at all. It may be nil, and is
	// not to be changed while Next runs.
	Intern func(cid []byte) (cid.Cid, bool)

	// Admit is called with the length of each message, bytes, before the
	// message is read, and may wait until there is room for it. Its error ends
	// the reading. It may be nil, and is not to be changed while Next runs.
	Admit func(size int) error

	in     window
	limits Limits
	pos    int // bytes of the current message read so far
	err    error

	// Of the current message.
	seen [wire.InPresences + 1]int // items of each section, dropped ones too
	more int                       // items dropped beyond maxRejected
	last wire.Rejected             // the first of these

	// Scratch for the current item.
	cid  rawCid
	addr rawAddress

	tree cid.Cid // the last tree CID that was read
}

// rawAddress is an address as it was read: which of the fields count is known
// when all have been seen.
type rawAddress struct {
	present bool
	leaf    bool
	index   uint64
	tree    rawCid
	block   rawCid
}

// rawCid is the bytes of a CID field, before they are parsed.
type rawCid struct {
	len int // 0 if the field is absent or empty; beyond MaxCID, bytes has nothing
	buf [MaxCID]byte
}

// NewReader returns a Reader of r. It reads ahead, so r is then the Reader's. If r is a
// [lent.Reader], blocks stay in the memory that it lends, and whoever reads calls Close
// in the end.
func NewReader(r io.Reader, l Limits) *Reader {
	return &Reader{in: newWindow(r), limits: l.withDefaults()}
}

// Close gives back what the Reader has been lent and not read. It ends nothing else.
func (r *Reader) Close() { r.in.free() }

// Next reads the next message into m, after m.Reset. Lists of m are used again;
// Data, Proof, Account and Payment are memory of their own, which belongs to the
// receiver, as Lent does. Data and Proof of one delivery may lie in one piece of memory. Equal
// tree CIDs that follow each other share theirs.
//
// The error is io.EOF when the stream ends between two frames,
// io.ErrUnexpectedEOF when it ends inside one, an *errs.Error of the kind
// errs.Malformed or errs.TooLarge and fault errs.Peer for bytes that cannot be
// read, and otherwise the error of the stream. Then m is empty, and every later
// call returns the same.
func (r *Reader) Next(m *wire.Message) error {
	m.Reset()
	if r.err == nil {
		r.err = r.frame(m)
	}
	if r.err != nil {
		for _, d := range m.Deliveries {
			d.Lent.Free()
		}
		m.Reset()
	}
	return r.err
}

// Unmarshal reads one message without frame into m, after m.Reset. The error is
// an *errs.Error as of [Reader.Next]; then m is empty.
func Unmarshal(b []byte, l Limits, m *wire.Message) error {
	m.Reset()
	r := NewReader(bytes.NewReader(b), l)
	if len(b) > r.limits.MaxFrame {
		return r.tooLong(uint64(len(b)))
	}
	if err := r.message(m, len(b)); err != nil {
		m.Reset()
		return err
	}
	return nil
}

func (r *Reader) frame(m *wire.Message) error {
	if err := r.in.fill(); err != nil {
		return err
	}
	r.pos = 0
	n, err := r.uvarint(maxVarint)
	if err != nil {
		return decodeError(within("frame length", err))
	}
	if n > uint64(r.limits.MaxFrame) {
		return r.tooLong(n)
	}
	if r.Admit != nil {
		if err := r.Admit(int(n)); err != nil {
			return err
		}
	}
	return r.message(m, int(n))
}

func (r *Reader) tooLong(n uint64) error {
	return errs.Errorf(errs.TooLarge, errs.Peer, opDecode, "message is %d bytes, want at most %d", n, r.limits.MaxFrame)
}

// message reads the whole message of size bytes.
func (r *Reader) message(m *wire.Message, size int) error {
	r.pos, r.seen, r.more = 0, [len(r.seen)]int{}, 0
	for r.pos < size {
		if err := r.messageField(m, size); err != nil {
			return decodeError(err)
		}
	}
	if r.more > 1 {
		r.last.Err = fmt.Errorf("%w (and %d more items were dropped)", r.last.Err, r.more-1)
	}
	if r.more > 0 {
		m.Rejected = append(m.Rejected, r.last)
		r.last = wire.Rejected{}
	}
	return nil
}

func (r *Reader) messageField(m *wire.Message, end int) error {
	tag, err := r.tag(end)
	if err != nil {
		return err
	}
	switch tag {
	case messageWantList:
		return r.wantList(m, end)
	case messageDelivery:
		return r.item(m, wire.InDeliveries, end, r.delivery)
	case messagePresence:
		return r.item(m, wire.InPresences, end, r.presence)
	case messagePending:
		m.PendingBytes, err = r.uvarint(end)
		return err
	case messageAccount:
		return within(wire.InAccount.String(), r.account(m, end))
	case messagePayment:
		return within(wire.InPayment.String(), r.payment(m, end))
	}
	return r.skip(tag, end)
}

// item reads a repeated sub-message. The read function returns why the item
// must be dropped, if so, apart from the error that ends the message.
func (r *Reader) item(m *wire.Message, s wire.Section, end int, read func(*wire.Message, int) (wire.Address, error, error)) error {
	i := r.seen[s]
	r.seen[s]++
	end, err := r.length(end)
	if err != nil {
		return within(fmt.Sprintf("%v: entry %d", s, i), err)
	}
	if i >= r.limits.MaxEntries {
		r.reject(m, s, i, wire.Address{}, r.bad(errs.TooLarge, "beyond the limit of %d entries", r.limits.MaxEntries))
		return r.discard(end-r.pos, end)
	}
	addr, drop, err := read(m, end)
	if err != nil {
		return within(fmt.Sprintf("%v: entry %d", s, i), err)
	}
	if drop != nil {
		r.reject(m, s, i, addr, drop)
	}
	return nil
}

// reject takes note of a dropped item.
func (r *Reader) reject(m *wire.Message, s wire.Section, i int, a wire.Address, why error) {
	j := wire.Rejected{Section: s, Index: i, Address: a, Err: why}
	if len(m.Rejected) < maxRejected {
		m.Rejected = append(m.Rejected, j)
		return
	}
	if r.more == 0 {
		r.last = j
	}
	r.more++
}

// bad makes the reason for dropping an item; without its text when nobody will
// see it.
func (r *Reader) bad(kind errs.Kind, format string, args ...any) error {
	if r.more > 0 {
		return kind
	}
	return errs.Errorf(kind, errs.Peer, "", format, args...)
}

func (r *Reader) wantList(m *wire.Message, end int) error {
	end, err := r.length(end)
	if err != nil {
		return within(wire.InWantList.String(), err)
	}
	// A list that comes again replaces the first.
	clear(m.WantList.Entries)
	m.WantList = wire.WantList{Entries: m.WantList.Entries[:0]}
	r.seen[wire.InWantList] = 0
	for r.pos < end {
		tag, err := r.tag(end)
		switch {
		case err != nil:
		case tag == wantListEntry:
			if err := r.item(m, wire.InWantList, end, r.entry); err != nil {
				return err // says where
			}
		case tag == wantListFull:
			m.WantList.Full, err = r.bool(end)
		default:
			err = r.skip(tag, end)
		}
		if err != nil {
			return within(wire.InWantList.String(), err)
		}
	}
	return nil
}

func (r *Reader) entry(m *wire.Message, end int) (a wire.Address, drop, err error) {
	var e wire.Entry
	var typ, prio uint64
	r.addr.present = false
	for r.pos < end {
		tag, err := r.tag(end)
		if err != nil {
			return a, nil, err
		}
		switch tag {
		case entryAddress:
			err = r.address(end)
		case entryPriority:
			prio, err = r.uvarint(end)
		case entryCancel:
			e.Cancel, err = r.bool(end)
		case entryType:
			typ, err = r.uvarint(end)
		case entrySendDontHave:
			e.SendDontHave, err = r.bool(end)
		default:
			err = r.skip(tag, end)
		}
		if err != nil {
			return a, nil, err
		}
	}
	e.Priority = clampPriority(prio)
	if e.Address, drop = r.resolve(); drop != nil {
		return e.Address, drop, nil
	}
	if typ > uint64(wire.WantHave) {
		return e.Address, r.bad(errs.Malformed, "want type %d, want 0 or 1", typ), nil
	}
	e.Type = wire.WantType(typ)
	m.WantList.Entries = append(m.WantList.Entries, e)
	return e.Address, nil, nil
}

// clampPriority makes an int32 of what was sent as one. Negative numbers come
// in ten bytes, or from some encoders in five.
func clampPriority(x uint64) int32 {
	if x>>32 == 0 {
		return int32(uint32(x))
	}
	return int32(min(max(int64(x), -1<<31), 1<<31-1))
}

func (r *Reader) presence(m *wire.Message, end int) (a wire.Address, drop, err error) {
	var p wire.Presence
	var typ uint64
	var badPrice error
	r.addr.present = false
	for r.pos < end {
		tag, err := r.tag(end)
		if err != nil {
			return a, nil, err
		}
		switch tag {
		case presenceAddress:
			err = r.address(end)
		case presenceType:
			typ, err = r.uvarint(end)
		case presencePrice:
			badPrice, err = r.price(&p.Price, end)
		default:
			err = r.skip(tag, end)
		}
		if err != nil {
			return a, nil, err
		}
	}
	if p.Address, drop = r.resolve(); drop != nil {
		return p.Address, drop, nil
	}
	if badPrice != nil {
		return p.Address, badPrice, nil
	}
	if typ > uint64(wire.DontHave) {
		return p.Address, r.bad(errs.Malformed, "presence type %d, want 0 or 1", typ), nil
	}
	p.Type = wire.PresenceType(typ)
	m.Presences = append(m.Presences, p)
	return p.Address, nil, nil
}

func (r *Reader) price(p *wire.Price, end int) (bad, err error) {
	*p = wire.Price{}
	end, err = r.length(end)
	if err != nil {
		return nil, within("price", err)
	}
	n := end - r.pos
	if n > len(p) {
		return r.bad(errs.TooLarge, "price is %d bytes, want at most %d", n, len(p)), r.discard(n, end)
	}
	// Through r's memory, since p would move to the heap.
	b := r.cid.buf[:n]
	if err := r.full(b); err != nil {
		return nil, err
	}
	*p, _ = wire.PriceFrom(b)
	return nil, nil
}

func (r *Reader) account(m *wire.Message, end int) error {
	end, err := r.length(end)
	if err != nil {
		return err
	}
	m.Account = nil
	var drop error
	for r.pos < end {
		tag, err := r.tag(end)
		if err != nil {
			return err
		}
		if tag != accountAddress {
			if err := r.skip(tag, end); err != nil {
				return err
			}
			continue
		}
		fieldEnd, err := r.length(end)
		if err != nil {
			return within("address", err)
		}
		m.Account, drop = nil, nil
		switch n := fieldEnd - r.pos; n {
		case 0:
		case wire.AccountSize:
			m.Account, err = r.bytes(n, 0)
		default:
			drop = r.bad(errs.Malformed, "address is %d bytes, want %d", n, wire.AccountSize)
			err = r.discard(n, end)
		}
		if err != nil {
			return err
		}
	}
	if drop != nil {
		r.reject(m, wire.InAccount, 0, wire.Address{}, drop)
	}
	return nil
}

func (r *Reader) payment(m *wire.Message, end int) error {
	end, err := r.length(end)
	if err != nil {
		return err
	}
	m.Payment = nil
	var drop error
	for r.pos < end {
		tag, err := r.tag(end)
		if err != nil {
			return err
		}
		if tag != paymentUpdate {
			if err := r.skip(tag, end); err != nil {
				return err
			}
			continue
		}
		fieldEnd, err := r.length(end)
		if err != nil {
			return within("update", err)
		}
		m.Payment, drop = nil, nil
		switch n := fieldEnd - r.pos; {
		case n == 0:
		case n > r.limits.MaxPayment:
			drop = r.bad(errs.TooLarge, "update is %d bytes, want at most %d", n, r.limits.MaxPayment)
			err = r.discard(n, end)
		default:
			m.Payment, err = r.bytes(n, 0)
		}
		if err != nil {
			return err
		}
	}
	if drop != nil {
		r.reject(m, wire.InPayment, 0, wire.Address{}, drop)
	}
	return nil
}

const opDecode = "decode message"

// A syntaxError says what broke the message, and where in it. It is apart from
// errs.Error, which a stream may return too.
type syntaxError string

func (e syntaxError) Error() string { return string(e) }

func malformed(format string, args ...any) error {
	return syntaxError(fmt.Sprintf(format, args...))
}

// within adds the place to a syntaxError.
func within(where string, err error) error {
	if e, ok := err.(syntaxError); ok {
		return syntaxError(where + ": " + string(e))
	}
	return err
}

// decodeError makes a syntaxError ready for the caller. Errors of the stream
// stay as they are.
func decodeError(err error) error {
	if e, ok := err.(syntaxError); ok {
		return errs.E(errs.Malformed, errs.Peer, opDecode, "", e)
	}
	return err
}
