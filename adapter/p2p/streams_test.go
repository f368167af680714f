package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
)

// limit is how long a test waits for what must come.
const limit = 30 * time.Second

// handler passes on what it hears.
type handler struct {
	calls   chan string // "up" and "down"
	streams chan exchange.Stream
}

func newHandler() *handler {
	return &handler{calls: make(chan string, 64), streams: make(chan exchange.Stream, 64)}
}

func (h *handler) PeerUp(peer.ID, uint64)         { h.calls <- "up" }
func (h *handler) PeerDown(peer.ID, uint64)       { h.calls <- "down" }
func (h *handler) HandleStream(s exchange.Stream) { h.calls <- "stream"; h.streams <- s }

func (h *handler) expect(t *testing.T, why, want string) {
	t.Helper()
	select {
	case got := <-h.calls:
		if got != want {
			t.Fatalf("%s: handler was called with %s, want %s", why, got, want)
		}
	case <-time.After(limit):
		t.Fatalf("%s: handler was not called, want %s", why, want)
	}
}

func (h *handler) expectNothing(t *testing.T, why string) {
	t.Helper()
	select {
	case got := <-h.calls:
		t.Fatalf("%s: handler was called with %s, want no call", why, got)
	case <-time.After(200 * time.Millisecond):
	}
}

// attach puts an adapter over a host.
func attach(t *testing.T, h host.Host, opts p2p.Options) (*p2p.Network, *handler, func()) {
	t.Helper()
	net, err := p2p.New(h, opts)
	if err != nil {
		t.Fatal(err)
	}
	hd := newHandler()
	detach, err := net.Attach(hd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(detach)
	return net, hd, detach
}

// classicHost is a peer as unlike ours as a classic Codex node is: mplex only,
// and no answer to identify, so that all we know of it is what it does.
func classicHost(t *testing.T) host.Host {
	h := newHost(t, secp256k1(t), classic()...)
	h.RemoveStreamHandler(identify.ID)
	return h
}

func dial(t *testing.T, from, to host.Host) {
	t.Helper()
	if err := from.Connect(t.Context(), info(to)); err != nil {
		t.Fatal(err)
	}
}

func openRaw(t *testing.T, from, to host.Host) network.Stream {
	t.Helper()
	s, err := from.NewStream(t.Context(), to.ID(), exchange.ProtocolID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Reset() })
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return s
}

func readOne(s io.Reader) error {
	_, err := io.ReadFull(s, make([]byte, 1))
	return err
}

func wantReset(t *testing.T, what string, s network.Stream) {
	t.Helper()
	if err := s.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if err := readOne(s); !errors.Is(err, network.ErrReset) {
		t.Errorf("%s: read gives %v, want a reset", what, err)
	}
}

