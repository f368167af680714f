package p2p_test

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
)

// The tests in this file put the adapter over a scripted host, in a synctest
// bubble: the script changes how things are and decides which events tell of it,
// and time is the bubble's.

func TestScripts(t *testing.T) {
	const alice, bob = peer.ID("alice"), peer.ID("bob")
	tests := []struct {
		name string
		run  func(s *script)
	}{
		{"a peer is up once it is connected and identified", func(s *script) {
			s.add(alice, "c1")
			s.connected(alice)
			s.expect("connected alone says nothing of the protocol")
			s.identify(alice)
			s.expect("identify names it", "up alice 1")
			s.identify(alice)
			s.expect("again is nothing new")
			s.remove(alice, "c1")
			s.disconnected(alice)
			s.expect("the last connection is gone", "down alice 1")
		}},
		{"a peer that speaks other protocols is never up", func(s *script) {
			s.add(alice, "c1")
			s.connected(alice)
			s.emit(event.EvtPeerIdentificationCompleted{Peer: alice})
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Added: []protocol.ID{"/other"}})
			s.pass()
			s.expect("nobody named the protocol")
		}},
		{"a second connection changes nothing", func(s *script) {
			s.up(alice, "c1", 1)
			s.add(alice, "c2")
			s.connected(alice)
			s.expect("the peer was there already")
			s.remove(alice, "c1")
			s.disconnected(alice)
			s.expect("the peer is there still")
			s.remove(alice, "c2")
			s.disconnected(alice)
			s.expect("the last is gone", "down alice 1")
		}},
		{"the end is told before the beginning", func(s *script) {
			s.add(alice, "c1")
			s.know(alice)
			s.remove(alice, "c1")
			s.disconnected(alice)
			s.connected(alice)
			s.expect("the peer is not there, whatever came last")
			s.add(alice, "c2")
			s.disconnected(alice)
			s.expect("the peer is there, whatever came last", "up alice 1")
		}},
		{"a reconnect that one event tells", func(s *script) {
			s.up(alice, "c1", 1)
			s.remove(alice, "c1")
			s.add(alice, "c2")
			s.connected(alice)
			s.expect("the old connection has taken its state along", "down alice 1", "up alice 2")
			s.disconnected(alice)
			s.expect("the late word of the old one's end is nothing new")
		}},
		{"a reconnect that no event tells", func(s *script) {
			s.up(alice, "c1", 1)
			s.remove(alice, "c1")
			s.add(alice, "c2")
			s.expect("nothing was told")
			s.pass()
			s.expect("the periodic pass sees it", "down alice 1", "up alice 2")
		}},
		{"an end that no event tells", func(s *script) {
			s.up(alice, "c1", 1)
			s.remove(alice, "c1")
			s.pass()
			s.expect("the periodic pass sees it", "down alice 1")
		}},
		{"a connection that is closed but still listed", func(s *script) {
			s.up(alice, "c1", 1)
			s.host.conns[alice][0].closed = true
			s.disconnected(alice)
			s.expect("it does not count", "down alice 1")
		}},
		{"limited connections do not count", func(s *script) {
			s.know(alice)
			s.addLimited(alice, "relayed")
			s.connected(alice)
			s.identify(alice)
			s.expect("only a relayed connection")
			s.add(alice, "direct")
			s.connected(alice)
			s.expect("a direct one", "up alice 1")
			s.remove(alice, "direct")
			s.disconnected(alice)
			s.expect("the relayed one is left", "down alice 1")
		}},
		{"a peer takes the protocol back and offers it again", func(s *script) {
			s.up(alice, "c1", 1)
			s.forget(alice)
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Removed: []protocol.ID{exchange.ProtocolID}})
			s.expect("its exchange has ended", "down alice 1")
			s.know(alice)
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Added: []protocol.ID{exchange.ProtocolID}})
			s.expect("another has begun", "up alice 2")
		}},
		{"a stream says that the peer speaks the protocol", func(s *script) {
			s.add(alice, "c1")
			s.connected(alice)
			s.stream(alice, "c1")
			s.expect("first the peer, then its stream", "up alice 1", "stream of alice")
			s.stream(alice, "c1")
			s.expect("another", "stream of alice")
		}},
		{"what a stream says ends with its connection", func(s *script) {
			s.add(alice, "c1")
			s.stream(alice, "c1")
			s.expect("the peer speaks the protocol", "up alice 1", "stream of alice")
			s.remove(alice, "c1")
			s.add(alice, "c2")
			s.connected(alice)
			s.expect("it may be another program by now", "down alice 1")
			s.stream(alice, "c2")
			s.expect("it is not", "up alice 2", "stream of alice")
		}},
		{"identify does not undo what a stream says", func(s *script) {
			s.add(alice, "c1")
			s.stream(alice, "c1")
			s.expect("the peer speaks the protocol", "up alice 1", "stream of alice")
			s.emit(event.EvtPeerIdentificationCompleted{Peer: alice})
			s.expect("even if it does not say so itself")
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Removed: []protocol.ID{exchange.ProtocolID}})
			s.expect("until it says that it stopped", "down alice 1")
		}},
		{"a stream on a connection that is gone", func(s *script) {
			s.up(alice, "c1", 1)
			s.reset("it is not handed over", s.stream(alice, "c0"))
			s.expect("and nothing is told")
			s.remove(alice, "c1")
			s.disconnected(alice)
			s.expect("the peer has gone", "down alice 1")
			s.reset("nor is one that comes late", s.stream(alice, "c1"))
			s.expect("and nothing is told")
		}},
		{"a stream on a limited connection", func(s *script) {
			s.up(alice, "c1", 1)
			s.addLimited(alice, "relayed")
			s.reset("it is not handed over", s.stream(alice, "relayed"))
			s.expect("and nothing is told")
		}},
		{"an exchange that restarts, told at once", func(s *script) {
			s.up(alice, "c1", 1)
			release := s.stall(bob)
			s.add(bob, "b1")
			s.identify(bob)
			s.expect("the handler is busy with another peer", "up bob 2")
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Removed: []protocol.ID{exchange.ProtocolID}})
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Added: []protocol.ID{exchange.ProtocolID}})
			release()
			s.expect("what the first knew is gone", "down alice 1", "up alice 3")
		}},
		{"a stream that was opened before the protocol was taken back", func(s *script) {
			release := s.stall(bob)
			s.add(bob, "b1")
			s.identify(bob)
			s.expect("the handler is busy with another peer", "up bob 1")
			s.add(alice, "c1")
			st := s.stream(alice, "c1")
			synctest.Wait()
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Removed: []protocol.ID{exchange.ProtocolID}})
			synctest.Wait()
			release()
			s.reset("it proves nothing", st)
			s.expect("and nothing is told")
		}},
		{"an older answer of identify comes after a newer one", func(s *script) {
			s.add(alice, "c1")
			s.connected(alice)
			s.know(alice)
			s.emit(event.EvtPeerProtocolsUpdated{Peer: alice, Added: []protocol.ID{exchange.ProtocolID}})
			s.forget(alice)
			s.emit(event.EvtPeerIdentificationCompleted{Peer: alice})
			s.expect("what the newer said holds", "up alice 1")
		}},
		{"the host remembers what is no longer true", func(s *script) {
			s.up(alice, "c1", 1)
			s.remove(alice, "c1")
			s.disconnected(alice)
			s.expect("the peer goes", "down alice 1")
			s.add(alice, "c2")
			s.connected(alice)
			s.expect("and comes back, as it seems", "up alice 2")
			s.forget(alice)
			s.emit(event.EvtPeerIdentificationCompleted{Peer: alice})
			s.expect("but it speaks other protocols now", "down alice 2")
		}},
		{"epochs grow over all peers", func(s *script) {
			s.up(alice, "a1", 1)
			s.up(bob, "b1", 2)
			s.remove(alice, "a1")
			s.disconnected(alice)
			s.expect("alice goes", "down alice 1")
			s.up(alice, "a2", 3)
		}},
		{"a slow handler finds the latest state", func(s *script) {
			release := s.stall(alice)
			s.add(alice, "c0")
			s.know(alice)
			s.connected(alice)
			s.expect("the handler is busy with it", "up alice 1")
			for i := range 1000 {
				s.remove(alice, fmt.Sprintf("c%d", i))
				s.disconnected(alice)
				s.add(alice, fmt.Sprintf("c%d", i+1))
				s.connected(alice)
			}
			s.expect("a thousand reconnects wait for it")
			release()
			s.expect("and are told as one", "down alice 1", "up alice 2")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScript(t, p2p.Options{})
				defer s.detach()
				test.run(s)
				synctest.Wait()
			})
		})
	}
}

