package channel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A stream that is expected connects once, with its number and windows.
func TestConnect(t *testing.T) {
	l := listen(t, Options{Window: 1 << 20})
	host, plugin := join(t, l, 1<<63+5, Options{Window: MinWindow})
	for _, c := range []*Conn{host, plugin} {
		if c.ID() != 1<<63+5 {
			t.Errorf("stream is %d, want %d", c.ID(), uint64(1<<63+5))
		}
	}
	if host.credit != MinWindow || plugin.credit != 1<<20 {
		t.Errorf("windows are %d to the plugin and %d to the host, want %d and %d", host.credit, plugin.credit, MinWindow, 1<<20)
	}
	mustWrite(t, host, "hello")
	mustRead(t, plugin, "hello")
	if _, err := Dial(t.Context(), l.Path(), l.Token(), host.ID(), Options{}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "not expected") {
		t.Errorf("a second connection for the stream: %v, want it refused", err)
	}
	fi, err := os.Stat(l.Path())
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", fi.Mode(), err)
	}
}

// Connections that do not prove themselves are refused with the reason, which
// is logged, and others are served as before.
func TestRefused(t *testing.T) {
	var out log
	l := listen(t, Options{Log: out.logger()})
	e, err := l.Expect(1)
	if err != nil {
		t.Fatal(err)
	}
	good := hello{version: Version, window: DefaultWindow, stream: 1, token: l.Token()}
	change := func(f func(*hello)) []byte { h := good; f(&h); return h.append(nil) }
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  verdict
		log   string
	}{
		{"garbage", []byte(strings.Repeat("GET / HTTP/1.1\r\n", 100)), badMagic, `begins with \"GET \"`},
		{"zeros", make([]byte, 4096), badMagic, "begins with"},
		{"wrong version", change(func(h *hello) { h.version = 9 }), badVersion, "version is 9, want 1"},
		{"no token", change(func(h *hello) { h.token = Token{} }), badToken, "wrong token"},
		{"token that is nearly right", change(func(h *hello) { h.token[31] ^= 1 }), badToken, "wrong token"},
		{"small window", change(func(h *hello) { h.window = MinWindow - 1 }), badWindow, "window is 65535"},
		{"4 GiB window", change(func(h *hello) { h.window = 1<<32 - 1 }), badWindow, "window is 4294967295"},
		{"unknown stream", change(func(h *hello) { h.stream = 2 }), unknownStream, "stream 2 is not expected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw, err := net.Dial("unix", l.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(patience))
			raw.Write(tc.bytes)
			var b [answerSize]byte
			if _, err := io.ReadFull(raw, b[:]); err != nil {
				t.Fatal(err)
			}
			if got := verdict(b[5]); got != tc.want {
				t.Errorf("answer is %v, want %v", got, tc.want)
			}
			if n, err := raw.Read(b[:]); n != 0 || err == nil {
				t.Errorf("after the answer: %d bytes, %v, want the end", n, err)
			}
			eventually(t, "it is logged", func() bool { return strings.Contains(out.String(), tc.log) })
		})
	}
	if _, err := Dial(t.Context(), l.Path(), Token{}, 1, Options{}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "wrong token") {
		t.Errorf("Dial with a wrong token: %v, want the host's reason", err)
	}
	plugin, err := Dial(t.Context(), l.Path(), l.Token(), 1, Options{})
	if err != nil {
		t.Fatalf("after all these: %v", err)
	}
	host, err := e.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, plugin, "as before")
	mustRead(t, host, "as before")
	end(t, plugin, host)
	if strings.Contains(out.String(), string(l.token[:])) {
		t.Error("the token was logged")
	}
}

