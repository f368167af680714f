// Package blockexc turns the bytes of /codex/blockexc/1.0.0 into the messages of
// package wire and back. A stream carries frames in each direction; a frame is a
// varint length and one protobuf message.
//
// [Reader] and [Writer] work on streams, [Unmarshal] and [Append] on a message
// without its frame. None of them looks a block's bytes over: that data hashes
// to its CID and that a proof leads to its tree is for the receiver to check.
// What is answered, to whom and when is decided by the engine.
//
// # Reading
//
// The decoder takes fields straight off the stream and checks each length
// against what is left of the message around it. Memory is taken for bytes that
// have arrived, not for bytes that were announced.
//
// It is as tolerant as the Codex node, and in the same way. Defaults may be
// written or left out. Of a field that must be single the last one counts, and
// repeated ones are not merged. Unknown fields, and known ones of an unexpected
// wire type, are skipped. What breaks the encoding itself (a group, a field that
// runs past its end, a varint that is too long or not minimal) costs the whole
// message, since nothing behind it can be trusted. What is only wrong in one
// item (a CID that does not parse, an unknown want type, a price of 33 bytes)
// costs that item, and is told in Message.Rejected.
//
// # Writing
//
// The encoder writes what the Codex node writes, byte for byte: fields in
// ascending order, defaults written out, prices of 32 bytes. It refuses what
// would harm a Codex node that reads it. Blocks go from the caller's memory to
// the stream without a copy, or are put in by the stream itself where it can do
// that (see [Writer.Write]); the bytes that arrive are the same.
package blockexc

import (
	"math/bits"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/wire"
)

// Defaults of [Limits].
const (
	DefaultMaxFrame   = 32 << 20
	DefaultMaxEntries = 64 << 10
	DefaultMaxProof   = 8 << 10
	DefaultMaxPayment = 64 << 10
)

// MaxCID is the length of the longest CID that is read or written, bytes.
const MaxCID = 100

// MaxIndex is the largest leaf index of this protocol. A Codex node that reads
// a larger one ends.
const MaxIndex = 1<<63 - 1

// Limits bound one message. A field of 0 or less means its default.
type Limits struct {
	// MaxFrame is the longest message, bytes. The Codex node sends up to 20
	// blocks in one message, whatever their size, and reads up to 100 MiB.
	MaxFrame int
	// MaxEntries is how many items each of want list, deliveries and presences
	// may hold. A reader drops the items beyond; a writer does not look at it.
	MaxEntries int
	// MaxProof is the longest encoded proof, bytes. A reader drops deliveries
	// with a longer one; a writer does not look at it. A tree of 2^63 leaves
	// with digests of 64 bytes needs 4.4 KiB.
	MaxProof int
	// MaxPayment is the longest payment update, bytes. A reader drops a longer
	// one; a writer does not look at it.
	MaxPayment int
}

func (l Limits) withDefaults() Limits {
	or := func(v, d int) int {
		if v <= 0 {
			return d
		}
		return v
	}
	return Limits{
		MaxFrame:   or(l.MaxFrame, DefaultMaxFrame),
		MaxEntries: or(l.MaxEntries, DefaultMaxEntries),
		MaxProof:   or(l.MaxProof, DefaultMaxProof),
		MaxPayment: or(l.MaxPayment, DefaultMaxPayment),
	}
}

// Protobuf wire types.
const (
	typeVarint  = 0
	typeFixed64 = 1
	typeBytes   = 2
	typeFixed32 = 5
)

// Tags: field number and wire type. All of them take one byte.
const (
	messageWantList = 1<<3 | typeBytes
	messageDelivery = 3<<3 | typeBytes
	messagePresence = 4<<3 | typeBytes
	messagePending  = 5<<3 | typeVarint
	messageAccount  = 6<<3 | typeBytes
	messagePayment  = 7<<3 | typeBytes

	wantListEntry = 1<<3 | typeBytes
	wantListFull  = 2<<3 | typeVarint

	entryAddress      = 1<<3 | typeBytes
	entryPriority     = 2<<3 | typeVarint
	entryCancel       = 3<<3 | typeVarint
	entryType         = 4<<3 | typeVarint
	entrySendDontHave = 5<<3 | typeVarint

	addressLeaf    = 1<<3 | typeVarint
	addressTreeCid = 2<<3 | typeBytes
	addressIndex   = 3<<3 | typeVarint
	addressCid     = 4<<3 | typeBytes

	deliveryCid     = 1<<3 | typeBytes
	deliveryData    = 2<<3 | typeBytes
	deliveryAddress = 3<<3 | typeBytes
	deliveryProof   = 4<<3 | typeBytes

	presenceAddress = 1<<3 | typeBytes
	presenceType    = 2<<3 | typeVarint
	presencePrice   = 3<<3 | typeBytes

	accountAddress = 1<<3 | typeBytes

	paymentUpdate = 1<<3 | typeBytes
)

// Size is the length of the encoded message, bytes, without its frame.
func Size(m *wire.Message) int {
	n := bytesSize(wantListSize(&m.WantList))
	for i := range m.Deliveries {
		n += bytesSize(deliverySize(&m.Deliveries[i]))
	}
	for i := range m.Presences {
		n += bytesSize(presenceSize(&m.Presences[i]))
	}
	n += 1 + uvarintSize(m.PendingBytes)
	n += bytesSize(bytesSize(len(m.Account)))
	n += bytesSize(bytesSize(len(m.Payment)))
	return n
}

// DeliverySize is how many bytes a delivery adds to the [Size] of a message:
// block c of data bytes, under address a, with a proof of so many bytes (0 if
// there is none).
func DeliverySize(a wire.Address, c cid.Cid, data, proof int) int {
	n := bytesSize(c.ByteLen()) + bytesSize(data) + bytesSize(addressSize(a))
	if a.Leaf && proof > 0 {
		n += bytesSize(proof)
	}
	return bytesSize(n)
}

// The sizes below are of a message's inside; bytesSize adds tag and length.

func wantListSize(l *wire.WantList) int {
	n := 2 // full
	for i := range l.Entries {
		n += bytesSize(entrySize(&l.Entries[i]))
	}
	return n
}

func entrySize(e *wire.Entry) int {
	return bytesSize(addressSize(e.Address)) + 1 + uvarintSize(priority(e)) +
		2 + 2 + 2 // cancel, type, sendDontHave
}

func addressSize(a wire.Address) int {
	n := 2 + bytesSize(a.Root.ByteLen()) // leaf, cid
	if a.Leaf {
		n += 1 + uvarintSize(a.Index)
	}
	return n
}

func deliverySize(d *wire.Delivery) int {
	n := bytesSize(d.Cid.ByteLen()) + bytesSize(d.Size()) + bytesSize(addressSize(d.Address))
	if hasProof(d) {
		n += bytesSize(len(d.Proof))
	}
	return n
}

func presenceSize(p *wire.Presence) int {
	return bytesSize(addressSize(p.Address)) + 2 + bytesSize(len(p.Price))
}

// bytesSize is the length of a field of n bytes with its tag and length.
func bytesSize(n int) int { return 1 + uvarintSize(uint64(n)) + n }

func uvarintSize(x uint64) int { return (bits.Len64(x|1) + 6) / 7 }

// priority is the priority that is written: a Codex node that reads a negative
// one ends.
func priority(e *wire.Entry) uint64 { return uint64(max(e.Priority, 0)) }

// hasProof reports whether the proof is written: only leaves have one.
func hasProof(d *wire.Delivery) bool { return d.Address.Leaf && d.Proof != nil }
