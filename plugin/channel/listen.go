package channel

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/memory"
)

const (
	// HandshakeTimeout is how long a greeting may take.
	HandshakeTimeout = 5 * time.Second
	// MaxHandshakes is how many connections may be greeting at a time; more wait
	// in the socket's backlog.
	MaxHandshakes = 64
)

// Options are what both sides may choose. The zero value is useful.
type Options struct {
	// Window is how many bytes of one stream this side holds unread, from
	// MinWindow to MaxWindow; 0 means DefaultWindow.
	Window int
	// Caps are abilities to offer, see there.
	Caps Caps
	// Inbound is memory in which the host, who listens, puts bytes of streams for the
	// plugin, and Loans is what the plugin, who dials, has of it; nil if there is none.
	// Having it on both sides is a matter of CapRegions, which fill sets. They remain
	// the caller's, who closes the memory after the Listener, or the Conns.
	Inbound *memory.Memory
	Loans   *Loans
	// Counters count what crosses; nil means that each Conn has its own.
	Counters *Counters
	// Log is told of connections that were refused; nil means slog.Default().
	Log *slog.Logger

	checkPeer func(*net.UnixConn) error // nil means sameUser
	handshake time.Duration             // 0 means HandshakeTimeout
	stall     time.Duration             // 0 means StallTimeout
}

// fill puts defaults in place of zeros.
func (o Options) fill() (Options, error) {
	if o.Window == 0 {
		o.Window = DefaultWindow
	}
	if err := checkWindow(int64(o.Window)); err != nil {
		return o, errs.E(errs.Invalid, errs.Caller, "channel options", "", err)
	}
	if o.Caps &^= CapRegions; o.Inbound != nil || o.Loans != nil {
		o.Caps |= CapRegions
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.checkPeer == nil {
		o.checkPeer = sameUser
	}
	if o.handshake == 0 {
		o.handshake = HandshakeTimeout
	}
	return o, nil
}

// A Listener is the host's end of all streams of one plugin process. Its methods
// may be called from any goroutine.
type Listener struct {
	sock  *net.UnixListener
	path  string
	token Token
	opts  Options
	slots *slots // nil if there is no memory

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	places chan struct{} // one for each greeting under way

	mu       sync.Mutex
	closed   bool
	expected map[uint64]*Expected
	conns    map[*Conn]struct{}
}

// Listen makes a socket in dir and accepts connections until Close. The
// directory must be this user's and closed to others (mode 0700), and its path
// short: that of a socket is limited to 107 bytes on Linux and 103 on macOS.
func Listen(dir string, o Options) (*Listener, error) {
	const op = "listen for streams"
	o, err := o.fill()
	if err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, op, "in "+dir, err)
	}
	var name [4]byte
	var token Token
	rand.Read(name[:]) // never fails
	rand.Read(token[:])
	path := filepath.Join(dir, fmt.Sprintf("s%x", name))
	if limit := len(syscall.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, op, "in %s: the socket's path is %d bytes, want at most %d", dir, len(path), limit)
	}
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, errs.E(errs.Other, errs.Ours, op, "in "+dir, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		sock.Close()
		return nil, errs.E(errs.Other, errs.Ours, op, "in "+dir, err)
	}
	l := &Listener{
		sock: sock, path: path, token: token, opts: o,
		places:   make(chan struct{}, MaxHandshakes),
		expected: make(map[uint64]*Expected), conns: make(map[*Conn]struct{}),
	}
	if o.Inbound != nil {
		l.slots = newSlots(o.Inbound)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.accept)
	return l, nil
}

// checkDir reports why dir is no private directory of this user.
func checkDir(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("mode is %v, want a directory", fi.Mode())
	}
	if perm := fi.Mode().Perm(); perm != 0o700 {
		return fmt.Errorf("mode is %#o, want 0700", perm)
	}
	return checkOwner(fi)
}

// Path is where the socket is.
func (l *Listener) Path() string { return l.path }

// Token is what a plugin has to show. It is made anew by Listen.
func (l *Listener) Token() Token { return l.token }

// Expect makes the plugin's connection for a stream welcome, once. It must be
// called before the plugin is told of the stream, and be ended with Conn or
// Cancel. The error is of kind errs.Closed, or errs.Invalid if the stream is
// expected already.
func (l *Listener) Expect(stream uint64) (*Expected, error) {
	return l.ExpectCounting(stream, l.opts.Counters)
}

// ExpectCounting is Expect, with counters for this stream instead of those of the
// options.
func (l *Listener) ExpectCounting(stream uint64, counters *Counters) (*Expected, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	subject := fmt.Sprintf("stream %d", stream)
	if l.closed {
		return nil, errs.E(errs.Closed, errs.Unknown, "expect", subject, nil)
	}
	if l.expected[stream] != nil {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "expect "+subject, "it is expected already")
	}
	e := &Expected{l: l, stream: stream, counters: counters, came: make(chan struct{})}
	l.expected[stream] = e
	return e, nil
}

// Expected is a stream whose connection has not come yet.
type Expected struct {
	l        *Listener
	stream   uint64
	counters *Counters
	came     chan struct{} // closed after conn or err has been set

	conn *Conn
	err  error
}

// Conn waits for the connection, until ctx ends; then it comes no more. It is
// called once.
func (e *Expected) Conn(ctx context.Context) (*Conn, error) {
	select {
	case <-e.came:
		return e.conn, e.err
	case <-ctx.Done():
	}
	if !e.l.forget(e) {
		<-e.came // it comes just now
		return e.conn, e.err
	}
	return nil, errs.E(errs.Crashed, errs.Plugin, "wait for", fmt.Sprintf("stream %d", e.stream), context.Cause(ctx))
}