// A process of another user is refused before it can say anything, on both
// sides.
func TestOtherUser(t *testing.T) {
	other := func(*net.UnixConn) error {
		return errs.Errorf(errs.Invalid, errs.Plugin, "peer credentials", "user is 12345, want 0")
	}
	var out log
	l := listen(t, Options{Log: out.logger(), checkPeer: other})
	if _, err := l.Expect(1); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), l.Path(), l.Token(), 1, Options{}); !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unreachable) {
		t.Errorf("Dial to who takes us for another user: %v, want it refused", err)
	}
	eventually(t, "it is logged", func() bool { return strings.Contains(out.String(), "user is 12345") })

	l = listen(t, Options{Log: out.logger()})
	e, err := l.Expect(1)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Cancel()
	if _, err := Dial(t.Context(), l.Path(), l.Token(), 1, Options{checkPeer: other}); err == nil || !strings.Contains(err.Error(), "user is 12345") {
		t.Errorf("Dial to another user's socket: %v, want it refused here", err)
	}
	eventually(t, "the host is not told the token", func() bool { return strings.Contains(out.String(), "ends after 0 bytes") })
}

// The credentials are those of the process at the other end.
func TestPeerCredentials(t *testing.T) {
	l := listen(t, Options{})
	raw, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	rc, err := raw.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) {
		if uid, err := peerUID(int(fd)); err != nil || uid != os.Geteuid() {
			t.Errorf("user is %d, %v, want %d", uid, err, os.Geteuid())
		}
	})
}

