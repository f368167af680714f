package lent

import (
	"bytes"
	"crypto/sha256"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// counted is a Buffer that counts who has it.
type counted struct{ n atomic.Int32 }

func (c *counted) Ref()  { c.n.Add(1) }
func (c *counted) Free() { c.n.Add(-1) }

func lentBlock(buf Buffer) (*Block, []byte) {
	data := []byte("all that is lent")
	d := NewData()
	d.Append(data[:7], buf)
	d.Append(nil, buf)
	d.Append(data[7:9], nil)
	d.Append(data[9:], buf)
	sum := sha256.Sum256(data)
	return NewBlock(cid.NewCidV1(cid.Raw, append([]byte{0x12, 0x20}, sum[:]...)), d), data
}

// TestOneOwner shows that what is lent is given back once, by who takes it, copies it or
// frees it, and that the bytes are right as long as somebody has them.
func TestOneOwner(t *testing.T) {
	for name, end := range map[string]func(b *Block, want []byte){
		"taken": func(b *Block, want []byte) {
			d := b.Take()
			if got := d.Copy(); !bytes.Equal(got, want) || len(d.Parts()) != 3 {
				t.Errorf("took %q in %d parts, want %q in 3", got, len(d.Parts()), want)
			}
			if b.RawData() != nil || b.Take() != nil {
				t.Error("the block has bytes that were taken")
			}
			d.Free()
			d.Free()
		},
		"copied": func(b *Block, want []byte) {
			for range 2 {
				if got := b.RawData(); !bytes.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			if b.Take() != nil {
				t.Error("the block gives what it has copied")
			}
		},
		"owned": func(b *Block, want []byte) {
			own := Own(b)
			if _, lent := own.(*Block); lent || !bytes.Equal(own.RawData(), want) || own.Cid() != b.Cid() {
				t.Errorf("got %T %v of %q", own, own.Cid(), own.RawData())
			}
			if Own(own) != own {
				t.Error("what is nobody's else was copied")
			}
		},
		"freed": func(b *Block, want []byte) { Free(b); Free(b) },
	} {
		t.Run(name, func(t *testing.T) {
			var buf counted
			b, want := lentBlock(&buf)
			if got := buf.n.Load(); got != 2 {
				t.Errorf("the buffer has %d references, want 2", got)
			}
			end(b, want)
			if got := buf.n.Load(); got != 0 {
				t.Errorf("the buffer has %d references afterwards, want none", got)
			}
			if b.Size() != len(want) {
				t.Errorf("size is %d, want %d", b.Size(), len(want))
			}
		})
	}
	Free(blocks.NewBlock([]byte("x"))) // which nobody lends
}

// TestForgotten shows that the collector gives back what nobody has any more.
func TestForgotten(t *testing.T) {
	var buf counted
	lentBlock(&buf)
	end := time.Now().Add(20 * time.Second)
	for buf.n.Load() != 0 {
		if time.Now().After(end) {
			t.Fatalf("the buffer has %d references, want none", buf.n.Load())
		}
		runtime.GC()
		runtime.Gosched()
	}
}
