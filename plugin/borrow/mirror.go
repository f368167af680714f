package borrow

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// mirrorLag is how long an answer of the host waits for the event that it
	// goes with.
	mirrorLag = 2 * time.Second
	// goneFor is how long a peer is remembered after its last connection.
	goneFor = 15 * time.Minute
	// maxGone is how many such peers are remembered.
	maxGone = 4096
	// maxProtocols and maxAddrs are how many of one peer are kept; the host's
	// own peerstore keeps fewer.
	maxProtocols = 1024
	maxAddrs     = 256
)

// A mirror is what the host has told of its peers. Only readEvents and forget
// change it.
type mirror struct {
	n *Node

	mu      sync.RWMutex
	book    fullBook // brought up to date under the lock
	peers   map[peer.ID]*peerState
	conns   map[string]*conn
	gone    list.List     // of *peerState without connections, longest gone first
	changed chan struct{} // closed with the next change; nil if nobody waits
}

// fullBook is what pstoremem implements.
type fullBook interface {
	peerstore.Peerstore
	peerstore.CertifiedAddrBook
}

// peerbook is the peerstore as libp2p sees it. Latencies that the host has
// measured count before those that were measured over its streams.
type peerbook struct {
	fullBook
	m *mirror
}

func (b peerbook) LatencyEWMA(p peer.ID) time.Duration {
	if latency := b.m.latency(p); latency > 0 {
		return latency
	}
	return b.fullBook.LatencyEWMA(p)
}

// peerState is what is known of a peer. The slices are never changed.
type peerState struct {
	id         peer.ID
	epoch      uint64
	conns      []*conn
	protocols  []protocol.ID // sorted, each once
	identified bool
	latency    time.Duration
	addrs      []ma.Multiaddr

	since time.Time     // when the last connection was lost
	gone  *list.Element // of mirror.gone, nil while it is connected
}

func newMirror(n *Node) (*mirror, error) {
	book, err := pstoremem.NewPeerstore(pstoremem.WithMaxProtocols(maxProtocols))
	if err != nil {
		return nil, err
	}
	return &mirror{n: n, book: book, peers: make(map[peer.ID]*peerState), conns: make(map[string]*conn)}, nil
}

// parse makes a peerState of a message, and says what is wrong with it. Addresses
// of kinds that are not known here are left out: the host may be newer.
func (m *mirror) parse(msg *pb.PeerState) (*peerState, error) {
	id, err := peer.IDFromBytes(msg.GetPeer())
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	st := &peerState{id: id, epoch: msg.GetEpoch(), identified: msg.GetIdentified(), latency: time.Duration(min(msg.GetLatency(), 1<<62))}
	for _, s := range msg.GetProtocols()[:min(len(msg.GetProtocols()), maxProtocols)] {
		st.protocols = append(st.protocols, protocol.ID(s))
	}
	slices.Sort(st.protocols)
	st.protocols = slices.Compact(st.protocols)
	for _, b := range msg.GetAddrs()[:min(len(msg.GetAddrs()), maxAddrs)] {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			st.addrs = append(st.addrs, a)
		}
	}
	for i, c := range msg.GetConnections() {
		if c.GetId() == "" || slices.ContainsFunc(st.conns, func(other *conn) bool { return other.id == c.GetId() }) {
			return nil, fmt.Errorf("connection %d of %v: its id is %q, want one of its own", i, id, c.GetId())
		}
		st.conns = append(st.conns, newConn(m.n, id, c))
	}
	return st, nil
}

// change is the difference between two states of a peer.
type change struct {
	peer           peer.ID
	lost, made     []*conn
	before, after  network.Connectedness
	identified     bool // by now, and not before
	added, removed []protocol.ID
	state          *peerState // after
}

// apply puts a state in place of the one before, of which it takes over the
// connections that stay, and tells the difference. An older epoch than is known
// changes nothing. If the peer has come back and nobody saw it go, it goes
// first.
func (m *mirror) apply(st *peerState, tell func(change)) error {
	m.mu.RLock()
	old := m.peers[st.id]
	m.mu.RUnlock()
	if old != nil && st.epoch < old.epoch {
		return nil
	}
	if old != nil && st.epoch > old.epoch && len(old.conns) > 0 && len(st.conns) > 0 {
		c, err := m.replace(&peerState{id: old.id, epoch: old.epoch})
		if err != nil {
			return err
		}
		tell(c)
	}
	c, err := m.replace(st)
	if err != nil {
		return err
	}
	tell(c)
	return nil
}

