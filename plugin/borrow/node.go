package borrow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/ipfs/boxo/blockstore"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// maxReply is the longest message that the host sends, bytes.
	maxReply = 4 << 20
	// maxInboundDials is how many inbound streams may be on their way from the host
	// at a time. The reading of events waits when there are more.
	maxInboundDials = 64
)

// Options are useful when zero.
type Options struct {
	// Log is told what the host does wrong and what could not be passed on to
	// it; nil means slog.Default().
	Log *slog.Logger
}

// A Node is what one host lends to this process. Get one from [Open]. Its
// methods may be called from any goroutine. It is over when Done is closed, by
// the death of the host or by Close; its owner calls Close in both cases.
type Node struct {
	log     *slog.Logger
	self    peer.ID
	addrs   []ma.Multiaddr
	socket  string
	token   channel.Token
	results uint64
	leaves  *Leaves // nil if none are lent
	router  *router // nil if none is lent

	shared struct{ inbound, outbound *memory.Memory } // nil if none is shared; closed by Close
	loans  *channel.Loans                             // of inbound

	ctx      context.Context // ends just before done is closed
	cancel   context.CancelFunc
	callback *channel.Conn
	grpc     *grpc.ClientConn
	client   pb.HostClient

	mirror *mirror
	book   peerbook
	bus    *bus
	mux    *mux
	values *values
	notifs notifiees
	host   *lentHost

	synced chan struct{} // closed by readEvents
	done   chan struct{}
	places chan struct{} // one for each inbound stream that is being dialled
	goers  sync.WaitGroup

	mu      sync.Mutex
	err     *errs.Error                     // why it is over, or about to be; done is closed next
	streams map[string]map[*Stream]struct{} // that are open, by connection
}

// Open dials the host's callback channel, and waits until everything is known
// that the host knew of its peers, or ctx ends.
//
// The error is of kind errs.Malformed if the request makes no sense, and else
// that of the channel or of the context.
func Open(ctx context.Context, req *pb.StartRequest, o Options) (*Node, error) {
	const op = "borrow from the host"
	if o.Log == nil {
		o.Log = slog.Default()
	}
	n, err := newNode(req, o)
	if err != nil {
		return nil, errs.E(errs.Malformed, errs.Ours, op, "", err)
	}
	n.share(req)
	if err := n.connect(ctx, req.GetCallback()); err != nil {
		n.cancel()
		n.unshare()
		n.book.Close()
		return nil, err
	}
	n.goers.Go(n.watch)
	n.goers.Go(n.readEvents)
	n.goers.Go(n.values.run)
	n.goers.Go(n.forget)
	select {
	case <-n.synced:
		return n, nil
	case <-n.done:
		err = n.gone(op)
	case <-ctx.Done():
		err = errs.E(errs.Other, errs.Unknown, op, "", context.Cause(ctx))
	}
	n.Close()
	return nil, err
}

