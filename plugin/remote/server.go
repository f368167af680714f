package remote

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

// ServerOptions say what is served.
type ServerOptions struct {
	// Open makes the exchange that the host asks for. It is called at most once.
	// Its context ends with the call; what lives longer needs another.
	Open func(context.Context, *pb.StartRequest) (*Instance, error)
	// Version is what the plugin says of itself.
	Version string
	// Usage is what the process uses: CPU time since its start, and bytes of
	// memory. nil if the process is the host's.
	Usage func() (cpu time.Duration, memory uint64)
	// LogLevel is told the lowest level of a log that the host shows, each time that
	// it pings. nil: nobody is told.
	LogLevel func(slog.Level)
	// Log is told of what the exchange and the host do wrong. nil: slog.Default().
	Log *slog.Logger
}

// An Instance is an exchange, and what belongs to it. The Server owns it.
//
// Whatever the exchange has of the following is offered to the host:
// dataset.LeafExchange, and
//
//	Inspect() (Stat, error)
//	Wantlist() []wire.Address    // or GetWantlist() []cid.Cid
//	WantlistForPeer(peer.ID) []cid.Cid
//	PeerLedger(peer.ID) (Ledger, bool)
//
// Without SessionExchange, requests of a session are made of the exchange itself.
type Instance struct {
	Exchange boxo.Interface
	// Results is where commands are read and results written. It is closed when Run
	// ends.
	Results io.ReadWriteCloser
	// Outbound is where large payload of results goes; nil: all of it goes to
	// Results. It is not used any more when Close is called.
	Outbound *memory.Memory
	// Inbound is what streams have been lent of the memory that the host shares for
	// them; nil: none is shared.
	Inbound Loans
	// Read reads a block that the host's store has. nil: blocks that the exchange
	// is told of have no bytes.
	Read func(context.Context, cid.Cid) (blocks.Block, error)
	// Close is called after the exchange has been closed. It may be nil.
	Close func() error
}

// Loans are what a plugin has of memory that is the host's; see channel.Loans. Methods
// may be called from any goroutine, but Take from one only.
type Loans interface {
	Memory() *memory.Memory
	// Ready has room for one: there is something to take that was not there before.
	Ready() <-chan struct{}
	// Waiting is how many regions Take would give.
	Waiting() int
	// Take appends the offsets of those that were given back since.
	Take(to []uint64) []uint64
}

type (
	inspecter    interface{ Inspect() (Stat, error) }
	addressLists interface{ Wantlist() []wire.Address }
	cidLists     interface{ GetWantlist() []cid.Cid }
	peerLists    interface{ WantlistForPeer(peer.ID) []cid.Cid }
	ledgers      interface {
		PeerLedger(peer.ID) (Ledger, bool)
	}
)

// A Server is service Exchange over one exchange. Register it with a gRPC server;
// its owner closes it.
type Server struct {
	pb.UnimplementedExchangeServer
	opt    ServerOptions
	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	done   chan struct{} // closed when Close has ended

	mu       sync.Mutex
	started  bool
	instance *Instance // nil before Start has ended
	serving  *serving  // of the one Run, nil before
	ending   bool      // nothing is started any more

	wg   sync.WaitGroup // Start and Run
	once sync.Once
	err  error // of Close
}

