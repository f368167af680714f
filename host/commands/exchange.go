package commands

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-cidutil"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/host"
)

// askTimeout is how long a plugin may take to answer.
const askTimeout = 5 * time.Second

func exchangeCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "What the block exchanges do.",
			ShortDescription: `
A node has the exchanges that Exchange.Use names, in this order. They run in the
node's process, or each in a plugin: 'host plugin' is about these.
`,
		},
		Subcommands: map[string]*cmds.Command{
			"stat":     exchangeStatCommand(),
			"wantlist": exchangeWantlistCommand(),
			"ledger":   exchangeLedgerCommand(),
			"peers":    exchangePeersCommand(),
			"searches": exchangeSearchesCommand(),
		},
	}
}

// ExchangeStat is what an exchange has done since it, or its plugin, was started
// last.
type ExchangeStat struct {
	Name            string
	Plugin          bool
	BlocksReceived  uint64 // duplicates too
	BytesReceived   uint64
	DuplicateBlocks uint64
	DuplicateBytes  uint64
	BlocksSent      uint64
	BytesSent       uint64
	Wants           uint64            // now
	Peers           uint64            // now
	More            map[string]uint64 `json:",omitempty"`
	Error           string            `json:",omitempty"` // why there are no numbers
}

// ExchangeStats are all exchanges of a node.
type ExchangeStats struct{ Exchanges []ExchangeStat }

// running is the node and its exchanges.
func running(environment cmds.Environment) (*host.Node, []host.Running, error) {
	n, err := env(environment).online()
	if err != nil {
		return nil, nil, err
	}
	return n, n.Exchanges(), nil
}

func exchangeStatCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show what the exchanges have moved.",
			ShortDescription: "Prints what each exchange has received and sent since it was started, and what it wants now.",
		},
		Options: []cmds.Option{cmds.BoolOption(humanOption, "H", "Print sizes for people (1.5 GB).")},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			_, list, err := running(environment)
			if err != nil {
				return err
			}
			out := &ExchangeStats{Exchanges: []ExchangeStat{}}
			for _, x := range list {
				s, err := statOf(req.Context, x)
				if err != nil {
					s.Error = err.Error()
				}
				s.Name, s.Plugin = x.Name, x.Plugin() != nil
				out.Exchanges = append(out.Exchanges, s)
			}
			return cmds.EmitOnce(re, out)
		},
		Type: ExchangeStats{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *ExchangeStats) error {
				size := sizes(req)
				var b strings.Builder
				if len(out.Exchanges) == 0 {
					b.WriteString("no exchange runs: Exchange.Use is empty\n")
				}
				for _, s := range out.Exchanges {
					where := "in process"
					if s.Plugin {
						where = "plugin"
					}
					fmt.Fprintf(&b, "%s (%s)\n", s.Name, where)
					if s.Error != "" {
						fmt.Fprintf(&b, "\t%s\n", printable(s.Error))
						continue
					}
					fmt.Fprintf(&b, "\tblocks received: %d\n\tblocks sent: %d\n", s.BlocksReceived, s.BlocksSent)
					fmt.Fprintf(&b, "\tdata received: %s\n\tdata sent: %s\n", size(s.BytesReceived), size(s.BytesSent))
					fmt.Fprintf(&b, "\tdup blocks received: %d\n\tdup data received: %s\n", s.DuplicateBlocks, size(s.DuplicateBytes))
					fmt.Fprintf(&b, "\twantlist [%d keys]\n\tpartners [%d]\n", s.Wants, s.Peers)
					for _, k := range slices.Sorted(maps.Keys(s.More)) {
						fmt.Fprintf(&b, "\t%s: %d\n", printable(strings.ReplaceAll(k, "_", " ")), s.More[k])
					}
				}
				_, err := io.WriteString(w, b.String())
				return err
			}),
		},
	}
}

// statOf asks an exchange what it has counted.
func statOf(ctx context.Context, x host.Running) (ExchangeStat, error) {
	if p := x.Plugin(); p != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		s, err := p.Inspect(ctx)
		return ExchangeStat{
			BlocksReceived: s.BlocksReceived, BytesReceived: s.BytesReceived,
			DuplicateBlocks: s.DuplicateBlocks, DuplicateBytes: s.DuplicateBytes,
			BlocksSent: s.BlocksSent, BytesSent: s.BytesSent,
			Wants: s.Wants, Peers: s.Peers, More: s.More,
		}, err
	}
	switch x := x.Exchange.(type) {
	case interface{ Stat() exchange.Stat }:
		s := x.Stat()
		return ExchangeStat{
			BlocksReceived: s.BlocksReceived, BytesReceived: s.BytesReceived,
			DuplicateBlocks: s.DuplicateBlocks, DuplicateBytes: s.DuplicateBytes,
			BlocksSent: s.BlocksSent, BytesSent: s.BytesSent,
			Wants: uint64(s.Wants), Peers: uint64(s.Peers),
		}, nil
	case interface{ Stat() (bitswap.Stat, error) }:
		s, err := x.Stat()
		return ExchangeStat{
			BlocksReceived: s.Blocks, BytesReceived: s.Bytes,
			DuplicateBlocks: s.Duplicates, DuplicateBytes: s.DuplicateBytes,
			BlocksSent: s.BlocksSent, BytesSent: s.BytesSent,
			Wants: uint64(s.Wants), Peers: uint64(s.Peers),
		}, err
	}
	c, err := x.Counts()
	return ExchangeStat{BlocksReceived: c.Blocks + c.Duplicates, BytesReceived: c.Bytes, DuplicateBlocks: c.Duplicates}, err
}

