package lend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

// end is one end of a stream, the peer's or the plugin's.
type end interface {
	io.ReadWriter
	CloseWrite() error
	SetDeadline(time.Time) error
}

func reset(e end, code uint32) {
	if s, ok := e.(network.Stream); ok {
		s.ResetWithError(network.StreamErrorCode(code))
	} else {
		e.(*channel.Conn).ResetWithCode(code)
	}
}

// streamPair gives both ends of a stream between a plugin on node and a peer,
// opened by either.
func streamPair(t *testing.T, p *plugin, node, far host.Host, byPeer bool) (near, away end) {
	t.Helper()
	if byPeer {
		s := openTo(t, far, node, "hello")
		near, away = p.dial(p.inbound("the stream").Stream), s
	} else {
		came := make(chan network.Stream, 1)
		far.SetStreamHandler(echo, func(s network.Stream) { came <- s })
		c := p.open(far, echo)
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		near = c
		within(t, "the stream comes", func() { away = <-came })
	}
	deadline := time.Now().Add(patience)
	near.SetDeadline(deadline)
	away.SetDeadline(deadline)
	hello, reader := make([]byte, 5), away
	if byPeer {
		reader = near
	}
	if _, err := io.ReadFull(reader, hello); err != nil || string(hello) != "hello" {
		t.Fatalf("read %q, %v, want hello", hello, err)
	}
	return near, away
}

// Bytes, half-closes and resets with their codes cross both ways, on streams that
// either side has opened, and the Lender keeps nothing of them.
func TestStreams(t *testing.T) {
	node, far := newHost(t), newHost(t)
	l := newLender(t, node, Options{})
	connect(t, far, node)
	p, _ := newPeerPlugin(t, l)
	p.handle(echo)
	for _, byPeer := range []bool{true, false} {
		for _, pluginFirst := range []bool{true, false} {
			t.Run(fmt.Sprintf("opened by peer %v, plugin first %v", byPeer, pluginFirst), func(t *testing.T) {
				one, two := streamPair(t, p, node, far, byPeer)
				if !pluginFirst {
					one, two = two, one
				}
				question, answer := random(300_000), random(300_001)
				asked := make(chan error, 1)
				go func() {
					_, err := one.Write(question)
					asked <- errors.Join(err, one.CloseWrite())
				}()
				got, err := io.ReadAll(two)
				if err != nil || !bytes.Equal(got, question) {
					t.Fatalf("question: %d bytes, %v, want %d", len(got), err, len(question))
				}
				go func() {
					_, err := two.Write(answer)
					asked <- errors.Join(err, two.CloseWrite())
				}()
				if got, err = io.ReadAll(one); err != nil || !bytes.Equal(got, answer) {
					t.Fatalf("answer: %d bytes, %v, want %d", len(got), err, len(answer))
				}
				if err := errors.Join(<-asked, <-asked); err != nil {
					t.Error(err)
				}

				one, two = streamPair(t, p, node, far, byPeer)
				if !pluginFirst {
					one, two = two, one
				}
				reset(one, 0xBEEF)
				if _, err := two.Read(make([]byte, 1)); resetCode(t, err) != 0xBEEF {
					t.Errorf("reset: %v, want code 0xbeef", err)
				}
			})
		}
	}
	eventually(t, "no stream is left", func() bool { return l.Stat().Streams == 0 })
}

// A plugin that writes and closes at once, as Bitswap does, is heard in full, and
// a peer that does not speak the protocol resets with the code for that.
func TestCloseAtOnce(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	l := newLender(t, node, Options{})
	p, _ := newPeerPlugin(t, l)
	heard := make(chan string, 1)
	far.SetStreamHandler(echo, func(s network.Stream) {
		all, err := io.ReadAll(s)
		s.Close()
		heard <- fmt.Sprint(string(all), err)
	})
	c := p.open(far, echo)
	io.WriteString(c, "bye")
	c.Close()
	within(t, "the peer hears it", func() {
		if got, want := <-heard, "bye<nil>"; got != want {
			t.Errorf("the peer heard %s, want %s", got, want)
		}
	})
	eventually(t, "the stream has ended", func() bool { return l.Stat().Streams == 0 })

	// The node believes that it is spoken, and it is not.
	far.RemoveStreamHandler(echo)
	eventually(t, "the node has heard so", func() bool {
		known, err := node.Peerstore().SupportsProtocols(far.ID(), echo)
		return err == nil && len(known) == 0
	})
	node.Peerstore().AddProtocols(far.ID(), echo)
	c = p.open(far, echo)
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "hello")
	if _, err := c.Read(make([]byte, 1)); resetCode(t, err) != uint32(network.StreamProtocolNegotiationFailed) {
		t.Errorf("refused: %v, want code %#x", err, network.StreamProtocolNegotiationFailed)
	}
}

