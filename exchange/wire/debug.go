package wire

import (
	"fmt"
	"strings"
)

// shown is how many items of a section String writes out.
const shown = 8

// String tells on one line what the message says: the first items of each
// section and how many more there are. CODEXDEBUG=wire prints messages this way.
//
//	{want list full: want-have zDz…/0, want-have zDz…/1, +1022}
func (m *Message) String() string {
	if m == nil {
		return "{}"
	}
	var b strings.Builder
	b.WriteByte('{')
	section := func(name string) {
		if b.Len() > 1 {
			b.WriteString("; ")
		}
		b.WriteString(name)
	}
	if len(m.WantList.Entries) > 0 || m.WantList.Full {
		name := "want list"
		if m.WantList.Full {
			name += " full"
		}
		section(name)
		items(&b, m.WantList.Entries)
	}
	if len(m.Deliveries) > 0 {
		section("blocks")
		items(&b, m.Deliveries)
	}
	if len(m.Presences) > 0 {
		section("presences")
		items(&b, m.Presences)
	}
	if m.PendingBytes > 0 {
		section("pending ")
		fmt.Fprintf(&b, "%d bytes", m.PendingBytes)
	}
	if m.Account != nil {
		section("account ")
		fmt.Fprintf(&b, "0x%x", m.Account)
	}
	if m.Payment != nil {
		section("payment of ")
		fmt.Fprintf(&b, "%d bytes", len(m.Payment))
	}
	if len(m.Rejected) > 0 {
		section("rejected")
		items(&b, m.Rejected)
	}
	b.WriteByte('}')
	return b.String()
}

// items writes ": a, b, +3".
func items[T any](b *strings.Builder, list []T) {
	for i, item := range list {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString(", ")
		}
		if i == shown {
			fmt.Fprintf(b, "+%d", len(list)-shown)
			return
		}
		fmt.Fprint(b, item)
	}
}

// String tells address, length, whether that is only a reference and, if it is not
// that of the address, CID.
func (d Delivery) String() string {
	s := fmt.Sprintf("%v %d bytes", d.Address, d.Size())
	if d.Ref > 0 {
		s += " by reference"
	}
	if d.Cid != d.Address.Root {
		s += " cid " + CidString(d.Cid)
	}
	if d.Proof != nil {
		s += fmt.Sprintf(" proof %d bytes", len(d.Proof))
	}
	return s
}
