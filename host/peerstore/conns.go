package peerstore

import (
	"cmp"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"
)

// Notifiee tells the Store of connections, when the host's network is given it.
// Without, the Store does not know which addresses were good.
//
// The address of a connection that we dialled is stored, as good. The remote
// address of one that we accepted is not: behind a NAT, and over TCP as a rule,
// its port is that of this connection alone, nobody can dial it, and the DHT
// would pass it on to others.
func (s *Store) Notifiee() network.Notifiee {
	return &network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			s.connected(c.RemotePeer(), dialled(c), +1)
		},
		DisconnectedF: func(_ network.Network, c network.Conn) {
			s.connected(c.RemotePeer(), dialled(c), -1)
		},
	}
}

// dialled returns the address of a connection if it is we who dialled.
func dialled(c network.Conn) multiaddr.Multiaddr {
	if c.Stat().Direction != network.DirOutbound {
		return nil
	}
	return c.RemoteMultiaddr()
}

// connected notes that a connection began or ended. Either is contact with the
// peer, and says that the address was good until now.
func (s *Store) connected(p peer.ID, addr multiaddr.Multiaddr, change int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return
	}
	now := s.now()
	e.conns = max(0, e.conns+change)
	e.seen = now
	s.refresh(e, met)
	if addr, _ := s.clean(p, addr); addr != nil {
		if change > 0 {
			ttl := peerstore.TempAddrTTL // as libp2p's dial does: identify has the last word
			s.add(e, []multiaddr.Multiaddr{addr}, claim{ttl: ttl, expires: expiry(now, ttl), source: Host})
		}
		if i, found := e.find(addr); found {
			e.addrs[i].good = now
		}
	}
	s.markDirty(e, addrBook)
	s.settle(e)
}

// RecentlyGood returns at most n peers that were dialled with success and are not
// connected now, the latest first, each with its addresses: those that were good,
// then the others. A node that starts dials them beside its bootstrap nodes.
func (s *Store) RecentlyGood(n int) []peer.AddrInfo {
	type good struct {
		e  *entry
		at int64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var all []good
	for _, e := range s.peers {
		g := good{e: e}
		for i := range e.addrs {
			if a := &e.addrs[i]; a.good != 0 && s.options.GoodFor > 0 && expiry(a.good, s.options.GoodFor) > now {
				g.at = max(g.at, a.good)
			}
		}
		if g.at != 0 && e.conns == 0 {
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b good) int {
		return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(a.e.id, b.e.id))
	})
	all = all[:min(max(n, 0), len(all))]
	out := make([]peer.AddrInfo, 0, len(all))
	for _, g := range all {
		addrs := slices.Clone(g.e.addrs)
		slices.SortStableFunc(addrs, func(a, b address) int { return cmp.Compare(b.good, a.good) })
		info := peer.AddrInfo{ID: g.e.id}
		for _, a := range addrs {
			if a.good != 0 || a.expires() > now {
				info.Addrs = append(info.Addrs, a.addr)
			}
		}
		out = append(out, info)
	}
	return out
}