// Cancel ends the wait. If the connection has come and Conn was not called, it is
// reset.
func (e *Expected) Cancel() {
	if e.l.forget(e) {
		return
	}
	if <-e.came; e.conn != nil {
		e.conn.Reset()
	}
}

// Returned takes back regions of the memory that the plugin has done with, by their
// offsets. The error, of kind errs.Malformed, says that it did not have one of them.
func (l *Listener) Returned(offsets []uint64) error {
	if l.slots == nil {
		return errs.Errorf(errs.Malformed, errs.Plugin, "take back memory", "none is shared")
	}
	return l.slots.returned(offsets)
}

// forget takes an expectation off the list; false if it is no longer there.
func (l *Listener) forget(e *Expected) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.expected[e.stream] != e {
		return false
	}
	delete(l.expected, e.stream)
	return true
}

// Close ends the socket, its file, all greetings, all Conns (reset with
// CodeShutdown) and all expectations, and waits for them. It returns nil, also
// when called again.
func (l *Listener) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		l.cancel()
		l.sock.Close()
		for stream, e := range l.expected {
			e.err = errs.E(errs.Closed, errs.Unknown, "wait for", fmt.Sprintf("stream %d", stream), nil)
			close(e.came)
			delete(l.expected, stream)
		}
	}
	open := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	if l.slots != nil {
		l.slots.end()
	}
	for _, c := range open {
		c.ResetWithCode(CodeShutdown)
	}
	l.wg.Wait()
	return nil
}

func (l *Listener) accept() {
	wait := time.Duration(0)
	for {
		select {
		case l.places <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		sock, err := l.sock.AcceptUnix()
		if err == nil {
			wait = 0
			l.wg.Go(func() { l.serve(sock) })
			continue
		}
		<-l.places
		if l.ctx.Err() != nil {
			return
		}
		// Out of descriptors, say: others may end.
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		l.opts.Log.Error("accept a stream of the plugin", "err", err, "again_in", wait)
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
			return
		}
	}
}

// serve greets a connection and is then its Conn's goroutine.
func (l *Listener) serve(sock *net.UnixConn) {
	c, err := l.greet(sock)
	<-l.places
	if err != nil {
		sock.Close()
		if l.ctx.Err() == nil {
			l.opts.Log.Warn("refused a connection", "socket", l.path, "err", err)
		}
		return
	}
	c.run()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// greet reads the hello, answers it, and hands the Conn to who expects it.
func (l *Listener) greet(sock *net.UnixConn) (*Conn, error) {
	end := time.Now().Add(l.opts.handshake)
	sock.SetDeadline(end)
	stop := context.AfterFunc(l.ctx, func() { sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	refuse := func(v verdict, err error) (*Conn, error) {
		sock.Write(answer{version: Version, verdict: v}.append(nil))
		return nil, err
	}
	bad := func(v verdict, format string, args ...any) (*Conn, error) {
		return refuse(v, errs.Errorf(errs.Malformed, errs.Plugin, "greeting", format, args...))
	}
	if err := l.opts.checkPeer(sock); err != nil {
		return refuse(badCredentials, err)
	}
	var b [helloSize]byte
	if n, err := io.ReadFull(sock, b[:]); err != nil {
		return nil, errs.Errorf(errs.Malformed, errs.Plugin, "greeting", "ends after %d bytes, want %d: %w", n, helloSize, err)
	}
	h, ok := parseHello(&b)
	if !ok {
		return bad(badMagic, "begins with %q, want %q", b[:4], magic)
	}
	if h.version != Version {
		return bad(badVersion, "version is %d, want %d", h.version, Version)
	}
	if subtle.ConstantTimeCompare(h.token[:], l.token[:]) != 1 {
		return bad(badToken, "wrong token")
	}
	if err := checkWindow(int64(h.window)); err != nil {
		return refuse(badWindow, errs.E(errs.Malformed, errs.Plugin, "greeting", "", err))
	}

	l.mu.Lock()
	e := l.expected[h.stream]
	delete(l.expected, h.stream)
	l.mu.Unlock()
	if e == nil {
		return bad(unknownStream, "stream %d is not expected", h.stream)
	}
	caps := h.caps & l.opts.Caps
	_, err := sock.Write(answer{version: Version, verdict: welcome, caps: caps, window: uint32(l.opts.Window)}.append(nil))
	if !stop() && err == nil {
		err = net.ErrClosed
	}
	sock.SetDeadline(time.Time{})

	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(e.came)
	if l.closed {
		err = errs.E(errs.Closed, errs.Unknown, "", "", nil)
	}
	if err != nil {
		e.err = errs.E(errs.Crashed, errs.Plugin, "greet", fmt.Sprintf("stream %d", h.stream), err)
		return nil, e.err
	}
	s := settings{
		id: h.stream, host: true, window: l.opts.Window, allowed: int(h.window),
		counters: e.counters, stall: l.opts.stall,
	}
	if caps&CapRegions != 0 {
		s.slots = l.slots
	}
	e.conn = newConn(sock, s)
	l.conns[e.conn] = struct{}{}
	return e.conn, nil
}

// sameUser reports why the process at the other end is not this user's.
func sameUser(sock *net.UnixConn) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var uid int
	var credErr error
	if err := raw.Control(func(fd uintptr) { uid, credErr = peerUID(int(fd)) }); err != nil {
		return err
	}
	if credErr != nil {
		return errs.Errorf(errs.Other, errs.Ours, "peer credentials", "%w", credErr)
	}
	if uid != os.Geteuid() {
		return errs.Errorf(errs.Invalid, errs.Plugin, "peer credentials", "user is %d, want %d", uid, os.Geteuid())
	}
	return nil
}
