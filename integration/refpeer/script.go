package refpeer

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Send writes raw bytes, with the length in front that they are given with, on
// the peer's own stream to a remote, and waits until they are written. If they
// are messages, their wants count as asked: what they entitle the remote to is
// no violation. It waits for the remote to connect. See Frame.
func (p *Peer) Send(ctx context.Context, to peer.ID, frame []byte) error {
	r, err := p.joined(ctx, to)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	p.mu.Lock()
	for _, m := range framed(frame) {
		p.noteSent(r, m)
	}
	r.control = append(r.control, outgoing{frame: frame, done: done})
	r.nudge()
	p.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("refpeer: send to %s: %w", to, ctx.Err())
	case <-r.ctx.Done():
		return fmt.Errorf("refpeer: send to %s: it has left", to)
	}
}

// framed returns the messages in a run of frames, up to the first that is none.
func framed(b []byte) (ms []Message) {
	for len(b) > 0 {
		n, rest, err := varint(b)
		if err != nil || n > uint64(len(rest)) {
			return ms
		}
		m, err := Decode(rest[:n])
		if err != nil {
			return ms
		}
		ms = append(ms, m)
		b = rest[n:]
	}
	return ms
}

// SendMessage writes a message as Send does.
func (p *Peer) SendMessage(ctx context.Context, to peer.ID, m Message) error {
	return p.Send(ctx, to, Frame(Encode(m)))
}

// Replay writes the recorded message of the given name as Send does.
func (p *Peer) Replay(ctx context.Context, to peer.ID, name string) error {
	frame, err := Vector(name)
	if err != nil {
		return err
	}
	return p.Send(ctx, to, frame)
}

// Expect waits for a message that match likes, among those that came already
// and those that come until ctx ends, and takes it: no other Expect gets it.
// Messages that it passes over stay. The order of messages is thus the
// business of match, as it is nobody's on the wire.
func (p *Peer) Expect(ctx context.Context, match func(Message) bool) (Message, error) {
	for {
		p.mu.Lock()
		log, changed := p.untaken(), p.changed
		p.mu.Unlock()
		for _, rec := range log {
			if rec.Err == nil && match(rec.Message) && p.take(rec) {
				return rec.Message, nil
			}
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		case <-p.ctx.Done():
			return Message{}, errClosed
		}
		var passed []string
		for _, rec := range log {
			passed = append(passed, rec.String())
		}
		return Message{}, fmt.Errorf("refpeer: expect a message: %w; came and was not it: %s",
			ctx.Err(), cmp.Or(strings.Join(passed, " | "), "nothing"))
	}
}

// ExpectViolation waits for a violation of the given kind, among those that
// there are already and those that come until ctx ends. It takes nothing away.
func (p *Peer) ExpectViolation(ctx context.Context, k Kind) (Violation, error) {
	for {
		p.mu.Lock()
		vs, changed := p.violations, p.changed
		p.mu.Unlock()
		for _, v := range vs {
			if v.Kind == k {
				return v, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Violation{}, fmt.Errorf("refpeer: expect a violation %q: %w; got %v", k, ctx.Err(), vs)
		case <-p.ctx.Done():
			return Violation{}, errClosed
		}
	}
}

// untaken lists the messages that no Expect has taken; mu is held.
func (p *Peer) untaken() (recs []*Received) {
	for _, rec := range p.log {
		if !rec.taken {
			recs = append(recs, rec)
		}
	}
	return recs
}

// take reports whether the caller is the first to take a message.
func (p *Peer) take(rec *Received) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !rec.taken
	rec.taken = true
	return first
}

//go:embed testdata/vectors.json
var vectorFile []byte

// vectorFrames reads the frames of the recorded messages by name.
var vectorFrames = sync.OnceValues(func() (map[string][]byte, error) {
	var file struct {
		Messages []struct{ Name, Encoded, Prefix string }
	}
	if err := json.Unmarshal(vectorFile, &file); err != nil {
		return nil, fmt.Errorf("refpeer: vectors: %w", err)
	}
	frames := make(map[string][]byte)
	for _, m := range file.Messages {
		frame, err := hex.DecodeString(m.Prefix + m.Encoded)
		if err != nil {
			return nil, fmt.Errorf("refpeer: vector %q: %w", m.Name, err)
		}
		frames[m.Name] = frame
	}
	return frames, nil
})

// Vector returns a recorded message of the reference with its length in front,
// by name: "empty", "want-have-leaves", "want-have-leaves-full",
// "want-block-plain", "cancel", "presence-have", "presence-have-price",
// "presence-donthave", "delivery-plain", "delivery-leaf",
// "delivery-leaf-noproof", "pending-bytes", "account", "payment".
func Vector(name string) ([]byte, error) {
	frames, err := vectorFrames()
	if err != nil {
		return nil, err
	}
	frame, ok := frames[name]
	if !ok {
		return nil, fmt.Errorf("refpeer: no vector is called %q", name)
	}
	return frame, nil
}
