package commands

import (
	"context"
	"errors"
	"fmt"
	"strings"

	cidenc "github.com/ipfs/go-cidutil/cidenc"
	cmds "github.com/ipfs/go-ipfs-cmds"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multibase"

	"github.com/codexchange/codexchange/host/repo"
)

// Options that every command has.
const (
	repoOption    = "repo-dir"
	apiOption     = "api"
	authOption    = "api-auth"
	offlineOption = "offline"
	debugOption   = "debug"
	baseOption    = "cid-base"
	upgradeOption = "upgrade-cidv0-in-output"
)

// Root is the tree of all commands but those that start a node: whoever has the
// packages for these adds them. Each call makes a new tree.
func Root() *cmds.Command {
	root := &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:  "A node that fetches and serves content-addressed blocks.",
			Synopsis: "host [--repo-dir=<dir>] [--api=<multiaddr>] <command> ...",
			Subcommands: `
BEGIN
  init          Make the repo of a node
  daemon        Run the node
  shutdown      Stop the daemon
  config        Read and change the configuration
  id            Show who a node is
  version       Show the version

FILES
  add           Store files and directories
  cat           Print a file
  get           Write files and directories to the disk
  ls            List a directory

BLOCKS
  block         Single blocks
  dag           Whole DAGs, as CAR files
  refs          Links between blocks
  pin           What is kept when garbage is collected
  repo          Garbage, size and health of the repo

NETWORK
  swarm         Peers and connections
  peerstore     What is known of peers
  bootstrap     The peers by which the network is joined
  routing       Who has what, and where peers are
  exchange      What the block exchanges do
  plugin        The processes that exchanges run in

TOOLS
  stats         Traffic and size
  log           Levels of the log
  diag          What to attach to a bug report
  completion    Completion for bash, zsh and fish
  demo          Two nodes side by side, and their exchanges compared

'host <command> --help' tells more of each.

The repo is --repo-dir, else $` + repo.EnvDir + `, else ~/.codexchange.

EXIT STATUS

0 if the command did what it should, 1 if it failed or the command line is wrong,
130 if it was interrupted.
`,
		},
		Options: []cmds.Option{
			cmds.StringOption(repoOption, "Directory of the repo."),
			cmds.StringOption(apiOption, "Multiaddr of the API of the daemon to use, instead of the one in the repo."),
			cmds.StringOption(authOption, "Secret for the API, as in API.Authorizations of its configuration: bearer:TOKEN, basic:USER:PASSWORD or a token alone."),
			cmds.BoolOption(offlineOption, "Use only what is stored: ask no peers."),
			cmds.BoolOption(debugOption, "D", "Log what this process does in all detail."),
			cmds.BoolOption(cmds.OptLongHelp, "Print all of the help for a command."),
			cmds.BoolOption(cmds.OptShortHelp, "Print a short help for a command."),
			cmds.StringOption(baseOption, "Multibase in which CIDs are printed, such as base32 or base58btc. All but base58btc print CIDv0 as CIDv1."),
			cmds.BoolOption(upgradeOption, "Print CIDv0 as CIDv1."),
			cmds.OptionEncodingType,
			cmds.OptionStreamChannels,
			cmds.OptionTimeout,
		},
		Subcommands: map[string]*cmds.Command{
			"init":       initCommand(),
			"config":     configCommand(),
			"id":         idCommand(),
			"version":    versionCommand(),
			"shutdown":   shutdownCommand(),
			"add":        addCommand(),
			"cat":        catCommand(),
			"get":        getCommand(),
			"ls":         lsCommand(),
			"block":      blockCommand(),
			"refs":       refsCommand(),
			"pin":        pinCommand(),
			"repo":       repoCommand(),
			"dag":        dagCommand(),
			"swarm":      swarmCommand(),
			"peerstore":  peerstoreCommand(),
			"bootstrap":  bootstrapCommand(),
			"routing":    routingCommand(),
			"exchange":   exchangeCommand(),
			"plugin":     pluginCommand(),
			"stats":      statsCommand(),
			"log":        logCommand(),
			"diag":       diagCommand(),
			"completion": completionCommand(),
		},
	}
	root.Walk(func(c *cmds.Command) {
		c.Helptext.ShortDescription = wrap(c.Helptext.ShortDescription)
		if c.Run != nil {
			c.Run = explained(c.Run)
		}
	})
	root.ProcessHelp()
	return root
}

// wrap breaks a description that is written as one line.
func wrap(text string) string { return wrapTo(text, helpWidth) }

func wrapTo(text string, width int) string {
	if len(text) <= width || strings.Contains(text, "\n") {
		return text
	}
	var b strings.Builder
	used := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case used+1+len(word) > width:
			b.WriteByte('\n')
			used = 0
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += len(word)
	}
	return b.String()
}

// helpWidth is how long the lines of descriptions are, without their indentation.
const helpWidth = 78

// explained adds to the error of a command what a person can do about it.
func explained(run cmds.Function) cmds.Function {
	return func(req *cmds.Request, re cmds.ResponseEmitter, env cmds.Environment) error {
		searches := &env.(*Env).searches
		defer searches.end(req)
		err := run(req, re, env)
		if err == nil {
			return nil
		}
		if req.Context.Err() != nil {
			// Whatever err says came of that.
			switch cause := context.Cause(req.Context); {
			case errors.Is(cause, context.DeadlineExceeded) && req.Options[cmds.TimeoutOpt] != nil:
				return timedOut(searches.by(req), req.Options[cmds.TimeoutOpt])
			case errors.Is(cause, context.DeadlineExceeded):
				return err
			case env.(*Env).shutdown != nil && !errors.Is(cause, context.Canceled):
				return cause // such as that the daemon stops
			}
			return context.Canceled // which is printed in plain words
		}
		switch {
		case !ipld.IsNotFound(err):
		case option[bool](req, offlineOption):
			return fmt.Errorf("%w: it is not stored here, and --%s asks no peers", err, offlineOption)
		case env.(*Env).shutdown == nil:
			return fmt.Errorf("%w: it is not stored here, and no daemon runs to ask peers: start one with 'host daemon'", err)
		}
		return err
	}
}

// option is the value of an option, the zero value if it is not there.
func option[T any](req *cmds.Request, name string) T {
	v, _ := req.Options[name].(T)
	return v
}

// encoder says how the request wants CIDs to be printed.
func encoder(req *cmds.Request) (cidenc.Encoder, error) {
	e := cidenc.Default()
	if base := option[string](req, baseOption); base != "" {
		var err error
		if e.Base, err = multibase.EncoderByName(base); err != nil {
			return e, fmt.Errorf("--%s: %w", baseOption, err)
		}
		e.Upgrade = e.Base.Encoding() != multibase.Base58BTC // CIDv0 has no other
	}
	if up, ok := req.Options[upgradeOption].(bool); ok {
		e.Upgrade = up
	}
	return e, nil
}

// stringList is what commands return that print lines.
type stringList struct{ Strings []string }
