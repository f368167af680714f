package borrow

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

var (
	alice, bob = testPeer("alice"), testPeer("bob")
	names      = map[peer.ID]string{alice: "alice", bob: "bob", testPeer("end"): "end"}
	synced     = &pb.Event{What: &pb.Event_Synced{Synced: &pb.Synced{}}}
)

func addr(s string) []byte { return ma.StringCast(s).Bytes() }

// state is a PeerState; what is a list of connections, each "id" or "id limited",
// and protocols, which begin with a slash, and of "identified".
func state(p peer.ID, epoch uint64, what ...string) *pb.PeerState {
	st := &pb.PeerState{Peer: []byte(p), Epoch: epoch}
	for _, w := range what {
		id, limited := strings.CutSuffix(w, " limited")
		switch {
		case w == "identified":
			st.Identified = true
		case strings.HasPrefix(w, "/"):
			st.Protocols = append(st.Protocols, w)
		default:
			st.Connections = append(st.Connections, &pb.Connection{
				Id: id, Limited: limited, Inbound: true, Opened: 1e9,
				LocalAddr: addr("/ip4/127.0.0.1/tcp/1"), RemoteAddr: addr("/ip4/127.0.0.1/tcp/2"),
			})
		}
	}
	return st
}

func said(st *pb.PeerState) *pb.Event { return &pb.Event{What: &pb.Event_Peer{Peer: st}} }

// A listener writes down what a Node announces.
type listener struct {
	t   testing.TB
	n   *Node
	f   *fakeHost
	sub event.Subscription

	mu    sync.Mutex
	calls []string
	ends  chan struct{}
	ended uint64 // epochs of the peer "end"
}

func listenTo(t testing.TB, f *fakeHost, n *Node) *listener {
	l := &listener{t: t, f: f, n: n, ends: make(chan struct{}, 100)}
	l.sub = must[event.Subscription](t)(n.Host().EventBus().Subscribe([]any{
		new(event.EvtPeerConnectednessChanged), new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated),
	}, eventbus.BufSize(100)))
	n.Host().Network().Notify(&network.NotifyBundle{
		ConnectedF:    func(net network.Network, c network.Conn) { l.call("connected", net, c) },
		DisconnectedF: func(net network.Network, c network.Conn) { l.call("disconnected", net, c) },
	})
	return l
}

func (l *listener) call(what string, net network.Network, c network.Conn) {
	if names[c.RemotePeer()] == "end" {
		if what == "connected" {
			l.ends <- struct{}{}
		}
		return
	}
	// The mirror is up to date when the call comes.
	if net.Connectedness(c.RemotePeer()) == network.NotConnected {
		what += ", gone"
	}
	if c.IsClosed() != strings.HasPrefix(what, "dis") {
		what += ", IsClosed is wrong"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, c.ID()+" "+what)
}

// heard is what was announced since the last time: to notifiees, and on the bus.
func (l *listener) heard() (calls, bus []string) {
	l.t.Helper()
	l.ended++
	l.f.events <- said(state(testPeer("end"), l.ended, fmt.Sprintf("end%d", l.ended)))
	receive(l.t, "the last event is announced", l.ends)
	for {
		select {
		case ev := <-l.sub.Out():
			switch ev := ev.(type) {
			case event.EvtPeerConnectednessChanged:
				if names[ev.Peer] == "end" {
					if ev.Connectedness == network.NotConnected {
						continue
					}
					l.mu.Lock()
					defer l.mu.Unlock()
					calls, l.calls = l.calls, nil
					return calls, bus
				}
				bus = append(bus, fmt.Sprintf("%s %v", names[ev.Peer], ev.Connectedness))
			case event.EvtPeerIdentificationCompleted:
				bus = append(bus, fmt.Sprintf("%s identified %v on %s", names[ev.Peer], ev.Protocols, ev.Conn.ID()))
			case event.EvtPeerProtocolsUpdated:
				bus = append(bus, fmt.Sprintf("%s +%v -%v", names[ev.Peer], ev.Added, ev.Removed))
			}
		case <-time.After(patience):
			l.t.Fatal("the end is not on the bus")
		}
	}
}

