package refpeer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	maxInbound  = 100              // streams that one remote may have open to us
	openTimeout = 10 * time.Second // for opening our stream
)

// outgoing is something to be written: a frame if there is one, else a message.
type outgoing struct {
	frame []byte
	msg   Message
	begin func()       // called before the write, with mu held; or nil
	done  chan<- error // told the outcome, has room for it; or nil
}

// send queues a message of the engine. It never waits.
func (p *Peer) send(r *remote, m Message) {
	p.noteSent(r, m)
	r.control = append(r.control, outgoing{msg: m})
	r.nudge()
}

func (r *remote) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// write carries out what is queued for a remote, until it leaves. What waits
// behind blocks (presences, want lists) goes before the next message of blocks.
// A message whose stream cannot be opened, or breaks, is lost.
func (p *Peer) write(r *remote) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, o := range append(r.control, r.payload...) {
			if o.done != nil {
				o.done <- context.Cause(r.ctx)
			}
		}
		r.control, r.payload = nil, nil
	}()
	for r.ctx.Err() == nil {
		o, ok := p.next(r)
		if !ok {
			select {
			case <-r.wake:
			case <-r.ctx.Done():
			}
			continue
		}
		frame := o.frame
		if frame == nil {
			frame = Frame(Encode(o.msg))
		}
		err := p.transmit(r, frame)
		if o.done != nil {
			o.done <- err
		}
	}
}

func (p *Peer) next(r *remote) (o outgoing, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := &r.control
	if len(*q) == 0 {
		q = &r.payload
	}
	if len(*q) == 0 {
		return o, false
	}
	o, *q = (*q)[0], (*q)[1:]
	if o.begin != nil {
		o.begin()
	}
	return o, true
}

// transmit writes a frame on our own stream, opening it if there is none. It is
// never written on a stream that the remote opened.
func (p *Peer) transmit(r *remote, frame []byte) error {
	p.mu.Lock()
	s := r.stream
	p.mu.Unlock()
	if s == nil {
		var err error
		if s, err = p.open(r); err != nil {
			return fmt.Errorf("refpeer: open stream to %s: %w", r.id, err)
		}
	}
	if _, err := s.Write(frame); err != nil {
		p.drop(r, s)
		return fmt.Errorf("refpeer: write to %s: %w", r.id, err)
	}
	p.mu.Lock()
	p.counters.FramesSent++
	p.mu.Unlock()
	return nil
}

func (p *Peer) open(r *remote) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(r.ctx, openTimeout)
	defer cancel()
	s, err := p.host.NewStream(network.WithNoDial(ctx, "only over what is connected"), r.id, ProtocolID)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		s.Reset()
		return nil, errClosed
	}
	r.stream = s
	p.counters.StreamsOpened++
	p.wg.Go(func() {
		defer p.drop(r, s)
		p.read(r.id, s)
	})
	return s, nil
}

// drop ends our stream; the next message opens another.
func (p *Peer) drop(r *remote, s network.Stream) {
	s.Reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.stream == s {
		r.stream = nil
	}
}

// accept reads a stream that a remote opened.
func (p *Peer) accept(s network.Stream) {
	from := s.Conn().RemotePeer()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		s.Reset()
		return
	}
	r := p.remotes[from]
	if r != nil && r.inbound >= maxInbound {
		p.violate(from, TooManyStreams, "stream %d is open, want at most %d", r.inbound+1, maxInbound)
		p.mu.Unlock()
		s.Close()
		return
	}
	if r != nil {
		r.inbound++
	}
	p.counters.StreamsAccepted++
	p.wg.Add(1)
	p.mu.Unlock()

	defer p.wg.Done()
	p.read(from, s)
	if r != nil {
		p.mu.Lock()
		r.inbound--
		p.mu.Unlock()
	}
}

// read takes messages from a stream, whoever opened it, until it ends or one of
// them cannot be read; then it ends the stream.
func (p *Peer) read(from peer.ID, s network.Stream) {
	in := bufio.NewReaderSize(s, 64<<10)
	for {
		body, err := readFrame(in)
		if err != nil {
			if !errors.Is(err, errFrame) {
				s.Reset()
				return
			}
			p.mu.Lock()
			p.violate(from, Unreadable, "%v", err)
			p.mu.Unlock()
		}
		if err != nil || !p.receive(from, body) {
			s.Close()
			return
		}
	}
}

// receive handles one message; false ends its stream.
func (p *Peer) receive(from peer.ID, body []byte) bool {
	m, err := Decode(body) // hashes the blocks, so without the lock
	m.From = from
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		err = lacksData(m)
	}
	p.keep(from, body, m, err)
	switch {
	case errors.Is(err, errCrash):
		p.violate(from, Crash, "%v", err)
		return false
	case errors.Is(err, errHash):
		p.violate(from, BadBlock, "%v", err)
		return false
	case err != nil:
		p.violate(from, Unreadable, "%v", err)
		return false
	}
	r := p.remotes[from]
	if r == nil { // not connected as far as we know: not listened to
		p.counters.Spurious += len(m.Deliveries)
		return true
	}
	if len(m.WantList.Entries) > 0 {
		p.takeWants(r, m.WantList)
	}
	if len(m.Deliveries) > 0 {
		p.takeBlocks(r, m.Deliveries)
	}
	if len(m.Presences) > 0 {
		p.takePresences(r, m.Presences)
	}
	return true
}

// lacksData refuses the delivery that the reference decodes and then trips over.
func lacksData(m Message) error {
	for i, d := range m.Deliveries {
		if d.Data == nil {
			return crash("delivery %d: %s has no data field", i, d.Address)
		}
	}
	return nil
}
