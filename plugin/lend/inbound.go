package lend

import (
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
)

// A handler is a protocol that the host offers to peers on the plugin's behalf.
type handler struct {
	id protocol.ID
	by *Lease // that handles it; nil since it does not, or was closed; guarded by Lender.mu
}

// inbound is a stream that a peer has opened and that the plugin has not been
// told of. It is in Lender.waiting until somebody takes it out, who then decides.
type inbound struct {
	s       network.Stream
	h       *handler
	decided chan decision // capacity 1
}

// A decision is what becomes of an inbound stream: it is joined to the byte
// channel that a lease expects; or, if there is none, waits again, or is reset
// with code.
type decision struct {
	lease    *Lease
	expected *channel.Expected
	again    bool // its plugin could not be told, for it has ended
	code     network.StreamErrorCode
}

// handle offers a protocol to peers for a lease, from now on or again.
func (l *Lender) handle(le *Lease, id protocol.ID) error {
	const op = "handle protocol"
	l.handling.Lock()
	defer l.handling.Unlock()

	l.mu.Lock()
	h, known := l.protocols[id], len(l.protocols)
	if le.closed {
		l.mu.Unlock()
		return le.over()
	}
	if h != nil {
		h.by = le
		f := l.feed
		var peers []peer.ID
		for p, waiting := range l.waiting {
			if slices.ContainsFunc(waiting, func(in *inbound) bool { return in.h == h }) {
				peers = append(peers, p)
			}
		}
		l.mu.Unlock()
		if f != nil {
			for _, p := range peers {
				f.announce(p)
			}
		}
		return nil
	}
	l.mu.Unlock()

	if known >= maxProtocols {
		return errs.Errorf(errs.TooLarge, errs.Plugin, op, "%s: %d are handled already, want at most %d", id, known, maxProtocols)
	}
	if slices.Contains(l.opts.Host.Mux().Protocols(), id) {
		return errs.E(errs.Invalid, errs.Plugin, op, string(id), errors.New("the host or another plugin handles it already"))
	}
	h = &handler{id: id}
	l.mu.Lock()
	if le.closed {
		l.mu.Unlock()
		return le.over()
	}
	h.by = le
	l.protocols[id] = h
	l.mu.Unlock()
	l.opts.Host.SetStreamHandler(id, func(s network.Stream) { l.accept(h, s) })
	return nil
}

// forget takes protocols back from the host, and resets the streams that wait
// for somebody to handle them. which is called with mu held.
func (l *Lender) forget(which func(*handler) bool) {
	l.handling.Lock()
	defer l.handling.Unlock()
	var gone []protocol.ID
	l.mu.Lock()
	for id, h := range l.protocols {
		if which(h) {
			delete(l.protocols, id)
			gone = append(gone, id)
		}
	}
	for p, waiting := range l.waiting {
		for _, in := range slices.Clone(waiting) {
			if l.protocols[in.h.id] != in.h {
				l.removeLocked(p, in)
				in.decided <- decision{code: network.StreamShutdown}
			}
		}
	}
	l.mu.Unlock()
	for _, id := range gone {
		l.opts.Host.RemoveStreamHandler(id)
	}
}

// Forget takes those protocols back from the host that no open lease handles. A
// lease does it by itself, see the package comment; it is for an owner who
// starts no further incarnation for a while.
func (l *Lender) Forget() { l.forget(func(h *handler) bool { return h.by == nil }) }

// unhandle ends a lease's handling of a protocol, which stays with the host for
// InboundWait more: a plugin that ends in good order takes back what the next
// incarnation is going to handle, and peers need not notice.
func (l *Lender) unhandle(le *Lease, id protocol.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.protocols[id]
	if h == nil || h.by != le {
		return
	}
	h.by = nil
	if l.feed != nil {
		select {
		case l.feed.unhandled <- struct{}{}:
		default:
		}
	}
}

