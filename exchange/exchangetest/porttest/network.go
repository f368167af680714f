package porttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
)

// A Node is one member of a network under test.
type Node struct {
	exchange.Network

	// Info says where the others reach this node.
	Info peer.AddrInfo
	// Disconnect closes every connection to a peer.
	Disconnect func(peer.ID) error
	// Put stores a block where streams of this node take blocks from that are
	// written by reference. Nil says that they are no exchange.BlockWriters.
	Put func(blocks.Block) error
}

// Network tests an exchange.Network. The function nodes makes n nodes of one
// network that are not connected and to which nothing is attached; they end with
// the test.
func Network(t *testing.T, nodes func(t *testing.T, n int) []Node) {
	tests := []struct {
		name string
		run  func(t *testing.T, nodes func(t *testing.T, n int) []Node)
	}{
		{"up and down", testUpDown},
		{"peers connected before attach", testReplay},
		{"quick reconnects", testReconnects},
		{"storm", testStorm},
		{"stream carries bytes both ways", testStream},
		{"both sides open streams", testBothOpen},
		{"streams do not mix", testManyStreams},
		{"stream ends with its connection", testStreamDisconnect},
		{"close reads as EOF", testClose},
		{"reset does not read as EOF", testReset},
		{"reset ends pending calls", testResetLocal},
		{"write deadline", testWriteDeadline},
		{"large transfer", testLarge},
		{"blocks by reference", testReferences},
		{"reference to a missing block", testMissingReference},
		{"write deadline of references", testReferenceDeadline},
		{"strangers are unreachable", testStranger},
		{"streams do not dial", testNoDial},
		{"connect", testConnect},
		{"ended context", testContext},
		{"latency and tags", testTags},
		{"detach", testDetach},
		{"detach ends inbound streams", testDetachStreams},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, nodes) })
	}
}

func testUpDown(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := pair(t, nodes)
	a.connect(b)
	a.hears("the connection", up(b))
	b.hears("the connection", up(a))
	check(t, "disconnect", a.Disconnect(b.Self()))
	a.hears("its end", down(b))
	b.hears("its end", down(a))
	b.connect(a)
	a.hears("a connection that the other side made", up(b))
	b.hears("its own", up(a))
}

// The peer is connected before either side attaches, and each hears of it.
func testReplay(t *testing.T, nodes func(*testing.T, int) []Node) {
	all := wrap(t, nodes(t, 3))
	a, b, c := all[0], all[1], all[2]
	a.connect(b)
	a.connect(c)
	b.attach()
	c.attach()
	a.attach()
	a.hears("who was there", up(b))
	a.hears("who was there", up(c))
	b.hears("who was there", up(a))
	c.hears("who was there", up(a))
}

// A peer that goes and comes back is never taken for one that stayed.
func testReconnects(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := pair(t, nodes)
	a.connect(b)
	a.hears("the connection", up(b))
	b.hears("the connection", up(a))
	for range 5 {
		check(t, "disconnect", a.Disconnect(b.Self()))
		a.connect(b)
		a.hears("the end of the old connection", down(b))
		a.hears("the new one", up(b))
	}
	b.settles("the last connection", a, true)
}

// Both sides connect and disconnect without order; what is told stays in order
// and ends with the truth.
func testStorm(t *testing.T, nodes func(*testing.T, int) []Node) {
	all := wrap(t, nodes(t, 3))
	for _, n := range all {
		n.attach()
	}
	var wg sync.WaitGroup
	for i, n := range all {
		for j, m := range all {
			if i == j {
				continue
			}
			wg.Go(func() {
				dice := rand.New(rand.NewPCG(uint64(i), uint64(j)))
				for range 20 {
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					if dice.IntN(3) > 0 {
						_ = n.Connect(ctx, m.Info) // may meet the other's disconnect
					} else {
						_ = n.Disconnect(m.Self())
					}
					cancel()
				}
			})
		}
	}
	wg.Wait()
	for i, n := range all {
		for _, m := range all[i+1:] {
			n.meets(m)
		}
	}
	for _, m := range all[1:] {
		check(t, "disconnect", all[0].Disconnect(m.Self()))
		all[0].settles("the end", m, false)
		m.settles("the end", all[0], false)
	}
}

