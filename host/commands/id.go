package commands

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multibase"

	node "github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

// IDOutput is who a node is.
type IDOutput struct {
	ID           string
	PublicKey    string
	Addresses    []string
	AgentVersion string
	Protocols    []protocol.ID
}

func idCommand() *cmds.Command {
	const formatOption, peerBaseOption = "format", "peerid-base"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Show who a node is.",
			ShortDescription: `
Prints the peer id of this node, or of another that it is connected to or can
reach, with its key, addresses and protocols. Addresses and protocols of this node
are shown while the daemon runs.

--format takes a text in which <id>, <aver>, <pubkey>, <addrs> and <protocols> are
replaced, and \n and \t:

  host id --format="<addrs>\n"
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("peerid", false, false, "The peer id of another node.")},
		Options: []cmds.Option{
			cmds.StringOption(formatOption, "f", "Text to print, see above."),
			cmds.StringOption(peerBaseOption, "How peer ids are printed: b58mh, or a multibase for a CID, such as base36.").WithDefault("b58mh"),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			show, err := peerFormat(option[string](req, peerBaseOption))
			if err != nil {
				return err
			}
			e := env(environment)
			r, err := e.Repo()
			if err != nil {
				return err
			}
			self, err := peer.IDFromPrivateKey(r.Identity())
			if err != nil {
				return err
			}
			id := self
			if len(req.Arguments) > 0 {
				if id, err = decodePeer(req.Arguments[0]); err != nil {
					return err
				}
			}
			if id == self {
				out, err := e.self(r, self)
				if err != nil {
					return err
				}
				out.ID = show(self)
				return cmds.EmitOnce(re, out)
			}
			if e.shutdown == nil {
				return fmt.Errorf("ask peer %s who it is: no daemon runs on %s: start one with 'host daemon'", id, e.dir)
			}
			n, err := e.online()
			if err != nil {
				return err
			}
			if !option[bool](req, offlineOption) {
				if err := n.Connect(req.Context, peer.AddrInfo{ID: id}); err != nil {
					return err
				}
			}
			out, err := identified(n.Host().Peerstore(), id)
			if err != nil {
				return err
			}
			out.ID = show(id)
			return cmds.EmitOnce(re, out)
		},
		Type: IDOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *IDOutput) error {
				if format, ok := req.Options[formatOption].(string); ok {
					_, err := strings.NewReplacer(
						"<id>", out.ID, "<aver>", out.AgentVersion, "<pubkey>", out.PublicKey,
						"<addrs>", strings.Join(out.Addresses, "\n"),
						"<protocols>", strings.Join(protocol.ConvertToStrings(out.Protocols), "\n"),
						`\n`, "\n", `\t`, "\t",
					).WriteString(w, format)
					return err
				}
				text, err := json.MarshalIndent(out, "", "\t")
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(w, "%s\n", text)
				return err
			}),
		},
	}
}

// self is who this node is.
func (e *Env) self(r *repo.Repo, id peer.ID) (*IDOutput, error) {
	key, err := crypto.MarshalPublicKey(r.Identity().GetPublic())
	if err != nil {
		return nil, err
	}
	out := &IDOutput{PublicKey: base64.StdEncoding.EncodeToString(key), AgentVersion: "codexchange/" + currentVersion()}
	e.mu.Lock()
	n := e.node
	e.mu.Unlock()
	if n == nil || !n.Online() {
		return out, nil
	}
	addrs, err := peer.AddrInfoToP2pAddrs(host.InfoFromHost(n.Host()))
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		out.Addresses = append(out.Addresses, a.String())
	}
	slices.Sort(out.Addresses)
	out.Protocols = n.Host().Mux().Protocols()
	slices.Sort(out.Protocols)
	return out, nil
}

// identified is who another node has said it is.
func identified(store peerstore.Peerstore, id peer.ID) (*IDOutput, error) {
	out := &IDOutput{ID: id.String()}
	if k := store.PubKey(id); k != nil {
		raw, err := crypto.MarshalPublicKey(k)
		if err != nil {
			return nil, err
		}
		out.PublicKey = base64.StdEncoding.EncodeToString(raw)
	}
	addrs, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: id, Addrs: store.Addrs(id)})
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		out.Addresses = append(out.Addresses, a.String())
	}
	slices.Sort(out.Addresses)
	speaks, err := store.GetProtocols(id)
	if err != nil {
		return nil, err
	}
	for _, p := range speaks {
		out.Protocols = append(out.Protocols, protocol.ID(printable(string(p))))
	}
	slices.Sort(out.Protocols)
	if v, err := store.Get(id, "AgentVersion"); err == nil {
		s, _ := v.(string)
		out.AgentVersion = printable(s)
	}
	return out, nil
}

// printable is a text from a peer or a directory, without what a terminal would
// obey.
func printable(s string) string {
	clean := true
	for _, r := range s {
		clean = clean && strconv.IsPrint(r)
	}
	if clean {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

func decodePeer(s string) (peer.ID, error) {
	id, err := peer.Decode(s)
	if err != nil {
		return "", fmt.Errorf("peer id %q: %w", s, err)
	}
	return id, nil
}

// peerFormat is how peer ids are printed.
func peerFormat(base string) (func(peer.ID) string, error) {
	if base == "b58mh" {
		return peer.ID.String, nil
	}
	enc, err := multibase.EncoderByName(base)
	if err != nil {
		return nil, fmt.Errorf("--peerid-base: %w; want b58mh or a multibase, such as base36", err)
	}
	return func(id peer.ID) string {
		s, err := cid.NewCidV1(cid.Libp2pKey, []byte(id)).StringOfBase(enc.Encoding())
		if err != nil {
			return id.String()
		}
		return s
	}, nil
}

// VersionOutput is which program this is.
type VersionOutput struct {
	Version string // as in semantic versioning, without a v
	Commit  string
	Repo    string // version of the layout of repos
	System  string // architecture/operating system
	Golang  string
}

func versionCommand() *cmds.Command {
	const numberOption, commitOption, layoutOption, allOption = "number", "commit", "repo", "all"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show the version.",
			ShortDescription: "Prints the version of this program; with --all also what it was built with, and the libraries that decide how it talks to other nodes.",
		},
		Options: []cmds.Option{
			cmds.BoolOption(numberOption, "n", "Print only the number."),
			cmds.BoolOption(commitOption, "Print the commit too."),
			cmds.BoolOption(layoutOption, "Print the version of the layout of repos."),
			cmds.BoolOption(allOption, "Print everything."),
		},
		Extra: here(),
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
			return cmds.EmitOnce(re, buildVersion())
		},
		Type: VersionOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *VersionOutput) error {
				version := out.Version
				if option[bool](req, commitOption) && out.Commit != "" {
					version += "-" + out.Commit
				}
				var err error
				switch {
				case option[bool](req, allOption):
					fmt.Fprintf(w, "codexchange version: %s\nCommit: %s\nRepo version: %s\nSystem version: %s\nGolang version: %s\n",
						out.Version, out.Commit, out.Repo, out.System, out.Golang)
					for _, m := range libraries() {
						fmt.Fprintf(w, "%s version: %s\n", m.Path, m.Version)
					}
				case option[bool](req, layoutOption):
					_, err = fmt.Fprintln(w, out.Repo)
				case option[bool](req, numberOption):
					_, err = fmt.Fprintln(w, version)
				default:
					_, err = fmt.Fprintf(w, "codexchange version %s\n", version)
				}
				return err
			}),
		},
	}
}

func buildVersion() *VersionOutput {
	out := &VersionOutput{
		Version: currentVersion(),
		Repo:    strconv.Itoa(repo.Version),
		System:  runtime.GOARCH + "/" + runtime.GOOS,
		Golang:  runtime.Version(),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				out.Commit = s.Value[:min(len(s.Value), 9)]
			}
		}
	}
	return out
}

// currentVersion is the version of this program. Clients of the API parse it, so it is
// a semantic version also where Go knows none.
func currentVersion() string { return node.Version() }

// libraries are those that decide how this program talks to others.
func libraries() (list []*debug.Module) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, m := range info.Deps {
		switch m.Path {
		case "github.com/ipfs/boxo", "github.com/libp2p/go-libp2p":
			list = append(list, m)
		}
	}
	return list
}

func shutdownCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Stop the daemon.",
			ShortDescription: "Asks the daemon to stop, and does not wait until it has: 'host daemon' ends when it has.",
		},
		NoLocal: true,
		Run: func(_ *cmds.Request, _ cmds.ResponseEmitter, environment cmds.Environment) error {
			e := env(environment)
			if e.shutdown == nil {
				return errors.New("stop the daemon: this is not one")
			}
			e.shutdown()
			return nil
		},
	}
}
