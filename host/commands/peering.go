package commands

import (
	"fmt"
	"io"
	"slices"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/peer"
)

func swarmPeeringCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Peers that the node stays connected to.",
			ShortDescription: `
The node connects to these peers, and again whenever a connection is lost, more and
more seldom while that fails. What is changed here lasts until the daemon ends; the
configuration names those of its start, under Peering.Peers.
`,
		},
		Subcommands: map[string]*cmds.Command{
			"add": swarmPeeringAddCommand(),
			"ls":  swarmPeeringLsCommand(),
			"rm":  swarmPeeringRmCommand(),
		},
	}
}

// PeeringResult is what was done with a peer.
type PeeringResult struct {
	ID     peer.ID
	Status string
}

// peeringText prints what was done.
func peeringText(done string) cmds.EncoderMap {
	return cmds.EncoderMap{
		cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *PeeringResult) error {
			_, err := fmt.Fprintf(w, "%s %s %s\n", done, out.ID, printable(out.Status))
			return err
		}),
	}
}

func swarmPeeringAddCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Stay connected to peers.",
			ShortDescription: "Returns at once; 'host swarm peers' shows whether the peer was reached. A peer that was added before gets the new addresses.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("address", true, true, "The address of the peer.").EnableStdin()},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, peers, err := addressed(req, environment)
			if err != nil {
				return err
			}
			for _, p := range peers {
				if p.ID == n.Host().ID() {
					return fmt.Errorf("add peer %s: it is this node", p.ID)
				}
			}
			for _, p := range peers {
				n.Peering().AddPeer(p)
				if err := re.Emit(&PeeringResult{ID: p.ID, Status: "success"}); err != nil {
					return err
				}
			}
			return nil
		},
		Type:     PeeringResult{},
		Encoders: peeringText("add"),
	}
}

// PeeringPeers are the peers that the node stays connected to.
type PeeringPeers struct{ Peers []peer.AddrInfo }

func swarmPeeringLsCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "List the peers that the node stays connected to.", ShortDescription: "Prints the peers, connected or not, and the addresses that they were added with."},
		NoLocal:  true,
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).online()
			if err != nil {
				return err
			}
			out := &PeeringPeers{Peers: n.Peering().ListPeers()}
			slices.SortFunc(out.Peers, func(a, b peer.AddrInfo) int { return compareIDs(a.ID, b.ID) })
			return cmds.EmitOnce(re, out)
		},
		Type: PeeringPeers{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *PeeringPeers) error {
				for _, p := range out.Peers {
					if _, err := fmt.Fprintln(w, p.ID); err != nil {
						return err
					}
					for _, a := range p.Addrs {
						if _, err := fmt.Fprintf(w, "\t%s\n", a); err != nil {
							return err
						}
					}
				}
				return nil
			}),
		},
	}
}

func swarmPeeringRmCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "No longer stay connected to peers.",
			ShortDescription: "Connections stay until one side closes them.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("ID", true, true, "The peer id.").EnableStdin()},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			peers, err := decodePeers(req)
			if err != nil {
				return err
			}
			n, err := env(environment).online()
			if err != nil {
				return err
			}
			for _, id := range peers {
				n.Peering().RemovePeer(id)
				if err := re.Emit(&PeeringResult{ID: id, Status: "success"}); err != nil {
					return err
				}
			}
			return nil
		},
		Type:     PeeringResult{},
		Encoders: peeringText("remove"),
	}
}
