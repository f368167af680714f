package channel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/memory"
)

// share has streams made with memory until the test ends.
func share(t testing.TB) {
	sharing = true
	t.Cleanup(func() { sharing = false })
}

// TestWithMemory shows that streams are as they always are when they have memory.
func TestWithMemory(t *testing.T) {
	share(t)
	inboundMemory(t, slotSize) // or skip
	for name, f := range map[string]func(*testing.T){
		"Bytes": TestBytes, "HalfClose": TestHalfClose, "CloseRead": TestCloseRead, "Close": TestClose, "Reset": TestReset,
		"Deadlines": TestDeadlines, "ListenerClose": TestListenerClose,
		"Bridge": TestBridge, "BridgeFills": TestBridgeFills, "BridgeReset": TestBridgeReset, "BridgePluginCloses": TestBridgePluginCloses,
		"BridgePluginClosesRead": TestBridgePluginClosesRead, "BridgeBackPressure": TestBridgeBackPressure, "BridgeChain": TestBridgeChain,
	} {
		t.Run(name, f)
	}
}

// free is how many slots of a listener are free.
func (l *Listener) free() int {
	l.slots.mu.Lock()
	defer l.slots.mu.Unlock()
	return l.slots.left
}

// TestSlots shows who gets a slot: the lowest, by a share of what is free, half of
// them for reading, and none after the end; and that it is free when its stream has let
// go of it and each region of it has come back.
func TestSlots(t *testing.T) {
	s := newSlots(inboundMemory(t, 100*slotSize))
	var has, none, ten atomic.Int32
	ten.Store(10)
	var mine []*slot
	for p := s.take(&has, false); p != nil; p = s.take(&has, false) {
		if p.n != len(mine) {
			t.Errorf("got slot %d, want %d", p.n, len(mine))
		}
		mine = append(mine, p)
	}
	if len(mine) != 34 || has.Load() != 34 {
		t.Errorf("one stream got %d slots and has %d, want 34: half of the 66 others, and one", len(mine), has.Load())
	}
	p := mine[5]
	p.lend(p.offset())
	p.lend(p.offset() + 1000)
	p.give()
	p.give()
	for _, at := range []int{p.offset() + 1000, p.offset()} {
		if s.left != 66 {
			t.Errorf("%d slots are free while a region is lent, want 66", s.left)
		}
		if err := s.returned([]uint64{uint64(at)}); err != nil {
			t.Error(err)
		}
	}
	if s.left != 67 || has.Load() != 33 {
		t.Errorf("%d slots are free and the stream has %d, want 67 and 33", s.left, has.Load())
	}
	if got := s.take(&none, true); got.n != 5 {
		t.Errorf("got slot %d, want 5", got.n)
	}
	reading := 1
	for none.Store(0); s.take(&none, true) != nil; none.Store(0) {
		reading++
	}
	if reading != 50 {
		t.Errorf("%d are for reading, want 50", reading)
	}
	if mine[0].await() {
		t.Error("one more is read into again, want none")
	}
	if p := s.take(&none, false); p == nil {
		t.Error("no slot for who has read already, want one")
	}
	if p := s.take(&ten, false); p != nil {
		t.Errorf("slot %d for who has ten of 16, want none", p.n)
	}
	s.end()
	none.Store(0)
	if p := s.take(&none, false); p != nil {
		t.Errorf("slot %d after the end, want none", p.n)
	}
	if mine[0].lend(0) {
		t.Error("a region is lent after the end")
	}
}

// TestNotLent shows that a plugin that gives back what it does not have is found out.
func TestNotLent(t *testing.T) {
	s := newSlots(inboundMemory(t, 16*slotSize))
	var has atomic.Int32
	p := s.take(&has, false)
	p.lend(100)
	for _, list := range [][]uint64{{0}, {100, 100}, {slotSize}, {16 * slotSize}, {1 << 63}} {
		if err := s.returned(list); !errors.Is(err, errs.Malformed) {
			t.Errorf("%d: got %v, want kind %v", list, err, errs.Malformed)
		}
		if len(p.lent) == 0 {
			p.lend(100)
		}
	}
	if l := listen(t, Options{}); !errors.Is(l.Returned([]uint64{0}), errs.Malformed) {
		t.Error("a listener without memory takes some back")
	}
}

