package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A stage is a network in memory, in virtual time, with nodes under test and
// peers that the test plays.
type stage struct {
	*testing.T
	net *memnet.Net
}

// play runs a scene in a bubble. Whoever waits there for an hour waits for ever.
func play(t *testing.T, scene func(s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { scene(&stage{T: t, net: memnet.New()}) })
}

// A node is an exchange under test, with the stores it serves from.
type node struct {
	*exchange.Exchange
	s      *stage
	id     peer.ID
	net    *memnet.Node
	store  *exchangetest.Blocks
	leaves *exchangetest.Leaves
}

func (s *stage) node(name string, change ...func(*exchange.Config)) *node {
	s.Helper()
	n := &node{
		s: s, id: memnet.ID(name), net: s.net.Node(memnet.ID(name)),
		store: exchangetest.NewBlocks(), leaves: exchangetest.NewLeaves(),
	}
	cfg := exchange.Config{Network: n.net, Blocks: n.store, Leaves: n.leaves, Seed: 1}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if n.Exchange, err = exchange.New(cfg); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { n.Close() })
	return n
}

// has puts blocks into the node's store and tells its exchange.
func (n *node) has(list ...blocks.Block) {
	n.s.Helper()
	n.store.PutMany(n.s.Context(), list)
	if err := n.NotifyNewBlocks(n.s.Context(), list...); err != nil {
		n.s.Fatal(err)
	}
}

// meet connects two of the stage, who hear of each other.
func (s *stage) meet(a, b interface{ ID() peer.ID }) {
	s.net.Connect(a.ID(), b.ID())
	synctest.Wait()
}

func (n *node) ID() peer.ID   { return n.id }
func (p *player) ID() peer.ID { return p.id }

// A result is what a getter under way comes to.
type result struct {
	s    *stage
	done chan struct{}
	b    blocks.Block
	err  error
}

// getting starts a GetBlock on its own goroutine.
func (s *stage) getting(ctx context.Context, f interface {
	GetBlock(context.Context, cid.Cid) (blocks.Block, error)
}, c cid.Cid) *result {
	r := &result{s: s, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.b, r.err = f.GetBlock(ctx, c)
	}()
	synctest.Wait()
	return r
}

func (r *result) wait(why string) {
	r.s.Helper()
	select {
	case <-r.done:
	case <-time.After(time.Hour):
		r.s.Fatalf("%s: nothing after an hour", why)
	}
}

func (r *result) gets(why string, want blocks.Block) {
	r.s.Helper()
	r.wait(why)
	if r.err != nil || !bytes.Equal(r.b.RawData(), want.RawData()) || !r.b.Cid().Equals(want.Cid()) {
		r.s.Fatalf("%s: got %v, %v, want %v", why, r.b, r.err, want.Cid())
	}
}

func (r *result) fails(why string, kinds ...error) {
	r.s.Helper()
	r.wait(why)
	for _, k := range kinds {
		if !errors.Is(r.err, k) {
			r.s.Fatalf("%s: got %v, %v, want the error %q", why, r.b, r.err, k)
		}
	}
}

func (r *result) waits(why string) {
	r.s.Helper()
	synctest.Wait()
	select {
	case <-r.done:
		r.s.Fatalf("%s: ended with %v, %v, want it to wait", why, r.b, r.err)
	default:
	}
}

// collect reads a channel to its end and returns what came, by CID.
func collect[B blocks.Block](s *stage, why string, ch <-chan B) map[cid.Cid]B {
	s.Helper()
	got := make(map[cid.Cid]B)
	late := time.After(time.Hour)
	for {
		select {
		case b, ok := <-ch:
			if !ok {
				return got
			}
			if _, again := got[b.Cid()]; again {
				s.Fatalf("%s: %s came twice", why, b.Cid())
			}
			got[b.Cid()] = b
		case <-late:
			s.Fatalf("%s: the channel is open after an hour, %d blocks have come", why, len(got))
		}
	}
}

func (n *node) gets(why string, list ...blocks.Block) {
	n.s.Helper()
	ch, err := n.GetBlocks(n.s.Context(), cids(list))
	if err != nil {
		n.s.Fatalf("%s: %v", why, err)
	}
	if got := collect(n.s, why, ch); len(got) != len(list) {
		n.s.Fatalf("%s: got %d blocks, want %d\n%+v", why, len(got), len(list), n.Stat())
	}
}

// idle checks that nothing is left of any request.
func (n *node) idle(why string) {
	n.s.Helper()
	synctest.Wait()
	if s := n.Stat(); s.Getters != 0 || s.Wants != 0 || len(n.Wantlist()) != 0 {
		n.s.Fatalf("%s: %d getters, %d wants are left, want none", why, s.Getters, s.Wants)
	}
}

// A player is a peer played by the test. It hears everything, answers nothing by
// itself, and says what the test lets it say.
type player struct {
	s       *stage
	id      peer.ID
	net     *memnet.Node
	heard   chan heard           // messages, and ends of streams
	streams chan exchange.Stream // those that others opened
	out     exchange.Stream      // the one it opened, nil if none
	writer  *blockexc.Writer
}

// heard is one message, or the end of a stream if m is nil.
type heard struct {
	stream exchange.Stream
	m      *wire.Message
	err    error
}

func (s *stage) player(name string) *player {
	s.Helper()
	p := &player{
		s: s, id: memnet.ID(name), net: s.net.Node(memnet.ID(name)),
		heard: make(chan heard, 4096), streams: make(chan exchange.Stream, 64),
	}
	detach, err := p.net.Attach(p)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(detach)
	return p
}

