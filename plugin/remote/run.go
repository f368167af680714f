package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// maxMessage is about how many bytes of CIDs one Command has.
	maxMessage = 512 << 10
	// storedDelay is how long a stored block may wait to be told of. Who has just
	// fetched one often asks for the next at once.
	storedDelay = 2 * time.Millisecond
	// maxRanges is how many ranges one Command has.
	maxRanges = 16_384
)

// An incarnation is one run of the plugin. Its fields are guarded by Client.mu,
// if there is no other word.
type incarnation struct {
	plugin pb.ExchangeClient // never changes, as caps
	caps   *pb.StartReply
	wake   chan struct{} // has room for one: there is something to send
	soon   *time.Timer   // runs while there is only what may wait a little, else nil

	last  uint64              // number given to a request
	sent  map[uint64]*request // pending requests that the plugin has, by number
	named map[uint64]struct{} // sessions that the plugin has

	// To be sent, beside Client.unsent, stored and leaves.
	cancels []uint64
	ended   []uint64
	credits map[*request]struct{} // that are owed some
	passed  uint64                // of the ring; 0 if there is nothing new
}

// Shared is the memory that the host shares with a plugin; nil where there is none.
type Shared struct {
	Outbound *memory.Memory // where the plugin puts payload of results
	// Inbound is where streams bring bytes to the plugin, of which payload may be.
	Inbound *memory.Memory
	// Returned takes back regions of Inbound, by where they begin. Its error says
	// that the plugin has broken the contract. It does not wait.
	Returned func(regions []uint64) error
}

// Run serves one incarnation of the plugin, which has been started and has
// answered with caps. Everything pending is sent to it first. Run returns when
// ctx ends, with its cause, and when something fails: the error is of kind
// errs.Crashed if the plugin is gone, and of kind errs.Malformed or errs.BadBlock
// if it has broken the contract. It closes results. Some of the payload of results
// is in the memory that is shared, which is the caller's, and is used no more when Run
// returns. It calls up, unless that is nil,
// as soon as questions to the plugin are answered. Only one Run is under way at a
// time. Close does not end it, for the plugin may go on to serve peers.
func (c *Client) Run(ctx context.Context, plugin pb.ExchangeClient, caps *pb.StartReply, results io.ReadWriteCloser, shared Shared, up func()) error {
	defer results.Close()
	v := &incarnation{
		plugin:  plugin,
		caps:    caps,
		wake:    make(chan struct{}, 1),
		sent:    make(map[uint64]*request),
		named:   make(map[uint64]struct{}),
		credits: make(map[*request]struct{}),
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := c.attach(v); err != nil {
		return err
	}
	defer c.detach(v)
	if up != nil {
		up()
	}

	// Whoever fails first says why Run ends.
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.send(ctx, v, results); err != nil {
			// If the plugin has ended, who reads the results, or the call, knows why.
			select {
			case <-ctx.Done():
			case <-time.After(answerTimeout):
				cancel(errs.E(errs.Crashed, errs.Plugin, "send commands", "", err))
			}
		}
		results.Close() // ends receive
	})
	answered := make(chan struct{})
	wg.Go(func() {
		defer close(answered)
		cancel(answer(ctx, plugin))
		results.Close() // ends a write
	})
	frames := newFrameReader(results)
	if shared.Outbound != nil && caps.GetOutbound() {
		frames.ring = &ringReader{m: shared.Outbound, tell: func(at uint64) { c.pass(v, at) }}
	}
	if shared.Inbound != nil && caps.GetInbound() {
		frames.inbound, frames.returned = shared.Inbound, shared.Returned
	}
	if err := c.receive(v, frames); !errors.Is(err, io.EOF) {
		cancel(err)
	} else {
		// The results have ended in good order, so the plugin says why, or is gone.
		select {
		case <-answered:
		case <-time.After(answerTimeout):
		}
		cancel(err)
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (c *Client) attach(v *incarnation) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil {
		return errs.Errorf(errs.Invalid, errs.Caller, "run exchange", "another incarnation is running")
	}
	c.run = v
	c.counts.Incarnations++
	c.wake()
	return nil
}

