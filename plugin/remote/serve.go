package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/exchange/spans"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// outLength is how many results wait for the writer. Each is a block of some
	// request that has credit for it.
	outLength = 64
	// maxProof is the length of the longest proof that fits into a head, bytes, and
	// maxParts how many parts of a payload do beside it.
	maxProof = MaxHead/2 - 4*MaxCID
	maxParts = 1024
)

// errStopped ends a serving in good order.
var errStopped = errors.New("stopped")

// A serving is the requests of one Run.
type serving struct {
	server   *Server
	instance *Instance
	ctx      context.Context // ends with Run; its cause says why
	end      context.CancelCauseFunc
	out      chan frame
	ring     *ringWriter   // nil if no memory is shared
	jobReady chan struct{} // has room for one: there are jobs

	mu       sync.Mutex // guards all below, and the credit of calls
	ending   bool       // no goroutine is started any more
	calls    map[uint64]*call
	sessions map[uint64]*sessionOf
	jobs     []*job          // not done yet, oldest first
	jobSize  int             // blocks and ranges in jobs
	lastJob  <-chan struct{} // done of the last job

	wg sync.WaitGroup // everything but who receives
}

// A call is one request of the host.
type call struct {
	number uint64
	ctx    context.Context // ends with the request, its session and Run
	cancel context.CancelFunc

	// Of who receives, until whole.
	whole   bool // its last message has come
	session *sessionOf
	count   int // CIDs or ranges that have come
	bad     error
	keys    []cid.Cid
	single  bool
	isLeaf  bool
	tree    dataset.Tree
	ranges  []wire.Range
	after   <-chan struct{} // closed when the exchange knows what was stored before
	trace   *pb.Trace       // that it is part of, nil for none

	credit int64         // bytes that may be sent; guarded by serving.mu
	grant  chan struct{} // has room for one: there is credit
}

// A sessionOf is a session of the host.
type sessionOf struct {
	ctx    context.Context
	cancel context.CancelFunc

	once    sync.Once // makes fetcher, when it is first needed
	fetcher boxo.Fetcher
}

// A frame is one result to be written. Its payload is in payload, or in what was lent,
// but for small parts, which are in payload.
type frame struct {
	head    *pb.Result
	payload []byte
	lent    *lent.Data // freed when the frame is written; nil if there is none
}

func newServing(s *Server, i *Instance, ctx context.Context) *serving {
	v := &serving{
		server:   s,
		instance: i,
		out:      make(chan frame, outLength),
		jobReady: make(chan struct{}, 1),
		calls:    make(map[uint64]*call),
		sessions: make(map[uint64]*sessionOf),
	}
	if i.Outbound != nil {
		v.ring = newRingWriter(i.Outbound)
	}
	v.ctx, v.end = context.WithCancelCause(ctx)
	return v
}

// cancel ends the serving, in good order if err is nil. What comes first counts.
func (v *serving) cancel(err error) {
	if err == nil {
		err = errStopped
	}
	v.end(err)
}

// run returns when the serving has ended and everything in it has. The error is
// nil if the host, or Server.Close, ended it.
func (v *serving) run() error {
	v.wg.Go(func() { v.cancel(v.write()) })
	v.wg.Go(v.notify)
	v.wg.Go(func() { v.cancel(v.receive()) })
	<-v.ctx.Done()
	v.mu.Lock()
	v.ending = true
	v.mu.Unlock()
	_ = v.instance.Results.Close() // ends write and receive
	v.wg.Wait()
	if err := context.Cause(v.ctx); !errors.Is(err, errStopped) {
		return err
	}
	return nil
}