// Peers that were connected before are told, and after detach nothing is.
func TestScriptAttachDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, p2p.Options{Reconcile: -1})
		s.detach()
		s.add("alice", "c1")
		s.know("alice")
		s.connected("alice")
		s.expect("nobody is attached")
		s.attach()
		s.expect("who was there", "up alice 1")
		s.remove("alice", "c1")
		time.Sleep(time.Hour)
		s.expect("the periodic pass is off")
		s.detach()
		s.attach()
		s.add("alice", "c2")
		s.connected("alice")
		s.expect("epochs go on where they were", "up alice 2")
		s.detach()
		s.disconnected("alice")
		s.emit(event.EvtPeerIdentificationCompleted{Peer: "alice"})
		s.expect("nobody is attached any more")
		if n := len(s.host.notifiees); n != 0 {
			t.Errorf("%d notifiees are left with the host, want none", n)
		}
	})
}

// script plays the host.
type script struct {
	t      *testing.T
	host   *scriptedHost
	net    *p2p.Network
	detach func()

	mu     sync.Mutex
	heard  []string
	stalls map[peer.ID]chan struct{}
}

func newScript(t *testing.T, opts p2p.Options) *script {
	h := &scriptedHost{bus: eventbus.NewBus(), conns: map[peer.ID][]*scriptedConn{}, speaks: map[peer.ID]bool{}, notifiees: map[network.Notifiee]bool{}}
	net, err := p2p.New(h, opts)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, host: h, net: net, stalls: map[peer.ID]chan struct{}{}}
	s.attach()
	return s
}

