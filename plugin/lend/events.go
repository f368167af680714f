package lend

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// Limits of what is told of one peer. Who tells more than libp2p's own limits
// allow is a peerstore that has gathered it over a long time.
const (
	maxAddrs         = 256
	maxPeerProtocols = 1024
	maxPeerConns     = 64
)

// A feed is one call of Events: the queue of peers to look at. An event says
// only that something about a peer may have changed; run takes its name from the
// queue, reads from the host how things are, and sends what differs from what was
// sent last.
//
// A peer is in the queue at most once, and only if it is connected or the
// plugin believes that it is. So a plugin that does not read costs memory for
// the peers that are or were connected at one time, however many come and go.
type feed struct {
	l    *Lender
	le   *Lease
	wake chan struct{} // capacity 1: the queue was empty and is not any more

	unhandled chan struct{} // capacity 1: a protocol was

	mu     sync.Mutex
	queue  *list.List // of *entry
	queued map[peer.ID]*list.Element
	told   map[peer.ID]*pb.PeerState // what was sent last of those that the plugin believes to be connected; changed by run only
}

// An entry is a peer in the queue.
type entry struct {
	id      peer.ID
	changed bool // how things are with it may have changed, else it has opened a stream
}

func newFeed(l *Lender, le *Lease) *feed {
	return &feed{
		l: l, le: le, wake: make(chan struct{}, 1), unhandled: make(chan struct{}, 1),
		queue: list.New(), queued: make(map[peer.ID]*list.Element), told: make(map[peer.ID]*pb.PeerState),
	}
}

// look has a peer looked at.
func (f *feed) look(p peer.ID) { f.enqueue(p, true) }

// announce has the streams of a peer told of.
func (f *feed) announce(p peer.ID) { f.enqueue(p, false) }

func (f *feed) enqueue(p peer.ID, changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.queued[p]
	// The host is asked with the lock held, so that no answer is older than the
	// one that was acted on before.
	if f.told[p] == nil && f.l.opts.Host.Network().Connectedness(p) == network.NotConnected {
		if e != nil {
			f.queue.Remove(e)
			delete(f.queued, p)
		}
		return
	}
	if e != nil {
		e.Value.(*entry).changed = e.Value.(*entry).changed || changed
		return
	}
	f.queued[p] = f.queue.PushBack(&entry{id: p, changed: changed})
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// pop takes the first peer from the queue, nil if there is none.
func (f *feed) pop() *entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.queue.Front()
	if e == nil {
		return nil
	}
	next := f.queue.Remove(e).(*entry)
	delete(f.queued, next.id)
	return next
}

func (f *feed) toldPeers() []peer.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	peers := make([]peer.ID, 0, len(f.told))
	for p := range f.told {
		peers = append(peers, p)
	}
	return peers
}

