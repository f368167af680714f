package exchange

import (
	"context"
	"errors"
	"log/slog"
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
)

// A link is the way out to one connected peer. The engine has at most one Send,
// one Lookup and two SendBlocks under way to a peer, so handing them over never
// waits. Two goroutines work for it, started with the first of them and ended by
// close: one asks the store (serve.go), the other owns the outbound stream,
// which is opened when it is first needed, and anew when it has broken.
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

	// Owned by write.
	stream   Stream           // nil if there is none
	writer   *blockexc.Writer // of stream
	referred bool             // blocks have been written to stream by reference
	doubtful bool             // the latest such stream has broken, see put
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
		lists:  make(chan outgoing, 1),
		blocks: make(chan outgoing, 2),
		jobs:   make(chan engine.Action, 3),
	}
}

func (k *link) start() {
	if !k.started {
		k.started = true
		k.exchange.wg.Go(k.ask)
		k.exchange.wg.Go(k.write)
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

// write puts messages on the stream, one after another.
func (k *link) write() {
	defer k.hangUp()
	for {
		var out outgoing
		select {
		case out = <-k.lists:
		default:
			select {
			case <-k.ctx.Done():
				return
			case out = <-k.lists:
			case out = <-k.blocks:
			}
		}
		out.sent.OK = k.deliver(&out)
		if k.ctx.Err() != nil || !k.exchange.post(input{event: out.sent}) {
			return
		}
	}
}

// deliver writes one message, on a new stream if the one there is has broken. A
// peer may close a stream at any time and go on with another (protocol note 3).
func (k *link) deliver(out *outgoing) bool {
	if out.message.Empty() {
		return true // all of its blocks were gone
	}
	pause := retryAfter
	for try := 1; ; try++ {
		old := k.stream != nil
		err := k.put(out)
		if err == nil {
			return true
		}
		// A stream that was open may have been closed since the last message, and one
		// with references broken over a block. Neither says much of the peer.
		atOnce := old || k.referred
		k.hangUp()
		if k.ctx.Err() != nil {
			return false
		}
		k.exchange.cfg.Logger.Debug("message not sent", "peer", k.peer, "try", try, "err", err)
		// A peer that takes nothing is not sent the same again at once.
		if try == sendTries || timedOut(err) || errors.Is(err, errs.Invalid) || errors.Is(err, errs.TooLarge) {
			k.exchange.cfg.Logger.Info("peer cannot be reached; it is left alone for a while", "peer", k.peer, "err", err)
			return false
		}
		if atOnce {
			continue
		}
		select {
		case <-k.ctx.Done():
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
// store, or damaged, and nobody says which. So the next message of blocks, which
// is that one if it was noticed at once, is made anew of the blocks themselves.
// Reading them shows what is missing, and the peer gets the others.
func (k *link) put(out *outgoing) error {
	if k.stream == nil {
		if err := k.open(); err != nil {
			return err
		}
	}
	if _, can := k.stream.(BlockWriter); out.refs && (!can || k.doubtful) {
		if *out = k.read(out.order, false); out.message.Empty() {
			k.doubtful = false
			return nil // they were all gone
		}
	}
	within := writeWithin + time.Duration(out.size)*time.Second/writeRate
	if err := k.stream.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	k.referred = k.referred || out.refs
	if err := k.writer.Write(&out.message); err != nil {
		return err
	}
	if out.sent.Blocks && !out.refs {
		k.doubtful = false
	}
	k.exchange.debug.sent(k.peer, &out.message)
	return nil
}

// open opens the outbound stream and has it read, for a peer may answer on it as
// well as on a stream of its own (protocol note 2).
func (k *link) open() error {
	ctx, cancel := context.WithTimeout(k.ctx, openWithin)
	defer cancel()
	s, err := k.exchange.cfg.Network.NewStream(ctx, k.peer)
	if err != nil {
		return err
	}
	k.stream = s
	k.writer = blockexc.NewWriter(s, blockexc.Limits{MaxFrame: maxFrame})
	k.exchange.wg.Go(func() { k.exchange.read(k.ctx, s) })
	return nil
}

// hangUp ends the outbound stream, and with it the goroutine that reads it.
func (k *link) hangUp() {
	if k.stream != nil {
		_ = k.stream.Reset() // there is nobody left to tell
		k.stream, k.writer = nil, nil
		k.doubtful, k.referred = k.doubtful || k.referred, false
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
