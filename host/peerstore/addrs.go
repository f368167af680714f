package peerstore

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
)

var manual = writer{source: Manual, all: true}

// AddAddr is AddAddrs for one address.
func (s *Store) AddAddr(p peer.ID, addr multiaddr.Multiaddr, ttl time.Duration) {
	s.addAddrs(manual, p, []multiaddr.Multiaddr{addr}, ttl)
}

// AddAddrs adds addresses. It never shortens the life of one that is there.
func (s *Store) AddAddrs(p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	s.addAddrs(manual, p, addrs, ttl)
}

// SetAddr is SetAddrs for one address.
func (s *Store) SetAddr(p peer.ID, addr multiaddr.Multiaddr, ttl time.Duration) {
	s.setAddrs(manual, p, []multiaddr.Multiaddr{addr}, ttl)
}

// SetAddrs gives the addresses that TTL, whatever they had; 0 or less removes
// them. Other addresses of the peer stay: see ReplaceAddrs.
func (s *Store) SetAddrs(p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	s.setAddrs(manual, p, addrs, ttl)
}

// ReplaceAddrs makes addrs all the addresses of the peer.
func (s *Store) ReplaceAddrs(p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	s.replaceAddrs(manual, p, addrs, ttl)
}

// UpdateAddrs gives addresses that have the TTL old the TTL new; 0 removes them.
func (s *Store) UpdateAddrs(p peer.ID, old, new time.Duration) { s.updateAddrs(manual, p, old, new) }

// ClearAddrs removes all addresses of the peer, and its signed record.
func (s *Store) ClearAddrs(p peer.ID) { s.clearAddrs(manual, p) }

// ConsumePeerRecord adds the addresses of an entry that the peer has signed, and
// keeps the record for as long as the peer has addresses. Addresses of an earlier
// record that are not in this one go, unless they are of a connection. A record
// with a lower sequence number than the last is not accepted.
func (s *Store) ConsumePeerRecord(envelope *record.Envelope, ttl time.Duration) (accepted bool, err error) {
	return s.consume(manual, envelope, ttl)
}

// Addrs returns the addresses of the peer.
func (s *Store) Addrs(p peer.ID) []multiaddr.Multiaddr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.lookup(p); e != nil {
		return e.visible()
	}
	return nil
}

// PeersWithAddrs returns the peers that have an address.
func (s *Store) PeersWithAddrs() peer.IDSlice {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	out := make(peer.IDSlice, 0, len(s.peers))
	for p, e := range s.peers {
		if slices.ContainsFunc(e.addrs, func(a address) bool { return a.expires() > now }) {
			out = append(out, p)
		}
	}
	return out
}

// PeerInfo returns the peer with its addresses.
func (s *Store) PeerInfo(p peer.ID) peer.AddrInfo { return peer.AddrInfo{ID: p, Addrs: s.Addrs(p)} }

// GetPeerRecord returns the last record that the peer has signed, or nil.
func (s *Store) GetPeerRecord(p peer.ID) *record.Envelope {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.lookup(p); e != nil && e.signed != nil {
		return e.signed.envelope
	}
	return nil
}

func (s *Store) addAddrs(w writer, p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	if ttl <= 0 || len(addrs) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return
	}
	s.add(e, addrs, claim{ttl: ttl, expires: expiry(s.now(), ttl), source: w.source})
	s.contact(e, w, ttl)
	s.settle(e)
}

// contact notes that the peer was heard of, or from.
func (s *Store) contact(e *entry, w writer, ttl time.Duration) {
	if w.source == Host && ttl >= peerstore.ConnectedAddrTTL && e.private == nil {
		e.seen = s.now() // identify says so
		s.refresh(e, met)
		return
	}
	s.refresh(e, heard)
}

// add merges a claim into the addresses, with those that are new.
func (s *Store) add(e *entry, addrs []multiaddr.Multiaddr, c claim) {
	for _, m := range addrs {
		addr, size := s.clean(e.id, m)
		if addr == nil {
			continue
		}
		i, found := e.find(addr)
		if found && e.addrs[i].visible() {
			s.raise(e, &e.addrs[i], c)
			continue
		}
		if !s.room(e, c) {
			continue
		}
		s.changing(e)
		if i, found = e.find(addr); !found { // room may have moved it
			e.addrs = slices.Insert(e.addrs, i, address{addr: addr, size: int32(size)})
		}
		e.addrs[i].claims = append(e.addrs[i].claims, c)
		s.changedAddr(e, c)
		s.publish(e.id, addr)
	}
}

// raise merges a claim into those of an address that is visible.
func (s *Store) raise(e *entry, a *address, c claim) {
	old := a.claimOf(c.source)
	if old == nil {
		a.claims = append(a.claims, c)
		s.changedAddr(e, c)
		return
	}
	longer := c.ttl > old.ttl
	later := c.expires > old.expires
	if !longer && !later && (!c.certified || old.certified) {
		return
	}
	old.ttl, old.expires, old.certified = max(old.ttl, c.ttl), max(old.expires, c.expires), old.certified || c.certified
	if longer {
		s.changedAddr(e, *old)
	} else {
		s.extendedAddr(e, *old)
	}
}

