// Package wire holds what block exchange messages say, apart from how they are
// written: addresses, want lists, presences and deliveries. Each protocol
// version has a sub-package that turns bytes into these types and back; what
// lies above (the engine, the loop) does not know which version a peer speaks.
//
// Types here are plain data. Nothing in them is safe for concurrent change;
// everything may be read from any goroutine. Byte slices are shared, never
// copied: nobody changes their bytes.
package wire

import (
	"bytes"
	"fmt"
	"math/big"
	"strconv"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/lent"
)

// Address names one block, either by its CID or as a leaf: block Index of the
// dataset whose Merkle tree has the CID Root. A leaf address and the CID of the
// same block are different addresses. Addresses are comparable and may be map
// keys; the zero Address names nothing.
type Address struct {
	Root  cid.Cid // CID of the block, or of the tree if Leaf
	Index uint64  // 0 unless Leaf
	Leaf  bool
}

// Block returns the address of a block named by its CID.
func Block(c cid.Cid) Address { return Address{Root: c} }

// Leaf returns the address of block index of the tree root.
func Leaf(root cid.Cid, index uint64) Address {
	return Address{Root: root, Index: index, Leaf: true}
}

// Defined reports whether the address names anything.
func (a Address) Defined() bool { return a.Root.Defined() }

// String gives the CID, for a leaf followed by "/" and the index. CIDs of
// version 1 are written in base58btc, as Codex does.
func (a Address) String() string {
	if !a.Root.Defined() {
		return "(no address)"
	}
	s := CidString(a.Root)
	if a.Leaf {
		s += "/" + strconv.FormatUint(a.Index, 10)
	}
	return s
}

// CidString gives Codex CIDs in base58btc ("z…"), as Codex prints them, and all
// others in their usual form.
func CidString(c cid.Cid) string {
	if !c.Defined() {
		return "(no cid)"
	}
	if codec := c.Prefix().Codec; codec >= codex.ManifestCodec && codec <= codex.SlotCellCodec {
		return codex.String(c)
	}
	return c.String()
}

// WantType is what an entry of a want list asks for. Other values than the two
// below do not reach this package: decoders drop such entries.
type WantType uint8

const (
	WantBlock WantType = 0 // send the block
	WantHave  WantType = 1 // say whether you have it
)

func (t WantType) String() string {
	if t == WantHave {
		return "want-have"
	}
	return "want-block"
}

// Entry is one line of a want list.
type Entry struct {
	Address      Address
	Priority     int32 // the reference sends 0 and ignores it
	Cancel       bool  // withdraw the want, whatever Type says
	Type         WantType
	SendDontHave bool // answer "don't have" rather than nothing
}

func (e Entry) String() string {
	s := e.Type.String()
	if e.Cancel {
		s = "cancel"
	}
	if e.SendDontHave && !e.Cancel {
		s += "+dh"
	}
	return s + " " + e.Address.String()
}

// WantList is what a peer asks for. Full says that this is the whole list
// rather than an addition; the reference ignores that, and so must a receiver
// that serves it.
type WantList struct {
	Entries []Entry
	Full    bool
}

// PresenceType says whether a peer has a block.
type PresenceType uint8

const (
	Have     PresenceType = 0
	DontHave PresenceType = 1
)

func (t PresenceType) String() string {
	if t == DontHave {
		return "DONT_HAVE"
	}
	return "HAVE"
}

// Presence is a peer's word on whether it has a block, and what it wants for it.
type Presence struct {
	Address Address
	Type    PresenceType
	Price   Price
}

func (p Presence) String() string {
	s := p.Type.String() + " " + p.Address.String()
	if !p.Price.IsZero() {
		s += " at " + p.Price.String()
	}
	return s
}

// Price is what one block costs: an unsigned 256-bit integer, big-endian. The
// zero value is "free", which is what the reference always asks.
type Price [32]byte

// PriceFrom takes 0 to 32 big-endian bytes; false if there are more.
func PriceFrom(b []byte) (p Price, ok bool) {
	if len(b) > len(p) {
		return p, false
	}
	copy(p[len(p)-len(b):], b)
	return p, true
}

