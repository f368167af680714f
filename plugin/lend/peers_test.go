package lend

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

func connected(s *pb.PeerState) bool  { return len(s.Connections) > 0 }
func identified(s *pb.PeerState) bool { return connected(s) && s.Identified }
func away(s *pb.PeerState) bool       { return !connected(s) }

// Every incarnation is told of each connected peer, with what the host knows of
// it, and then that this was all, before anything else.
func TestReplay(t *testing.T) {
	node, a, b := newHost(t), newHost(t), newHost(t)
	l := newLender(t, node, Options{})
	a.SetStreamHandler(echo, func(s network.Stream) { s.Reset() })
	connect(t, node, a)
	connect(t, b, node)
	var last uint64
	for range 3 {
		p, states := newPeerPlugin(t, l)
		if len(states) != 2 {
			t.Fatalf("%d peers before synced, want 2: %v", len(states), states)
		}
		for _, s := range states {
			if s.Epoch <= last {
				t.Errorf("epoch is %d, want more than those of the incarnation before, up to %d", s.Epoch, last)
			}
			if len(s.Connections) != 1 || s.Connections[0].Inbound != (string(s.Peer) == string(b.ID())) {
				t.Errorf("connections are %v, want one in the right direction", s.Connections)
			}
			if string(s.Peer) == string(a.ID()) && (!s.Identified || !slices.Contains(s.Protocols, echo) || len(s.Addrs) == 0) {
				t.Errorf("the peer that we have connected to is %v, want it identified, with protocols and addresses", s)
			}
		}
		last = max(states[0].Epoch, states[1].Epoch)
		p.end()
	}
}

// A host that was there before the Lender has connections on which identify has
// completed.
func TestIdentifiedBefore(t *testing.T) {
	node, a := newHost(t), newHost(t)
	connect(t, node, a)
	_, states := newPeerPlugin(t, newLender(t, node, Options{}))
	if len(states) != 1 || !states[0].Identified {
		t.Errorf("states are %v, want one that is identified", states)
	}
}

// Changes are told as they come: the epoch stays while a connection stays, and
// rises when all are new. What has not changed is not told.
func TestChanges(t *testing.T) {
	node, a, b := newHost(t), newHost(t), newHost(t)
	l := newLender(t, node, Options{Reconcile: 20 * time.Millisecond})
	p, states := newPeerPlugin(t, l)
	if len(states) != 0 {
		t.Fatalf("states before synced are %v, want none", states)
	}
	connect(t, a, node)
	first := p.state("identify completes", a, identified)

	for range 100 {
		l.look(a.ID())
	}
	connect(t, b, node)
	for {
		ev := p.event("the next change").GetPeer()
		if string(ev.GetPeer()) == string(b.ID()) {
			break
		}
		if ev.Epoch != first.Epoch || len(ev.Protocols) == len(first.Protocols) && len(ev.Addrs) == len(first.Addrs) {
			t.Errorf("told %v, which is not new after %v", ev, first)
		}
	}

	a.SetStreamHandler(echo, func(s network.Stream) { s.Reset() })
	s := p.state("a protocol more", a, func(s *pb.PeerState) bool { return slices.Contains(s.Protocols, echo) })
	if s.Epoch != first.Epoch {
		t.Errorf("epoch is %d after a change of protocols, want %d", s.Epoch, first.Epoch)
	}
	node.Peerstore().RecordLatency(a.ID(), 7*time.Millisecond)
	p.state("the pass finds the latency", a, func(s *pb.PeerState) bool { return s.Latency > 0 && s.Epoch == first.Epoch })

	node.Network().ClosePeer(a.ID())
	if s := p.state("it is gone", a, away); s.Epoch != first.Epoch {
		t.Errorf("epoch is %d at the end, want %d", s.Epoch, first.Epoch)
	}
	connect(t, node, a)
	if s := p.state("it is back", a, connected); s.Epoch <= first.Epoch {
		t.Errorf("epoch is %d after a reconnect, want more than %d", s.Epoch, first.Epoch)
	}
}

// Connect has put the connection into the events before it returns, and says why
// if it cannot.
func TestConnect(t *testing.T) {
	node, a := newHost(t), newHost(t)
	p, _ := newPeerPlugin(t, newLender(t, node, Options{}))
	connect := func(h host.Host, addrs ...[]byte) error {
		t.Helper()
		reply, err := p.Connect(t.Context(), &pb.ConnectRequest{Peer: []byte(h.ID()), Addrs: addrs})
		return errors.Join(err, reply.GetError().Err())
	}
	if err := connect(a); !errors.Is(err, errs.Unreachable) {
		t.Errorf("without addresses: %v, want %v", err, errs.Unreachable)
	}
	if err := connect(a, a.Addrs()[0].Bytes()); err != nil {
		t.Fatal(err)
	}
	p.state("the connection", a, connected)
	if err := connect(a); err != nil {
		t.Errorf("when it is connected: %v, want nil", err)
	}
}

// A plugin that does not read makes nothing grow, however many peers come and go.
func TestQueueIsBounded(t *testing.T) {
	node := newHost(t)
	l := newLender(t, node, Options{})
	f := newFeed(l, nil)
	l.mu.Lock()
	l.feed = f
	l.mu.Unlock()
	for range 5 {
		a := newHost(t)
		connect(t, a, node)
		eventually(t, "the peer is in the queue", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.queue.Len() == 1 })
		a.Close()
		eventually(t, "it is no longer", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.queue.Len() == 0 && len(f.queued) == 0
		})
	}
}
