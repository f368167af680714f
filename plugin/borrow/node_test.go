package borrow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

// wantRefused checks for what the host does not lend.
func wantRefused(t testing.TB, why string, err error) {
	t.Helper()
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "host") {
		t.Errorf("%s: got error %v, want one of kind %v that names the host", why, err, errs.Invalid)
	}
}

// An outbound stream carries bytes, blocks by reference, codes and ends, and
// what the context says of dialling reaches the host.
func TestNewStream(t *testing.T) {
	f := newFake(t)
	f.events <- said(state(alice, 1, "a1"))
	n := f.node()
	asked := make(chan *pb.OpenStreamRequest, 1)
	answers := make(chan *pb.OpenStreamReply, 1)
	f.open.set(func(_ context.Context, r *pb.OpenStreamRequest) (*pb.OpenStreamReply, error) {
		asked <- r
		return <-answers, nil
	})
	answers <- &pb.OpenStreamReply{Stream: 10, Protocol: "/y", Connection: "a1"}
	ch := f.stream(10)
	s, err := n.Host().NewStream(network.WithAllowLimitedConn(network.WithNoDial(t.Context(), "why"), "so"), alice, "/x", "/y")
	if err != nil {
		t.Fatal(err)
	}
	theirs := receive(t, "the channel is dialled", ch)
	if r := <-asked; !r.NoDial || !r.AllowLimited || r.Reason != "why" || !slices.Equal(r.Protocols, []string{"/x", "/y"}) || peer.ID(r.Peer) != alice {
		t.Errorf("asked: got %v", r)
	}
	if s.Protocol() != "/y" || s.Conn().ID() != "a1" || s.Stat().Direction != network.DirOutbound || s.Scope().SetService("x") != nil {
		t.Errorf("stream: got %s on %s, %+v", s.Protocol(), s.Conn().ID(), s.Stat())
	}
	block := cidOf([]byte("block"))
	if err := s.(*Stream).WriteBlock(block, 5); err != nil {
		t.Error(err)
	}
	within(t, "the reference comes", func() {
		if rec, err := theirs.Next(make([]byte, 9)); err != nil || rec.Kind != channel.KindBlock || !rec.Cid.Equals(block) || rec.Size != 5 {
			t.Errorf("reference: got %+v, %v", rec, err)
		}
	})
	theirs.ResetWithCode(42)
	within(t, "the reset comes", func() {
		_, err := s.Read(make([]byte, 1))
		var reset *network.StreamError
		if !errors.As(err, &reset) || reset.ErrorCode != 42 || !reset.Remote || !errors.Is(err, network.ErrReset) {
			t.Errorf("read after a reset: got %v, want code 42", err)
		}
	})
	s.Close()

	// The event of a new connection comes after the answer.
	answers <- &pb.OpenStreamReply{Stream: 11, Protocol: "/x", Connection: "b1"}
	ch = f.stream(11)
	go func() { <-asked; <-ch; f.events <- said(state(bob, 2, "b1")) }()
	s, err = n.Host().NewStream(t.Context(), bob, "/x")
	if err != nil {
		t.Fatal(err)
	}
	if c := s.Conn(); c.IsClosed() || c != n.Host().Network().ConnsToPeer(bob)[0] {
		t.Errorf("connection: got %v, want the one that was told of", c)
	}
	s.ResetWithError(7)

	for _, test := range []struct {
		name   string
		answer *pb.OpenStreamReply
		want   error
	}{
		{"the host's error", &pb.OpenStreamReply{Error: pb.FromError(errs.E(errs.Unreachable, errs.Peer, "open", "", nil))}, errs.Unreachable},
		{"a protocol that was not asked for", &pb.OpenStreamReply{Stream: 12, Protocol: "/z", Connection: "a1"}, errs.Malformed},
		{"a channel that is not there", &pb.OpenStreamReply{Stream: 13, Protocol: "/x", Connection: "a1"}, errs.Invalid},
	} {
		answers <- test.answer
		s, err := n.Host().NewStream(t.Context(), alice, "/x")
		<-asked
		if s != nil || !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, %v, want an error of kind %v", test.name, s, err, test.want)
		}
	}
	answers <- &pb.OpenStreamReply{Stream: 14, Protocol: "/x", Connection: "b1"}
	ch = f.stream(14)
	if s, err := n.Host().NewStream(t.Context(), alice, "/x"); s != nil || !errors.Is(err, errs.Malformed) {
		t.Errorf("another peer's connection: got %v, %v, want an error of kind %v", s, err, errs.Malformed)
	}
	wantEnd(t, "its channel is reset", receive(t, "it was dialled", ch), "reset")
}

