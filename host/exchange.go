package host

import (
	"context"
	"fmt"
	"strings"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/libp2p/go-libp2p/core/host"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
)

// An Exchange is a boxo exchange that counts what peers send it. Its methods
// may be called from any goroutine.
type Exchange interface {
	boxo.SessionExchange
	Counts() (Counts, error)
}

// Counts is what an exchange has received from peers since it was started.
type Counts struct {
	Blocks     uint64 // blocks, without the duplicates
	Duplicates uint64 // blocks that were already here
	Bytes      uint64 // length of all these blocks
}

// The exchanges a node can use.
const (
	Blockexc = "blockexc" // the Codex block exchange, in process
	Bitswap  = "bitswap"  // boxo's Bitswap
)

// exchanges starts each exchange over a libp2p host that does not listen yet,
// and a store. What they return is closed before host and store are.
var exchanges = []struct {
	name  string
	start func(h host.Host, store blockstore.Blockstore) (Exchange, error)
}{
	{Blockexc, startBlockexc},
	{Bitswap, startBitswap},
}

// Exchanges returns the names that [Options.Exchange] can have.
func Exchanges() []string {
	names := make([]string, len(exchanges))
	for i, x := range exchanges {
		names[i] = x.name
	}
	return names
}

func startExchange(name string, h host.Host, store blockstore.Blockstore) (Exchange, error) {
	for _, x := range exchanges {
		if x.name == name {
			e, err := x.start(h, store)
			if err != nil {
				return nil, fmt.Errorf("start exchange %s: %w", name, err)
			}
			return e, nil
		}
	}
	return nil, fmt.Errorf("start exchange: unknown name %q, want one of %s", name, strings.Join(Exchanges(), ", "))
}

type blockexcExchange struct{ *exchange.Exchange }

func startBlockexc(h host.Host, store blockstore.Blockstore) (Exchange, error) {
	network, err := p2p.New(h, p2p.Options{})
	if err != nil {
		return nil, err
	}
	x, err := exchange.New(exchange.Config{Network: network, Blocks: blocks.New(store)})
	if err != nil {
		return nil, err
	}
	return blockexcExchange{x}, nil
}

func (x blockexcExchange) Counts() (Counts, error) {
	s := x.Stat()
	return Counts{Blocks: s.BlocksReceived - s.DuplicateBlocks, Duplicates: s.DuplicateBlocks, Bytes: s.BytesReceived}, nil
}

type bitswapExchange struct{ *bitswap.Exchange }

func startBitswap(h host.Host, store blockstore.Blockstore) (Exchange, error) {
	x, err := bitswap.New(context.Background(), h, store, bitswap.Options{})
	if err != nil {
		return nil, err
	}
	return bitswapExchange{x}, nil
}

func (x bitswapExchange) Counts() (Counts, error) {
	s, err := x.Stat()
	if err != nil {
		return Counts{}, err
	}
	return Counts{Blocks: s.Blocks - s.Duplicates, Duplicates: s.Duplicates, Bytes: s.Bytes}, nil
}