// receive takes commands until there are no more. It waits for nobody, and so the
// credit that somebody waits for comes through. What is said of numbers that are
// not known is ignored: a request may have ended on this side when its cancel or
// credit was sent. So are commands of a later version.
func (v *serving) receive() error {
	commands := newCommandReader(v.instance.Results)
	for {
		m, err := commands.next()
		var ours *errs.Error
		switch {
		case err == io.EOF:
			return nil
		case errors.As(err, &ours):
			return err
		case err != nil:
			return errs.E(errs.Crashed, errs.Ours, "read commands", "", err)
		}
		switch do := m.Do.(type) {
		case *pb.Command_Want:
			err = v.want(do.Want)
		case *pb.Command_WantLeaves:
			err = v.wantLeaves(do.WantLeaves)
		case *pb.Command_Cancel:
			v.cancelCall(do.Cancel.GetRequest())
		case *pb.Command_Credit:
			v.addCredit(do.Credit.GetRequest(), do.Credit.GetBytes())
		case *pb.Command_EndSession:
			v.endSession(do.EndSession.GetSession())
		case *pb.Command_Stored:
			v.stored(do.Stored)
		case *pb.Command_StoredLeaves:
			v.storedLeaves(do.StoredLeaves)
		case *pb.Command_Passed:
			err = v.ring.passed(do.Passed)
		}
		if err != nil {
			return err
		}
	}
}

// want takes one message of a request. A request that cannot be understood is
// answered when its last message has come. The error says that there is a request
// with the number under way.
func (v *serving) want(m *pb.Want) error {
	c, err := v.part(m.GetRequest(), m.GetSession(), m.GetCredit(), false)
	if err != nil {
		return err
	}
	c.single, c.trace = m.GetSingle(), m.GetTrace()
	for _, b := range m.GetCids() {
		c.count++
		if k, err := parseCID(b); err != nil {
			c.wrong(fmt.Errorf("cid %d: %w", c.count, err))
		} else if c.bad == nil {
			c.keys = append(c.keys, k)
		}
	}
	if !m.GetMore() {
		if c.single && c.count != 1 {
			c.wrong(fmt.Errorf("names %d blocks, want a single one", c.count))
		}
		v.begin(c)
	}
	return nil
}

func (v *serving) wantLeaves(m *pb.WantLeaves) error {
	c, err := v.part(m.GetRequest(), m.GetSession(), m.GetCredit(), true)
	if err != nil {
		return err
	}
	root, err := parseCID(m.GetRoot())
	if err != nil {
		c.wrong(fmt.Errorf("root: %w", err))
	}
	c.tree, c.trace = dataset.Tree{Root: root, Leaves: m.GetLeaves()}, m.GetTrace()
	for _, r := range m.GetRanges() {
		c.ranges = append(c.ranges, wire.Range{First: r.GetFirst(), Count: r.GetCount()})
	}
	if !m.GetMore() {
		v.begin(c)
	}
	return nil
}

// wrong says what is wrong with a request; the first time counts.
func (c *call) wrong(cause error) {
	if c.bad == nil {
		c.bad = errs.E(errs.Invalid, errs.Caller, "want", "request "+strconv.FormatUint(c.number, 10), cause)
		c.keys, c.ranges = nil, nil
	}
}

// part finds the request that a message belongs to, or makes it.
func (v *serving) part(number, session, credit uint64, leaf bool) (*call, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.calls[number]
	if c == nil {
		c = &call{number: number, isLeaf: leaf, grant: make(chan struct{}, 1)}
		ctx := v.ctx
		if session != 0 {
			c.session = v.sessions[session]
			if c.session == nil {
				c.session = new(sessionOf)
				c.session.ctx, c.session.cancel = context.WithCancel(v.ctx)
				v.sessions[session] = c.session
			}
			ctx = c.session.ctx
		}
		c.ctx, c.cancel = context.WithCancel(ctx)
		v.calls[number] = c
	}
	if c.whole || c.isLeaf != leaf {
		return nil, errs.E(errs.Invalid, errs.Caller, "want", "request "+strconv.FormatUint(number, 10), errors.New("another request with this number is under way"))
	}
	c.add(credit)
	return c, nil
}

// begin starts the goroutine of a request.
func (v *serving) begin(c *call) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c.whole, c.after = true, v.lastJob
	if !v.ending {
		v.wg.Go(func() {
			defer v.cancelCall(c.number)
			v.perform(c)
		})
	}
}

// cancelCall ends a request.
func (v *serving) cancelCall(number uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.calls[number]; c != nil {
		c.cancel()
		delete(v.calls, number)
	}
}

func (v *serving) addCredit(number, bytes uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.calls[number]; c != nil {
		c.add(bytes)
	}
}

