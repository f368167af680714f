package writebehind

import (
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// DefaultBytes is Options.Bytes when it is zero.
	DefaultBytes = 16 << 20
	// DefaultDelay is Options.Delay when it is zero.
	DefaultDelay = 5 * time.Millisecond

	// overhead is what a held block counts beside its bytes, so that small blocks
	// are bounded too: at most 32,768 are held in DefaultBytes.
	overhead = 512 // bytes
)

// Options are what can be chosen. The zero value is useful.
type Options struct {
	// Bytes is how much memory fetched blocks may take until they are written and
	// told: their length and 512 bytes each. A block that is longer is held when
	// nothing else is. 0 means DefaultBytes; at least 1.
	Bytes int64
	// Delay is how long a fetched block may wait before its write begins. Blocks
	// are written sooner when half of Bytes is taken. 0 means DefaultDelay;
	// negative: every write begins at once.
	Delay time.Duration
	// Log hears when writing begins to fail and when it works again. nil means
	// slog.Default().
	Log *slog.Logger
}

// A Store is a blockstore that holds fetched blocks for a short time before they
// are written to the one behind it. Its methods may be called from any goroutine.
//
// Put is for fetched blocks, and PutMany for those that a user adds; see
// [Store.Adding]. Blocks are shared, not copied: nobody changes their bytes.
type Store struct {
	inner  blockstore.Blockstore
	viewer blockstore.Viewer // inner, if it is one
	limit  int64
	delay  time.Duration
	log    *slog.Logger

	wake   chan struct{}  // capacity 1: Store.run shall look what is due
	done   chan struct{}  // closed when Store.run has ended
	writes sync.WaitGroup // adds and deletes under way; Add only with mu held and !closed

	mu       sync.Mutex
	held     map[string]*entry        // by multihash: waiting or being written
	queue    *list.List               // of *entry: to be written, in order of Put
	failed   *list.List               // of *entry: to be written again, not before retryAt
	used     int64                    // cost of what is held, or written and not yet told
	room     chan struct{}            // closed when used, failing, closed or line changes; nil if nobody waits
	line     []*entry                 // those that wait for room, in order of Put
	deleting map[string]chan struct{} // by multihash; closed when the delete ends
	sweep    *sweep                   // what callers of Flush wait for; nil if there are none
	leaves   []leafTell               // to be passed on when all that was held is written
	failing  error                    // why nothing can be written; nil if something can
	cause    error                    // why a write failed last
	tries    int                      // failed rounds in a row, for the back-off
	retryAt  time.Time
	closed   bool
}

// An entry is one block that is held. Its fields are guarded by Store.mu, but for
// the first three, which do not change.
type entry struct {
	block blocks.Block
	key   string // its multihash
	since time.Time

	list    *list.List // Store.queue, Store.failed, or nil while a round has it
	place   *list.Element
	tried   bool          // a write has failed
	writing bool          // inner.Put is running
	dropped bool          // deleted: a round that has it skips it
	ended   chan struct{} // closed when writing ends, well or not; nil if nobody waits
	tell    []*teller     // who hears of it after the write, each once
	untold  int           // after the write: how many have not heard yet
}

func (e *entry) cost() int64 { return int64(len(e.block.RawData())) + overhead }

var (
	_ blockstore.Blockstore           = (*Store)(nil)
	_ blockstore.Viewer               = (*Store)(nil)
	_ blockstore.AllKeysChanWithErrer = (*Store)(nil)
)

// New starts a Store over inner, which remains the caller's: it must stay open
// until Close has returned, and is to be written and deleted from only through
// the Store.
func New(inner blockstore.Blockstore, o Options) (*Store, error) {
	if inner == nil {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "open write-behind store", "blockstore is nil")
	}
	if o.Bytes < 0 {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "open write-behind store", "Bytes is %d, want 0 or more", o.Bytes)
	}
	s := &Store{
		inner:    inner,
		limit:    o.Bytes,
		delay:    max(o.Delay, 0),
		log:      o.Log,
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		held:     make(map[string]*entry),
		queue:    list.New(),
		failed:   list.New(),
		deleting: make(map[string]chan struct{}),
	}
	s.viewer, _ = inner.(blockstore.Viewer)
	if o.Bytes == 0 {
		s.limit = DefaultBytes
	}
	if o.Delay == 0 {
		s.delay = DefaultDelay
	}
	if o.Log == nil {
		s.log = slog.Default()
	}
	go s.run()
	return s, nil
}

// Stats is what a Store holds at one moment.
type Stats struct {
	Blocks int   // held, not yet written
	Bytes  int64 // memory that is taken, as Options.Bytes counts it
	Err    error // why nothing can be written, nil if something can
}

// Stats returns what is held.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{len(s.held), s.used, s.failing}
}

