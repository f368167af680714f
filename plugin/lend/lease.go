package lend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// MaxRequest is the longest message that the plugin may send, bytes.
	MaxRequest = 1 << 20
	// MaxReply is the longest message that the plugin is sent, bytes. Its client
	// has to be ready for that.
	MaxReply = 4 << 20
	// MaxCalls is how many calls of the plugin are served at a time; its client
	// holds back more.
	MaxCalls = 512
	// flowWindow is how many bytes of the plugin's requests may be on their way.
	// As it is fixed, gRPC does not measure the connection with a ping for each
	// message.
	flowWindow = 1 << 20
	// DialWait is how long the plugin may take to dial the byte channel of a
	// stream that it was told of.
	DialWait = 5 * time.Second

	defaultCloseWait = 2 * time.Second
)

// Numbers of byte channels that every lease has.
const (
	callbackStream uint64 = 1
	resultsStream  uint64 = 2
)

// A Lease is what is lent to one incarnation of the plugin. Its methods may be
// called from any goroutine. Its owner ends it with Close, also when the plugin
// has died.
type Lease struct {
	l        *Lender
	channels *channel.Listener
	server   *grpc.Server
	results  *channel.Expected
	shared   shared
	next     atomic.Uint64 // the number of the latest byte channel
	ctx      context.Context
	cancel   context.CancelCauseFunc
	serving  sync.WaitGroup // serve and watch
	values   *values
	once     sync.Once

	// guarded by Lender.mu
	closed  bool
	told    bool          // Events was called
	streams int           // open, or being opened
	busy    int           // calls being served, and streams
	idle    chan struct{} // closed when the lease is closed and busy is 0
}

// Open makes the lease of one incarnation of the plugin, with its socket in dir,
// see channel.Listen. There may be one lease at a time: while another is open
// the error is of kind errs.Invalid, and after Close errs.Closed. If the plugin
// never comes, the lease waits for it until it is closed.
func (l *Lender) Open(dir string) (*Lease, error) {
	const op = "open lease for plugin"
	memory := l.share()
	channels, err := channel.Listen(dir, channel.Options{Inbound: memory.inbound, Counters: &l.counters.Streams, Log: l.opts.Log})
	if err != nil {
		memory.close()
		return nil, err
	}
	le := &Lease{l: l, channels: channels, shared: memory, idle: make(chan struct{})}
	le.values = newValues(l)
	le.next.Store(resultsStream)
	le.ctx, le.cancel = context.WithCancelCause(context.Background())
	le.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxRequest), grpc.MaxSendMsgSize(MaxReply), grpc.MaxConcurrentStreams(MaxCalls),
		grpc.StaticStreamWindowSize(flowWindow), grpc.StaticConnWindowSize(flowWindow),
		grpc.UnaryInterceptor(le.serveUnary), grpc.StreamInterceptor(le.serveStream))
	pb.RegisterHostServer(le.server, &server{l: l, le: le})
	callback, err := channels.ExpectCounting(callbackStream, &l.counters.Calls)
	if err == nil {
		le.results, err = channels.ExpectCounting(resultsStream, &l.counters.Results)
	}
	if err != nil { // cannot be: they are new
		channels.Close()
		memory.close()
		return nil, err
	}

	l.mu.Lock()
	switch {
	case l.closed:
		err = errs.E(errs.Closed, errs.Caller, op, l.opts.Name, nil)
	case l.lease != nil:
		err = errs.E(errs.Invalid, errs.Caller, op, l.opts.Name, errors.New("another lease is open"))
	default:
		l.lease = le
		le.serving.Go(func() { le.serve(callback) })
	}
	l.mu.Unlock()
	if err != nil {
		le.cancel(err)
		channels.Close()
		memory.close()
		return nil, err
	}
	return le, nil
}