// replace is one step of apply. It fails if a connection is another peer's.
func (m *mirror) replace(st *peerState) (change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.peers[st.id]
	if old == nil {
		old = &peerState{id: st.id}
	}
	if len(st.conns) == 0 {
		// What was known stays known, as in libp2p; a host may leave it out.
		if len(st.protocols) == 0 {
			st.protocols = old.protocols
		}
		if len(st.addrs) == 0 {
			st.addrs = old.addrs
		}
		st.latency = cmp.Or(st.latency, old.latency)
	}
	c := change{peer: st.id, before: connectedness(old.conns), state: st}
	for i, made := range st.conns {
		switch had := m.conns[made.id]; {
		case had == nil:
			c.made = append(c.made, made)
		case had.peer == st.id:
			st.conns[i] = had
		default:
			return change{}, fmt.Errorf("connection %q of %v: it is one of %v", made.id, st.id, had.peer)
		}
	}
	for _, had := range old.conns {
		if !slices.Contains(st.conns, had) {
			c.lost = append(c.lost, had)
		}
	}
	c.after = connectedness(st.conns)
	same := old.epoch == st.epoch && len(old.conns) > 0
	c.identified = st.identified && len(st.conns) > 0 && !(same && old.identified)
	if same && !c.identified && len(st.conns) > 0 {
		c.added, c.removed = missing(st.protocols, old.protocols), missing(old.protocols, st.protocols)
	}

	for _, lost := range c.lost {
		delete(m.conns, lost.id)
	}
	for _, made := range c.made {
		m.conns[made.id] = made
	}
	m.peers[st.id] = st
	m.keep(old, st)
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
	return c, nil
}

// keep brings the peerstore up to date, and the list of those that are gone.
// Lock held.
func (m *mirror) keep(old, st *peerState) {
	_ = m.book.SetProtocols(st.id, st.protocols...) // there are not too many
	lostAddrs := slices.DeleteFunc(slices.Clone(old.addrs), func(a ma.Multiaddr) bool { return ma.Contains(st.addrs, a) })
	m.book.SetAddrs(st.id, lostAddrs, 0)
	ttl := time.Duration(peerstore.ConnectedAddrTTL)
	if len(st.conns) == 0 {
		ttl = goneFor
	}
	m.book.SetAddrs(st.id, st.addrs, ttl)

	if old.gone != nil {
		m.gone.Remove(old.gone)
	}
	if len(st.conns) == 0 {
		st.since = time.Now()
		st.gone = m.gone.PushBack(st)
		if m.gone.Len() > maxGone {
			m.drop(m.gone.Front().Value.(*peerState))
		}
	}
}

// forget lets go of the peers whose last connection was lost before a time.
func (m *mirror) forget(before time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := m.gone.Front(); e != nil && e.Value.(*peerState).since.Before(before); e = m.gone.Front() {
		m.drop(e.Value.(*peerState))
	}
}

// drop forgets a peer that is gone. Lock held.
func (m *mirror) drop(st *peerState) {
	m.gone.Remove(st.gone)
	delete(m.peers, st.id)
	m.book.RemovePeer(st.id)
	m.book.ClearAddrs(st.id)
}

// missing are the members of a that are not in b, both sorted.
func missing(a, b []protocol.ID) (out []protocol.ID) {
	for _, p := range a {
		if _, ok := slices.BinarySearch(b, p); !ok {
			out = append(out, p)
		}
	}
	return out
}

// connectedness is what connections make of a peer.
func connectedness(conns []*conn) network.Connectedness {
	switch {
	case len(conns) == 0:
		return network.NotConnected
	case slices.ContainsFunc(conns, func(c *conn) bool { return !c.limited }):
		return network.Connected
	}
	return network.Limited
}

func (m *mirror) latency(p peer.ID) time.Duration {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if st := m.peers[p]; st != nil {
		return st.latency
	}
	return 0
}

// connsTo are the open connections to a peer. They are not to be changed.
func (m *mirror) connsTo(p peer.ID) []*conn {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if st := m.peers[p]; st != nil {
		return st.conns
	}
	return nil
}

// conn is an open connection, nil if there is none with that id.
func (m *mirror) conn(id string) *conn {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.conns[id]
}

// all are the open connections.
func (m *mirror) all() []*conn {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Values(m.conns))
}

// await waits until seen returns true, for a short time: what the host has
// answered is told in an event too, which may come later, or never if it is over
// already.
func (m *mirror) await(ctx context.Context, seen func() bool) {
	if seen() {
		return
	}
	timer := time.NewTimer(mirrorLag)
	defer timer.Stop()
	for {
		m.mu.Lock()
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed := m.changed
		m.mu.Unlock()
		if seen() {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-m.n.done:
			return
		}
	}
}
