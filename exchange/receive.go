package exchange

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/verifcid"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/semaphore"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/merkle"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

const (
	// streamsPerPeer is how many streams of one peer are read at a time, those that
	// we opened included. The reference uses one each way, our own kind up to
	// maxStreams; the bound leaves room for those that are being replaced.
	streamsPerPeer = 3 * maxStreams
	// listPiece is how many entries, or presences, the loop is given at a time.
	// Messages of the reference have as many (protocol note 13).
	listPiece = 1024

	// readWithin is how long a message that has begun may bring nothing more.
	readWithin = time.Minute
)

// handler hears from the network on behalf of an Exchange.
type handler struct{ *Exchange }

func (h handler) PeerUp(p peer.ID, epoch uint64) {
	n, ok := h.cfg.Network.(Neighbourhood)
	near := ok && n.Near(p)
	h.post(input{event: engine.PeerUp{Peer: p, Epoch: epoch, Latency: h.cfg.Network.Latency(p), Near: near}})
}

func (h handler) PeerDown(p peer.ID, epoch uint64) {
	h.post(input{event: engine.PeerDown{Peer: p, Epoch: epoch}})
}

func (h handler) HandleStream(s Stream) { h.read(h.ctx, s) }

// read takes messages off a stream until it ends, a message cannot be read, or
// ctx ends. Blocks are checked here, on the goroutine of the stream. The stream
// is then reset whatever the reason: a peer that has closed its end reads no more,
// and what is written to it would hold up its connection (protocol note 4).
func (e *Exchange) read(ctx context.Context, s Stream) {
	defer func() { _ = s.Reset() }() // there is nobody left to tell
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	p := s.Peer()
	_, refs := s.(BlockWriter)
	e.refs.Store(refs)
	g, ok := e.reading.enter(p)
	if !ok {
		e.cfg.Logger.Info("stream refused: the peer has too many", "peer", p, "streams", streamsPerPeer)
		return
	}
	defer e.reading.leave(g)

	in := newWatched(s)
	defer in.pause()
	var src io.Reader = in
	if l, ok := s.(lent.Reader); ok {
		src = watchedLender{in, l}
	}
	var held int64
	defer func() { g.room.Release(held) }()
	r := blockexc.NewReader(src, blockexc.Limits{MaxFrame: e.cfg.MaxFrame})
	defer r.Close()
	r.Intern = e.view.intern
	r.Admit = func(size int) error {
		if err := g.room.Acquire(ctx, int64(size)); err != nil {
			return err
		}
		held = int64(size)
		in.watch()
		return nil
	}
	var m wire.Message
	for {
		err := r.Next(&m)
		in.pause()
		if err != nil {
			e.readFailed(ctx, p, err)
			return
		}
		e.debug.received(p, &m)
		size := held
		held = 0
		if !e.take(g, &m, func() { g.room.Release(size) }) {
			return
		}
	}
}

// A watched stream is reset when a message has begun on it and does not go on: what
// the message announced keeps its place among all that the peer may have us read.
type watched struct {
	Stream
	timer  *time.Timer
	within bool // a message
}

func newWatched(s Stream) *watched {
	w := &watched{Stream: s, timer: time.AfterFunc(readWithin, func() { _ = s.Reset() })}
	w.timer.Stop()
	return w
}

func (w *watched) watch() { w.within = true; w.timer.Reset(readWithin) }
func (w *watched) pause() { w.within = false; w.timer.Stop() }

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Stream.Read(b)
	w.came(n)
	return n, err
}

func (w *watched) came(n int) {
	if n > 0 && w.within {
		w.timer.Reset(readWithin)
	}
}

// A watchedLender is a watched stream that lends.
type watchedLender struct {
	*watched
	lend lent.Reader
}

func (w watchedLender) ReadLent(p []byte) ([]byte, lent.Buffer, error) {
	b, buf, err := w.lend.ReadLent(p)
	w.came(len(b))
	return b, buf, err
}

