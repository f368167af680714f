package lend

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/spans"
	"github.com/codexchange/codexchange/plugin/pb"
)

// Limits of single calls, those of the contract among them.
const (
	maxSizes     = 4096
	maxLeaves    = 1024
	maxPart      = 256 << 10 // of a block, bytes
	maxRequested = 64        // protocols of which a stream is to speak one
	maxTag       = 256       // bytes
	maxReason    = 256       // bytes
	leafCost     = 32        // bytes of a leaf in a reply, beside its cid and proof
)

// server is service Host for one lease. What a method returns as an error is
// made a gRPC status by the interceptors; where the reply has an error, that of
// what was asked for goes there.
type server struct {
	pb.UnimplementedHostServer
	l  *Lender
	le *Lease
}

func (s *server) Events(_ *pb.EventsRequest, ss grpc.ServerStreamingServer[pb.Event]) error {
	f := newFeed(s.l, s.le)
	s.l.mu.Lock()
	closed, told := s.le.closed, s.le.told
	s.le.told = true
	if !closed && !told {
		s.l.feed = f
	}
	s.l.mu.Unlock()
	switch {
	case closed:
		return s.le.over()
	case told:
		return errs.E(errs.Invalid, errs.Plugin, "read events", "", errors.New("they are read once, and have been"))
	}
	defer func() {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		if s.l.feed == f {
			s.l.feed = nil
		}
	}()
	return f.run(ss.Context(), ss.Send)
}

func (s *server) Handle(_ context.Context, r *pb.HandleRequest) (*pb.HandleReply, error) {
	id, err := parseProtocol("handle", r.GetProtocol())
	if err != nil {
		return nil, err
	}
	return &pb.HandleReply{}, s.l.handle(s.le, id)
}

func (s *server) Unhandle(_ context.Context, r *pb.UnhandleRequest) (*pb.UnhandleReply, error) {
	id, err := parseProtocol("unhandle", r.GetProtocol())
	if err != nil {
		return nil, err
	}
	s.l.unhandle(s.le, id)
	return &pb.UnhandleReply{}, nil
}

func (s *server) OpenStream(ctx context.Context, r *pb.OpenStreamRequest) (*pb.OpenStreamReply, error) {
	const op = "open stream to"
	p, err := s.other(op, r.GetPeer())
	if err != nil {
		return &pb.OpenStreamReply{Error: pb.FromError(err)}, nil
	}
	ctx, span := start(ctx, "plugin.Host.OpenStream")
	span.Peer(p)
	reply, err := s.open(ctx, p, r)
	span.End(err)
	if err != nil {
		return &pb.OpenStreamReply{Error: pb.FromError(unreachable(ctx, op, p, err))}, nil
	}
	return reply, nil
}

// start makes a call a step of the trace that the plugin is working on, if it is one.
func start(ctx context.Context, name string) (context.Context, spans.Span) {
	return spans.Start(pb.TraceOfCall(ctx), name)
}

// open opens a stream to p and expects the plugin to dial it.
func (s *server) open(ctx context.Context, p peer.ID, r *pb.OpenStreamRequest) (*pb.OpenStreamReply, error) {
	op := fmt.Sprintf("open stream to %v", p)
	if n := len(r.GetProtocols()); n == 0 || n > maxRequested {
		return nil, errs.Errorf(errs.Invalid, errs.Plugin, op, "%d protocols, want 1 to %d", n, maxRequested)
	}
	ids := make([]protocol.ID, len(r.GetProtocols()))
	for i, id := range r.GetProtocols() {
		var err error
		if ids[i], err = parseProtocol(op, id); err != nil {
			return nil, err
		}
	}
	reason := s.l.service
	if given := r.GetReason(); given != "" {
		reason += ": " + given[:min(len(given), maxReason)]
	}
	if r.GetNoDial() {
		if s.l.opts.Host.Network().Connectedness(p) == network.NotConnected {
			return nil, network.ErrNoConn
		}
		ctx = network.WithNoDial(ctx, reason)
	}
	if r.GetAllowLimited() {
		ctx = network.WithAllowLimitedConn(ctx, reason)
	}
	if err := s.le.admit(); err != nil {
		return nil, err
	}
	st, err := s.l.opts.Host.NewStream(ctx, p, ids...)
	if err != nil {
		s.le.leave()
		return nil, err
	}
	if err := st.Scope().SetService(s.l.service); err != nil {
		_ = st.ResetWithError(network.StreamResourceLimitExceeded)
		s.le.leave()
		return nil, err
	}
	expected, number, err := s.le.expect()
	if err != nil { // the lease ends
		_ = st.ResetWithError(network.StreamShutdown)
		s.le.leave()
		return nil, err
	}
	go func() {
		if !s.le.join(st, expected) {
			_ = st.ResetWithError(network.StreamShutdown)
		}
	}()
	return &pb.OpenStreamReply{Stream: number, Protocol: string(st.Protocol()), Connection: st.Conn().ID()}, nil
}