// KeyList is a list of CIDs.
type KeyList struct{ Keys []cid.Cid }

func exchangeWantlistCommand() *cmds.Command {
	const peerOption, exchangeOption = "peer", "exchange"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show which blocks are wanted.",
			ShortDescription: "Prints the CIDs that this node asks for, or with --peer those that a peer asks of it, as far as the exchange tells.",
		},
		Options: []cmds.Option{
			cmds.StringOption(peerOption, "p", "The peer. Default: this node."),
			cmds.StringOption(exchangeOption, "x", "Only this exchange."),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, list, err := running(environment)
			if err != nil {
				return err
			}
			self := n.Host().ID()
			of := self
			if s := option[string](req, peerOption); s != "" {
				if of, err = decodePeer(s); err != nil {
					return err
				}
			}
			name := option[string](req, exchangeOption)
			keys, found := cid.NewSet(), false
			for _, x := range list {
				if name != "" && x.Name != name {
					continue
				}
				found = true
				var from any = x.Exchange
				if p := x.Plugin(); p != nil {
					from = p
				}
				var wants []cid.Cid
				if of == self {
					if w, ok := from.(interface{ GetWantlist() []cid.Cid }); ok {
						wants = w.GetWantlist()
					}
				} else if w, ok := from.(interface{ WantlistForPeer(peer.ID) []cid.Cid }); ok {
					wants = w.WantlistForPeer(of)
				}
				for _, c := range wants {
					keys.Add(c)
				}
			}
			if name != "" && !found {
				return fmt.Errorf("--%s: no exchange %q runs: 'host exchange stat' lists those that do", exchangeOption, name)
			}
			out := &KeyList{Keys: keys.Keys()}
			cidutil.Sort(out.Keys)
			return cmds.EmitOnce(re, out)
		},
		Type: KeyList{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *KeyList) error {
				enc, err := encoder(req)
				if err != nil {
					return err
				}
				for _, c := range out.Keys {
					if _, err := fmt.Fprintln(w, enc.Encode(c)); err != nil {
						return err
					}
				}
				return nil
			}),
		},
	}
}

// Ledger is what has passed between an exchange and a peer.
type Ledger struct {
	Exchange       string
	BlocksReceived *uint64 `json:",omitempty"` // nil: in Blocks
	BytesReceived  uint64
	BlocksSent     *uint64 `json:",omitempty"` // nil: in Blocks
	BytesSent      uint64
	Blocks         *uint64            `json:",omitempty"` // both ways, of exchanges that do not count them apart
	More           map[string]float64 `json:",omitempty"`
}

// Ledgers are those of one peer.
type Ledgers struct {
	Peer    string
	Ledgers []Ledger
}

func exchangeLedgerCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show what has passed between this node and a peer.",
			ShortDescription: "Prints what each exchange has received from a peer and sent to it while it was connected, as far as the exchange tells.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("peer", true, false, "The peer id.")},
		Options:   []cmds.Option{cmds.BoolOption(humanOption, "H", "Print sizes for people (1.5 GB).")},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			_, list, err := running(environment)
			if err != nil {
				return err
			}
			id, err := decodePeer(req.Arguments[0])
			if err != nil {
				return err
			}
			out := &Ledgers{Peer: id.String(), Ledgers: []Ledger{}}
			for _, x := range list {
				l, ok, err := ledgerOf(req.Context, x, id)
				if err != nil {
					return fmt.Errorf("ledger of %s in %s: %w", id, x.Name, err)
				}
				if ok {
					l.Exchange = x.Name
					out.Ledgers = append(out.Ledgers, l)
				}
			}
			if len(out.Ledgers) == 0 {
				return fmt.Errorf("ledger of %s: no exchange knows this peer: 'host exchange peers' lists those that are connected", id)
			}
			return cmds.EmitOnce(re, out)
		},
		Type: Ledgers{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *Ledgers) error {
				size := sizes(req)
				var b strings.Builder
				fmt.Fprintf(&b, "Ledger for %s\n", out.Peer)
				for _, l := range out.Ledgers {
					fmt.Fprintf(&b, "%s\n", l.Exchange)
					for _, n := range []struct {
						what   string
						blocks *uint64
					}{{"sent", l.BlocksSent}, {"received", l.BlocksReceived}, {"sent and received", l.Blocks}} {
						if n.blocks != nil {
							fmt.Fprintf(&b, "\tblocks %s: %d\n", n.what, *n.blocks)
						}
					}
					fmt.Fprintf(&b, "\tbytes sent: %s\n\tbytes received: %s\n", size(l.BytesSent), size(l.BytesReceived))
					for _, k := range slices.Sorted(maps.Keys(l.More)) {
						fmt.Fprintf(&b, "\t%s\n", printable(ledgerLine(k, l.More[k], size)))
					}
				}
				_, err := io.WriteString(w, b.String())
				return err
			}),
		},
	}
}

