package channel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// What one side writes the other reads, in both directions at once, whatever
// the sizes, until each has closed its direction.
func TestBytes(t *testing.T) {
	for _, tc := range []struct {
		name               string
		total, write, read int
	}{
		{"one byte at a time", 2_000, 1, 1},
		{"small writes, large reads", 300_000, 100, 64 << 10},
		{"large writes, small reads", 300_000, 100_000, 1000},
		{"64 KiB", 4 << 20, 64 << 10, 64 << 10},
		{"odd sizes beyond the window", 8 << 20, 1_000_003, 70_001},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host, plugin := pair(t)
			data := random(tc.total)
			carry := func(from, to *Conn) <-chan error {
				return async(func() error {
					written := async(func() error {
						for rest := data; len(rest) > 0; {
							n := min(tc.write, len(rest))
							if k, err := from.Write(rest[:n]); err != nil || k != n {
								return errors.Join(err, errors.New("short write"))
							}
							rest = rest[n:]
						}
						return from.CloseWrite()
					})
					var got bytes.Buffer
					_, err := io.CopyBuffer(&got, struct{ io.Reader }{to}, make([]byte, tc.read))
					if err != nil || !bytes.Equal(got.Bytes(), data) {
						return errors.Join(err, errors.New("other bytes than were written"))
					}
					return <-written
				})
			}
			one, other := carry(host, plugin), carry(plugin, host)
			if err := wait(t, "host to plugin", one); err != nil {
				t.Errorf("host to plugin: %v", err)
			}
			if err := wait(t, "plugin to host", other); err != nil {
				t.Errorf("plugin to host: %v", err)
			}
			for _, c := range []*Conn{host, plugin} {
				if out, in := c.Counters().DataOut.Load(), c.Counters().DataIn.Load(); out != uint64(len(data)) || in != uint64(len(data)) {
					t.Errorf("counted %d bytes out and %d in, want %d each", out, in, len(data))
				}
			}
		})
	}
}

// A direction that was closed reads io.EOF, for good, and the other goes on.
func TestHalfClose(t *testing.T) {
	host, plugin := pair(t)
	for _, d := range []struct{ closes, stays *Conn }{{host, plugin}, {plugin, host}} {
		mustWrite(t, d.closes, "last words")
		if err := d.closes.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := d.closes.CloseWrite(); err != nil {
			t.Fatalf("a second CloseWrite: %v", err)
		}
		mustRead(t, d.stays, "last words")
		for range 2 {
			if n, err := d.stays.Read(make([]byte, 9)); n != 0 || err != io.EOF {
				t.Fatalf("after CloseWrite: read %d, %v, want io.EOF", n, err)
			}
		}
		if _, err := d.closes.Write([]byte("x")); !errors.Is(err, errs.Closed) {
			t.Fatalf("write after CloseWrite: %v, want %v", err, errs.Closed)
		}
		if d.closes == host {
			mustWrite(t, d.stays, "still here")
			mustRead(t, d.closes, "still here")
		}
	}
}

// CloseRead makes the other side's writes fail, also those that wait for
// credit, and nothing else.
func TestCloseRead(t *testing.T) {
	host, plugin := pair(t)
	blocked := async(func() error { _, err := plugin.Write(random(2 * DefaultWindow)); return err })
	eventually(t, "the writer is out of credit", func() bool { return plugin.Counters().DataOut.Load() == DefaultWindow })
	host.CloseRead()
	if err := wait(t, "the writer", blocked); !errors.Is(err, errs.Closed) {
		t.Fatalf("write to who reads no more: %v, want %v", err, errs.Closed)
	}
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, errs.Closed) {
		t.Fatalf("read after CloseRead: %v, want %v", err, errs.Closed)
	}
	mustWrite(t, host, "I still speak")
	mustRead(t, plugin, "I still speak")
}

// Data for a side that reads no more is thrown away, so that the socket never
// fills, and a read under way ends.
func TestCloseReadDiscards(t *testing.T) {
	c, raw := against(t, settings{host: true})
	reading := async(func() error { _, err := c.Read(make([]byte, 9)); return err })
	eventually(t, "the read waits", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.inNext || c.readers > 0 })
	c.CloseRead()
	if err := wait(t, "the read", reading); !errors.Is(err, errs.Closed) {
		t.Fatalf("read under way: %v, want %v", err, errs.Closed)
	}
	if r := readRecord(t, raw); r.Kind != KindCloseRead {
		t.Fatalf("the other side hears %v, want %v", r.Kind, KindCloseRead)
	}
	data := wire(t, Record{Kind: KindData, Data: make([]byte, MaxData)})
	for range DefaultWindow / MaxData {
		if _, err := raw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	raw.Write(wire(t, Record{Kind: KindBlock, Cid: cidOf(nil)}))
	if r := readRecord(t, raw); r.Kind != KindReset || r.Code != CodeProtocol {
		t.Fatalf("beyond its credit the other side hears %+v, want a reset with code %#x", r, CodeProtocol)
	}
}

