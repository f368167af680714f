package exchange

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// Config says what an Exchange works with. Only Network and Blocks are needed;
// every other field is useful when zero. Sizes are in bytes.
type Config struct {
	// Network gives streams and peers. Required.
	Network Network
	// Blocks is read to serve peers. Required. The exchange never writes: whoever
	// asked for a block stores it (boxo's blockservice does).
	Blocks Blocks
	// Leaves is read to serve the blocks of datasets by tree and index. Without
	// it no leaf is served; fetching leaves works all the same.
	Leaves Leaves
	// Router is asked for providers when no connected peer has a block. Without
	// it only connected peers are asked.
	Router Router

	// Logger receives what an operator may want to know. Default: discard.
	Logger *slog.Logger
	// Metrics is where the exchange's Prometheus collector is registered until
	// Close. Default: nowhere.
	Metrics prometheus.Registerer

	// ClientOnly switches serving off: nothing is answered and nothing is sent
	// but wants.
	ClientOnly bool

	// MaxFrame is the longest message accepted from a peer, and what a block and
	// 16 KiB have to fit into to be served. Default 32 MiB; between 64 KiB and
	// 100 MiB, which is the reference's own limit.
	MaxFrame int
	// WantsPerPeer is how many wants of one peer are kept at a time; beyond it
	// the oldest that cannot be served give way. Default 16,384, at least 1,024.
	WantsPerPeer int
	// Window is how many wants one request has in progress at a time. What is
	// asked for beyond it waits at the cost of a CID each. Default 1,024.
	Window int
	// BufferedBytes is how much a request may have received and not yet passed
	// on to its caller before it stops asking for more. Default 16 MiB.
	BufferedBytes int
	// ReadAhead is how much a session may fetch of a DAG before it is asked for it,
	// and hold. All sessions together hold at most eight times as much. Default 16
	// MiB, up to 1 GiB; negative: nothing is read ahead.
	ReadAhead int
	// ServingBytes is how much block data may be in memory on its way out, to
	// all peers together; what goes by reference (BlockWriter) counts as well.
	// Default 64 MiB.
	ServingBytes int
	// BroadcastPeers is how many peers are asked at a time when it is not known
	// who has a block. Default 64.
	BroadcastPeers int

	// SearchDelay is how long connected peers are given to announce a block
	// before the Router is asked as well. Default 1 s; negative: at once. The
	// Router is not asked while a peer that has shown in the session that it has
	// such blocks may still send it.
	SearchDelay time.Duration
	// SearchPeers is how many providers one search may bring. Default 10.
	SearchPeers int
	// Price is what we say a block of ours costs. Default: nothing. It is only
	// said: nothing is charged, and peers are served whether they pay or not.
	Price wire.Price
	// MaxPrice is the most that a block may cost; dearer announcements are
	// ignored. Default: any price (the exchange pays nothing by itself).
	MaxPrice *wire.Price

	// Filter says whether a peer may be given a block. It is called for what the
	// peer asks for, whether held or not, before anything is said, from several
	// goroutines. What it refuses is as if we had it not; it is asked again when the
	// peer asks again, or the block is stored. Default: everybody gets everything.
	Filter func(p peer.ID, a wire.Address) bool
	// Score says what a peer is worth, 0 to 100, by what has passed between us. The
	// network is told (Network.Tag), and when several peers wait for blocks each gets
	// a share of the bytes in proportion. It is called often, on the loop, and must
	// return at once without calling the exchange. Default: worth grows with the blocks that
	// went either way, and shares are equal.
	Score func(Ledger) int

	// Seed makes the choice among equal peers repeatable. Default: random.
	Seed uint64
}

const (
	minFrame = 64 << 10
	maxFrame = 100 << 20 // protocol note 1: what the reference reads at most
)

// check fills in defaults and reports everything wrong at once.
func (c *Config) check() error {
	var bad []error
	wrong := func(format string, args ...any) { bad = append(bad, fmt.Errorf(format, args...)) }
	if c.Network == nil {
		wrong("Network is nil, want a network such as adapter/p2p")
	}
	if c.Blocks == nil {
		wrong("Blocks is nil, want a store such as adapter/blocks")
	}
	size := func(name string, v *int, def, low, high int) {
		if *v == 0 {
			*v = def
		}
		if *v < low || *v > high {
			wrong("%s is %d, want %d to %d", name, *v, low, high)
		}
	}
	size("MaxFrame", &c.MaxFrame, blockexc.DefaultMaxFrame, minFrame, maxFrame)
	size("WantsPerPeer", &c.WantsPerPeer, 16384, 1024, 1<<24)
	size("Window", &c.Window, 1024, 1, 1<<20)
	size("BufferedBytes", &c.BufferedBytes, 16<<20, 1, 1<<40)
	if c.ReadAhead >= 0 {
		size("ReadAhead", &c.ReadAhead, 16<<20, 64<<10, 1<<30)
	}
	size("ServingBytes", &c.ServingBytes, 64<<20, 1<<20, 1<<40)
	size("BroadcastPeers", &c.BroadcastPeers, 64, 1, 1<<20)
	size("SearchPeers", &c.SearchPeers, 10, 1, 1000)
	if c.SearchDelay == 0 {
		c.SearchDelay = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if len(bad) > 0 {
		return errs.E(errs.Invalid, errs.Caller, "configure exchange", "", errors.Join(bad...))
	}
	return nil
}

func (c *Config) engine() engine.Config {
	var score func(engine.PeerStats) int
	if c.Score != nil {
		score = func(s engine.PeerStats) int { return c.Score(Ledger(s)) }
	}
	return engine.Config{
		Window:         c.Window,
		BufferedBytes:  c.BufferedBytes,
		WantsPerPeer:   c.WantsPerPeer,
		ServingBytes:   c.ServingBytes,
		BroadcastPeers: c.BroadcastPeers,
		SearchDelay:    max(c.SearchDelay, 0),
		Searches:       c.Router != nil,
		Serve:          !c.ClientOnly,
		Filtered:       c.Filter != nil,
		Price:          c.Price,
		MaxPrice:       c.MaxPrice,
		Score:          score,
		Self:           c.Network.Self(),
		Seed:           c.Seed,
	}
}