func testStream(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, theirs := a.open(b)
	if ours.Peer() != b.Self() || theirs.Peer() != a.Self() {
		t.Errorf("stream from %s to %s: its ends name %s and %s", a.Self(), b.Self(), theirs.Peer(), ours.Peer())
	}
	send(t, ours, "ping")
	receive(t, theirs, "ping")
	send(t, theirs, "pong")
	receive(t, ours, "pong")
}

func testBothOpen(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	a1, b1 := a.open(b)
	b2, a2 := b.open(a)
	send(t, a1, "on the first")
	send(t, b2, "on the second")
	receive(t, b1, "on the first")
	receive(t, a2, "on the second")
}

func testManyStreams(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	const streams = 16
	var wg sync.WaitGroup
	for i := range streams {
		ours, theirs := a.open(b)
		wg.Go(func() {
			text := strings.Repeat(string(rune('a'+i)), 4096)
			errc := make(chan error, 1)
			go func() {
				_, err := ours.Write([]byte(text))
				errc <- err
			}()
			got := make([]byte, len(text))
			if _, err := io.ReadFull(theirs, got); err != nil || string(got) != text {
				t.Errorf("stream %d: got %.10q… and error %v, want %.10q…", i, got, err, text)
			}
			if err := <-errc; err != nil {
				t.Errorf("stream %d: write: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func testStreamDisconnect(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, theirs := a.open(b)
	check(t, "disconnect", a.Disconnect(b.Self()))
	within(t, "read from a stream whose connection is gone", func() error {
		return wantError(readByte(ours))
	})
	within(t, "read from a stream whose connection is gone, other side", func() error {
		return wantError(readByte(theirs))
	})
	a.hears("the end of the connection", down(b))
}

func testClose(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, theirs := a.open(b)
	send(t, ours, "last words")
	within(t, "close", ours.Close)
	receive(t, theirs, "last words")
	within(t, "read after the other side closed", func() error {
		if err := readByte(theirs); err != io.EOF {
			return errors.New("got " + text(err) + ", want EOF")
		}
		return nil
	})
}

func testReset(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, theirs := a.open(b)
	send(t, ours, "half a mess")
	receive(t, theirs, "half a mess")
	check(t, "reset", ours.Reset())
	within(t, "read after the other side reset", func() error {
		if err := readByte(theirs); err == nil || errors.Is(err, io.EOF) {
			return errors.New("got " + text(err) + ", want an error other than EOF")
		}
		return nil
	})
}

func testResetLocal(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, _ := a.open(b)
	read, write := make(chan error, 1), make(chan error, 1)
	go func() { read <- readByte(ours) }()
	go func() { write <- writeAll(ours, limit) }()
	check(t, "reset", ours.Reset())
	within(t, "read when reset", func() error { return wantError(<-read) })
	within(t, "write when reset", func() error { return wantError(<-write) })
}

func testWriteDeadline(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, _ := a.open(b)
	send(t, ours, "x") // so that the stream is set up
	check(t, "set a write deadline", ours.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	// Nobody reads. Sooner or later the stream takes no more.
	within(t, "write to a peer that does not read", func() error { return wantError(writeAll(ours, limit)) })

	late, _ := a.open(b)
	check(t, "set a write deadline in the past", late.SetWriteDeadline(time.Now().Add(-time.Second)))
	within(t, "write after the deadline", func() error { return wantError(writeAll(late, limit)) })
}

func testLarge(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, theirs := a.open(b)
	const size = 8 << 20
	there, back := noise(1, size), noise(2, size)
	var wg sync.WaitGroup
	for _, end := range []struct {
		s         exchange.Stream
		out, want []byte
	}{{ours, there, back}, {theirs, back, there}} {
		wg.Go(func() {
			if n, err := end.s.Write(end.out); err != nil {
				t.Errorf("write: %d of %d bytes, %v", n, size, err)
				_ = end.s.Reset()
			}
		})
		wg.Go(func() {
			got := make([]byte, size)
			if n, err := io.ReadFull(end.s, got); err != nil {
				t.Errorf("read: %d of %d bytes, %v", n, size, err)
				_ = end.s.Reset()
			} else if !bytes.Equal(got, end.want) {
				t.Error("read other bytes than were written")
			}
		})
	}
	within(t, "both ways", func() error { wg.Wait(); return nil })
}

// openFilled opens a stream and returns both of its ends as writers of blocks. It skips
// the test if the node has no such streams, and fails it if that is only true of
// some.
func (n *node) openFilled(m *node) (ours, theirs filledStream) {
	n.t.Helper()
	a, b := n.open(m)
	for i, end := range []struct {
		of *node
		s  exchange.Stream
		as *filledStream
	}{{n, a, &ours}, {m, b, &theirs}} {
		w, ok := end.s.(exchange.BlockWriter)
		if want := end.of.Put != nil; ok != want {
			n.t.Fatalf("end %d of the stream is an exchange.BlockWriter: got %v, want %v", i, ok, want)
		}
		*end.as = filledStream{end.s, w}
	}
	if n.Put == nil {
		n.t.Skip("streams take no references")
	}
	return ours, theirs
}

type filledStream struct {
	exchange.Stream
	exchange.BlockWriter
}

// What is put in stands between what was written before and after, on streams
// that the node opened and on streams that it was handed.
func testReferences(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, theirs := a.openFilled(b)
	long, short, empty := codex.NewBlock(noise(1, 1<<20)), codex.NewBlock([]byte("short")), rawBlock(t, nil)
	for _, way := range []struct {
		from     *node
		out, end filledStream
	}{{a, ours, theirs}, {b, theirs, ours}} {
		if way.from.Put == nil {
			continue
		}
		var want []byte
		for _, blk := range []blocks.Block{long, short, empty} {
			check(t, "store a block", way.from.Put(blk))
		}
		sent := make(chan error, 1)
		list := []blocks.Block{long, short, short, empty, long}
		for _, blk := range list {
			want = append(append(append(want, "head "...), blk.RawData()...), " tail"...)
		}
		go func() {
			for _, blk := range list {
				_, err := way.out.Write([]byte("head "))
				if err == nil {
					err = way.out.WriteBlock(blk.Cid(), len(blk.RawData()))
				}
				if err == nil {
					_, err = way.out.Write([]byte(" tail"))
				}
				if err != nil {
					sent <- err
					_ = way.out.Reset()
					return
				}
			}
			sent <- nil
		}()
		within(t, "blocks by reference", func() error {
			got := make([]byte, len(want))
			n, err := io.ReadFull(way.end, got)
			if err = errors.Join(err, <-sent); err != nil {
				return fmt.Errorf("read %d of %d bytes: %w", n, len(want), err)
			}
			if !bytes.Equal(got, want) {
				return errors.New("read other bytes than the blocks between what was written")
			}
			return nil
		})
	}
}

// A block that is not there, or not so long, ends the stream on both sides, and
// never in good order.
func testMissingReference(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	held := codex.NewBlock([]byte("twenty-four bytes of it."))
	for name, write := range map[string]func(filledStream) error{
		"missing": func(s filledStream) error { return s.WriteBlock(codex.BlockCid([]byte("nobody has this")), 15) },
		"shorter": func(s filledStream) error { return s.WriteBlock(held.Cid(), 23) },
		"longer":  func(s filledStream) error { return s.WriteBlock(held.Cid(), 25) },
	} {
		ours, theirs := a.openFilled(b)
		check(t, "store a block", a.Put(held))
		// It may be found out later, so this may succeed.
		_ = write(ours)
		within(t, name+": read on the other side", func() error {
			if _, err := io.Copy(io.Discard, theirs); err == nil {
				return errors.New("got EOF, want another error")
			}
			return nil
		})
		within(t, name+": read on this side", func() error { return wantError(readByte(ours)) })
		within(t, name+": write on this side", func() error { return wantError(writeAll(ours, limit)) })
	}
}

func testReferenceDeadline(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	ours, _ := a.openFilled(b)
	blk := codex.NewBlock(noise(1, 1<<20))
	check(t, "store a block", a.Put(blk))
	check(t, "set a write deadline", ours.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	// Nobody reads. Sooner or later the stream takes no more.
	within(t, "write blocks to a peer that does not read", func() error {
		for {
			if err := ours.WriteBlock(blk.Cid(), 1<<20); err != nil {
				return nil
			}
		}
	})
}

func testStranger(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, _ := connected(t, nodes)
	stranger := NewPeerID(t)
	within(t, "open a stream to a stranger", func() error {
		s, err := a.NewStream(t.Context(), stranger)
		return wantUnreachable(s, err, stranger)
	})
}

func testNoDial(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	check(t, "disconnect", a.Disconnect(b.Self()))
	a.hears("the end", down(b))
	b.hears("the end", down(a))
	within(t, "open a stream to a peer known but not connected", func() error {
		s, err := a.NewStream(t.Context(), b.Self())
		return wantUnreachable(s, err, b.Self())
	})
	a.quiet("a stream that could not be opened")
}

func testConnect(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	a.connect(b) // it is: nothing happens
	a.quiet("connecting to a connected peer")
	b.quiet("connecting to a connected peer")
	nobody := NewPeerID(t)
	within(t, "connect to a peer without addresses", func() error {
		err := a.Connect(t.Context(), peer.AddrInfo{ID: nobody})
		return wantUnreachable(nil, err, nobody)
	})
}

func testContext(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, _ := connected(t, nodes)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	nobody := NewPeerID(t)
	within(t, "open a stream when the context has ended", func() error {
		s, err := a.NewStream(ctx, nobody)
		return wantUnreachable(s, err, nobody)
	})
	within(t, "connect when the context has ended", func() error {
		return wantError(a.Connect(ctx, peer.AddrInfo{ID: nobody}))
	})
}

func testTags(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := connected(t, nodes)
	stranger := NewPeerID(t)
	for _, p := range []peer.ID{b.Self(), stranger} {
		if d := a.Latency(p); d < 0 || d > time.Minute {
			t.Errorf("latency to %s is %v, want 0 or a round trip", p, d)
		}
		for _, value := range []int{1, 100, 50, 0, 0, -1, 101} {
			a.Tag(p, value)
		}
	}
	if d := a.Latency(stranger); d != 0 {
		t.Errorf("latency to a stranger is %v, want 0", d)
	}
	a.quiet("tagging")
	a.open(b)
}

func testDetach(t *testing.T, nodes func(*testing.T, int) []Node) {
	all := wrap(t, nodes(t, 3))
	a, b, c := all[0], all[1], all[2]
	a.attach()
	b.attach()
	c.attach()
	a.connect(b)
	a.hears("the connection", up(b))
	b.hears("the connection", up(a))
	within(t, "two detach at once and one more", func() error {
		var wg sync.WaitGroup
		wg.Go(a.detach)
		wg.Go(a.detach)
		wg.Wait()
		a.detach()
		return nil
	})
	// What comes now is not told, and was not on its way.
	before := a.calls()
	check(t, "disconnect", a.Disconnect(b.Self()))
	c.connect(a)
	within(t, "use a stream that nobody handles", func() error {
		s, err := c.NewStream(t.Context(), a.Self())
		if err != nil {
			return nil
		}
		defer s.Reset()
		_, _ = s.Write([]byte("anybody?"))
		return wantError(readByte(s))
	})
	b.hears("the end", down(a))
	if after := a.calls(); after != before {
		t.Errorf("calls to the handler after detach: got %d, want none", after-before)
	}
}

// A handler that reads until the stream ends does not keep detach waiting.
func testDetachStreams(t *testing.T, nodes func(*testing.T, int) []Node) {
	a, b := pair(t, nodes)
	reading, ended := make(chan struct{}), make(chan error, 1)
	b.onStream(func(s exchange.Stream) {
		defer s.Reset()
		close(reading)
		err := readByte(s)
		if err == nil {
			err = readByte(s)
		}
		ended <- err
	})
	a.connect(b)
	a.hears("the connection", up(b))
	s, err := a.NewStream(t.Context(), b.Self())
	check(t, "open a stream", err)
	defer s.Reset()
	send(t, s, "x")
	within(t, "the stream to be handled", func() error { <-reading; return nil })
	within(t, "detach", func() error { b.detach(); return nil })
	select {
	case err := <-ended:
		check(t, "read on a detached stream", wantError(err))
	default:
		t.Error("detach returned while a call to HandleStream was under way")
	}
}
