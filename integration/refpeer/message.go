package refpeer

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// An Address names a block by its CID, or as a leaf: block Index of the dataset
// whose tree is Cid. A leaf and the CID of the same block are different
// addresses. Addresses are comparable; the zero Address is what a message
// without address decodes to.
type Address struct {
	Leaf  bool
	Cid   cid.Cid // of the tree if Leaf, else of the block
	Index uint64  // 0 unless Leaf
}

// Block is the address of a block by CID.
func Block(c cid.Cid) Address { return Address{Cid: c} }

// Leaf is the address of block index of a dataset.
func Leaf(tree cid.Cid, index uint64) Address { return Address{Leaf: true, Cid: tree, Index: index} }

// Leaves is the addresses of blocks 0 to n-1 of a dataset.
func Leaves(tree cid.Cid, n int) []Address {
	as := make([]Address, n)
	for i := range as {
		as[i] = Leaf(tree, uint64(i))
	}
	return as
}

func (a Address) String() string {
	if a.Leaf {
		return cidString(a.Cid) + "/" + strconv.FormatUint(a.Index, 10)
	}
	return cidString(a.Cid)
}

// Values of Entry.Type and Presence.Type.
const (
	WantBlock = 0
	WantHave  = 1

	Have     = 0
	DontHave = 1
)

// An Entry is one line of a want list.
type Entry struct {
	Address      Address
	Priority     int32
	Cancel       bool
	Type         uint8 // WantBlock or WantHave
	SendDontHave bool
}

func (e Entry) String() string {
	s := "want-block "
	switch {
	case e.Cancel:
		s = "cancel "
	case e.Type == WantHave:
		s = "want-have "
	}
	if e.SendDontHave {
		s += "(or say so) "
	}
	return s + e.Address.String()
}

// A WantList is what a peer asks for.
type WantList struct {
	Entries []Entry
	Full    bool
}

// A Presence says whether a peer has a block, and its price.
type Presence struct {
	Address Address
	Type    uint8  // Have or DontHave
	Price   []byte // big-endian; the reference sends 32 bytes and ignores more
}

func (p Presence) String() string {
	if p.Type == DontHave {
		return "DONT_HAVE " + p.Address.String()
	}
	return "HAVE " + p.Address.String()
}

// A Delivery is one block. Data is nil if the field was absent, and empty but
// not nil if it was there without bytes. Proof is nil if absent.
type Delivery struct {
	Cid     cid.Cid
	Data    []byte
	Address Address
	Proof   *Proof
}

func (d Delivery) String() string {
	return fmt.Sprintf("block %s (%d bytes)", d.Address, len(d.Data))
}

// A Message is what one frame holds. From is not on the wire: it is who sent a
// received message. Byte slices of a received message share its frame; nobody
// changes them.
type Message struct {
	From         peer.ID
	WantList     WantList
	Deliveries   []Delivery
	Presences    []Presence
	PendingBytes uint64
	Account      []byte
	Payment      []byte
}

// Want makes a want list message, as the reference sends them: priority 0 and
// never asking for DONT_HAVE.
func Want(kind uint8, full bool, addrs ...Address) Message {
	es := make([]Entry, len(addrs))
	for i, a := range addrs {
		es[i] = Entry{Address: a, Type: kind}
	}
	return Message{WantList: WantList{Entries: es, Full: full}}
}

// Cancel makes the message that withdraws wants; the reference leaves the type
// of such entries at WantHave.
func Cancel(addrs ...Address) Message {
	m := Want(WantHave, false, addrs...)
	for i := range m.WantList.Entries {
		m.WantList.Entries[i].Cancel = true
	}
	return m
}

// Presences makes the message that says that all of addrs are there
// (kind Have), or not (DontHave), at price 0.
func Presences(kind uint8, addrs ...Address) Message {
	ps := make([]Presence, len(addrs))
	for i, a := range addrs {
		ps[i] = Presence{Address: a, Type: kind, Price: make([]byte, 32)}
	}
	return Message{Presences: ps}
}

// Wants reports whether the message has an entry of the given type, not a
// cancellation, for the address.
func (m Message) Wants(kind uint8, a Address) bool {
	for _, e := range m.WantList.Entries {
		if e.Address == a && e.Type == kind && !e.Cancel {
			return true
		}
	}
	return false
}

// Cancels reports whether the message withdraws the want of the address.
func (m Message) Cancels(a Address) bool {
	for _, e := range m.WantList.Entries {
		if e.Address == a && e.Cancel {
			return true
		}
	}
	return false
}

// Says reports whether the message has a presence of the given type for the
// address.
func (m Message) Says(kind uint8, a Address) bool {
	for _, p := range m.Presences {
		if p.Address == a && p.Type == kind {
			return true
		}
	}
	return false
}

// Delivers reports whether the message has a block for the address.
func (m Message) Delivers(a Address) bool {
	for _, d := range m.Deliveries {
		if d.Address == a {
			return true
		}
	}
	return false
}

// String lists what the message holds, each section cut at eight items.
func (m Message) String() string {
	var parts []string
	if n := len(m.WantList.Entries); n > 0 || m.WantList.Full {
		kind := "delta"
		if m.WantList.Full {
			kind = "full"
		}
		parts = append(parts, fmt.Sprintf("%s list of %d: %s", kind, n, list(m.WantList.Entries)))
	}
	if n := len(m.Deliveries); n > 0 {
		parts = append(parts, fmt.Sprintf("%d blocks: %s", n, list(m.Deliveries)))
	}
	if n := len(m.Presences); n > 0 {
		parts = append(parts, fmt.Sprintf("%d presences: %s", n, list(m.Presences)))
	}
	if m.PendingBytes != 0 {
		parts = append(parts, fmt.Sprintf("%d bytes pending", m.PendingBytes))
	}
	if len(m.Account) > 0 {
		parts = append(parts, fmt.Sprintf("account %x", m.Account))
	}
	if len(m.Payment) > 0 {
		parts = append(parts, fmt.Sprintf("payment of %d bytes", len(m.Payment)))
	}
	if len(parts) == 0 {
		return "empty message"
	}
	return strings.Join(parts, "; ")
}

func list[T fmt.Stringer](items []T) string {
	const most = 8
	var parts []string
	for _, it := range items[:min(len(items), most)] {
		parts = append(parts, it.String())
	}
	if len(items) > most {
		parts = append(parts, "…")
	}
	return strings.Join(parts, ", ")
}
