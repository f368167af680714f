package memnet

import (
	"context"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
)

var _ exchange.BlockWriter = (*filledStream)(nil)

// A stream is one side of a byte stream.
//
// After Close, reads and writes here fail with io.ErrClosedPipe; the other side
// reads what was written and then io.EOF, and what it writes is lost. After a
// Reset by either side, or when the link is cut, reads and writes fail with
// network.ErrReset, as in libp2p; what was under way is lost.
type stream struct {
	local   *Node
	remote  peer.ID
	link    *link
	first   *stream // the side that opened, under which the link knows the stream
	other   *stream
	in, out *pipe
	latency time.Duration
}

// newStream returns the side of the node that opens; the other side is its other.
func newStream(x, y *Node, l *link, latency time.Duration, buffer int) *stream {
	there, back := &pipe{limit: buffer, latency: latency}, &pipe{limit: buffer, latency: latency}
	near := &stream{local: x, remote: y.id, link: l, in: back, out: there, latency: latency}
	far := &stream{local: y, remote: x.id, link: l, in: there, out: back, latency: latency}
	near.first, near.other = near, far
	far.first, far.other = near, near
	return near
}

func (s *stream) Peer() peer.ID { return s.remote }

func (s *stream) Read(b []byte) (int, error) { return s.in.read(b, s.local) }

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.out.write(b)
	s.local.written.Add(int64(n))
	return n, err
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.out.deadline = t
	s.out.changed()
	return nil
}

func (s *stream) Close() error {
	s.out.closeWriter()
	s.in.closeReader()
	if s.in.closed() && s.out.closed() {
		s.forget()
	}
	return nil
}

func (s *stream) Reset() error {
	s.in.failReader(network.ErrReset)
	s.out.failWriter(network.ErrReset)
	arrive := func() {
		s.out.failReader(network.ErrReset)
		s.in.failWriter(network.ErrReset)
	}
	if s.latency > 0 {
		time.AfterFunc(s.latency, arrive)
	} else {
		arrive()
	}
	s.forget()
	return nil
}

// asSeen is the stream as its node is given it, if that fills streams from store.
func (s *stream) asSeen(store exchange.Blocks) exchange.Stream {
	if store == nil {
		return s
	}
	return &filledStream{stream: s, store: store}
}

// A filledStream is an exchange.BlockWriter. As where the store is in another
// process, that a block is not there is no error of WriteBlock. What is written
// from then on is lost, and after the time in which it would have arrived the
// stream is reset, so that later calls fail.
type filledStream struct {
	*stream
	store exchange.Blocks
	lost  atomic.Bool
}

func (s *filledStream) Write(b []byte) (int, error) {
	if !s.lost.Load() {
		return s.stream.Write(b)
	}
	_, err := s.out.write(nil)
	if err != nil {
		return 0, err
	}
	s.local.written.Add(int64(len(b)))
	return len(b), nil
}

// WriteBlock implements exchange.BlockWriter.
func (s *filledStream) WriteBlock(c cid.Cid, size int) error {
	if _, err := s.out.write(nil); err != nil || s.lost.Load() {
		return err
	}
	b, err := s.store.Get(context.Background(), c)
	if err != nil || len(b.RawData()) != size {
		s.lost.Store(true)
		if s.latency == 0 {
			return s.Reset()
		}
		time.AfterFunc(s.latency, func() { _ = s.Reset() })
		return nil
	}
	n, err := s.out.write(b.RawData())
	s.local.filled.Add(int64(n))
	return err
}

// sever resets both sides at once.
func (s *stream) sever() {
	for _, p := range []*pipe{s.in, s.out} {
		p.failReader(network.ErrReset)
		p.failWriter(network.ErrReset)
	}
	s.forget()
}

func (s *stream) forget() {
	s.local.net.mu.Lock()
	defer s.local.net.mu.Unlock()
	delete(s.link.streams, s.first)
}