// A stream proves that the peer speaks the protocol, for as long as the
// connection lasts.
func TestStreamWithoutIdentify(t *testing.T) {
	classic := classicHost(t)
	ours := newHost(t, secp256k1(t), p2p.HostOptions()...)
	net, hd, _ := attach(t, ours, p2p.Options{})
	theirs := make(chan network.Stream, 1)
	classic.SetStreamHandler(exchange.ProtocolID, func(s network.Stream) { theirs <- s })

	dial(t, classic, ours)
	hd.expectNothing(t, "a connected peer that did not identify itself")
	openRaw(t, classic, ours)
	hd.expect(t, "it opened a stream", "up")
	hd.expect(t, "and the stream comes after", "stream")
	if err := readOne(<-hd.streams); err != nil {
		t.Errorf("read what the peer wrote: %v", err)
	}

	s, err := net.NewStream(t.Context(), classic.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	if _, err := s.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	back := <-theirs
	defer back.Reset()
	if err := readOne(back); err != nil {
		t.Errorf("peer reads what we wrote on a stream of our own: %v", err)
	}

	classic.Network().ClosePeer(ours.ID())
	hd.expect(t, "the connection is gone", "down")
}

// An exchange that ends on a host that stays is seen as a peer that goes, and
// its successor as one that comes.
func TestRemoteDetach(t *testing.T) {
	a := newHost(t, secp256k1(t), p2p.HostOptions()...)
	b := newHost(t, secp256k1(t), p2p.HostOptions()...)
	_, hearsA, _ := attach(t, a, p2p.Options{})
	_, hearsB, detach := attach(t, b, p2p.Options{})
	dial(t, a, b)
	hearsA.expect(t, "the connection", "up")
	hearsB.expect(t, "the connection", "up")
	detach()
	hearsA.expect(t, "the other exchange has ended", "down")
	_, hearsB, _ = attach(t, b, p2p.Options{})
	hearsA.expect(t, "another has begun", "up")
	hearsB.expect(t, "who was connected", "up")
}

func TestInboundStreamLimit(t *testing.T) {
	a := newHost(t, secp256k1(t), p2p.HostOptions()...)
	b := newHost(t, secp256k1(t), p2p.HostOptions()...)
	_, hd, _ := attach(t, b, p2p.Options{InboundStreams: 2})
	dial(t, a, b)
	openRaw(t, a, b)
	openRaw(t, a, b)
	hd.expect(t, "a peer that opens streams", "up")
	hd.expect(t, "the first", "stream")
	hd.expect(t, "the second", "stream")

	wantReset(t, "third stream, of at most 2", openRaw(t, a, b))
	hd.expectNothing(t, "a stream beyond the limit")

	first := <-hd.streams
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	openRaw(t, a, b)
	hd.expect(t, "one in the place of the first", "stream")

	// Streams whose connection is gone do not count, though nobody closed them.
	a.Network().ClosePeer(b.ID())
	hd.expect(t, "the end of the connection", "down")
	dial(t, a, b)
	openRaw(t, a, b)
	openRaw(t, a, b)
	hd.expect(t, "a new connection", "up")
	hd.expect(t, "its first stream", "stream")
	hd.expect(t, "its second stream", "stream")
}

// Detach works in whichever order a program takes things down.
func TestDetachAfterHostClosed(t *testing.T) {
	a := newHost(t, secp256k1(t), p2p.HostOptions()...)
	b := newHost(t, secp256k1(t), p2p.HostOptions()...)
	_, hd, detach := attach(t, b, p2p.Options{})
	dial(t, a, b)
	openRaw(t, a, b)
	hd.expect(t, "a peer that opens a stream", "up")
	hd.expect(t, "its stream", "stream")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { detach(); close(done) }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatal("detach does not return after the host was closed")
	}
}

// What ours and classic nodes agree on.
func TestHostOptions(t *testing.T) {
	ours := newHost(t, secp256k1(t), p2p.HostOptions()...)
	if typ := ours.Peerstore().PubKey(ours.ID()).Type(); typ != crypto.Secp256k1 {
		t.Errorf("NewIdentity made a key of type %v, want secp256k1", typ)
	}
	for _, test := range []struct {
		name     string
		key      crypto.PrivKey
		opts     []libp2p.Option
		security protocol.ID // "" is any
		muxer    protocol.ID
	}{
		{"ours", secp256k1(t), p2p.HostOptions(), "", yamux.ID},
		{"ours with Ed25519", ed25519(t), p2p.HostOptions(), "", yamux.ID},
		{"libp2p's defaults", ed25519(t), nil, "", yamux.ID},
		{"classic", secp256k1(t), classic(), "/noise", mplex.ID},
	} {
		for _, weDial := range []bool{true, false} {
			other := newHost(t, test.key, test.opts...)
			if weDial {
				dial(t, ours, other)
			} else {
				dial(t, other, ours)
			}
			state := ours.Network().ConnsToPeer(other.ID())[0].ConnState()
			if state.StreamMultiplexer != test.muxer {
				t.Errorf("%s, we dial %v: muxer is %s, want %s", test.name, weDial, state.StreamMultiplexer, test.muxer)
			}
			if test.security != "" && state.Security != test.security {
				t.Errorf("%s, we dial %v: security is %s, want %s", test.name, weDial, state.Security, test.security)
			}
			other.Close()
		}
	}
}

