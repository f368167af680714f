package writebehind

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// writers is how many Puts run at the same time on the store behind. See the
	// package comment for the figures.
	writers = 8

	// The time between two attempts to write what could not be written, at first
	// and at most; it doubles.
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second

	// patience is how many writes in a row may fail before the rest of a round
	// waits for the next one.
	patience = 16
)

// A sweep is one round that writes all that was held when Flush was called. All
// who call Flush before it begins share it.
type sweep struct {
	done chan struct{}
	err  error // written before done is closed
}

// Flush writes everything that is held now and returns when it is in the store
// behind, or with the error of what could not be written, which stays held and
// is tried again. The exchanges are told soon after.
func (s *Store) Flush(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errs.E(errs.Closed, errs.Caller, "flush store", "", nil)
	}
	if len(s.held) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.sweep == nil {
		s.sweep = &sweep{done: make(chan struct{})}
	}
	w := s.sweep
	s.look()
	s.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return fmt.Errorf("flush store: %w", context.Cause(ctx))
	}
}

// Close tries once more to write what is held, and reports what could not be:
// those blocks are lost when the process ends, but nobody was told of them. Put
// fails from now on, and so does whoever waits in it; reading goes on as long as
// the store behind is open. It may be called more than once, and returns the same.
//
// Close the exchanges first, so that nothing more is fetched.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.changed()
	s.look()
	s.mu.Unlock()
	<-s.done
	s.writes.Wait()

	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 {
		return nil
	}
	var some []string
	var bytes int64
	for _, e := range s.held {
		bytes += int64(len(e.block.RawData()))
		if len(some) < 3 {
			some = append(some, e.block.Cid().String())
		}
	}
	return errs.E(errs.Storage, errs.Ours, "close store", "", fmt.Errorf("%d blocks of %d bytes not written, as %s: %w",
		len(s.held), bytes, strings.Join(some, ", "), s.cause))
}

// run writes what is due, round after round. It is the only one to begin rounds,
// and ends after the first that began after Close.
func (s *Store) run() {
	defer close(s.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.mu.Lock()
		at, some := s.due()
		last := s.closed
		s.mu.Unlock()
		wait := time.Until(at)
		if some && wait <= 0 {
			s.round()
			if last {
				return
			}
			continue
		}
		var alarm <-chan time.Time
		if some {
			timer.Reset(wait)
			alarm = timer.C
		}
		select {
		case <-s.wake:
		case <-alarm:
		}
	}
}

// due is when the next round begins, if there is a reason for one. The zero time
// is now. The caller holds mu.
func (s *Store) due() (at time.Time, some bool) {
	front := s.queue.Front()
	switch {
	case s.closed || s.sweep != nil:
		return time.Time{}, true
	case s.failing != nil:
		return s.retryAt, true
	case front != nil && s.used >= s.limit/2:
		return time.Time{}, true
	case front != nil:
		at = front.Value.(*entry).since.Add(s.delay)
		if s.failed.Len() > 0 && s.retryAt.Before(at) {
			at = s.retryAt
		}
		return at, true
	case s.failed.Len() > 0:
		return s.retryAt, true
	}
	return time.Time{}, len(s.leaves) > 0
}

// A round writes what waits, with several writers. Guarded by Store.mu.
type round struct {
	batch    []*entry // not yet begun
	thorough bool     // everything is tried
	ending   bool     // takes nothing more: a writer is idle, or somebody waits

	stored, failed int
	fresh          bool  // a block failed that had not failed before
	err            error // the first
	barren         int   // failures since the last success
}

