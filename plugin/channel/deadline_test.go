package channel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Deadlines end reads and writes that wait, leave the stream whole, and can be
// moved and lifted.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		host, plugin := start(a, settings{host: true}), start(b, settings{})
		begin := time.Now()
		took := func(what string, err error, want time.Duration) {
			t.Helper()
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != want {
				t.Fatalf("%s: %v after %v, want %v after %v", what, err, time.Since(begin), os.ErrDeadlineExceeded, want)
			}
		}
		host.SetReadDeadline(begin.Add(time.Second))
		_, err := host.Read(make([]byte, 1))
		took("read", err, time.Second)
		_, err = host.Read(make([]byte, 1))
		took("read again", err, time.Second)

		host.SetReadDeadline(begin.Add(time.Hour))
		reading := async(func() error { _, err := host.Read(make([]byte, 1)); return err })
		synctest.Wait()
		host.SetReadDeadline(begin.Add(2 * time.Second))
		took("read whose deadline is moved nearer", <-reading, 2*time.Second)

		host.SetReadDeadline(begin.Add(3 * time.Second))
		reading = async(func() error { _, err := host.Read(make([]byte, 1)); return err })
		synctest.Wait()
		host.SetReadDeadline(begin.Add(5 * time.Second))
		took("read whose deadline is moved away", <-reading, 5*time.Second)

		plugin.SetWriteDeadline(begin.Add(6 * time.Second))
		n, err := plugin.Write(make([]byte, DefaultWindow+1))
		took("write without credit", err, 6*time.Second)
		if n != DefaultWindow {
			t.Fatalf("wrote %d, want %d", n, DefaultWindow)
		}
		reading = async(func() error { _, err := host.Read(make([]byte, 1)); return err })
		host.SetDeadline(time.Now())
		took("read with a deadline that has passed", <-reading, 6*time.Second)

		host.SetDeadline(time.Time{})
		plugin.SetDeadline(time.Time{})
		written := async(func() error {
			_, err := plugin.Write([]byte("end"))
			plugin.CloseWrite()
			return err
		})
		got, err := io.ReadAll(host)
		if err != nil || len(got) != DefaultWindow+3 || <-written != nil {
			t.Fatalf("after the deadlines were lifted: read %d, %v, want %d", len(got), err, DefaultWindow+3)
		}
		plugin.Close()
		host.Close()
	})
}

// A deadline that is set and lifted again at once may end the read under way,
// and does no more.
func TestReadDeadlineLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		host, plugin := start(a, settings{host: true}), start(b, settings{})
		for range 100 {
			reading := async(func() error { _, err := host.Read(make([]byte, 1)); return err })
			synctest.Wait()
			host.SetReadDeadline(time.Now())
			host.SetReadDeadline(time.Time{})
			synctest.Wait()
			mustWrite(t, plugin, "x")
			if err := <-reading; errors.Is(err, os.ErrDeadlineExceeded) {
				mustRead(t, host, "x")
			} else if err != nil {
				t.Fatal(err)
			}
		}
		host.Close()
		plugin.Close()
	})
}

// A side whose reader cannot get rid of its credit reads on, so that two sides
// in that state do not wait for each other.
func TestReadsWhileGivingCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sock, raw := net.Pipe() // takes nothing that is not read
		c := start(sock, settings{})
		half := make([]byte, DefaultWindow/2)
		reading := async(func() error { _, err := io.ReadFull(c, half); return err })
		raw.Write(wire(t, Record{Kind: KindData, Data: half[:MaxData]}))
		synctest.Wait()
		begin := time.Now()
		if _, err := raw.Write(wire(t, Record{Kind: KindCloseRead})); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > absence {
			t.Errorf("a record was taken after %v, want at most %v", took, absence)
		}
		if r := readRecord(t, raw); r.Kind != KindCredit || r.Size != DefaultWindow/2 {
			t.Errorf("the other side hears %+v, want credit of %d", r, DefaultWindow/2)
		}
		if err := <-reading; err != nil {
			t.Error(err)
		}
		raw.Close()
		<-c.Done()
	})
}

// A read whose deadline passes while its buffer is being filled returns what
// has come, and the rest follows.
func TestReadDeadlineInsideRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sock, raw := net.Pipe()
		c := start(sock, settings{})
		data := random(20_000)
		b := wire(t, Record{Kind: KindData, Data: data})
		c.SetReadDeadline(time.Now().Add(time.Second))
		buf := make([]byte, len(data))
		got := make(chan int)
		go func() {
			n, err := c.Read(buf)
			if err != nil {
				t.Errorf("read inside a record: %v", err)
			}
			got <- n
		}()
		synctest.Wait() // it waits, with its buffer lent
		raw.Write(b[:15_000])
		n := <-got
		if n != 15_000-headerSize {
			t.Fatalf("read %d bytes when the deadline passed, want %d", n, 15_000-headerSize)
		}
		if _, err := c.Read(buf[n:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read after the deadline: %v, want %v", err, os.ErrDeadlineExceeded)
		}
		c.SetReadDeadline(time.Time{})
		go raw.Write(b[15_000:])
		if _, err := io.ReadFull(c, buf[n:]); err != nil || !bytes.Equal(buf, data) {
			t.Fatalf("the rest: %v, and the bytes are the same: %v", err, bytes.Equal(buf, data))
		}

		// A reset gets the buffer back in the same way.
		go func() { raw.Write(b[:15_000]); io.Copy(io.Discard, raw) }()
		reading := async(func() error { _, err := io.ReadFull(c, buf); return err })
		synctest.Wait()
		begin := time.Now()
		c.ResetWithCode(3)
		isReset(t, <-reading, 3, false)
		if took := time.Since(begin); took != 0 {
			t.Errorf("the read under way took %v to end, want none", took)
		}
		<-c.Done()
		raw.Close()
	})
}

