package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/spans"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/pb"
)

// maxAgain is how often a request is made again because the plugin said that the
// host had a block, and it had not. A block can be lost from a store in the wrong
// moment; so many times in one request it cannot.
const maxAgain = 100

// A request is one call of GetBlock, GetBlocks or GetLeaves, as long as somebody
// waits for it. It is pending (in Client.pending) until everything has come, or
// it has ended otherwise.
//
// While the plugin has it, credit + owed + queued is the window, less the cost of
// a result whose payload is being read.
type request struct {
	client  *Client
	session *session // nil for none
	single  bool
	trace   *pb.Trace     // that it is part of, nil for none
	seq     uint64        // in the order of the calls
	ready   chan struct{} // has room for one: queue or over has changed

	// All below is guarded by Client.mu.

	need need
	over bool  // nothing more comes into the queue
	err  error // why it is over with something missing, if there is a reason

	queue  []arrival // come, and not taken
	queued int       // cost of what is in queue, or with the caller just now
	kept   int       // bytes of what is in queue without cost

	number uint64 // by which the plugin knows it, 0 if it does not
	local  bool   // some has come from elsewhere since the plugin was told
	credit int    // cost that the plugin may still send
	owed   int    // credit that it has not been given; less than 0 if it had too much
	again  int    // how often it was made again
}

// An arrival is a block on its way to the caller.
type arrival struct {
	block blocks.Block // nil: to be read from the store
	cid   cid.Cid
	index uint64 // of a leaf
	proof []byte
	cost  int // of the request's credit
	kept  int // bytes that cost no credit
}

// A need is what a request still misses: blocks, or leaves of a tree.
type need struct {
	keys    []cid.Cid            // that were asked for, each once
	missing map[cid.Cid]struct{} // of them

	tree   dataset.Tree // of leaves only
	ranges []wire.Range // missing
}

func needBlocks(op string, keys []cid.Cid) (need, error) {
	n := need{keys: make([]cid.Cid, 0, len(keys)), missing: make(map[cid.Cid]struct{}, len(keys))}
	for _, c := range keys {
		if err := checkKey(op, c); err != nil {
			return need{}, err
		}
		if _, again := n.missing[c]; !again {
			n.missing[c] = struct{}{}
			n.keys = append(n.keys, c)
		}
	}
	return n, nil
}

func needLeaves(op string, tree dataset.Tree, ranges []wire.Range) (need, error) {
	if err := checkKey(op, tree.Root); err != nil {
		return need{}, err
	}
	for _, r := range ranges {
		if r.Count > 0 && (r.End() < r.First || tree.Leaves > 0 && r.End() > tree.Leaves) {
			return need{}, errs.E(errs.Invalid, errs.Caller, op, wire.CidString(tree.Root),
				fmt.Errorf("range is %d indices from %d, of %d leaves", r.Count, r.First, tree.Leaves))
		}
	}
	return need{tree: tree, ranges: wire.Ranges(ranges)}, nil
}

// checkKey refuses what no message can carry. Whatever else may be wrong with a
// CID is for the exchange to say.
func checkKey(op string, c cid.Cid) error {
	if !c.Defined() {
		return errs.E(errs.Invalid, errs.Caller, op, wire.CidString(c), errors.New("the cid is undefined"))
	}
	if n := c.ByteLen(); n > MaxCID {
		return errs.E(errs.Invalid, errs.Caller, op, wire.CidString(c), fmt.Errorf("cid is %d bytes, want at most %d", n, MaxCID))
	}
	return nil
}

func (n *need) leaves() bool { return n.tree.Root.Defined() }
func (n *need) empty() bool  { return len(n.missing) == 0 && len(n.ranges) == 0 }

// has reports whether a result is missing.
func (n *need) has(res *result) bool {
	if !n.leaves() {
		_, missing := n.missing[res.cid]
		return missing && !res.root.Defined()
	}
	_, found := n.find(res.index)
	return found && n.tree.Root.Equals(res.root)
}

// find returns the range with an index.
func (n *need) find(index uint64) (int, bool) {
	return slices.BinarySearchFunc(n.ranges, index, func(r wire.Range, x uint64) int {
		switch {
		case x < r.First:
			return 1
		case x >= r.End():
			return -1
		}
		return 0
	})
}

// got takes a leaf out of what is missing.
func (n *need) got(index uint64) {
	i, found := n.find(index)
	if !found {
		return
	}
	r := &n.ranges[i]
	switch before, after := index-r.First, r.End()-index-1; {
	case before == 0 && after == 0:
		n.ranges = slices.Delete(n.ranges, i, i+1)
	case before == 0:
		*r = wire.Range{First: index + 1, Count: after}
	default:
		r.Count = before
		if after > 0 {
			n.ranges = slices.Insert(n.ranges, i+1, wire.Range{First: index + 1, Count: after})
		}
	}
}

// left is the missing keys, in the order in which they were asked for.
func (n *need) left() []cid.Cid {
	list := make([]cid.Cid, 0, len(n.missing))
	for _, c := range n.keys {
		if _, missing := n.missing[c]; missing {
			list = append(list, c)
		}
	}
	return list
}

