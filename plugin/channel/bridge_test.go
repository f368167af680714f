package channel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// memStream is one end of a stream in memory, which behaves like one of libp2p.
type memStream struct {
	r *io.PipeReader
	w *io.PipeWriter

	mu     sync.Mutex
	closed bool // Close was called
}

func memPair() (a, b *memStream) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return &memStream{r: ar, w: aw}, &memStream{r: br, w: bw}
}

var errReadClosed = errors.New("memStream: reading is closed")

func (s *memStream) Read(p []byte) (int, error)  { return s.r.Read(p) }
func (s *memStream) Write(p []byte) (int, error) { return s.w.Write(p) }
func (s *memStream) CloseRead() error            { return s.r.CloseWithError(errReadClosed) }
func (s *memStream) CloseWrite() error           { return s.w.Close() }

func (s *memStream) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.CloseRead()
	return s.CloseWrite()
}

func (s *memStream) ResetWithCode(code uint32) error {
	err := &ResetError{Code: code, Remote: true}
	s.r.CloseWithError(err)
	return s.w.CloseWithError(err)
}

// bridged is a bridge at work: peer is who talks to the host over the stream,
// plugin is the other side of the Conn.
type bridged struct {
	peer, stream *memStream
	host, plugin *Conn
	result       <-chan error
}

func startBridge(t *testing.T, ctx context.Context, fill Fill) bridged {
	t.Helper()
	host, plugin := pair(t)
	stream, peer := memPair()
	return bridged{peer: peer, stream: stream, host: host, plugin: plugin,
		result: async(func() error { return Bridge(ctx, stream, host, fill) })}
}

// ended checks how the bridge ended, and that it closed what it owned.
func (b bridged) ended(t *testing.T) error {
	t.Helper()
	err := wait(t, "the bridge", b.result)
	within(t, "the Conn is closed", func() { <-b.host.Done() })
	b.stream.mu.Lock()
	defer b.stream.mu.Unlock()
	if !b.stream.closed {
		t.Error("the stream was not closed")
	}
	return err
}

// noFill is for streams without references.
func noFill(context.Context, cid.Cid, int, io.Writer) error {
	panic("nothing is to be filled")
}

// Bytes and half-closes go both ways, whoever closes first.
func TestBridge(t *testing.T) {
	for _, peerFirst := range []bool{true, false} {
		b := startBridge(t, t.Context(), noFill)
		question, answer := random(1_000_000), random(700_001)
		asks, answers := Stream(b.peer), Stream(b.plugin)
		if !peerFirst {
			asks, answers = answers, asks
		}
		asking := async(func() error {
			if _, err := asks.Write(question); err != nil {
				return err
			}
			if err := asks.CloseWrite(); err != nil {
				return err
			}
			got, err := io.ReadAll(asks)
			if !bytes.Equal(got, answer) {
				return errors.Join(err, errors.New("other answer than was sent"))
			}
			return err
		})
		got, err := io.ReadAll(answers)
		if err != nil || !bytes.Equal(got, question) {
			t.Fatalf("question: %d bytes, %v, want %d", len(got), err, len(question))
		}
		if _, err := answers.Write(answer); err != nil {
			t.Fatal(err)
		}
		answers.CloseWrite()
		if err := wait(t, "the asking side", asking); err != nil {
			t.Fatal(err)
		}
		if err := b.ended(t); err != nil {
			t.Errorf("bridge: %v", err)
		}
	}
}