// Connections that say nothing, or a byte now and then, are given up in time,
// however many, and others come through.
func TestSlowGreeting(t *testing.T) {
	var out log
	l := listen(t, Options{Log: out.logger(), handshake: 100 * time.Millisecond})
	var slow []net.Conn
	for range 2 * MaxHandshakes {
		raw, err := net.Dial("unix", l.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.Write([]byte(magic))
		slow = append(slow, raw)
	}
	host, plugin := join(t, l, 1, Options{handshake: patience})
	mustWrite(t, host, "at last")
	mustRead(t, plugin, "at last")
	for _, raw := range slow {
		raw.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(raw); isTimeout(err) {
			t.Fatal("a silent connection is still open")
		}
	}
	eventually(t, "all are logged", func() bool { return strings.Count(out.String(), "ends after 4 bytes, want 56") == len(slow) })
}

// A host that does not answer is given up in time, or when the caller's context
// ends.
func TestSlowAnswer(t *testing.T) {
	sock, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	path := sock.Addr().String()
	if _, err := Dial(t.Context(), path, Token{}, 1, Options{handshake: 20 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errs.Unreachable) {
		t.Errorf("silent host: %v, want %v", err, context.DeadlineExceeded)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dialled := async(func() error { _, err := Dial(ctx, path, Token{}, 1, Options{}); return err })
	cancel()
	if err := wait(t, "Dial", dialled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want %v", err, context.Canceled)
	}
	sock.Close()
	if _, err := Dial(t.Context(), path, Token{}, 1, Options{}); !errors.Is(err, errs.Unreachable) {
		t.Errorf("no host: %v, want %v", err, errs.Unreachable)
	}
}

// An expectation ends when its context does, or by Cancel, or with the
// Listener; a connection that comes later is refused.
func TestExpect(t *testing.T) {
	l := listen(t, Options{Log: new(log).logger()})
	expect := func(stream uint64) *Expected {
		t.Helper()
		e, err := l.Expect(stream)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	refused := func(stream uint64) {
		t.Helper()
		if _, err := Dial(t.Context(), l.Path(), l.Token(), stream, Options{}); !errors.Is(err, errs.Invalid) {
			t.Errorf("stream %d is given up: Dial returns %v, want %v", stream, err, errs.Invalid)
		}
	}
	e := expect(1)
	if _, err := l.Expect(1); !errors.Is(err, errs.Invalid) {
		t.Errorf("expected twice: %v, want %v", err, errs.Invalid)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := e.Conn(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errs.Crashed) {
		t.Errorf("never came: %v, want %v", err, context.DeadlineExceeded)
	}
	refused(1)

	expect(2).Cancel()
	refused(2)

	e = expect(3)
	plugin, err := Dial(t.Context(), l.Path(), l.Token(), 3, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e.Cancel()
	_, err = plugin.Read(make([]byte, 1))
	isReset(t, err, 0, true)
	end(t, plugin)

	e = expect(4)
	waiting := async(func() error { _, err := e.Conn(context.Background()); return err })
	l.Close()
	if err := wait(t, "the expectation", waiting); !errors.Is(err, errs.Closed) {
		t.Errorf("closed: %v, want %v", err, errs.Closed)
	}
	if _, err := l.Expect(5); !errors.Is(err, errs.Closed) {
		t.Errorf("Expect after Close: %v, want %v", err, errs.Closed)
	}
}

// Close removes the socket, resets every stream, gives up every greeting, and
// waits for all of that.
func TestListenerClose(t *testing.T) {
	l := listen(t, Options{Log: new(log).logger()})
	host, plugin := join(t, l, 1, Options{})
	silent, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	within(t, "Close", func() { l.Close() })
	within(t, "the host's streams have ended", func() { <-host.Done() })
	_, err = host.Read(make([]byte, 1))
	isReset(t, err, CodeShutdown, false)
	_, err = plugin.Read(make([]byte, 1))
	isReset(t, err, CodeShutdown, true)
	silent.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(silent); isTimeout(err) {
		t.Error("a greeting is still open")
	}
	if left, err := os.ReadDir(filepath.Dir(l.Path())); err != nil || len(left) != 0 {
		t.Errorf("the directory has %v, %v, want nothing", left, err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if n := len(l.conns); n != 0 {
		t.Errorf("%d streams are still on the list", n)
	}
}

// A directory that others can enter, or whose name is too long for a socket,
// is refused with the reason.
func TestListenRefused(t *testing.T) {
	open := shortDir(t)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(shortDir(t), strings.Repeat("x", 100))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(shortDir(t), "f")
	if err := os.WriteFile(file, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(shortDir(t), "l")
	if err := os.Symlink(shortDir(t), link); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, dir, want string
		opts            Options
	}{
		{"open to others", open, "mode is 0755, want 0700", Options{}},
		{"long", long, "want at most 10", Options{}},
		{"no directory", file, "want a directory", Options{}},
		{"a link", link, "want a directory", Options{}},
		{"nothing", filepath.Join(open, "none"), "no such file", Options{}},
		{"small window", shortDir(t), "window is 1, want 65536", Options{Window: 1}},
	} {
		if l, err := Listen(tc.dir, tc.opts); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want one with %q", tc.name, err, tc.want)
			if err == nil {
				l.Close()
			}
		}
	}
	if _, err := Dial(t.Context(), "x", Token{}, 1, Options{Window: MaxWindow + 1}); !errors.Is(err, errs.Invalid) {
		t.Errorf("Dial with a large window: %v, want %v", err, errs.Invalid)
	}
}

// Many streams connect at once, more than may greet at a time.
func TestManyConnect(t *testing.T) {
	l := listen(t, Options{})
	const n = 4 * MaxHandshakes
	var wg sync.WaitGroup
	for i := range uint64(n) {
		e, err := l.Expect(i)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			c, err := Dial(t.Context(), l.Path(), l.Token(), i, Options{})
			if err != nil {
				t.Errorf("dial %d: %v", i, err)
				return
			}
			c.Write([]byte{byte(i)})
			c.Close()
		})
		wg.Go(func() {
			c, err := e.Conn(t.Context())
			if err != nil {
				t.Errorf("expect %d: %v", i, err)
				return
			}
			if got, err := io.ReadAll(c); err != nil || len(got) != 1 || got[0] != byte(i) {
				t.Errorf("stream %d: read %v, %v, want its own byte", i, got, err)
			}
			c.Close()
		})
	}
	within(t, "all streams", wg.Wait)
}
