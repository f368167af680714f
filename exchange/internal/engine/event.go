package engine

import (
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// GetterID names one request for blocks. The loop chooses it and never reuses it.
type GetterID uint64

// SessionID names a group of related requests. 0 makes a session for one getter alone.
type SessionID uint64

// An Event is something that happened. Events of peers that are not up, or of
// getters that have ended, are ignored.
type Event interface{ event() }

type (
	// Want is a new request. The wants do not repeat an address. Later, if it is
	// not nil, is the set of the CIDs among them, and the engine's from here on:
	// for a long request it takes time to make, which is better spent elsewhere.
	Want struct {
		Getter  GetterID
		Session SessionID
		Wants   []wire.Want
		Later   map[cid.Cid]struct{}
	}
	// Drop is a request whose caller has gone.
	Drop struct{ Getter GetterID }
	// Took says that a caller has taken delivered blocks out of our hands.
	Took struct {
		Getter GetterID
		Blocks int
		Bytes  int
	}
	// CloseSession forgets what a session knows of peers. Its getters end first.
	CloseSession struct{ Session SessionID }

	// PeerUp is a connected peer that speaks the protocol.
	PeerUp struct {
		Peer    peer.ID
		Epoch   uint64
		Latency time.Duration // round trip, 0 if unknown
		Near    bool          // on the local network, or of our choice: it is always asked
	}
	// PeerDown is the loss of the last connection to a peer. A PeerDown of an
	// older epoch than the last PeerUp is ignored.
	PeerDown struct {
		Peer  peer.ID
		Epoch uint64
	}

	// WantlistIn is what a peer asks of us, takes back or asks again.
	WantlistIn struct {
		Peer peer.ID
		List wire.WantList
	}
	// PresencesIn is what a peer says it has or has not.
	PresencesIn struct {
		Peer      peer.ID
		Presences []wire.Presence
	}
	// BlocksIn is the blocks of one message. Blocks are verified; Bad are those
	// that failed, in particular those that were not what they were called;
	// Unwanted are those that nobody waited for when they came, and that were
	// thrown away without a look.
	BlocksIn struct {
		Peer     peer.ID
		Blocks   []Block
		Bad      []wire.Address
		Unwanted []Block
	}
	// AccountIn is the address at which a peer is paid.
	AccountIn struct {
		Peer    peer.ID
		Account []byte
	}

	// Sent is the end of a Send or SendBlocks; several SendBlocks of one peer end in
	// any order. Not OK means that the peer could not be reached in spite of further
	// tries.
	Sent struct {
		Peer    peer.ID
		Epoch   uint64
		Blocks  bool   // it was a SendBlocks
		Message uint64 // which one
		OK      bool
		Missing []wire.Address // blocks that were gone from the store
	}
	// Streams is how many streams carry blocks to a peer from now on, at least 1,
	// which is what it begins with.
	Streams struct {
		Peer    peer.ID
		Epoch   uint64
		Streams int
	}
	// Looked is the answer to a Lookup, in the same order.
	Looked struct {
		Peer  peer.ID
		Epoch uint64
		Items []LookedItem
	}
	// Stored is blocks that the local store has now. They also satisfy getters.
	Stored struct{ Blocks []Block }
	// StoredLeaves is leaves that the local store has now.
	StoredLeaves struct{ Want wire.Want }

	// Found is a provider that a Search has brought.
	Found struct {
		Key  cid.Cid
		Peer peer.ID
	}
	// Searched is the end of a Search.
	Searched struct{ Key cid.Cid }

	// Tick says only that time has passed.
	Tick struct{}
)

// Block is one block in an event. Its position in the list is its Ref.
type Block struct {
	Address wire.Address
	Size    int // bytes
}

// LookedItem is what the store knows of an address.
type LookedItem struct {
	Address wire.Address
	Size    int
	Held    bool
}

func (Want) event()         {}
func (Drop) event()         {}
func (Took) event()         {}
func (CloseSession) event() {}
func (PeerUp) event()       {}
func (PeerDown) event()     {}
func (WantlistIn) event()   {}
func (PresencesIn) event()  {}
func (BlocksIn) event()     {}
func (AccountIn) event()    {}
func (Sent) event()         {}
func (Streams) event()      {}
func (Looked) event()       {}
func (Stored) event()       {}
func (StoredLeaves) event() {}
func (Found) event()        {}
func (Searched) event()     {}
func (Tick) event()         {}

// An Action is something that should happen now.
type Action interface{ action() }

type (
	// Send writes a message without blocks to a peer. A Sent follows; until
	// then the peer gets no further Send.
	Send struct {
		Peer      peer.ID
		Epoch     uint64
		List      wire.WantList
		Presences []wire.Presence
	}
	// SendBlocks reads blocks from the store and writes them to a peer in one
	// message. A Sent follows. There is at most one more under way than there are
	// streams.
	SendBlocks struct {
		Peer    peer.ID
		Epoch   uint64
		Message uint64 // its number, which no other has
		Blocks  []Block
	}
	// Lookup asks the store which of the addresses it holds. A Looked follows.
	Lookup struct {
		Peer      peer.ID
		Epoch     uint64
		Addresses []wire.Address
	}
	// Deliver hands block Ref of the event that was just stepped to a getter.
	Deliver struct {
		Getter  GetterID
		Address wire.Address
		Ref     int
	}
	// Finish says that a getter has been given everything it asked for.
	Finish struct{ Getter GetterID }
	// Value says how much the connection to a peer is worth now, 0 to 100.
	Value struct {
		Peer  peer.ID
		Value int
	}
	// Search looks for providers of a CID and connects to them. A Found follows
	// for each, and a Searched at the end.
	Search struct{ Key cid.Cid }
)

func (Send) action()       {}
func (SendBlocks) action() {}
func (Lookup) action()     {}
func (Deliver) action()    {}
func (Finish) action()     {}
func (Value) action()      {}
func (Search) action()     {}
