package peerstore

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Options say where peers are kept and how many. The zero value keeps them in
// memory, with the default bounds.
type Options struct {
	// Datastore is where peers are written, below /peers. The Store does not
	// close it. Nil: nothing is written.
	Datastore datastore.Batching
	// FlushPeers is the number of peers with unwritten changes at which they
	// are written. 0: 100. Negative: no such number.
	FlushPeers int
	// FlushEvery is how long a change stays unwritten at most. 0: a minute.
	// Negative: for as long as the Store is open.
	FlushEvery time.Duration

	// MaxPeers is the number of peers kept. 0: 100,000.
	MaxPeers int
	// MaxBytes is the memory taken by peers, estimated. 0: 300 MiB.
	MaxBytes int64
	// MaxAddrs is the number of addresses of a peer, not counting those of a
	// connection. 0: 64.
	MaxAddrs int
	// MaxProtocols is the number of protocols of a peer. 0: 1,024, which is as
	// many as identify passes on.
	MaxProtocols int
	// MaxMetadata is the number of metadata keys of a peer. 0: 32.
	MaxMetadata int

	// GoodFor is how long an address that was dialled with success is
	// remembered for the next start after everybody else has forgotten it.
	// 0: a week. Negative: not at all.
	GoodFor time.Duration

	// Now is the clock. Nil: time.Now. Timers are package time's.
	Now func() time.Time
	// Log takes what goes wrong with the datastore. Nil: slog.Default().
	Log *slog.Logger
}

// Lengths that are refused or, where the caller is told nothing, skipped.
const (
	maxPeerID      = 128
	maxAddrBytes   = 1024
	maxProtocolID  = 512
	maxMetadataKey = 128
	maxMetadata    = 8 << 10
	maxSigned      = 32 << 10

	maxConnectedAddrs = 512 // addresses of one peer with a connected or permanent TTL; identify gives 500
	maxUnclaimed      = 8   // addresses of one peer kept only because they were good
)

// check fills in the defaults and reports everything that is wrong.
func (o Options) check() (Options, error) {
	var wrong []error
	bound := func(name string, v *int, def int) {
		if *v < 0 {
			wrong = append(wrong, fmt.Errorf("%s: got %d, want 0 or more", name, *v))
		}
		if *v == 0 {
			*v = def
		}
	}
	bound("MaxPeers", &o.MaxPeers, 100_000)
	bound("MaxAddrs", &o.MaxAddrs, 64)
	bound("MaxProtocols", &o.MaxProtocols, 1024)
	bound("MaxMetadata", &o.MaxMetadata, 32)
	if o.MaxBytes < 0 {
		wrong = append(wrong, fmt.Errorf("MaxBytes: got %d, want 0 or more", o.MaxBytes))
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 300 << 20
	}
	if o.FlushPeers == 0 {
		o.FlushPeers = 100
	}
	if o.FlushEvery == 0 {
		o.FlushEvery = time.Minute
	}
	if o.GoodFor == 0 {
		o.GoodFor = 7 * 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if len(wrong) > 0 {
		return o, errs.E(errs.Invalid, errs.Caller, "open peerstore", "", errors.Join(wrong...))
	}
	return o, nil
}

// A Store knows peers. As a peerstore.Peerstore it is the hand of its owner: what
// it adds is [Manual], and what it lowers, replaces or removes it does to every
// source. Subsystems get a [Store.View] each. All methods may be called from any
// goroutine; slices returned are the caller's. After Close the Store still
// answers, so that what ends later than it does no harm, but writes nothing and
// tells nobody.
type Store struct {
	options Options
	opened  time.Time

	flushing sync.Mutex // one flush at a time; taken before mu
	mu       sync.Mutex // guards the rest down to the blank line, and what hangs on it; nothing blocks under it
	peers    map[peer.ID]*entry
	due      dueHeap // entries with something that expires
	lists    [standings]entryList
	bytes    int64                // sum of entry.cost
	dirty    map[peer.ID]*unsaved // changes not written
	writing  int                  // peers whose changes are being written
	subs     map[*Subscription]struct{}
	streams  map[peer.ID]map[*stream]struct{}
	bus      *Subscription // collects for the event bus from the beginning
	wakeAt   int64         // when expire looks again
	closed   bool

	wakeExpire  chan struct{} // capacity 1
	wakePersist chan struct{} // capacity 1
	done        chan struct{} // closed by Close
	working     sync.WaitGroup
	forwarding  chan struct{} // closed when forward has ended; nil before Attach
	closing     sync.Once
	closeErr    error
}

var (
	_ peerstore.Peerstore         = (*Store)(nil)
	_ peerstore.CertifiedAddrBook = (*Store)(nil)
)

// New opens a store and, if there is a datastore, loads what it holds before it
// returns. Records that cannot be read are logged and skipped. No event tells of
// what was loaded.
func New(ctx context.Context, options Options) (*Store, error) {
	options, err := options.check()
	if err != nil {
		return nil, err
	}
	s := &Store{
		options:     options,
		opened:      options.Now(),
		peers:       make(map[peer.ID]*entry),
		dirty:       make(map[peer.ID]*unsaved),
		subs:        make(map[*Subscription]struct{}),
		streams:     make(map[peer.ID]map[*stream]struct{}),
		wakeExpire:  make(chan struct{}, 1),
		wakePersist: make(chan struct{}, 1),
		done:        make(chan struct{}),
	}
	if options.Datastore != nil {
		if err := s.load(ctx); err != nil {
			return nil, err
		}
	}
	s.bus = s.Subscribe(Changes)
	s.working.Go(s.expire)
	if options.Datastore != nil {
		s.working.Go(s.persist)
	}
	return s, nil
}

// Close writes what is unwritten and ends subscriptions, streams and the Store's
// goroutines. It returns what the last flush does, the same each time.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		close(s.done)
		clear(s.subs)
		forwarding := s.forwarding
		s.mu.Unlock()

		s.working.Wait()
		if forwarding != nil {
			s.awaitForward(forwarding)
		}
		if s.options.Datastore != nil {
			s.closeErr = s.Flush(context.Background())
		}
	})
	return s.closeErr
}