// add gives a request credit. More than there can be is as much as there can be.
func (c *call) add(bytes uint64) {
	if room := uint64(math.MaxInt64) - uint64(max(c.credit, 0)); bytes > room {
		c.credit = math.MaxInt64
	} else {
		c.credit += int64(bytes)
	}
	select {
	case c.grant <- struct{}{}:
	default:
	}
}

// spend waits until a request has any credit, and takes n of it; false if the
// request has ended.
func (v *serving) spend(c *call, n int) bool {
	for {
		v.mu.Lock()
		ok := c.credit > 0
		if ok {
			c.credit -= int64(n)
		}
		v.mu.Unlock()
		if ok {
			return c.ctx.Err() == nil
		}
		select {
		case <-c.grant:
		case <-c.ctx.Done():
			return false
		}
	}
}

func (v *serving) endSession(id uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.sessions[id]; s != nil {
		s.cancel()
		delete(v.sessions, id)
	}
}

// fetcher is whom a request is made of.
func (v *serving) fetcher(c *call) boxo.Fetcher {
	x, ok := v.instance.Exchange.(boxo.SessionExchange)
	if c.session == nil || !ok {
		return v.instance.Exchange
	}
	c.session.once.Do(func() { c.session.fetcher = x.NewSession(c.session.ctx) })
	return c.session.fetcher
}

// perform makes a request of the exchange and passes on what comes, as credit
// allows, and how it ended. Nothing is said of a request whose context has ended.
func (v *serving) perform(c *call) {
	if c.after != nil {
		select {
		case <-c.after:
		case <-c.ctx.Done():
		}
	}
	err := c.bad
	span := c.start()
	switch {
	case c.ctx.Err() != nil || err != nil:
	case c.isLeaf:
		err = v.getLeaves(c)
	case c.single:
		err = v.getBlock(c)
	default:
		err = v.getBlocks(c)
	}
	span.End(cmp.Or(err, context.Cause(c.ctx)))
	if c.ctx.Err() == nil {
		v.put(c, frame{head: &pb.Result{Request: c.number, What: &pb.Result_Done{Done: &pb.DoneResult{Error: toError(err)}}}})
	}
}

// start makes a request a step of the host's trace, if it is part of one.
func (c *call) start() (span spans.Span) {
	ctx := c.trace.Within(c.ctx)
	switch {
	case c.isLeaf:
		c.ctx, span = spans.Start(ctx, "plugin.Server.GetLeaves")
		span.Cid(c.tree.Root)
	case c.single && len(c.keys) == 1:
		c.ctx, span = spans.Start(ctx, "plugin.Server.GetBlock")
		span.Cid(c.keys[0])
	default:
		c.ctx, span = spans.Start(ctx, "plugin.Server.GetBlocks")
		span.Count("blocks", len(c.keys))
	}
	return span
}

// toError is err as a message that fits into a head.
func toError(err error) *pb.Error {
	m := pb.FromError(err)
	if proto.Size(m) > MaxHead/2 {
		m.Causes = nil
	}
	return m
}

func (v *serving) getBlock(c *call) error {
	b, err := v.fetcher(c).GetBlock(c.ctx, c.keys[0])
	if err != nil {
		return err
	}
	return v.pass(c, b, &pb.BlockResult{})
}

func (v *serving) getBlocks(c *call) error {
	ch, err := v.fetcher(c).GetBlocks(c.ctx, c.keys)
	c.keys = nil // the exchange has them
	return each(c, ch, err, func(b blocks.Block) error { return v.pass(c, b, &pb.BlockResult{}) })
}

func (v *serving) getLeaves(c *call) error {
	x, ok := v.fetcher(c).(dataset.LeafFetcher)
	if !ok {
		x, ok = v.instance.Exchange.(dataset.LeafFetcher)
	}
	if !ok {
		return errs.E(errs.Invalid, errs.Caller, "get leaves", wire.CidString(c.tree.Root), errors.New("the exchange has no leaves"))
	}
	ch, err := x.GetLeaves(c.ctx, c.tree, c.ranges...)
	c.ranges = nil
	return each(c, ch, err, func(b dataset.LeafBlock) error {
		return v.pass(c, b.Block, &pb.BlockResult{Root: b.Root.Bytes(), Index: b.Index, Proof: b.Proof})
	})
}

