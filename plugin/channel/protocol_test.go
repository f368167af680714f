package channel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A socket that ends before close-write is a reset and never io.EOF, wherever
// it ends.
func TestAbruptEnd(t *testing.T) {
	data := wire(t, Record{Kind: KindData, Data: random(50_000)})
	for _, tc := range []struct {
		name string
		sent []byte
	}{
		{"at once", nil},
		{"inside a header", data[:3]},
		{"after a header", data[:headerSize]},
		{"inside a small piece", data[:100]},
		{"inside a large piece", data[:40_000]},
		{"between records", data},
		{"inside a reference", wire(t, Record{Kind: KindBlock, Cid: cidOf(nil)})[:20]},
		{"inside a close-write", wire(t, Record{Kind: KindCloseWrite})[:4]},
	} {
		for _, room := range []int{1, 1000, 64 << 10} {
			c, raw := against(t, settings{host: true})
			raw.Write(tc.sent)
			raw.Close()
			var err error
			within(t, tc.name, func() {
				for err == nil {
					_, err = c.Read(make([]byte, room))
				}
			})
			isReset(t, err, 0, true)
			if !errors.Is(err, errs.Crashed) {
				t.Errorf("%s: %v, want one of kind %v", tc.name, err, errs.Crashed)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("%s: %v is io.EOF for errors.Is, want that it never passes for a close", tc.name, err)
			}
			_, err = c.Write([]byte("x"))
			isReset(t, err, 0, true)
		}
	}
}

// A socket that ends after close-write has been closed in good order, unless
// it ends inside a record.
func TestEndAfterCloseWrite(t *testing.T) {
	c, raw := against(t, settings{})
	raw.Write(wire(t, Record{Kind: KindData, Data: []byte("all")}, Record{Kind: KindCloseWrite}))
	raw.Close()
	if got, err := io.ReadAll(c); string(got) != "all" || err != nil {
		t.Fatalf("read %q, %v, want %q", got, err, "all")
	}
	within(t, "the Conn sees the end", func() { <-c.Done() })
	if _, err := c.Write([]byte("x")); !errors.Is(err, errs.Closed) {
		t.Fatalf("write: %v, want %v", err, errs.Closed)
	}

	c, raw = against(t, settings{})
	raw.Write(wire(t, Record{Kind: KindCloseWrite}, Record{Kind: KindCredit, Size: 1})[:8])
	raw.Close()
	_, err := c.Write(random(2 * DefaultWindow))
	isReset(t, err, 0, true)
}

// Records that break the protocol end the stream with CodeProtocol on both
// sides.
func TestProtocolErrors(t *testing.T) {
	full := Record{Kind: KindData, Data: make([]byte, MaxData)}
	ref := Record{Kind: KindBlock, Cid: cidOf(nil)}
	many := make([]Record, DefaultWindow/RefCost+1)
	for i := range many {
		many[i] = ref
	}
	for _, tc := range []struct {
		name string
		host bool
		sent []byte
	}{
		{"unknown kind", true, []byte{9, 0, 0, 0, 0}},
		{"announced 4 GiB", true, []byte{1, 255, 255, 255, 255}},
		{"data beyond the window", true, append(bytes.Repeat(wire(t, full), DefaultWindow/MaxData), wire(t, Record{Kind: KindData, Data: []byte("x")})...)},
		{"references beyond the window", true, wire(t, many...)},
		{"block to a plugin", false, wire(t, ref)},
		{"region to a host", true, wire(t, Record{Kind: KindRegion, Size: 1})},
		{"region that was not agreed on", false, wire(t, Record{Kind: KindRegion, Size: 1})},
		{"data after close-write", true, wire(t, Record{Kind: KindCloseWrite}, full)},
		{"reference after close-write", true, wire(t, Record{Kind: KindCloseWrite}, ref)},
		{"two close-writes", true, wire(t, Record{Kind: KindCloseWrite}, Record{Kind: KindCloseWrite})},
		{"credit for nothing", true, wire(t, Record{Kind: KindCredit, Size: 1})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, raw := against(t, settings{host: tc.host})
			raw.Write(tc.sent) // fails if the stream ends before all is taken
			within(t, "the stream ends", func() { <-c.Done() })
			_, err := c.Read(make([]byte, 1))
			isReset(t, err, CodeProtocol, false)
			if !errors.Is(err, errs.Malformed) {
				t.Errorf("error is %v, want one of kind %v", err, errs.Malformed)
			}
			if r := readRecord(t, raw); r.Kind != KindReset || r.Code != CodeProtocol {
				t.Errorf("the other side hears %+v, want a reset with code %#x", r, CodeProtocol)
			}
		})
	}
}

// Kinds from 0x80 on are skipped, wherever they stand, and are no part of the
// stream; they need no credit.
func TestUnknownKindsSkipped(t *testing.T) {
	c, raw := against(t, settings{})
	go func() {
		for kind := 0x80; kind <= 0xFF; kind++ {
			n := []int{0, 1, 5000, MaxData}[kind%4]
			raw.Write(append(appendHeader(nil, Kind(kind), n), make([]byte, n)...))
			raw.Write(wire(t, Record{Kind: KindData, Data: []byte{byte(kind)}}))
		}
		raw.Write(wire(t, Record{Kind: KindCloseWrite}))
		raw.Write(append(appendHeader(nil, 0x80, 3), "end"...))
	}()
	var got []byte
	var err error
	within(t, "the stream ends", func() { got, err = io.ReadAll(c) })
	if err != nil || len(got) != 128 || got[0] != 0x80 || got[127] != 0xFF {
		t.Fatalf("read %x, %v, want 80 to ff", got, err)
	}
}

