package commands

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/repo"
)

const (
	bootstrapKey = "Bootstrap"
	// autoPeers stands in the list for the peers that the program knows; Kubo calls
	// it "default" too.
	autoPeers = "auto"
)

// BootstrapOutput is a list of bootstrap peers, or what was changed of it.
type BootstrapOutput struct{ Peers []string }

func bootstrapCommand() *cmds.Command {
	list := bootstrapListCommand()
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "The peers by which the network is joined.",
			ShortDescription: `
A node connects to its bootstrap peers when it starts, and whenever it has too few
connections, and learns of others from them, so they have to be trusted. "auto" stands
for the peers of the public network; 'host bootstrap list --expand-auto' shows which
these are. Without a subcommand the list is printed.
`,
		},
		Run:      list.Run,
		Type:     list.Type,
		Encoders: list.Encoders,
		Subcommands: map[string]*cmds.Command{
			"list": list,
			"add":  bootstrapAddCommand(),
			"rm":   bootstrapRmCommand(),
		},
	}
}

// bootstrapText prints the peers in order, each after what was done with it.
func bootstrapText(done string) cmds.EncoderMap {
	return cmds.EncoderMap{
		cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *BootstrapOutput) error {
			for _, p := range slices.Sorted(slices.Values(out.Peers)) {
				if _, err := fmt.Fprintln(w, done+printable(p)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

// bootstrapPeers is the list as the configuration has it.
func bootstrapPeers(f *repo.ConfigFile) (list []string, err error) {
	raw, err := f.Get(bootstrapKey)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("read config key %s: %w", bootstrapKey, err)
	}
	return list, nil
}

// changeBootstrap changes the list in the configuration. Change returns the new list
// and what is to be reported; without anything to report nothing is written.
func changeBootstrap(e *Env, change func(list []string) (changed, report []string, err error)) (*BootstrapOutput, error) {
	e.editing.Lock()
	defer e.editing.Unlock()
	f, done, err := e.config()
	if err != nil {
		return nil, err
	}
	defer done()
	list, err := bootstrapPeers(f)
	if err != nil {
		return nil, err
	}
	list, report, err := change(list)
	if err != nil {
		return nil, err
	}
	out := &BootstrapOutput{Peers: append([]string{}, report...)}
	if len(report) == 0 {
		return out, nil
	}
	raw, err := json.Marshal(append([]string{}, list...)) // null would be the default
	if err != nil {
		return nil, err
	}
	return out, f.Set(bootstrapKey, raw)
}

func bootstrapListCommand() *cmds.Command {
	const expandOption = "expand-auto"
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "List the bootstrap peers."},
		Options:  []cmds.Option{cmds.BoolOption(expandOption, `Print the peers that "auto" stands for.`)},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			f, done, err := env(environment).config()
			if err != nil {
				return err
			}
			defer done()
			list, err := bootstrapPeers(f)
			if err != nil {
				return err
			}
			out := &BootstrapOutput{Peers: append([]string{}, list...)}
			if i := slices.Index(out.Peers, autoPeers); i >= 0 && option[bool](req, expandOption) {
				out.Peers = slices.Replace(out.Peers, i, i+1, repo.DefaultBootstrap()...)
			}
			return cmds.EmitOnce(re, out)
		},
		Type:     BootstrapOutput{},
		Encoders: bootstrapText(""),
	}
}

const bootstrapArg = "The peer, such as /ip4/192.0.2.7/tcp/4001/p2p/16Uiu2HAm..."

func bootstrapAddCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Add bootstrap peers.",
			ShortDescription: "Prints the peers that were added. \"auto\" or \"default\" adds those of the public network.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("peer", true, true, bootstrapArg).EnableStdin()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			if err := req.ParseBodyArgs(); err != nil {
				return err
			}
			var given []string
			for _, p := range req.Arguments {
				if p == "default" {
					p = autoPeers
				}
				if p != autoPeers {
					peers, err := parsePeers([]string{p})
					if err != nil {
						return err
					}
					if len(peers[0].Addrs) == 0 {
						return fmt.Errorf("bootstrap peer %q: it does not say where the peer is, want such as /ip4/192.0.2.7/tcp/4001/p2p/%s", p, peers[0].ID)
					}
				}
				if !slices.Contains(given, p) {
					given = append(given, p)
				}
			}
			out, err := changeBootstrap(env(environment), func(list []string) (_, added []string, _ error) {
				for _, p := range given {
					if !slices.Contains(list, p) {
						added = append(added, p)
					}
				}
				return append(list, added...), added, nil
			})
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, out)
		},
		Type:     BootstrapOutput{},
		Encoders: bootstrapText("added "),
	}
}

func bootstrapRmCommand() *cmds.Command {
	const allOption = "all"
	all := func(re cmds.ResponseEmitter, environment cmds.Environment) error {
		out, err := changeBootstrap(env(environment), func(list []string) (_, removed []string, _ error) {
			return nil, list, nil
		})
		if err != nil {
			return err
		}
		return cmds.EmitOnce(re, out)
	}
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Remove bootstrap peers.",
			ShortDescription: `
Prints the peers that were removed. An address without a transport, /p2p/16Uiu2HAm...,
removes the peer with all its addresses. Of the peers that "auto" stands for none can
be removed alone: remove "auto", and add those that shall stay.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("peer", false, true, bootstrapArg).EnableStdin()},
		Options:   []cmds.Option{cmds.BoolOption(allOption, "Remove all, as 'host bootstrap rm all' does.")},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			if option[bool](req, allOption) {
				return all(re, environment)
			}
			if err := req.ParseBodyArgs(); err != nil {
				return err
			}
			var remove []peer.AddrInfo
			withAuto := false
			for _, p := range req.Arguments {
				if p == autoPeers || p == "default" {
					withAuto = true
					continue
				}
				peers, err := parsePeers([]string{p})
				if err != nil {
					return err
				}
				remove = append(remove, peers...)
			}
			out, err := changeBootstrap(env(environment), func(list []string) (kept, removed []string, _ error) {
				for _, s := range list {
					gone := withAuto
					if s != autoPeers {
						gone = matches(s, remove)
					} else if !withAuto {
						for _, p := range repo.DefaultBootstrap() {
							if matches(p, remove) {
								return nil, nil, fmt.Errorf("remove bootstrap peer %s: it is one of those that %q stands for: remove %[2]q, and add those that shall stay", p, autoPeers)
							}
						}
					}
					if gone {
						removed = append(removed, s)
					} else {
						kept = append(kept, s)
					}
				}
				return kept, removed, nil
			})
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, out)
		},
		Type:     BootstrapOutput{},
		Encoders: bootstrapText("removed "),
		Subcommands: map[string]*cmds.Command{
			"all": {
				Helptext: cmds.HelpText{Tagline: "Remove all bootstrap peers."},
				Run: func(_ *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
					return all(re, environment)
				},
				Type:     BootstrapOutput{},
				Encoders: bootstrapText("removed "),
			},
		},
	}
}

// matches reports whether the address s of a peer is one of the list, whose peers
// without addresses stand for all of theirs.
func matches(s string, list []peer.AddrInfo) bool {
	p, err := peer.AddrInfoFromString(s)
	return err == nil && slices.ContainsFunc(list, func(q peer.AddrInfo) bool {
		return q.ID == p.ID && (len(q.Addrs) == 0 || len(p.Addrs) == 1 && slices.ContainsFunc(q.Addrs, p.Addrs[0].Equal))
	})
}
