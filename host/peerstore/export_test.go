package peerstore

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
)

// Check returns what is inconsistent in the store, or nil.
func (s *Store) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bytes int64
	var listed [standings]int
	var due int
	for p, e := range s.peers {
		switch {
		case e.id != p:
			return fmt.Errorf("entry of %s: got id %s", p, e.id)
		case e.empty():
			return fmt.Errorf("entry of %s: got an empty one", p)
		case e.cost != e.estimate():
			return fmt.Errorf("cost of %s: got %d, want %d", p, e.cost, e.estimate())
		case e.next != e.earliest(s.options.GoodFor):
			return fmt.Errorf("next of %s: got %d, want %d", p, e.next, e.earliest(s.options.GoodFor))
		case (e.due >= 0) != (e.next != never) || e.due >= 0 && s.due[e.due] != e:
			return fmt.Errorf("due of %s: got %d", p, e.due)
		case !slices.IsSortedFunc(e.addrs, func(a, b address) int { return a.addr.Compare(b.addr) }):
			return fmt.Errorf("addresses of %s: not sorted", p)
		case !slices.IsSorted(e.protocols) || !slices.IsSorted(e.recalled):
			return fmt.Errorf("protocols of %s: not sorted", p)
		case e.pinned() != (e.standing == unlisted):
			return fmt.Errorf("standing of %s: got %d, pinned %v", p, e.standing, e.pinned())
		}
		bytes += int64(e.cost)
		listed[e.standing]++
		if e.due >= 0 {
			due++
		}
	}
	if bytes != s.bytes {
		return fmt.Errorf("bytes: got %d, want %d", s.bytes, bytes)
	}
	if due != len(s.due) {
		return fmt.Errorf("entries that expire: got %d, want %d", len(s.due), due)
	}
	for i := heard; i < standings; i++ {
		var n int
		for e := s.lists[i].head; e != nil; e = e.older {
			if n++; e.standing != i || n > len(s.peers) {
				return fmt.Errorf("list %d: got %s of standing %d", i, e.id, e.standing)
			}
		}
		if n != s.lists[i].n || n != listed[i] {
			return fmt.Errorf("list %d: got %d entries and a count of %d, want %d", i, n, s.lists[i].n, listed[i])
		}
	}
	if total := len(s.peers); total > s.options.MaxPeers+listed[unlisted]+1 {
		return fmt.Errorf("peers: got %d (%d pinned), want at most %d", total, listed[unlisted], s.options.MaxPeers)
	}
	for sub := range s.subs {
		if len(sub.pending) != sub.order.Len() {
			return fmt.Errorf("subscription: got %d pending, %d in order", len(sub.pending), sub.order.Len())
		}
	}
	return nil
}

// DecodeAddrs decodes a value of /peers/addrs and encodes what it says.
func DecodeAddrs(p peer.ID, value []byte) ([]multiaddr.Multiaddr, []byte, error) {
	stored, err := decodeAddrs(p, value)
	if err != nil {
		return nil, nil, err
	}
	var addrs []multiaddr.Multiaddr
	for _, a := range stored.addrs {
		addrs = append(addrs, a.addr)
	}
	again, err := encodeAddrs(&entry{id: p, addrs: stored.addrs, signed: stored.signed, seen: stored.seen}, 0)
	return addrs, again, err
}

func DecodeProtocols(value []byte) ([]protocol.ID, error) {
	return decodeProtocols(value, make(map[string]protocol.ID))
}

func DecodeMetadata(value []byte) (any, error) { return decodeMetadata(value) }

// Metadata keys as they are in the datastore.
var (
	MetadataKey       = metadataDSKey
	DecodeMetadataKey = decodeMetadataKey
)

const FlushPeers = flushPeers
