package exchange_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/wire"
)

// A registry reads the metrics of one exchange by name.
type registry struct{ *prometheus.Registry }

func newRegistry() registry { return registry{prometheus.NewRegistry()} }

func (r registry) value(t *stage, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "codex_block_exchange_"+name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestCountsOfATransfer(t *testing.T) {
	const blocks, size = 100, 1000
	list := makeBlocks(1, blocks, size)
	missing := makeBlocks(2, 3, size)
	registries := []registry{newRegistry(), newRegistry()}
	play(t, func(s *stage) {
		seeder := s.node("seeder", func(c *exchange.Config) { c.Metrics = registries[0] })
		n := s.node("node", func(c *exchange.Config) { c.Metrics = registries[1] })
		s.net.SetLatency(seeder.id, n.id, time.Millisecond)
		s.meet(seeder, n)
		seeder.has(list...)
		n.gets("the seeder has them", list...)
		ch, err := n.GetBlocks(s.Context(), cids(missing))
		if err != nil {
			s.Fatal(err)
		}
		leaf := wire.Leaf(makeDataset(t, 1).root, 5)
		leaves, err := n.GetLeaves(s.Context(), exchange.Tree{Root: leaf.Root}, wire.Range{First: 5, Count: 1})
		if err != nil {
			s.Fatal(err)
		}
		time.Sleep(time.Second)

		if got := n.Peers(); !slices.Equal(got, []peer.ID{seeder.id}) {
			s.Errorf("Peers: %v, want the seeder", got)
		}
		if got := n.GetWantlist(); len(got) != 3 || slices.Contains(got, leaf.Root) {
			s.Errorf("GetWantlist: %v, want the three missing blocks, no leaf", got)
		}
		if got := n.Wantlist(); len(got) != 4 || !slices.Contains(got, leaf) {
			s.Errorf("Wantlist: %v, want the three missing blocks and the leaf", got)
		}

		in, out := n.Stat(), seeder.Stat()
		for _, c := range []struct {
			name      string
			got, want uint64
		}{
			{"BlocksReceived", in.BlocksReceived, blocks}, {"BytesReceived", in.BytesReceived, blocks * size},
			{"Delivered", in.Delivered, blocks}, {"DuplicateBlocks", in.DuplicateBlocks, 0}, {"BadBlocks", in.BadBlocks, 0},
			{"UnrequestedBlocks", in.UnrequestedBlocks, 0}, {"SendsFailed", in.SendsFailed, 0},
			{"Peers", uint64(in.Peers), 1}, {"Wants", uint64(in.Wants), 4}, {"Getters", uint64(in.Getters), 2},
			{"BlocksSent", out.BlocksSent, blocks}, {"BytesSent", out.BytesSent, blocks * size},
			{"BlocksSent of the getter", in.BlocksSent, 0}, {"BlocksReceived of the seeder", out.BlocksReceived, 0},
			{"Flying", uint64(out.Flying), 0}, {"Asks", uint64(out.Asks), 4},
		} {
			if c.got != c.want {
				s.Errorf("Stat: %s is %d, want %d", c.name, c.got, c.want)
			}
		}
		if in.Asked < blocks || in.HavesReceived+in.DontHavesReceived == 0 {
			s.Errorf("Stat: %d want-blocks, %d haves, %d don't-haves, want more", in.Asked, in.HavesReceived, in.DontHavesReceived)
		}

		l, ok := n.Ledger(seeder.id)
		if !ok || l.Peer != seeder.id || l.BlocksReceived != blocks || l.BytesReceived != blocks*size || l.Asked < blocks || l.MessagesSent == 0 ||
			l.Latency < 2*time.Millisecond || l.Window < 32 || l.Bad+l.Unrequested+l.Duplicates != 0 {
			s.Errorf("Ledger of the seeder: %+v", l)
		}
		l, ok = seeder.Ledger(n.id)
		if !ok || l.BlocksSent != blocks || l.BytesSent != blocks*size || l.WantsReceived < blocks {
			s.Errorf("Ledger of the getter: %+v", l)
		}
		if _, ok := n.Ledger("nobody"); ok {
			s.Error("there is a Ledger of a peer that is not connected")
		}
		if _, asks := seeder.Records(n.id); len(asks) != 4 {
			s.Errorf("the seeder has %d asks on record, want 4: %v", len(asks), asks)
		}

		for _, c := range []struct {
			r    registry
			name string
			low  float64
			high float64
		}{
			{registries[1], "blocks_received_total", blocks, blocks},
			{registries[1], "bytes_received_total", blocks * size, blocks * size},
			{registries[1], "blocks_delivered_total", blocks, blocks},
			{registries[1], "pending_block_requests", 4, 4},
			{registries[1], "peers", 1, 1},
			{registries[0], "blocks_sent_total", blocks, blocks},
			{registries[0], "peer_wants", 4, 4},
			{registries[1], "loop_inputs_total", 10, 10_000},
			{registries[1], "loop_inbox_length", 0, 1},
			{registries[1], "loop_busy_seconds_total", 0, 0}, // no time passes in a bubble while somebody works
		} {
			if got := c.r.value(s, c.name); got < c.low || got > c.high {
				s.Errorf("metric %s is %v, want %v to %v", c.name, got, c.low, c.high)
			}
		}

		n.Close()
		for range ch {
		}
		for range leaves {
		}
		if families, err := registries[1].Gather(); err != nil || len(families) != 0 {
			s.Errorf("after Close %d metrics are left, %v, want none", len(families), err)
		}
		again := s.node("again", func(c *exchange.Config) { c.Metrics = registries[1] })
		if got := registries[1].value(s, "blocks_received_total"); got != 0 {
			s.Errorf("a second exchange in the same registry has received %v blocks, want 0", got)
		}
		again.Close()
	})
}

// The loop's working time is measured by the clock, so outside of a bubble.
func TestTheLoopsWorkIsMeasured(t *testing.T) {
	registry := newRegistry()
	s := &stage{T: t, net: memnet.New()}
	n := s.node("node", func(c *exchange.Config) { c.Metrics = registry })
	for range 100 {
		n.Stat()
	}
	if got := registry.value(s, "loop_busy_seconds_total"); got <= 0 || got > 60 {
		t.Errorf("the loop has worked %v seconds, want more than none", got)
	}
	if got := registry.value(s, "loop_inputs_total"); got < 100 {
		t.Errorf("the loop has taken %v inputs, want 100 or more", got)
	}
}

// The peer context record: what a peer has of what we want, and what it has
// explicitly asked of us.
func TestRecords(t *testing.T) {
	list := makeBlocks(1, 4, 1000)
	price, _ := wire.PriceFrom([]byte{7})
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		r := s.getting(s.Context(), n, list[0].Cid())
		peer.send(n, &wire.Message{Presences: []wire.Presence{
			{Address: wire.Block(list[0].Cid()), Price: price},
			{Address: wire.Block(list[1].Cid())}, // which nobody wants
		}})
		peer.asks(n, wire.WantBlock, wire.Block(list[2].Cid()))
		peer.asks(n, wire.WantHave, wire.Block(list[3].Cid()))
		peer.send(n, &wire.Message{Account: []byte("12345678901234567890")})
		has, asks := n.Records(peer.id)
		if want := []exchange.Record{{Address: wire.Block(list[0].Cid()), Price: price}}; !slices.Equal(has, want) {
			s.Errorf("the peer has %v, want %v: what it announced and we want", has, want)
		}
		want := []exchange.Record{{Address: wire.Block(list[2].Cid()), Block: true}, {Address: wire.Block(list[3].Cid())}}
		if !slices.Equal(asks, want) {
			s.Errorf("the peer asks %v, want %v", asks, want)
		}
		if l, _ := n.Ledger(peer.id); string(l.Account) != "12345678901234567890" {
			s.Errorf("the account of the peer is %q", l.Account)
		}
		if has, asks := n.Records("nobody"); has != nil || asks != nil {
			s.Errorf("there are records of a peer that is not connected: %v, %v", has, asks)
		}
		peer.delivers(n, list[0])
		r.gets("it came", list[0])
		n.has(list[2:]...)
		synctest.Wait()
		if has, asks := n.Records(peer.id); len(has)+len(asks) != 0 {
			s.Errorf("when all is delivered %v and %v are left, want nothing", has, asks)
		}
	})
}