// However early a peer opens a stream, its state with the connection comes first.
func TestInboundAfterState(t *testing.T) {
	node := newHost(t)
	p, _ := newPeerPlugin(t, newLender(t, node, Options{}))
	p.handle(echo)
	for range 5 {
		far := newHost(t)
		connect(t, far, node)
		openTo(t, far, node, "hello")
		var conns []string
		for {
			ev := p.event("the stream")
			if s := ev.GetPeer(); s != nil && string(s.Peer) == string(far.ID()) {
				for _, c := range s.Connections {
					conns = append(conns, c.Id)
				}
			}
			if in := ev.GetInbound(); in != nil {
				if string(in.Peer) != string(far.ID()) || in.Protocol != echo || !slices.Contains(conns, in.Connection) {
					t.Fatalf("told of stream %v after connections %v, want its own among them", in, conns)
				}
				p.dial(in.Stream).Reset()
				break
			}
		}
		far.Close()
	}
}

// The host fills block references, and none of their bytes crosses the boundary.
// One that it cannot fill resets both sides.
func TestBlockReferences(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	s := &store{}
	data := random(1 << 20)
	here := s.add(data)
	l := newLender(t, node, Options{Blocks: s})
	p, _ := newPeerPlugin(t, l)
	p.handle(echo)

	near, away := streamPair(t, p, node, far, true)
	crossed := func() uint64 { return p.counters.DataOut.Load() + p.counters.DataIn.Load() }
	before := crossed()
	c := near.(*channel.Conn)
	if err := c.WriteBlock(here, len(data)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got, err := io.ReadAll(away); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the peer read %d bytes, %v, want the block of %d", len(got), err, len(data))
	}
	if n := crossed() - before; n > 1000 {
		t.Errorf("%d bytes crossed while a block was sent, want none of its bytes", n)
	}
	if n := l.Counters().Streams.Filled.Load(); n != uint64(len(data)) {
		t.Errorf("%d bytes were filled, want %d", n, len(data))
	}

	for name, write := range map[string]func(c *channel.Conn) error{
		"missing":      func(c *channel.Conn) error { return c.WriteBlock(cidOf(random(9)), 9) },
		"another size": func(c *channel.Conn) error { return c.WriteBlock(here, len(data)-1) },
	} {
		near, away := streamPair(t, p, node, far, true)
		if err := write(near.(*channel.Conn)); err != nil {
			t.Fatal(err)
		}
		for side, e := range map[string]end{"plugin": near, "peer": away} {
			if _, err := io.ReadAll(e); resetCode(t, err) != channel.CodeBlockMissing {
				t.Errorf("%s, %s: %v, want code %#x", name, side, err, channel.CodeBlockMissing)
			}
		}
	}
	if n := l.Stat().BlocksMissing; n != 2 {
		t.Errorf("%d blocks were missing, want 2", n)
	}
}

// Streams that peers open while there is no plugin reach the next incarnation
// once it handles their protocol.
func TestInboundOverIncarnations(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	l := newLender(t, node, Options{})
	old, _ := newPeerPlugin(t, l)
	old.handle(echo)
	near, cut := streamPair(t, old, node, far, true)
	old.end()
	if _, err := cut.Read(make([]byte, 1)); resetCode(t, err) != channel.CodeShutdown {
		t.Errorf("a stream of the old incarnation: %v, want code %#x", err, channel.CodeShutdown)
	}
	reset(near, 0)

	for i := range 3 {
		openTo(t, far, node, fmt.Sprint(i))
		eventually(t, "it waits", func() bool { return l.Stat().InboundWaiting == i+1 })
	}
	next, _ := newPeerPlugin(t, l)
	if n := l.Stat().InboundWaiting; n != 3 {
		t.Errorf("%d streams wait before the protocol is handled, want 3", n)
	}
	next.handle(echo)
	for i := range 3 {
		c := next.dial(next.inbound("a stream that waited").Stream)
		c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != fmt.Sprint(i) {
			t.Errorf("stream %d says %q, %v, want them in order", i, b, err)
		}
	}
	if n := l.Stat().InboundWaiting; n != 0 {
		t.Errorf("%d streams wait, want 0", n)
	}
}

