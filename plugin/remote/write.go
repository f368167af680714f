package remote

import (
	"slices"
	"strconv"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// batchSize is about how much is collected before results are written, bytes,
	// if there is so much.
	batchSize = 64 << 10
	// smallPayload is up to which size a payload is copied beside its head rather
	// than written by itself, bytes.
	smallPayload = 16 << 10
	// memoryBatch is about how much payload the host is told of at a time that is in
	// shared memory, bytes, if there is so much.
	memoryBatch = 512 << 10
	// Regions that were given back wait for results to go with, returnWithin at most,
	// and no more than returnAtOnce of them.
	returnWithin = time.Millisecond
	returnAtOnce = 16
	// maxReturned is how many fit into a head.
	maxReturned = 4096
)

// A writer writes results, and what is returned to the host. It belongs to the
// goroutine of serving.write.
type writer struct {
	v        *serving
	buf      []byte
	inMemory int      // bytes of payload that buf tells of
	regions  []uint64 // scratch
}

// write writes results until Run ends. What is ready at the same time is written
// together; no result waits for more.
func (v *serving) write() error {
	w := &writer{v: v, buf: make([]byte, 0, 2*batchSize)}
	var ready <-chan struct{}
	if v.instance.Inbound != nil {
		ready = v.instance.Inbound.Ready()
	}
	late := time.NewTimer(returnWithin)
	defer late.Stop()
	for {
		var err error
		select {
		case f := <-v.out:
			err = w.results(f)
		case <-ready:
			if v.instance.Inbound.Waiting() >= returnAtOnce {
				err = w.flush(nil)
			} else {
				late.Reset(returnWithin)
			}
		case <-late.C:
			err = w.flush(nil)
		case <-v.ctx.Done():
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// results writes a result, and others that are ready.
func (w *writer) results(f frame) error {
	for {
		if err := w.append(&f); err != nil {
			return err
		}
		if f.payload == nil && len(w.buf) < batchSize && w.inMemory < memoryBatch {
			select {
			case f = <-w.v.out:
				continue
			default:
			}
		}
		return w.flush(f.payload)
	}
}

// append puts a result into buf. What is left in f.payload is to be written after it.
func (w *writer) append(f *frame) error {
	if block := f.head.GetBlock(); block != nil && f.lent == nil && w.v.ring.takes(len(f.payload)) {
		offset, err := w.toRing(f.payload)
		if err != nil {
			return err
		}
		block.InMemory, block.Offset = true, offset
		w.inMemory += len(f.payload)
		f.payload = nil
	}
	var err error
	if w.buf, err = appendHead(w.buf, f.head); err != nil {
		return errs.E(errs.TooLarge, errs.Plugin, "write results", "request "+strconv.FormatUint(f.head.Request, 10), err)
	}
	if f.lent != nil {
		w.inMemory += f.lent.Size()
		f.lent.Free() // what is told of that comes after the head
		f.lent = nil
	}
	if len(f.payload) <= smallPayload {
		w.buf = append(w.buf, f.payload...)
		f.payload = nil
	}
	return nil
}

// flush writes buf, what is returned to the host if buf is not in the middle of a frame,
// and payload.
func (w *writer) flush(payload []byte) error {
	if in := w.v.instance.Inbound; in != nil && payload == nil {
		w.regions = in.Take(w.regions[:0])
		for some := range slices.Chunk(w.regions, maxReturned) {
			var err error
			if w.buf, err = appendHead(w.buf, &pb.Result{What: &pb.Result_Returned{Returned: &pb.Returned{Regions: some}}}); err != nil {
				return errs.E(errs.TooLarge, errs.Plugin, "write results", "regions returned", err)
			}
		}
	}
	for _, b := range [][]byte{w.buf, payload} {
		if len(b) == 0 {
			continue
		}
		if _, err := w.v.instance.Results.Write(b); err != nil {
			return errs.E(errs.Crashed, errs.Ours, "write results", "", err)
		}
	}
	w.buf, w.inMemory = w.buf[:0], 0
	return nil
}

// toRing copies a payload into the ring, when there is room. The host makes room
// only if it has been told of what is there, so that is written first.
func (w *writer) toRing(payload []byte) (uint64, error) {
	for {
		offset, ok, err := w.v.ring.put(payload)
		if ok || err != nil {
			return offset, err
		}
		if err := w.flush(nil); err != nil {
			return 0, err
		}
		if err := w.v.ring.wait(w.v.ctx.Done()); err != nil {
			return 0, err
		}
	}
}