// TestMemoryCarries shows that large reads of a stream cross in memory, that every byte comes whole and in order, however the plugin reads,
// and that all slots are free soon after all is read.
func TestMemoryCarries(t *testing.T) {
	share(t)
	for _, piece := range []int{100, 4 << 10, 20_000, 60_000, 64 << 10, 200_000} {
		for _, room := range []int{1000, 50_000, 300_000} {
			t.Run(fmt.Sprintf("%d by %d", piece, room), func(t *testing.T) {
				b := startBridge(t, t.Context(), nil)
				data := random(3<<20 + 7)
				async(func() error {
					for p := data; len(p) > 0; {
						n := min(len(p), piece)
						b.peer.Write(p[:n])
						p = p[n:]
					}
					return b.peer.CloseWrite()
				})
				var got []byte
				within(t, "the plugin reads", func() {
					p := make([]byte, room)
					for {
						n, err := b.plugin.Read(p)
						got = append(got, p[:n]...)
						if err != nil {
							if err != io.EOF {
								t.Error(err)
							}
							return
						}
					}
				})
				if !bytes.Equal(got, data) {
					t.Errorf("got %d other bytes, want %d", len(got), len(data))
				}
				in, out := b.plugin.counters.MemoryIn.Load(), b.host.counters.MemoryOut.Load()
				inline := b.plugin.counters.DataIn.Load()
				if in != out || in+inline != uint64(len(data)) {
					t.Errorf("%d bytes in memory received, %d sent, and %d inline, want %d", in, out, inline, len(data))
				}
				if large := piece >= minRegion; large && in < uint64(len(data)/8) {
					t.Errorf("%d of %d bytes crossed in memory in pieces of %d", in, len(data), piece)
				}
				s := b.host.slots
				eventually(t, "all slots are free, the stream still open", func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.left >= len(s.taken)-1 // one may be read into
				})
				b.plugin.Close()
				if err := b.ended(t); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// lendTo sends a slot full of a byte.
func lendTo(t testing.TB, c *Conn, with byte) *slot {
	t.Helper()
	p := c.slot(false)
	if p == nil {
		t.Fatal("there is no slot")
	}
	for i := range p.bytes() {
		p.bytes()[i] = with
	}
	if err := c.writePieces([]piece{{p, 0, slotSize}}); err != nil {
		t.Fatal(err)
	}
	p.give()
	return p
}

// TestSlotsStayLent shows that a slot is not used again before the plugin has given it
// back, though both are done with the stream; and that what a plugin has not read when it
// ends a stream comes back by itself, be it on its way.
func TestSlotsStayLent(t *testing.T) {
	m := inboundMemory(t, memory.Inbound)
	l, loans := listen(t, Options{Inbound: m}), borrowed(t, m)
	all := l.free()
	host, plugin := join(t, l, 1, Options{Loans: loans})
	lendTo(t, host, 'a')
	b, r, err := plugin.ReadLent(make([]byte, 1))
	if err != nil || r == nil || !bytes.Equal(b, bytes.Repeat([]byte{'a'}, slotSize)) {
		t.Fatalf("read %d bytes, %v, %v, want a region", len(b), r, err)
	}
	end(t, host, plugin)
	second, its := join(t, l, 2, Options{Loans: loans})
	if p := lendTo(t, second, 'b'); p.n != 1 {
		t.Errorf("slot %d was taken, want 1, as the plugin has 0", p.n)
	}
	if r.Ref(); b[0] != 'a' {
		t.Errorf("the region begins with %q, want a", b[0])
	}
	r.Free()
	if got := loans.Take(nil); len(got) != 0 {
		t.Errorf("%d regions came back that are still used", len(got))
	}
	r.Free()
	if got := loans.Take(nil); len(got) != 1 || got[0] != 0 {
		t.Errorf("got back %d, want the region at 0", got)
	} else if err := l.Returned(got); err != nil {
		t.Error(err)
	}
	for i, over := range []func(){func() { its.CloseRead() }, func() { its.Reset() }} {
		lendTo(t, second, 'c')
		over()
		eventually(t, "what was not read comes back", func() bool {
			if err := l.Returned(loans.Take(nil)); err != nil {
				t.Error(err)
			}
			return l.free() == all
		})
		if i == 0 {
			second, its = join(t, l, 3, Options{Loans: loans})
		}
	}
}

// TestRegionsAfterReset shows that a plugin that resets a stream gives back what is on
// its way to it, as long as the host goes on; and ends when the host does not.
func TestRegionsAfterReset(t *testing.T) {
	m := inboundMemory(t, 16*slotSize)
	for _, hangs := range []bool{false, true} {
		loans := borrowed(t, m)
		c, raw := against(t, settings{loans: loans, stall: 50 * time.Millisecond})
		c.ResetWithCode(9)
		if r := readRecord(t, raw); r.Kind != KindReset || r.Code != 9 {
			t.Errorf("got %+v, want a reset", r)
		}
		if !hangs {
			raw.Write(wire(t, Record{Kind: KindRegion, Size: 1}, Record{Kind: KindData, Data: []byte("y")}, Record{Kind: KindRegion, Offset: slotSize, Size: 5}))
			raw.Close()
		}
		within(t, "the Conn ends", func() { <-c.Done() })
		if got := loans.Take(nil); !hangs && len(got) != 2 || loans.out.Load() != 0 {
			t.Errorf("%d regions came back and %d did not, want both and none", len(got), loans.out.Load())
		}
	}
}

// TestScarce shows that a plugin that has half of the memory copies what comes, and so
// gives it back at once.
func TestScarce(t *testing.T) {
	m := inboundMemory(t, 16*slotSize)
	loans := borrowed(t, m)
	c, raw := against(t, settings{loans: loans})
	var kept []*Region
	for i := range 8 {
		raw.Write(wire(t, Record{Kind: KindRegion, Offset: uint64(i) * slotSize, Size: slotSize}))
		_, r, err := c.ReadLent(make([]byte, slotSize))
		if err != nil || r == nil {
			t.Fatalf("region %d: %v, %v, want it lent", i, r, err)
		}
		kept = append(kept, r)
	}
	raw.Write(wire(t, Record{Kind: KindRegion, Offset: 8 * slotSize, Size: slotSize}))
	b, r, err := c.ReadLent(make([]byte, slotSize))
	if err != nil || r != nil || len(b) != slotSize {
		t.Errorf("got %d bytes, %v, %v, want a copy", len(b), r, err)
	}
	if got := loans.Take(nil); len(got) != 1 || got[0] != 8*slotSize {
		t.Errorf("got back %d, want the region at %d", got, 8*slotSize)
	}
	for _, r := range kept {
		r.Free()
	}
}

// TestStuckStreams shows that streams which nobody reads in the plugin, and such
// that wait for silent peers, leave slots for others.
func TestStuckStreams(t *testing.T) {
	share(t)
	l := listen(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var bridges []<-chan error
	data := random(4 << 20)
	start := func(n uint64) (peer *memStream, plugin *Conn) {
		host, plugin := join(t, l, n, Options{})
		stream, peer := memPair()
		bridges = append(bridges, async(func() error { return Bridge(ctx, stream, host, nil) }))
		return peer, plugin
	}
	for n := range uint64(6) {
		peer, _ := start(n)
		async(func() error { _, err := peer.Write(data); return err })
	}
	eventually(t, "they take their share", func() bool { return l.free() < len(l.slots.taken)*2/3 })
	peer, plugin := start(100)
	async(func() error { _, err := peer.Write(data); return err })
	got := make([]byte, len(data))
	within(t, "one that is read", func() { io.ReadFull(plugin, got) })
	if in := plugin.counters.MemoryIn.Load(); in < uint64(len(data))/2 || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came in memory, want a good part; all are right: %v", in, len(data), bytes.Equal(got, data))
	}
	cancel()
	for _, b := range bridges {
		wait(t, "a bridge", b)
	}
}

// TestMemoryEndsFirst shows that a stream whose peer is silent may hold a slot
// longer than the listener, and its owner, have the memory.
func TestMemoryEndsFirst(t *testing.T) {
	share(t)
	m := inboundMemory(t, memory.Inbound)
	l := listen(t, Options{Inbound: m})
	host, plugin := join(t, l, 1, Options{})
	p := host.slot(true)
	lendTo(t, host, 'x')
	l.Close()
	m.Close()
	within(t, "the Conns end", func() { <-host.Done(); <-plugin.Done() })
	copy(p.bytes(), "what the peer says at last")
	if err := host.writePieces([]piece{{p, 0, slotSize}}); err == nil {
		t.Error("a slot of a listener that is closed was sent")
	}
	p.give()
	if m.Hold() {
		t.Error("the memory can still be held")
	}
}

// TestHostileRegions shows that a plugin does not go by a host that names memory
// that there is not.
func TestHostileRegions(t *testing.T) {
	m := inboundMemory(t, 4*slotSize)
	for _, r := range []Record{
		{Kind: KindRegion, Offset: 4 * slotSize, Size: 1},
		{Kind: KindRegion, Offset: 3 * slotSize, Size: slotSize + 1},
		{Kind: KindRegion, Offset: 1 << 62, Size: 1},
		{Kind: KindRegion, Offset: 0, Size: MaxBlock},
	} {
		c, raw := against(t, settings{loans: borrowed(t, m)})
		raw.Write(wire(t, r))
		_, err := c.Read(make([]byte, 10))
		isReset(t, err, CodeProtocol, false)
		if !errors.Is(err, errs.Malformed) {
			t.Errorf("%d bytes at %d: got %v, want kind %v", r.Size, r.Offset, err, errs.Malformed)
		}
	}
}

// TestPluginWithoutMemory shows that all is inline for a plugin that has not
// mapped what the host has.
func TestPluginWithoutMemory(t *testing.T) {
	l := listen(t, Options{Inbound: inboundMemory(t, memory.Inbound)})
	host, plugin := join(t, l, 1, Options{})
	if host.slot(false) != nil {
		t.Error("there is a slot for it")
	}
	stream, peer := memPair()
	bridged := async(func() error { return Bridge(t.Context(), stream, host, nil) })
	data := random(1 << 20)
	async(func() error { peer.Write(data); return peer.CloseWrite() })
	if got, err := io.ReadAll(plugin); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(data))
	}
	if n := host.counters.MemoryOut.Load(); n != 0 {
		t.Errorf("%d bytes crossed in memory, want 0", n)
	}
	plugin.Close()
	wait(t, "the bridge", bridged)
}

// TestDrip shows that a peer that sends byte after byte, when it has sent much, does not
// have a slot for each.
func TestDrip(t *testing.T) {
	m := inboundMemory(t, memory.Inbound)
	l := listen(t, Options{Inbound: m})
	host, plugin := join(t, l, 7, Options{Loans: borrowed(t, m)})
	in := newIntake(host)
	defer in.end()
	feed := func(n int) {
		if err := in.took(min(n, len(in.room())), 0); err != nil {
			t.Error(err)
		}
	}
	fed := async(func() error {
		for in.flow < flowing/4 {
			feed(32 << 10)
		}
		for range 2000 {
			feed(1)
		}
		return errors.Join(in.flush(), host.CloseWrite())
	})
	p, err := make([]byte, 4096), error(nil)
	within(t, "all is read", func() {
		for err == nil {
			var r *Region
			if _, r, err = plugin.ReadLent(p); r != nil {
				defer r.Free()
			}
		}
	})
	if wait(t, "all is fed", fed); err != io.EOF {
		t.Error(err)
	}
	if taken := len(l.slots.taken) - l.free(); taken > 8 {
		t.Errorf("%d slots are taken, want no more than what came at a time needs", taken)
	}
}

// TestAbandonedDialGivesBack shows that regions come back that a host has sent on a
// stream whose Dial had been given up.
func TestAbandonedDialGivesBack(t *testing.T) {
	loans := borrowed(t, inboundMemory(t, 1<<20))
	sock, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	ctx, cancel := context.WithCancel(t.Context())
	dialled := async(func() error {
		_, err := Dial(ctx, sock.Addr().String(), Token{}, 1, Options{Loans: loans})
		return err
	})
	host, err := sock.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := io.ReadFull(host, make([]byte, helloSize)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := wait(t, "Dial", dialled); !errors.Is(err, context.Canceled) {
		t.Fatalf("Dial: %v, want %v", err, context.Canceled)
	}
	const at = 64 << 10
	body := answer{version: Version, window: MinWindow, caps: CapRegions}.append(nil)
	if body, err = (Record{Kind: KindRegion, Offset: at, Size: 32 << 10}).Append(body); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write(body); err != nil {
		t.Fatal(err)
	}
	within(t, "the region comes back", func() { <-loans.Ready() })
	if got := loans.Take(nil); !slices.Equal(got, []uint64{at}) {
		t.Errorf("given back: %v, want %v", got, []uint64{at})
	}
	host.Close()
}