// ledgerLine is what an exchange tells besides, for people.
func ledgerLine(name string, v float64, size func(uint64) string) string {
	what, isTime := strings.CutSuffix(name, "_ms")
	text := humanize.FtoaWithDigits(v, 1)
	switch {
	case isTime:
		text += " ms"
	case name == "rate" && v >= 0: // of blockexc
		what, text = "bytes per second", size(uint64(v))
	}
	return strings.ReplaceAll(what, "_", " ") + ": " + text
}

func ledgerOf(ctx context.Context, x host.Running, id peer.ID) (Ledger, bool, error) {
	if p := x.Plugin(); p != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		l, ok, err := p.Ledger(ctx, id)
		return Ledger{
			BlocksReceived: &l.BlocksReceived, BytesReceived: l.BytesReceived,
			BlocksSent: &l.BlocksSent, BytesSent: l.BytesSent, More: l.More,
		}, ok, err
	}
	switch x := x.Exchange.(type) {
	case interface {
		Ledger(peer.ID) (exchange.Ledger, bool)
	}:
		l, ok := x.Ledger(id)
		return Ledger{
			BlocksReceived: &l.BlocksReceived, BytesReceived: l.BytesReceived,
			BlocksSent: &l.BlocksSent, BytesSent: l.BytesSent,
		}, ok, nil
	case interface {
		Ledger(peer.ID) (bitswap.Ledger, bool)
	}:
		l, ok := x.Ledger(id)
		return Ledger{Blocks: &l.Blocks, BytesReceived: l.BytesReceived, BytesSent: l.BytesSent}, ok, nil
	}
	return Ledger{}, false, nil
}

// ExchangePeer is a connected peer, and which exchanges talk to it.
type ExchangePeer struct {
	Peer      string
	Exchanges []string
}

// ExchangePeers are all connected peers that speak a protocol of an exchange.
type ExchangePeers struct{ Peers []ExchangePeer }

func exchangePeersCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "List the peers that an exchange can ask.",
			ShortDescription: "Prints the connected peers that speak the protocol of an exchange, and which exchanges these are.",
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, list, err := running(environment)
			if err != nil {
				return err
			}
			out := &ExchangePeers{Peers: []ExchangePeer{}}
			for _, id := range n.Peers() {
				speaks, err := n.Host().Peerstore().GetProtocols(id)
				if err != nil {
					return err
				}
				p := ExchangePeer{Peer: id.String()}
				for _, x := range list {
					if slices.ContainsFunc(speaks, spokenBy(x)) {
						p.Exchanges = append(p.Exchanges, x.Name)
					}
				}
				if p.Exchanges != nil {
					out.Peers = append(out.Peers, p)
				}
			}
			slices.SortFunc(out.Peers, func(a, b ExchangePeer) int { return strings.Compare(a.Peer, b.Peer) })
			return cmds.EmitOnce(re, out)
		},
		Type: ExchangePeers{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *ExchangePeers) error {
				for _, p := range out.Peers {
					if _, err := fmt.Fprintf(w, "%s %s\n", p.Peer, strings.Join(p.Exchanges, " ")); err != nil {
						return err
					}
				}
				return nil
			}),
		},
	}
}

// spokenBy tells the protocols of an exchange.
func spokenBy(x host.Running) func(protocol.ID) bool {
	if p := x.Plugin(); p != nil {
		own := p.Lent().Protocols
		return func(id protocol.ID) bool { return slices.Contains(own, id) }
	}
	prefix := "/codex/blockexc/"
	if x.Name == host.Bitswap {
		prefix = "/ipfs/bitswap"
	}
	return func(id protocol.ID) bool { return strings.HasPrefix(string(id), prefix) }
}
