package plugin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/internal/subprocess"
	"github.com/codexchange/codexchange/plugin/internal/supervise"
	"github.com/codexchange/codexchange/plugin/pb"
	"github.com/codexchange/codexchange/plugin/remote"
)

// here is a plugin that runs in this process: everything but the process.
type here struct {
	server  *remote.Server
	grpc    *grpc.Server
	conn    *grpc.ClientConn
	serving sync.WaitGroup
	end     sync.Once
	done    chan struct{}
}

func startHere(new New, log *slog.Logger) (supervise.Process, error) {
	listener := bufconn.Listen(64 << 10)
	h := &here{
		server: newServer(remote.ServerOptions{Log: log}, new),
		grpc:   grpc.NewServer(subprocess.ServerOptions()...),
		done:   make(chan struct{}),
	}
	conn, err := grpc.NewClient("passthrough:plugin", append(subprocess.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
	)...)
	if err != nil {
		return nil, err
	}
	h.conn = conn
	pb.RegisterExchangeServer(h.grpc, h.server)
	h.serving.Go(func() { _ = h.grpc.Serve(listener) })
	go func() {
		select {
		case <-h.server.Done():
			h.grpc.GracefulStop() // the answer to Stop is still under way; Kill cuts it off
			h.Kill()
		case <-h.done:
		}
	}()
	return h, nil
}

func (h *here) Conn() grpc.ClientConnInterface { return h.conn }
func (h *here) Done() <-chan struct{}          { return h.done }

func (h *here) Err() error {
	return errs.E(errs.Crashed, errs.Plugin, "run exchange", "in this process", errors.New("ended"))
}

// Kill ends what would end with the process, and waits.
func (h *here) Kill() {
	h.end.Do(func() {
		_ = h.conn.Close()
		h.grpc.Stop()
		h.serving.Wait()
		_ = h.server.Close()
		close(h.done)
	})
	<-h.done
}
