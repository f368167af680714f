package remote

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

const testRing = 256 << 10 // so that payload of 64 KiB goes into it

// TestPlace shows where payload goes: behind the last one, or to the beginning if
// it would run past the end.
func TestPlace(t *testing.T) {
	for _, c := range []struct {
		at   uint64
		n    int
		want uint64
	}{
		{0, 25, 0}, {25, 25, 25}, {75, 25, 75}, {76, 25, 100}, {99, 1, 99}, {99, 2, 100},
		{100, 25, 100}, {180, 25, 200}, {1<<40*100 + 90, 20, 1<<40*100 + 100},
	} {
		if got := place(c.at, c.n, 100); got != c.want {
			t.Errorf("%d bytes after %d: got %d, want %d", c.n, c.at, got, c.want)
		}
	}
}

// TestResultsInMemory shows that blocks of all sizes come whole and in order, the
// ring going round many times, whether they go through it or not; and that the
// plugin says what it can.
func TestResultsInMemory(t *testing.T) {
	var list []blocks.Block
	for i, size := range []int{0, 1, smallPayload, smallPayload + 1, 40_000, testRing / ringParts, testRing/ringParts + 1, 100_000, 2 * testRing} {
		for seed := range 9 {
			if size > 0 || seed == 0 {
				list = append(list, makeBlocks(byte(40+9*i+seed), 1, size)...)
			}
		}
	}
	for _, verify := range []bool{false, true} {
		ours, its := shared(t, testRing)
		c := newClient(t, ClientOptions{Verify: verify})
		p := serveShared(t, c, seeded(t, list), nil, Shared{Outbound: ours}, Instance{Outbound: its})
		if !p.caps.Outbound {
			t.Error("the plugin does not say that it has mapped the memory")
		}
		for round := range 3 {
			ch, err := c.GetBlocks(t.Context(), keysOf(list))
			if err != nil {
				t.Fatal(err)
			}
			left := make(map[string][]byte)
			for _, b := range list {
				left[b.Cid().KeyString()] = b.RawData()
			}
			for b := range ch {
				if want, ok := left[b.Cid().KeyString()]; !ok || string(want) != string(b.RawData()) {
					t.Fatalf("round %d: %v has %d other bytes, or came twice", round, b.Cid(), len(b.RawData()))
				}
				delete(left, b.Cid().KeyString())
			}
			if len(left) != 0 {
				t.Fatalf("round %d: %d blocks are missing", round, len(left))
			}
		}
	}
}

// inRing writes the head of a block that is in the ring, where the test says.
func (s *scripted) inRing(request uint64, b blocks.Block, offset, size uint64) {
	s.Helper()
	s.write(&pb.Result{Request: request, What: &pb.Result_Block{Block: &pb.BlockResult{Cid: b.Cid().Bytes(), Size: size, InMemory: true, Offset: offset}}})
}

// TestHostSaysHowFar shows what the host says of the ring: each quarter that it
// has read, the rest that is passed over included, and also of what nobody wants.
func TestHostSaysHowFar(t *testing.T) {
	list := makeBlocks(41, 5, 60_000)
	ours, its := shared(t, testRing)
	c := newClient(t, ClientOptions{})
	s := scriptShared(t, c, Shared{Outbound: ours})
	said := func(why string, want uint64) {
		t.Helper()
		for {
			m := s.next(why)
			if _, ok := m.Do.(*pb.Command_Credit); ok {
				continue // the caller has taken blocks
			}
			if got := m.GetPassed(); got != want {
				t.Errorf("%s: got %v, want %d passed", why, m, want)
			}
			return
		}
	}
	ch, err := c.GetBlocks(t.Context(), keysOf(list[:4]))
	if err != nil {
		t.Fatal(err)
	}
	n := s.next("the request").GetWant().GetRequest()
	put := func(i int) {
		its.CopyIn(60_000*i, list[i].RawData())
		s.inRing(n, list[i], uint64(60_000*i), 60_000)
	}
	put(0)
	put(1)
	said("two blocks", 120_000)
	put(2)
	put(3)
	said("four blocks", 240_000)
	left := missing(list[:4])
	collect(t, "the blocks", ch, left)
	if len(left) != 0 {
		t.Errorf("%d blocks are missing", len(left))
	}
	s.inRing(n, list[4], 0, 60_000) // 22,144 bytes are left before the end
	said("a block at the beginning that nobody wants", testRing+60_000)
}