// detach puts everything that the plugin had back to what is unsent.
func (c *Client) detach(v *incarnation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range v.sent {
		r.number, r.local = 0, false
		c.unsent[r.seq] = r
	}
	v.soonSent()
	c.run = nil
}

// wake says that there is something to send.
func (c *Client) wake() {
	if c.run != nil {
		select {
		case c.run.wake <- struct{}{}:
		default:
		}
	}
}

// wakeSoon says that there is something to send, but that it may wait a little for
// something else to go with.
func (c *Client) wakeSoon() {
	v := c.run
	if v == nil || v.soon != nil {
		return
	}
	v.soon = time.AfterFunc(storedDelay, func() {
		select {
		case v.wake <- struct{}{}:
		default:
		}
	})
}

// soonSent says that everything is being sent that might have waited.
func (v *incarnation) soonSent() {
	if v.soon != nil {
		v.soon.Stop()
		v.soon = nil
	}
}

// forget takes a request from the incarnation that has it. tell says that the
// plugin does not know yet.
func (c *Client) forget(r *request, tell bool) {
	if r.number == 0 {
		return
	}
	delete(c.run.sent, r.number)
	delete(c.run.credits, r)
	if tell {
		c.run.cancels = append(c.run.cancels, r.number)
		c.wake()
	}
	r.number, r.local = 0, false
}

// ErrStopped is why Run ends when the plugin has ended its part in good order. Its
// exchange may still be closing, and its process ends soon.
var ErrStopped = errors.New("the plugin has stopped")

// answerTimeout is how much later than its results the plugin may end the call.
const answerTimeout = time.Second

// answer calls Run and waits until the plugin ends the call.
func answer(ctx context.Context, plugin pb.ExchangeClient) error {
	const op = "run exchange"
	if _, err := plugin.Run(ctx, &pb.RunRequest{}); err != nil {
		return pb.FromStatus(ctx, err, errs.Plugin, op)
	}
	return errs.E(errs.Crashed, errs.Plugin, op, "", ErrStopped)
}

// pass has the plugin told how much of the ring has been read.
func (c *Client) pass(v *incarnation, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v.passed = at
	c.wake()
}

