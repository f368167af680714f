package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

func bandwidthCommand() *cmds.Command {
	const peerOption, protocolOption, pollOption, intervalOption = "peer", "proto", "poll", "interval"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Show what passes to and from peers.",
			ShortDescription: `
Prints bytes since the start of the daemon, and bytes per second now: of everything,
of one peer, or of one protocol.

  host stats bw --proto /codex/blockexc/1.0.0
  host stats bw --poll -i 5s
`,
		},
		Options: []cmds.Option{
			cmds.StringOption(peerOption, "p", "Only of the peer with this id."),
			cmds.StringOption(protocolOption, "t", "Only of this protocol."),
			cmds.BoolOption(pollOption, "Print again and again, until interrupted."),
			cmds.StringOption(intervalOption, "i", "The time between two prints with --poll.").WithDefault("1s"),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).online()
			if err != nil {
				return err
			}
			if n.Traffic() == nil {
				return errors.New("this node does not count what passes")
			}
			who, proto := option[string](req, peerOption), option[string](req, protocolOption)
			if who != "" && proto != "" {
				return errors.New("both --peer and --proto, want only one of them")
			}
			stat := n.Traffic().GetBandwidthTotals
			if who != "" {
				id, err := peer.Decode(who)
				if err != nil {
					return fmt.Errorf("--peer is %q: %w", who, err)
				}
				stat = func() metrics.Stats { return n.Traffic().GetBandwidthForPeer(id) }
			}
			if proto != "" {
				stat = func() metrics.Stats { return n.Traffic().GetBandwidthForProtocol(protocol.ID(proto)) }
			}
			every, err := time.ParseDuration(option[string](req, intervalOption))
			if err != nil || every <= 0 {
				return fmt.Errorf("--interval is %q, want a time such as 5s", option[string](req, intervalOption))
			}
			if !option[bool](req, pollOption) {
				return cmds.EmitOnce(re, pointer(stat()))
			}
			ctx, end := env(environment).endless(req.Context)
			defer end()
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				if err := re.Emit(pointer(stat())); err != nil {
					return err
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		},
		Type: metrics.Stats{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, s *metrics.Stats) error {
				human := func(n float64) string { return humanize.Bytes(uint64(max(0, n))) }
				if option[bool](req, pollOption) {
					_, err := fmt.Fprintf(w, "in %8s %8s/s   out %8s %8s/s\n", human(float64(s.TotalIn)), human(s.RateIn), human(float64(s.TotalOut)), human(s.RateOut))
					return err
				}
				_, err := fmt.Fprintf(w, "Bandwidth\nTotalIn: %s\nTotalOut: %s\nRateIn: %s/s\nRateOut: %s/s\n",
					human(float64(s.TotalIn)), human(float64(s.TotalOut)), human(s.RateIn), human(s.RateOut))
				return err
			}),
		},
	}
}

func pointer[T any](x T) *T { return &x }
