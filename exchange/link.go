package exchange

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

const (
	sendTries  = 3                      // times a message is tried, each on a new stream
	retryAfter = 200 * time.Millisecond // after a new stream has failed, doubled from then on
	openWithin = 10 * time.Second       // to open a stream

	writeWithin = 10 * time.Second // to write a message, and on top of that
	writeRate   = 100 << 10        // as long as its blocks take at this rate, bytes/s

	maxStreams = 8                // to one peer, if it is of our kind
	laneIdle   = 10 * time.Second // after which a lane that has had nothing to carry ends
)

// A link is the way out to one connected peer. The engine has at most one Send,
// one Lookup and maxStreams+1 SendBlocks under way to a peer, so handing them over
// never waits. Two goroutines work for it, started with the first of them and ended
// by close: one asks the store (serve.go), the other owns the first lane. The
// former starts further lanes, which carry blocks only, when they are of use.
type link struct {
	exchange *Exchange
	peer     peer.ID
	epoch    uint64
	ctx      context.Context
	close    context.CancelFunc
	started  bool // owned by loop

	lists  chan outgoing // want lists and presences; they go before blocks
	blocks chan outgoing
	jobs   chan engine.Action // Lookup, SendBlocks

	pace  pace
	lanes atomic.Int32 // beside the first
	under atomic.Int32 // messages of blocks that lanes have, or will have
	told  int          // streams, as the engine was told of them; owned by ask

	doubtful atomic.Bool // a stream with references on it has broken, see put
}

// A lane is one outbound stream to the peer of its link, which is opened when it is
// first needed, and anew when it has broken. One goroutine uses it.
type lane struct {
	*link
	stream   Stream           // nil if there is none
	writer   *blockexc.Writer // of stream
	referred bool             // blocks have been written to stream by reference
}

// outgoing is one message, and what the engine is told when it is out.
type outgoing struct {
	message wire.Message
	size    int // of its blocks, bytes
	sent    engine.Sent

	order engine.SendBlocks // that the blocks are in; of a list, nothing
	refs  bool              // the message has its blocks by reference
}

func newLink(ctx context.Context, e *Exchange, p peer.ID, epoch uint64) *link {
	ctx, cancel := context.WithCancel(ctx)
	return &link{
		exchange: e, peer: p, epoch: epoch, ctx: ctx, close: cancel,
		told:   1,
		lists:  make(chan outgoing, 1),
		blocks: make(chan outgoing, maxStreams+1),
		jobs:   make(chan engine.Action, maxStreams+2),
	}
}

func (k *link) start() {
	if !k.started {
		k.started = true
		k.exchange.wg.Go(k.ask)
		k.exchange.wg.Go((&lane{link: k}).write)
	}
}

// send hands over a list. It and order are called by the loop.
func (k *link) send(a engine.Send) {
	k.start()
	k.lists <- outgoing{
		message: wire.Message{WantList: a.List, Presences: a.Presences},
		sent:    engine.Sent{Peer: k.peer, Epoch: k.epoch},
	}
}

// order hands over a Lookup or SendBlocks.
func (k *link) order(a engine.Action) {
	k.start()
	k.jobs <- a
}

// write is the first lane. It carries everything, one message after another.
func (l *lane) write() {
	defer l.hangUp()
	for {
		var out outgoing
		select {
		case out = <-l.lists:
		default:
			select {
			case <-l.ctx.Done():
				return
			case out = <-l.lists:
			case out = <-l.blocks:
			}
		}
		if !l.carry(&out) {
			return
		}
	}
}

// widen starts lanes as it takes to fill the way to the peer, see pace, and tells the
// engine how many there are. It is called by ask.
func (k *link) widen() {
	n := int(k.lanes.Load()) + 1
	if k.pace.due(k.under.Load() > 0) {
		want := k.pace.streams(k.exchange.cfg.Network.Latency(k.peer), k.exchange.cfg.Network.Streams(k.peer))
		for ; n < want; n++ {
			k.lanes.Add(1)
			k.exchange.wg.Go((&lane{link: k}).help)
		}
	}
	if n != k.told {
		k.told = n
		k.exchange.post(input{event: engine.Streams{Peer: k.peer, Epoch: k.epoch, Streams: n}})
	}
}

