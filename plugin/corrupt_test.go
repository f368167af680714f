package plugin

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/borrow"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/internal/subprocess"
	"github.com/codexchange/codexchange/plugin/internal/supervise"
	"github.com/codexchange/codexchange/plugin/pb"
)

// corruptName is the plugin that breaks the contract: what it sends as results
// are no frames.
const corruptName = "corrupt"

// serveCorrupt is its main.
func serveCorrupt() {
	subprocess.Serve(subprocess.ServeConfig{Register: func(s *grpc.Server) { pb.RegisterExchangeServer(s, &corrupt{}) }})
}

type corrupt struct {
	pb.UnimplementedExchangeServer
	node    *borrow.Node
	results *channel.Conn
}

func (c *corrupt) Start(ctx context.Context, req *pb.StartRequest) (_ *pb.StartReply, err error) {
	if c.node, err = borrow.Open(ctx, req, borrow.Options{Log: subprocess.Log()}); err != nil {
		return nil, pb.Status(err)
	}
	if c.results, err = c.node.Results(ctx); err != nil {
		return nil, pb.Status(err)
	}
	return &pb.StartReply{}, nil
}

// Run answers the first request with garbage.
func (c *corrupt) Run(ctx context.Context, _ *pb.RunRequest) (*pb.RunReply, error) {
	if _, err := c.results.Read(make([]byte, 1)); err != nil {
		return nil, err
	}
	if _, err := c.results.Write([]byte("\x07\x00\x00\x00garbage, and more of it")); err != nil {
		return nil, err
	}
	<-ctx.Done()
	return &pb.RunReply{}, nil
}

func (*corrupt) Ping(context.Context, *pb.PingRequest) (*pb.PingReply, error) {
	return &pb.PingReply{}, nil
}
func (*corrupt) Stop(context.Context, *pb.StopRequest) (*pb.StopReply, error) {
	return &pb.StopReply{}, nil
}

// A process that sends no frames is taken for a crash that is the plugin's fault.
// Nobody is given its garbage: the request is asked again of the next process, and
// ends when there is none any more.
func TestCorruptPlugin(t *testing.T) {
	p, _ := load(t, Config{Name: corruptName, Policy: Policy{Backoff: time.Millisecond, MaxBackoff: time.Millisecond}})
	sum, err := multihash.Sum([]byte("x"), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := p.Exchange().GetBlock(ctx, cid.NewCidV1(cid.Raw, sum))
	if !errors.Is(err, errs.Malformed) {
		t.Errorf("get block: got %v, %v, want %v", b, err, errs.Malformed)
	}
	s := p.Status()
	var last *errs.Error
	if s.State != supervise.GivenUp || s.Restarts != 4 || !errors.As(s.LastErr, &last) || last.Fault != errs.Plugin {
		t.Errorf("status is %+v, want it given up after 4 restarts by the plugin's fault", s)
	}
}