// A stream that a plugin was told of, and did not dial before its lease ended, is
// not lost: it waits for the next incarnation with what the peer has said on it.
func TestInboundNotDialledBeforeTheEnd(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	l := newLender(t, node, Options{InboundWait: time.Minute, dialWait: time.Minute})
	old, _ := newPeerPlugin(t, l)
	old.handle(echo)
	openTo(t, far, node, "hello")
	old.inbound("the stream")
	old.end()
	eventually(t, "it waits again", func() bool { return l.Stat().InboundWaiting == 1 })

	next, _ := newPeerPlugin(t, l)
	next.handle(echo)
	c := next.dial(next.inbound("the stream, again").Stream)
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("it says %q, %v, want hello", b, err)
	}
	if s := l.Stat(); s.InboundWaiting != 0 || s.InboundExpired != 0 {
		t.Errorf("stat is %+v, want none that waits or has expired", s)
	}
}

// Streams that wait beyond the bounds are reset at once, the others when the
// protocol is given up.
func TestInboundBounds(t *testing.T) {
	node := newHost(t)
	l := newLender(t, node, Options{InboundWait: time.Minute, InboundPerPeer: 2, Inbound: 3})
	p, _ := newPeerPlugin(t, l)
	p.handle(echo)
	p.end()
	var streams []network.Stream
	for range 2 { // four streams from each of two peers
		far := newHost(t)
		connect(t, far, node)
		for range 4 {
			streams = append(streams, openTo(t, far, node, "hello"))
			eventually(t, "the stream has come", func() bool {
				s := l.Stat()
				return s.InboundWaiting+int(s.StreamsRefused) == len(streams)
			})
		}
	}
	l.Forget()
	var codes []network.StreamErrorCode
	for _, s := range streams {
		_, err := s.Read(make([]byte, 1))
		codes = append(codes, network.StreamErrorCode(resetCode(t, err)))
	}
	const waited, more = network.StreamShutdown, network.StreamResourceLimitExceeded
	if want := []network.StreamErrorCode{waited, waited, more, more, waited, more, more, more}; !slices.Equal(codes, want) {
		t.Errorf("reset with %#x, want %#x", codes, want)
	}
	if s := l.Stat(); s.InboundWaiting != 0 || s.StreamsRefused != 5 {
		t.Errorf("stat is %+v, want none waiting and 5 refused", s)
	}
}

