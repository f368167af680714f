package bitswap_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Bitswap ends these in its own time after Close.
		goleak.IgnoreAnyFunction("github.com/ipfs/boxo/bitswap/network/bsnet.closeStreamAsync.func1"))
}

// newHost makes a host on loopback with the limits given.
func newHost(t testing.TB, limits rcmgr.PartialLimitConfig) host.Host {
	t.Helper()
	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.ResourceManager(manager),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func newStore() blockstore.Blockstore {
	return blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
}

func start(t testing.TB, h host.Host, store blockstore.Blockstore, o bitswap.Options) *bitswap.Exchange {
	t.Helper()
	x, err := bitswap.New(context.Background(), h, store, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func connect(a, b host.Host) error {
	return a.Connect(context.Background(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()})
}

func group(t testing.TB, n int) exchangetest.Group {
	hosts := make([]host.Host, n)
	g := exchangetest.Group{
		Connect:    func(i, j int) error { return connect(hosts[i], hosts[j]) },
		Disconnect: func(i, j int) error { return hosts[i].Network().ClosePeer(hosts[j].ID()) },
	}
	for i := range hosts {
		hosts[i] = newHost(t, bitswap.Limits())
		store := newStore()
		g.Nodes = append(g.Nodes, exchangetest.Node{
			Exchange:   start(t, hosts[i], store, bitswap.Options{}),
			Blockstore: store,
			ID:         hosts[i].ID(),
		})
	}
	return g
}

// What Bitswap does not pass, and why.
var skip = map[string]string{
	"get an empty block":        "boxo v0.42.0 takes a block of size 0 for one that it does not have",
	exchangetest.WantListsEmpty: "some wants stay in the want list of boxo v0.42.0 after their blocks have come",
}

func TestConformance(t *testing.T) {
	exchangetest.Run(t, exchangetest.Suite{
		New: group,
		// Bitswap by itself loses a want in one of 20 to 30 plays of the cases in
		// which blocks or peers come or go meanwhile, and notices after 30 s or
		// more (docs/conformance.md).
		Patience: 15 * time.Second,
		Attempts: 4,
		Skip:     skip,
	})
}

// TestConformanceIsWrittenDown holds a column of the table to what is skipped.
func TestConformanceIsWrittenDown(t *testing.T) {
	table, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	column, rows := -1, 0
	for line := range strings.Lines(string(table)) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if cells[0] == "case" {
			column = slices.Index(cells, "Bitswap in process")
		}
		if !slices.Contains(exchangetest.Cases(), cells[0]) || column < 0 || len(cells) <= column {
			continue
		}
		rows++
		want := "pass"
		if reason := skip[cells[0]]; reason != "" {
			want = "skip: " + reason
		}
		if cells[column] != want {
			t.Errorf("docs/conformance.md: %s: got %q, want %q", cells[0], cells[column], want)
		}
	}
	if want := len(exchangetest.Cases()); rows != want {
		t.Errorf("docs/conformance.md has %d rows with %q, want %d", rows, "Bitswap in process", want)
	}
}

// data makes n blocks.
func data(n int) (list []blocks.Block, keys []cid.Cid) {
	for i := range n {
		b := blocks.NewBlock([]byte(fmt.Sprint("block ", i)))
		list, keys = append(list, b), append(keys, b.Cid())
	}
	return list, keys
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	deadline := time.After(30 * time.Second)
	for !f() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not so after 30s: %s", what)
		}
	}
}

func getAll(t *testing.T, x *bitswap.Exchange, keys []cid.Cid) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ch, err := x.GetBlocks(ctx, keys)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range ch {
		n++
	}
	if n != len(keys) {
		t.Fatalf("got %d of %d blocks", n, len(keys))
	}
}