// A pipe is one direction of a stream: a queue of bytes with a limit, each to be
// read from a certain time on.
type pipe struct {
	limit   int // bytes
	latency time.Duration

	mu       sync.Mutex // guards all below
	segments []segment
	size     int           // bytes in segments
	readErr  error         // what reads return; set once
	writeErr error         // what writes return; set once
	deadline time.Time     // of writes; zero for none
	waiting  chan struct{} // closed at the next change; nil if nobody waits
}

// A segment is some bytes, or the end of the stream if data is nil.
type segment struct {
	data []byte
	at   time.Time // when it has arrived
}

// changed wakes everybody who waits. The caller holds mu.
func (p *pipe) changed() {
	if p.waiting != nil {
		close(p.waiting)
		p.waiting = nil
	}
}

// change returns a channel that is closed at the next change. The caller holds
// mu, and waits without it.
func (p *pipe) change() <-chan struct{} {
	if p.waiting == nil {
		p.waiting = make(chan struct{})
	}
	return p.waiting
}

// push appends a segment. The caller holds mu.
func (p *pipe) push(data []byte) {
	at := time.Now().Add(p.latency)
	if n := len(p.segments); n > 0 && at.Before(p.segments[n-1].at) {
		at = p.segments[n-1].at
	}
	p.segments = append(p.segments, segment{data: data, at: at})
	p.size += len(data)
	p.changed()
}

func (p *pipe) write(b []byte) (n int, err error) {
	for {
		p.mu.Lock()
		late := !p.deadline.IsZero() && !time.Now().Before(p.deadline)
		switch {
		case p.writeErr != nil:
			defer p.mu.Unlock()
			return n, p.writeErr
		case late:
			defer p.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		case p.readErr == io.ErrClosedPipe:
			p.mu.Unlock()
			return n + len(b), nil // nobody will read it
		}
		if room := min(p.limit-p.size, len(b)); room > 0 {
			p.push(append([]byte(nil), b[:room]...))
			n, b = n+room, b[room:]
		}
		if len(b) == 0 {
			p.mu.Unlock()
			return n, nil
		}
		deadline, change := p.deadline, p.change()
		p.mu.Unlock()
		wait(change, nil, deadline)
	}
}

func (p *pipe) read(b []byte, local *Node) (int, error) {
	for {
		gate := local.gate()
		p.mu.Lock()
		if p.readErr != nil {
			defer p.mu.Unlock()
			return 0, p.readErr
		}
		if len(b) == 0 {
			p.mu.Unlock()
			return 0, nil
		}
		var next time.Time
		if gate == nil && len(p.segments) > 0 {
			head := &p.segments[0]
			if next = head.at; !next.After(time.Now()) {
				defer p.mu.Unlock()
				if head.data == nil {
					return 0, io.EOF
				}
				n := copy(b, head.data)
				if head.data = head.data[n:]; len(head.data) == 0 {
					*head = segment{}
					p.segments = p.segments[1:]
				}
				p.size -= n
				p.changed()
				return n, nil
			}
		}
		change := p.change()
		p.mu.Unlock()
		wait(change, gate, next)
	}
}

// wait returns when one of the channels is closed or it is time, unless that is
// zero.
func wait(change, gate <-chan struct{}, until time.Time) {
	var at <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		at = t.C
	}
	select {
	case <-change:
	case <-gate:
	case <-at:
	}
}

func (p *pipe) closeWriter() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writeErr == nil {
		p.writeErr = io.ErrClosedPipe
		p.push(nil)
	}
}

func (p *pipe) closeReader() { p.failReader(io.ErrClosedPipe) }

func (p *pipe) failReader(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr == nil {
		p.readErr = err
		p.segments, p.size = nil, 0
		p.changed()
	}
}

func (p *pipe) failWriter(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writeErr == nil {
		p.writeErr = err
		p.changed()
	}
}

// closed reports whether both ends are done with the pipe.
func (p *pipe) closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.readErr != nil && p.writeErr != nil
}