func (p *player) PeerUp(peer.ID, uint64)   {}
func (p *player) PeerDown(peer.ID, uint64) {}

func (p *player) HandleStream(s exchange.Stream) {
	p.streams <- s
	p.listen(s)
}

// listen reads a stream to its end.
func (p *player) listen(s exchange.Stream) {
	r := blockexc.NewReader(s, blockexc.Limits{MaxFrame: 100 << 20})
	for {
		var m wire.Message
		if err := r.Next(&m); err != nil {
			p.heard <- heard{stream: s, err: err}
			return
		}
		p.heard <- heard{stream: s, m: &m}
	}
}

// open opens a stream to a node and listens on it.
func (p *player) open(to *node) exchange.Stream {
	p.s.Helper()
	s, err := p.net.NewStream(p.s.Context(), to.id)
	if err != nil {
		p.s.Fatal(err)
	}
	go p.listen(s)
	p.s.Cleanup(func() { s.Reset() })
	return s
}

// send writes a message on the player's own stream.
func (p *player) send(to *node, m *wire.Message) {
	p.s.Helper()
	if p.out == nil {
		p.out = p.open(to)
		p.writer = blockexc.NewWriter(p.out, blockexc.Limits{MaxFrame: 100 << 20})
	}
	if err := p.writer.Write(m); err != nil {
		p.s.Fatalf("send %v: %v", m, err)
	}
	synctest.Wait()
}

func (p *player) delivers(to *node, list ...blocks.Block) {
	p.s.Helper()
	p.send(to, &wire.Message{Deliveries: deliveries(list...)})
}

func (p *player) announces(to *node, list ...blocks.Block) {
	p.s.Helper()
	var m wire.Message
	for _, b := range list {
		m.Presences = append(m.Presences, wire.Presence{Address: wire.Block(b.Cid())})
	}
	p.send(to, &m)
}

func (p *player) asks(to *node, t wire.WantType, list ...wire.Address) {
	p.s.Helper()
	var m wire.Message
	for _, a := range list {
		m.WantList.Entries = append(m.WantList.Entries, wire.Entry{Address: a, Type: t, SendDontHave: true})
	}
	p.send(to, &m)
}

// hears waits for a message that fits, and forgets those before it.
func (p *player) hears(why string, fits func(*wire.Message) bool) *wire.Message {
	p.s.Helper()
	var before []string
	late := time.After(time.Hour)
	for {
		select {
		case h := <-p.heard:
			if h.m != nil && fits(h.m) {
				return h.m
			}
			before = append(before, fmt.Sprint(h.m, " ", h.err))
		case <-late:
			p.s.Fatalf("%s: nothing like it in an hour; heard\n%s", why, strings.Join(before, "\n"))
		}
	}
}

// isAsked waits until the player is sent want-block.
func (p *player) isAsked(why string, a wire.Address) {
	p.s.Helper()
	p.hears(why, func(m *wire.Message) bool { return asksFor(m, a) })
}

func asksFor(m *wire.Message, a wire.Address) bool {
	for _, e := range m.WantList.Entries {
		if e.Address == a && e.Type == wire.WantBlock && !e.Cancel {
			return true
		}
	}
	return false
}

// gets waits until the player is sent a block.
func (p *player) gets(why string, a wire.Address) wire.Delivery {
	p.s.Helper()
	m := p.hears(why, func(m *wire.Message) bool {
		for _, d := range m.Deliveries {
			if d.Address == a {
				return true
			}
		}
		return false
	})
	for _, d := range m.Deliveries {
		if d.Address == a {
			return d
		}
	}
	panic("unreachable")
}

// ends waits until a stream of the player ends.
func (p *player) ends(why string, s exchange.Stream) {
	p.s.Helper()
	late := time.After(time.Hour)
	for {
		select {
		case h := <-p.heard:
			if h.stream == s && h.err != nil {
				return
			}
		case <-late:
			p.s.Fatalf("%s: the stream is open after an hour", why)
		}
	}
}

// silent checks that nothing more has come, apart from ends of streams, and
// nothing comes for a time.
func (p *player) silent(why string, d time.Duration) {
	p.s.Helper()
	over := time.After(d)
	for {
		select {
		case h := <-p.heard:
			if h.m != nil {
				p.s.Fatalf("%s: heard %v", why, h.m)
			}
		case <-over:
			return
		}
	}
}

// forget throws away what the player has heard so far.
func (p *player) forget() {
	synctest.Wait()
	for len(p.heard) > 0 {
		<-p.heard
	}
}

func deliveries(list ...blocks.Block) []wire.Delivery {
	var ds []wire.Delivery
	for _, b := range list {
		ds = append(ds, wire.Delivery{Address: wire.Block(b.Cid()), Cid: b.Cid(), Data: b.RawData()})
	}
	return ds
}

// makeBlocks makes n blocks of random bytes, the same for the same seed.
func makeBlocks(seed uint64, n, size int) []blocks.Block {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	list := make([]blocks.Block, n)
	for i := range list {
		data := make([]byte, size)
		r.Read(data)
		list[i] = blocks.NewBlock(data)
	}
	return list
}

func cids(list []blocks.Block) []cid.Cid {
	keys := make([]cid.Cid, len(list))
	for i, b := range list {
		keys[i] = b.Cid()
	}
	return keys
}