// NewServer makes a Server.
func NewServer(o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{opt: o, done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Start implements pb.ExchangeServer.
func (s *Server) Start(ctx context.Context, req *pb.StartRequest) (*pb.StartReply, error) {
	reply, err := s.start(ctx, req)
	return reply, pb.Status(err)
}

func (s *Server) start(ctx context.Context, req *pb.StartRequest) (*pb.StartReply, error) {
	const op = "start exchange"
	s.mu.Lock()
	switch {
	case s.ending:
		s.mu.Unlock()
		return nil, errs.E(errs.Closed, errs.Caller, op, "", nil)
	case s.started:
		s.mu.Unlock()
		return nil, errs.E(errs.Invalid, errs.Caller, op, "", errors.New("it has been started before"))
	}
	s.started = true
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	i, err := s.opt.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	if i == nil || i.Exchange == nil || i.Results == nil {
		return nil, errs.E(errs.Invalid, errs.Plugin, op, "", errors.New("the plugin opened no exchange, or one without results"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, errors.Join(errs.E(errs.Closed, errs.Caller, op, "", nil), i.close())
	}
	s.instance = i
	return i.capabilities(s.opt.Version), nil
}

func (i *Instance) capabilities(version string) *pb.StartReply {
	r := &pb.StartReply{Version: version, Inbound: i.Inbound != nil, Outbound: i.Outbound != nil}
	_, r.Leaves = i.Exchange.(dataset.LeafExchange)
	_, r.Stat = i.Exchange.(inspecter)
	_, r.Wantlist = i.Exchange.(addressLists)
	if !r.Wantlist {
		_, r.Wantlist = i.Exchange.(cidLists)
	}
	_, r.PeerWantlist = i.Exchange.(peerLists)
	_, r.Ledger = i.Exchange.(ledgers)
	return r
}

// close closes everything that Run has not.
func (i *Instance) close() error {
	err := i.Exchange.Close()
	// It has been closed if there was a Run; a second time does nothing.
	_ = i.Results.Close()
	if i.Close != nil {
		err = errors.Join(err, i.Close())
	}
	return err
}

// opened is the instance, once Start has ended.
func (s *Server) opened(op string) (*Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ending:
		return nil, errs.E(errs.Closed, errs.Caller, op, "", nil)
	case s.instance == nil:
		return nil, errs.E(errs.Invalid, errs.Caller, op, "", errors.New("the exchange has not been started"))
	}
	return s.instance, nil
}

// Run implements pb.ExchangeServer.
func (s *Server) Run(ctx context.Context, _ *pb.RunRequest) (*pb.RunReply, error) {
	const op = "run exchange"
	i, err := s.opened(op)
	if err != nil {
		return nil, pb.Status(err)
	}
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		return nil, pb.Status(errs.E(errs.Closed, errs.Caller, op, "", nil))
	}
	if s.serving != nil {
		s.mu.Unlock()
		return nil, pb.Status(errs.E(errs.Invalid, errs.Caller, op, "", errors.New("it has been run before")))
	}
	v := newServing(s, i, ctx)
	s.serving = v
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	return &pb.RunReply{}, pb.Status(v.run())
}

// Stop implements pb.ExchangeServer: it is Close.
func (s *Server) Stop(context.Context, *pb.StopRequest) (*pb.StopReply, error) {
	return &pb.StopReply{Error: pb.FromError(s.Close())}, nil
}

// Close ends Run, without telling the host how its requests end, closes the
// exchange, and then the Instance. Everything has ended when it returns. It may
// be called more than once; later calls wait for the first and return the same.
func (s *Server) Close() error {
	s.once.Do(func() {
		defer close(s.done)
		s.mu.Lock()
		s.ending = true
		i, v := s.instance, s.serving
		s.mu.Unlock()
		s.cancel()
		if v != nil {
			v.cancel(nil) // before the exchange ends the requests
		}
		if i != nil {
			// A request that does not heed its context ends when the exchange does.
			s.err = i.Exchange.Close()
		}
		s.wg.Wait()
		if i != nil {
			_ = i.Results.Close() // as in Instance.close
			if i.Close != nil {
				s.err = errors.Join(s.err, i.Close())
			}
		}
	})
	return s.err
}

// Done is closed when Close, or Stop, has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Ping implements pb.ExchangeServer.
func (s *Server) Ping(_ context.Context, req *pb.PingRequest) (*pb.PingReply, error) {
	if req.LogLevel != nil && s.opt.LogLevel != nil {
		s.opt.LogLevel(slog.Level(req.GetLogLevel()))
	}
	return &pb.PingReply{}, nil
}

// unable is the answer to a question that the exchange has no method for.
func unable(op string) error {
	return pb.Status(errs.E(errs.Invalid, errs.Plugin, op, "", errors.New("the exchange cannot tell")))
}

// Stat implements pb.ExchangeServer.
func (s *Server) Stat(context.Context, *pb.StatRequest) (*pb.StatReply, error) {
	const op = "inspect exchange"
	i, err := s.opened(op)
	if err != nil {
		return nil, pb.Status(err)
	}
	x, ok := i.Exchange.(inspecter)
	if !ok {
		return nil, unable(op)
	}
	stat, err := x.Inspect()
	if err != nil {
		return nil, pb.Status(err)
	}
	if s.opt.Usage != nil {
		stat.CPU, stat.Memory = s.opt.Usage()
	}
	return stat.proto(), nil
}

// Ledger implements pb.ExchangeServer.
func (s *Server) Ledger(_ context.Context, req *pb.LedgerRequest) (*pb.LedgerReply, error) {
	const op = "get ledger"
	i, err := s.opened(op)
	if err != nil {
		return nil, pb.Status(err)
	}
	x, ok := i.Exchange.(ledgers)
	if !ok {
		return nil, unable(op)
	}
	l, known := x.PeerLedger(peer.ID(req.GetPeer()))
	if !known {
		return &pb.LedgerReply{}, nil
	}
	return l.proto(), nil
}

// listed is how many wants one WantlistReply has.
const listed = 4096

// Wantlist implements pb.ExchangeServer.
func (s *Server) Wantlist(req *pb.WantlistRequest, stream grpc.ServerStreamingServer[pb.WantlistReply]) error {
	const op = "get want list"
	i, err := s.opened(op)
	if err != nil {
		return pb.Status(err)
	}
	var list []wire.Address
	byCID := func(keys []cid.Cid) {
		for _, k := range keys {
			list = append(list, wire.Block(k))
		}
	}
	if p := peer.ID(req.GetPeer()); p != "" {
		x, ok := i.Exchange.(peerLists)
		if !ok {
			return unable(op)
		}
		byCID(x.WantlistForPeer(p))
	} else {
		switch x := i.Exchange.(type) {
		case addressLists:
			list = x.Wantlist()
		case cidLists:
			byCID(x.GetWantlist())
		default:
			return unable(op)
		}
	}
	for len(list) > 0 {
		n := min(len(list), listed)
		m := &pb.WantlistReply{Wants: make([]*pb.Address, n)}
		for k, a := range list[:n] {
			m.Wants[k] = &pb.Address{Cid: a.Root.Bytes(), Leaf: a.Leaf, Index: a.Index}
		}
		list = list[n:]
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}