// Blocks are put in the place of their references, in order, and none of their
// bytes crosses the boundary.
func TestBridgeFills(t *testing.T) {
	store := map[cid.Cid][]byte{}
	fill := func(_ context.Context, c cid.Cid, size int, w io.Writer) error {
		for data := store[c]; len(data) > 0; { // in pieces
			n := min(len(data), 50_000)
			if _, err := w.Write(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	}
	var want []byte
	blocks := [][]byte{{}, random(1), random(65536), random(1 << 20)}
	for i, data := range blocks {
		store[cidOf(data)] = data
		want = append(append(want, byte(i)), data...)
	}
	b := startBridge(t, t.Context(), fill)
	sent := async(func() error {
		for i, data := range blocks {
			if _, err := b.plugin.Write([]byte{byte(i)}); err != nil {
				return err
			}
			if err := b.plugin.WriteBlock(cidOf(data), len(data)); err != nil {
				return err
			}
		}
		return b.plugin.CloseWrite()
	})
	got, err := io.ReadAll(b.peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the peer read %d bytes, %v, want the %d", len(got), err, len(want))
	}
	if err := wait(t, "the plugin", sent); err != nil {
		t.Fatal(err)
	}
	b.peer.CloseWrite()
	if err := b.ended(t); err != nil {
		t.Errorf("bridge: %v", err)
	}
	filled := uint64(len(want) - len(blocks))
	for side, n := range map[string]*Counters{"host": b.host.Counters(), "plugin": b.plugin.Counters()} {
		if crossed := n.DataIn.Load() + n.DataOut.Load() - uint64(len(blocks)); crossed != 0 {
			t.Errorf("%s: %d payload bytes crossed the boundary while serving, want 0", side, crossed)
		}
	}
	if n := b.host.Counters().Filled.Load(); n != filled {
		t.Errorf("%d bytes were filled, want %d", n, filled)
	}
}

// A block that cannot be put in full resets both sides, since the message can
// no longer be ended.
func TestBridgeBlockMissing(t *testing.T) {
	gone := errs.E(errs.NotFound, errs.Unknown, "get block", "x", nil)
	for _, tc := range []struct {
		name string
		fill func(w io.Writer) error
		is   error
	}{
		{"not there", func(io.Writer) error { return gone }, errs.NotFound},
		{"short", func(w io.Writer) error { _, err := w.Write(make([]byte, 9)); return err }, errs.Storage},
		{"nothing", func(io.Writer) error { return nil }, errs.Storage},
		{"fails midway", func(w io.Writer) error { w.Write(make([]byte, 9)); return gone }, errs.NotFound},
		{"fails at the end", func(w io.Writer) error { w.Write(make([]byte, 10)); return gone }, errs.NotFound},
		{"long", func(w io.Writer) error { _, err := w.Write(make([]byte, 11)); return err }, errBlockTooLong},
		{"long after all", func(w io.Writer) error { w.Write(make([]byte, 10)); w.Write(make([]byte, 1)); return nil }, errs.Storage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := startBridge(t, t.Context(), func(_ context.Context, _ cid.Cid, _ int, w io.Writer) error { return tc.fill(w) })
			if err := b.plugin.WriteBlock(cidOf(nil), 10); err != nil {
				t.Fatal(err)
			}
			_, err := io.ReadAll(b.peer)
			isReset(t, err, CodeBlockMissing, true)
			_, err = io.ReadAll(b.plugin)
			isReset(t, err, CodeBlockMissing, true)
			if err := b.ended(t); !errors.Is(err, tc.is) || !errors.Is(err, errs.Storage) {
				t.Errorf("bridge: %v, want %v", err, tc.is)
			}
		})
	}
}

// Resets cross with their codes, both ways, whatever is under way.
func TestBridgeReset(t *testing.T) {
	const code = 0x1234
	t.Run("plugin resets", func(t *testing.T) {
		b := startBridge(t, t.Context(), noFill)
		b.plugin.ResetWithCode(code)
		_, err := io.ReadAll(b.peer)
		isReset(t, err, code, true)
		isReset(t, b.ended(t), code, true)
	})
	t.Run("plugin resets while the peer does not read", func(t *testing.T) {
		b := startBridge(t, t.Context(), noFill)
		mustWrite(t, b.plugin, "taken by nobody")
		eventually(t, "it is on its way", func() bool { return b.host.Counters().DataIn.Load() > 0 })
		b.plugin.ResetWithCode(code)
		isReset(t, b.ended(t), code, true)
	})
	t.Run("peer resets", func(t *testing.T) {
		b := startBridge(t, t.Context(), noFill)
		b.peer.ResetWithCode(code)
		_, err := io.ReadAll(b.plugin)
		isReset(t, err, code, true)
		isReset(t, b.ended(t), code, true)
	})
	t.Run("peer resets while the plugin does not read", func(t *testing.T) {
		b := startBridge(t, t.Context(), noFill)
		writing := async(func() error { _, err := b.peer.Write(random(DefaultWindow / RefCost * 2 * slotSize)); return err })
		eventually(t, "the bridge waits for credit", func() bool {
			b.host.mu.Lock()
			defer b.host.mu.Unlock()
			return b.host.waiting > 0
		})
		// The bridge is writing to the plugin, so only its writing direction
		// can learn of it: by the next write to the peer.
		b.peer.ResetWithCode(code)
		mustWrite(t, b.plugin, "x")
		isReset(t, b.ended(t), code, true)
		if err := wait(t, "the peer's write", writing); err == nil {
			t.Error("the peer's write ended well")
		}
	})
	t.Run("peer resets during a block", func(t *testing.T) {
		b := startBridge(t, t.Context(), func(_ context.Context, _ cid.Cid, size int, w io.Writer) error {
			if _, err := w.Write(make([]byte, size)); err == nil {
				t.Error("the write ended well")
			}
			return errors.New("said badly")
		})
		b.plugin.WriteBlock(cidOf(nil), 100_000)
		io.ReadFull(b.peer, make([]byte, 50))
		b.peer.ResetWithCode(code)
		_, err := io.ReadAll(b.plugin)
		isReset(t, err, code, true)
		isReset(t, b.ended(t), code, true)
	})
	t.Run("plugin dies", func(t *testing.T) {
		b := startBridge(t, t.Context(), noFill)
		b.plugin.sock.Close()
		_, err := io.ReadAll(b.peer)
		isReset(t, err, CodeNone, true)
		if err := b.ended(t); !errors.Is(err, errs.Crashed) {
			t.Errorf("bridge: %v, want %v", err, errs.Crashed)
		}
	})
	t.Run("context ends during a block", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := startBridge(t, ctx, func(ctx context.Context, _ cid.Cid, _ int, _ io.Writer) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
		b.plugin.WriteBlock(cidOf(nil), 100)
		_, err := io.ReadAll(b.plugin)
		isReset(t, err, CodeShutdown, true)
		_, err = io.ReadAll(b.peer)
		isReset(t, err, CodeShutdown, true)
		if err := b.ended(t); !errors.Is(err, context.Canceled) {
			t.Errorf("bridge: %v, want %v", err, context.Canceled)
		}
	})
}

// A plugin that closes both directions frees the stream: the peer reads what
// was sent and the end, and nobody waits for the peer to close.
func TestBridgePluginCloses(t *testing.T) {
	b := startBridge(t, t.Context(), noFill)
	data := random(DefaultWindow / 2)
	if _, err := b.plugin.Write(data); err != nil {
		t.Fatal(err)
	}
	b.plugin.Close()
	got, err := io.ReadAll(b.peer)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the peer read %d bytes, %v, want %d", len(got), err, len(data))
	}
	if err := b.ended(t); err != nil {
		t.Errorf("bridge: %v", err)
	}
	if _, err := b.peer.Write([]byte("x")); !errors.Is(err, errReadClosed) {
		t.Errorf("the peer writes: %v, want %v", err, errReadClosed)
	}
}

