package memnet

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/errs"
)

var _ exchange.Network = (*Node)(nil)

// A Node is one member of a Net. It implements exchange.Network; its methods may
// be called from any goroutine.
//
// A node speaks the protocol from Attach until it is detached, and its peers
// hear PeerUp and PeerDown accordingly. Every node of the Net can be dialled.
type Node struct {
	net *Net
	id  peer.ID

	// Guarded by net.mu.
	handler  exchange.Handler // nil unless attached
	attached bool             // Attach has been called
	epoch    uint64           // the last one given to a PeerUp
	up       map[peer.ID]uint64
	queue    []event // what the handler has still to hear
	tags     map[peer.ID]int
	store    exchange.Blocks // what streams are filled from; nil if they are not
	refuse   int             // NewStream calls that will fail
	stalled  chan struct{}   // closed when reads go on; nil if they are not stalled

	wake  chan struct{} // holds one token when queue or handler has changed
	calls sync.WaitGroup

	written, filled atomic.Int64 // see Written and Filled
}

// An event is a stream, or a peer that came or went.
type event struct {
	peer   peer.ID
	epoch  uint64
	up     bool
	stream *stream
}

// Self implements exchange.Network.
func (x *Node) Self() peer.ID { return x.id }

// Attach implements exchange.Network. When the node is detached, its streams are
// reset and its peers hear PeerDown. The detaching function must not be called
// from the handler.
func (x *Node) Attach(h exchange.Handler) (detach func(), err error) {
	n := x.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if x.attached {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "attach to "+x.id.String(), "called twice")
	}
	x.attached, x.handler = true, h
	for _, y := range n.neighbours(x.id) {
		n.tell(x, y)
	}
	x.calls.Go(func() { x.dispatch(h) })
	return x.detach, nil
}

func (x *Node) detach() {
	n := x.net
	var links []*link
	n.mu.Lock()
	if x.handler != nil {
		x.handler, x.queue = nil, nil
		for _, y := range n.neighbours(x.id) {
			n.tell(x, y)
			links = append(links, n.links[pairOf(x.id, y.id)])
		}
	}
	n.mu.Unlock()
	for _, l := range links {
		l.cut(n)
	}
	x.poke()
	x.calls.Wait()
}

// poke makes dispatch look again.
func (x *Node) poke() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// dispatch calls the handler, one event after the other, until the node is
// detached.
func (x *Node) dispatch(h exchange.Handler) {
	for {
		x.net.mu.Lock()
		if x.handler == nil {
			x.net.mu.Unlock()
			return
		}
		if len(x.queue) == 0 {
			x.net.mu.Unlock()
			<-x.wake
			continue
		}
		e := x.queue[0]
		x.queue = x.queue[1:]
		x.net.mu.Unlock()
		switch {
		case e.stream != nil:
			s := x.side(e.stream)
			x.calls.Go(func() { h.HandleStream(s) })
		case e.up:
			h.PeerUp(e.peer, e.epoch)
		default:
			h.PeerDown(e.peer, e.epoch)
		}
	}
}

// tell queues PeerUp or PeerDown if that is a change. The caller holds net.mu.
func (x *Node) tell(p peer.ID, up bool) {
	epoch, was := x.up[p]
	switch {
	case up && !was:
		x.epoch++
		x.up[p] = x.epoch
		x.enqueue(event{peer: p, epoch: x.epoch, up: true})
	case !up && was:
		delete(x.up, p)
		x.enqueue(event{peer: p, epoch: epoch})
	}
}

// enqueue queues an event unless the node is detached. The caller holds net.mu.
func (x *Node) enqueue(e event) bool {
	if x.handler == nil {
		return false
	}
	x.queue = append(x.queue, e)
	x.poke()
	return true
}