// round plays one round. Each block leaves memory as soon as it is written, so
// that those who wait in Put go on meanwhile.
func (s *Store) round() {
	s.mu.Lock()
	w := s.sweep
	s.sweep = nil
	r := &round{thorough: w != nil || s.closed}
	whole := r.thorough || s.failing != nil || s.failed.Len() == 0 || !time.Now().Before(s.retryAt)
	r.batch = take(s.queue, nil)
	var leaves []leafTell
	if whole { // nothing that was held when they came is left out
		r.batch = take(s.failed, r.batch)
		leaves, s.leaves = s.leaves, nil
	}
	n := min(len(r.batch), writers)
	r.ending = n < writers || r.thorough || len(leaves) > 0 // somebody waits for its end
	s.mu.Unlock()

	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { s.write(r) })
	}
	wg.Wait()

	s.mu.Lock()
	defer s.mu.Unlock()
	untried := 0
	for _, e := range slices.Backward(r.batch) {
		if !e.dropped {
			e.list, e.place = s.queue, s.queue.PushFront(e)
			untried++
		}
	}
	was := s.failing
	switch {
	case r.stored > 0 || len(s.held) == 0:
		s.failing = nil
	case r.err != nil && (r.fresh || s.failing != nil || s.room != nil):
		s.failing = r.err
	}
	if r.err != nil {
		s.cause = r.err
		s.retryAt = time.Now().Add(min(minBackoff<<min(s.tries, 16), maxBackoff))
		s.tries++
	} else if whole {
		s.tries = 0
	}
	if s.failing != nil {
		s.changed()
	}
	if was == nil && s.failing != nil {
		s.log.Error("fetched blocks cannot be written; fetching stops when memory is full", "err", s.failing, "held", len(s.held))
	} else if was != nil && s.failing == nil {
		s.log.Info("fetched blocks are written again", "held", len(s.held))
	}

	if r.err != nil || untried > 0 {
		s.leaves = append(leaves, s.leaves...)
		s.trimLeaves()
	} else {
		for _, l := range leaves {
			l.pass()
		}
	}
	if w != nil {
		if r.err != nil {
			w.err = errs.E(errs.Storage, errs.Ours, "flush store", "", fmt.Errorf("%d blocks not written: %w", r.failed, r.err))
		}
		close(w.done)
	}
}

// write writes blocks of a round until there are none.
func (s *Store) write(r *round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.next(r); e != nil; e = s.next(r) {
		e.writing = true
		s.mu.Unlock()
		err := s.inner.Put(context.Background(), e.block)
		s.mu.Lock()
		e.writing = false
		if e.ended != nil {
			close(e.ended)
			e.ended = nil
		}
		if err == nil {
			r.stored++
			r.barren = 0
			s.written(e)
			continue
		}
		if r.err == nil {
			r.err = err
		}
		r.fresh = r.fresh || !e.tried
		r.failed++
		r.barren++
		e.tried = true
		push(s.failed, e)
	}
	r.ending = true
}

// next returns a block to write, or nil. While all writers are busy and all is
// well, a round goes on with what has become due, so that under load no writer
// waits for the slowest; but not when somebody waits for its end.
func (s *Store) next(r *round) *entry {
	for len(r.batch) > 0 {
		if r.barren >= patience && !r.thorough {
			return nil
		}
		e := r.batch[0]
		r.batch[0] = nil // its bytes are free when it is written
		r.batch = r.batch[1:]
		if !e.dropped {
			return e
		}
	}
	if s.queue.Len() == 0 || r.ending || r.err != nil ||
		s.sweep != nil || s.closed || len(s.leaves) > 0 || s.failing != nil || s.failed.Len() > 0 {
		return nil
	}
	if at, _ := s.due(); time.Until(at) > 0 {
		return nil
	}
	e := s.queue.Remove(s.queue.Front()).(*entry)
	e.list, e.place = nil, nil
	return e
}

// parallel calls do for 0 to n-1 on several goroutines, which end before it
// returns. After a false no more calls begin.
func parallel(n int, do func(int) bool) {
	if n == 1 {
		do(0)
		return
	}
	var (
		wg   sync.WaitGroup
		next atomic.Int64
	)
	for range min(n, writers) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if !do(i) {
					next.Store(int64(n))
				}
			}
		})
	}
	wg.Wait()
}

// The rest is called with mu held.

// look makes run see what is due.
func (s *Store) look() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// changed wakes everybody who waits in Put. They are few (readers of boxo's
// blockservice), so each looks for itself.
func (s *Store) changed() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// leave takes an entry out of the line of those that wait for room, if it is there, so
// that the next one's turn comes. Lock held.
func (s *Store) leave(e *entry) {
	if i := slices.Index(s.line, e); i >= 0 {
		s.line = slices.Delete(s.line, i, i+1)
		s.changed()
	}
}

// free gives back the memory of an entry that is neither held nor to be told.
func (s *Store) free(e *entry) {
	s.used -= e.cost()
	s.changed()
}

func push(l *list.List, e *entry) {
	e.list, e.place = l, l.PushBack(e)
}

// take empties a list into a batch.
func take(l *list.List, batch []*entry) []*entry {
	for p := l.Front(); p != nil; p = p.Next() {
		e := p.Value.(*entry)
		e.list, e.place = nil, nil
		batch = append(batch, e)
	}
	l.Init()
	return batch
}

// drop forgets an entry that is not being written.
func (s *Store) drop(e *entry) {
	e.dropped = true
	if e.list != nil {
		e.list.Remove(e.place)
		e.list, e.place = nil, nil
	}
	delete(s.held, e.key)
	e.tell = nil
	s.free(e)
}
