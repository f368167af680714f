package remote

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/memory"
)

// Payload may stand in memory that the plugin writes and the host reads: a ring,
// on which both count the bytes since the beginning. A payload goes where the
// last one ended, or, if the rest of the ring is too short for it, to its
// beginning, and then the rest counts too. Only payload of up to a quarter of
// the ring goes there, and the host says how far it has read as soon as that is a
// quarter more than it has said; so a plugin that waits for room gets it.

// ringParts is how many payloads go into the ring at least.
const ringParts = 4

// place is the count at which a payload of n bytes begins in a ring if nothing
// but it comes after the count at.
func place(at uint64, n, ring int) uint64 {
	if left := uint64(ring) - at%uint64(ring); uint64(n) > left {
		return at + left
	}
	return at
}

// A ringWriter is the plugin's end. It is used by who writes the results, but for
// passed.
type ringWriter struct {
	m     *memory.Memory
	at    atomic.Uint64 // written so far
	read  atomic.Uint64 // what the host has said
	moved chan struct{} // has room for one: read has changed
}

func newRingWriter(m *memory.Memory) *ringWriter {
	return &ringWriter{m: m, moved: make(chan struct{}, 1)}
}

// takes reports whether a payload of n bytes goes through the ring; it never does
// if there is none.
func (r *ringWriter) takes(n int) bool {
	return r != nil && n > smallPayload && n <= r.m.Size()/ringParts
}

// put copies a payload into the ring and returns its offset; false if there is no
// room now.
func (r *ringWriter) put(p []byte) (offset uint64, ok bool, err error) {
	begin := place(r.at.Load(), len(p), r.m.Size())
	end := begin + uint64(len(p))
	if end-r.read.Load() > uint64(r.m.Size()) {
		return 0, false, nil
	}
	offset = begin % uint64(r.m.Size())
	if !r.m.CopyIn(int(offset), p) {
		return 0, false, errs.E(errs.Closed, errs.Plugin, "write results", "shared memory", nil)
	}
	r.at.Store(end)
	return offset, true, nil
}

// wait waits until there may be more room, or done is closed.
func (r *ringWriter) wait(done <-chan struct{}) error {
	select {
	case <-r.moved:
		return nil
	case <-done:
		return errStopped
	}
}

// passed takes what the host says. The error is about a count that cannot be.
func (r *ringWriter) passed(now uint64) error {
	if r == nil {
		return errs.Errorf(errs.Malformed, errs.Ours, "write results", "the host has read up to %d of memory, and none is shared", now)
	}
	if was, at := r.read.Load(), r.at.Load(); now < was || now > at {
		return errs.Errorf(errs.Malformed, errs.Ours, "write results", "the host has read up to %d, want %d to %d", now, was, at)
	}
	r.read.Store(now)
	select {
	case r.moved <- struct{}{}:
	default:
	}
	return nil
}

// A ringReader is the host's end. It is used by who reads the results.
type ringReader struct {
	m    *memory.Memory
	tell func(at uint64) // tells the plugin how far it has read
	at   uint64          // read so far
	told uint64          // what the plugin knows of that
}

// begin is the count at which the payload of a result begins. The error says that
// the plugin should not have put it there.
func (r *ringReader) begin(res result) (uint64, error) {
	if r == nil {
		return 0, errors.New("payload is in memory, and none is shared")
	}
	size := r.m.Size()
	if res.size > size/ringParts {
		return 0, fmt.Errorf("payload in memory is %d bytes, want at most %d", res.size, size/ringParts)
	}
	begin := place(r.at, res.size, size)
	if want := begin % uint64(size); res.offset != want {
		return 0, fmt.Errorf("payload of %d bytes is at %d of the memory, want %d", res.size, res.offset, want)
	}
	return begin, nil
}

// done says that everything up to the count at has been read.
func (r *ringReader) done(at uint64) {
	r.at = at
	if at-r.told < uint64(r.m.Size()/ringParts) {
		return
	}
	r.told = at
	r.tell(at)
}