// References come in their place among the bytes. How many wait is bounded, and
// one is paid for when the next is asked for.
func TestBlockReferences(t *testing.T) {
	host, plugin := pair(t)
	const n = 1000
	written := async(func() error {
		for i := range n {
			if _, err := plugin.Write([]byte{byte(i)}); err != nil {
				return err
			}
			if err := plugin.WriteBlock(cidOf([]byte{byte(i), byte(i >> 8)}), i); err != nil {
				return err
			}
		}
		return plugin.CloseWrite()
	})
	most := uint64(DefaultWindow / (RefCost + 1))
	eventually(t, "credit is used", func() bool { return plugin.Counters().BlocksOut.Load() == most })
	buf := make([]byte, 10)
	for i := range n {
		rec, err := host.Next(buf)
		if err != nil || rec.Kind != KindData || len(rec.Data) != 1 || rec.Data[0] != byte(i) {
			t.Fatalf("%d: %+v, %v, want one byte", i, rec, err)
		}
		if i == 0 {
			if _, err := host.Read(buf); !errors.Is(err, errs.Invalid) {
				t.Fatalf("Read before a reference: %v, want %v", err, errs.Invalid)
			}
		}
		rec, err = host.Next(buf)
		if want := cidOf([]byte{byte(i), byte(i >> 8)}); err != nil || rec.Kind != KindBlock || !rec.Cid.Equals(want) || rec.Size != i {
			t.Fatalf("%d: %+v, %v, want block %v of %d bytes", i, rec, err, want, i)
		}
	}
	if _, err := host.Next(buf); err != io.EOF {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
	if err := wait(t, "the writer", written); err != nil {
		t.Fatal(err)
	}
	if in, out := host.Counters().BlocksIn.Load(), plugin.Counters().BlocksOut.Load(); in != n || out != n {
		t.Errorf("counted %d references in and %d out, want %d", in, out, n)
	}
}

// References go one way each, and a wrong one is not sent.
func TestReferencesRefused(t *testing.T) {
	host, plugin := pair(t)
	for _, tc := range []struct {
		name string
		err  error
	}{
		{"block from the host", host.WriteBlock(cidOf(nil), 1)},
		{"large block", plugin.WriteBlock(cidOf(nil), MaxBlock+1)},
	} {
		if !errors.Is(tc.err, errs.Invalid) {
			t.Errorf("%s: %v, want %v", tc.name, tc.err, errs.Invalid)
		}
	}
	mustWrite(t, plugin, "nothing was sent before this")
	mustRead(t, host, "nothing was sent before this")
	if _, err := host.Next(nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("Next without room: %v, want %v", err, errs.Invalid)
	}
	if n, err := host.Read(nil); n != 0 || err != nil {
		t.Errorf("Read without room: %d, %v, want 0 and no error", n, err)
	}
}

// Regions cross if both sides have memory, and only then, whatever they say.
func TestRegionsNeedBoth(t *testing.T) {
	m := inboundMemory(t, 16*slotSize)
	for _, tc := range []struct {
		name         string
		host, plugin bool
	}{{"both", true, true}, {"host only", true, false}, {"plugin only", false, true}} {
		h, p := Options{Caps: CapRegions | 1<<31}, Options{Caps: CapRegions | 1<<30}
		if tc.host {
			h.Inbound = m
		}
		if tc.plugin {
			p.Loans = borrowed(t, m)
		}
		host, plugin := join(t, listen(t, h), 1, p)
		if s := host.slot(false); (s != nil) != (tc.host && tc.plugin) {
			t.Errorf("%s: there is a slot: %v", tc.name, s != nil)
		} else if s != nil {
			s.give()
		}
		mustWrite(t, host, "inline")
		mustRead(t, plugin, "inline")
	}
}

// FuzzConn gives a Conn whatever bytes: it ends, in good order only if they did,
// and holds no more than its window.
func FuzzConn(f *testing.F) {
	block := cidOf([]byte("x"))
	f.Add(wire(f, Record{Kind: KindData, Data: []byte("hello")}, Record{Kind: KindBlock, Cid: block, Size: 9}, Record{Kind: KindCloseWrite}), true)
	f.Add(wire(f, Record{Kind: KindRegion, Size: 9}, Record{Kind: KindData, Data: random(5000)}, Record{Kind: KindCloseRead}), false)
	f.Add(append(wire(f, Record{Kind: KindCloseWrite}), "\x80\x01\x00\x00\x00x"...), false)
	f.Add(wire(f, Record{Kind: KindReset, Code: 7}), true)
	f.Add(wire(f, Record{Kind: KindRegion, Offset: 4 * slotSize, Size: 1}), false)
	loans := borrowed(f, inboundMemory(f, 4*slotSize))
	f.Fuzz(func(t *testing.T, b []byte, host bool) {
		sock, raw := net.Pipe()
		s := settings{host: host, window: MinWindow}
		if !host {
			s.loans = loans
		}
		c := start(sock, s)
		go io.Copy(io.Discard, raw)
		go func() { raw.Write(b); raw.Close() }()
		var buf [100]byte
		var err error
		for err == nil {
			if n := queued(c); n > MinWindow {
				t.Fatalf("%d bytes are held, want at most %d", n, MinWindow)
			}
			_, err = c.Next(buf[:])
		}
		var reset *ResetError
		if !errors.As(err, &reset) && !(err == io.EOF && bytes.Contains(b, []byte("\x04\x00\x00\x00\x00"))) {
			t.Fatalf("it ends with %v", err)
		}
		c.Close()
		<-c.Done()
		if n := loans.out.Load(); n != 0 {
			t.Fatalf("%d regions are still lent, want none", n)
		}
		loans.Take(nil)
	})
}