// room makes room for one more visible address with this claim, or reports that
// there is none. Of addresses without a connection the one that would expire
// first makes place.
func (s *Store) room(e *entry, c claim) bool {
	var connected, others int
	first := -1
	for i := range e.addrs {
		a := &e.addrs[i]
		switch {
		case !a.visible():
		case a.connected():
			connected++
		default:
			others++
			if first < 0 || a.expires() < e.addrs[first].expires() {
				first = i
			}
		}
	}
	if c.connected() {
		return connected < maxConnectedAddrs
	}
	if others < s.options.MaxAddrs {
		return true
	}
	if first < 0 {
		return false
	}
	s.changing(e)
	e.addrs[first].claims = nil
	s.sweep(e)
	return true
}

func (s *Store) setAddrs(w writer, p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ttl <= 0 {
		if e := s.lookup(p); e != nil {
			s.remove(w, e, addrs)
			s.settle(e)
		}
		return
	}
	e := s.obtain(p)
	if e == nil {
		return
	}
	s.set(w, e, addrs, ttl)
	s.contact(e, w, ttl)
	s.settle(e)
}

// set makes the claim of the writer that of ttl from now on.
func (s *Store) set(w writer, e *entry, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	c := claim{ttl: ttl, expires: expiry(s.now(), ttl), source: w.source}
	for _, m := range addrs {
		addr, _ := s.clean(e.id, m)
		if addr == nil {
			continue
		}
		i, found := e.find(addr)
		if !found || !e.addrs[i].visible() {
			s.add(e, []multiaddr.Multiaddr{addr}, c)
			continue
		}
		a := &e.addrs[i]
		c.certified = false
		for _, old := range a.claims {
			switch {
			case !w.may(old):
			case old.source == c.source && old.ttl == c.ttl:
				c.certified = old.certified
				s.extendedAddr(e, c)
			default:
				c.certified = c.certified || old.source == c.source && old.certified
				s.changedAddr(e, old)
				s.changedAddr(e, c)
			}
		}
		if a.claimOf(c.source) == nil {
			s.changedAddr(e, c)
		}
		a.claims = append(slices.DeleteFunc(a.claims, w.may), c)
	}
}

// remove takes the writer's claims off the addresses.
func (s *Store) remove(w writer, e *entry, addrs []multiaddr.Multiaddr) {
	for _, m := range addrs {
		addr, _ := s.clean(e.id, m)
		if addr == nil {
			continue
		}
		if i, found := e.find(addr); found {
			s.retainOf(e, &e.addrs[i], func(_ *address, c claim) bool { return !w.may(c) })
			if w.all {
				s.disown(e, &e.addrs[i])
			}
		}
	}
	s.sweep(e)
}

// disown forgets that an address was good.
func (s *Store) disown(e *entry, a *address) {
	if a.good != 0 {
		a.good = 0
		s.markDirty(e, addrBook)
	}
}

func (s *Store) replaceAddrs(w writer, p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return
	}
	var keep []multiaddr.Multiaddr
	if ttl > 0 {
		for _, m := range addrs {
			if addr, _ := s.clean(p, m); addr != nil {
				keep = append(keep, addr)
			}
		}
	}
	slices.SortFunc(keep, multiaddr.Multiaddr.Compare)
	kept := func(a *address) bool {
		_, found := slices.BinarySearchFunc(keep, a.addr, multiaddr.Multiaddr.Compare)
		return found
	}
	if w.all {
		for i := range e.addrs {
			if !kept(&e.addrs[i]) {
				s.disown(e, &e.addrs[i])
			}
		}
	}
	s.retain(e, func(a *address, c claim) bool { return !w.may(c) || kept(a) })
	if ttl > 0 {
		s.set(w, e, keep, ttl)
		s.contact(e, w, ttl)
	}
	s.settle(e)
}

// updateAddrs lowers the writer's own claims only. To raise or refresh a claim
// takes nothing from anybody, so that reaches every source: kad-dht keeps the
// addresses of its routing table alive in this way, which identify has brought.
func (s *Store) updateAddrs(w writer, p peer.ID, old, new time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return
	}
	if new <= 0 {
		s.retain(e, func(_ *address, c claim) bool { return c.ttl != old || !w.may(c) })
		s.settle(e)
		return
	}
	expires := expiry(s.now(), new)
	for i := range e.addrs {
		claims := e.addrs[i].claims
		for j := range claims {
			c := &claims[j]
			if c.ttl != old || new < old && !w.may(*c) {
				continue
			}
			was := *c
			c.ttl, c.expires = new, expires
			if old == new {
				s.extendedAddr(e, *c)
			} else {
				s.changedAddr(e, was)
				s.changedAddr(e, *c)
			}
		}
	}
	s.settle(e)
}

func (s *Store) clearAddrs(w writer, p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return
	}
	if w.all {
		for i := range e.addrs {
			s.disown(e, &e.addrs[i])
		}
	}
	s.retain(e, func(_ *address, c claim) bool { return !w.may(c) })
	s.settle(e)
}