// Close ends both directions in good order: what was written is read, then
// io.EOF, and the other side's writes fail without a reset.
func TestClose(t *testing.T) {
	host, plugin := pair(t)
	data := random(DefaultWindow)
	if _, err := plugin.Write(data); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, host, "never read")
	for range 2 {
		if err := plugin.Close(); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "the closed side ends", func() { <-plugin.Done() })
	within(t, "the other side hears of it", func() { <-host.Done() })
	if got, err := io.ReadAll(host); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, %v, want the %d that were written and io.EOF", len(got), err, len(data))
	}
	if _, err := host.Write([]byte("x")); !errors.Is(err, errs.Closed) {
		t.Fatalf("write to who has closed: %v, want %v", err, errs.Closed)
	}
	if _, err := plugin.Read(make([]byte, 1)); !errors.Is(err, errs.Closed) {
		t.Fatalf("read after Close: %v, want %v", err, errs.Closed)
	}
	if _, err := plugin.Write([]byte("x")); !errors.Is(err, errs.Closed) {
		t.Fatalf("write after Close: %v, want %v", err, errs.Closed)
	}
	if err := plugin.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite after Close: %v", err)
	}
}

// A reset ends reads and writes under way on both sides, with its code.
func TestReset(t *testing.T) {
	for _, code := range []uint32{0, 7, CodeBlockMissing, 0xFFFFFFFF} {
		host, plugin := pair(t)
		var pending []<-chan error
		var remote []bool
		for _, c := range []*Conn{host, plugin} {
			pending = append(pending,
				async(func() error { _, err := io.ReadFull(c, make([]byte, 1<<20)); return err }),
				async(func() error { _, err := c.Write(random(1 << 20)); return err }))
			remote = append(remote, c == plugin, c == plugin)
		}
		if err := host.ResetWithCode(code); err != nil {
			t.Fatal(err)
		}
		for i, ch := range pending {
			err := wait(t, "a read or write under way", ch)
			// It may have ended well if both ends were quick.
			if err == nil {
				continue
			}
			isReset(t, err, code, remote[i])
		}
		for i, c := range []*Conn{host, plugin} {
			_, err := c.Read(make([]byte, 1))
			isReset(t, err, code, i == 1)
			_, err = c.Write(make([]byte, 1))
			isReset(t, err, code, i == 1)
			isReset(t, c.CloseWrite(), code, i == 1)
			c.ResetWithCode(code + 1) // the first reason stays
			_, err = c.Read(make([]byte, 1))
			isReset(t, err, code, i == 1)
		}
	}
}

// Without a reader a writer gets one window ahead and no further, and the
// reader's side holds little more than that.
func TestBackPressure(t *testing.T) {
	for _, size := range []int{1, 1000, 64 << 10, 1 << 20} {
		host, plugin := pair(t)
		total := max(4*DefaultWindow, size)
		if size == 1 {
			total = DefaultWindow + 1000
		}
		data := random(total)
		written := async(func() error {
			for rest := data; len(rest) > 0; {
				n := min(size, len(rest))
				if _, err := plugin.Write(rest[:n]); err != nil {
					return err
				}
				rest = rest[n:]
			}
			return plugin.CloseWrite()
		})
		eventually(t, "all credit is used", func() bool { return host.Counters().DataIn.Load() == DefaultWindow })
		eventually(t, "all of it is queued", func() bool { return queued(host) == DefaultWindow })
		host.mu.Lock()
		held := len(host.queue.chunks) * len(chunk{}.b)
		host.mu.Unlock()
		if most := DefaultWindow + 2*len(chunk{}.b); held > most {
			t.Errorf("writes of %d: %d bytes are held, want at most %d", size, held, most)
		}
		select {
		case err := <-written:
			t.Fatalf("the writer ended with %v before anything was read", err)
		default:
		}
		var got []byte
		var err error
		within(t, "the rest", func() { got, err = io.ReadAll(host) })
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("writes of %d: read %d bytes, %v, want the %d that were written", size, len(got), err, total)
		}
		if err := wait(t, "the writer", written); err != nil {
			t.Fatal(err)
		}
		host.mu.Lock()
		if n := len(host.queue.chunks); n != 0 {
			t.Errorf("%d chunks are held after everything was read", n)
		}
		host.mu.Unlock()
	}
}

// queued counts the bytes that wait to be read.
func queued(c *Conn) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range c.queue.items[c.queue.head:] {
		n += it.n
	}
	return n
}

// Long data goes from the socket to the reader's buffer, not by way of the
// queue.
func TestReadsDirectly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sock, raw := net.Pipe()
		c := start(sock, settings{})
		data := random(MaxData)
		go raw.Write(wire(t, Record{Kind: KindData, Data: data}))
		buf := make([]byte, MaxData)
		if n, err := c.Read(buf); n != len(buf) || err != nil || !bytes.Equal(buf, data) {
			t.Fatalf("read %d, %v, and the bytes are the same: %v; want all %d at once", n, err, bytes.Equal(buf, data), len(data))
		}
		if c.queue.chunks != nil {
			t.Error("the queue was used")
		}
		raw.Close()
		<-c.Done()
	})
}

