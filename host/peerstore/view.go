package peerstore

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/multiformats/go-multiaddr"
)

// A View is the Store as one source uses it. It reads everything. Of addresses
// it changes its own claims only, so that one subsystem's replacement leaves
// alone what others say; the other books have no sources, and are shared.
//
// The view of [Host] goes to libp2p.Peerstore, and closing it, as the libp2p host
// does, closes the Store. Closing any other view does nothing.
type View struct {
	*Store
	writer writer
}

var (
	_ peerstore.Peerstore         = (*View)(nil)
	_ peerstore.CertifiedAddrBook = (*View)(nil)
)

// View returns the Store as a source uses it.
func (s *Store) View(source Source) *View { return &View{Store: s, writer: writer{source: source}} }

// AddAddr is AddAddrs for one address.
func (v *View) AddAddr(p peer.ID, addr multiaddr.Multiaddr, ttl time.Duration) {
	v.addAddrs(v.writer, p, []multiaddr.Multiaddr{addr}, ttl)
}

// AddAddrs claims addresses. It never shortens a claim.
func (v *View) AddAddrs(p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	v.addAddrs(v.writer, p, addrs, ttl)
}

// SetAddr is SetAddrs for one address.
func (v *View) SetAddr(p peer.ID, addr multiaddr.Multiaddr, ttl time.Duration) {
	v.setAddrs(v.writer, p, []multiaddr.Multiaddr{addr}, ttl)
}

// SetAddrs claims addresses for ttl, whatever this source claimed of them before;
// 0 or less withdraws the claims.
func (v *View) SetAddrs(p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	v.setAddrs(v.writer, p, addrs, ttl)
}

// ReplaceAddrs makes addrs all that this source claims.
func (v *View) ReplaceAddrs(p peer.ID, addrs []multiaddr.Multiaddr, ttl time.Duration) {
	v.replaceAddrs(v.writer, p, addrs, ttl)
}

// UpdateAddrs gives this source's claims that have the TTL old the TTL new; 0
// withdraws them. If new is not lower than old it reaches every source's claims:
// it takes nothing from anybody, and kad-dht refreshes in this way the addresses
// that identify has brought.
func (v *View) UpdateAddrs(p peer.ID, old, new time.Duration) { v.updateAddrs(v.writer, p, old, new) }

// ClearAddrs withdraws all claims of this source.
func (v *View) ClearAddrs(p peer.ID) { v.clearAddrs(v.writer, p) }

// ConsumePeerRecord is the Store's; the addresses are claimed by this source.
func (v *View) ConsumePeerRecord(envelope *record.Envelope, ttl time.Duration) (accepted bool, err error) {
	return v.consume(v.writer, envelope, ttl)
}

// RemovePeer is what libp2p calls a minute after the last connection of a peer
// has ended, so that memory does not grow. Here memory is bounded otherwise, and
// what was learned is to outlive the connection. So only that goes which does not
// hold without one: the latency, and that the peer speaks its protocols, which
// are recalled from now on. See [Store.RemovePeer] and [Store.Forget].
func (v *View) RemovePeer(p peer.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.lookup(p)
	if e == nil {
		return
	}
	v.withdraw(e)
	e.latency = 0
	v.settle(e)
}

// Close closes the Store if the view is the Host's.
func (v *View) Close() error {
	if v.writer.source != Host {
		return nil
	}
	return v.Store.Close()
}