// Put holds a fetched block and returns; it is written in the background. When
// memory is full it waits for room, in its turn, until ctx ends, and when nothing can be
// written either, it returns why, as an error of kind [errs.Storage].
func (s *Store) Put(ctx context.Context, b blocks.Block) error {
	const op = "store block"
	c := b.Cid()
	if !c.Defined() {
		return errs.Errorf(errs.Invalid, errs.Caller, op, "cid is undefined")
	}
	if _, is := inline(c); is {
		return nil
	}
	e := &entry{block: b, key: key(c), since: time.Now()}

	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.leave(e)
	for {
		var change chan struct{}
		fits := s.used == 0 || s.used+e.cost() <= s.limit
		if d := s.deleting[e.key]; s.closed {
			return errs.E(errs.Closed, errs.Caller, op, c.String(), nil)
		} else if d != nil {
			// Its delete would take the block away again when Put has returned.
			s.leave(e)
			change = d
		} else if s.held[e.key] != nil {
			return nil
		} else if fits && (len(s.line) == 0 || s.line[0] == e) {
			break
		} else if !fits && s.failing != nil {
			return errs.E(errs.Storage, errs.Ours, op, c.String(),
				fmt.Errorf("%d blocks in memory cannot be written: %w", len(s.held), s.failing))
		} else {
			if !slices.Contains(s.line, e) {
				s.line = append(s.line, e)
			}
			if s.room == nil {
				s.room = make(chan struct{})
			}
			change = s.room
		}
		if err := s.await(ctx, change); err != nil {
			return fmt.Errorf("%s %s: %w", op, c, err)
		}
	}
	s.used += e.cost()
	s.held[e.key] = e
	push(s.queue, e)
	if s.queue.Len() == 1 || s.used >= s.limit/2 {
		s.look()
	}
	return nil
}

// await releases mu until the channel is closed or ctx ends.
func (s *Store) await(ctx context.Context, change <-chan struct{}) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-change:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// PutMany stores blocks that a user adds: they are in the store behind when it
// returns nil. They take no part of the memory of fetched blocks and do not wait
// for them. After an error some of them may be stored.
func (s *Store) PutMany(ctx context.Context, list []blocks.Block) error {
	for _, b := range list {
		if !b.Cid().Defined() {
			return errs.Errorf(errs.Invalid, errs.Caller, "add blocks", "cid is undefined")
		}
	}
	if err := s.begin("add blocks"); err != nil {
		return err
	}
	defer s.writes.Done()

	var (
		mu    sync.Mutex
		first error
	)
	parallel(len(list), func(i int) bool {
		b := list[i]
		if _, is := inline(b.Cid()); is {
			return true
		}
		err := context.Cause(ctx)
		if err == nil {
			if err = s.inner.Put(ctx, b); err == nil {
				return true
			}
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("add block %s: %w", b.Cid(), context.Cause(ctx))
		} else {
			err = errs.E(errs.Storage, errs.Ours, "add block", b.Cid().String(), err)
		}
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
		return false
	})
	return first
}

// begin admits one write to the store behind, which Close waits for.
func (s *Store) begin(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errs.E(errs.Closed, errs.Caller, op, "", nil)
	}
	s.writes.Add(1)
	return nil
}

// DeleteBlock removes a block, held or written. If the block is being written,
// it waits for that; should ctx end meanwhile, the block stays. The exchanges do
// not hear of a block that is deleted before it was written.
func (s *Store) DeleteBlock(ctx context.Context, c cid.Cid) error {
	const op = "delete block"
	if _, is := inline(c); is || !c.Defined() {
		return nil
	}
	k := key(c)

	s.mu.Lock()
	defer s.mu.Unlock()
	for s.deleting[k] != nil {
		if err := s.await(ctx, s.deleting[k]); err != nil {
			return fmt.Errorf("%s %s: %w", op, c, err)
		}
	}
	if s.closed {
		return errs.E(errs.Closed, errs.Caller, op, c.String(), nil)
	}
	s.writes.Add(1)
	defer s.writes.Done()
	deleted := make(chan struct{})
	s.deleting[k] = deleted
	defer func() {
		delete(s.deleting, k)
		close(deleted)
	}()

	// No Put can hold it anew, so this waits for one write at most.
	for e := s.held[k]; e != nil; e = s.held[k] {
		if !e.writing {
			s.drop(e)
			break
		}
		if e.ended == nil {
			e.ended = make(chan struct{})
		}
		if err := s.await(ctx, e.ended); err != nil {
			return fmt.Errorf("%s %s: %w", op, c, err)
		}
	}
	s.mu.Unlock()
	err := s.inner.DeleteBlock(ctx, c)
	s.mu.Lock()
	if err != nil {
		return errs.E(errs.Storage, errs.Ours, op, c.String(), err)
	}
	return nil
}

