package supervise

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/plugin/internal/subprocess"
	"github.com/codexchange/codexchange/plugin/pb"
)

// The test binary is also a plugin.
func TestMain(m *testing.M) {
	if subprocess.PluginName() != "" {
		subprocess.Serve(subprocess.ServeConfig{
			Register: func(s *grpc.Server) { pb.RegisterExchangeServer(s, &exchange{hang: make(chan struct{})}) },
		})
	}
	subprocess.Ready()
	goleak.VerifyTestMain(m)
}

// exchange answers until it is started; then no more.
type exchange struct {
	pb.UnimplementedExchangeServer
	hang chan struct{}
}

func (x *exchange) Ping(context.Context, *pb.PingRequest) (*pb.PingReply, error) {
	select {
	case <-x.hang:
		select {}
	default:
		return &pb.PingReply{}, nil
	}
}

func (x *exchange) Start(context.Context, *pb.StartRequest) (*pb.StartReply, error) {
	close(x.hang)
	return &pb.StartReply{}, nil
}

func (x *exchange) Stop(context.Context, *pb.StopRequest) (*pb.StopReply, error) {
	return &pb.StopReply{}, nil
}

// A real process that hangs is replaced by another, and Close ends that one in
// good order.
func TestProcess(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	pids := make(chan int, 2)
	n := 0
	var last *subprocess.Process
	sup, err := New(t.Context(), Config{
		Name: "x", NewDir: subprocess.NewDir, Log: log,
		Policy: Policy{Ping: 50 * time.Millisecond, Hang: 500 * time.Millisecond},
		Launch: func(ctx context.Context, dir string) (Process, error) {
			p, err := subprocess.Start(ctx, subprocess.Config{Name: "x", Dir: dir, Log: log})
			if err != nil {
				return nil, err
			}
			last = p
			return p, nil
		},
		Serve: func(ctx context.Context, _ string, p Process, up func()) error {
			up()
			if n++; n == 1 {
				if _, err := pb.NewExchangeClient(p.Conn()).Start(ctx, &pb.StartRequest{}); err != nil {
					return err
				}
			}
			pids <- p.(*subprocess.Process).Pid()
			<-ctx.Done()
			return ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	first, second := <-pids, <-pids
	st := sup.Status()
	if first == second || st.Pid != second || st.Crashes != 1 || !strings.Contains(fmt.Sprint(st.LastErr), "it hangs") {
		t.Errorf("after process %d comes %d with status %+v, want another after a hang", first, second, st)
	}
	sup.Close(t.Context())
	if err := last.Err(); err == nil || !strings.Contains(err.Error(), "exit status 0") {
		t.Errorf("the last process: %v, want exit status 0", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil {
		t.Error(err)
	} else {
		for _, e := range left {
			if b, err := os.ReadFile(os.TempDir() + "/" + e.Name() + "/lock"); err == nil && strings.TrimSpace(string(b)) == fmt.Sprint(os.Getpid()) {
				t.Errorf("directory %s is left", e.Name())
			}
		}
	}
}