// run tells the plugin of all peers, then that this was all, and then of what
// changes, until ctx ends or send fails.
func (f *feed) run(ctx context.Context, send func(*pb.Event) error) error {
	for _, p := range f.l.opts.Host.Network().Peers() {
		if _, err := f.tell(p, send); err != nil {
			return err
		}
	}
	if err := send(&pb.Event{What: &pb.Event_Synced{Synced: &pb.Synced{}}}); err != nil {
		return err
	}
	for _, p := range f.l.waitingPeers() {
		f.announce(p)
	}
	// What this incarnation does not handle by then, it no longer speaks.
	forget := time.NewTimer(f.l.opts.InboundWait)
	defer forget.Stop()
	for {
		if e := f.pop(); e != nil {
			if err := f.settle(e, send); err != nil {
				return err
			}
			continue
		}
		select {
		case <-f.wake:
		case <-f.unhandled:
			forget.Reset(f.l.opts.InboundWait)
		case <-forget.C:
			f.l.forgetUnhandled(f.le)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// settle tells the plugin what has changed about a peer, and of its streams.
func (f *feed) settle(e *entry, send func(*pb.Event) error) error {
	changed := e.changed
	for {
		// The stream is taken before the connections are read: its own is then
		// either among them or gone.
		in := f.l.take(e.id, f.le)
		conns := f.conns(e.id)
		if changed || in != nil && !listed(conns, in.s.Conn().ID()) {
			var err error
			if conns, err = f.tell(e.id, send); err != nil {
				if in != nil {
					in.decided <- decision{again: true}
				}
				return err
			}
			changed = false
		}
		if in == nil {
			return nil
		}
		if !listed(conns, in.s.Conn().ID()) {
			in.decided <- decision{code: network.StreamShutdown} // it is dead
			continue
		}
		if err := f.announceStream(in, send); err != nil {
			return err
		}
	}
}

// announceStream tells the plugin of a stream, which is then joined to the byte
// channel that the plugin dials.
func (f *feed) announceStream(in *inbound, send func(*pb.Event) error) error {
	if err := f.le.admit(); err != nil {
		in.decided <- decision{again: errors.Is(err, errs.Closed), code: network.StreamResourceLimitExceeded}
		return nil
	}
	expected, number, err := f.le.expect()
	if err == nil {
		err = send(&pb.Event{What: &pb.Event_Inbound{Inbound: &pb.Inbound{
			Stream: number, Peer: []byte(in.s.Conn().RemotePeer()), Connection: in.s.Conn().ID(), Protocol: string(in.s.Protocol()),
		}}})
		if err != nil {
			expected.Cancel()
		}
	}
	if err != nil {
		f.le.leave()
		in.decided <- decision{again: true}
		return err
	}
	in.decided <- decision{lease: f.le, expected: expected}
	return nil
}

// conns are the connections of a peer that the plugin was told of.
func (f *feed) conns(p peer.ID) []*pb.Connection {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.told[p].GetConnections()
}

func listed(conns []*pb.Connection, id string) bool {
	return slices.ContainsFunc(conns, func(c *pb.Connection) bool { return c.Id == id })
}

// tell sends how things are with a peer, unless the plugin knows, and returns its
// connections.
func (f *feed) tell(p peer.ID, send func(*pb.Event) error) ([]*pb.Connection, error) {
	f.mu.Lock()
	before := f.told[p]
	f.mu.Unlock()

	state := f.l.read(p)
	switch {
	case before == nil && len(state.Connections) == 0:
		return nil, nil
	case before == nil:
		state.Epoch = f.l.epoch.Add(1)
	default:
		state.Epoch = before.Epoch
		stayed := func(c *pb.Connection) bool { return listed(before.Connections, c.Id) }
		if len(state.Connections) > 0 && !slices.ContainsFunc(state.Connections, stayed) {
			state.Epoch = f.l.epoch.Add(1)
		}
		if proto.Equal(before, state) {
			return state.Connections, nil
		}
	}
	if err := send(&pb.Event{What: &pb.Event_Peer{Peer: state}}); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(state.Connections) == 0 {
		delete(f.told, p)
	} else {
		f.told[p] = state
	}
	return state.Connections, nil
}

// read reads from the host how things are with a peer, all but its epoch. What
// has no order of its own is sorted, so that equal states are equal messages.
func (l *Lender) read(p peer.ID) *pb.PeerState {
	h := l.opts.Host
	conns := h.Network().ConnsToPeer(p)
	conns = slices.DeleteFunc(slices.Clone(conns), network.Conn.IsClosed)
	state := &pb.PeerState{Peer: []byte(p), Identified: l.anyIdentified(conns)}
	for _, c := range conns {
		stat := c.Stat()
		state.Connections = append(state.Connections, &pb.Connection{
			Id: c.ID(), LocalAddr: c.LocalMultiaddr().Bytes(), RemoteAddr: c.RemoteMultiaddr().Bytes(),
			Inbound: stat.Direction == network.DirInbound, Limited: stat.Limited, Opened: stat.Opened.UnixNano(),
		})
	}
	slices.SortFunc(state.Connections, func(a, b *pb.Connection) int {
		return cmp.Or(cmp.Compare(a.Opened, b.Opened), strings.Compare(a.Id, b.Id))
	})
	state.Connections = first(state.Connections, maxPeerConns)
	if len(conns) == 0 {
		return state // the rest is of no use
	}
	// An error means that the peerstore does not know the peer.
	protocols, _ := h.Peerstore().GetProtocols(p)
	slices.Sort(protocols)
	for _, id := range first(protocols, maxPeerProtocols) {
		if len(id) <= maxProtocolLength {
			state.Protocols = append(state.Protocols, strings.ToValidUTF8(string(id), "\uFFFD"))
		}
	}
	for _, a := range h.Peerstore().Addrs(p) {
		state.Addrs = append(state.Addrs, a.Bytes())
	}
	slices.SortFunc(state.Addrs, bytes.Compare)
	state.Addrs = first(state.Addrs, maxAddrs)
	if rtt := h.Peerstore().LatencyEWMA(p); rtt > 0 {
		state.Latency = uint64(rtt)
	}
	return state
}

// first is the beginning of s, n elements at most.
func first[T any](s []T, n int) []T { return s[:min(len(s), n)] }