// Has reports whether a block is held or written.
func (s *Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	if _, is := s.lookup(c); is {
		return true, nil
	}
	return s.inner.Has(ctx, c)
}

// Get returns a block that is held or written.
func (s *Store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if data, is := s.lookup(c); is {
		return blocks.NewBlockWithCid(data, c)
	}
	return s.inner.Get(ctx, c)
}

// GetSize returns the length of a block that is held or written.
func (s *Store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	if data, is := s.lookup(c); is {
		return len(data), nil
	}
	return s.inner.GetSize(ctx, c)
}

// View implements blockstore.Viewer, whether or not the store behind does.
func (s *Store) View(ctx context.Context, c cid.Cid, callback func([]byte) error) error {
	if data, is := s.lookup(c); is {
		return callback(data)
	}
	if s.viewer != nil {
		return s.viewer.View(ctx, c, callback)
	}
	b, err := s.inner.Get(ctx, c)
	if err != nil {
		return err
	}
	return callback(b.RawData())
}

// AllKeysChan lists what is held and what is written, each once unless the store
// behind lists it twice.
func (s *Store) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	ch, _, err := s.AllKeysChanWithErr(ctx)
	return ch, err
}

// AllKeysChanWithErr implements blockstore.AllKeysChanWithErrer. If the store
// behind does not, only the end of ctx is an error.
func (s *Store) AllKeysChanWithErr(ctx context.Context) (<-chan cid.Cid, func() error, error) {
	// First what is held: a block leaves it only when the store behind has it, so
	// none is missed.
	s.mu.Lock()
	first := make(map[string]struct{}, len(s.held))
	for k := range s.held {
		first[k] = struct{}{}
	}
	s.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	inner, innerErr := (<-chan cid.Cid)(nil), func() error { return nil }
	var err error
	if x, ok := s.inner.(blockstore.AllKeysChanWithErrer); ok {
		inner, innerErr, err = x.AllKeysChanWithErr(ctx)
	} else {
		inner, err = s.inner.AllKeysChan(ctx)
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}

	out := make(chan cid.Cid, 128)
	done := make(chan struct{})
	var end error // written before done is closed
	go func() {
		defer cancel()
		defer close(done)
		defer close(out)
		send := func(c cid.Cid) bool {
			select {
			case out <- c:
				return true
			case <-ctx.Done():
				return false
			}
		}
		whole := true
		for k := range first {
			if whole = send(cid.NewCidV1(cid.Raw, mh.Multihash(k))); !whole {
				break
			}
		}
		// The rest of inner is read in any case: innerErr waits for its end.
		for c := range inner {
			if _, twice := first[key(c)]; whole && !twice {
				if whole = send(c); !whole {
					cancel()
				}
			}
		}
		if end = innerErr(); end == nil {
			end = context.Cause(ctx)
		}
	}()
	return out, func() error { <-done; return end }, nil
}

// lookup returns the bytes of a block that is held, or that its CID contains.
func (s *Store) lookup(c cid.Cid) ([]byte, bool) {
	if !c.Defined() {
		return nil, false
	}
	if data, is := inline(c); is {
		return data, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.held[key(c)]; e != nil {
		return e.block.RawData(), true
	}
	return nil, false
}

// Adding is the store as those see it who add blocks for a user. A block is in
// the store behind when Put or PutMany returns nil, and also when Has answers
// true: a fetched block that is still held is written first. All else is as in s.
//
// boxo's blockservice calls Put both for a block it has fetched and for one that
// it adds, and does not add what Has knows. So it is given s itself for fetching,
// and Adding for adding; [Store.Service] does both.
func (s *Store) Adding() blockstore.Blockstore { return adding{s} }

type adding struct{ *Store }

func (a adding) Put(ctx context.Context, b blocks.Block) error {
	return a.PutMany(ctx, []blocks.Block{b})
}

func (a adding) Has(ctx context.Context, c cid.Cid) (bool, error) {
	data, is := a.lookup(c)
	if !is {
		return a.inner.Has(ctx, c)
	}
	b, err := blocks.NewBlockWithCid(data, c)
	if err == nil {
		err = a.Put(ctx, b)
	}
	return err == nil, err
}

// key is what a block is stored under: CIDs that differ only in codec or version
// are one block.
func key(c cid.Cid) string { return string(c.Hash()) }

// inline returns the bytes that an identity CID contains. Such a block is always
// there and never stored.
func inline(c cid.Cid) ([]byte, bool) {
	if !c.Defined() || c.Prefix().MhType != mh.IDENTITY {
		return nil, false
	}
	h, err := mh.Decode(c.Hash())
	if err != nil {
		return nil, false
	}
	return h.Digest, true
}