// Fill sets what the plugin has to know of the host: all but its name, its
// configuration and the log level.
func (le *Lease) Fill(r *pb.StartRequest) {
	h := le.l.opts.Host
	token := le.channels.Token()
	r.Self = []byte(h.ID())
	r.Addrs = nil
	for _, a := range h.Addrs() {
		r.Addrs = append(r.Addrs, a.Bytes())
	}
	r.Socket, r.Token = le.channels.Path(), token[:]
	r.Callback, r.Results = callbackStream, resultsStream
	r.Leaves, r.Routing = le.l.opts.Leaves != nil, le.l.opts.Router != nil
	le.shared.fill(r)
}

// Results waits until the plugin has dialled the byte channel of results, until
// ctx ends; then it comes no more. The Conn is the caller's. Results is called
// once.
func (le *Lease) Results(ctx context.Context) (*channel.Conn, error) { return le.results.Conn(ctx) }

// Close ends what is lent to this incarnation: it resets its streams and byte
// channels, and forgets its tags. The protocols that it has handled stay with
// the host, and streams that peers open meanwhile wait for the next lease.
//
// Close waits for all goroutines of the lease, but no longer than 2 s for those
// that a store or a peer's connection holds up; Lender.Close waits for these. It
// returns nil, also when called again.
func (le *Lease) Close() error {
	le.once.Do(le.close)
	return nil
}

func (le *Lease) close() {
	l := le.l
	l.mu.Lock()
	le.closed = true
	l.feed = nil
	for _, h := range l.protocols {
		h.by = nil
	}
	if le.busy == 0 {
		close(le.idle)
	}
	l.mu.Unlock()

	le.cancel(errs.E(errs.Closed, errs.Unknown, "lend to plugin", l.opts.Name, nil))
	// First the bridges, each by itself, and the sockets, then the server, whose
	// connection would else wait for a plugin that hangs.
	le.channels.Close()
	le.server.Stop()
	le.serving.Wait()
	le.shared.close()
	le.values.undo()

	late := time.NewTimer(l.opts.closeWait)
	defer late.Stop()
	select {
	case <-le.idle:
	case <-late.C:
		l.mu.Lock()
		left := le.busy
		l.mu.Unlock()
		l.opts.Log.Warn("calls and streams of a plugin take long to end", "plugin", l.opts.Name, "left", left)
	}
	l.mu.Lock()
	l.lease = nil
	l.mu.Unlock()
}

// serve is the server of the one connection that carries calls.
func (le *Lease) serve(callback *channel.Expected) {
	c, err := callback.Conn(le.ctx)
	if err != nil {
		return // the lease has ended
	}
	le.serving.Go(func() { le.watch(c) })
	err = le.server.Serve(newOne(c, le.channels.Path()))
	if err != nil && le.ctx.Err() == nil {
		le.l.opts.Log.Debug("calls of the plugin have ended", "plugin", le.l.opts.Name, "err", err)
	}
}

// watch cuts the plugin off when its calls have ended and the lease has not. It
// cannot get a second connection, so it does nothing any more, and still its process
// may answer that it is well. Who reads its results learns it so. A plugin that
// ends in good order has the time to do it.
func (le *Lease) watch(callback *channel.Conn) {
	<-callback.Done()
	late := time.NewTimer(le.l.opts.closeWait)
	defer late.Stop()
	select {
	case <-le.ctx.Done():
	case <-late.C:
		le.l.opts.Log.Warn("a plugin can call its host no more, and is cut off", "plugin", le.l.opts.Name)
		le.channels.Close()
	}
}

// begin counts a call or a stream, which end takes off again; false if the lease
// is closed.
func (le *Lease) begin() bool {
	le.l.mu.Lock()
	defer le.l.mu.Unlock()
	return le.beginLocked()
}

func (le *Lease) beginLocked() bool {
	if le.closed {
		return false
	}
	le.busy++
	le.l.calls.Add(1)
	return true
}

func (le *Lease) end() {
	le.l.mu.Lock()
	defer le.l.mu.Unlock()
	le.endLocked()
}