func TestLatencyAndTags(t *testing.T) {
	manager, err := connmgr.NewConnManager(10, 20)
	if err != nil {
		t.Fatal(err)
	}
	a := newHost(t, secp256k1(t), append(p2p.HostOptions(), libp2p.ConnectionManager(manager))...)
	b := newHost(t, secp256k1(t), p2p.HostOptions()...)
	net, _, _ := attach(t, a, p2p.Options{})
	dial(t, a, b)
	a.Peerstore().RecordLatency(b.ID(), 7*time.Millisecond)
	if got := net.Latency(b.ID()); got != 7*time.Millisecond {
		t.Errorf("latency is %v, want the 7ms that were recorded", got)
	}
	for _, test := range []struct{ value, want int }{{40, 40}, {1000, 100}, {0, 0}, {7, 7}, {-1, 0}} {
		net.Tag(b.ID(), test.value)
		got, tagged := manager.GetTagInfo(b.ID()).Tags[p2p.ServiceName]
		if got != test.want || tagged != (test.want > 0) {
			t.Errorf("Tag(%d): the connection manager has %d (tagged: %v), want %d", test.value, got, tagged, test.want)
		}
	}
}

// A peer that announces it is sent several streams, and pinged, so that it is known
// whether they are of use; one that does not is sent one, and left alone.
func TestPeersThatReadSeveralStreams(t *testing.T) {
	a := newHost(t, secp256k1(t), p2p.HostOptions()...)
	ours := newHost(t, secp256k1(t), p2p.HostOptions()...)
	other := newHost(t, secp256k1(t), p2p.HostOptions()...)
	net, hd, detach := attach(t, a, p2p.Options{})
	attach(t, ours, p2p.Options{})
	other.SetStreamHandler(exchange.ProtocolID, func(s network.Stream) { s.Reset() })
	pinged := make(chan struct{}, 1)
	other.SetStreamHandler(ping.ID, func(s network.Stream) {
		pinged <- struct{}{}
		s.Reset()
	})
	dial(t, a, ours)
	dial(t, a, other)
	for range 2 {
		hd.expect(t, "both speak the protocol", "up")
	}
	if got := net.Streams(ours.ID()); got != 8 {
		t.Errorf("a node of our kind reads %d streams, want 8", got)
	}
	if got := net.Streams(other.ID()); got != 1 {
		t.Errorf("a node that announces nothing reads %d streams, want 1", got)
	}
	deadline := time.Now().Add(limit)
	for net.Latency(ours.ID()) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the latency of a node of our kind is not measured")
		}
		time.Sleep(time.Millisecond) // nothing tells when it is
	}
	if got := net.Latency(ours.ID()); got < 0 || got > time.Minute {
		t.Errorf("the latency of a node of our kind is %v", got)
	}
	if got := net.Latency(other.ID()); got != 0 {
		t.Errorf("the latency of a node that was not pinged is %v, want 0", got)
	}
	detach()
	select {
	case <-pinged:
		t.Error("a node that announces nothing was pinged")
	default:
	}
	if got := net.Latency(other.ID()); got != 0 {
		t.Errorf("after detach the latency is %v, want 0", got)
	}
}

