package p2p

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/codexchange/codexchange/exchange"
)

// busBuffer is how many events of the host may wait for watch, which takes them
// at once; the host's emitters wait when it is full.
const busBuffer = 256

// An attachment is what lies between Attach and detach: the queue of peers to
// look at, and the goroutines described in the package comment.
type attachment struct {
	net    *Network
	h      exchange.Handler
	bus    event.Subscription
	notifs network.Notifiee

	wake  chan struct{}   // capacity 1: the queue was empty and is not any more
	stop  chan struct{}   // closed when detach begins
	ctx   context.Context // ends then
	end   context.CancelFunc
	ended chan struct{} // closed when detach is done
	calls sync.WaitGroup

	mu     sync.Mutex
	closed bool
	peers  map[peer.ID]*peerState
	queue  []*peerState // peers to look at, in order, each once
}

// peerState is what is known of one peer. It exists while the peer is up, or is
// in the queue, or has streams open to us.
type peerState struct {
	id peer.ID

	// guarded by attachment.mu
	queued    bool
	withdrawn bool                  // the peer said that it stopped speaking the protocol
	named     bool                  // and this: identify named it, later
	waiting   []*inbound            // streams that ask to be let in
	open      map[*inbound]struct{} // these and the ones let in, until they are closed
	pinged    time.Time             // when pings last began

	// owned by dispatch
	epoch uint64   // of the PeerUp that was told, 0 if it is down
	conns []string // ids of the direct connections when last looked
	spoke bool     // it named the protocol or opened a stream, while these lasted
}

// inbound is a stream that a peer opened.
type inbound struct {
	s        network.Stream
	conn     string    // id of its connection
	evidence bool      // that the peer speaks the protocol; guarded by mu while it waits
	admit    chan bool // capacity 1: dispatch's answer
}

func attach(n *Network, h exchange.Handler) (*attachment, error) {
	bus, err := n.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerProtocolsUpdated),
	}, eventbus.BufSize(busBuffer), eventbus.Name(ServiceName))
	if err != nil {
		return nil, err
	}
	a := &attachment{
		net:   n,
		h:     h,
		bus:   bus,
		wake:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		ended: make(chan struct{}),
		peers: make(map[peer.ID]*peerState),
	}
	a.ctx, a.end = context.WithCancel(context.Background())
	look := func(_ network.Network, c network.Conn) { a.look(c.RemotePeer()) }
	a.notifs = &network.NotifyBundle{ConnectedF: look, DisconnectedF: look}
	n.host.Network().Notify(a.notifs)
	n.host.SetStreamHandler(exchange.ProtocolID, a.accept)
	n.host.SetStreamHandler(exchange.StreamsID, a.accept)
	a.lookAtAll()
	a.calls.Go(a.watch)
	a.calls.Go(a.dispatch)
	return a, nil
}

// detach ends everything; see Network.Attach. Any number of callers may wait in it.
func (a *attachment) detach() {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		<-a.ended
		return
	}
	a.closed = true
	var open []*inbound
	for _, st := range a.peers {
		for in := range st.open {
			open = append(open, in)
		}
		for _, in := range st.waiting {
			in.admit <- false
		}
		st.waiting = nil
	}
	a.mu.Unlock()

	host := a.net.host
	host.RemoveStreamHandler(exchange.StreamsID)
	host.RemoveStreamHandler(exchange.ProtocolID)
	host.Network().StopNotify(a.notifs)
	_ = a.bus.Close() // cannot fail
	close(a.stop)
	a.end()
	for _, in := range open {
		_ = in.s.Reset()
	}
	a.calls.Wait()
	a.net.released()
	close(a.ended)
}

// watch writes names into the queue until detach.
func (a *attachment) watch() {
	var pass <-chan time.Time // nil: never
	if every := a.net.opts.Reconcile; every > 0 {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		pass = ticker.C
	}
	for {
		select {
		case <-a.stop:
			return
		case <-pass:
			a.lookAtAll()
		case ev, ok := <-a.bus.Out():
			if !ok {
				return
			}
			switch ev := ev.(type) {
			case event.EvtPeerIdentificationCompleted:
				a.identified(ev.Peer, ev.Protocols, nil)
			case event.EvtPeerProtocolsUpdated:
				a.identified(ev.Peer, ev.Added, ev.Removed)
			}
		}
	}
}

// look asks dispatch to see how things are with a peer.
func (a *attachment) look(p peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		a.enqueue(a.state(p))
	}
}

// lookAtAll does so for every peer that is connected or believed to be up.
func (a *attachment) lookAtAll() {
	connected := a.net.host.Network().Peers()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	for _, p := range connected {
		a.enqueue(a.state(p))
	}
	for _, st := range a.peers {
		a.enqueue(st)
	}
}

// identified notes what identify says of the protocol. Streams that the peer
// opened before it took the protocol back no longer prove anything.
func (a *attachment) identified(p peer.ID, has, lost []protocol.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	st := a.state(p)
	if slices.Contains(lost, exchange.ProtocolID) {
		st.withdrawn, st.named = true, false
		for _, in := range st.waiting {
			in.evidence = false
		}
	}
	if slices.Contains(has, exchange.ProtocolID) {
		st.named = true
	}
	a.enqueue(st)
}

