package channel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

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
// them for reading, and none after the end; and that what is given back twice is
// free once.
func TestSlots(t *testing.T) {
	s := newSlots(inboundMemory(t, 100*slotSize))
	var mine []*slot
	for p := s.take(len(mine), false); p != nil; p = s.take(len(mine), false) {
		if p.n != len(mine) {
			t.Errorf("got slot %d, want %d", p.n, len(mine))
		}
		mine = append(mine, p)
	}
	if len(mine) != 12 {
		t.Errorf("one stream got %d slots, want 12: its eighth of the 88 others, and one", len(mine))
	}
	mine[5].give()
	mine[5].give()
	if got := s.take(0, true); got.n != 5 || s.left != 88 {
		t.Errorf("got slot %d, and %d are free, want slot 5 and 88", got.n, s.left)
	}
	reading := 1
	for s.take(0, true) != nil {
		reading++
	}
	if reading != 50 {
		t.Errorf("%d are for reading, want 50", reading)
	}
	if p := s.take(0, false); p == nil {
		t.Error("no slot for who has read already, want one")
	}
	if p := s.take(10, false); p != nil {
		t.Errorf("slot %d for who has ten of 38, want none", p.n)
	}
	s.end()
	if p := s.take(0, false); p != nil {
		t.Errorf("slot %d after the end, want none", p.n)
	}
}

// TestMemoryCarries shows that large reads of a stream cross in memory and small
// ones do not, that every byte comes whole and in order, however the plugin reads,
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
				if large := piece >= minRegion; large != (in > uint64(len(data)/8)) || !large && in > 0 {
					t.Errorf("%d of %d bytes crossed in memory in pieces of %d", in, len(data), piece)
				}
				s := b.host.slots
				eventually(t, "all slots are free, the stream still open", func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.left >= s.count-1 // one may be read into
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
	if err := c.writeSlot(p, slotSize); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSlotsStayLent shows that a slot is not used again while the plugin may read
// it, though the host is done with the stream: after Close until it has been read,
// after a reset until the plugin knows. And that it is free then.
func TestSlotsStayLent(t *testing.T) {
	share(t)
	l := listen(t, Options{})
	all := l.free()
	read := func(c *Conn, with byte) {
		t.Helper()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{with}, slotSize)) {
			t.Errorf("read %d bytes, %v, want %d of %q", len(got), err, slotSize, with)
		}
	}
	first, plugin := join(t, l, 1, Options{})
	lendTo(t, first, 'a')
	plugin.CloseWrite()
	within(t, "the plugin's end", func() { io.ReadAll(first) })
	first.Close()
	second, its := join(t, l, 2, Options{})
	if p := lendTo(t, second, 'b'); p.n != 1 {
		t.Errorf("slot %d was taken, want 1, as the plugin may still read 0", p.n)
	}
	second.Close()
	read(plugin, 'a')
	read(its, 'b')
	within(t, "the Conns end when all is read", func() { <-first.Done(); <-second.Done() })
	if got := l.free(); got != all {
		t.Errorf("%d slots are free, want %d", got, all)
	}
}

func TestSlotsAfterReset(t *testing.T) {
	for name, end := range map[string]func(raw net.Conn){
		"closed":       func(raw net.Conn) { raw.Close() },
		"a half close": func(raw net.Conn) { raw.(*net.UnixConn).CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlots(inboundMemory(t, 16*slotSize))
			c, raw := against(t, settings{host: true, caps: CapRegions, slots: s})
			lendTo(t, c, 'x')
			c.ResetWithCode(9)
			readRecord(t, raw)
			if r := readRecord(t, raw); r.Kind != KindReset || r.Code != 9 {
				t.Errorf("got %+v, want a reset", r)
			}
			raw.Write(wire(t, Record{Kind: KindCredit, Size: 1}, Record{Kind: KindData, Data: []byte("y")}))
			if p := s.take(0, false); p.n != 1 {
				t.Errorf("slot %d was taken, want 1, as the plugin may still read 0", p.n)
			}
			end(raw)
			within(t, "the Conn ends when the plugin has", func() { <-c.Done() })
			if s.left != 15 {
				t.Errorf("%d slots are free, want 15", s.left)
			}
		})
	}
	for name, r := range map[string]Record{"reset": {Kind: KindReset}, "close-read": {Kind: KindCloseRead}} {
		t.Run("the plugin's "+name, func(t *testing.T) {
			s := newSlots(inboundMemory(t, 16*slotSize))
			c, raw := against(t, settings{host: true, caps: CapRegions, slots: s})
			lendTo(t, c, 'x')
			raw.Write(wire(t, r))
			eventually(t, "the slot is free", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.left == 16 })
		})
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
	eventually(t, "they take their share", func() bool { return l.free() < l.slots.count*2/3 })
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
	if err := host.writeSlot(p, slotSize); err == nil {
		t.Error("a slot of a listener that is closed was sent")
	}
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
		c, raw := against(t, settings{caps: CapRegions, inbound: mapped(t, m)})
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
