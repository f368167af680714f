package channel

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/ipfs/go-cid"
)

// BenchmarkThroughput carries bytes over a unix socket: bare, and as records.
// Both ends are in one process, which the Go scheduler may keep on one core or
// spread over two; so take the median of several runs.
func BenchmarkThroughput(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 256 << 10} {
		carry := func(b *testing.B, w io.Writer, r io.Reader) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			out, in := make([]byte, size), make([]byte, size)
			written := make(chan error, 1)
			b.ResetTimer()
			go func() {
				for range b.N {
					if _, err := w.Write(out); err != nil {
						written <- err
						return
					}
				}
				written <- nil
			}()
			for range b.N {
				if _, err := io.ReadFull(r, in); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-written; err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
		}
		b.Run(fmt.Sprintf("bare/%dKiB", size>>10), func(b *testing.B) {
			l, err := net.Listen("unix", shortDir(b)+"/s")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			w, err := net.Dial("unix", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			r, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			carry(b, w, r)
		})
		b.Run(fmt.Sprintf("records/%dKiB", size>>10), func(b *testing.B) {
			host, plugin := pair(b)
			carry(b, plugin, host)
		})
	}
}

// BenchmarkRoundTrip is 32 bytes to the other side and back.
func BenchmarkRoundTrip(b *testing.B) {
	host, plugin := pair(b)
	go func() {
		buf := make([]byte, 32)
		for {
			if _, err := io.ReadFull(host, buf); err != nil {
				return
			}
			host.Write(buf)
		}
	}()
	b.ReportAllocs()
	buf := make([]byte, 32)
	for b.Loop() {
		plugin.Write(buf)
		if _, err := io.ReadFull(plugin, buf); err != nil {
			b.Fatal(err)
		}
	}
	plugin.Reset()
}

// BenchmarkReferences is serving 64 KiB blocks by reference through a Bridge to
// a peer that takes them at once.
func BenchmarkReferences(b *testing.B) {
	host, plugin := pair(b)
	stream, peer := memPair()
	block := make([]byte, 64<<10)
	c := cidOf(block)
	bridged := async(func() error {
		return Bridge(context.Background(), stream, host, func(_ context.Context, _ cid.Cid, _ int, w io.Writer) error {
			_, err := w.Write(block)
			return err
		})
	})
	taken := async(func() error { _, err := io.Copy(io.Discard, peer); return err })
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if err := plugin.WriteBlock(c, len(block)); err != nil {
			b.Fatal(err)
		}
	}
	plugin.Close()
	if err := wait(b, "the peer", taken); err != nil {
		b.Fatal(err)
	}
	if err := wait(b, "the bridge", bridged); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCrossing is bytes of a peer on their way to the plugin, 64 KiB at a
// time, inline and in memory.
func BenchmarkCrossing(b *testing.B) {
	for _, in := range []string{"inline", "memory"} {
		b.Run(in, func(b *testing.B) {
			if in == "memory" {
				share(b)
			}
			host, plugin := pair(b)
			stream := &source64{left: b.N}
			b.SetBytes(slotSize)
			b.ReportAllocs()
			b.ResetTimer()
			bridged := async(func() error { return Bridge(context.Background(), stream, host, nil) })
			p := make([]byte, 256<<10)
			for {
				if _, err := plugin.Read(p); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			plugin.Close()
			if err := wait(b, "the bridge", bridged); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// source64 is a stream of a peer that always has 64 KiB more, so many times.
type source64 struct {
	Stream
	left int
}

func (s *source64) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	for n := 0; n < len(p); n += 4096 {
		p[n]++ // as somebody writes it
	}
	return len(p), nil
}

func (s *source64) CloseRead() error           { return nil }
func (s *source64) CloseWrite() error          { return nil }
func (s *source64) Close() error               { return nil }
func (s *source64) ResetWithCode(uint32) error { return nil }
