package lend

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// patience is how long a test waits for what must come.
	patience = 20 * time.Second
	echo     = "/echo/1"
)

// newHost makes a host on a free port of 127.0.0.1 that ends with the test.
func newHost(t testing.TB) host.Host {
	t.Helper()
	cm, err := connmgr.NewConnManager(100, 400)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.ConnectionManager(cm))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func connect(t testing.TB, from, to host.Host) {
	t.Helper()
	if err := from.Connect(t.Context(), peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// newLender lends h and an empty store, as far as the options do not say otherwise.
func newLender(t testing.TB, h host.Host, o Options) *Lender {
	t.Helper()
	o.Host = h
	if o.Name == "" {
		o.Name = "test"
	}
	if o.Blocks == nil {
		o.Blocks = &store{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, "the Lender closes", func() { l.Close() }) })
	return l
}

// A plugin is a scripted one: service Host as a plugin calls it.
type plugin struct {
	pb.HostClient
	t        testing.TB
	lease    *Lease
	start    *pb.StartRequest
	cc       *grpc.ClientConn
	counters channel.Counters
	events   chan *pb.Event // closed when the call has ended
	reading  sync.WaitGroup
	cancel   context.CancelFunc
}

// newPlugin opens a lease and starts a plugin on it, which has not asked for
// events.
func newPlugin(t testing.TB, l *Lender) *plugin {
	t.Helper()
	dir, err := os.MkdirTemp("", "ld")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lease, err := l.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := &plugin{t: t, lease: lease, start: new(pb.StartRequest), events: make(chan *pb.Event, 1024)}
	lease.Fill(p.start)
	c := p.dial(p.start.Callback)
	p.cc, err = grpc.NewClient("passthrough:///host", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return &byteConn{Conn: c, addr: &net.UnixAddr{Net: "unix"}}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	p.HostClient = pb.NewHostClient(p.cc)
	t.Cleanup(func() { p.end(); c.Reset() })
	return p
}

// newPeerPlugin is newPlugin, and reads events up to and with synced.
func newPeerPlugin(t testing.TB, l *Lender) (*plugin, []*pb.PeerState) {
	t.Helper()
	p := newPlugin(t, l)
	p.read()
	var states []*pb.PeerState
	for {
		ev := p.event("until synced")
		if ev.GetSynced() != nil {
			return p, states
		}
		states = append(states, ev.GetPeer())
	}
}

// read begins to read events.
func (p *plugin) read() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	stream, err := p.Events(ctx, &pb.EventsRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	p.reading.Go(func() {
		defer close(p.events)
		for {
			ev, err := stream.Recv()
			if err != nil {
				return
			}
			p.events <- ev
		}
	})
}

// end closes the lease, and the plugin.
func (p *plugin) end() {
	p.t.Helper()
	within(p.t, "the lease closes", func() { p.lease.Close() })
	p.cc.Close()
	if p.cancel != nil {
		p.cancel()
	}
	p.reading.Wait()
}

func (p *plugin) dial(stream uint64) *channel.Conn {
	p.t.Helper()
	c, err := channel.Dial(p.t.Context(), p.start.Socket, channel.Token(p.start.Token), stream, channel.Options{Counters: &p.counters})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

func (p *plugin) event(what string) *pb.Event {
	p.t.Helper()
	select {
	case ev, ok := <-p.events:
		if !ok {
			p.t.Fatalf("%s: the events have ended", what)
		}
		return ev
	case <-time.After(patience):
		p.t.Fatalf("%s: no event after %v", what, patience)
	}
	return nil
}

// state reads events until one tells what is wanted of a peer.
func (p *plugin) state(what string, h host.Host, want func(*pb.PeerState) bool) *pb.PeerState {
	p.t.Helper()
	for {
		if s := p.event(what).GetPeer(); s != nil && string(s.Peer) == string(h.ID()) && want(s) {
			return s
		}
	}
}

// inbound reads events until a stream is told of.
func (p *plugin) inbound(what string) *pb.Inbound {
	p.t.Helper()
	for {
		if in := p.event(what).GetInbound(); in != nil {
			return in
		}
	}
}

func (p *plugin) handle(id string) {
	p.t.Helper()
	if _, err := p.Handle(p.t.Context(), &pb.HandleRequest{Protocol: id}); err != nil {
		p.t.Fatal(err)
	}
}

// open opens a stream to a peer that is connected.
func (p *plugin) open(h host.Host, id string) *channel.Conn {
	p.t.Helper()
	reply, err := p.OpenStream(p.t.Context(), &pb.OpenStreamRequest{Peer: []byte(h.ID()), Protocols: []string{id}, NoDial: true})
	if err = errors.Join(err, reply.GetError().Err()); err != nil {
		p.t.Fatal(err)
	}
	if reply.Protocol != id {
		p.t.Fatalf("the stream's protocol is %q, want %q", reply.Protocol, id)
	}
	return p.dial(reply.Stream)
}

// openTo opens a stream from a peer, and says something, so that it comes. It does
// not wait for the consent of the other side.
func openTo(t testing.TB, from, to host.Host, hello string) network.Stream {
	t.Helper()
	from.Peerstore().AddProtocols(to.ID(), echo)
	s, err := from.NewStream(t.Context(), to.ID(), echo)
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(s, hello); err != nil {
		t.Fatal(err)
	}
	return s
}

// A store is blocks in memory. err, if it is set, is what it says of every block;
// while hang is set it waits for the context instead.
type store struct {
	mu     sync.Mutex
	blocks map[cid.Cid][]byte
	err    error
	hang   chan struct{} // closed by the first that hangs
	once   sync.Once
}

func (s *store) add(data []byte) cid.Cid {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blocks == nil {
		s.blocks = make(map[cid.Cid][]byte)
	}
	c := cidOf(data)
	s.blocks[c] = data
	return c
}

func (s *store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hang != nil {
		s.once.Do(func() { close(s.hang) })
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.err != nil {
		return nil, s.err
	}
	data, ok := s.blocks[c]
	if !ok {
		return nil, ipld.ErrNotFound{Cid: c}
	}
	return blocks.NewBlockWithCid(data, c)
}

func (s *store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	b, err := s.Get(ctx, c)
	if err != nil {
		return 0, err
	}
	return len(b.RawData()), nil
}

// leaves is one tree, of as many leaves as it has CIDs.
type leaves struct {
	root cid.Cid
	cids []cid.Cid
}

func (l leaves) Leaf(_ context.Context, root cid.Cid, index uint64) (cid.Cid, []byte, error) {
	if root != l.root || index >= uint64(len(l.cids)) {
		return cid.Undef, nil, errs.E(errs.NotFound, errs.Unknown, "leaf", fmt.Sprint(index), nil)
	}
	return l.cids[index], fmt.Appendf(nil, "proof %d", index), nil
}

// router finds the same peers for every CID, and then waits for the context if
// it is told to.
type router struct {
	peers    []peer.AddrInfo
	wait     bool
	err      error
	provided chan cid.Cid
}

func (r *router) FindProvidersAsync(ctx context.Context, _ cid.Cid, _ int) <-chan peer.AddrInfo {
	ch := make(chan peer.AddrInfo)
	go func() {
		defer close(ch)
		for _, p := range r.peers {
			select {
			case ch <- p:
			case <-ctx.Done():
			}
		}
		if r.wait {
			<-ctx.Done()
		}
	}()
	return ch
}

func (r *router) Provide(_ context.Context, c cid.Cid, _ bool) error {
	if r.err == nil {
		r.provided <- c
	}
	return r.err
}

func random(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	seed[0], seed[1] = byte(n), byte(n>>8)
	rand.NewChaCha8(seed).Read(b)
	return b
}

func cidOf(b []byte) cid.Cid {
	sum := sha256.Sum256(b)
	return cid.NewCidV1(cid.Raw, append([]byte{0x12, 0x20}, sum[:]...))
}

// within fails the test if f does not return in good time.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: still waiting after %v", what, patience)
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// resetCode is the code with which libp2p or package channel says that a stream
// was reset by the other side.
func resetCode(t testing.TB, err error) uint32 {
	t.Helper()
	var s *network.StreamError
	var c *channel.ResetError
	switch {
	case errors.As(err, &s) && s.Remote:
		return uint32(s.ErrorCode)
	case errors.As(err, &c) && c.Remote:
		return c.Code
	}
	t.Fatalf("error is %v, want a reset by the other side", err)
	return 0
}