// get gets one block: it waits until it comes, ctx or the session ends, or the
// Client closes or fails.
func (c *Client) get(ctx context.Context, s *session, key cid.Cid) (_ blocks.Block, err error) {
	const op = "get block"
	ctx, span := spans.Start(ctx, "plugin.Client.GetBlock")
	span.Cid(key)
	defer func() { span.End(err) }()
	n, err := needBlocks(op, []cid.Cid{key})
	if err != nil {
		return nil, err
	}
	if err := ended(ctx, s); err != nil {
		return nil, errs.E(errs.Other, errs.Caller, op, wire.CidString(key), err)
	}
	r := &request{client: c, session: s, single: true, need: n, ready: make(chan struct{}, 1), trace: pb.TraceOf(ctx)}
	if err := c.begin(r, op); err != nil {
		return nil, err
	}
	a, err := r.next(ctx, arrival{})
	if err != nil {
		c.drop(r)
		if cause := ended(ctx, s); cause != nil {
			err = errs.E(errs.Other, errs.Caller, op, wire.CidString(key), cause)
		}
		return nil, err
	}
	return a.block, nil
}

// getMany starts a request, and a goroutine that passes on to the caller what
// comes. It ends, after closing the channel, when everything has come, ctx or the
// session ends, or the Client closes or fails.
func getMany[T any](ctx context.Context, c *Client, s *session, op string, n need, as func(arrival) T) (<-chan T, error) {
	out := make(chan T)
	r := &request{client: c, session: s, need: n, ready: make(chan struct{}, 1)}
	if n.empty() || ended(ctx, s) != nil {
		close(out)
		return out, c.refusal(op)
	}
	span := r.start(ctx)
	// A request that is begun is counted among those that Close waits for.
	if err := c.begin(r, op, func() {
		failed := errLeft
		defer func() { span.End(failed) }()
		defer close(out)
		defer c.drop(r)
		var a arrival
		for {
			var err error
			// Why no more come cannot be told through a channel.
			if a, err = r.next(ctx, a); err != nil {
				if failed = err; err == errAll {
					failed = nil
				}
				return
			}
			select {
			case out <- as(a):
			case <-ctx.Done():
				return
			case <-s.done():
				return
			case <-c.ctx.Done():
				return
			}
		}
	}); err != nil {
		span.End(err)
		return nil, err
	}
	return out, nil
}

// start makes a request for many a step of the trace that ctx is part of, if it is.
func (r *request) start(ctx context.Context) (span spans.Span) {
	if r.need.leaves() {
		ctx, span = spans.Start(ctx, "plugin.Client.GetLeaves")
		span.Cid(r.need.tree.Root)
	} else {
		ctx, span = spans.Start(ctx, "plugin.Client.GetBlocks")
		span.Count("blocks", len(r.need.keys))
	}
	r.trace = pb.TraceOf(ctx)
	return span
}

// errAll says that all has come and been taken, errLeft that nobody takes the rest.
var (
	errAll  = errors.New("all blocks have come")
	errLeft = errors.New("the rest was not taken")
)

// next pays for the arrival that the caller has taken before and waits for
// another one. The error is errAll if there are no more.
func (r *request) next(ctx context.Context, taken arrival) (arrival, error) {
	c := r.client
	for {
		a, ok, over, err := c.pop(r, taken)
		taken = arrival{}
		switch {
		case ok && a.block != nil:
			return a, nil
		case ok:
			if a, err = r.read(ctx, a); err == nil {
				return a, nil
			}
			if cause := ended(ctx, r.session); cause != nil {
				return arrival{}, cause
			}
			c.unread(r, a, err)
			continue
		case over && err != nil:
			return arrival{}, err
		case over:
			return arrival{}, errAll
		}
		select {
		case <-r.ready:
		case <-ctx.Done():
			return arrival{}, ctx.Err()
		case <-r.session.done():
			return arrival{}, r.session.ctx.Err()
		case <-c.ctx.Done():
			return arrival{}, closed("get block", "")
		}
	}
}

// errNoStore says that there is nothing a block can be read from.
var errNoStore = errs.E(errs.NotFound, errs.Ours, "read block", "", errors.New("there is no store"))

// read reads a block that the host has from its store.
func (r *request) read(ctx context.Context, a arrival) (arrival, error) {
	if r.client.opt.Held == nil {
		return a, errNoStore
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.client.ctx, cancel)()
	if r.session != nil {
		defer context.AfterFunc(r.session.ctx, cancel)()
	}
	b, err := r.client.opt.Held(ctx, a.cid)
	if err == nil {
		a.block = b
	}
	return a, err
}

// ended says why a request has come to its end before its time, nil if it has
// not.
func ended(ctx context.Context, s *session) error {
	if s != nil && s.ctx.Err() != nil && ctx.Err() == nil {
		ctx = s.ctx
	}
	err := ctx.Err()
	if cause := context.Cause(ctx); err != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

func closed(op, subject string) error { return errs.E(errs.Closed, errs.Caller, op, subject, nil) }
