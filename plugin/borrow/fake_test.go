package borrow

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	callbackStream = 1
	resultsStream  = 2
)

// A fakeHost is service Host with a script: events are those that the test sends,
// and what a test is about it answers itself, with a hook.
type fakeHost struct {
	pb.UnimplementedHostServer
	t        testing.TB
	channels *channel.Listener
	server   *grpc.Server
	req      *pb.StartRequest
	events   chan *pb.Event // closed: the call ends
	handled  chan string    // "+protocol" and "-protocol"
	valued   chan []*pb.PeerValue

	handle  hook[func() error]
	open    hook[func(context.Context, *pb.OpenStreamRequest) (*pb.OpenStreamReply, error)]
	connect hook[func(*pb.ConnectRequest) (*pb.ConnectReply, error)]
	value   hook[func(context.Context)]
	sizes   hook[func(*pb.SizesRequest) (*pb.SizesReply, error)]
	read    hook[func(*pb.ReadRequest) []*pb.ReadReply]
	leaves  hook[func(*pb.LeavesRequest) (*pb.LeavesReply, error)]
	find    hook[func(*pb.FindProvidersRequest, grpc.ServerStreamingServer[pb.FindProvidersReply]) error]
	provide hook[func(*pb.ProvideRequest) (*pb.ProvideReply, error)]
}

// A hook is a function that the test may change.
type hook[F any] struct {
	mu sync.Mutex
	f  F
}

func (h *hook[F]) set(f F) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.f = f
}

func (h *hook[F]) get() F {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.f
}

var self = testPeer("self")

// testPeer is the id of a peer that exists only by name.
func testPeer(name string) peer.ID {
	sum := cidOf([]byte(name)).Hash()
	return peer.ID(sum)
}

func newFake(t testing.TB) *fakeHost {
	t.Helper()
	f := &fakeHost{
		t: t, server: grpc.NewServer(), events: make(chan *pb.Event, 100),
		handled: make(chan string, 100), valued: make(chan []*pb.PeerValue, 100),
	}
	f.channels = must[*channel.Listener](t)(channel.Listen(shortDir(t), channel.Options{Log: quiet}))
	token := f.channels.Token()
	f.req = &pb.StartRequest{
		Self: []byte(self), Socket: f.channels.Path(), Token: token[:], Callback: callbackStream, Results: resultsStream,
		Leaves: true, Routing: true, Addrs: [][]byte{addr("/ip4/127.0.0.1/tcp/1")},
	}
	pb.RegisterHostServer(f.server, f)
	callback := must[*channel.Expected](t)(f.channels.Expect(callbackStream))
	var serving sync.WaitGroup
	t.Cleanup(func() {
		within(t, "the host ends", func() { f.channels.Close(); f.server.Stop(); serving.Wait() })
	})
	serving.Go(func() {
		if c, err := callback.Conn(context.Background()); err == nil {
			one := make(once, 1)
			one <- callbackConn{c}
			_ = f.server.Serve(one)
		}
	})
	return f
}

// once is a net.Listener of one connection. It is closed by closing the connection.
type once chan net.Conn

func (o once) Accept() (net.Conn, error) {
	if c, ok := <-o; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (o once) Close() error   { close(o); return nil }
func (o once) Addr() net.Addr { return callbackConn{}.LocalAddr() }

// node is what Open makes of a host that has said what there is.
func (f *fakeHost) node() *Node {
	f.t.Helper()
	f.events <- synced
	n := must[*Node](f.t)(Open(f.t.Context(), f.req, Options{Log: quiet}))
	f.t.Cleanup(func() { within(f.t, "the Node closes", func() { n.Close() }) })
	return n
}

// stream makes a byte channel welcome, and gives the host's end when it has come.
func (f *fakeHost) stream(number uint64) <-chan *channel.Conn {
	f.t.Helper()
	e := must[*channel.Expected](f.t)(f.channels.Expect(number))
	ch := make(chan *channel.Conn, 1)
	go func() {
		if c, err := e.Conn(context.Background()); err == nil {
			ch <- c
		}
	}()
	return ch
}

func (f *fakeHost) Events(_ *pb.EventsRequest, s grpc.ServerStreamingServer[pb.Event]) error {
	for {
		select {
		case ev, ok := <-f.events:
			if !ok {
				return nil
			}
			if err := s.Send(ev); err != nil {
				return err
			}
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (f *fakeHost) Handle(_ context.Context, r *pb.HandleRequest) (*pb.HandleReply, error) {
	f.handled <- "+" + r.GetProtocol()
	if refuse := f.handle.get(); refuse != nil {
		return nil, pb.Status(refuse())
	}
	return &pb.HandleReply{}, nil
}

func (f *fakeHost) Unhandle(_ context.Context, r *pb.UnhandleRequest) (*pb.UnhandleReply, error) {
	f.handled <- "-" + r.GetProtocol()
	return &pb.UnhandleReply{}, nil
}

func (f *fakeHost) OpenStream(ctx context.Context, r *pb.OpenStreamRequest) (*pb.OpenStreamReply, error) {
	return f.open.get()(ctx, r)
}

func (f *fakeHost) Connect(_ context.Context, r *pb.ConnectRequest) (*pb.ConnectReply, error) {
	return f.connect.get()(r)
}

func (f *fakeHost) Value(ctx context.Context, r *pb.ValueRequest) (*pb.ValueReply, error) {
	if wait := f.value.get(); wait != nil {
		wait(ctx)
	}
	f.valued <- r.GetValues()
	return &pb.ValueReply{}, nil
}

func (f *fakeHost) Sizes(_ context.Context, r *pb.SizesRequest) (*pb.SizesReply, error) {
	return f.sizes.get()(r)
}

func (f *fakeHost) Read(r *pb.ReadRequest, s grpc.ServerStreamingServer[pb.ReadReply]) error {
	for _, part := range f.read.get()(r) {
		if err := s.Send(part); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeHost) Leaves(_ context.Context, r *pb.LeavesRequest) (*pb.LeavesReply, error) {
	return f.leaves.get()(r)
}

func (f *fakeHost) FindProviders(r *pb.FindProvidersRequest, s grpc.ServerStreamingServer[pb.FindProvidersReply]) error {
	return f.find.get()(r, s)
}

func (f *fakeHost) Provide(_ context.Context, r *pb.ProvideRequest) (*pb.ProvideReply, error) {
	return f.provide.get()(r)
}
