package channel

import "sync"

// queue holds what has been received and not read: the bytes in chunks, and the
// order of bytes and references. Its owner's lock guards it. Its size is bounded
// by the credit that was given: at most a window of bytes, in chunks that are
// full but for the first and the last, and a window ÷ RefCost of references.
type queue struct {
	items  []item
	head   int // items before it have been read
	chunks []*chunk
	// filling says that somebody reads into the last chunk without the lock, so
	// that it must not be reused when it is found empty.
	filling bool
}

// item is a run of n bytes, or a reference to a block, or a region of which n bytes
// have been read.
type item struct {
	n      int
	ref    *Record
	region *Region
}

// chunk is a buffer: bytes [r:w] wait to be read.
type chunk struct {
	r, w int
	b    [32 << 10]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

func (q *queue) empty() bool { return q.head == len(q.items) }

// space is where the next bytes go, never empty. It belongs to the caller until
// commit.
func (q *queue) space() []byte {
	n := len(q.chunks)
	if n == 0 || q.chunks[n-1].w == len(chunk{}.b) {
		c := chunks.Get().(*chunk)
		c.r, c.w = 0, 0
		q.chunks = append(q.chunks, c)
		n++
	}
	q.filling = true
	last := q.chunks[n-1]
	return last.b[last.w:]
}

// commit says that the first n bytes of space are there.
func (q *queue) commit(n int) {
	q.filling = false
	last := q.chunks[len(q.chunks)-1]
	last.w += n
	if n == 0 {
		q.release()
		return
	}
	if !q.empty() {
		if last := &q.items[len(q.items)-1]; last.ref == nil && last.region == nil {
			last.n += n
			return
		}
	}
	q.push(item{n: n})
}

// put adds a reference to a block.
func (q *queue) put(ref Record) { q.push(item{ref: &ref}) }

// putRegion adds a region, which is the queue's from then on.
func (q *queue) putRegion(r *Region) { q.push(item{region: r}) }

func (q *queue) push(it item) {
	if q.empty() {
		q.items, q.head = q.items[:0], 0
	} else if q.head > 32 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, it)
}

// refNext reports whether a reference comes next. The queue is not empty.
func (q *queue) refNext() bool { return q.items[q.head].ref != nil }

// region is the region that comes next, nil if that is something else.
func (q *queue) region() *Region { return q.items[q.head].region }

// takeRegion takes the region away that comes next, and gives what has not been read
// of it. It is the caller's, who frees it.
func (q *queue) takeRegion() ([]byte, *Region) {
	it := &q.items[q.head]
	r, rest := it.region, unread(it.region, it.n)
	it.region = nil
	q.head++
	return rest, r
}

// unread is a region without the first n bytes; nothing, if its memory is closed.
func unread(r *Region, n int) []byte {
	b := r.Bytes()
	return b[min(n, len(b)):]
}

// next takes the next reference to a block, or copies bytes up to the next reference
// into p. The queue is not empty. done says that a region has been read to its end
// with that.
func (q *queue) next(p []byte) (ref *Record, n int, done bool) {
	it := &q.items[q.head]
	if it.ref != nil {
		ref, it.ref = it.ref, nil
		q.head++
		return ref, 0, false
	}
	if r := it.region; r != nil {
		n = copy(p, unread(r, it.n))
		if it.n += n; it.n < len(r.Bytes()) {
			return nil, n, false
		}
		it.region = nil
		q.head++
		r.Free()
		return nil, n, true
	}
	for p = p[:min(len(p), it.n)]; n < len(p); {
		first := q.chunks[0]
		k := copy(p[n:], first.b[first.r:first.w])
		first.r += k
		n += k
		q.release()
	}
	it.n -= n
	if it.n == 0 {
		q.head++
	}
	return nil, n, false
}

// release gives back the first chunk if all of it has been read and nobody is
// reading into it.
func (q *queue) release() {
	first := q.chunks[0]
	if first.r < first.w || q.filling && len(q.chunks) == 1 {
		return
	}
	n := copy(q.chunks, q.chunks[1:])
	q.chunks[n] = nil
	q.chunks = q.chunks[:n]
	chunks.Put(first)
}

// drop forgets everything, and gives regions back. Chunks are left to the collector,
// because one of them may be in use.
func (q *queue) drop() {
	for _, it := range q.items[q.head:] {
		if it.region != nil {
			it.region.Free()
		}
	}
	*q = queue{}
}