// now is the Store's time.
func (s *Store) now() int64 {
	return s.opened.UnixNano() + int64(s.options.Now().Sub(s.opened))
}

// at is the Store's time as others know it; the zero Time for 0 and never.
func at(t int64) time.Time {
	if t == 0 || t == never {
		return time.Time{}
	}
	return time.Unix(0, t)
}

// lookup returns what is known of a peer now, or nil.
func (s *Store) lookup(p peer.ID) *entry {
	e := s.peers[p]
	if e == nil {
		return nil
	}
	if now := s.now(); e.next <= now {
		s.purge(e, now)
		s.settle(e)
		return s.peers[p]
	}
	return e
}

// obtain returns the entry of a peer, a new one if need be, or nil if the id
// is too long to be anybody's. The caller settles it.
func (s *Store) obtain(p peer.ID) *entry {
	if e := s.lookup(p); e != nil {
		return e
	}
	if len(p) > maxPeerID {
		return nil
	}
	e := newEntry(p)
	s.tell(p, told{})
	s.peers[p] = e
	if u := s.dirty[p]; u != nil {
		e.saved = u.books // the deletion that has not been written yet
	}
	return e
}

func newEntry(p peer.ID) *entry { return &entry{id: p, next: never, due: -1} }

// settle brings up to date what follows from an entry, after every change of it:
// its place among those that expire and those that can be evicted, its cost, and
// whether it says anything at all.
func (s *Store) settle(e *entry) {
	if e.signed != nil && !e.anyVisible() {
		e.signed = nil
	}
	if e.empty() {
		s.drop(e)
		return
	}
	s.schedule(e)
	cost := e.estimate()
	s.bytes += int64(cost - e.cost)
	e.cost = cost
	s.place(e)
	s.evict(e)
}

// schedule puts the entry where it belongs among those that expire.
func (s *Store) schedule(e *entry) {
	e.next = e.earliest(s.options.GoodFor)
	switch {
	case e.next == never && e.due >= 0:
		heap.Remove(&s.due, int(e.due))
	case e.next == never:
	case e.due >= 0:
		heap.Fix(&s.due, int(e.due))
	default:
		heap.Push(&s.due, e)
	}
	if e.next < s.wakeAt {
		s.wakeAt = e.next
		wake(s.wakeExpire)
	}
}

// drop forgets an entry. What was written of it is deleted with the next flush.
func (s *Store) drop(e *entry) {
	s.changing(e)
	delete(s.peers, e.id)
	if e.due >= 0 {
		heap.Remove(&s.due, int(e.due))
	}
	s.unlist(e)
	s.bytes -= int64(e.cost)
	s.untell(e.id)
	s.unsave(e)
}

// purge removes what has expired.
func (s *Store) purge(e *entry, now int64) {
	if e.next > now {
		return
	}
	s.retain(e, func(_ *address, c claim) bool { return c.expires > now })
}

// expire removes what has expired, once a second at most, so that others hear
// of it. Whoever reads an entry before that removes it himself.
func (s *Store) expire() {
	const (
		some  = 1024 // records between two breaths
		pause = time.Second
	)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		s.mu.Lock()
		now := s.now()
		for n := 0; n < some && len(s.due) > 0 && s.due[0].next <= now; n++ {
			e := s.due[0]
			s.purge(e, now)
			s.settle(e)
		}
		wait := 24 * time.Hour
		switch {
		case len(s.due) == 0:
		case s.due[0].next <= now:
			wait = 0
		default:
			wait = min(wait, max(pause, time.Duration(s.due[0].next-now)))
		}
		s.wakeAt = expiry(now, wait)
		s.mu.Unlock()
		if wait == 0 {
			select {
			case <-s.done:
				return
			default:
				continue
			}
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-s.wakeExpire:
		case <-s.done:
			return
		}
	}
}

// wake says to whoever waits on c that there is something to do.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// A dueHeap has the record on top whose next is earliest.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].next < h[j].next }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].due, h[j].due = int32(i), int32(j)
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.due = int32(len(*h))
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.due = -1
	return e
}