func TestStartedLateItKnowsWhoIsConnected(t *testing.T) {
	a, b := newHost(t, bitswap.Limits()), newHost(t, bitswap.Limits())
	if err := connect(a, b); err != nil {
		t.Fatal(err)
	}
	list, keys := data(10)
	store := newStore()
	if err := store.PutMany(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	start(t, a, store, bitswap.Options{})
	getAll(t, start(t, b, newStore(), bitswap.Options{}), keys)
}

func TestStat(t *testing.T) {
	g := group(t, 2)
	list, keys := data(100)
	if err := g.Nodes[0].Blockstore.PutMany(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	if err := g.Connect(0, 1); err != nil {
		t.Fatal(err)
	}
	here, there := g.Nodes[1].Exchange.(*bitswap.Exchange), g.Nodes[0].Exchange.(*bitswap.Exchange)
	getAll(t, here, keys)
	bytes := uint64(0)
	for _, b := range list {
		bytes += uint64(len(b.RawData()))
	}
	s, err := here.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if s.Blocks != 100 || s.Bytes != bytes || s.Duplicates != 0 || s.DuplicateBytes != 0 || s.Messages == 0 {
		t.Errorf("the getter's statistics are %+v, want 100 blocks of %d bytes, no duplicates", s, bytes)
	}
	eventually(t, "the seeder has counted what it sent", func() bool {
		s, err = there.Stat()
		return err != nil || s.BlocksSent == 100 && s.BytesSent == bytes
	})
	if err != nil {
		t.Fatal(err)
	}

	// Each has a ledger of the other with the same bytes, while they are connected.
	for _, c := range []struct {
		x    *bitswap.Exchange
		peer peer.ID
		want bitswap.Ledger
	}{
		{here, g.Nodes[0].ID, bitswap.Ledger{Blocks: 100, BytesReceived: bytes}},
		{there, g.Nodes[1].ID, bitswap.Ledger{Blocks: 100, BytesSent: bytes}},
	} {
		if got, ok := c.x.Ledger(c.peer); !ok || got != c.want {
			t.Errorf("the ledger of %s is %+v, %v, want %+v", c.peer, got, ok, c.want)
		}
	}
	if err := g.Disconnect(0, 1); err != nil {
		t.Fatal(err)
	}
	if got, ok := there.Ledger(g.Nodes[1].ID); ok {
		t.Errorf("the ledger of a peer that has gone is %+v, want none", got)
	}
}

// A router knows one provider of everything.
type router struct {
	provider peer.AddrInfo
	searches atomic.Int32
}

func (r *router) FindProvidersAsync(context.Context, cid.Cid, int) <-chan peer.AddrInfo {
	r.searches.Add(1)
	out := make(chan peer.AddrInfo, 1)
	out <- r.provider
	close(out)
	return out
}

func TestTheRouterIsAskedWhenNobodyHasIt(t *testing.T) {
	a, b := newHost(t, bitswap.Limits()), newHost(t, bitswap.Limits())
	list, keys := data(10)
	store := newStore()
	if err := store.PutMany(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	start(t, a, store, bitswap.Options{})
	r := &router{provider: peer.AddrInfo{ID: a.ID(), Addrs: a.Addrs()}}
	getAll(t, start(t, b, newStore(), bitswap.Options{Router: r, SearchDelay: -1}), keys)
	if r.searches.Load() == 0 {
		t.Fatal("the blocks came without a search")
	}
}

// A crowd is a node that wants something which nobody has, and some others that
// it is connected to and knows.
type crowd struct {
	id     peer.ID
	host   host.Host
	getter *bitswap.Exchange
	others []*bitswap.Exchange
}

func gather(t *testing.T, n int, getter, other bitswap.Options) *crowd {
	t.Helper()
	h := newHost(t, bitswap.Limits())
	c := &crowd{id: h.ID(), host: h, getter: start(t, h, newStore(), getter)}
	_, keys := data(1)
	c.want(t, keys)
	for range n {
		o := newHost(t, bitswap.Limits())
		c.others = append(c.others, start(t, o, newStore(), other))
		if err := connect(h, o); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// want starts a request that lasts until the test ends.
func (c *crowd) want(t *testing.T, keys []cid.Cid) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	if _, err := c.getter.GetBlocks(ctx, keys); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the getter wants what it asked for", func() bool { return slices.Contains(c.getter.GetWantlist(), keys[0]) })
}

// told is how many others know that the getter wants a block.
func (c *crowd) told(k cid.Cid) (n int) {
	for _, o := range c.others {
		if slices.Contains(o.WantlistForPeer(c.id), k) {
			n++
		}
	}
	return n
}

func TestWantsPerPeer(t *testing.T) {
	_, keys := data(60)
	c := gather(t, 1, bitswap.Options{}, bitswap.Options{WantsPerPeer: 7})
	c.want(t, keys)
	eventually(t, "seven wants are kept", func() bool { return len(c.others[0].WantlistForPeer(c.id)) == 7 })
}

func TestBroadcastPeers(t *testing.T) {
	_, keys := data(2)
	c := gather(t, 4, bitswap.Options{BroadcastPeers: 2}, bitswap.Options{})
	eventually(t, "who connects is told what is wanted", func() bool { return c.told(keys[0]) == 4 })
	c.want(t, keys[1:])
	eventually(t, "two of the four are told what is wanted now", func() bool { return c.told(keys[1]) >= 2 })
	if n := c.told(keys[1]); n != 2 {
		t.Fatalf("%d of 4 peers were told, want 2", n)
	}
}

func TestClientOnlyServesNothing(t *testing.T) {
	list, keys := data(1)
	c := gather(t, 2, bitswap.Options{}, bitswap.Options{ClientOnly: true})
	server := newHost(t, bitswap.Limits())
	x := start(t, server, newStore(), bitswap.Options{})
	if err := connect(server, c.host); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a server keeps the want", func() bool { return slices.Contains(x.WantlistForPeer(c.id), keys[0]) })
	if n := c.told(keys[0]); n != 0 {
		t.Fatalf("%d of 2 clients keep it, want none", n)
	}
	for _, o := range c.others {
		if err := o.NotifyNewBlocks(t.Context(), list...); err != nil {
			t.Fatal(err)
		}
		if s, err := o.Stat(); err != nil || s.BlocksSent != 0 {
			t.Fatalf("a client's statistics are %+v, %v, want nothing sent", s, err)
		}
		if l, ok := o.Ledger(c.id); ok {
			t.Fatalf("a client's ledger is %+v, want none", l)
		}
	}
}

func TestCloseWithdrawsTheProtocols(t *testing.T) {
	h := newHost(t, bitswap.Limits())
	x := start(t, h, newStore(), bitswap.Options{})
	offered := func() (n int) {
		for _, p := range h.Mux().Protocols() {
			if slices.Contains(bitswap.Protocols(), p) {
				n++
			}
		}
		return n
	}
	if n := offered(); n != 4 {
		t.Fatalf("%d protocols are offered, want 4", n)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if n := offered(); n != 0 {
		t.Fatalf("%d protocols are offered after Close, want none", n)
	}
	if _, err := x.GetBlock(t.Context(), blocks.NewBlock([]byte("x")).Cid()); !errors.Is(err, errs.Closed) {
		t.Fatalf("get after Close: %v, want kind %v", err, errs.Closed)
	}
}

// streams opens streams from one host to another, all at once, and counts those
// that the other side serves.
func streams(t *testing.T, limits rcmgr.PartialLimitConfig, n int) (served int) {
	t.Helper()
	a, b := newHost(t, bitswap.Limits()), newHost(t, limits)
	if err := connect(a, b); err != nil {
		t.Fatal(err)
	}
	b.SetStreamHandler(bitswap.Protocols()[0], func(s network.Stream) {
		if _, err := s.Write([]byte{1}); err != nil {
			s.Reset()
		}
		// The stream stays open until the host closes.
	})
	for range n {
		s, err := a.NewStream(t.Context(), b.ID(), bitswap.Protocols()[0])
		if err != nil {
			continue
		}
		if err := s.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err == nil {
			served++
		}
	}
	return served
}

func TestLimits(t *testing.T) {
	const n = 200
	if got := streams(t, rcmgr.PartialLimitConfig{}, n); got == n {
		t.Errorf("libp2p's defaults serve all %d streams of one peer: Limits is no longer needed", n)
	}
	if got := streams(t, bitswap.Limits(), n); got != n {
		t.Errorf("with Limits %d of %d streams of one peer are served, want all", got, n)
	}
}
