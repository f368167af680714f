package channel

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/plugin/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// within fails the test if f does not return in good time.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: still waiting after %v", what, patience)
	}
}

// shortDir is a private directory with a path short enough for a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// log keeps what is logged.
type log struct {
	mu   sync.Mutex
	text []byte
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

func (l *log) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// sharing says that the streams of the test have memory, see TestWithMemory.
var sharing bool

func listen(t testing.TB, o Options) *Listener {
	t.Helper()
	if sharing && o.Inbound == nil {
		o.Inbound = inboundMemory(t, memory.Inbound)
	}
	if o.Log == nil {
		o.Log = new(log).logger()
	}
	l, err := Listen(shortDir(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// inboundMemory makes memory for a host. It is closed after everything that the
// test starts later.
func inboundMemory(t testing.TB, size int) *memory.Memory {
	t.Helper()
	m, err := memory.MakeInbound(size)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// borrowed is how a plugin has the memory of a host.
func borrowed(t testing.TB, m *memory.Memory) *Loans {
	t.Helper()
	its, err := memory.OpenInbound(m.Path(), uint64(m.Size()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(its.Close)
	return NewLoans(its)
}

// giveBack tells a listener what its plugin gives back, until the test ends.
func giveBack(t testing.TB, l *Listener, loans *Loans) {
	stop := make(chan struct{})
	done := async(func() error {
		for {
			select {
			case <-loans.Ready():
				if err := l.Returned(loans.Take(nil)); err != nil {
					return err
				}
			case <-stop:
				return nil
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		if err := wait(t, "giving back", done); err != nil {
			t.Error(err)
		}
	})
}

// join makes a stream over a real socket, greeted as always.
func join(t testing.TB, l *Listener, stream uint64, o Options) (host, plugin *Conn) {
	t.Helper()
	e, err := l.Expect(stream)
	if err != nil {
		t.Fatal(err)
	}
	if sharing && o.Loans == nil {
		o.Loans = borrowed(t, l.opts.Inbound)
		giveBack(t, l, o.Loans)
	}
	plugin, err = Dial(t.Context(), l.Path(), l.Token(), stream, o)
	if err != nil {
		t.Fatal(err)
	}
	host, err = e.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, host, plugin) })
	return host, plugin
}

// pair is join on a Listener of its own.
func pair(t testing.TB) (host, plugin *Conn) {
	t.Helper()
	return join(t, listen(t, Options{}), 7, Options{})
}

func end(t testing.TB, conns ...*Conn) {
	for _, c := range conns {
		c.Close()
		within(t, "a closed Conn ends", func() { <-c.Done() })
	}
}

// against is a Conn whose other side is played by the test, over a real socket
// without greeting.
func against(t testing.TB, s settings) (*Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", shortDir(t)+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sock, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := start(sock, s)
	t.Cleanup(func() { raw.Close(); end(t, c) })
	raw.SetDeadline(time.Now().Add(patience))
	return c, raw
}

// start makes a running Conn with the usual windows.
func start(sock net.Conn, s settings) *Conn {
	if s.window == 0 {
		s.window = DefaultWindow
	}
	if s.allowed == 0 {
		s.allowed = DefaultWindow
	}
	c := newConn(sock, s)
	go c.run()
	return c
}

// wire is the bytes of records.
func wire(t testing.TB, records ...Record) (b []byte) {
	t.Helper()
	for _, r := range records {
		var err error
		if b, err = r.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// readRecord reads one record from a socket.
func readRecord(t testing.TB, r io.Reader) Record {
	t.Helper()
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatalf("read a record: %v", err)
	}
	kind, n, err := parseHeader(head)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatalf("read a record: %v", err)
	}
	if kind == KindData {
		return Record{Kind: kind, Data: body}
	}
	rec, err := parseBody(kind, body)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func random(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	seed[0] = byte(n)
	r := rand.NewChaCha8(seed)
	r.Read(b)
	return b
}

func cidOf(b []byte) cid.Cid {
	sum := sha256.Sum256(b)
	return cid.NewCidV1(cid.Raw, append([]byte{0x12, 0x20}, sum[:]...))
}

// async runs f and gives its error.
func async(f func() error) <-chan error {
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

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}