// IsZero reports whether the block is free.
func (p Price) IsZero() bool { return p == Price{} }

// Compare gives -1, 0 or 1 as p is less than, equal to or greater than q.
func (p Price) Compare(q Price) int { return bytes.Compare(p[:], q[:]) }

// Big returns the price as a number.
func (p Price) Big() *big.Int { return new(big.Int).SetBytes(p[:]) }

func (p Price) String() string { return p.Big().String() }

// Delivery is one block, its bytes in Data, or where they were received, in Lent. For
// a leaf address, Proof holds the encoded Merkle proof (package merkle); nil if there
// is none. What arrives here has been parsed and nothing more: that Data hashes to Cid, and that the proof leads to
// the tree, is for the receiver to check.
//
// A delivery by reference has no Data: it says that the Ref bytes of the block
// Cid belong there, and the stream that it is written to puts them in. So only
// messages to be sent have such deliveries, and decoders never make one; those to be
// sent are never lent. A delivery with neither Data nor Ref is an empty block, of which there is nothing
// to put in.
type Delivery struct {
	Address Address
	Cid     cid.Cid
	Data    []byte
	Lent    *lent.Data // nil if Data is the block; its owner is who has the message
	Ref     int        // bytes of block Cid in the place of Data; 0 if Data is the block
	Proof   []byte
}

// Size is the length of the block, bytes.
func (d Delivery) Size() int {
	if d.Lent != nil {
		return d.Lent.Size()
	}
	return len(d.Data) + d.Ref
}

// Message is everything one frame can hold. The zero Message is empty.
type Message struct {
	WantList     WantList
	Deliveries   []Delivery
	Presences    []Presence
	PendingBytes uint64 // the reference sends 0 and ignores it
	Account      []byte // Ethereum address to be paid at, AccountSize bytes; nil if absent
	Payment      []byte // UTF-8 JSON of a Nitro signed state; nil if absent

	// Rejected lists the parts of a received message that were left out,
	// because they alone were wrong. Encoders ignore it.
	Rejected []Rejected
}

// AccountSize is the length of an account address, bytes.
const AccountSize = 20

// Section names a part of a message.
type Section uint8

const (
	InWantList Section = iota
	InDeliveries
	InPresences
	InAccount
	InPayment
)

func (s Section) String() string {
	switch s {
	case InWantList:
		return "want list"
	case InDeliveries:
		return "deliveries"
	case InPresences:
		return "presences"
	case InAccount:
		return "account"
	}
	return "payment"
}

// Rejected is one item of a message that was dropped, and why.
type Rejected struct {
	Section Section
	Index   int     // position among the items of its section, from 0
	Address Address // if it could be read
	Err     error
}

func (r Rejected) Error() string {
	if r.Section == InAccount || r.Section == InPayment {
		return fmt.Sprintf("%s: %v", r.Section, r.Err)
	}
	return fmt.Sprintf("%s: entry %d: %v", r.Section, r.Index, r.Err)
}

// Unwrap returns why the item was dropped.
func (r Rejected) Unwrap() error { return r.Err }

// Empty reports whether the message says nothing at all.
func (m *Message) Empty() bool {
	return len(m.WantList.Entries) == 0 && !m.WantList.Full && len(m.Deliveries) == 0 && len(m.Presences) == 0 &&
		m.PendingBytes == 0 && m.Account == nil && m.Payment == nil
}

// Reset empties the message and keeps the memory of its lists. Blocks that were
// in it are forgotten, so that they can be collected.
func (m *Message) Reset() {
	clear(m.WantList.Entries)
	clear(m.Deliveries)
	clear(m.Presences)
	clear(m.Rejected)
	*m = Message{
		WantList:   WantList{Entries: m.WantList.Entries[:0]},
		Deliveries: m.Deliveries[:0],
		Presences:  m.Presences[:0],
		Rejected:   m.Rejected[:0],
	}
}
