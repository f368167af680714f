package remote

import (
	"context"
	"errors"
	"math"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

// A playedHost is a host that is played by the test, with a real Server.
type playedHost struct {
	testing.TB
	server *Server
	rpc    pb.ExchangeClient
	socket net.Conn
	run    <-chan error // of Run
	frames *frameReader
	closed chan struct{} // closed by Instance.Close
}

func newHost(t testing.TB, x boxo.Interface, read func(context.Context, cid.Cid) (blocks.Block, error)) *playedHost {
	t.Helper()
	return newHostShared(t, x, read, nil)
}

// newHostShared is newHost with memory for results, which the plugin has mapped.
func newHostShared(t testing.TB, x boxo.Interface, read func(context.Context, cid.Cid) (blocks.Block, error), outbound *memory.Memory) *playedHost {
	t.Helper()
	h := &playedHost{TB: t, closed: make(chan struct{})}
	near, far := socketPair(t)
	h.socket, h.frames = near, newFrameReader(near)
	h.server = NewServer(ServerOptions{
		Open: func(_ context.Context, req *pb.StartRequest) (*Instance, error) {
			if req.GetName() == "bad" {
				return nil, errs.E(errs.Invalid, errs.Caller, "start", "bad", nil)
			}
			return &Instance{Exchange: x, Results: far, Outbound: outbound, Read: read, Close: func() error { close(h.closed); return nil }}, nil
		},
		Version: "test 1",
		Log:     quiet(),
	})
	var tear func()
	h.rpc, tear = connect(t, h.server)
	t.Cleanup(func() {
		tear()
		h.server.Close()
	})
	if _, err := h.rpc.Start(t.Context(), &pb.StartRequest{}); err != nil {
		t.Fatal(err)
	}
	h.run = later(func() error { _, err := h.rpc.Run(t.Context(), &pb.RunRequest{}); return err })
	return h
}

func (h *playedHost) send(list ...*pb.Command) {
	h.Helper()
	for _, m := range list {
		b, err := appendMessage(nil, m, MaxCommand)
		if err == nil {
			_, err = h.socket.Write(b)
		}
		if err != nil {
			h.Fatal(err)
		}
	}
}

// next reads a result, and skips its payload.
func (h *playedHost) next(why string) (res result) {
	h.Helper()
	if err := wait(h, why, later(func() (err error) {
		if res, err = h.frames.next(); err == nil {
			err = h.frames.skip(res)
		}
		return err
	})); err != nil {
		h.Fatalf("%s: %v", why, err)
	}
	return res
}

func wantCommand(request, credit uint64, keys ...cid.Cid) *pb.Command {
	m := &pb.Want{Request: request, Credit: credit}
	for _, k := range keys {
		m.Cids = append(m.Cids, k.Bytes())
	}
	return &pb.Command{Do: &pb.Command_Want{Want: m}}
}

func creditOf(request, bytes uint64) *pb.Command {
	return &pb.Command{Do: &pb.Command_Credit{Credit: &pb.Credit{Request: request, Bytes: bytes}}}
}

func cancelOf(request uint64) *pb.Command {
	return &pb.Command{Do: &pb.Command_Cancel{Cancel: &pb.Cancel{Request: request}}}
}

// seeded is an exchange that can get the blocks of a list.
func seeded(t testing.TB, list []blocks.Block) *exchangetest.MeshExchange {
	m := exchangetest.NewMesh(2)
	m.Blocks(0).PutMany(t.Context(), list)
	m.Connect(0, 1)
	return m.Exchange(1)
}

// TestServerGoesByCredit shows that the plugin sends while there is any credit left,
// and no longer, and that more credit than there can be does no harm.
func TestServerGoesByCredit(t *testing.T) {
	list := makeBlocks(20, 5, 1000)
	h := newHost(t, seeded(t, list), nil)
	h.send(wantCommand(1, 2*(1000+ResultCost)+1, keysOf(list)...), wantCommand(2, 0, list[0].Cid()))
	for range 3 {
		if res := h.next("two blocks, and one for the last byte"); res.request != 1 || res.kind != blockResult {
			t.Fatalf("got %+v, want a block of request 1", res)
		}
	}
	h.send(creditOf(2, 1))
	for _, kind := range []resultKind{blockResult, doneResult} {
		if res := h.next("the other request has credit now"); res.request != 2 || res.kind != kind {
			t.Fatalf("got %+v, want the block of request 2, and its end", res)
		}
	}
	h.send(creditOf(1, math.MaxUint64), creditOf(1, math.MaxUint64), creditOf(1, 1<<63))
	for _, kind := range []resultKind{blockResult, blockResult, doneResult} {
		if res := h.next("all that is left"); res.request != 1 || res.kind != kind {
			t.Fatalf("got %+v, want what is left of request 1", res)
		}
	}
}

// TestServerRefuses shows what is answered to a request that cannot be understood,
// and that numbers nobody knows are ignored, and requests that are never whole.
func TestServerRefuses(t *testing.T) {
	list := makeBlocks(21, 2, 100)
	k := list[0].Cid().Bytes()
	h := newHost(t, seeded(t, list), nil)
	part := wantCommand(50, 9, list[0].Cid())
	part.GetWant().More = true
	h.send(creditOf(99, 5), cancelOf(99), &pb.Command{}, part,
		&pb.Command{Do: &pb.Command_EndSession{EndSession: &pb.EndSession{Session: 99}}},
		&pb.Command{Do: &pb.Command_Stored{Stored: &pb.Stored{Blocks: []*pb.StoredBlock{{Cid: []byte{1}}, nil}, Missed: 3}}},
		&pb.Command{Do: &pb.Command_StoredLeaves{StoredLeaves: &pb.StoredLeaves{Root: []byte{1}}}})
	for name, tc := range map[string]struct {
		want *pb.Command
		text string
	}{
		"a bad cid":        {&pb.Command{Do: &pb.Command_Want{Want: &pb.Want{Request: 1, Cids: [][]byte{k, {}, k}}}}, "want request 1: cid 2: is missing"},
		"two single ones":  {&pb.Command{Do: &pb.Command_Want{Want: &pb.Want{Request: 1, Cids: [][]byte{k, k}, Single: true}}}, "want request 1: names 2 blocks, want a single one"},
		"leaves of what":   {&pb.Command{Do: &pb.Command_WantLeaves{WantLeaves: &pb.WantLeaves{Request: 1}}}, "want request 1: root: is missing"},
		"leaves from here": {&pb.Command{Do: &pb.Command_WantLeaves{WantLeaves: &pb.WantLeaves{Request: 1, Root: k}}}, "get leaves " + list[0].Cid().String() + ": the exchange has no leaves"},
	} {
		h.send(tc.want)
		res := h.next(name)
		if res.kind != doneResult || !errors.Is(res.err, errs.Invalid) || res.err.Error() != tc.text {
			t.Errorf("%s: got %+v, want its end with %q", name, res, tc.text)
		}
		// The end is written before the number is free.
		eventually(t, "the request has ended", func() bool {
			v := h.server.serving
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.calls[1] == nil
		})
	}

	h.send(wantCommand(50, 1, list[1].Cid()))
	h.next("the part that was missing came")
	h.send(part)
	if err := wait(t, "Run ends", h.run); !errors.Is(pb.FromStatus(t.Context(), err, errs.Plugin, ""), errs.Invalid) {
		t.Errorf("a number that is in use: got %v, want %v", err, errs.Invalid)
	}
}

// TestStoredBlocksAreLazy shows that an exchange is told of a block without its
// bytes, that the bytes are read when it asks for them, and that such a block
// comes back as a name.
func TestStoredBlocksAreLazy(t *testing.T) {
	list := makeBlocks(22, 2, 1000)
	store := exchangetest.NewBlocks(list[0])
	m := exchangetest.NewMesh(1)
	told := make(chan []blocks.Block, 1)
	h := newHost(t, teller{m.Exchange(0), told}, store.Get)
	h.send(wantCommand(1, 1, list[0].Cid()))
	stored := &pb.Stored{}
	for _, b := range list {
		stored.Blocks = append(stored.Blocks, &pb.StoredBlock{Cid: b.Cid().Bytes(), Size: 1000})
	}
	eventually(t, "the exchange was asked", func() bool { return len(m.Exchange(0).GetWantlist()) == 1 })
	h.send(&pb.Command{Do: &pb.Command_Stored{Stored: stored}})
	if res := h.next("the block is named"); res.kind != heldResult || !res.cid.Equals(list[0].Cid()) || res.size != 0 {
		t.Errorf("got %+v, want %s as held", res, list[0].Cid())
	}
	lazy := take(t, "what the exchange was told", told)
	for i, want := range [][]byte{list[0].RawData(), nil} {
		if got := lazy[i].(interface{ Size() int }).Size(); got != 1000 {
			t.Errorf("block %d is %d bytes, want 1000", i, got)
		}
		if got := lazy[i].RawData(); !slices.Equal(got, want) {
			t.Errorf("block %d: read %d bytes, want %d", i, len(got), len(want))
		}
	}
	store.PutMany(t.Context(), list)
	if got := lazy[1].RawData(); !slices.Equal(got, list[1].RawData()) {
		t.Errorf("a block that is there after all: read %d bytes, want 1000", len(got))
	}
}

// A teller passes on what an exchange is told.
type teller struct {
	*exchangetest.MeshExchange
	told chan []blocks.Block
}

func (x teller) NotifyNewBlocks(ctx context.Context, list ...blocks.Block) error {
	x.told <- list
	return x.MeshExchange.NotifyNewBlocks(ctx, list...)
}

// TestExchangeThatIsSlowToListen shows that an exchange that takes no note of new
// blocks until a getter has read, as it may, does not keep the getter from
// reading.
func TestExchangeThatIsSlowToListen(t *testing.T) {
	list := makeBlocks(23, 3, 1000)
	told := make(chan []blocks.Block)
	h := newHost(t, teller{seeded(t, list), told}, nil)
	h.send(wantCommand(1, 1, keysOf(list)...))
	h.next("the first block")
	h.send(&pb.Command{Do: &pb.Command_Stored{Stored: &pb.Stored{Blocks: []*pb.StoredBlock{{Cid: list[0].Cid().Bytes(), Size: 1000}}}}})
	h.send(creditOf(1, 10_000))
	for _, kind := range []resultKind{blockResult, blockResult, doneResult} {
		if res := h.next("credit comes through"); res.kind != kind {
			t.Fatalf("got %+v, want kind %d", res, kind)
		}
	}
	take(t, "what the exchange was told", told)
}

// TestStop shows that Stop ends requests without a word, closes the exchange, then
// the instance, and that everything later is refused.
func TestStop(t *testing.T) {
	list := makeBlocks(24, 2, 1000)
	x := seeded(t, list[:1])
	h := newHost(t, x, nil)
	h.send(wantCommand(1, 1<<20, keysOf(list)...))
	h.next("the block that is there")
	if _, err := h.rpc.Start(t.Context(), &pb.StartRequest{}); !errors.Is(pb.FromStatus(t.Context(), err, errs.Plugin, ""), errs.Invalid) {
		t.Errorf("a second Start: got %v, want %v", err, errs.Invalid)
	}
	if _, err := h.rpc.Ping(t.Context(), &pb.PingRequest{}); err != nil {
		t.Errorf("Ping: %v", err)
	}
	for range 2 {
		if m, err := h.rpc.Stop(t.Context(), &pb.StopRequest{}); err != nil || m.Error != nil {
			t.Fatalf("Stop: %v, %v", m, err)
		}
	}
	for name, ch := range map[string]<-chan struct{}{"Instance.Close": h.closed, "Done": h.server.Done()} {
		select {
		case <-ch:
		default:
			t.Errorf("%s was not before the answer to Stop", name)
		}
	}
	if err := wait(t, "Run ends", h.run); err != nil {
		t.Errorf("Run: got %v, want an end in good order", err)
	}
	if res, err := h.frames.next(); err == nil {
		t.Errorf("got %+v, want no end of a request that another plugin may serve", res)
	}
	if _, err := x.GetBlock(t.Context(), list[0].Cid()); !errors.Is(err, errs.Closed) {
		t.Errorf("the exchange: got %v, want %v", err, errs.Closed)
	}
	if _, err := h.rpc.Stat(t.Context(), &pb.StatRequest{}); !errors.Is(pb.FromStatus(t.Context(), err, errs.Plugin, ""), errs.Closed) {
		t.Errorf("Stat after Stop: got %v, want %v", err, errs.Closed)
	}
}

// telling is an exchange that can tell everything.
type telling struct{ *exchangetest.MeshExchange }

var (
	someStat = Stat{
		BlocksReceived: 1, BytesReceived: 2, DuplicateBlocks: 3, DuplicateBytes: 4, BlocksSent: 5, BytesSent: 6,
		Wants: 7, Peers: 8, More: map[string]uint64{"searches": 9}, CPU: testCPU, Memory: testMemory,
	}
	someLedger = Ledger{BlocksReceived: 1, BytesReceived: 2, BlocksSent: 3, BytesSent: 4, More: map[string]float64{"rate": 5.5}}
)

func (telling) Inspect() (Stat, error) {
	s := someStat
	s.CPU, s.Memory = 0, 0 // of the process: the server adds them
	return s, nil
}
func (telling) PeerLedger(p peer.ID) (Ledger, bool) {
	return someLedger, p == "friend"
}
func (x telling) Wantlist() []wire.Address {
	list := make([]wire.Address, 2*listed+1)
	for i := range list {
		list[i] = wire.Leaf(makeBlocks(25, 1, 10)[0].Cid(), uint64(i))
	}
	return append(list, wire.Block(list[0].Root))
}
func (x telling) WantlistForPeer(p peer.ID) []cid.Cid {
	if p != "friend" {
		return nil
	}
	return keysOf(makeBlocks(26, 3, 10))
}

// TestAsking shows that what an exchange can tell crosses whole, and what is said
// of one that cannot.
func TestAsking(t *testing.T) {
	c := newClient(t, ClientOptions{})
	if _, err := c.Inspect(t.Context()); !errors.Is(err, errs.Crashed) {
		t.Errorf("Inspect with no plugin: got %v, want %v", err, errs.Crashed)
	}
	x := telling{exchangetest.NewMesh(1).Exchange(0)}
	p := serve(t, c, x, nil)
	if p.caps.Leaves || !p.caps.Stat || !p.caps.Wantlist || !p.caps.PeerWantlist || !p.caps.Ledger || p.caps.Version != "test" {
		t.Errorf("got capabilities %v, want all but leaves", p.caps)
	}
	eventually(t, "the plugin runs", func() bool { return c.Counters().Incarnations == 1 })
	stat, err := c.Inspect(t.Context())
	if err != nil || !reflect.DeepEqual(stat, someStat) {
		t.Errorf("Inspect: got %+v, %v, want %+v", stat, err, someStat)
	}
	l, known, err := c.Ledger(t.Context(), "friend")
	if err != nil || !known || !reflect.DeepEqual(l, someLedger) {
		t.Errorf("Ledger: got %+v, %v, %v, want %+v", l, known, err, someLedger)
	}
	if _, known, err := c.Ledger(t.Context(), "stranger"); known || err != nil {
		t.Errorf("Ledger of a stranger: got %v, %v, want false", known, err)
	}
	if got := c.Wantlist(); !slices.Equal(got, x.Wantlist()) {
		t.Errorf("Wantlist: got %d, want %d", len(got), len(x.Wantlist()))
	}
	if got := c.GetWantlist(); len(got) != 1 {
		t.Errorf("GetWantlist: got %d, want 1", len(got))
	}
	if got := c.WantlistForPeer("friend"); !slices.Equal(got, x.WantlistForPeer("friend")) {
		t.Errorf("WantlistForPeer: got %v, want %v", got, x.WantlistForPeer("friend"))
	}

	dumb := newClient(t, ClientOptions{})
	serve(t, dumb, exchangetest.NewMesh(1).Exchange(0), nil)
	eventually(t, "the plugin runs", func() bool { return dumb.Counters().Incarnations == 1 })
	if _, err := dumb.Inspect(t.Context()); !errors.Is(err, errs.Invalid) {
		t.Errorf("Inspect of one that cannot tell: got %v, want %v", err, errs.Invalid)
	}
	if _, _, err := dumb.Ledger(t.Context(), "friend"); !errors.Is(err, errs.Invalid) {
		t.Errorf("Ledger of one that cannot tell: got %v, want %v", err, errs.Invalid)
	}
}

// endless is a plugin whose want list has no end.
type endless struct{ pb.UnimplementedExchangeServer }

func (endless) Wantlist(_ *pb.WantlistRequest, stream grpc.ServerStreamingServer[pb.WantlistReply]) error {
	m := &pb.WantlistReply{Wants: slices.Repeat([]*pb.Address{{Cid: makeBlocks(27, 1, 10)[0].Cid().Bytes()}}, listed)}
	for {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// TestEndlessWantlist shows that a plugin whose want list does not end costs the
// host no more memory than the longest that it lists.
func TestEndlessWantlist(t *testing.T) {
	x, _ := connect(t, endless{})
	c := newClient(t, ClientOptions{})
	if list, err := c.wantlist(x, ""); len(list) != maxListed || err != nil {
		t.Errorf("got %d wants, %v, want %d", len(list), err, maxListed)
	}
}

// TestLongErrorsFitIntoAHead shows that an error with very many causes still ends
// its request.
func TestLongErrorsFitIntoAHead(t *testing.T) {
	all := make([]error, 16)
	for i := range all {
		all[i] = errs.E(errs.Storage, errs.Ours, strings.Repeat("x", 4000), strings.Repeat("y", 4000), errors.New("z"))
	}
	b, err := appendHead(nil, &pb.Result{What: &pb.Result_Done{Done: &pb.DoneResult{Error: toError(errors.Join(all...))}}})
	if err != nil || len(b) > MaxHead {
		t.Errorf("got a head of %d bytes, %v, want at most %d", len(b), err, MaxHead)
	}
}