func newNode(req *pb.StartRequest, o Options) (*Node, error) {
	self, err := peer.IDFromBytes(req.GetSelf())
	if err != nil {
		return nil, fmt.Errorf("self: %w", err)
	}
	n := &Node{
		log: o.Log, self: self, socket: req.GetSocket(), results: req.GetResults(),
		synced: make(chan struct{}), done: make(chan struct{}), places: make(chan struct{}, maxInboundDials),
		streams: make(map[string]map[*Stream]struct{}),
	}
	if got := len(req.GetToken()); got != len(n.token) {
		return nil, fmt.Errorf("token is %d bytes, want %d", got, len(n.token))
	}
	copy(n.token[:], req.GetToken())
	for i, b := range req.GetAddrs() {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			return nil, fmt.Errorf("address %d: %w", i, err)
		}
		n.addrs = append(n.addrs, a)
	}
	if n.bus, err = newBus(); err != nil {
		return nil, err
	}
	if n.mirror, err = newMirror(n); err != nil {
		return nil, err
	}
	n.book = peerbook{n.mirror.book, n.mirror}
	n.mux = newMux(n)
	n.values = newValues(n)
	n.host = &lentHost{n: n, network: &lentNetwork{n}}
	if req.GetLeaves() {
		n.leaves = &Leaves{n}
	}
	if req.GetRouting() {
		n.router = &router{n}
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

// flowWindow is how many bytes of the host's answers may be on their way.
const flowWindow = 1 << 20

// connect dials the callback channel and makes a gRPC connection of it. There
// is no second one: when it ends, the node is over.
func (n *Node) connect(ctx context.Context, stream uint64) error {
	callback, err := n.dial(ctx, stream, nil)
	if err != nil {
		return err
	}
	var taken atomic.Bool
	n.grpc, err = grpc.NewClient("passthrough:///host", append(pb.TraceCalls(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if taken.Swap(true) {
				return nil, errors.New("the connection to the host is over")
			}
			return callbackConn{callback}, nil
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		// Fixed, so that gRPC does not measure the connection with a ping for each message.
		grpc.WithStaticStreamWindowSize(flowWindow), grpc.WithStaticConnWindowSize(flowWindow),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
	)...)
	if err != nil {
		callback.Reset()
		<-callback.Done()
		return errs.E(errs.Other, errs.Plugin, "borrow from the host", "", err)
	}
	n.callback, n.client = callback, pb.NewHostClient(n.grpc)
	return nil
}

// dial connects one byte channel, whose bytes may come in memory if there are loans.
func (n *Node) dial(ctx context.Context, stream uint64, loans *channel.Loans) (*channel.Conn, error) {
	return channel.Dial(ctx, n.socket, n.token, stream, channel.Options{Loans: loans, Log: n.log})
}

// Host is the libp2p host. Its Close does nothing to anybody.
func (n *Node) Host() host.Host { return n.host }

// Blockstore is the host's store, for reading, see [Store].
func (n *Node) Blockstore() blockstore.Blockstore { return &Store{n} }

// Leaves is the host's store of leaves, nil if it lends none.
func (n *Node) Leaves() *Leaves { return n.leaves }

// Router is the host's content routing, nil if it lends none.
func (n *Node) Router() routing.ContentRouting {
	if n.router == nil {
		return nil
	}
	return n.router
}

// Results dials the channel on which the exchange's results go to the host. It
// is called once; the channel is the caller's.
func (n *Node) Results(ctx context.Context) (*channel.Conn, error) {
	if n.Err() != nil {
		return nil, n.gone("connect results to the host")
	}
	return n.dial(ctx, n.results, nil)
}

// Done is closed when the host is gone, or Close was called.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err says why the node is over: of kind errs.Crashed if the host is gone, and
// errs.Closed after Close, whichever was first. It is nil until then.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err == nil {
		return nil
	}
	return n.err
}

// Close ends everything that is borrowed: the streams that are open are reset,
// subscriptions of the event bus end, calls under way return. It waits until
// handlers and notifiees have returned and all goroutines have ended. It returns
// nil, also when called again.
func (n *Node) Close() error {
	n.end(errs.Closed, errs.Unknown, nil)
	open := n.openStreams()
	for _, s := range open {
		s.Reset()
	}
	n.bus.close()
	n.goers.Wait()
	for _, s := range open {
		<-s.ch.Done()
	}
	n.unshare()
	n.book.Close()
	return nil
}

// end makes the node over; the first reason stays. Calls fail from then on, and
// those under way too.
func (n *Node) end(kind errs.Kind, fault errs.Fault, cause error) {
	n.mu.Lock()
	first := n.err == nil
	if first {
		n.err = errs.E(kind, fault, "borrow from the host", "", cause)
	}
	n.mu.Unlock()
	if first {
		n.cancel()
		n.grpc.Close()
		close(n.done)
	}
}

// spawn starts a goroutine that Close waits for, false if the node is over.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return false
	}
	n.goers.Go(f)
	return true
}

// watch notices the end of the callback channel, and closes it when the node is
// over.
func (n *Node) watch() {
	select {
	case <-n.callback.Done():
		_, cause := n.callback.Read(make([]byte, 1))
		n.end(errs.Crashed, errs.Ours, cause)
	case <-n.ctx.Done():
	}
	n.callback.Close()
	<-n.callback.Done()
}

// failed is what the error of a call means.
func (n *Node) failed(ctx context.Context, err error, op string) error {
	if ctx.Err() == nil && n.Err() != nil {
		return n.gone(op)
	}
	return pb.FromStatus(ctx, err, errs.Ours, op)
}

// gone is the error of whatever is asked of a node that is over.
func (n *Node) gone(op string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return errs.E(n.err.Kind, n.err.Fault, op, "", n.err.Err)
}

// malformed is the error of an answer that makes no sense. It is logged by
// nobody: the caller is told.
func malformed(op, format string, args ...any) error {
	return errs.Errorf(errs.Malformed, errs.Ours, op, "the host's answer: "+format, args...)
}

// callbackConn is the callback channel as gRPC wants it.
type callbackConn struct{ *channel.Conn }

func (callbackConn) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "plugin", Net: "unix"} }
func (callbackConn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "host", Net: "unix"} }