// A write deadline that passes inside a record resets the stream; one that
// passes before it leaves the stream whole.
func TestWriteDeadlineAtSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sock, raw := net.Pipe() // takes nothing that is not read
		c := start(sock, settings{})
		c.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := c.Write([]byte("not sent")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("nobody takes it: wrote %d, %v, want %v", n, err, os.ErrDeadlineExceeded)
		}
		c.SetWriteDeadline(time.Time{})
		written := async(func() error { _, err := c.Write([]byte("sent")); return err })
		if r := readRecord(t, raw); string(r.Data) != "sent" {
			t.Fatalf("the other side reads %+v, want %q", r, "sent")
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}

		c.SetWriteDeadline(time.Now().Add(time.Second))
		written = async(func() error { _, err := c.Write([]byte("cut")); return err })
		io.ReadFull(raw, make([]byte, 6))
		if err := <-written; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("cut: %v, want %v", err, os.ErrDeadlineExceeded)
		}
		_, err := c.Write([]byte("x"))
		isReset(t, err, 0, false)
		if _, err := raw.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the other side reads %v, want the end of the socket", err)
		}
		<-c.Done()
	})
}

// A socket that takes nothing for StallTimeout means that the other process
// hangs. Close and Reset do not wait longer either.
func TestStall(t *testing.T) {
	hang := func(what string, f func(c *Conn), within time.Duration) {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sock, raw := net.Pipe()
				c := start(sock, settings{})
				begin := time.Now()
				f(c)
				if took := time.Since(begin); took > within {
					t.Errorf("took %v, want at most %v", took, within)
				}
				<-c.Done()
				if took := time.Since(begin); took > within {
					t.Errorf("the socket was closed after %v, want at most %v", took, within)
				}
				raw.Close()
			})
		})
	}
	hang("write", func(c *Conn) {
		_, err := c.Write([]byte("x"))
		isReset(t, err, 0, false)
		if !errors.Is(err, errs.Crashed) {
			t.Errorf("error is %v, want one of kind %v", err, errs.Crashed)
		}
	}, StallTimeout)
	hang("close-write", func(c *Conn) {
		c.CloseWrite()
		isReset(t, c.CloseWrite(), 0, false)
	}, StallTimeout)
	hang("close", func(c *Conn) { c.Close() }, StallTimeout)
	hang("reset", func(c *Conn) { c.Reset() }, resetLinger)
	hang("reset inside a write", func(c *Conn) {
		written := async(func() error { _, err := c.Write([]byte("x")); return err })
		synctest.Wait()
		c.ResetWithCode(9)
		isReset(t, <-written, 9, false)
	}, resetLinger)
	hang("close inside a write", func(c *Conn) {
		written := async(func() error { _, err := c.Write([]byte("x")); return err })
		synctest.Wait()
		c.Close()
		if err := <-written; err == nil {
			t.Error("the write ended well, want an error")
		}
	}, StallTimeout)
}

// What a Reset has to say comes across after the record that is being written.
func TestResetWaitsForRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sock, raw := net.Pipe()
		c := start(sock, settings{})
		written := async(func() error { _, err := c.Write([]byte("whole")); return err })
		synctest.Wait()
		c.ResetWithCode(5)
		if r := readRecord(t, raw); string(r.Data) != "whole" {
			t.Errorf("first comes %+v, want the record", r)
		}
		if r := readRecord(t, raw); r.Kind != KindReset || r.Code != 5 {
			t.Errorf("then comes %+v, want a reset with code 5", r)
		}
		if err := <-written; err != nil {
			isReset(t, err, 5, false)
		}
		<-c.Done()
	})
}

// A stream is watched while nobody reads it: a reset is noticed, credit reaches
// the writer, and what comes is taken from the socket. So it is before the first
// read and after others.
func TestWatched(t *testing.T) {
	for _, reads := range []int{0, 1, 2} {
		synctest.Test(t, func(t *testing.T) {
			sock, raw := net.Pipe()
			c := start(sock, settings{})
			go io.Copy(io.Discard, raw)
			data := wire(t, Record{Kind: KindData, Data: []byte("x")})
			for range reads {
				go raw.Write(data)
				mustRead(t, c, "x")
			}
			written := async(func() error { _, err := c.Write(make([]byte, DefaultWindow+1)); return err })
			synctest.Wait()
			raw.Write(data)
			raw.Write(wire(t, Record{Kind: KindCredit, Size: 1}))
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * absence) // of the bubble: nobody reads or writes
			raw.Write(wire(t, Record{Kind: KindReset, Code: 3}))
			synctest.Wait()
			select {
			case <-c.failed:
			default:
				t.Fatalf("after %d reads: a reset goes unnoticed", reads)
			}
			raw.Close()
			<-c.Done()
		})
	}
}
