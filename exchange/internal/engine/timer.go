package engine

import (
	"container/heap"
	"time"
)

// A timer is a moment at which something of the engine must be looked at. It is
// embedded in what it belongs to; the zero timer is not set.
type timer struct {
	at    time.Time
	seq   uint64 // order among equal moments
	place int    // position in the heap plus one; 0 if not set
	owner timed
}

// timed is what a timer belongs to: a want, a peer or a session.
type timed interface{ due(*Engine) }

func (t *timer) set() bool { return t.place > 0 }

// timers is a heap of the timers that are set, the earliest first.
type timers struct {
	heap timerHeap
	seq  uint64
}

// start sets t, or moves it if it is set.
func (ts *timers) start(t *timer, at time.Time) {
	ts.seq++
	t.at, t.seq = at, ts.seq
	if t.set() {
		heap.Fix(&ts.heap, t.place-1)
		return
	}
	heap.Push(&ts.heap, t)
}

// stop takes t out; it may be unset.
func (ts *timers) stop(t *timer) {
	if t.set() {
		heap.Remove(&ts.heap, t.place-1)
	}
}

// next returns the earliest timer if it is due at now, and unsets it.
func (ts *timers) next(now time.Time) *timer {
	if len(ts.heap) == 0 || ts.heap[0].at.After(now) {
		return nil
	}
	return heap.Pop(&ts.heap).(*timer)
}

type timerHeap []*timer

func (h timerHeap) Len() int { return len(h) }
func (h timerHeap) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].seq < h[j].seq
}
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	t.place = len(*h) + 1
	*h = append(*h, t)
}
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.place = 0
	return t
}
