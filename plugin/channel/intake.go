package channel

import (
	"sync"
	"time"
)

const (
	// A stream flows when flowing bytes have come of it without pauses, and is about to
	// with a quarter of that: then even small reads go into slots. A read that waits
	// longer than pause halves what is counted; more than maxFlow is not.
	flowing = 256 << 10
	maxFlow = 1 << 20
	pause   = 300 * time.Microsecond
	// Of a stream that flows up to holdBytes are held back, for holdTime at the most if
	// there is credit: each record costs a system call and wakes the plugin, which does
	// not begin with a block before it is whole.
	holdBytes = 256 << 10
	holdTime  = 800 * time.Microsecond
	// minRoom is from how many bytes on it pays to read into what is left of a slot.
	minRoom = 4 << 10
)

// An intake takes what is read from a peer to the plugin: what is much, in slots of
// the shared memory, if there are some, and everything else inline. While the stream
// flows, slots are filled to the end and sent several at a time.
//
// One goroutine reads, with room, took and flush; a timer sends what has been held for
// too long. end waits for it.
type intake struct {
	c    *Conn
	late *time.Timer
	wg   sync.WaitGroup // a run of late

	mu     sync.Mutex // held while sending, so the reader waits for credit too
	buf    buffer
	place  []byte // what room gave
	last   int    // bytes of the last read
	flow   int    // bytes that have come without pauses
	at     *slot  // that is read into; nil: buf is
	filled int    // of at
	sent   int    // of at
	full   []piece
	held   int // bytes that have not been sent
	armed  bool
	err    error // of a send by late
}

func newIntake(c *Conn) *intake {
	in := &intake{c: c}
	in.late = time.AfterFunc(time.Hour, in.sendLate)
	in.late.Stop()
	return in
}

// room is where the next bytes go.
func (in *intake) room() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.at == nil && (in.last >= len(in.buf.small) || in.flow >= flowing/4) {
		in.at = in.c.slot(true)
		in.filled, in.sent = 0, 0
	}
	if in.at != nil && !in.at.await() {
		in.close()
	}
	if in.at != nil {
		in.buf.release()
		in.place = in.at.bytes()[in.filled:]
	} else {
		in.place = in.buf.after(in.last)
	}
	return in.place
}

// took says that n bytes are in the room, after a wait.
func (in *intake) took(n int, waited time.Duration) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil {
		return in.err
	}
	if waited > pause {
		in.flow /= 2
	}
	in.flow = min(in.flow+n, maxFlow)
	in.last = n
	if in.at == nil {
		return in.inline(in.place[:n])
	}
	in.at.read()
	in.filled += n
	in.held += n
	if slotSize-in.filled < minRoom {
		in.close()
	}
	if in.flow < flowing || in.held >= holdBytes {
		return in.sendAll(in.flow < flowing)
	}
	if !in.armed {
		in.arm()
	}
	return nil
}

// arm starts the timer, each run of which is one of wg. Lock held.
func (in *intake) arm() {
	in.armed = true
	in.wg.Add(1)
	if in.late.Reset(holdTime) {
		in.wg.Done() // a run was ahead already
	}
}

// inline sends bytes that are in no slot, and what was held back before them. Lock
// held.
func (in *intake) inline(p []byte) error {
	if err := in.sendAll(false); err != nil {
		return err
	}
	if len(p) >= minRegion {
		if s := in.c.slot(false); s != nil {
			defer s.give()
			return in.c.writePieces([]piece{{s, 0, copy(s.bytes(), p)}})
		}
	}
	_, err := in.c.Write(p)
	return err
}

// close makes what is in the slot a piece to be sent, and lets go of the slot when it
// has been. Lock held.
func (in *intake) close() {
	if in.filled > in.sent {
		in.full = append(in.full, piece{in.at, in.sent, in.filled})
	} else {
		in.at.give()
	}
	in.at = nil
}

// flush sends what was held back.
func (in *intake) flush() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil {
		return in.err
	}
	return in.sendAll(true)
}

// sendAll sends what was held back; done says that the slot is not to be filled
// further. Lock held.
func (in *intake) sendAll(done bool) error {
	in.disarm()
	if in.at != nil && done {
		in.close()
	}
	in.held = 0
	list := in.full
	if in.at != nil && in.filled > in.sent {
		list = append(list, piece{in.at, in.sent, in.filled})
		in.sent = in.filled
	}
	in.full = in.full[:0]
	var err error
	for len(list) > 0 && err == nil {
		n := min(len(list), maxPieces)
		for i, p := range list[:n] {
			if p.size() < minRegion && in.flow < flowing {
				n = i
				break
			}
		}
		if n > 0 {
			err = in.c.writePieces(list[:n])
		} else {
			n = 1
			_, err = in.c.Write(list[0].bytes())
		}
		for _, p := range list[:n] {
			in.letGo(p.slot)
		}
		list = list[n:]
	}
	for _, p := range list {
		in.letGo(p.slot)
	}
	return err
}

func (in *intake) letGo(s *slot) {
	if s != in.at {
		s.give()
	}
}

// disarm stops the timer. Lock held.
func (in *intake) disarm() {
	if in.late.Stop() {
		in.wg.Done()
	}
	in.armed = false
}

func (in *intake) sendLate() {
	defer in.wg.Done()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.armed && in.err == nil {
		in.armed = false
		in.err = in.sendAll(false)
	}
}

// end gives back what the intake has, and waits for the timer.
func (in *intake) end() {
	in.mu.Lock()
	in.disarm()
	in.buf.release()
	if in.at != nil {
		in.at.give()
	}
	for _, p := range in.full {
		p.slot.give()
	}
	in.at, in.full = nil, nil
	in.mu.Unlock()
	in.wg.Wait()
}
