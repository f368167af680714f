package exchangetest_test

import (
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
)

func TestBlocks(t *testing.T) {
	porttest.Blocks(t, func(_ *testing.T, held []blocks.Block) exchange.Blocks {
		return exchangetest.NewBlocks(held...)
	})
}

func TestLeaves(t *testing.T) {
	porttest.Leaves(t, func(_ *testing.T, held []porttest.LeafRecord) exchange.Leaves {
		l := exchangetest.NewLeaves()
		for _, r := range held {
			l.PutLeaf(r.Root, r.Index, r.Block, r.Proof)
		}
		return l
	})
}

func TestRouter(t *testing.T) {
	porttest.Router(t, func(_ *testing.T, self peer.ID, providers map[cid.Cid][]peer.AddrInfo) exchange.Router {
		r := exchangetest.NewRouter()
		for c, who := range providers {
			r.Provide(c, who...)
		}
		return r.For(self)
	})
}