// A stream waits for a plugin no longer than InboundWait, whether there is none,
// or one that does not read what it is told.
func TestInboundExpires(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	l := newLender(t, node, Options{InboundWait: 50 * time.Millisecond})
	p := newPlugin(t, l)
	p.handle(echo)
	expired := func(s network.Stream) {
		t.Helper()
		if _, err := s.Read(make([]byte, 1)); resetCode(t, err) != channel.CodeShutdown {
			t.Errorf("%v, want code %#x", err, channel.CodeShutdown)
		}
	}
	expired(openTo(t, far, node, "nobody has asked for events"))

	f := newFeed(l, p.lease)
	l.mu.Lock()
	l.feed = f
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	telling, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- f.run(ctx, func(ev *pb.Event) error {
			if ev.GetInbound() == nil {
				return nil
			}
			close(telling)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	first := openTo(t, far, node, "the plugin is being told of this one")
	<-telling
	expired(openTo(t, far, node, "and could be told of this one after it"))
	if s := l.Stat(); s.InboundExpired != 2 || s.InboundWaiting != 0 {
		t.Errorf("stat is %+v, want 2 that have expired and none that waits", s)
	}
	cancel()
	<-ended
	expired(first)
}

// What the next incarnation does not handle in time is taken back from the host,
// what it handles stays.
func TestForgottenProtocols(t *testing.T) {
	node := newHost(t)
	l := newLender(t, node, Options{InboundWait: 50 * time.Millisecond})
	offers := func(id string) bool { return slices.Contains(node.Mux().Protocols(), protocolID(id)) }
	p, _ := newPeerPlugin(t, l)
	p.handle(echo)
	p.handle("/old/1")
	p.handle("/unhandled/1")
	if _, err := p.Unhandle(t.Context(), &pb.UnhandleRequest{Protocol: "/unhandled/1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was unhandled is taken back", func() bool { return !offers("/unhandled/1") })
	if !offers(echo) || !offers("/old/1") {
		t.Errorf("the host offers %v", node.Mux().Protocols())
	}
	p.end()
	if !offers(echo) || !offers("/old/1") {
		t.Errorf("between two incarnations the host offers %v", node.Mux().Protocols())
	}
	next, _ := newPeerPlugin(t, l)
	next.handle(echo)
	eventually(t, "the other is forgotten", func() bool { return !offers("/old/1") })
	if !offers(echo) {
		t.Error("the protocol that was handled again is forgotten")
	}
	next.end()
	l.Forget()
	if offers(echo) {
		t.Error("a protocol that nobody handles is not forgotten")
	}
}

// A plugin that is restarted in good order takes back what it handles before it
// ends. Peers do not notice: the host goes on offering it, and their streams wait
// for the next incarnation.
func TestUnhandledBeforeTheEnd(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	l := newLender(t, node, Options{InboundWait: time.Minute})
	old, _ := newPeerPlugin(t, l)
	old.handle(echo)
	if _, err := old.Unhandle(t.Context(), &pb.UnhandleRequest{Protocol: echo}); err != nil {
		t.Fatal(err)
	}
	openTo(t, far, node, "hello")
	eventually(t, "it waits", func() bool { return l.Stat().InboundWaiting == 1 })
	old.end()
	next, _ := newPeerPlugin(t, l)
	next.handle(echo)
	c := next.dial(next.inbound("the stream").Stream)
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("it says %q, %v, want hello", b, err)
	}
}

// A plugin whose calls have ended, while its process lives on, is not left to
// fetch and serve nothing for ever: its results end too, so that its owner notices.
func TestCallsEnd(t *testing.T) {
	l := newLender(t, newHost(t), Options{closeWait: 50 * time.Millisecond})
	p, _ := newPeerPlugin(t, l)
	p.dial(p.start.Results)
	results, err := p.lease.Results(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.cc.Close()
	results.SetReadDeadline(time.Now().Add(patience))
	var reset *channel.ResetError
	if _, err := results.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != channel.CodeShutdown {
		t.Errorf("results: %v, want a reset with code %#x", err, channel.CodeShutdown)
	}
}

// A stream that the plugin is told of and does not dial is reset.
func TestNotDialled(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	l := newLender(t, node, Options{dialWait: 50 * time.Millisecond})
	p, _ := newPeerPlugin(t, l)
	p.handle(echo)
	s := openTo(t, far, node, "hello")
	in := p.inbound("the stream")
	if _, err := s.Read(make([]byte, 1)); resetCode(t, err) != channel.CodeShutdown {
		t.Errorf("%v, want code %#x", err, channel.CodeShutdown)
	}
	eventually(t, "it is forgotten", func() bool { return l.Stat().Streams == 0 })
	if _, err := channel.Dial(t.Context(), p.start.Socket, channel.Token(p.start.Token), in.Stream, channel.Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("dialled too late: %v, want %v", err, errs.Invalid)
	}
}

// A plugin has no more streams than it may, of either direction, and its node
// goes on serving those that it has.
func TestStreamsAreBounded(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, far, node)
	far.SetStreamHandler(echo, func(s network.Stream) { io.Copy(s, s); s.Close() })
	l := newLender(t, node, Options{Streams: 2})
	p, _ := newPeerPlugin(t, l)
	p.handle(echo)
	kept := p.open(far, echo)
	p.open(far, echo)
	reply, err := p.OpenStream(t.Context(), &pb.OpenStreamRequest{Peer: []byte(far.ID()), Protocols: []string{echo}})
	if err = errors.Join(err, reply.GetError().Err()); !errors.Is(err, errs.TooLarge) {
		t.Errorf("a stream more: %v, want %v", err, errs.TooLarge)
	}
	s := openTo(t, far, node, "hello")
	if _, err := s.Read(make([]byte, 1)); resetCode(t, err) != uint32(network.StreamResourceLimitExceeded) {
		t.Errorf("a stream of the peer more: %v, want code %#x", err, network.StreamResourceLimitExceeded)
	}
	if n := l.Stat().StreamsRefused; n != 2 {
		t.Errorf("%d refused, want 2", n)
	}
	io.WriteString(kept, "still")
	kept.CloseWrite()
	kept.SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(kept); err != nil || string(got) != "still" {
		t.Errorf("read %q, %v, want %q", got, err, "still")
	}
}

// Closing a lease with everything in flight ends it all, soon, and a Lender can
// be closed without closing the lease. What is left would fail the package's test
// for leaks.
func TestCloseInFlight(t *testing.T) {
	for _, closeLender := range []bool{false, true} {
		node, far := newHost(t), newHost(t)
		connect(t, far, node)
		s := &store{hang: make(chan struct{})}
		l := newLender(t, node, Options{Blocks: s, Router: &router{wait: true}})
		p, _ := newPeerPlugin(t, l)
		p.handle(echo)
		results := make(chan error, 1)
		go func() { _, err := p.lease.Results(t.Context()); results <- err }()
		full, away := streamPair(t, p, node, far, true) // a stream that nobody reads
		go func() {
			for err := error(nil); err == nil; {
				_, err = full.Write(random(1 << 16))
			}
		}()
		filling, _ := streamPair(t, p, node, far, true) // one that waits for the store
		filling.(*channel.Conn).WriteBlock(cidOf(nil), 1)
		streamPair(t, p, node, far, false) // one that is quiet
		openTo(t, far, node, "hello")      // one that is not dialled
		p.inbound("it is told of")
		found, err := p.FindProviders(t.Context(), &pb.FindProvidersRequest{Cid: cidOf(nil).Bytes()})
		if err != nil {
			t.Fatal(err)
		}
		reading := make(chan error, 1)
		go func() {
			_, err := p.Sizes(t.Context(), &pb.SizesRequest{Cids: [][]byte{cidOf(nil).Bytes()}})
			reading <- err
		}()
		<-s.hang

		began := time.Now()
		within(t, "the end", func() {
			if closeLender {
				l.Close()
			} else {
				p.lease.Close()
			}
		})
		if took := time.Since(began); took > defaultCloseWait {
			t.Errorf("closing took %v, want less than %v", took, defaultCloseWait)
		}
		for what, f := range map[string]func() error{
			"results":   func() error { return <-results },
			"a call":    func() error { return <-reading },
			"providers": func() error { _, err := found.Recv(); return err },
			"a stream":  func() error { _, err := io.Copy(io.Discard, away); return err },
		} {
			within(t, what+" ends", func() {
				if f() == nil {
					t.Errorf("%s has ended without an error", what)
				}
			})
		}
		waits := 1 // the stream that was not dialled, for the next lease
		if closeLender {
			waits = 0
		}
		eventually(t, "nothing is open afterwards", func() bool {
			st := l.Stat()
			return st.Streams == 0 && !st.Open && st.InboundWaiting == waits
		})
		p.lease.Close()
		p.end()
	}
}

// A store that hangs holds up neither the end of a lease nor the next one, but the
// Lender, whose owner may close the store afterwards.
func TestStoreHangs(t *testing.T) {
	s := &store{blocks: map[cid.Cid][]byte{cidOf(nil): nil}}
	l := newLender(t, newHost(t), Options{Blocks: s, closeWait: 10 * time.Millisecond})
	p := newPlugin(t, l)
	s.mu.Lock()
	called := make(chan error, 1)
	go func() {
		_, err := p.Sizes(t.Context(), &pb.SizesRequest{Cids: [][]byte{cidOf(nil).Bytes()}})
		called <- err
	}()
	eventually(t, "the call is served", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return p.lease.busy == 1 })
	p.end()
	if err := <-called; err == nil {
		t.Error("the call has ended without an error")
	}
	next, _ := newPeerPlugin(t, l)
	next.end()
	closed := make(chan struct{})
	go func() { l.Close(); close(closed) }()
	eventually(t, "the Lender is closing", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.closed })
	select {
	case <-closed:
		t.Error("the Lender has closed while its store is being asked")
	default:
	}
	s.mu.Unlock()
	within(t, "the Lender closes", func() { <-closed })
}