// TestHostileRing shows that a plugin is believed nothing of the ring that does
// not follow from what it said before, nor that there is one if it has none.
func TestHostileRing(t *testing.T) {
	list := makeBlocks(42, 2, 60_000)
	for name, tc := range map[string]struct {
		none         bool
		offset, size uint64
		text         string
	}{
		"no ring":        {true, 0, 60_000, "read results frame 1: payload is in memory, and none is shared"},
		"elsewhere":      {false, 64, 60_000, "read results frame 1: payload of 60000 bytes is at 64 of the memory, want 0"},
		"past the end":   {false, testRing, 60_000, "read results frame 1: payload of 60000 bytes is at 262144 of the memory, want 0"},
		"far away":       {false, 1<<64 - 1, 60_000, "read results frame 1: payload of 60000 bytes is at 18446744073709551615 of the memory, want 0"},
		"too much":       {false, 0, testRing/4 + 1, "read results frame 1: payload in memory is 65537 bytes, want at most 65536"},
		"more than all":  {false, 0, MaxBlock, "read results frame 1: payload in memory is 104857600 bytes, want at most 65536"},
		"other contents": {false, 0, 60_000, ""},
	} {
		for _, wanted := range []bool{true, false} {
			if tc.text == "" && !wanted {
				continue // nobody looks
			}
			t.Run(fmt.Sprintf("%s, wanted %v", name, wanted), func(t *testing.T) {
				ours, _ := shared(t, testRing)
				if tc.none {
					ours = nil
				}
				c := newClient(t, ClientOptions{Verify: true})
				s := scriptShared(t, c, Shared{Outbound: ours})
				got := getting(t, c, list[0])
				n := s.next("the request").GetWant().GetRequest()
				b := list[0]
				if !wanted {
					b = list[1]
				}
				s.inRing(n, b, tc.offset, tc.size)
				err := wait(t, "Run ends", s.ended)
				want := errs.Malformed
				if tc.text == "" {
					want = errs.BadBlock
				}
				var e *errs.Error
				if !errors.As(err, &e) || e.Kind != want || e.Fault != errs.Plugin || tc.text != "" && err.Error() != tc.text {
					t.Errorf("got %v, want %v, by the plugin: %s", err, want, tc.text)
				}
				c.Close()
				wait(t, "the request ends", got)
			})
		}
	}
}

// TestFullRing shows that a plugin waits for room, and for nothing when there is
// no ring to wait for: it ends with its channel, or with Run, while it waits, and
// goes on when the host has read.
func TestFullRing(t *testing.T) {
	list := makeBlocks(43, 6, 60_000)
	start := func(t *testing.T) *playedHost {
		ours, its := shared(t, testRing)
		h := newHostShared(t, seeded(t, list), nil, its)
		h.frames.ring = &ringReader{m: ours, tell: func(uint64) {}}
		h.send(wantCommand(1, 1<<20, keysOf(list)...))
		for i := range 4 {
			if res := h.next("four blocks fit"); !res.memory || res.size != 60_000 {
				t.Fatalf("result %d: got %d bytes, in memory %v, want 60000 in memory", i, res.size, res.memory)
			}
		}
		return h
	}
	// A writer that waits has told of what it had, and nothing else is to be seen.
	quietNow := func(h *playedHost) {
		h.Helper()
		h.socket.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := h.frames.next(); err == nil {
			h.Fatal("there is a fifth block in a full ring")
		}
		h.socket.SetReadDeadline(time.Time{})
	}
	say := func(h *playedHost, at uint64) {
		h.Helper()
		h.send(&pb.Command{Do: &pb.Command_Passed{Passed: at}})
	}
	t.Run("goes on", func(t *testing.T) {
		h := start(t)
		quietNow(h)
		say(h, 60_000) // and 22,144 bytes at the end
		res := h.next("the fifth, at the beginning")
		if !res.memory || res.offset != 0 {
			t.Errorf("got it at %d, in memory %v, want it at 0 in memory", res.offset, res.memory)
		}
		say(h, 180_000)
		if res := h.next("the sixth"); !res.memory || res.offset != 60_000 {
			t.Errorf("got it at %d, in memory %v, want it at 60000 in memory", res.offset, res.memory)
		}
		if res := h.next("the end"); res.kind != doneResult || res.err != nil {
			t.Errorf("got %+v, want the end of the request", res)
		}
	})
	for name, end := range map[string]func(*playedHost){
		"the channel ends": func(h *playedHost) { h.socket.Close() },
		"too far":          func(h *playedHost) { say(h, 240_001) },
		"back":             func(h *playedHost) { say(h, 1); say(h, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t)
			end(h)
			err := wait(t, "Run ends", h.run)
			if name == "the channel ends" {
				if err != nil {
					t.Errorf("got %v, want a good end: the host has closed it", err)
				}
			} else if err := pb.FromStatus(context.Background(), err, errs.Plugin, ""); !errors.Is(err, errs.Malformed) {
				t.Errorf("got %v, want kind %v", err, errs.Malformed)
			}
		})
	}
	t.Run("Run ends", func(t *testing.T) {
		h := start(t)
		quietNow(h)
		if err := wait(t, "Close", later(h.server.Close)); err != nil {
			t.Errorf("Close: got %v, want nil", err)
		}
	})
}