// help is a further lane. It carries blocks until there are none for a while.
func (l *lane) help() {
	defer l.hangUp()
	idle := time.NewTimer(laneIdle)
	defer idle.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-idle.C:
			l.lanes.Add(-1) // the engine is told with the next blocks
			return
		case out := <-l.blocks:
			if !l.carry(&out) {
				return
			}
			idle.Reset(laneIdle)
		}
	}
}

// carry writes a message and says so; false if the lane has nothing more to do.
func (l *lane) carry(out *outgoing) bool {
	out.sent.OK = l.deliver(out)
	if out.sent.Blocks {
		l.under.Add(-1)
		if out.sent.OK {
			l.pace.carried(time.Now(), out.size)
		}
	}
	return l.ctx.Err() == nil && l.exchange.post(input{event: out.sent})
}

// deliver writes one message, on a new stream if the one there is has broken. A
// peer may close a stream at any time and go on with another (protocol note 3).
func (l *lane) deliver(out *outgoing) bool {
	if out.message.Empty() {
		return true // all of its blocks were gone
	}
	pause := retryAfter
	for try := 1; ; try++ {
		old := l.stream != nil
		err := l.put(out)
		if err == nil {
			return true
		}
		// A stream that was open may have been closed since the last message, and one
		// with references broken over a block. Neither says much of the peer.
		atOnce := old || l.referred
		if l.referred {
			l.doubtful.Store(true)
		}
		l.hangUp()
		if l.ctx.Err() != nil {
			return false
		}
		l.exchange.cfg.Logger.Debug("message not sent", "peer", l.peer, "try", try, "err", err)
		// A peer that takes nothing is not sent the same again at once.
		if try == sendTries || timedOut(err) || errors.Is(err, errs.Invalid) || errors.Is(err, errs.TooLarge) {
			l.exchange.cfg.Logger.Info("peer cannot be reached; it is left alone for a while", "peer", l.peer, "err", err)
			return false
		}
		if atOnce {
			continue
		}
		select {
		case <-l.ctx.Done():
			return false
		case <-time.After(pause):
			pause *= 2
		}
	}
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// put tries to write one message. Blocks go by reference if the message was made
// that way, the stream can do it, and there is no doubt about it. There is when a
// stream broke that had references on it: one of their blocks may be gone from the
// store, or damaged, and nobody says which. So the next message of blocks on any lane,
// which is that one if it was noticed at once, is made anew of the blocks themselves.
// Reading them shows what is missing, and the peer gets the others.
func (l *lane) put(out *outgoing) error {
	if l.stream == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if _, can := l.stream.(BlockWriter); out.refs && (!can || l.doubtful.Load()) {
		if *out = l.read(out.order, false); out.message.Empty() {
			l.doubtful.Store(false)
			return nil // they were all gone
		}
	}
	within := writeWithin + time.Duration(out.size)*time.Second/writeRate
	if err := l.stream.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	l.referred = l.referred || out.refs
	if err := l.writer.Write(&out.message); err != nil {
		return err
	}
	if out.sent.Blocks && !out.refs {
		l.doubtful.Store(false)
	}
	l.exchange.debug.sent(l.peer, &out.message)
	return nil
}

// open opens the outbound stream and has it read, for a peer may answer on it as
// well as on a stream of its own (protocol note 2).
func (l *lane) open() error {
	ctx, cancel := context.WithTimeout(l.ctx, openWithin)
	defer cancel()
	s, err := l.exchange.cfg.Network.NewStream(ctx, l.peer)
	if err != nil {
		return err
	}
	l.stream = s
	l.writer = blockexc.NewWriter(s, blockexc.Limits{MaxFrame: maxFrame})
	l.exchange.wg.Go(func() { l.exchange.read(l.ctx, s) })
	return nil
}

// hangUp ends the outbound stream, and with it the goroutine that reads it.
func (l *lane) hangUp() {
	if l.stream != nil {
		_ = l.stream.Reset() // there is nobody left to tell
		l.stream, l.writer, l.referred = nil, nil, false
	}
}

// complain logs what the local store could not do, which is an operator's matter.
// The address is the first of those that it was asked about.
func (k *link) complain(what string, a wire.Address, err error) {
	if err == nil || errors.Is(err, errs.NotFound) || k.ctx.Err() != nil {
		return
	}
	k.exchange.cfg.Logger.LogAttrs(k.ctx, slog.LevelError, "store failed", slog.String("doing", what), slog.String("address", a.String()), slog.Any("err", err))
}