// readFailed says why a stream is not read any more, where that is not its usual
// end.
func (e *Exchange) readFailed(ctx context.Context, p peer.ID, err error) {
	if ctx.Err() != nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	if errors.Is(err, errs.Malformed) || errors.Is(err, errs.TooLarge) {
		e.meter.malformed.Add(1)
		e.cfg.Logger.Info("stream closed: a message cannot be read", "peer", p, "err", err)
		return
	}
	e.cfg.Logger.Debug("stream ended", "peer", p, "err", err)
}

// take hands the sections of a message to the loop, in the order in which the
// reference handles them (protocol note 5), and sees to it that done is called
// when the loop has no more to do with the message. It is false if the exchange
// has closed.
//
// Lists go in pieces, and the next piece of a peer, on whatever stream, when the
// loop has done with the last: in between it is the others' turn.
func (e *Exchange) take(g *gate, m *wire.Message, done func()) bool {
	for _, r := range m.Rejected {
		e.meter.rejected.Add(1)
		e.cfg.Logger.Debug("part of a message ignored", "peer", g.peer, "err", r)
	}
	ok := true
	for part := range slices.Chunk(m.WantList.Entries, listPiece) {
		ok = ok && e.inTurn(g, engine.WantlistIn{Peer: g.peer, List: wire.WantList{Entries: part, Full: m.WantList.Full}})
	}
	in, any := e.verify(g.peer, m)
	for part := range slices.Chunk(m.Presences, listPiece) {
		ok = ok && e.inTurn(g, engine.PresencesIn{Peer: g.peer, Presences: part})
	}
	if m.Account != nil && ok {
		ok = e.post(input{event: engine.AccountIn{Peer: g.peer, Account: m.Account}})
	}
	if m.Payment != nil {
		e.meter.payments.Add(1) // nothing is ever charged, so nothing is owed
	}
	if !any || !ok {
		done()
		return ok
	}
	in.done = done
	return e.post(in)
}

// inTurn has the loop take an event, and waits until it has. One event of a peer
// is under way at a time.
func (e *Exchange) inTurn(g *gate, ev engine.Event) bool {
	select {
	case g.turn <- struct{}{}:
	case <-e.stopped:
		return false
	}
	defer func() { <-g.turn }()
	taken := make(chan struct{})
	if !e.post(input{event: ev, done: func() { close(taken) }}) {
		return false
	}
	select {
	case <-taken:
		return true
	case <-e.stopped:
		return false
	}
}

// verify sorts the blocks of a message into those that are what they are called,
// those that are not, and those that nobody waits for, on which no time is spent.
func (e *Exchange) verify(p peer.ID, m *wire.Message) (in input, any bool) {
	ev := engine.BlocksIn{Peer: p}
	for i, d := range m.Deliveries {
		b := engine.Block{Address: d.Address, Size: d.Size()}
		if !e.view.wanted(d.Address) {
			d.Lent.Free()
			ev.Unwanted = append(ev.Unwanted, b)
			continue
		}
		a, err := check(d)
		if err != nil {
			d.Lent.Free()
			e.cfg.Logger.Warn("block refused", "peer", p, "address", d.Address, "err", err)
			ev.Bad = append(ev.Bad, d.Address)
			continue
		}
		if ev.Blocks == nil {
			rest := len(m.Deliveries) - i
			ev.Blocks, in.blocks = make([]engine.Block, 0, rest), make([]arrival, 0, rest)
		}
		ev.Blocks = append(ev.Blocks, b)
		in.blocks = append(in.blocks, a)
	}
	for _, r := range m.Rejected {
		if r.Section == wire.InDeliveries && r.Address.Defined() {
			ev.Bad = append(ev.Bad, r.Address)
		}
	}
	in.event = ev
	return in, len(ev.Blocks)+len(ev.Bad)+len(ev.Unwanted) > 0
}