// An exchange that is started over again learns of the connections that were there
// before it: who asks for announcements is told of them at once, and once.
func TestNewNotifieeIsToldOfConnections(t *testing.T) {
	f := newFake(t)
	n := f.node()
	first := listenTo(t, f, n)
	f.events <- said(state(alice, 1, "a1", "a2"))
	f.events <- said(state(bob, 1, "b1"))
	f.events <- said(state(bob, 2))
	first.heard()
	var told []string
	late := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if names[c.RemotePeer()] != "end" {
			told = append(told, c.ID())
		}
	}}
	n.Host().Network().Notify(late)
	n.Host().Network().Notify(late)
	slices.Sort(told)
	if want := []string{"a1", "a2"}; !slices.Equal(told, want) {
		t.Errorf("a late notifiee is told of %v, want %v", told, want)
	}
}

// What the host says of peers is announced as libp2p would: the difference, in
// order, and nothing for what is stale, odd or unknown.
func TestEvents(t *testing.T) {
	type step struct {
		why        string
		host       []*pb.Event
		calls, bus []string
	}
	later := &pb.Event{}
	later.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	oddAddr := state(alice, 1, "a1")
	oddAddr.Connections[0].RemoteAddr = []byte{0xff, 0xff, 0x7f, 1}
	oddAddr.Addrs = [][]byte{{0xff, 0xff, 0x7f}, addr("/ip4/127.0.0.1/tcp/2")}
	one := func(p peer.ID, epoch uint64, what ...string) []*pb.Event {
		return []*pb.Event{said(state(p, epoch, what...))}
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"a peer comes and goes", []step{
			{"it connects", one(alice, 1, "a1"), []string{"a1 connected"}, []string{"alice Connected"}},
			{"it is identified", one(alice, 1, "a1", "/y", "/x", "identified"), nil, []string{"alice identified [/x /y] on a1"}},
			{"it says the same again", one(alice, 1, "a1", "/y", "/x", "identified"), nil, nil},
			{"it changes protocols", one(alice, 1, "a1", "/z", "/x", "identified"), nil, []string{"alice +[/z] -[/y]"}},
			{"a second connection", one(alice, 1, "a1", "a2", "/z", "/x", "identified"), []string{"a2 connected"}, nil},
			{"the first ends", one(alice, 1, "a2", "/z", "/x", "identified"), []string{"a1 disconnected"}, nil},
			{"the last ends", one(alice, 1), []string{"a2 disconnected, gone"}, []string{"alice NotConnected"}},
			{"again", one(alice, 1), nil, nil},
			{"it comes back", one(alice, 2, "a3", "/x", "identified"), []string{"a3 connected"}, []string{"alice Connected", "alice identified [/x] on a3"}},
		}},
		{"everything at once", []step{
			{"one change", one(alice, 1, "a1", "a2"), []string{"a1 connected", "a2 connected"}, []string{"alice Connected"}},
			{"another", one(alice, 1, "a2", "a3", "/x", "identified"), []string{"a1 disconnected", "a3 connected"}, []string{"alice identified [/x] on a2"}},
		}},
		{"a peer that nobody saw go", []step{
			{"it is there", one(alice, 1, "a1", "/x", "identified"), []string{"a1 connected"}, []string{"alice Connected", "alice identified [/x] on a1"}},
			{
				"it goes first", one(alice, 2, "a2", "/x", "identified"), []string{"a1 disconnected, gone", "a2 connected"},
				[]string{"alice NotConnected", "alice Connected", "alice identified [/x] on a2"},
			},
		}},
		{"an epoch that is over", []step{
			{"it is there", one(alice, 5, "a5"), []string{"a5 connected"}, []string{"alice Connected"}},
			{"an older word of it", one(alice, 4), nil, nil},
			{"another", one(alice, 4, "a4"), nil, nil},
			{"it goes", one(alice, 5), []string{"a5 disconnected, gone"}, []string{"alice NotConnected"}},
			{"and an older word still", one(alice, 4, "a4"), nil, nil},
		}},
		{"limited connections", []step{
			{"one", one(alice, 1, "a1 limited"), []string{"a1 connected"}, []string{"alice Limited"}},
			{"and a direct one", one(alice, 1, "a1 limited", "a2"), []string{"a2 connected"}, []string{"alice Connected"}},
			{"which ends", one(alice, 1, "a1 limited"), []string{"a2 disconnected"}, []string{"alice Limited"}},
		}},
		{"two peers", []step{
			{
				"in turn", append(one(alice, 1, "a1"), one(bob, 2, "b1")...), []string{"a1 connected", "b1 connected"},
				[]string{"alice Connected", "bob Connected"},
			},
		}},
		{"what is odd", []step{
			{"no event", []*pb.Event{{}, later, synced, {What: &pb.Event_Peer{}}}, nil, nil},
			{"a peer without a name", []*pb.Event{said(&pb.PeerState{Peer: []byte("x"), Epoch: 1, Connections: state(alice, 1, "a1").Connections})}, nil, nil},
			{"a connection without a name", one(alice, 1, ""), nil, nil},
			{"a connection twice", one(alice, 1, "a1", "a1"), nil, nil},
			{"addresses of kinds that are not known", []*pb.Event{said(oddAddr)}, []string{"a1 connected"}, []string{"alice Connected"}},
			{"another peer's connection", one(bob, 2, "a1"), nil, nil},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			l := listenTo(t, f, f.node())
			for _, s := range test.steps {
				for _, ev := range s.host {
					f.events <- ev
				}
				calls, bus := l.heard()
				if !slices.Equal(calls, s.calls) {
					t.Errorf("%s: notifiees: got %q, want %q", s.why, calls, s.calls)
				}
				if !slices.Equal(bus, s.bus) {
					t.Errorf("%s: bus: got %q, want %q", s.why, bus, s.bus)
				}
			}
		})
	}
}

