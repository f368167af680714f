package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = time.Minute

// What the plugins of the tests say that they use.
const (
	testCPU    = 1500 * time.Millisecond
	testMemory = 3 << 20
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func makeBlocks(seed byte, n, size int) []blocks.Block {
	r := rand.NewChaCha8([32]byte{seed})
	list := make([]blocks.Block, n)
	for i := range list {
		data := make([]byte, size)
		r.Read(data)
		sum := sha256.Sum256(data)
		b, err := blocks.NewBlockWithCid(data, cid.NewCidV1(cid.Raw, append([]byte{0x12, 0x20}, sum[:]...)))
		if err != nil {
			panic(err)
		}
		list[i] = b
	}
	return list
}

func keysOf(list []blocks.Block) []cid.Cid {
	ks := make([]cid.Cid, len(list))
	for i, b := range list {
		ks[i] = b.Cid()
	}
	return ks
}

func newClient(t testing.TB, o ClientOptions) *Client {
	t.Helper()
	o.Log = quiet()
	c := NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// A connection is gRPC over memory to one service Exchange.
func connect(t testing.TB, x pb.ExchangeServer) (client pb.ExchangeClient, tear func()) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	pb.RegisterExchangeServer(s, x)
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	tear = sync.OnceFunc(func() {
		conn.Close()
		s.Stop()
		<-served
	})
	t.Cleanup(tear)
	return pb.NewExchangeClient(conn), tear
}

// socketPair is the two ends of a unix socket.
func socketPair(t testing.TB) (host, plugin net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if plugin, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if host, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); plugin.Close() })
	return host, plugin
}

// A plugin is one incarnation, served for real.
type plugin struct {
	server  *Server
	caps    *pb.StartReply
	rpc     pb.ExchangeClient
	results io.Closer // the plugin's end
	tear    func()
	ended   <-chan error // of Client.Run
	end     context.CancelFunc
}

// shared makes memory for results, as both sides have it.
func shared(t testing.TB, size int) (host, plugin *memory.Memory) {
	t.Helper()
	host, err := memory.MakeOutbound(size)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err == nil {
		t.Cleanup(host.Close)
		plugin, err = memory.OpenOutbound(host.Path(), uint64(size))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plugin.Close)
	return host, plugin
}

// serve runs a plugin with the exchange x for the client.
func serve(t testing.TB, c *Client, x boxo.Interface, read func(context.Context, cid.Cid) (blocks.Block, error)) *plugin {
	t.Helper()
	return serveShared(t, c, x, read, Shared{}, Instance{})
}

// serveShared is serve with memory, as the host and the plugin have it.
func serveShared(t testing.TB, c *Client, x boxo.Interface, read func(context.Context, cid.Cid) (blocks.Block, error), ours Shared, its Instance) *plugin {
	t.Helper()
	host, far := socketPair(t)
	p := &plugin{results: far}
	p.server = NewServer(ServerOptions{
		Open: func(context.Context, *pb.StartRequest) (*Instance, error) {
			its.Exchange, its.Results, its.Read = x, far, read
			return &its, nil
		},
		Version: "test",
		Usage:   func() (time.Duration, uint64) { return testCPU, testMemory },
		Log:     quiet(),
	})
	p.rpc, p.tear = connect(t, p.server)
	var err error
	if p.caps, err = p.rpc.Start(t.Context(), &pb.StartRequest{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.end = cancel
	p.ended = later(func() error { return c.Run(ctx, p.rpc, p.caps, host, ours, nil) })
	t.Cleanup(func() {
		p.kill()
		p.end()
	})
	return p
}

// kill ends a plugin as a crash does: its exchange says nothing any more.
func (p *plugin) kill() {
	p.tear()
	p.results.Close()
	p.server.Close()
}

// later runs f on a goroutine and returns the channel of its result.
func later(f func() error) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	return ch
}

func wait(t testing.TB, what string, ch <-chan error) error {
	t.Helper()
	select {
	case err := <-ch:
		return err
	case <-time.After(patience):
		t.Fatalf("%s: still waiting after %v", what, patience)
		return nil
	}
}

// take reads one block from a channel.
func take[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case x, ok := <-ch:
		if !ok {
			t.Fatalf("%s: the channel is closed", what)
		}
		return x
	case <-time.After(patience):
		t.Fatalf("%s: nothing after %v", what, patience)
		panic("unreachable")
	}
}

// collect reads a channel until it is closed; each block must be one of those
// missing, and is taken out.
func collect(t testing.TB, what string, ch <-chan blocks.Block, missing map[cid.Cid]bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case b, ok := <-ch:
			if !ok {
				return
			}
			if !missing[b.Cid()] {
				t.Fatalf("%s: block %s came again, or was not asked for", what, b.Cid())
			}
			delete(missing, b.Cid())
		case <-deadline:
			t.Fatalf("%s: still open after %v, with %d blocks missing", what, patience, len(missing))
		}
	}
}

func missing(list []blocks.Block) map[cid.Cid]bool {
	set := make(map[cid.Cid]bool, len(list))
	for _, b := range list {
		set[b.Cid()] = true
	}
	return set
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}