func (s *server) Connect(ctx context.Context, r *pb.ConnectRequest) (*pb.ConnectReply, error) {
	return &pb.ConnectReply{Error: pb.FromError(s.connect(ctx, r))}, nil
}

func (s *server) connect(ctx context.Context, r *pb.ConnectRequest) error {
	const op = "connect to"
	p, err := s.other(op, r.GetPeer())
	if err != nil {
		return err
	}
	if n := len(r.GetAddrs()); n > maxAddrs {
		return errs.Errorf(errs.TooLarge, errs.Plugin, fmt.Sprintf("%s %v", op, p), "%d addresses, want at most %d", n, maxAddrs)
	}
	info := peer.AddrInfo{ID: p}
	for i, b := range r.GetAddrs() {
		a, err := multiaddr.NewMultiaddrBytes(b)
		if err != nil {
			return errs.Errorf(errs.Invalid, errs.Plugin, fmt.Sprintf("%s %v", op, p), "address %d, %s: %s", i, short(b), strings.ToValidUTF8(err.Error(), "?"))
		}
		info.Addrs = append(info.Addrs, a)
	}
	ctx, span := start(ctx, "plugin.Host.Connect")
	span.Peer(p)
	err = s.l.opts.Host.Connect(ctx, info)
	span.End(err)
	if err != nil {
		return unreachable(ctx, op, p, err)
	}
	s.l.look(p)
	return nil
}

func (s *server) Value(_ context.Context, r *pb.ValueRequest) (*pb.ValueReply, error) {
	return &pb.ValueReply{}, s.le.values.apply(r.GetValues())
}

func (s *server) Sizes(ctx context.Context, r *pb.SizesRequest) (*pb.SizesReply, error) {
	const op = "look up size of"
	if n := len(r.GetCids()); n > maxSizes {
		return nil, errs.Errorf(errs.TooLarge, errs.Plugin, "look up sizes", "%d cids, want at most %d", n, maxSizes)
	}
	cids := make([]cid.Cid, len(r.GetCids()))
	for i, b := range r.GetCids() {
		var err error
		if cids[i], err = parseCid(op, b); err != nil {
			return nil, err
		}
	}
	sizes := make([]int64, len(cids))
	for i, c := range cids {
		var err error
		if sizes[i], err = s.size(ctx, op, c); err != nil {
			return &pb.SizesReply{Error: pb.FromError(err)}, nil
		}
	}
	return &pb.SizesReply{Sizes: sizes}, nil
}

// size is the size of a block of the store, -1 if it is not there.
func (s *server) size(ctx context.Context, op string, c cid.Cid) (int64, error) {
	n, err := s.l.opts.Blocks.GetSize(ctx, c)
	switch {
	case err == nil:
		return int64(n), nil
	case notFound(err):
		return -1, nil
	}
	return 0, storeError(op, c, err)
}

func (s *server) Read(r *pb.ReadRequest, ss grpc.ServerStreamingServer[pb.ReadReply]) error {
	const op = "read block"
	c, err := parseCid(op, r.GetCid())
	if err != nil {
		return err
	}
	b, err := s.l.opts.Blocks.Get(ss.Context(), c)
	if err != nil {
		return ss.Send(&pb.ReadReply{Error: pb.FromError(storeError(op, c, err))})
	}
	data := b.RawData()
	for part := (&pb.ReadReply{Size: uint64(len(data))}); ; part = new(pb.ReadReply) {
		n := min(len(data), maxPart)
		part.Data, data = data[:n], data[n:]
		if err := ss.Send(part); err != nil || len(data) == 0 {
			return err
		}
	}
}

func (s *server) Leaves(ctx context.Context, r *pb.LeavesRequest) (*pb.LeavesReply, error) {
	const op = "look up leaves of"
	root, err := parseCid(op, r.GetRoot())
	if err != nil {
		return nil, err
	}
	if s.l.opts.Leaves == nil {
		return nil, errs.E(errs.Invalid, errs.Plugin, op, root.String(), errors.New("the host keeps no leaves"))
	}
	if n := len(r.GetIndices()); n > maxLeaves {
		return nil, errs.Errorf(errs.TooLarge, errs.Plugin, fmt.Sprintf("%s %v", op, root), "%d indices, want at most %d", n, maxLeaves)
	}
	reply := &pb.LeavesReply{Leaves: make([]*pb.Leaf, len(r.GetIndices()))}
	length := 0
	for i, index := range r.GetIndices() {
		leaf, err := s.leaf(ctx, root, index)
		if length += len(leaf.GetCid()) + len(leaf.GetProof()) + leafCost; err == nil && length > MaxReply {
			err = errs.Errorf(errs.TooLarge, errs.Plugin, fmt.Sprintf("%s %v", op, root), "%d leaves make a reply of more than %d bytes, ask for fewer", len(r.GetIndices()), MaxReply)
		}
		if err != nil {
			return &pb.LeavesReply{Error: pb.FromError(err)}, nil
		}
		reply.Leaves[i] = leaf
	}
	return reply, nil
}

