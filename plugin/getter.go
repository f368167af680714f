package plugin

import (
	"context"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// getterWorkers is how many blocks one GetBlocks of a Getter fetches at a time.
const getterWorkers = 16

// A Getter is the least exchange: a function that fetches the bytes of one
// block, wherever they are. It is called from several goroutines at a time. It
// serves nobody.
type Getter func(ctx context.Context, c cid.Cid) ([]byte, error)

// GetBlock fetches a block, and checks that the bytes hash to the CID.
func (g Getter) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := g(ctx, c)
	if err != nil {
		return nil, err
	}
	found, err := c.Prefix().Sum(data)
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, "get", c.String(), err)
	}
	if !found.Equals(c) {
		return nil, errs.E(errs.BadBlock, errs.Peer, "get", c.String(), nil)
	}
	return blocks.NewBlockWithCid(data, c)
}

// GetBlocks fetches blocks, 16 at a time. Those that cannot be had are left out.
// The channel is closed when there are no more, or ctx ends.
func (g Getter) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	out := make(chan blocks.Block)
	next := make(chan cid.Cid)
	var workers sync.WaitGroup
	for range min(getterWorkers, len(keys)) {
		workers.Go(func() {
			for c := range next {
				b, err := g.GetBlock(ctx, c)
				if err != nil {
					continue
				}
				select {
				case out <- b:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() {
		defer close(out)
		defer workers.Wait()
		defer close(next)
		for _, c := range keys {
			select {
			case next <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// NotifyNewBlocks does nothing.
func (Getter) NotifyNewBlocks(context.Context, ...blocks.Block) error { return nil }

// Close does nothing.
func (Getter) Close() error { return nil }
