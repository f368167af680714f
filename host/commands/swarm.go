package commands

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/host"
)

func swarmCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "Peers and connections."},
		Subcommands: map[string]*cmds.Command{
			"connect":    swarmConnectCommand(),
			"disconnect": swarmDisconnectCommand(),
			"peers":      swarmPeersCommand(),
			"peering":    swarmPeeringCommand(),
			"addrs":      swarmAddrsCommand(),
		},
	}
}

// listText prints each string on a line.
func listText() cmds.EncoderMap {
	return cmds.EncoderMap{
		cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *stringList) error {
			for _, s := range out.Strings {
				if _, err := fmt.Fprintln(w, printable(s)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

// parsePeers reads addresses of peers, those of the same peer together, in their
// order.
func parsePeers(args []string) ([]peer.AddrInfo, error) {
	var list []peer.AddrInfo
	for _, s := range args {
		p, err := peer.AddrInfoFromString(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w; want a multiaddr with the peer, such as /ip4/127.0.0.1/tcp/4001/p2p/16Uiu2…", s, err)
		}
		i := slices.IndexFunc(list, func(q peer.AddrInfo) bool { return q.ID == p.ID })
		if i < 0 {
			list = append(list, *p)
		} else {
			list[i].Addrs = append(list[i].Addrs, p.Addrs...)
		}
	}
	return list, nil
}

// addressed is the node and the peers whose addresses are the arguments of a command.
func addressed(req *cmds.Request, environment cmds.Environment) (*host.Node, []peer.AddrInfo, error) {
	if err := req.ParseBodyArgs(); err != nil {
		return nil, nil, err
	}
	n, err := env(environment).online()
	if err != nil {
		return nil, nil, err
	}
	peers, err := parsePeers(req.Arguments)
	return n, peers, err
}

// compareIDs is the order in which peer ids are printed.
func compareIDs(a, b peer.ID) int { return cmp.Compare(a.String(), b.String()) }

func swarmConnectCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Connect to peers.",
			ShortDescription: `
Connects to peers and stays so while both want to. The address names the peer, and
where it is unless this node knows:

  host swarm connect /ip4/192.0.2.7/tcp/4001/p2p/16Uiu2HAm...
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("address", true, true, "The address of the peer.").EnableStdin()},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, peers, err := addressed(req, environment)
			if err != nil {
				return err
			}
			out := &stringList{}
			for _, p := range peers {
				// A person who asks does not want to wait for the end of a back-off.
				if s, ok := n.Host().Network().(*swarm.Swarm); ok {
					s.Backoff().Clear(p.ID)
				}
				if err := n.Connect(req.Context, p); err != nil {
					return err
				}
				out.Strings = append(out.Strings, fmt.Sprintf("connect %s success", p.ID))
			}
			return cmds.EmitOnce(re, out)
		},
		Type:     stringList{},
		Encoders: listText(),
	}
}

func swarmDisconnectCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Close connections.",
			ShortDescription: "Closes the connection to an address, or, without an address, all to a peer: /p2p/16Uiu2HAm... Either node may connect again.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("address", true, true, "The address of the peer.").EnableStdin()},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, peers, err := addressed(req, environment)
			if err != nil {
				return err
			}
			out := &stringList{}
			for _, p := range peers {
				closed := 0
				for _, c := range n.Host().Network().ConnsToPeer(p.ID) {
					if len(p.Addrs) > 0 && !slices.ContainsFunc(p.Addrs, c.RemoteMultiaddr().Equal) {
						continue
					}
					if err := c.Close(); err != nil {
						return fmt.Errorf("disconnect %s: %w", p.ID, err)
					}
					closed++
				}
				if closed == 0 {
					return fmt.Errorf("disconnect %s: it is not connected at this address: 'host swarm peers' lists those that are", p.ID)
				}
				out.Strings = append(out.Strings, fmt.Sprintf("disconnect %s success", p.ID))
			}
			return cmds.EmitOnce(re, out)
		},
		Type:     stringList{},
		Encoders: listText(),
	}
}

// ConnInfo is a connection.
type ConnInfo struct {
	Addr      string            `json:",omitempty"`
	Peer      string            `json:",omitempty"`
	Latency   string            `json:",omitempty"`
	Muxer     string            `json:",omitempty"`
	Direction network.Direction `json:",omitempty"`
	Streams   []StreamInfo      `json:",omitempty"`
	Identify  IDOutput
}

// StreamInfo is a stream of a connection.
type StreamInfo struct{ Protocol string }

// ConnInfos are all connections.
type ConnInfos struct{ Peers []ConnInfo }

func swarmPeersCommand() *cmds.Command {
	const verboseOption, streamsOption, latencyOption, directionOption, identifyOption = "verbose", "streams", "latency", "direction", "identify"
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "List the peers that are connected.", ShortDescription: "Prints the address of each connection."},
		Options: []cmds.Option{
			cmds.BoolOption(verboseOption, "v", "Print everything that is known."),
			cmds.BoolOption(streamsOption, "Print the protocols of the open streams."),
			cmds.BoolOption(latencyOption, "Print the round-trip time."),
			cmds.BoolOption(directionOption, "Print who has dialled."),
			cmds.BoolOption(identifyOption, "Tell who the peer says it is; with --enc=json."),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).online()
			if err != nil {
				return err
			}
			asked := func(name string) bool { return option[bool](req, verboseOption) || option[bool](req, name) }
			out := &ConnInfos{Peers: []ConnInfo{}}
			for _, c := range n.Host().Network().Conns() {
				info := ConnInfo{Addr: c.RemoteMultiaddr().String(), Peer: c.RemotePeer().String()}
				if asked(directionOption) {
					info.Direction = c.Stat().Direction
				}
				if option[bool](req, verboseOption) {
					info.Muxer = string(c.ConnState().StreamMultiplexer)
				}
				if asked(latencyOption) {
					info.Latency = "n/a"
					if d := n.Host().Peerstore().LatencyEWMA(c.RemotePeer()); d > 0 {
						info.Latency = d.String()
					}
				}
				if asked(streamsOption) {
					for _, s := range c.GetStreams() {
						info.Streams = append(info.Streams, StreamInfo{Protocol: printable(string(s.Protocol()))})
					}
					slices.SortFunc(info.Streams, func(a, b StreamInfo) int { return cmp.Compare(a.Protocol, b.Protocol) })
				}
				if asked(identifyOption) {
					if who, err := identified(n.Host().Peerstore(), c.RemotePeer()); err == nil {
						info.Identify = *who
					}
				}
				out.Peers = append(out.Peers, info)
			}
			slices.SortFunc(out.Peers, func(a, b ConnInfo) int { return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Peer, b.Peer)) })
			return cmds.EmitOnce(re, out)
		},
		Type: ConnInfos{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *ConnInfos) error {
				for _, c := range out.Peers {
					line := c.Addr + "/p2p/" + c.Peer
					if c.Latency != "" {
						line += " " + c.Latency
					}
					switch c.Direction {
					case network.DirInbound:
						line += " inbound"
					case network.DirOutbound:
						line += " outbound"
					}
					if _, err := fmt.Fprintln(w, line); err != nil {
						return err
					}
					for _, s := range c.Streams {
						if _, err := fmt.Fprintf(w, "  %s\n", cmp.Or(s.Protocol, "<no protocol name>")); err != nil {
							return err
						}
					}
				}
				return nil
			}),
		},
	}
}

// AddrMap has addresses by peer.
type AddrMap struct{ Addrs map[string][]string }

func swarmAddrsCommand() *cmds.Command {
	const idOption = "id"
	// own is a command about the addresses of this node.
	own := func(tagline string, addrs func(n network.Network, all []multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error), opts ...cmds.Option) *cmds.Command {
		return &cmds.Command{
			Helptext: cmds.HelpText{Tagline: tagline},
			Options:  opts,
			NoLocal:  true,
			Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
				n, err := env(environment).online()
				if err != nil {
					return err
				}
				list, err := addrs(n.Host().Network(), n.Host().Addrs())
				if err != nil {
					return err
				}
				out := &stringList{Strings: []string{}}
				for _, a := range list {
					s := a.String()
					if option[bool](req, idOption) {
						s += "/p2p/" + n.Host().ID().String()
					}
					out.Strings = append(out.Strings, s)
				}
				slices.Sort(out.Strings)
				return cmds.EmitOnce(re, out)
			},
			Type:     stringList{},
			Encoders: listText(),
		}
	}
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "List known addresses.",
			ShortDescription: "Prints the peers that this node knows addresses of, how many, and which.",
		},
		NoLocal: true,
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).online()
			if err != nil {
				return err
			}
			out := &AddrMap{Addrs: make(map[string][]string)}
			for _, id := range n.Host().Peerstore().PeersWithAddrs() {
				list := []string{}
				for _, a := range n.Host().Peerstore().Addrs(id) {
					list = append(list, a.String())
				}
				slices.Sort(list)
				out.Addrs[id.String()] = list
			}
			return cmds.EmitOnce(re, out)
		},
		Type: AddrMap{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *AddrMap) error {
				for _, p := range slices.Sorted(maps.Keys(out.Addrs)) {
					if _, err := fmt.Fprintf(w, "%s (%d)\n", p, len(out.Addrs[p])); err != nil {
						return err
					}
					for _, a := range out.Addrs[p] {
						if _, err := fmt.Fprintf(w, "\t%s\n", a); err != nil {
							return err
						}
					}
				}
				return nil
			}),
		},
		Subcommands: map[string]*cmds.Command{
			"local": own("List the addresses that peers are told.", func(_ network.Network, all []multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
				return all, nil
			}, cmds.BoolOption(idOption, "Add the peer id.")),
			"listen": own("List the addresses that the node listens on.", func(n network.Network, _ []multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error) {
				return n.InterfaceListenAddresses()
			}),
		},
	}
}