// check verifies a block against the address it was delivered for. A block asked
// for by CID hashes to that CID; a leaf hashes to the CID it came with, and its
// proof leads from there to the tree (protocol note 8; unlike the reference we
// insist on the root).
func check(d wire.Delivery) (arrival, error) {
	c := d.Address.Root
	if d.Address.Leaf {
		c = d.Cid
		if err := merkle.VerifyLeaf(d.Proof, d.Address.Root, d.Address.Index, c, 0); err != nil {
			return arrival{}, err
		}
	}
	if d.Lent != nil {
		if err := lentHashes(c, d.Lent); err != nil {
			return arrival{}, err
		}
		return arrival{block: lent.NewBlock(c, d.Lent), proof: d.Proof}, nil
	}
	if err := hashes(c, d.Data); err != nil {
		return arrival{}, err
	}
	b, err := blocks.NewBlockWithCid(d.Data, c)
	return arrival{block: b, proof: d.Proof}, err
}

// hashes reports whether data is what c names. Hash functions that are not safe
// are refused, as everywhere in boxo.
func hashes(c cid.Cid, data []byte) error {
	p := c.Prefix()
	if p.MhType == mh.SHA2_256 && p.MhLength == sha256.Size {
		sum := sha256.Sum256(data)
		return isSum(c, sum, len(data))
	}
	if err := verifcid.ValidateCid(verifcid.DefaultAllowlist, c); err != nil {
		return errs.E(errs.BadBlock, errs.Peer, "verify block", wire.CidString(c), err)
	}
	got, err := p.Sum(data)
	if err != nil {
		return errs.E(errs.BadBlock, errs.Peer, "verify block", wire.CidString(c), err)
	}
	if !got.Equals(c) {
		return errs.Errorf(errs.BadBlock, errs.Peer, "verify block", "%d bytes have the cid %s, want %s", len(data), got, c)
	}
	return nil
}

// isSum reports whether the hash of size bytes is the digest of c.
func isSum(c cid.Cid, sum [sha256.Size]byte, size int) error {
	if k := c.KeyString(); k[len(k)-len(sum):] != string(sum[:]) {
		return errs.Errorf(errs.BadBlock, errs.Peer, "verify block", "%d bytes hash to %x, want %x", size, sum, k[len(k)-len(sum):])
	}
	return nil
}

// lentHashes is hashes of bytes where they lie, if the hash function is the usual one.
func lentHashes(c cid.Cid, data *lent.Data) error {
	if p := c.Prefix(); p.MhType != mh.SHA2_256 || p.MhLength != sha256.Size {
		return hashes(c, data.Copy())
	}
	h := sha256.New()
	for _, part := range data.Parts() {
		h.Write(part.Bytes)
	}
	return isSum(c, [sha256.Size]byte(h.Sum(nil)), data.Size())
}

// gates bounds what one peer has us read at a time: a number of streams, and the
// bytes of the messages that are being read on all of them together.
type gates struct {
	limit int64 // bytes

	mu    sync.Mutex
	peers map[peer.ID]*gate
}

type gate struct {
	peer    peer.ID
	room    *semaphore.Weighted // bytes of messages being read, or on their way through the loop
	turn    chan struct{}       // held while a list is
	streams int                 // guarded by gates.mu
}

// enter counts a stream in; false if the peer has as many as it may.
func (gs *gates) enter(p peer.ID) (*gate, bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.peers[p]
	if g == nil {
		if gs.peers == nil {
			gs.peers = make(map[peer.ID]*gate)
		}
		g = &gate{peer: p, room: semaphore.NewWeighted(gs.limit), turn: make(chan struct{}, 1)}
		gs.peers[p] = g
	}
	if g.streams >= streamsPerPeer {
		return nil, false
	}
	g.streams++
	return g, true
}

func (gs *gates) leave(g *gate) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g.streams--; g.streams == 0 {
		delete(gs.peers, g.peer)
	}
}