// CODEXDEBUG=wire prints messages as the tests print them.
func TestDebugPrintsMessages(t *testing.T) {
	t.Setenv("CODEXDEBUG", "engine,wire")
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stderr := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = stderr }()
	b := makeBlocks(1, 1, 1000)[0]
	var from, to string
	var sent, received []string
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		from, to = n.id.ShortString(), peer.id.ShortString()
		s.meet(n, peer)
		r := s.getting(s.Context(), n, b.Cid())
		m := <-peer.heard
		sent = append(sent, m.m.String())
		answer := &wire.Message{Deliveries: deliveries(b)}
		peer.send(n, answer)
		received = append(received, answer.String())
		r.gets("it was asked for", b)
	})
	got, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := from + " -> " + to + " " + sent[0] + "\n" + from + " <- " + to + " " + received[0] + "\n"
	if string(got) != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	if !regexp.MustCompile(`\{want list full: want-have\+dh Qm\w+, want-block\+dh Qm\w+\}`).MatchString(sent[0]) || !strings.HasPrefix(received[0], "{blocks: Qm") {
		t.Errorf("messages read %s and %s", sent[0], received[0])
	}
}

func TestNoDebugPrintsNothing(t *testing.T) {
	t.Setenv("CODEXDEBUG", "engine,wired")
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stderr := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = stderr }()
	play(t, func(s *stage) {
		n, peer := s.node("node"), s.player("peer")
		s.meet(n, peer)
		s.getting(s.Context(), n, makeBlocks(1, 1, 10)[0].Cid())
		n.Close()
	})
	if info, err := file.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("printed %d bytes, %v, want none", info.Size(), err)
	}
}