// Connect asks the host with all addresses that are known here, and returns when
// the connection is there to be seen.
func TestConnect(t *testing.T) {
	f := newFake(t)
	n := f.node()
	f.connect.set(func(r *pb.ConnectRequest) (*pb.ConnectReply, error) {
		if peer.ID(r.Peer) == bob {
			return &pb.ConnectReply{Error: pb.FromError(errs.E(errs.Unreachable, errs.Peer, "connect", "", nil))}, nil
		}
		if len(r.Addrs) != 2 {
			t.Errorf("addresses: got %d, want 2", len(r.Addrs))
		}
		go func() { f.events <- said(state(alice, 1, "a1")) }()
		return &pb.ConnectReply{}, nil
	})
	n.Host().Peerstore().AddAddr(alice, ma.StringCast("/ip4/10.0.0.1/tcp/1"), time.Hour)
	if err := n.Host().Connect(t.Context(), peer.AddrInfo{ID: alice, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/10.0.0.2/tcp/1")}}); err != nil {
		t.Fatal(err)
	}
	if got := n.Host().Network().Connectedness(alice); got != network.Connected {
		t.Errorf("connectedness: got %v, want Connected", got)
	}
	if _, err := n.Host().Network().DialPeer(t.Context(), bob); !errors.Is(err, errs.Unreachable) {
		t.Errorf("connect to bob: got %v, want kind %v", err, errs.Unreachable)
	}
}

// Tags reach the host a little later: the latest value of each, and no more than
// there is room for.
func TestValues(t *testing.T) {
	f := newFake(t)
	f.events <- said(state(alice, 1, "a1"))
	release := make(chan struct{})
	f.value.set(func(ctx context.Context) {
		select {
		case <-release:
		case <-ctx.Done():
		}
	})
	n := f.node()
	l := listenTo(t, f, n)
	cm := n.Host().ConnManager()
	cm.TagPeer(bob, "first", 1) // occupies the sender
	eventually(t, "the first is on its way", func() bool {
		n.values.mu.Lock()
		defer n.values.mu.Unlock()
		return len(n.values.changes) == 0
	})
	for i := range 1000 {
		cm.TagPeer(alice, "x", i)
	}
	cm.UpsertTag(alice, "y", func(v int) int { return v + 7 })
	cm.Protect(alice, "p")
	cm.Protect(alice, "q")
	cm.TagPeer("nobody", "x", 1)
	cm.TagPeer(alice, strings.Repeat("x", maxTag+1), 1)
	if got := cm.GetTagInfo(alice); got.Value != 999+7 || len(got.Tags) != 2 || len(got.Conns) != 1 {
		t.Errorf("tag info: got %+v, want 1006 of 2", got)
	}
	if !cm.Unprotect(alice, "q") || !cm.IsProtected(alice, "") || cm.IsProtected(alice, "q") || cm.GetTagInfo("nobody") != nil {
		t.Error("protections are not as they were set")
	}
	close(release)
	receive(t, "the first", f.valued)
	var got []string
	for _, v := range receive(t, "all others at once", f.valued) {
		got = append(got, fmt.Sprintf("%s %s %v", names[peer.ID(v.Peer)], v.Tag, v.What))
	}
	slices.Sort(got)
	if want := []string{"alice p &{true}", "alice q &{false}", "alice x &{999}", "alice y &{7}"}; !slices.Equal(got, want) {
		t.Errorf("sent: got %q, want %q", got, want)
	}

	f.events <- said(state(alice, 1))
	l.heard()
	if info := cm.GetTagInfo(alice); len(info.Tags) != 0 || !cm.IsProtected(alice, "p") {
		t.Errorf("after its last connection: got %+v, protected %v, want protections only", info, cm.IsProtected(alice, "p"))
	}
	for i := range 2 * maxValues {
		cm.TagPeer(testPeer(fmt.Sprint(i)), "x", 1)
	}
	n.values.mu.Lock()
	defer n.values.mu.Unlock()
	if got := n.values.count; got != maxValues || len(n.values.peers) > maxValues {
		t.Errorf("kept: got %d tags of %d peers, want %d", got, len(n.values.peers), maxValues)
	}
}

// The store's sizes come in lots, blocks in parts, and what the host answers is
// checked.
func TestStore(t *testing.T) {
	f := newFake(t)
	n := f.node()
	ctx := t.Context()
	store := n.Blockstore().(*Store)
	cids := make([]cid.Cid, 2*maxSizes+10)
	for i := range cids {
		cids[i] = cidOf([]byte(fmt.Sprint(i)))
	}
	inside := cid.NewCidV1(cid.Raw, must[multihash.Multihash](t)(multihash.Sum([]byte("me"), multihash.IDENTITY, -1)))
	cids[5], cids[6] = inside, cid.Undef
	f.sizes.set(func(r *pb.SizesRequest) (*pb.SizesReply, error) {
		if len(r.Cids) > maxSizes {
			t.Errorf("one call: got %d cids, want at most %d", len(r.Cids), maxSizes)
		}
		reply := new(pb.SizesReply)
		for _, b := range r.Cids {
			size := int64(-1)
			if i := slices.IndexFunc(cids, func(c cid.Cid) bool { return string(c.Bytes()) == string(b) }); i%2 == 0 {
				size = int64(i)
			}
			reply.Sizes = append(reply.Sizes, size)
		}
		return reply, nil
	})
	sizes, err := store.Sizes(ctx, cids)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range sizes {
		want := -1
		switch {
		case i == 5:
			want = len("me")
		case i%2 == 0 && i != 6:
			want = i
		}
		if got != want {
			t.Fatalf("size of block %d: got %d, want %d", i, got, want)
		}
	}
	if _, err := store.GetSize(ctx, cids[1]); !ipld.IsNotFound(err) {
		t.Errorf("size of a block that is not there: got %v, want ipld.ErrNotFound", err)
	}
	if has, err := store.Has(ctx, cids[1]); has || err != nil {
		t.Errorf("has a block that is not there: got %v, %v", has, err)
	}
	for _, wrong := range []*pb.SizesReply{{}, {Sizes: []int64{1, 2}}, {Sizes: []int64{-2}}, {Sizes: []int64{1 << 40}}} {
		f.sizes.set(func(*pb.SizesRequest) (*pb.SizesReply, error) { return wrong, nil })
		if _, err := store.GetSize(ctx, cids[0]); !errors.Is(err, errs.Malformed) {
			t.Errorf("sizes %v: got error %v, want kind %v", wrong.Sizes, err, errs.Malformed)
		}
	}

	text := func(s string) []byte { return []byte(s) }
	for _, test := range []struct {
		name  string
		parts []*pb.ReadReply
		want  any
	}{
		{"parts", []*pb.ReadReply{{Size: 5, Data: text("ab")}, {Data: text("cde")}}, "abcde"},
		{"an empty block", []*pb.ReadReply{{}}, ""},
		{"nothing", nil, errs.Malformed},
		{"too little", []*pb.ReadReply{{Size: 5, Data: text("ab")}}, errs.Malformed},
		{"too much", []*pb.ReadReply{{Size: 1, Data: text("ab")}}, errs.Malformed},
		{"a length beyond the limit", []*pb.ReadReply{{Size: channel.MaxBlock + 1}}, errs.TooLarge},
		{"not there", []*pb.ReadReply{{Error: pb.FromError(ipld.ErrNotFound{Cid: cids[0]})}}, ipld.ErrNotFound{}},
		{"an end in the middle", []*pb.ReadReply{{Size: 5, Data: text("ab")}, {Error: pb.FromError(errs.E(errs.Storage, errs.Ours, "read", "", nil))}}, errs.Storage},
	} {
		f.read.set(func(*pb.ReadRequest) []*pb.ReadReply { return test.parts })
		b, err := store.Get(ctx, cids[0])
		switch want := test.want.(type) {
		case string:
			if err != nil || string(b.RawData()) != want || b.Cid() != cids[0] {
				t.Errorf("%s: got %v, %v, want %q", test.name, b, err, want)
			}
		case error:
			if !errors.Is(err, want) {
				t.Errorf("%s: got error %v, want %v", test.name, err, want)
			}
		}
	}
	if b, err := store.Get(ctx, inside); err != nil || string(b.RawData()) != "me" {
		t.Errorf("a block that is in its cid: got %v, %v", b, err)
	}
	_, err = store.AllKeysChan(ctx)
	wantRefused(t, "list", err)
	wantRefused(t, "put", store.PutMany(ctx, nil))
	wantRefused(t, "delete", store.DeleteBlock(ctx, inside))
}

// Leaves come in lots, smaller ones if the host says so, and what is not there is
// errs.NotFound.
func TestLeaves(t *testing.T) {
	f := newFake(t)
	n := f.node()
	root := cidOf([]byte("root"))
	f.leaves.set(func(r *pb.LeavesRequest) (*pb.LeavesReply, error) {
		if len(r.Indices) > 300 {
			return &pb.LeavesReply{Error: pb.FromError(errs.E(errs.TooLarge, errs.Plugin, "read leaves", "", nil))}, nil
		}
		reply := new(pb.LeavesReply)
		for _, i := range r.Indices {
			leaf := &pb.Leaf{Size: -1}
			if i != 3 {
				leaf = &pb.Leaf{Cid: cidOf([]byte(fmt.Sprint(i))).Bytes(), Proof: []byte(fmt.Sprint(i)), Size: int64(i)}
			}
			reply.Leaves = append(reply.Leaves, leaf)
		}
		return reply, nil
	})
	indices := make([]uint64, 3000)
	for i := range indices {
		indices[i] = uint64(i)
	}
	leaves, err := n.Leaves().LeafBatch(t.Context(), root, indices)
	if err != nil || len(leaves) != len(indices) {
		t.Fatalf("got %d leaves, %v, want %d", len(leaves), err, len(indices))
	}
	for i, leaf := range leaves {
		if i != 3 && (leaf.Size != i || string(leaf.Proof) != fmt.Sprint(i)) || i == 3 && leaf.Cid.Defined() {
			t.Fatalf("leaf %d: got %+v", i, leaf)
		}
	}
	if _, _, err := n.Leaves().Leaf(t.Context(), root, 3); !errors.Is(err, errs.NotFound) {
		t.Errorf("a leaf that is not there: got %v, want kind %v", err, errs.NotFound)
	}
	for _, wrong := range []*pb.LeavesReply{{}, {Leaves: []*pb.Leaf{{Cid: []byte("x")}}}, {Leaves: []*pb.Leaf{{Cid: root.Bytes(), Size: -2}}}} {
		f.leaves.set(func(*pb.LeavesRequest) (*pb.LeavesReply, error) { return wrong, nil })
		if _, _, err := n.Leaves().Leaf(t.Context(), root, 1); !errors.Is(err, errs.Malformed) {
			t.Errorf("leaves %v: got error %v, want kind %v", wrong.Leaves, err, errs.Malformed)
		}
	}
}

// Providers come as they are found, without those that make no sense, and a
// search ends with its context.
func TestRouter(t *testing.T) {
	f := newFake(t)
	n := f.node()
	ended := make(chan struct{}, 1)
	f.find.set(func(r *pb.FindProvidersRequest, s grpc.ServerStreamingServer[pb.FindProvidersReply]) error {
		if r.Max == 0 { // without end
			defer func() { ended <- struct{}{} }()
			for s.Send(&pb.FindProvidersReply{Peer: []byte(alice)}) == nil {
			}
			return nil
		}
		for _, p := range []string{string(alice), "?", string(bob)} {
			if err := s.Send(&pb.FindProvidersReply{Peer: []byte(p), Addrs: [][]byte{addr("/ip4/10.0.0.1/tcp/1"), {0xff}}}); err != nil {
				return err
			}
		}
		return nil
	})
	var got []peer.ID
	for info := range n.Router().FindProvidersAsync(t.Context(), cidOf(nil), 5) {
		got = append(got, info.ID)
		if len(info.Addrs) != 1 {
			t.Errorf("addresses of %v: got %v, want 1", info.ID, info.Addrs)
		}
	}
	if !slices.Equal(got, []peer.ID{alice, bob}) {
		t.Errorf("found: got %v, want alice and bob", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	found := n.Router().FindProvidersAsync(ctx, cidOf(nil), 0)
	receive(t, "a provider", found)
	cancel()
	receive(t, "the host's search ends", ended)
	within(t, "the search ends", func() {
		for range found {
		}
	})
	f.provide.set(func(r *pb.ProvideRequest) (*pb.ProvideReply, error) {
		if !r.Announce {
			return &pb.ProvideReply{Error: pb.FromError(errs.NotFound)}, nil
		}
		return &pb.ProvideReply{}, nil
	})
	if err := n.Router().Provide(t.Context(), cidOf(nil), true); err != nil {
		t.Errorf("provide: %v", err)
	}
	if err := n.Router().Provide(t.Context(), cidOf(nil), false); !errors.Is(err, errs.NotFound) {
		t.Errorf("provide: got %v, want the host's error", err)
	}
}

// When the host is gone, the node is over, and so is everything that it lent, also
// what waits at that moment. The error blames the host.
func TestHostGone(t *testing.T) {
	for name, end := range map[string]func(*fakeHost){
		"its process dies":        func(f *fakeHost) { f.channels.Close() },
		"it stops telling events": func(f *fakeHost) { close(f.events) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.events <- said(state(alice, 1, "a1"))
			n := f.node()
			asked := make(chan struct{})
			f.open.set(func(ctx context.Context, _ *pb.OpenStreamRequest) (*pb.OpenStreamReply, error) {
				close(asked)
				<-ctx.Done()
				return nil, ctx.Err()
			})
			waiting := make(chan error, 1)
			go func() {
				_, err := n.Host().NewStream(context.Background(), alice, "/x")
				waiting <- err
			}()
			<-asked
			end(f)
			receive(t, "the node is over", n.Done())
			_, getErr := n.Blockstore().Get(context.Background(), cidOf(nil))
			_, streamErr := n.Host().NewStream(context.Background(), alice, "/x")
			_, resultsErr := n.Results(context.Background())
			for what, err := range map[string]error{
				"Err": n.Err(), "a call under way": receive(t, "the call ends", waiting), "Get": getErr, "NewStream": streamErr, "Results": resultsErr,
			} {
				var e *errs.Error
				if !errors.As(err, &e) || e.Kind != errs.Crashed || e.Fault != errs.Ours {
					t.Errorf("%s: got %v, want kind %v by %v", what, err, errs.Crashed, errs.Ours)
				}
			}
			n.Host().SetStreamHandler("/x", func(network.Stream) {})
			for range n.Router().FindProvidersAsync(context.Background(), cidOf(nil), 1) {
				t.Error("a provider was found, want none")
			}
		})
	}
}

// Close ends streams, handlers and subscriptions, even one that nobody reads, and
// waits; then everything is errs.Closed.
func TestClose(t *testing.T) {
	f := newFake(t)
	f.events <- said(state(alice, 1, "a1"))
	n := f.node()
	handling, handled := make(chan struct{}), make(chan error, 1)
	n.Host().SetStreamHandler("/x", func(s network.Stream) {
		close(handling)
		_, err := io.ReadAll(s)
		handled <- err
	})
	ch := f.stream(10)
	f.events <- &pb.Event{What: &pb.Event_Inbound{Inbound: &pb.Inbound{Stream: 10, Peer: []byte(alice), Connection: "a1", Protocol: "/x"}}}
	receive(t, "the handler is called", handling)
	theirs := receive(t, "the host has the stream", ch)
	sub := must[event.Subscription](t)(n.Host().EventBus().Subscribe(new(event.EvtPeerConnectednessChanged), eventbus.BufSize(1)))
	for i := range uint64(5) { // more than the subscriber has room for
		f.events <- said(state(bob, i+2, fmt.Sprintf("b%d", i)))
	}
	eventually(t, "the subscriber is full", func() bool { return len(sub.Out()) == 1 })
	within(t, "the Node closes", func() {
		n.Close()
		n.Close()
	})
	select {
	case err := <-handled:
		if !errors.Is(err, network.ErrReset) {
			t.Errorf("the handler reads: got %v, want a reset", err)
		}
	default:
		t.Error("Close did not wait for the handler")
	}
	wantEnd(t, "the stream", theirs, "reset")
	if _, err := n.Blockstore().Has(t.Context(), cidOf(nil)); !errors.Is(err, errs.Closed) || !errors.Is(n.Err(), errs.Closed) {
		t.Errorf("after Close: got %v and %v, want kind %v", err, n.Err(), errs.Closed)
	}
	if _, err := n.Host().EventBus().Subscribe(new(event.EvtPeerConnectednessChanged)); !errors.Is(err, errs.Closed) {
		t.Errorf("subscribe after Close: got %v, want kind %v", err, errs.Closed)
	}
	sub.Close()
}

// Open says why it fails, and leaves nothing behind.
func TestOpenFails(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(f *fakeHost, cancel func())
		want error
	}{
		{"no peer id", func(f *fakeHost, _ func()) { f.req.Self = []byte("x") }, errs.Malformed},
		{"a short token", func(f *fakeHost, _ func()) { f.req.Token = f.req.Token[:31] }, errs.Malformed},
		{"an odd address", func(f *fakeHost, _ func()) { f.req.Addrs = [][]byte{{0xff}} }, errs.Malformed},
		{"a wrong token", func(f *fakeHost, _ func()) { f.req.Token[0] ^= 1 }, errs.Invalid},
		{"no socket", func(f *fakeHost, _ func()) { f.req.Socket += "x" }, errs.Unreachable},
		{"events that end at once", func(f *fakeHost, _ func()) { close(f.events) }, errs.Crashed},
		{"a host that says nothing", func(f *fakeHost, cancel func()) {
			f.events <- said(state(alice, 1, "a1"))
			time.AfterFunc(100*time.Millisecond, cancel)
		}, context.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			test.make(f, cancel)
			within(t, "Open returns", func() {
				n, err := Open(ctx, f.req, Options{Log: quiet})
				if n != nil || !errors.Is(err, test.want) {
					t.Errorf("got %v, %v, want an error that is %v", n, err, test.want)
				}
			})
		})
	}
}

// The channel of results is one that the host expects.
func TestResults(t *testing.T) {
	f := newFake(t)
	n := f.node()
	ch := f.stream(resultsStream)
	ours := must[*channel.Conn](t)(n.Results(t.Context()))
	ours.Write([]byte("x"))
	ours.Close()
	theirs := receive(t, "the host has it", ch)
	within(t, "it carries bytes", func() {
		if b, err := io.ReadAll(theirs); string(b) != "x" || err != nil {
			t.Errorf("read: got %q, %v", b, err)
		}
	})
}