// Both sides write as much as they can while neither reads, and give credit
// back at the same time: nothing locks up.
func TestNoDeadlock(t *testing.T) {
	host, plugin := pair(t)
	const total = 32 << 20
	var all []<-chan error
	for _, c := range []*Conn{host, plugin} {
		all = append(all,
			async(func() error {
				buf := random(300_000)
				for left := total; left > 0; {
					n, err := c.Write(buf[:min(left, len(buf))])
					if err != nil {
						return err
					}
					left -= n
				}
				return c.CloseWrite()
			}),
			async(func() error {
				runtime.Gosched()
				n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 5000))
				if n != total {
					return errors.Join(err, io.ErrShortWrite)
				}
				return err
			}))
	}
	for _, ch := range all {
		if err := wait(t, "a direction", ch); err != nil {
			t.Error(err)
		}
	}
}

func mustWrite(t testing.TB, c *Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("write %q: %d, %v", s, n, err)
	}
}

func mustRead(t testing.TB, c *Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	within(t, "read "+want, func() {
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Errorf("read %q, %v, want %q", got, err, want)
		}
	})
}

func isReset(t testing.TB, err error, code uint32, remote bool) {
	t.Helper()
	var reset *ResetError
	if !errors.As(err, &reset) {
		t.Fatalf("error is %v, want a *ResetError", err)
	}
	if reset.Code != code || reset.Remote != remote {
		t.Errorf("error is %v (code %#x, remote %v), want code %#x, remote %v", err, reset.Code, reset.Remote, code, remote)
	}
}

// TestCork shows that what is written while a stream is corked goes together and in
// order, no later than Uncork or CloseWrite; that much of it goes earlier, as does all
// before somebody waits for credit; and that a stream whose corked records cannot be
// sent is over.
func TestCork(t *testing.T) {
	t.Run("together", func(t *testing.T) {
		c, raw := against(t, settings{})
		c.Cork()
		mustWrite(t, c, "head")
		if err := c.WriteBlock(cidOf(nil), 5); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, "tail")
		if n := len(c.cork); n != 3*headerSize+8+blockSize+cidOf(nil).ByteLen() {
			t.Errorf("%d bytes wait, want three records", n)
		}
		if err := c.Uncork(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, "at once")
		for i, want := range []string{"head", "", "tail", "at once"} {
			if r := readRecord(t, raw); string(r.Data) != want || (r.Kind == KindBlock) != (want == "") {
				t.Errorf("record %d is %+v, want %q", i, r, want)
			}
		}
	})
	t.Run("to the end", func(t *testing.T) {
		host, plugin := pair(t)
		plugin.Cork()
		mustWrite(t, plugin, "last words")
		if err := plugin.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(host); err != nil || string(got) != "last words" {
			t.Errorf("got %q, %v, want the last words", got, err)
		}
	})
	t.Run("more than credit", func(t *testing.T) {
		host, plugin := pair(t)
		data := random(3 * DefaultWindow)
		plugin.Cork()
		sent := async(func() error {
			for p := data; len(p) > 0; p = p[min(len(p), 1000):] {
				if _, err := plugin.Write(p[:min(len(p), 1000)]); err != nil {
					return err
				}
			}
			return plugin.Uncork()
		})
		got := make([]byte, len(data))
		within(t, "the host reads", func() { io.ReadFull(host, got) })
		if err := wait(t, "the plugin", sent); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%v, got the same bytes: %v", err, bytes.Equal(got, data))
		}
	})
	t.Run("cannot be sent", func(t *testing.T) {
		_, plugin := pair(t)
		plugin.Cork()
		mustWrite(t, plugin, "never")
		plugin.SetWriteDeadline(time.Unix(1, 0))
		if err := plugin.Uncork(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
		}
		plugin.SetWriteDeadline(time.Time{})
		_, err := plugin.Write([]byte("x"))
		isReset(t, err, CodeNone, false)
	})
}

// TestCorkCloseWrite shows that Uncork and CloseWrite may come at the same time: what was
// corked goes first, once.
func TestCorkCloseWrite(t *testing.T) {
	c, raw := against(t, settings{})
	c.Cork()
	mustWrite(t, c, "corked")
	c.mu.Lock()
	c.busy = true // somebody gives credit
	c.mu.Unlock()
	uncork, closing := async(c.Uncork), async(c.CloseWrite)
	eventually(t, "both wait for the socket", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.waiting == 2
	})
	c.mu.Lock()
	c.busy = false
	c.writable.Broadcast()
	c.mu.Unlock()
	if err := errors.Join(wait(t, "Uncork", uncork), wait(t, "CloseWrite", closing)); err != nil {
		t.Error(err)
	}
	if r := readRecord(t, raw); string(r.Data) != "corked" {
		t.Errorf("got %+v, want what was corked", r)
	}
	if r := readRecord(t, raw); r.Kind != KindCloseWrite {
		t.Errorf("got %+v, want a close-write", r)
	}
}