// forgetUnhandled takes back what a lease does not handle, and has had its time.
func (l *Lender) forgetUnhandled(le *Lease) {
	l.forget(func(h *handler) bool { return h.by == nil && !le.closed })
}

// accept is the host's stream handler, called on a goroutine for each stream. It
// stays until the stream has ended.
func (l *Lender) accept(h *handler, s network.Stream) {
	if err := s.Scope().SetService(l.service); err != nil {
		l.refused.Add(1)
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	in := &inbound{s: s, h: h, decided: make(chan decision, 1)}
	if code, ok := l.enter(in); !ok {
		_ = s.ResetWithError(code)
		return
	}
	defer l.calls.Done()
	wait := time.NewTimer(l.opts.InboundWait)
	defer wait.Stop()
	for late := false; !late; {
		var d decision
		select {
		case d = <-in.decided:
		case <-wait.C:
			late = true
			if l.withdraw(in) {
				continue
			}
			d = <-in.decided // it is just being told of
		}
		switch {
		case d.expected != nil && d.lease.join(s, d.expected):
			return
		case d.expected == nil && !d.again:
			_ = s.ResetWithError(d.code)
			return
		case late:
			continue
		}
		// The lease has ended before its plugin had the stream, which is whole.
		if code, ok := l.enter(in); !ok {
			_ = s.ResetWithError(code)
			return
		}
		l.calls.Done() // enter has counted it anew
	}
	l.expired.Add(1)
	_ = s.ResetWithError(network.StreamShutdown)
}

// enter puts a stream among those that wait, and counts its goroutine, unless
// there are too many.
func (l *Lender) enter(in *inbound) (network.StreamErrorCode, bool) {
	p := in.s.Conn().RemotePeer()
	l.mu.Lock()
	if l.closed || l.protocols[in.h.id] != in.h {
		l.mu.Unlock()
		return network.StreamShutdown, false
	}
	if len(l.waiting[p]) >= l.opts.InboundPerPeer || l.waitingAll >= l.opts.Inbound {
		l.mu.Unlock()
		l.refused.Add(1)
		return network.StreamResourceLimitExceeded, false
	}
	l.waiting[p] = append(l.waiting[p], in)
	l.waitingAll++
	l.calls.Add(1)
	f := l.feed
	if in.h.by == nil {
		f = nil // handle announces it
	}
	l.mu.Unlock()
	if f != nil {
		f.announce(p)
	}
	return 0, true
}

// withdraw takes a stream out of those that wait; false if another did.
func (l *Lender) withdraw(in *inbound) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removeLocked(in.s.Conn().RemotePeer(), in)
}

func (l *Lender) removeLocked(p peer.ID, in *inbound) bool {
	waiting := l.waiting[p]
	i := slices.Index(waiting, in)
	if i < 0 {
		return false
	}
	if len(waiting) == 1 {
		delete(l.waiting, p)
	} else {
		l.waiting[p] = slices.Delete(waiting, i, i+1)
	}
	l.waitingAll--
	return true
}

// take takes out the first stream of a peer that a lease may be told of, nil if
// there is none.
func (l *Lender) take(p peer.ID, le *Lease) *inbound {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.waiting[p] {
		if in.h.by == le {
			l.removeLocked(p, in)
			return in
		}
	}
	return nil
}

// waitingPeers are the peers whose streams wait.
func (l *Lender) waitingPeers() []peer.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	peers := make([]peer.ID, 0, len(l.waiting))
	for p := range l.waiting {
		peers = append(peers, p)
	}
	return peers
}

// parseProtocol checks what a plugin gives as a protocol.
func parseProtocol(op, s string) (protocol.ID, error) {
	if s == "" || len(s) > maxProtocolLength {
		return "", errs.Errorf(errs.Invalid, errs.Plugin, op, "protocol %.40q is %d bytes, want 1 to %d", s, len(s), maxProtocolLength)
	}
	return protocol.ID(s), nil
}