// There is one lease at a time, none after Close, and the death of a plugin takes
// nothing from its lease that Close could miss.
func TestLeases(t *testing.T) {
	node := newHost(t)
	l := newLender(t, node, Options{})
	p, _ := newPeerPlugin(t, l)
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	if _, err := l.Open(dir); !errors.Is(err, errs.Invalid) {
		t.Errorf("a second lease: %v, want %v", err, errs.Invalid)
	}
	p.cc.Close() // as good as dead
	p.end()
	p.end()
	p, _ = newPeerPlugin(t, l)
	c := p.dial(p.start.Results)
	if host, err := p.lease.Results(t.Context()); err != nil || host.ID() != c.ID() {
		t.Errorf("results: %v, %v", host, err)
	}
	if stream, err := p.Events(t.Context(), &pb.EventsRequest{}); err == nil {
		if _, err = stream.Recv(); !errors.Is(pb.FromStatus(t.Context(), err, errs.Ours, ""), errs.Invalid) {
			t.Errorf("events a second time: %v, want %v", err, errs.Invalid)
		}
	}
	l.Close()
	l.Close()
	if _, err := l.Open(dir); !errors.Is(err, errs.Closed) {
		t.Errorf("a lease of a closed Lender: %v, want %v", err, errs.Closed)
	}
}
