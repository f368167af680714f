package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	boxobs "github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/libp2p/go-libp2p/core/host"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	codexchange "github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/plugin"
)

// An exchangeKind is an exchange that can be measured.
type exchangeKind struct {
	name string
	// window is how many blocks its caller may want at a time, if the exchange
	// cannot be trusted with more; 0: any number.
	window int
	// bulkOnly: it speaks with one peer only, and well only in long lists.
	bulkOnly bool
	start    func(host.Host, blockstore.Blockstore) (runningExchange, error)
	asking   *asking // nil: nobody can ask it for anything that it keeps
}

// A runningExchange is an exchange in a node. It is closed before its host and
// its store are.
type runningExchange struct {
	boxo.SessionExchange
	counts func() (counts, error)
	plugin int // id of the process it runs in, 0 if that is the node's
}

// counts is what an exchange has moved since it started, in bytes.
type counts struct{ received, duplicate, sent uint64 }

// The two ways to run our exchange.
const (
	inProcess = "blockexc-inprocess"
	asPlugin  = "blockexc"
)

var exchanges = []exchangeKind{
	{name: inProcess, start: startInProcess, asking: askingBlockexc},
	{name: asPlugin, start: startPlugin, asking: askingBlockexc},
	{name: "bitswap", start: startBitswap, asking: askingBitswap},
	{name: "boxo", window: 512, start: startBoxo, asking: askingBitswap},
	{name: "floor", bulkOnly: true, start: startFloor},
}

func exchangeNames() []string {
	var names []string
	for _, k := range exchanges {
		names = append(names, k.name)
	}
	return names
}

func exchangeByName(name string) (exchangeKind, error) {
	i := slices.IndexFunc(exchanges, func(k exchangeKind) bool { return k.name == name })
	if i < 0 {
		return exchangeKind{}, fmt.Errorf("unknown exchange %q, want one of %s", name, strings.Join(exchangeNames(), ", "))
	}
	return exchanges[i], nil
}

func startInProcess(h host.Host, store blockstore.Blockstore) (runningExchange, error) {
	network, err := p2p.New(h, p2p.Options{})
	if err != nil {
		return runningExchange{}, err
	}
	x, err := exchange.New(exchange.Config{Network: network, Blocks: blocks.New(store)})
	if err != nil {
		return runningExchange{}, err
	}
	return runningExchange{SessionExchange: x, counts: func() (counts, error) {
		s := x.Stat()
		return counts{s.BytesReceived, s.DuplicateBytes, s.BytesSent}, nil
	}}, nil
}

// startPlugin is startInProcess in a process of its own, as package host has it.
func startPlugin(h host.Host, store blockstore.Blockstore) (runningExchange, error) {
	p, err := plugin.Load(context.Background(), plugin.Config{Name: codexchange.Blockexc, Host: h, Blocks: store})
	if err != nil {
		return runningExchange{}, err
	}
	return runningExchange{SessionExchange: p.Exchange(), plugin: p.Status().Pid, counts: func() (counts, error) {
		s, err := p.Inspect(context.Background())
		return counts{s.BytesReceived, s.DuplicateBytes, s.BytesSent}, err
	}}, nil
}

func startBitswap(h host.Host, store blockstore.Blockstore) (runningExchange, error) {
	x, err := bitswap.New(context.Background(), h, store, bitswap.Options{})
	if err != nil {
		return runningExchange{}, err
	}
	return runningExchange{SessionExchange: x, counts: func() (counts, error) {
		s, err := x.Stat()
		return counts{s.Bytes, s.DuplicateBytes, s.BytesSent}, err
	}}, nil
}

func startBoxo(h host.Host, store blockstore.Blockstore) (runningExchange, error) {
	x := boxobs.New(context.Background(), bsnet.NewFromIpfsHost(h), nil, store)
	return runningExchange{SessionExchange: x, counts: func() (counts, error) {
		s, err := x.Stat()
		if err != nil {
			return counts{}, err
		}
		return counts{s.DataReceived, s.DupDataReceived, s.DataSent}, nil
	}}, nil
}

func startFloor(h host.Host, store blockstore.Blockstore) (runningExchange, error) {
	x := newFloor(h, store)
	return runningExchange{SessionExchange: x, counts: func() (counts, error) {
		return counts{received: x.received.Load(), sent: x.sent.Load()}, nil
	}}, nil
}
