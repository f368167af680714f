package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/netutil"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// maxHeader is the longest request line and header that a server reads, bytes.
	maxHeader = 1 << 20
	// maxAPIConns is how many connections an API server has at a time; more wait.
	maxAPIConns = 1024
	// writePiece is how much of a response patience.write is for, bytes.
	writePiece = 64 << 10
)

// A server answers HTTP requests on one address, from newServer to stop.
type server struct {
	name     string // "API", "gateway"
	addr     multiaddr.Multiaddr
	listener net.Listener
	http     http.Server
	body     time.Duration // patience.body

	ended    chan struct{} // closed when run has returned
	requests inFlight
	abort    context.CancelCauseFunc // ends the contexts of all requests
}

// A serverError is why a server could not go on.
type serverError struct{ err error }

func (e *serverError) Error() string { return e.err.Error() }
func (e *serverError) Unwrap() error { return e.err }

// errStopping is the cause with which requests end that take too long when the
// daemon stops.
var errStopping = errors.New("the daemon is stopping")

// newServer listens on a multiaddr, with at most conns connections; 0 is no limit.
func (d *daemon) newServer(name, addr string, conns int) (*server, error) {
	op := "listen for the " + name + " on"
	a, err := multiaddr.NewMultiaddr(addr)
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, op, addr, err)
	}
	l, err := listen(a)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: another program has it, perhaps another node: end that, or change Addresses.%s%s", err, strings.ToUpper(name[:1]), name[1:])
	}
	if err != nil {
		return nil, errs.E(errs.Other, errs.Caller, op, addr, err)
	}
	base, abort := context.WithCancelCause(context.Background())
	s := &server{
		name: name, addr: l.Multiaddr(), listener: manet.NetListener(l),
		body: d.body, ended: make(chan struct{}), abort: abort,
	}
	s.requests.init()
	s.http = http.Server{
		ReadHeaderTimeout: d.header,
		IdleTimeout:       d.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(d.log.With("server", name).Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	if conns > 0 {
		s.listener = netutil.LimitListener(s.listener, conns)
	}
	s.listener = pacedListener{s.listener, d.write}
	return s, nil
}

// listen listens on a. A unix socket that a killed process has left is replaced.
func listen(a multiaddr.Multiaddr) (manet.Listener, error) {
	l, err := manet.Listen(a)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	path, noPath := a.ValueForProtocol(multiaddr.P_UNIX)
	if noPath != nil {
		return nil, err
	}
	if c, dialled := net.Dial("unix", path); !errors.Is(dialled, syscall.ECONNREFUSED) {
		if dialled == nil {
			c.Close()
		}
		return nil, err
	}
	if removed := syscall.Unlink(path); removed != nil {
		return nil, errors.Join(err, removed)
	}
	return manet.Listen(a)
}

// handle says who answers. It is called once, before run.
func (s *server) handle(h http.Handler) {
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.requests.begin() {
			http.Error(w, "503 - "+errStopping.Error(), http.StatusServiceUnavailable)
			return
		}
		defer s.requests.end()
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &pacedBody{r.Body, http.NewResponseController(w), s.body}
		}
		h.ServeHTTP(w, r)
	})
}

// run answers until stop; whatever else ends it is given to fail.
func (s *server) run(fail context.CancelCauseFunc) {
	defer close(s.ended)
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		fail(&serverError{errs.E(errs.Other, errs.Ours, "serve the "+s.name+" on", s.addr.String(), err)})
	}
}

// port is where the server listens, 0 if that has no port.
func (s *server) port() int {
	if a, ok := s.listener.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// unix reports whether the server listens on a unix socket, which the rights of
// its file guard.
func (s *server) unix() bool { return s.listener.Addr().Network() == "unix" }

// exposed reports whether other machines may reach the server.
func (s *server) exposed() bool { return !s.unix() && !manet.IsIPLoopback(s.addr) }

// anyInterface reports whether the server listens on all addresses of the machine.
func (s *server) anyInterface() bool { return manet.IsIPUnspecified(s.addr) }

// reachable is where a process of this machine reaches the server.
func (s *server) reachable() multiaddr.Multiaddr {
	if !s.anyInterface() {
		return s.addr
	}
	ip, rest := multiaddr.SplitFirst(s.addr)
	loopback := "/ip4/127.0.0.1"
	if ip.Protocol().Code == multiaddr.P_IP6 {
		loopback = "/ip6/::1"
	}
	return multiaddr.StringCast(loopback).Encapsulate(rest)
}

// stop lets no new requests in, gives those that are under way the time finish to
// end by themselves and then the time abort to notice that their contexts have
// ended, and closes what is left. All servers stop at the same time.
func stop(servers []*server, finish, abort time.Duration) error {
	failed := make([]error, len(servers))
	var wait sync.WaitGroup
	for i, s := range servers {
		wait.Go(func() { failed[i] = s.stop(finish, abort) })
	}
	wait.Wait()
	return errors.Join(failed...)
}

func (s *server) stop(finish, abort time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), finish)
	defer cancel()
	s.http.Shutdown(ctx) // closes the listener at once
	s.requests.close()
	s.abort(errStopping)
	<-s.ended
	ctx, cancel = context.WithTimeout(context.Background(), abort)
	defer cancel()
	left := s.requests.wait(ctx)
	s.http.Close()
	if left > 0 {
		return errs.E(errs.Other, errs.Ours, "stop the "+s.name+" on", s.addr.String(),
			fmt.Errorf("%d requests did not end in %v", left, finish+abort))
	}
	return nil
}

// inFlight counts requests. Its methods may be called from any goroutine.
type inFlight struct {
	mu     sync.Mutex
	n      int
	closed bool
	none   chan struct{} // closed when closed and n is 0
}

func (f *inFlight) init() { f.none = make(chan struct{}) }

// begin counts a request, unless no more are taken.
func (f *inFlight) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.n++
	return true
}

func (f *inFlight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.closed && f.n == 0 {
		close(f.none)
	}
}

// close takes no more requests. It is called once.
func (f *inFlight) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed = true; f.n == 0 {
		close(f.none)
	}
}

// wait returns when all requests have ended or ctx has, and how many have not.
func (f *inFlight) wait(ctx context.Context) int {
	select {
	case <-f.none:
		return 0
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.n
	}
}

// A pacedBody is the body of a request whose sender may not fall asleep: each Read
// has a time of its own, so that an upload may take as long as it moves.
type pacedBody struct {
	io.ReadCloser
	conn  *http.ResponseController
	limit time.Duration
}

func (b *pacedBody) Read(p []byte) (int, error) {
	// The deadline must not outlast the Read: the server reads on when the body is
	// over, to see whether the client goes away, and would take a timeout for that.
	b.conn.SetReadDeadline(time.Now().Add(b.limit))
	n, err := b.ReadCloser.Read(p)
	b.conn.SetReadDeadline(time.Time{})
	return n, err
}

// pacedListener accepts connections whose other side may not fall asleep while it
// is sent something.
type pacedListener struct {
	net.Listener
	limit time.Duration
}

func (l pacedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return pacedConn{c, l.limit}, nil
}

type pacedConn struct {
	net.Conn
	limit time.Duration
}

// Write sends p in pieces that have a time each.
func (c pacedConn) Write(p []byte) (n int, err error) {
	for first := true; first || n < len(p); first = false {
		piece := p[n:min(len(p), n+writePiece)]
		c.SetWriteDeadline(time.Now().Add(c.limit))
		m, err := c.Conn.Write(piece)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}
