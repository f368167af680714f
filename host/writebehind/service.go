package writebehind

import (
	"context"

	"github.com/ipfs/boxo/blockservice"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// Service returns boxo's blockservice over the store and an exchange: what it
// fetches is held and written behind, what AddBlock and AddBlocks add is in the
// store behind when they return. x is what [Store.Exchange] has returned, or nil to
// stay offline; the service's Close closes it. Sessions work as in boxo.
func (s *Store) Service(x boxo.Interface, opts ...blockservice.Option) blockservice.BoundedBlockService {
	return &service{
		BoundedBlockService: blockservice.New(s, x, opts...).(blockservice.BoundedBlockService),
		adds:                blockservice.New(s.Adding(), x, opts...),
	}
}

type service struct {
	blockservice.BoundedBlockService // fetches
	adds                             blockservice.BlockService
}

func (s *service) AddBlock(ctx context.Context, b blocks.Block) error {
	return s.adds.AddBlock(ctx, b)
}

func (s *service) AddBlocks(ctx context.Context, list []blocks.Block) error {
	return s.adds.AddBlocks(ctx, list)
}

// GetBlock and GetBlocks use the session that blockservice.ContextWithSession has
// put into ctx: its key is the service it was called with, which is s.

func (s *service) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if session, ok := ctx.Value(s).(*blockservice.Session); ok {
		return session.GetBlock(ctx, c)
	}
	return s.BoundedBlockService.GetBlock(ctx, c)
}

func (s *service) GetBlocks(ctx context.Context, keys []cid.Cid) <-chan blocks.Block {
	if session, ok := ctx.Value(s).(*blockservice.Session); ok {
		return session.GetBlocks(ctx, keys)
	}
	return s.BoundedBlockService.GetBlocks(ctx, keys)
}