func (s *script) attach() {
	detach, err := s.net.Attach(s)
	if err != nil {
		s.t.Fatal(err)
	}
	s.detach = detach
}

func (s *script) PeerUp(p peer.ID, epoch uint64) {
	s.mu.Lock()
	s.heard = append(s.heard, fmt.Sprintf("up %s %d", string(p), epoch))
	stall := s.stalls[p]
	s.mu.Unlock()
	if stall != nil {
		<-stall
	}
}

func (s *script) PeerDown(p peer.ID, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, fmt.Sprintf("down %s %d", string(p), epoch))
}

func (s *script) HandleStream(st exchange.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, "stream of "+string(st.Peer()))
}

// expect compares what the handler heard since the last time.
func (s *script) expect(why string, want ...string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.heard, want) {
		s.t.Fatalf("%s: the handler heard %q, want %q", why, s.heard, want)
	}
	s.heard = nil
}

// stall makes the next PeerUp of a peer wait until release is called.
func (s *script) stall(p peer.ID) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{})
	s.stalls[p] = c
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.stalls, p)
		close(c)
	}
}

// add, remove, know and forget change how things are and tell nobody.
func (s *script) add(p peer.ID, id string) { s.host.add(p, &scriptedConn{id: id, peer: p}) }
func (s *script) addLimited(p peer.ID, id string) {
	s.host.add(p, &scriptedConn{id: id, peer: p, limited: true})
}
func (s *script) remove(p peer.ID, id string) { s.host.remove(p, id) }
func (s *script) know(p peer.ID)              { s.host.setSpeaks(p, true) }
func (s *script) forget(p peer.ID)            { s.host.setSpeaks(p, false) }

// connected, disconnected and emit tell of something, true or not.
func (s *script) connected(p peer.ID)    { s.host.notify(p, network.Notifiee.Connected) }
func (s *script) disconnected(p peer.ID) { s.host.notify(p, network.Notifiee.Disconnected) }