func (s *server) leaf(ctx context.Context, root cid.Cid, index uint64) (*pb.Leaf, error) {
	op := fmt.Sprintf("look up leaf %d of", index)
	block, proof, err := s.l.opts.Leaves.Leaf(ctx, root, index)
	switch {
	case err == nil:
	case notFound(err):
		return &pb.Leaf{Size: -1}, nil
	default:
		return nil, storeError(op, root, err)
	}
	size, err := s.size(ctx, "look up size of", block)
	if err != nil {
		return nil, err
	}
	return &pb.Leaf{Cid: block.Bytes(), Proof: proof, Size: size}, nil
}

func (s *server) FindProviders(r *pb.FindProvidersRequest, ss grpc.ServerStreamingServer[pb.FindProvidersReply]) (err error) {
	const op = "find providers of"
	c, err := s.routed(op, r.GetCid())
	if err != nil {
		return err
	}
	ctx, span := start(ss.Context(), "plugin.Host.FindProviders")
	span.Cid(c)
	defer func() { span.End(err) }()
	ctx, cancel := context.WithCancel(ctx)
	found := s.l.opts.Router.FindProvidersAsync(ctx, c, int(min(r.GetMax(), math.MaxInt32)))
	defer func() {
		cancel()
		for range found { // until the router has seen it
		}
	}()
	left := r.GetMax()
	for info := range found {
		if info.ID == s.l.opts.Host.ID() || info.ID == "" {
			continue
		}
		reply := &pb.FindProvidersReply{Peer: []byte(info.ID)}
		for _, a := range first(info.Addrs, maxAddrs) {
			reply.Addrs = append(reply.Addrs, a.Bytes())
		}
		if err := ss.Send(reply); err != nil {
			return err
		}
		if left--; left == 0 {
			break
		}
	}
	return ss.Context().Err()
}

func (s *server) Provide(ctx context.Context, r *pb.ProvideRequest) (*pb.ProvideReply, error) {
	const op = "provide"
	c, err := s.routed(op, r.GetCid())
	if err != nil {
		return nil, err
	}
	if err := s.l.opts.Router.Provide(ctx, c, r.GetAnnounce()); err != nil {
		return &pb.ProvideReply{Error: pb.FromError(errs.E(errs.Other, errs.Unknown, op, c.String(), err))}, nil
	}
	return &pb.ProvideReply{}, nil
}

// routed is a CID for the router, if there is one.
func (s *server) routed(op string, b []byte) (cid.Cid, error) {
	c, err := parseCid(op, b)
	if err == nil && s.l.opts.Router == nil {
		err = errs.E(errs.Invalid, errs.Plugin, op, c.String(), errors.New("the host has no routing"))
	}
	return c, err
}

// other is the id of a peer that is not this node.
func (s *server) other(op string, b []byte) (peer.ID, error) {
	p, err := parsePeer(op, b)
	if err == nil && p == s.l.opts.Host.ID() {
		err = errs.E(errs.Invalid, errs.Plugin, op, p.String(), errors.New("that is this node"))
	}
	return p, err
}

func parsePeer(op string, b []byte) (peer.ID, error) {
	p, err := peer.IDFromBytes(b)
	if err != nil {
		return "", errs.E(errs.Invalid, errs.Plugin, op, "peer "+short(b), err)
	}
	return p, nil
}

func parseCid(op string, b []byte) (cid.Cid, error) {
	c, err := cid.Cast(b)
	if err != nil {
		return cid.Undef, errs.E(errs.Invalid, errs.Plugin, op, "cid "+short(b), err)
	}
	return c, nil
}

// short names bytes in an error.
func short(b []byte) string {
	const most = 32
	if len(b) > most {
		return fmt.Sprintf("%x... (%d bytes)", b[:most], len(b))
	}
	return fmt.Sprintf("%x (%d bytes)", b, len(b))
}

// unreachable says why a peer could not be reached, and whose fault it is. What
// has a kind already keeps it.
func unreachable(ctx context.Context, op string, p peer.ID, err error) error {
	var known *errs.Error
	if errors.As(err, &known) {
		return err
	}
	fault := errs.Peer
	switch end := ctx.Err(); {
	case errors.Is(err, network.ErrResourceLimitExceeded):
		fault = errs.Ours
	case end != nil:
		fault = errs.Unknown
		if !errors.Is(err, end) {
			err = fmt.Errorf("%w: %w", end, err)
		}
	}
	return errs.E(errs.Unreachable, fault, op, p.String(), err)
}
