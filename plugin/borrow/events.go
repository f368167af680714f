package borrow

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// readEvents reads what the host tells until the node is over, and makes it so
// if the host stops telling.
func (n *Node) readEvents() {
	events, err := n.client.Events(n.ctx, &pb.EventsRequest{})
	for err == nil {
		var ev *pb.Event
		if ev, err = events.Recv(); err == nil {
			n.event(ev)
		}
	}
	if !errors.Is(err, io.EOF) {
		err = pb.FromStatus(n.ctx, err, errs.Ours, "read events")
	}
	n.end(errs.Crashed, errs.Ours, fmt.Errorf("events ended: %w", err))
}

func (n *Node) event(ev *pb.Event) {
	switch what := ev.GetWhat().(type) {
	case *pb.Event_Peer:
		st, err := n.mirror.parse(what.Peer)
		if err == nil {
			err = n.mirror.apply(st, n.tell)
		}
		if err != nil {
			n.log.Error("ignored what the host said of a peer", "err", err)
		}
	case *pb.Event_Inbound:
		n.inbound(what.Inbound)
	case *pb.Event_Synced:
		select {
		case <-n.synced:
		default:
			close(n.synced)
		}
	}
	// Anything else is of a later version.
}

// tell announces what has changed, in libp2p's order.
func (n *Node) tell(c change) {
	for _, lost := range c.lost {
		n.notifs.tell(func(f network.Notifiee) { f.Disconnected(n.host.network, lost) })
	}
	for _, made := range c.made {
		n.notifs.tell(func(f network.Notifiee) { f.Connected(n.host.network, made) })
	}
	if c.after == network.NotConnected && c.before != c.after {
		n.values.left(c.peer)
	}
	// Emit fails on a closed emitter only, and ours are not.
	if c.before != c.after {
		_ = n.bus.connectedness.Emit(event.EvtPeerConnectednessChanged{Peer: c.peer, Connectedness: c.after})
	}
	if c.identified {
		_ = n.bus.identified.Emit(event.EvtPeerIdentificationCompleted{
			Peer: c.peer, Conn: c.state.conns[0], ListenAddrs: c.state.addrs, Protocols: c.state.protocols,
		})
	}
	if len(c.added)+len(c.removed) > 0 {
		_ = n.bus.protocols.Emit(event.EvtPeerProtocolsUpdated{Peer: c.peer, Added: c.added, Removed: c.removed})
	}
}

// inbound takes a stream that a peer has opened. It waits while too many others
// are on their way.
func (n *Node) inbound(in *pb.Inbound) {
	select {
	case n.places <- struct{}{}:
	case <-n.done:
		return
	}
	if !n.spawn(func() { n.serve(in) }) {
		<-n.places
	}
}

// serve dials an inbound stream, and is then its handler's goroutine. A stream of
// a protocol that nobody handles any more is dialled too, to reset it at once.
func (n *Node) serve(in *pb.Inbound) {
	ch, err := n.dial(n.ctx, in.GetStream(), n.loans)
	<-n.places
	if err != nil {
		if n.Err() == nil {
			n.log.Warn("an inbound stream did not come across", "protocol", in.GetProtocol(), "err", err)
		}
		return
	}
	handle := n.mux.handler(protocol.ID(in.GetProtocol()))
	if handle == nil {
		ch.ResetWithCode(uint32(network.StreamProtocolNegotiationFailed))
		return
	}
	p, err := peer.IDFromBytes(in.GetPeer())
	var c *conn
	if err == nil {
		c, err = n.connOf(p, in.GetConnection())
	}
	if err != nil {
		ch.Reset()
		n.log.Error("refused an inbound stream of the host", "protocol", in.GetProtocol(), "err", err)
		return
	}
	s, err := n.newStream(ch, c, protocol.ID(in.GetProtocol()), network.DirInbound)
	if err != nil {
		return // the node is over
	}
	_ = handle(s.Protocol(), s) // asHandler's returns nil, and others own the stream too
}

// forget lets go of peers that have been gone for long.
func (n *Node) forget() {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			n.mirror.forget(now.Add(-goneFor))
		case <-n.done:
			return
		}
	}
}
