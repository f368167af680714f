package peerstore

import (
	"math"
	"slices"
	"time"
	"unique"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/multiformats/go-multiaddr"
)

// never is the time at which connected and permanent addresses expire.
const never = math.MaxInt64

// Times in this file are nanoseconds of the Store's clock, which is wall time
// when the Store was opened and runs steadily from there.

// An entry is everything known of one peer. It is guarded by Store.mu, and lives
// in Store.peers for as long as it says anything.
type entry struct {
	id        peer.ID
	addrs     []address     // sorted; changed in place
	protocols []protocol.ID // sorted; replaced, never changed in place
	recalled  []protocol.ID // from disk or from before the last connection, unconfirmed; sorted, none of protocols
	metadata  []metadatum   // sorted by key
	public    crypto.PubKey
	private   crypto.PrivKey
	signed    *signedRecord
	latency   time.Duration // 0 if not measured
	seen      int64         // end of the last contact with the peer itself; 0 if there was none
	conns     int32         // connections that are up

	// Kept by Store.settle.
	next     int64 // when purge has something to do
	due      int32 // index in Store.due, or -1
	cost     int32 // bytes, estimated
	standing standing
	newer    *entry // neighbours in the list of its standing
	older    *entry

	// Kept by persist.go.
	saved   books // values that may be on disk
	savedAt int64 // when addresses were last encoded
}

// An address is one address of a peer. It is visible while somebody claims it.
// Afterwards it is kept, out of sight, while a dial to it was successful not
// long ago.
type address struct {
	addr   multiaddr.Multiaddr
	claims []claim
	good   int64 // last success of a dial, 0 if none
	size   int32 // bytes of addr
}

// A claim is one source's word for an address.
type claim struct {
	ttl       time.Duration
	expires   int64
	source    Source
	certified bool // came in a record signed by the peer
}

func (c claim) connected() bool { return c.ttl >= peerstore.ConnectedAddrTTL }

type metadatum struct {
	key   string
	value any
	saved bool // may be on disk
}

type signedRecord struct {
	seq      uint64
	envelope *record.Envelope
	size     int32
}

// expiry is when something expires that lives for ttl from now.
func expiry(now int64, ttl time.Duration) int64 {
	if ttl >= peerstore.ConnectedAddrTTL || int64(ttl) > never-now {
		return never
	}
	return now + int64(ttl)
}

func (a *address) visible() bool { return len(a.claims) > 0 }

// connected reports whether the address counts as connected or permanent.
func (a *address) connected() bool { return slices.ContainsFunc(a.claims, claim.connected) }

// expires is when the last claim does.
func (a *address) expires() int64 {
	var last int64
	for _, c := range a.claims {
		last = max(last, c.expires)
	}
	return last
}

// claimOf returns the claim of a source, or nil.
func (a *address) claimOf(s Source) *claim {
	for i := range a.claims {
		if a.claims[i].source == s {
			return &a.claims[i]
		}
	}
	return nil
}

// find returns where addr is among the peer's addresses, or belongs.
func (e *entry) find(addr multiaddr.Multiaddr) (int, bool) {
	return slices.BinarySearchFunc(e.addrs, addr, func(a address, m multiaddr.Multiaddr) int { return a.addr.Compare(m) })
}

// visible returns the addresses that readers see, sorted.
func (e *entry) visible() []multiaddr.Multiaddr {
	var n int
	for i := range e.addrs {
		if e.addrs[i].visible() {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]multiaddr.Multiaddr, 0, n)
	for i := range e.addrs {
		if e.addrs[i].visible() {
			out = append(out, e.addrs[i].addr)
		}
	}
	return out
}

func (e *entry) anyVisible() bool {
	return slices.ContainsFunc(e.addrs, func(a address) bool { return a.visible() })
}

// empty reports whether the entry says nothing.
func (e *entry) empty() bool {
	return len(e.addrs) == 0 && len(e.protocols) == 0 && len(e.recalled) == 0 && len(e.metadata) == 0 &&
		e.public == nil && e.private == nil && e.latency == 0 && e.conns == 0
}

// pinned reports whether the peer is never evicted: it is connected, or ourselves,
// or somebody gave it a permanent address.
func (e *entry) pinned() bool {
	return e.conns > 0 || e.private != nil ||
		slices.ContainsFunc(e.addrs, func(a address) bool { return a.connected() })
}

// earliest is when something of the entry expires. Addresses that were good are
// kept for goodFor.
func (e *entry) earliest(goodFor time.Duration) int64 {
	next := int64(never)
	for i := range e.addrs {
		a := &e.addrs[i]
		for _, c := range a.claims {
			next = min(next, c.expires)
		}
		if !a.visible() {
			next = min(next, expiry(a.good, goodFor))
		}
	}
	return next
}

// estimate is about how many bytes the entry takes, if it shares none of its
// protocols with others.
func (e *entry) estimate() int32 {
	const base = 416 // the entry, its place in the maps, its key
	n := base + 2*len(e.id)
	for i := range e.addrs {
		a := &e.addrs[i]
		n += 64 + 32*len(a.claims) + 56*len(a.addr) + int(a.size)
	}
	for _, p := range e.protocols {
		n += 16 + len(p)
	}
	for _, p := range e.recalled {
		n += 16 + len(p)
	}
	for _, m := range e.metadata {
		n += 48 + len(m.key) + sizeOf(m.value)
	}
	if e.signed != nil {
		n += 128 + 2*int(e.signed.size)
	}
	if e.public != nil {
		n += 512
	}
	return int32(n)
}

// sizeOf is the length of a value that can be written, and a guess for others.
func sizeOf(value any) int {
	switch v := value.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	}
	return 64
}

func (e *entry) findMetadata(key string) (int, bool) {
	return slices.BinarySearchFunc(e.metadata, key, func(m metadatum, k string) int {
		switch {
		case m.key < k:
			return -1
		case m.key > k:
			return 1
		}
		return 0
	})
}

// intern returns a string equal to s that is shared by all who ask for it.
func intern[S ~string](s S) S { return S(unique.Make(string(s)).Value()) }

// union returns the sorted set of what is in a, which is sorted, or in more.
// It returns a itself if more adds nothing.
func union(a []protocol.ID, more []protocol.ID) []protocol.ID {
	out, copied := a, false
	for _, p := range more {
		if len(p) > maxProtocolID {
			continue
		}
		if i, found := slices.BinarySearch(out, p); !found {
			if !copied {
				out, copied = slices.Clone(out), true
			}
			out = slices.Insert(out, i, intern(p))
		}
	}
	return slices.Clip(out)
}

// without returns what is in a, which is sorted, and not in less. It returns a
// itself if that is all.
func without(a []protocol.ID, less []protocol.ID) []protocol.ID {
	in := func(p protocol.ID) bool { return slices.Contains(less, p) }
	if !slices.ContainsFunc(a, in) {
		return a
	}
	out := slices.DeleteFunc(slices.Clone(a), in)
	if len(out) == 0 {
		return nil
	}
	return out
}
