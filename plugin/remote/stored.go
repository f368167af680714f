package remote

import (
	"context"
	"fmt"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// A lazyBlock is a block that the host's store has. An exchange is told of it
// without its bytes, which are read from the store when somebody first asks for
// them. An exchange that only wants to know how long it is looks for
//
//	interface{ Size() int }
//
// so that nothing is read. Its methods may be called from any goroutine.
type lazyBlock struct {
	cid  cid.Cid
	size int
	ctx  context.Context // of the server
	read func(context.Context, cid.Cid) (blocks.Block, error)

	mu   sync.Mutex
	data []byte // once it was read
}

var _ blocks.Block = (*lazyBlock)(nil)

func (b *lazyBlock) Cid() cid.Cid { return b.cid }

// Size is the length of the block, bytes, as the host said.
func (b *lazyBlock) Size() int { return b.size }

// RawData reads the block from the host's store, the first time. It is nil if
// the store does not have it any more, or cannot be read: an interface of others
// leaves no place for an error. The next call tries again.
func (b *lazyBlock) RawData() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.data == nil && b.read != nil {
		if got, err := b.read(b.ctx, b.cid); err == nil {
			b.data = got.RawData()
		}
	}
	return b.data
}

func (b *lazyBlock) String() string { return fmt.Sprintf("[Block %s]", b.cid) }

func (b *lazyBlock) Loggable() map[string]any { return map[string]any{"block": b.cid.String()} }