// What was said before Synced is there when Open returns, and what the mirror
// shows of it is what the host said.
func TestMirror(t *testing.T) {
	f := newFake(t)
	st := state(alice, 1, "a1", "a2 limited", "/x", "identified")
	st.Latency, st.Addrs = uint64(30*time.Millisecond), [][]byte{addr("/ip4/10.0.0.1/tcp/4")}
	f.events <- said(st)
	n := f.node()
	h := n.Host()
	if got := h.Network().Peers(); !slices.Equal(got, []peer.ID{alice}) {
		t.Errorf("peers: got %v, want alice", got)
	}
	conns := h.Network().ConnsToPeer(alice)
	if len(conns) != 2 || len(h.Network().Conns()) != 2 {
		t.Fatalf("connections: got %v, want 2", conns)
	}
	c := conns[0]
	if stat := c.Stat(); stat.Direction != network.DirInbound || stat.Limited || !stat.Opened.Equal(time.Unix(1, 0)) || !conns[1].Stat().Limited {
		t.Errorf("stat: got %+v, %+v", stat, conns[1].Stat())
	}
	if c.ID() != "a1" || c.LocalPeer() != self || c.RemoteMultiaddr().String() != "/ip4/127.0.0.1/tcp/2" || c.IsClosed() {
		t.Errorf("connection: got %s, %v, %v, closed %v", c.ID(), c.LocalPeer(), c.RemoteMultiaddr(), c.IsClosed())
	}
	book := h.Peerstore()
	if got := book.LatencyEWMA(alice); got != 30*time.Millisecond {
		t.Errorf("latency: got %v, want 30ms", got)
	}
	if got, err := book.SupportsProtocols(alice, "/w", "/x"); err != nil || !slices.Equal(got, []protocol.ID{"/x"}) {
		t.Errorf("protocols: got %v, %v, want /x", got, err)
	}
	for why, err := range map[string]error{
		"close": c.Close(), "close with error": c.CloseWithError(1), "close peer": h.Network().ClosePeer(alice), "listen": h.Network().Listen(),
	} {
		wantRefused(t, why, err)
	}

	// What was known of a peer stays for a while after it has gone.
	l := listenTo(t, f, n)
	f.events <- said(state(alice, 1))
	l.heard()
	known := func() bool {
		got, _ := book.GetProtocols(alice)
		return len(got) == 1 && len(book.Addrs(alice)) == 1 && book.LatencyEWMA(alice) > 0
	}
	if !known() || !c.IsClosed() {
		t.Errorf("after it has gone: known %v, connection closed %v, want both", known(), c.IsClosed())
	}
	n.mirror.forget(time.Now().Add(-time.Minute))
	if !known() {
		t.Error("it was forgotten before its time")
	}
	n.mirror.forget(time.Now().Add(time.Minute))
	if got := book.Peers(); known() || slices.Contains(got, alice) || n.mirror.peers[alice] != nil {
		t.Errorf("it was not forgotten: the peerstore has %v", got)
	}
	// More than enough come and go.
	for i := range maxGone + 10 {
		p := testPeer(fmt.Sprint(i))
		for _, st := range []*peerState{{id: p, epoch: 1, conns: []*conn{{n: n, id: fmt.Sprint(i), peer: p}}}, {id: p, epoch: 1}} {
			if err := n.mirror.apply(st, func(change) {}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := len(n.mirror.peers); got > maxGone+1 {
		t.Errorf("peers that are remembered: got %d, want at most %d and the one that is there", got, maxGone)
	}
}

// Streams that peers open reach the handler of their protocol, on their
// connection; what nobody handles, and what makes no sense, is reset.
func TestInbound(t *testing.T) {
	f := newFake(t)
	f.events <- said(state(alice, 1, "a1"))
	f.events <- said(state(bob, 2, "b1"))
	n := f.node()
	got := make(chan network.Stream, 1)
	n.Host().SetStreamHandler("/x", func(s network.Stream) { got <- s })
	if reg := receive(t, "the protocol is registered", f.handled); reg != "+/x" {
		t.Errorf("registered: got %s, want +/x", reg)
	}
	inbound := func(number uint64, p peer.ID, conn, proto string) *channel.Conn {
		ch := f.stream(number)
		f.events <- &pb.Event{What: &pb.Event_Inbound{Inbound: &pb.Inbound{Stream: number, Peer: []byte(p), Connection: conn, Protocol: proto}}}
		return receive(t, "the channel is dialled", ch)
	}

	peerEnd := inbound(10, alice, "a1", "/x")
	s := receive(t, "the handler is called", got)
	if s.Conn() != n.Host().Network().ConnsToPeer(alice)[0] || s.Protocol() != "/x" || s.Stat().Direction != network.DirInbound {
		t.Errorf("stream: got %v, %s, %+v", s.Conn(), s.Protocol(), s.Stat())
	}
	if open := s.Conn().GetStreams(); len(open) != 1 || open[0] != s || s.Conn().Stat().NumStreams != 1 {
		t.Errorf("streams of the connection: got %v, want this one", open)
	}
	if _, err := peerEnd.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	peerEnd.CloseWrite()
	if b, err := io.ReadAll(s); string(b) != "hello" || err != nil {
		t.Errorf("read: got %q, %v", b, err)
	}
	s.Close()
	if open := s.Conn().GetStreams(); len(open) != 0 {
		t.Errorf("streams after Close: got %v, want none", open)
	}
	wantEnd(t, "Close", peerEnd, io.EOF.Error())

	inbound(11, alice, "a9", "/x")
	if s := receive(t, "a stream of a connection that has ended", got); !s.Conn().IsClosed() || s.Conn().RemotePeer() != alice {
		t.Errorf("its connection: closed %v, peer %v, want true and alice", s.Conn().IsClosed(), s.Conn().RemotePeer())
	} else {
		s.Reset()
	}
	wantEnd(t, "a protocol that nobody handles", inbound(12, alice, "a1", "/other"), "0x1001")
	wantEnd(t, "a connection of another peer", inbound(13, alice, "b1", "/x"), "reset")
	wantEnd(t, "a peer without a name", inbound(14, "?", "b1", "/x"), "reset")

	n.Host().RemoveStreamHandler("/x")
	n.Host().RemoveStreamHandler("/x")
	if reg := receive(t, "the protocol is taken back", f.handled); reg != "-/x" {
		t.Errorf("taken back: got %s, want -/x", reg)
	}
	wantEnd(t, "a protocol that was taken back", inbound(15, alice, "a1", "/x"), "0x1001")
	n.Host().SetStreamHandlerMatch("/y", func(protocol.ID) bool { return true }, func(s network.Stream) { got <- s })
	if reg := receive(t, "a protocol with a match function", f.handled); reg != "+/y" || len(f.handled) != 0 {
		t.Errorf("registered: got %s and %d more, want +/y", reg, len(f.handled))
	}
}

// A protocol that the host has refused is asked for again with the next handler,
// and one that it has taken is not.
func TestHandleRefused(t *testing.T) {
	f := newFake(t)
	n := f.node()
	add := func() int {
		n.Host().SetStreamHandler("/x", func(s network.Stream) { s.Reset() })
		return len(f.handled)
	}
	f.handle.set(func() error { return errs.E(errs.Invalid, errs.Plugin, "handle", "/x", nil) })
	if got := add(); got != 1 {
		t.Errorf("calls for a first handler: got %d, want 1", got)
	}
	f.handle.set(nil)
	if got := add(); got != 2 {
		t.Errorf("calls after it was refused: got %d, want 2", got)
	}
	if got := add(); got != 2 {
		t.Errorf("calls after it was taken: got %d, want 2", got)
	}
	if got := n.Host().Mux().Protocols(); !slices.Equal(got, []protocol.ID{"/x"}) {
		t.Errorf("protocols: got %v, want /x", got)
	}
}

// wantEnd reads the host's end of a stream until it ends, with an error that says want.
func wantEnd(t testing.TB, why string, ch *channel.Conn, want string) {
	t.Helper()
	within(t, why, func() {
		if _, err := ch.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want %q", why, err, want)
		}
	})
}
