package blockexc

import (
	"io"

	"github.com/codexchange/codexchange/exchange/lent"
)

// A window is what has been received of a stream and not read. If the stream lends
// what it has received, the window is over memory that is lent, a piece at a time;
// else over a buffer of its own.
type window struct {
	src  io.Reader
	lend lent.Reader // src if it lends, or nil
	buf  []byte      // its own
	rest []byte      // what has not been read
	of   lent.Buffer // that rest is in; nil: buf
	err  error       // that came with rest

	spare []byte // for bytes of a block that are not lent; nil if there is none
}

// ownRoom is how much a stream that lends gives at a time without lending, bytes.
const ownRoom = 4 << 10

func newWindow(src io.Reader) window {
	w := window{src: src}
	if w.lend, _ = src.(lent.Reader); w.lend != nil {
		w.buf = make([]byte, ownRoom)
	} else {
		w.buf = make([]byte, readAhead)
	}
	return w
}

// fill waits until there is something in the window.
func (w *window) fill() error {
	for tries := 0; len(w.rest) == 0; tries++ {
		if tries == maxEmptyReads {
			return io.ErrNoProgress
		}
		w.free()
		if w.err == nil {
			w.err = w.read()
		}
		if w.err != nil && len(w.rest) == 0 {
			err := w.err
			w.err = nil
			return err
		}
	}
	return nil
}

// maxEmptyReads is how often in a row a stream may read nothing, as bufio has it.
const maxEmptyReads = 100

func (w *window) read() (err error) {
	if w.lend != nil {
		w.rest, w.of, err = w.lend.ReadLent(w.buf)
		return err
	}
	n, err := w.src.Read(w.buf)
	w.rest = w.buf[:n]
	return err
}

// free gives back what is lent, and forgets what has not been read of it.
func (w *window) free() {
	w.rest = nil
	if w.of != nil {
		w.of.Free()
		w.of = nil
	}
}

func (w *window) ReadByte() (byte, error) {
	if len(w.rest) == 0 {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	b := w.rest[0]
	w.rest = w.rest[1:]
	return b, nil
}

// Read reads long pieces past the buffer.
func (w *window) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		if w.lend == nil && len(p) >= readAhead {
			return w.src.Read(p)
		}
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// Discard passes over n bytes, and says how many there were.
func (w *window) Discard(n int) (int, error) {
	for left := n; left > 0; {
		if err := w.fill(); err != nil {
			return n - left, err
		}
		k := min(left, len(w.rest))
		w.rest = w.rest[k:]
		left -= k
	}
	return n, nil
}

// await waits until n bytes are there, at most readAhead; or if the stream lends, some
// of them. It says how many are.
func (w *window) await(n int) (int, error) {
	if n == 0 {
		return 0, nil
	}
	if err := w.fill(); err != nil {
		return 0, err
	}
	if n = min(n, readAhead); w.lend != nil || len(w.rest) >= n {
		return min(n, len(w.rest)), nil
	}
	have := copy(w.buf, w.rest)
	got, err := io.ReadAtLeast(w.src, w.buf[have:], n-have)
	w.rest = w.buf[:have+got]
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// take moves n bytes to d as they lie; those that are not lent are copied. It says how
// many there were.
func (w *window) take(d *lent.Data, n int) (int, error) {
	for left := n; left > 0; {
		if len(w.rest) == 0 && w.err == nil {
			k, err := w.takeNext(d, left)
			if left -= k; err != nil {
				return n - left, err
			}
			continue
		}
		if err := w.fill(); err != nil {
			return n - left, err
		}
		b := w.rest[:min(left, len(w.rest))]
		w.rest = w.rest[len(b):]
		left -= len(b)
		if w.of == nil {
			b = append([]byte(nil), b...)
		}
		d.Append(b, w.of)
	}
	return n, nil
}

// takeNext is one read for take: what is not lent goes into memory that becomes d's.
func (w *window) takeNext(d *lent.Data, left int) (int, error) {
	if len(w.spare) < min(left, ownRoom) {
		w.spare = make([]byte, spareRoom)
	}
	w.free()
	var b []byte
	var of lent.Buffer
	var err error
	for tries := 0; len(b) == 0; tries++ {
		if tries == maxEmptyReads {
			return 0, io.ErrNoProgress
		}
		if b, of, err = w.lend.ReadLent(w.spare[:min(left, len(w.spare))]); err != nil && len(b) == 0 {
			return 0, err
		}
	}
	w.err = err
	if of == nil {
		w.spare = w.spare[len(b):]
		d.Append(b, nil)
		return len(b), nil
	}
	w.rest, w.of = b, of
	b = b[:min(left, len(b))]
	w.rest = w.rest[len(b):]
	d.Append(b, of)
	return len(b), nil
}

// spareRoom is how much is taken for bytes that are not lent, bytes.
const spareRoom = 64 << 10