// A plugin that reads no more frees that direction, and the other goes on.
func TestBridgePluginClosesRead(t *testing.T) {
	b := startBridge(t, t.Context(), noFill)
	b.plugin.CloseRead()
	var err error
	within(t, "the peer's writes end", func() {
		for err == nil {
			_, err = b.peer.Write(make([]byte, 1000))
		}
	})
	if !errors.Is(err, errReadClosed) {
		t.Errorf("the peer writes: %v, want %v", err, errReadClosed)
	}
	mustWrite(t, b.plugin, "still here")
	b.plugin.CloseWrite()
	if got, err := io.ReadAll(b.peer); err != nil || string(got) != "still here" {
		t.Fatalf("the peer read %q, %v, want %q", got, err, "still here")
	}
	if err := b.ended(t); err != nil {
		t.Errorf("bridge: %v", err)
	}
}

// A peer that does not take its bytes slows the plugin down: so many references
// wait, and no more.
func TestBridgeBackPressure(t *testing.T) {
	release := make(chan struct{})
	fill := func(_ context.Context, _ cid.Cid, size int, w io.Writer) error {
		<-release
		_, err := w.Write(make([]byte, size))
		return err
	}
	b := startBridge(t, t.Context(), fill)
	const n = 1000
	sent := async(func() error {
		for range n {
			if err := b.plugin.WriteBlock(cidOf(nil), 100); err != nil {
				return err
			}
		}
		return b.plugin.CloseWrite()
	})
	eventually(t, "credit is used", func() bool { return b.host.Counters().BlocksIn.Load() == DefaultWindow/RefCost })
	b.plugin.mu.Lock()
	credit := b.plugin.credit
	b.plugin.mu.Unlock()
	if credit != 0 {
		t.Errorf("the plugin has credit of %d bytes, want none", credit)
	}
	close(release)
	got, err := io.ReadAll(b.peer)
	if err != nil || len(got) != n*100 {
		t.Fatalf("the peer read %d bytes, %v, want %d", len(got), err, n*100)
	}
	if err := wait(t, "the plugin", sent); err != nil {
		t.Fatal(err)
	}
	b.peer.CloseWrite()
	if err := b.ended(t); err != nil {
		t.Errorf("bridge: %v", err)
	}
}

// A Conn is a Stream, so bridges can be chained.
func TestBridgeChain(t *testing.T) {
	l := listen(t, Options{})
	hostA, a := join(t, l, 1, Options{})
	hostB, b := join(t, l, 2, Options{})
	result := async(func() error { return Bridge(t.Context(), hostB, hostA, noFill) })
	mustWrite(t, a, "over two")
	mustRead(t, b, "over two")
	b.ResetWithCode(77)
	_, err := a.Read(make([]byte, 1))
	isReset(t, err, 77, true)
	isReset(t, wait(t, "the bridge", result), 77, true)
}

// What the plugin has written reaches the peer though a record comes behind it in the same
// read that is not for the peer.
func TestBridgeControlBehind(t *testing.T) {
	for _, behind := range []Record{{Kind: KindCredit, Size: 100}, {Kind: KindCloseRead}} {
		c, raw := against(t, settings{host: true})
		c.mu.Lock()
		c.credit -= 100 // which are out
		c.mu.Unlock()
		stream, peer := memPair()
		result := async(func() error { return Bridge(t.Context(), stream, c, noFill) })
		raw.Write(wire(t, Record{Kind: KindData, Data: []byte("want")}, behind))
		within(t, "the peer reads it", func() {
			got := make([]byte, 4)
			if _, err := io.ReadFull(peer, got); err != nil || string(got) != "want" {
				t.Errorf("%v behind it: got %q, %v", behind.Kind, got, err)
			}
		})
		peer.Close()
		raw.Close()
		wait(t, "the bridge", result)
	}
}
