package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/libp2p/go-libp2p/core/host"
	corerouting "github.com/libp2p/go-libp2p/core/routing"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/adapter/blocks"
	"github.com/codexchange/codexchange/adapter/leaves"
	"github.com/codexchange/codexchange/adapter/multi"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/adapter/routing"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/plugin"
)

// An Exchange is a boxo exchange that counts what peers send it. Its methods
// may be called from any goroutine.
type Exchange interface {
	boxo.SessionExchange
	Counts() (Counts, error)
	// Plugin is the plugin that the exchange runs in, nil if it runs in this
	// process.
	Plugin() *plugin.Plugin
}

// Counts is what an exchange has received from peers since it was started, or,
// if it runs in a plugin, since that was started last.
type Counts struct {
	Blocks     uint64 // blocks, without the duplicates
	Duplicates uint64 // blocks that were already here
	Bytes      uint64 // length of all these blocks
}

// The exchanges that a node has of its own.
const (
	Blockexc = "blockexc" // the Codex block exchange
	Bitswap  = "bitswap"  // boxo's Bitswap, always in this process
)

// A Plugin says where an exchange is to be found. The zero value is one of those
// that this program brings, in a process of its own.
type Plugin struct {
	// Path is the program. Empty is this program itself, which knows Blockexc.
	Path string
	// SHA256 is the sum of the program at Path, in hexadecimal digits.
	SHA256 string
	// InProcess runs the exchange in the host's process. Only for those that
	// this program brings.
	InProcess bool
	// Config is given to the plugin.
	Config json.RawMessage
}

// needs is what an exchange is started with: a libp2p host that does not listen
// yet, and stores of what is written. What is started is closed before they are.
type needs struct {
	host    host.Host
	store   blockstore.Blockstore
	leaves  *leaves.Store
	router  corerouting.ContentRouting // nil if nobody is asked
	metrics prometheus.Registerer      // may be nil
	log     *slog.Logger
}

// A Running is one exchange of a node.
type Running struct {
	Name string
	Exchange
}

// startExchanges starts the exchanges that are named, in order. If one cannot be
// started, none is left running.
func startExchanges(ctx context.Context, names []string, plugins map[string]Plugin, n needs) (list []Running, err error) {
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			err = fmt.Errorf("start exchange %s: it is named twice", name)
			break
		}
		var x Exchange
		if x, err = startExchange(ctx, name, plugins, n); err != nil {
			break
		}
		list = append(list, Running{name, x})
	}
	if err != nil {
		for _, x := range slices.Backward(list) {
			err = errors.Join(err, x.Close())
		}
		return nil, err
	}
	return list, nil
}

// combine makes one exchange of those that run: they are asked in order, the next
// when one has brought nothing for a while. None is an exchange that has nothing.
func combine(list []Running, store blockstore.Blockstore) boxo.Interface {
	switch len(list) {
	case 0:
		return offline.Exchange(store)
	case 1:
		return list[0].Exchange
	}
	var others []boxo.Interface
	for _, x := range list[1:] {
		others = append(others, x.Exchange)
	}
	return multi.New(multi.Options{}, list[0].Exchange, others...)
}

// Exchanges returns the names of the exchanges that a node has of its own.
func Exchanges() []string { return []string{Blockexc, Bitswap} }

// startExchange starts an exchange by name: one of Exchanges, or one of plugins.
func startExchange(ctx context.Context, name string, plugins map[string]Plugin, n needs) (_ Exchange, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start exchange %s: %w", name, err)
		}
	}()
	p, configured := plugins[name]
	switch {
	case name == Bitswap && configured:
		return nil, fmt.Errorf("is not a plugin: load a Bitswap plugin under another name")
	case name == Bitswap:
		return startBitswap(n)
	case p.InProcess && name != Blockexc:
		return nil, fmt.Errorf("InProcess is set, but only %s can run in the host's process", Blockexc)
	case p.InProcess && (p.Path != "" || p.SHA256 != ""):
		return nil, fmt.Errorf("both InProcess and a program (%q) are set, want one of them", p.Path)
	case p.InProcess:
		return startBlockexc(n, p.Config)
	case name == Blockexc || p.Path != "":
		return startPlugin(ctx, name, p, n)
	case configured:
		return nil, fmt.Errorf("the plugin has no Path")
	}
	known := append(Exchanges(), slices.Sorted(maps.Keys(plugins))...)
	slices.Sort(known)
	return nil, fmt.Errorf("unknown name, want one of %s", strings.Join(slices.Compact(known), ", "))
}

type blockexcExchange struct{ *exchange.Exchange }

func startBlockexc(n needs, config json.RawMessage) (Exchange, error) {
	cfg := exchange.Config{Blocks: blocks.New(n.store), Leaves: n.leaves, Metrics: n.metrics, Logger: n.log}
	if n.router != nil {
		cfg.Router = routing.New(n.host.ID(), n.router)
	}
	x, err := newBlockexc(n.host, config, cfg)
	if err != nil {
		return nil, err
	}
	return blockexcExchange{x}, nil
}

// blockexcConfig is what can be configured of the Codex block exchange.
type blockexcConfig struct {
	// ReadAhead is how much a session may fetch ahead of its caller: a size such as
	// "16MiB", or "off". Empty: exchange.Config's default.
	ReadAhead string
}

func (c blockexcConfig) apply(cfg *exchange.Config) error {
	switch c.ReadAhead {
	case "":
	case "off":
		cfg.ReadAhead = -1
	default:
		n, err := humanize.ParseBytes(c.ReadAhead)
		if err != nil || n == 0 || n > 1<<30 {
			return fmt.Errorf("ReadAhead is %q, want \"off\" or a size of up to 1GiB such as \"16MiB\"", c.ReadAhead)
		}
		cfg.ReadAhead = int(n)
	}
	return nil
}

// newBlockexc makes the Codex block exchange, in whichever process this is. What
// is configured goes into cfg.
func newBlockexc(h host.Host, config json.RawMessage, cfg exchange.Config) (_ *exchange.Exchange, err error) {
	if len(config) > 0 {
		var c blockexcConfig
		err := strictJSON(config, &c)
		if err == nil {
			err = c.apply(&cfg)
		}
		if err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", Blockexc, err)
		}
	}
	if cfg.Network, err = p2p.New(h, p2p.Options{}); err != nil {
		return nil, err
	}
	return exchange.New(cfg)
}

// strictJSON decodes JSON and refuses what v has no place for.
func strictJSON(data []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

func (x blockexcExchange) Counts() (Counts, error) {
	s := x.Stat()
	return Counts{Blocks: s.BlocksReceived - s.DuplicateBlocks, Duplicates: s.DuplicateBlocks, Bytes: s.BytesReceived}, nil
}

func (blockexcExchange) Plugin() *plugin.Plugin { return nil }

type bitswapExchange struct{ *bitswap.Exchange }

func startBitswap(n needs) (Exchange, error) {
	x, err := bitswap.New(context.Background(), n.host, n.store, bitswap.Options{Router: n.router})
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

func (bitswapExchange) Plugin() *plugin.Plugin { return nil }