// send writes whatever there is to be said, until ctx ends, or writing fails.
func (c *Client) send(ctx context.Context, v *incarnation, w io.Writer) error {
	var buf []byte
	flush := func() error {
		_, err := w.Write(buf)
		if buf = buf[:0]; cap(buf) > 2*batchSize {
			buf = nil // it was long once
		}
		return err
	}
	for {
		select {
		case <-v.wake:
		case <-ctx.Done():
			return nil
		}
		for m := range c.commands(v) {
			var err error
			if buf, err = appendMessage(buf, m, MaxCommand); err == nil && len(buf) >= batchSize {
				err = flush()
			}
			if err != nil {
				return err
			}
		}
		if len(buf) > 0 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// commands makes what there is to be sent now. What has ended goes first, and
// what was stored before a request was made goes before the request. A request
// gets its number when it is its turn, so that its cancel comes after it.
func (c *Client) commands(v *incarnation) func(yield func(*pb.Command) bool) {
	c.mu.Lock()
	v.soonSent()
	cancels, ended := v.cancels, v.ended
	v.cancels, v.ended = nil, nil
	stored, missed, leaves := c.stored.take(), c.missed, c.leaves.take()
	c.missed = 0
	passed := v.passed
	v.passed = 0
	unsent := slices.SortedFunc(maps.Values(c.unsent), func(a, b *request) int { return cmp.Compare(a.seq, b.seq) })
	credits := slices.Collect(maps.Keys(v.credits))
	c.mu.Unlock()

	return func(yield func(*pb.Command) bool) {
		if passed > 0 && !yield(&pb.Command{Do: &pb.Command_Passed{Passed: passed}}) {
			return
		}
		for _, n := range cancels {
			if !yield(&pb.Command{Do: &pb.Command_Cancel{Cancel: &pb.Cancel{Request: n}}}) {
				return
			}
		}
		for _, id := range ended {
			if !yield(&pb.Command{Do: &pb.Command_EndSession{EndSession: &pb.EndSession{Session: id}}}) {
				return
			}
		}
		for m := range storedCommands(stored, missed) {
			if !yield(m) {
				return
			}
		}
		for m := range leafCommands(leaves) {
			if !yield(m) {
				return
			}
		}
		for _, r := range unsent {
			for m := range c.wantCommands(v, r) {
				if !yield(m) {
					return
				}
			}
		}
		for _, r := range credits {
			if m := c.creditCommand(v, r); m != nil && !yield(m) {
				return
			}
		}
	}
}

func storedCommands(list []storedBlock, missed uint64) func(yield func(*pb.Command) bool) {
	return func(yield func(*pb.Command) bool) {
		m := &pb.Stored{Missed: missed}
		bytes := 0
		for _, b := range list {
			m.Blocks = append(m.Blocks, &pb.StoredBlock{Cid: b.cid.Bytes(), Size: uint64(b.size)})
			if bytes += b.cid.ByteLen() + 16; bytes >= maxMessage {
				if !yield(&pb.Command{Do: &pb.Command_Stored{Stored: m}}) {
					return
				}
				m, bytes = &pb.Stored{}, 0
			}
		}
		if len(m.Blocks) > 0 || m.Missed > 0 {
			yield(&pb.Command{Do: &pb.Command_Stored{Stored: m}})
		}
	}
}

func leafCommands(list []storedLeaves) func(yield func(*pb.Command) bool) {
	return func(yield func(*pb.Command) bool) {
		for len(list) > 0 {
			root := list[0].root
			var ranges []wire.Range
			for len(list) > 0 && len(ranges) < maxRanges && list[0].root.Equals(root) {
				ranges = append(ranges, list[0].Range)
				list = list[1:]
			}
			m := &pb.StoredLeaves{Root: root.Bytes(), Ranges: toRanges(wire.Ranges(ranges))}
			if !yield(&pb.Command{Do: &pb.Command_StoredLeaves{StoredLeaves: m}}) {
				return
			}
		}
	}
}

// wantCommands makes the messages of one request: nothing, if it has ended since
// it was found to be unsent.
func (c *Client) wantCommands(v *incarnation, r *request) func(yield func(*pb.Command) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, unsent := c.unsent[r.seq]; !unsent {
		return func(func(*pb.Command) bool) {}
	}
	delete(c.unsent, r.seq)
	v.last++
	r.number = v.last
	v.sent[r.number] = r
	r.local = false
	r.credit, r.owed = max(c.opt.Window-r.queued, 0), min(c.opt.Window-r.queued, 0)
	var session uint64
	if r.session != nil {
		session = r.session.id
		v.named[session] = struct{}{}
	}
	number, credit := r.number, uint64(r.credit)

	if r.need.leaves() {
		tree, ranges := r.need.tree, slices.Clone(r.need.ranges)
		return func(yield func(*pb.Command) bool) {
			for more := true; more; {
				n := min(len(ranges), maxRanges)
				m := &pb.WantLeaves{Request: number, Session: session, Root: tree.Root.Bytes(), Leaves: tree.Leaves, Ranges: toRanges(ranges[:n]), Credit: credit, Trace: r.trace}
				ranges, credit = ranges[n:], 0
				more = len(ranges) > 0
				m.More = more
				if !yield(&pb.Command{Do: &pb.Command_WantLeaves{WantLeaves: m}}) {
					return
				}
			}
		}
	}
	keys, single := r.need.left(), r.single
	return func(yield func(*pb.Command) bool) {
		for more := true; more; {
			m := &pb.Want{Request: number, Session: session, Single: single, Credit: credit, Trace: r.trace}
			credit = 0
			for bytes := 0; len(keys) > 0 && bytes < maxMessage; keys = keys[1:] {
				m.Cids = append(m.Cids, keys[0].Bytes())
				bytes += keys[0].ByteLen() + 4
			}
			more = len(keys) > 0
			m.More = more
			if !yield(&pb.Command{Do: &pb.Command_Want{Want: m}}) {
				return
			}
		}
	}
}

// creditCommand gives the plugin what it is owed, nil if that is nothing.
func (c *Client) creditCommand(v *incarnation, r *request) *pb.Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(v.credits, r)
	if r.number == 0 || r.owed <= 0 {
		return nil
	}
	n := r.owed
	r.owed = 0
	r.credit += n
	return &pb.Command{Do: &pb.Command_Credit{Credit: &pb.Credit{Request: r.number, Bytes: uint64(n)}}}
}

func toRanges(list []wire.Range) []*pb.Range {
	out := make([]*pb.Range, len(list))
	for i, r := range list {
		out[i] = &pb.Range{First: r.First, Count: r.Count}
	}
	return out
}

// receive reads results until that fails.
func (c *Client) receive(v *incarnation, f *frameReader) error {
	for {
		res, err := f.next()
		if err == nil {
			err = c.result(v, f, res)
		}
		var ours *errs.Error
		switch {
		case err == nil:
		case errors.As(err, &ours):
			return err
		default:
			return errs.E(errs.Crashed, errs.Plugin, "read results", "", err)
		}
	}
}

// result deals with one result, and its payload.
func (c *Client) result(v *incarnation, f *frameReader, res result) error {
	switch res.kind {
	case doneResult:
		c.done(v, res)
		return nil
	case returnedResult:
		if err := f.takeBack(res.regions); err != nil {
			return f.malformed(err)
		}
		return nil
	case unknownResult:
		return nil // of a later version: it is for somebody else
	}
	wanted, err := c.charge(v, res)
	if err != nil {
		return f.malformed(err)
	}
	if !wanted {
		return f.skip(res)
	}
	var b blocks.Block
	if res.kind == blockResult {
		data, err := f.payload(res)
		if err != nil {
			return err
		}
		if c.opt.Verify {
			if sum, err := res.cid.Prefix().Sum(data); err != nil || !sum.Equals(res.cid) {
				return errs.E(errs.BadBlock, errs.Plugin, "read results", wire.CidString(res.cid), err)
			}
		}
		if b, err = blocks.NewBlockWithCid(data, res.cid); err != nil {
			return errs.E(errs.BadBlock, errs.Plugin, "read results", wire.CidString(res.cid), err)
		}
	}
	c.deliver(v, res, b)
	return nil
}

// charge takes the cost of a result from the credit of its request, and says
// whether it is wanted. The error says that there was no credit.
func (c *Client) charge(v *incarnation, res result) (wanted bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := v.sent[res.request]
	if r != nil {
		if r.credit <= 0 {
			return false, fmt.Errorf("request %d has no credit left (%d bytes), and there is a result of %d bytes", res.request, r.credit, res.size)
		}
		r.credit -= cost(res.size)
		if r.need.has(&res) {
			return true, nil
		}
	}
	c.skipped(r, res)
	return false, nil
}

// skipped counts a result that nobody waits for, and gives its credit back.
func (c *Client) skipped(r *request, res result) {
	c.counts.Skipped++
	c.counts.SkippedBytes += uint64(res.size)
	if r != nil {
		c.owe(r, cost(res.size))
	}
}

// deliver gives a block that has been charged to its request, if that still
// misses it. A block that is nil is in the host's store.
func (c *Client) deliver(v *incarnation, res result, b blocks.Block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := v.sent[res.request]
	if r == nil || !r.need.has(&res) {
		c.skipped(r, res)
		return
	}
	c.counts.Results++
	c.counts.Bytes += uint64(res.size)
	if len(res.parts) > 0 {
		c.counts.InPlace += uint64(res.size - res.inline)
	}
	if b == nil {
		c.counts.Held++
	}
	if r.need.leaves() {
		r.need.got(res.index)
	} else {
		delete(r.need.missing, res.cid)
		c.unwait(r, res.cid)
	}
	c.push(r, arrival{block: b, cid: res.cid, index: res.index, proof: res.proof, cost: cost(res.size)})
}

// done ends a request as the plugin says, whatever is missing.
func (c *Client) done(v *incarnation, res result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := v.sent[res.request]
	if r == nil {
		return
	}
	err := res.err
	if err == nil && r.single {
		err = errs.E(errs.Other, errs.Plugin, "get block", wire.CidString(r.need.keys[0]), errors.New("the exchange ended the request without the block"))
	}
	if err != nil && !r.single {
		// A channel cannot tell why it is closed.
		c.opt.Log.Info("exchange: the plugin has ended a request", "missing", len(r.need.missing)+len(r.need.ranges), "err", err)
	}
	c.finish(r, err, false)
}