func TestErrors(t *testing.T) {
	if _, err := p2p.New(nil, p2p.Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("New without a host: got %v, want errs.Invalid", err)
	}
	a := newHost(t, secp256k1(t), p2p.HostOptions()...)
	for _, n := range []int{-1, 10_001} {
		if _, err := p2p.New(a, p2p.Options{InboundStreams: n}); !errors.Is(err, errs.Invalid) {
			t.Errorf("New with %d inbound streams: got %v, want errs.Invalid", n, err)
		}
	}
	net, _, detach := attach(t, a, p2p.Options{})
	if _, err := net.Attach(nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("Attach without a handler: got %v, want errs.Invalid", err)
	}
	if _, err := net.Attach(newHandler()); !errors.Is(err, errs.Invalid) {
		t.Errorf("Attach while attached: got %v, want errs.Invalid", err)
	}
	detach()
	again, err := net.Attach(newHandler())
	if err != nil {
		t.Errorf("Attach after detach: %v", err)
	} else {
		again()
	}
	for name, id := range map[string]peer.ID{"this node": a.ID(), "nobody": ""} {
		if err := net.Connect(t.Context(), peer.AddrInfo{ID: id}); !errors.Is(err, errs.Invalid) {
			t.Errorf("Connect to %s: got %v, want errs.Invalid", name, err)
		}
	}
}

// Whose fault it is that there is no stream.
func TestFaults(t *testing.T) {
	a := newHost(t, secp256k1(t), p2p.HostOptions()...)
	mute := newHost(t, secp256k1(t), p2p.HostOptions()...) // does not speak the protocol
	net, hd, _ := attach(t, a, p2p.Options{})
	dial(t, a, mute)
	hd.expectNothing(t, "a peer that speaks other protocols")

	_, err := net.NewStream(t.Context(), mute.ID())
	wantFault(t, "peer that does not speak the protocol", err, errs.Peer)
	if !strings.Contains(err.Error(), exchange.ProtocolID) {
		t.Errorf("error %q does not name the protocol %s", err, exchange.ProtocolID)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = net.NewStream(ctx, mute.ID())
	wantFault(t, "ended context", err, errs.Unknown)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %q does not wrap context.Canceled", err)
	}

	gone := newHost(t, secp256k1(t), p2p.HostOptions()...)
	at := info(gone)
	gone.Close()
	err = net.Connect(t.Context(), at)
	wantFault(t, "address where nobody listens", err, errs.Peer)
	a.Peerstore().AddAddrs(at.ID, at.Addrs, peerstore.TempAddrTTL)
	_, err = net.NewStream(t.Context(), at.ID)
	wantFault(t, "peer with an address but no connection", err, errs.Peer)
}

func wantFault(t *testing.T, what string, err error, fault errs.Fault) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Unreachable || e.Fault != fault {
		t.Fatalf("%s: got %v, want kind %q and fault of %v", what, err, errs.Unreachable, fault)
	}
}

// The host's resource manager may allow less, and then it is our fault.
func TestResourceLimits(t *testing.T) {
	limits := rcmgr.PartialLimitConfig{
		Service: map[string]rcmgr.ResourceLimits{p2p.ServiceName: {Streams: 2, StreamsOutbound: 1, StreamsInbound: 1}},
	}.Build(rcmgr.DefaultLimits.AutoScale())
	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits))
	if err != nil {
		t.Fatal(err)
	}
	a := newHost(t, secp256k1(t), append(p2p.HostOptions(), libp2p.ResourceManager(manager))...)
	b := newHost(t, secp256k1(t), p2p.HostOptions()...)
	netA, hearsA, _ := attach(t, a, p2p.Options{})
	attach(t, b, p2p.Options{})
	dial(t, a, b)
	hearsA.expect(t, "the connection", "up")

	first, err := netA.NewStream(t.Context(), b.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Reset()
	_, err = netA.NewStream(t.Context(), b.ID())
	wantFault(t, "second outbound stream, of 1", err, errs.Ours)

	for i, want := range []bool{true, false} {
		s := openRaw(t, b, a)
		if want {
			hearsA.expect(t, "first inbound stream, of 1", "stream")
		} else {
			wantReset(t, fmt.Sprintf("inbound stream %d, of 1", i+1), s)
		}
	}
	hearsA.expectNothing(t, "an inbound stream that is not allowed")
}