func (s *script) emit(ev any) {
	var e event.Emitter
	var err error
	switch ev.(type) {
	case event.EvtPeerIdentificationCompleted:
		e, err = s.host.bus.Emitter(new(event.EvtPeerIdentificationCompleted))
	case event.EvtPeerProtocolsUpdated:
		e, err = s.host.bus.Emitter(new(event.EvtPeerProtocolsUpdated))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer e.Close()
	if err := e.Emit(ev); err != nil {
		s.t.Fatal(err)
	}
}

// stream makes a peer open a stream on a connection, which need not exist.
func (s *script) stream(p peer.ID, conn string) *scriptedStream {
	c := &scriptedConn{id: conn, peer: p}
	s.host.mu.Lock()
	for _, known := range s.host.conns[p] {
		if known.id == conn {
			c = known
		}
	}
	handle := s.host.handle
	s.host.mu.Unlock()
	st := &scriptedStream{conn: c, reset: make(chan struct{})}
	go handle(st)
	return st
}

// reset checks that a stream has been reset.
func (s *script) reset(why string, st *scriptedStream) {
	s.t.Helper()
	synctest.Wait()
	select {
	case <-st.reset:
	default:
		s.t.Errorf("stream of %s on %s: %s: want it reset", string(st.conn.peer), st.conn.id, why)
	}
}

// identify is what happens when identify ends with a peer that speaks the protocol.
func (s *script) identify(p peer.ID) {
	s.know(p)
	s.emit(event.EvtPeerIdentificationCompleted{Peer: p, Protocols: []protocol.ID{exchange.ProtocolID}})
}

// up connects and identifies a peer.
func (s *script) up(p peer.ID, conn string, epoch uint64) {
	s.t.Helper()
	s.add(p, conn)
	s.connected(p)
	s.identify(p)
	s.expect("the peer is there", fmt.Sprintf("up %s %d", string(p), epoch))
}

// pass lets the time between two periodic passes go by.
func (s *script) pass() {
	synctest.Wait()
	time.Sleep(31 * time.Second) // of the bubble
}

// scriptedHost is as much of a host as the adapter uses.
type scriptedHost struct {
	host.Host // nil: everything else panics
	bus       event.Bus

	mu        sync.Mutex
	conns     map[peer.ID][]*scriptedConn
	speaks    map[peer.ID]bool
	notifiees map[network.Notifiee]bool
	handle    network.StreamHandler
}

func (h *scriptedHost) ID() peer.ID                      { return "self" }
func (h *scriptedHost) EventBus() event.Bus              { return h.bus }
func (h *scriptedHost) Network() network.Network         { return scriptedNetwork{h: h} }
func (h *scriptedHost) Peerstore() peerstore.Peerstore   { return scriptedPeerstore{h: h} }
func (h *scriptedHost) ConnManager() connmgr.ConnManager { return connmgr.NullConnMgr{} }

func (h *scriptedHost) SetStreamHandler(_ protocol.ID, handle network.StreamHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handle = handle
}

func (h *scriptedHost) RemoveStreamHandler(protocol.ID) { h.SetStreamHandler("", nil) }

func (h *scriptedHost) add(p peer.ID, c *scriptedConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[p] = append(h.conns[p], c)
}

func (h *scriptedHost) remove(p peer.ID, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[p] = slices.DeleteFunc(h.conns[p], func(c *scriptedConn) bool { return c.id == id })
	if len(h.conns[p]) == 0 {
		delete(h.conns, p)
	}
}

func (h *scriptedHost) setSpeaks(p peer.ID, speaks bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.speaks[p] = speaks
}

func (h *scriptedHost) notify(p peer.ID, call func(network.Notifiee, network.Network, network.Conn)) {
	h.mu.Lock()
	notifiees := slices.Collect(maps.Keys(h.notifiees))
	h.mu.Unlock()
	for _, n := range notifiees {
		call(n, h.Network(), &scriptedConn{peer: p})
	}
}

type scriptedNetwork struct {
	network.Network
	h *scriptedHost
}

func (n scriptedNetwork) Notify(f network.Notifiee) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.notifiees[f] = true
}

func (n scriptedNetwork) StopNotify(f network.Notifiee) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	delete(n.h.notifiees, f)
}

func (n scriptedNetwork) Peers() []peer.ID {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	return slices.Collect(maps.Keys(n.h.conns))
}

func (n scriptedNetwork) ConnsToPeer(p peer.ID) []network.Conn {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	var conns []network.Conn
	for _, c := range n.h.conns[p] {
		conns = append(conns, c)
	}
	return conns
}

type scriptedPeerstore struct {
	peerstore.Peerstore
	h *scriptedHost
}

func (ps scriptedPeerstore) SupportsProtocols(p peer.ID, ids ...protocol.ID) ([]protocol.ID, error) {
	ps.h.mu.Lock()
	defer ps.h.mu.Unlock()
	if ps.h.speaks[p] {
		return ids, nil
	}
	return nil, nil
}

type scriptedConn struct {
	network.Conn
	id              string
	peer            peer.ID
	limited, closed bool
}

func (c *scriptedConn) ID() string                           { return c.id }
func (c *scriptedConn) RemotePeer() peer.ID                  { return c.peer }
func (c *scriptedConn) RemoteMultiaddr() multiaddr.Multiaddr { return nil }
func (c *scriptedConn) IsClosed() bool                       { return c.closed }
func (c *scriptedConn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Limited: c.limited}}
}

type scriptedStream struct {
	network.Stream
	conn  *scriptedConn
	once  sync.Once
	reset chan struct{}
}

func (s *scriptedStream) Conn() network.Conn                           { return s.conn }
func (s *scriptedStream) Scope() network.StreamScope                   { return &network.NullScope{} }
func (s *scriptedStream) Reset() error                                 { s.once.Do(func() { close(s.reset) }); return nil }
func (s *scriptedStream) ResetWithError(network.StreamErrorCode) error { return s.Reset() }
