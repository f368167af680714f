// Package lent is for blocks whose bytes lie where somebody else has received them,
// and wants the place back: a plugin's, in memory that its host shares with it. Such
// bytes are verified where they are and never copied, unless somebody asks for them.
//
// It owns who may still use such bytes. It knows nothing of where they are, of
// streams, or of messages; it has no goroutines.
//
// # Ownership
//
// A [Data] and a [Block] have one owner, who ends with Free, Take or RawData, or passes
// them on. Who gives a block to several gives them [Own] of it, which is a copy. What
// is forgotten all the same, the collector gives back, some time.
package lent

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// A Buffer is a piece of memory that is lent. Its methods may be called from any
// goroutine.
type Buffer interface {
	// Ref makes one more Free necessary.
	Ref()
	// Free lets go of the memory.
	Free()
}

// A Reader is a stream that lends what it has received.
type Reader interface {
	// ReadLent is like io.Reader's Read, but what it returns may lie in memory that
	// is lent: then buf is not nil, and the caller's to free. Otherwise it lies in
	// p, which must not be empty.
	ReadLent(p []byte) (b []byte, buf Buffer, err error)
}

// A Part is some bytes of a Data. Those without a Buffer are the Data's own.
type Part struct {
	Bytes  []byte
	Buffer Buffer
}

// Data is the bytes of a block, in parts. It is filled with Append, by one goroutine.
type Data struct {
	size  int
	parts *parts
}

// parts are apart from Data, so that Data can be collected.
type parts struct {
	freed atomic.Bool
	list  []Part
}

func (p *parts) free() {
	if p.freed.Swap(true) {
		return
	}
	for _, x := range p.list {
		if x.Buffer != nil {
			x.Buffer.Free()
		}
	}
	p.list = nil
}

// NewData makes one without bytes.
func NewData() *Data {
	d := &Data{parts: new(parts)}
	runtime.AddCleanup(d, (*parts).free, d.parts)
	return d
}

// Append adds bytes, which are in buf, of which it takes a reference; or, if that is
// nil, d's from then on.
func (d *Data) Append(b []byte, buf Buffer) {
	if len(b) == 0 {
		return
	}
	if buf != nil {
		buf.Ref()
	}
	d.size += len(b)
	if n := len(d.parts.list); buf == nil && n > 0 {
		// What goes on where the last part ends is one with it.
		if last := &d.parts.list[n-1]; last.Buffer == nil && cap(last.Bytes)-len(last.Bytes) >= len(b) && &last.Bytes[:len(last.Bytes)+1][len(last.Bytes)] == &b[0] {
			last.Bytes = last.Bytes[:len(last.Bytes)+len(b)]
			return
		}
	}
	d.parts.list = append(d.parts.list, Part{b, buf})
}

// Size is how many bytes it has, also after Free.
func (d *Data) Size() int { return d.size }

// Parts are what it consists of, until Free. They are to be read only.
func (d *Data) Parts() []Part { return d.parts.list }

// Copy returns its bytes in memory of their own.
func (d *Data) Copy() []byte {
	b := make([]byte, 0, d.size)
	for _, p := range d.parts.list {
		b = append(b, p.Bytes...)
	}
	runtime.KeepAlive(d)
	return b
}

// Free gives back what is lent. It may be called more than once, and on nil.
func (d *Data) Free() {
	if d != nil {
		d.parts.free()
	}
}

// A Block is a verified block over lent bytes, with one owner at a time. Its methods may
// be called from any goroutine.
type Block struct {
	cid  cid.Cid
	size int

	mu   sync.Mutex
	data *Data  // nil when it was taken or copied
	raw  []byte // the copy, if there is one
}

var _ blocks.Block = (*Block)(nil)

// NewBlock makes a block of data, which is its own from then on. It checks nothing.
func NewBlock(c cid.Cid, data *Data) *Block { return &Block{cid: c, size: data.Size(), data: data} }

// Cid is that of the block.
func (b *Block) Cid() cid.Cid { return b.cid }

// Size is the length of the block, bytes, whoever has it.
func (b *Block) Size() int { return b.size }

// RawData copies the bytes the first time, and gives back what is lent. After Take it
// returns nil.
func (b *Block) RawData() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.data != nil {
		b.raw = b.data.Copy()
		b.data.Free()
		b.data = nil
	}
	return b.raw
}

// Take gives the bytes to the caller as they lie, who frees them; nil, if they were
// copied or taken before.
func (b *Block) Take() *Data {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.data
	b.data = nil
	return d
}

// Untake undoes Take, for who cannot use the bytes as they lie, before anybody else has
// the block.
func (b *Block) Untake(d *Data) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = d
}

func (b *Block) String() string { return fmt.Sprintf("[Block %s]", b.cid) }

// Loggable is as of boxo's blocks.
func (b *Block) Loggable() map[string]any { return map[string]any{"block": b.cid.String()} }

// Own is a block that many may have: b itself, or, if it is one of lent bytes, one of a
// copy.
func Own(b blocks.Block) blocks.Block {
	l, ok := b.(*Block)
	if !ok { // nil too
		return b
	}
	own, err := blocks.NewBlockWithCid(l.RawData(), l.cid)
	if err != nil {
		return b // does not happen: it only fails to check hashes in debug builds
	}
	return own
}

// Free gives back what a block was lent, if it was, and that was not passed on.
func Free(b blocks.Block) {
	if l, ok := b.(*Block); ok {
		l.Take().Free()
	}
}