func (s *Store) consume(w writer, envelope *record.Envelope, ttl time.Duration) (bool, error) {
	const op = "consume peer record"
	any, err := envelope.Record()
	if err != nil {
		return false, errs.E(errs.Malformed, errs.Peer, op, "", err)
	}
	rec, ok := any.(*peer.PeerRecord)
	if !ok {
		return false, errs.Errorf(errs.Invalid, errs.Caller, op, "got a %T, want a peer record", any)
	}
	if !rec.PeerID.MatchesPublicKey(envelope.PublicKey) {
		return false, errs.Errorf(errs.Malformed, errs.Peer, op, "got a record of %s signed with another key", rec.PeerID)
	}
	raw, err := envelope.Marshal()
	if err != nil {
		return false, errs.E(errs.Malformed, errs.Peer, op, rec.PeerID.String(), err)
	}
	if len(raw) > maxSigned {
		return false, errs.Errorf(errs.TooLarge, errs.Peer, op, "record of %s: got %d bytes, want at most %d", rec.PeerID, len(raw), maxSigned)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(rec.PeerID)
	if e == nil {
		return false, errs.Errorf(errs.TooLarge, errs.Peer, op, "peer id: got %d bytes, want at most %d", len(rec.PeerID), maxPeerID)
	}
	defer s.settle(e)
	if e.signed != nil && e.signed.seq > rec.Seq {
		return false, nil
	}
	if e.signed != nil {
		s.retain(e, func(a *address, c claim) bool {
			return !c.certified || c.connected() || slices.ContainsFunc(rec.Addrs, a.addr.Equal)
		})
	}
	e.signed = &signedRecord{seq: rec.Seq, envelope: envelope, size: int32(len(raw))}
	s.markDirty(e, addrBook)
	if ttl > 0 {
		s.add(e, rec.Addrs, claim{ttl: ttl, expires: expiry(s.now(), ttl), source: w.source, certified: true})
		s.contact(e, w, ttl)
	}
	return true, nil
}

// retain keeps the claims that keep says, and removes what nobody claims then.
func (s *Store) retain(e *entry, keep func(*address, claim) bool) {
	for i := range e.addrs {
		s.retainOf(e, &e.addrs[i], keep)
	}
	s.sweep(e)
}

// retainOf is retain for one address, which stays until the next sweep.
func (s *Store) retainOf(e *entry, a *address, keep func(*address, claim) bool) {
	var kept int
	for _, c := range a.claims {
		if keep(a, c) {
			kept++
		} else {
			s.changedAddr(e, c)
		}
	}
	switch {
	case kept == len(a.claims):
	case kept == 0:
		s.changing(e)
		a.claims = nil
	default:
		a.claims = slices.DeleteFunc(a.claims, func(c claim) bool { return !keep(a, c) })
	}
}

// sweep removes addresses that nobody claims, but for the last few that were good.
func (s *Store) sweep(e *entry) {
	now, unclaimed := s.now(), 0
	e.addrs = slices.DeleteFunc(e.addrs, func(a address) bool {
		if a.visible() {
			return false
		}
		if a.good == 0 || s.options.GoodFor < 0 || expiry(a.good, s.options.GoodFor) <= now {
			if a.good != 0 {
				s.markDirty(e, addrBook)
			}
			return true
		}
		unclaimed++
		return false
	})
	for ; unclaimed > maxUnclaimed; unclaimed-- {
		worst := -1
		for i := range e.addrs {
			if !e.addrs[i].visible() && (worst < 0 || e.addrs[i].good < e.addrs[worst].good) {
				worst = i
			}
		}
		e.addrs = slices.Delete(e.addrs, worst, worst+1)
		s.markDirty(e, addrBook)
	}
	if len(e.addrs) == 0 {
		e.addrs = nil
	}
}

// clean returns the address without the peer's id at its end and its length, or
// nil if it is none, too long, or somebody else's.
func (s *Store) clean(p peer.ID, m multiaddr.Multiaddr) (multiaddr.Multiaddr, int) {
	addr, id := peer.SplitAddr(m)
	if len(addr) == 0 || id != "" && id != p {
		return nil, 0
	}
	size := len(addr.Bytes())
	if size > maxAddrBytes {
		return nil, 0
	}
	return addr, size
}

// changedAddr notes that a claim came, went or has another TTL. Those too short
// to outlive a restart are not written, so they make nothing dirty.
func (s *Store) changedAddr(e *entry, c claim) {
	if lasting(c) {
		s.markDirty(e, addrBook)
	}
}

// extendedAddr notes that a claim lasts longer. That alone is written now and
// then only.
func (s *Store) extendedAddr(e *entry, c claim) {
	const often = 5 * time.Minute
	if lasting(c) && s.now()-e.savedAt >= int64(often) {
		s.markDirty(e, addrBook)
	}
}

// lasting reports whether a claim is worth writing.
func lasting(c claim) bool { return c.ttl > peerstore.TempAddrTTL }