// NewStream implements exchange.Network. It does not wait for the other side.
func (x *Node) NewStream(ctx context.Context, p peer.ID) (exchange.Stream, error) {
	const op = "open stream to"
	if err := ctx.Err(); err != nil {
		return nil, errs.E(errs.Unreachable, errs.Caller, op, p.String(), err)
	}
	n := x.net
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[pairOf(x.id, p)]
	switch {
	case x.handler == nil:
		return nil, errs.E(errs.Unreachable, errs.Caller, op, p.String(), errors.New("this node is not attached"))
	case x.refuse > 0:
		x.refuse--
		return nil, errs.E(errs.Unreachable, errs.Peer, op, p.String(), errors.New("refused, as the test asked"))
	case l == nil:
		return nil, errs.E(errs.Unreachable, errs.Peer, op, p.String(), errors.New("not connected"))
	case n.node(p).handler == nil:
		return nil, errs.E(errs.Unreachable, errs.Peer, op, p.String(), errors.New("peer does not speak the protocol"))
	}
	there := n.node(p)
	latency := n.latency[pairOf(x.id, p)]
	near := newStream(x, there, l, latency, n.buffer)
	l.streams[near] = struct{}{}
	if latency == 0 {
		there.enqueue(event{stream: near.other})
		return near.asSeen(x.store), nil
	}
	time.AfterFunc(latency, func() {
		n.mu.Lock()
		told := n.links[pairOf(x.id, p)] == l && there.enqueue(event{stream: near.other})
		n.mu.Unlock()
		if !told {
			near.sever()
		}
	})
	return near.asSeen(x.store), nil
}

// side is a stream as the handler of this node is given it.
func (x *Node) side(s *stream) exchange.Stream {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	return s.asSeen(x.store)
}

// Connect implements exchange.Network. Dialling takes one round trip.
func (x *Node) Connect(ctx context.Context, p peer.AddrInfo) error {
	const op = "connect to"
	n := x.net
	n.mu.Lock()
	there := n.nodes[p.ID]
	linked := n.links[pairOf(x.id, p.ID)] != nil
	trip := 2 * n.latency[pairOf(x.id, p.ID)]
	n.mu.Unlock()
	switch {
	case p.ID == x.id:
		return errs.E(errs.Unreachable, errs.Caller, op, p.ID.String(), errors.New("this is our own id"))
	case linked:
		return nil
	case there == nil:
		return errs.E(errs.Unreachable, errs.Peer, op, p.ID.String(), errors.New("no such node"))
	}
	if trip > 0 {
		t := time.NewTimer(trip)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return errs.E(errs.Unreachable, errs.Caller, op, p.ID.String(), err)
	}
	n.Connect(x.id, p.ID)
	return nil
}

// Streams implements exchange.Network: what SetStreams said.
func (x *Node) Streams(peer.ID) int {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	return x.net.streams
}

// Latency implements exchange.Network: twice what SetLatency said.
func (x *Node) Latency(p peer.ID) time.Duration {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	return 2 * x.net.latency[pairOf(x.id, p)]
}

// Tag implements exchange.Network.
func (x *Node) Tag(p peer.ID, value int) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	x.tags[p] = value
}

// TagOf is the value that Tag was last called with for a peer.
func (x *Node) TagOf(p peer.ID) int {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	return x.tags[p]
}

// FillFrom makes the streams that this node is given from now on
// exchange.BlockWriters: the blocks that are written to them by reference are read
// from store, and what is not there resets the stream, after the latency if there
// is one. With nil they are plain streams again.
func (x *Node) FillFrom(store exchange.Blocks) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	x.store = store
}

// Written is how many bytes this node has written itself, to all of its streams.
func (x *Node) Written() int64 { return x.written.Load() }

// Filled is how many bytes were put into its streams in the place of references.
func (x *Node) Filled() int64 { return x.filled.Load() }

// RefuseStreams makes the next count calls of NewStream on this node fail.
func (x *Node) RefuseStreams(count int) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	x.refuse = count
}

// StallReads stops this node reading: its Reads wait, and who writes to it waits
// too when the buffer is full. It goes on when resume is called.
func (x *Node) StallReads() (resume func()) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	if x.stalled == nil {
		x.stalled = make(chan struct{})
	}
	gate := x.stalled
	return func() {
		x.net.mu.Lock()
		defer x.net.mu.Unlock()
		if x.stalled == gate {
			x.stalled = nil
			close(gate)
		}
	}
}

// gate is what reads have to wait for, nil if nothing.
func (x *Node) gate() <-chan struct{} {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	return x.stalled
}