func (le *Lease) endLocked() {
	le.busy--
	if le.closed && le.busy == 0 {
		close(le.idle)
	}
	le.l.calls.Done()
}

// admit counts a stream, which leave takes off again.
func (le *Lease) admit() error {
	le.l.mu.Lock()
	defer le.l.mu.Unlock()
	if limit := le.l.opts.Streams; le.streams >= limit && !le.closed {
		le.l.refused.Add(1)
		return errs.Errorf(errs.TooLarge, errs.Plugin, "open stream", "%d streams are open, want at most %d", le.streams, limit)
	}
	if !le.beginLocked() {
		return le.over()
	}
	le.streams++
	return nil
}

func (le *Lease) leave() {
	le.l.mu.Lock()
	defer le.l.mu.Unlock()
	le.streams--
	le.endLocked()
}

func (le *Lease) over() error {
	return errs.E(errs.Closed, errs.Unknown, "", "lease of plugin "+le.l.opts.Name, nil)
}

func (le *Lease) serveUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if !le.begin() {
		return nil, pb.Status(le.over())
	}
	defer le.end()
	reply, err := h(ctx, req)
	return reply, pb.Status(err)
}

func (le *Lease) serveStream(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if !le.begin() {
		return pb.Status(le.over())
	}
	defer le.end()
	return pb.Status(h(s, ss))
}

// expect makes the byte channel of a stream welcome.
func (le *Lease) expect() (*channel.Expected, uint64, error) {
	number := le.next.Add(1)
	e, err := le.channels.Expect(number)
	return e, number, err
}

// join carries a stream that was admitted, from when the plugin dials it until
// it ends, and leaves. If the lease ends before the plugin dials, it leaves the
// stream as it was, and returns false.
func (le *Lease) join(s network.Stream, e *channel.Expected) bool {
	defer le.leave()
	ctx, cancel := context.WithTimeoutCause(le.ctx, le.l.opts.dialWait, fmt.Errorf("the plugin has not dialled within %v", le.l.opts.dialWait))
	c, err := e.Conn(ctx)
	cancel()
	switch {
	case err != nil && le.ctx.Err() != nil:
		return false
	case err != nil:
		le.log(slog.LevelWarn, "reset a stream that the plugin was told of", s, err)
		_ = s.ResetWithError(network.StreamShutdown)
		return true
	}
	if err := channel.Bridge(le.ctx, &stream{s: s}, c, le.l.put); err != nil {
		le.log(slog.LevelDebug, "a stream has ended before its time", s, err)
	}
	return true
}

func (le *Lease) log(level slog.Level, text string, s network.Stream, err error) {
	log := le.l.opts.Log
	if log.Enabled(le.ctx, level) {
		log.Log(le.ctx, level, text, "plugin", le.l.opts.Name, "peer", s.Conn().RemotePeer(), "protocol", s.Protocol(), "err", err)
	}
}

// one is a net.Listener of one connection.
type one struct {
	conn net.Conn
	came bool // owned by Accept, which has one caller
	once sync.Once
	done chan struct{} // closed by Close
}

func newOne(c *channel.Conn, path string) *one {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	return &one{conn: &byteConn{Conn: c, addr: addr}, done: make(chan struct{})}
}

func (o *one) Accept() (net.Conn, error) {
	if !o.came {
		o.came = true
		return o.conn, nil
	}
	<-o.done
	return nil, io.EOF
}

func (o *one) Close() error {
	o.once.Do(func() { close(o.done) })
	return nil
}

func (o *one) Addr() net.Addr { return o.conn.LocalAddr() }

// byteConn is a net.Conn over a byte channel.
type byteConn struct {
	*channel.Conn
	addr net.Addr
}

func (c *byteConn) LocalAddr() net.Addr  { return c.addr }
func (c *byteConn) RemoteAddr() net.Addr { return c.addr }