// state returns the state of a peer, making it if need be. mu is held.
func (a *attachment) state(p peer.ID) *peerState {
	st := a.peers[p]
	if st == nil {
		st = &peerState{id: p}
		a.peers[p] = st
	}
	return st
}

// enqueue puts a peer into the queue unless it is there. mu is held.
func (a *attachment) enqueue(st *peerState) {
	if st.queued {
		return
	}
	st.queued = true
	a.queue = append(a.queue, st)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// accept is the host's stream handler, called on a goroutine for each stream.
func (a *attachment) accept(s network.Stream) {
	in := &inbound{s: s, conn: s.Conn().ID(), evidence: true, admit: make(chan bool, 1)}
	st, ok := a.enter(in)
	if !ok {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	defer a.calls.Done()
	release := func() { a.leave(st, in) }
	if !<-in.admit || s.Scope().SetService(ServiceName) != nil {
		_ = s.Reset()
		release()
		return
	}
	a.h.HandleStream(newStream(s, release))
}

// enter registers a stream as waiting, and its goroutine as one to wait for,
// unless there are too many.
func (a *attachment) enter(in *inbound) (*peerState, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false
	}
	st := a.state(in.s.Conn().RemotePeer())
	if len(st.open) >= a.net.opts.InboundStreams {
		return nil, false
	}
	if st.open == nil {
		st.open = make(map[*inbound]struct{})
	}
	st.open[in] = struct{}{}
	st.waiting = append(st.waiting, in)
	a.enqueue(st)
	a.calls.Add(1)
	return st, true
}

// leave forgets a stream that has been closed. It may be called again.
func (a *attachment) leave(st *peerState, in *inbound) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := st.open[in]; !ok {
		return
	}
	delete(st.open, in)
	if len(st.open) == 0 && !a.closed {
		a.enqueue(st) // it may be the last that held the state
	}
}

// dispatch tells the handler what has changed until detach.
func (a *attachment) dispatch() {
	for {
		if st := a.next(); st != nil {
			a.settle(st)
			continue
		}
		select {
		case <-a.wake:
		case <-a.stop:
			return
		}
	}
}

// next takes a peer from the queue, nil if there is none or detach has begun.
func (a *attachment) next() *peerState {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || len(a.queue) == 0 {
		return nil
	}
	st := a.queue[0]
	a.queue[0] = nil
	a.queue = a.queue[1:]
	st.queued = false
	return st
}

// settle compares what the handler was told of a peer with how things are, and
// tells the difference. Whatever changes after it has looked puts the peer into
// the queue again.
func (a *attachment) settle(st *peerState) {
	// The streams are taken before the connections are read: the connection of
	// each is then either among them or gone.
	a.mu.Lock()
	waiting, withdrawn, named := st.waiting, st.withdrawn, st.named
	st.waiting, st.withdrawn, st.named = nil, false, false
	a.mu.Unlock()

	conns := a.directConns(st.id)
	continued := slices.ContainsFunc(st.conns, func(c string) bool { return slices.Contains(conns, c) })
	if withdrawn || !continued {
		st.spoke = false
	}
	if named {
		st.spoke = true
	}
	for _, in := range waiting {
		if in.evidence && slices.Contains(conns, in.conn) {
			st.spoke = true
		}
	}
	up := len(conns) > 0 && (st.spoke || a.known(st.id))
	st.conns = conns

	if st.epoch != 0 && (!up || !continued || withdrawn) {
		a.h.PeerDown(st.id, st.epoch)
		st.epoch = 0
	}
	if st.epoch == 0 && up {
		st.epoch = a.net.epoch.Add(1)
		a.h.PeerUp(st.id, st.epoch)
	}
	for _, in := range waiting {
		in.admit <- up && slices.Contains(conns, in.conn)
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	for in := range st.open {
		// Its connection is gone, so it is dead, even if nobody closes it. One
		// that came while we looked may be on a newer connection.
		if !slices.Contains(conns, in.conn) && !slices.Contains(st.waiting, in) {
			delete(st.open, in)
		}
	}
	if st.epoch == 0 && !st.queued && len(st.waiting) == 0 && len(st.open) == 0 {
		delete(a.peers, st.id)
	}
}

// directConns gives the ids of the open connections to a peer that are not
// limited.
func (a *attachment) directConns(p peer.ID) []string {
	var ids []string
	for _, c := range a.net.host.Network().ConnsToPeer(p) {
		if !c.IsClosed() && !c.Stat().Limited {
			ids = append(ids, c.ID())
		}
	}
	return ids
}

// known reports whether the host remembers that the peer speaks the protocol,
// from this connection or one before. It may forget: when an answer of identify
// is overtaken by a later one, the earlier stays.
func (a *attachment) known(p peer.ID) bool {
	known, err := a.net.host.Peerstore().SupportsProtocols(p, exchange.ProtocolID)
	return err == nil && len(known) > 0
}