// each calls pass with everything that comes through a channel, until it is
// closed or the request ends.
func each[T any](c *call, ch <-chan T, err error, pass func(T) error) error {
	for err == nil {
		select {
		case x, ok := <-ch:
			if !ok {
				return nil
			}
			err = pass(x)
		case <-c.ctx.Done():
			return nil
		}
	}
	return err
}

// pass sends a block, when there is credit for it.
func (v *serving) pass(c *call, b blocks.Block, head *pb.BlockResult) error {
	const op = "get block"
	if b == nil || !b.Cid().Defined() {
		return errs.E(errs.Other, errs.Plugin, op, "", errors.New("the exchange returned neither a block nor an error"))
	}
	head.Cid = b.Cid().Bytes()
	f := frame{head: &pb.Result{Request: c.number}}
	if leaf, ok := b.(dataset.LeafBlock); ok {
		b = leaf.Block
	}
	size := 0 // of the payload
	if lazy, ok := b.(*lazyBlock); ok && lazy.ctx == v.server.ctx {
		head.Size = uint64(lazy.size)
		f.head.What = &pb.Result_Held{Held: head}
	} else {
		if f.lent, f.payload = v.takeLent(b, head); f.lent != nil {
			size = f.lent.Size()
			defer func() {
				if f.lent != nil {
					f.lent.Free()
				}
			}()
		} else {
			f.payload = b.RawData()
			size = len(f.payload)
		}
		// It may be a wrapper around a lazyBlock that cannot be read.
		if size == 0 && !isEmpty(b.Cid()) {
			return errs.E(errs.Storage, errs.Ours, op, wire.CidString(b.Cid()), errors.New("the block has no bytes"))
		}
		head.Size = uint64(size)
		f.head.What = &pb.Result_Block{Block: head}
	}
	for _, l := range []struct {
		what     string
		got, max int
	}{
		{"block", size, MaxBlock},
		{"proof", len(head.Proof), maxProof},
		{"cid", len(head.Cid), MaxCID},
		{"root", len(head.Root), MaxCID},
	} {
		if l.got > l.max {
			return errs.E(errs.TooLarge, errs.Plugin, op, wire.CidString(b.Cid()), fmt.Errorf("%s is %d bytes, want at most %d", l.what, l.got, l.max))
		}
	}
	if v.spend(c, cost(size)) && v.put(c, f) {
		f.lent = nil // the writer's
	}
	return nil
}

// takeLent takes the bytes of a block where streams have brought them, if nearly all are
// there, says so in the head of its result, and returns the rest; else data is nil.
func (v *serving) takeLent(b blocks.Block, head *pb.BlockResult) (data *lent.Data, inline []byte) {
	l, ok := b.(*lent.Block)
	if !ok || v.instance.Inbound == nil {
		return nil, nil
	}
	data = l.Take()
	if data == nil {
		return nil, nil
	}
	m, parts := v.instance.Inbound.Memory(), data.Parts()
	offsets, sizes := make([]uint64, 0, len(parts)), make([]uint32, 0, len(parts))
	for _, p := range parts {
		at, ok := m.Offset(p.Bytes)
		if ok {
			offsets = append(offsets, uint64(at))
		} else {
			inline = append(inline, p.Bytes...)
			offsets = append(offsets, inlinePart)
		}
		sizes = append(sizes, uint32(len(p.Bytes)))
		if len(inline) > smallPayload || len(sizes) > maxParts {
			l.Untake(data)
			return nil, nil
		}
	}
	head.PartOffsets, head.PartSizes = offsets, sizes
	return data, inline
}

// isEmpty reports whether the block with no bytes has this CID.
func isEmpty(c cid.Cid) bool {
	sum, err := c.Prefix().Sum(nil)
	return err == nil && sum.Equals(c)
}

// put hands a result to the writer; false if the request has ended.
func (v *serving) put(c *call, f frame) bool {
	select {
	case v.out <- f:
		return true
	case <-c.ctx.Done():
		return false
	}
}
