package commands

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/names"
	"github.com/codexchange/codexchange/host/repo"
)

const verboseOption = "verbose"

func verboseFlag() cmds.Option {
	return cmds.BoolOption(verboseOption, "v", "Print how the search goes.")
}

func routingCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Who has what, where peers are, and what names lead to.",
			ShortDescription: `
Asks the network, by what Routing.Type of the configuration names. Records of names
are also kept here.
`,
		},
		Subcommands: map[string]*cmds.Command{
			"findprovs": routingFindProvsCommand(),
			"findpeer":  routingFindPeerCommand(),
			"provide":   routingProvideCommand(),
			"get":       routingGetCommand(),
			"put":       routingPutCommand(),
		},
	}
}

// routed is a node that has routing, and its configuration.
func routed(environment cmds.Environment) (*host.Node, *repo.Config, error) {
	n, err := env(environment).online()
	if err != nil {
		return nil, nil, err
	}
	r, err := env(environment).Repo()
	if err != nil {
		return nil, nil, err
	}
	c := r.Config()
	if c.Routing.Type.Or("auto") == "none" {
		return nil, nil, errors.New(`this node has no routing: Routing.Type of its configuration is "none"; say 'host config Routing.Type dht', and start the daemon again`)
	}
	return n, c, nil
}

// query runs a query and emits what is told of it, by routing.PublishQueryEvent on the
// context that the query is given.
func query(req *cmds.Request, re cmds.ResponseEmitter, run func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(req.Context) // ends the query when nobody listens any more
	defer cancel()
	ctx, events := routing.RegisterForQueryEvents(ctx)
	done := make(chan error, 1)
	go func() {
		defer cancel() // ends events
		done <- run(ctx)
	}()
	var unheard error
	for e := range events {
		if unheard == nil {
			if unheard = re.Emit(e); unheard != nil {
				cancel()
			}
		}
	}
	return cmp.Or(unheard, <-done)
}

// queryText prints what shown says of an event, and with --verbose everything, each
// at its time.
func queryText(shown func(e *routing.QueryEvent, verbose bool) string) cmds.EncoderMap {
	return cmds.EncoderMap{
		cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, e *routing.QueryEvent) error {
			verbose := option[bool](req, verboseOption)
			text := shown(e, verbose)
			if verbose {
				text = time.Now().Format("15:04:05.000") + ": " + cmp.Or(text, progressOf(e))
			}
			_, err := io.WriteString(w, text)
			return err
		}),
	}
}

// progressOf is what an event says of how a query goes.
func progressOf(e *routing.QueryEvent) string {
	switch e.Type {
	case routing.SendingQuery:
		return fmt.Sprintf("* querying %s\n", e.ID)
	case routing.PeerResponse:
		var b strings.Builder
		fmt.Fprintf(&b, "* %s says use ", e.ID)
		for _, p := range e.Responses {
			fmt.Fprintf(&b, "%s ", p.ID)
		}
		return b.String() + "\n"
	case routing.FinalPeer:
		return fmt.Sprintf("* closest peer %s\n", e.ID)
	case routing.QueryError:
		return fmt.Sprintf("error: %s\n", printable(e.Extra))
	case routing.DialingPeer:
		return fmt.Sprintf("dialing peer: %s\n", e.ID)
	case routing.AddingPeer:
		return fmt.Sprintf("adding peer to query: %s\n", e.ID)
	case routing.Provider:
		return fmt.Sprintf("provider: %s\n", e.ID)
	}
	return fmt.Sprintf("unrecognized event type: %d\n", e.Type)
}

func routingFindProvsCommand() *cmds.Command {
	const numberOption = "num-providers"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Find the peers that have a block.",
			ShortDescription: "Prints the ids of peers that say they have the block, as they are found.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("key", true, false, "The CID of the block.")},
		Options: []cmds.Option{
			verboseFlag(),
			cmds.IntOption(numberOption, "n", "How many peers to find.").WithDefault(20),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, _, err := routed(environment)
			if err != nil {
				return err
			}
			number := option[int](req, numberOption)
			if number < 1 {
				return fmt.Errorf("--%s: got %d, want 1 or more", numberOption, number)
			}
			c, err := decodeCID(req.Arguments[0])
			if err != nil {
				return err
			}
			return query(req, re, func(ctx context.Context) error {
				found := false
				for p := range n.Routing().FindProvidersAsync(ctx, c, number) {
					found = true
					routing.PublishQueryEvent(ctx, &routing.QueryEvent{Type: routing.Provider, Responses: []*peer.AddrInfo{&p}})
				}
				if !found && n.Alone() && ctx.Err() == nil {
					return fmt.Errorf("find providers of %s: no peer of the DHT is known: connect to one, or name bootstrap nodes", c)
				}
				return context.Cause(ctx)
			})
		},
		Type: routing.QueryEvent{},
		Encoders: queryText(func(e *routing.QueryEvent, verbose bool) string {
			if e.Type != routing.Provider || len(e.Responses) == 0 {
				return ""
			}
			text := e.Responses[0].ID.String() + "\n"
			if verbose {
				text = "provider: " + text
				for _, a := range e.Responses[0].Addrs {
					text += fmt.Sprintf("\t%s\n", a)
				}
			}
			return text
		}),
	}
}

// decodeCID reads a CID, or a path that is nothing else.
func decodeCID(s string) (cid.Cid, error) {
	c, err := cid.Parse(s)
	if err != nil {
		return c, fmt.Errorf("cid %q: %w", s, err)
	}
	return c, nil
}

func routingFindPeerCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Find the addresses of a peer.",
			ShortDescription: "Prints the addresses, those that are known here already if the peer is connected.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("peerID", true, false, "The peer id.")},
		Options:   []cmds.Option{verboseFlag()},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, _, err := routed(environment)
			if err != nil {
				return err
			}
			id, err := decodePeer(req.Arguments[0])
			if err != nil {
				return err
			}
			if id == n.Host().ID() {
				return fmt.Errorf("find peer %s: it is this node: 'host id' shows its addresses", id)
			}
			return query(req, re, func(ctx context.Context) error {
				found, err := n.Routing().FindPeer(ctx, id)
				if err != nil {
					return fmt.Errorf("find peer %s: %w", id, err)
				}
				routing.PublishQueryEvent(ctx, &routing.QueryEvent{Type: routing.FinalPeer, Responses: []*peer.AddrInfo{&found}})
				return nil
			})
		},
		Type: routing.QueryEvent{},
		Encoders: queryText(func(e *routing.QueryEvent, _ bool) (text string) {
			if e.Type != routing.FinalPeer || len(e.Responses) == 0 {
				return ""
			}
			for _, a := range e.Responses[0].Addrs {
				text += fmt.Sprintf("%s\n", a)
			}
			return text
		}),
	}
}

func routingProvideCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Tell the network that this node has blocks.",
			ShortDescription: `
Tells it now, and returns when it is told. The blocks have to be here. The node also
does so by itself, as Provide of the configuration says.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("key", true, true, "The CID of the block.").EnableStdin()},
		Options: []cmds.Option{
			verboseFlag(),
			cmds.BoolOption(recursiveOption, "r", "Tell of everything that the block leads to, too."),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			if err := req.ParseBodyArgs(); err != nil {
				return err
			}
			n, config, err := routed(environment)
			if err != nil {
				return err
			}
			if !config.Provide.Enabled.Or(true) {
				return errors.New("provide: Provide.Enabled of the configuration is false")
			}
			var roots []cid.Cid
			for _, arg := range req.Arguments {
				c, err := decodeCID(arg)
				if err != nil {
					return err
				}
				has, err := n.Blockstore().Has(req.Context, c)
				if err != nil {
					return err
				}
				if !has {
					return fmt.Errorf("provide %s: the block is not here", c)
				}
				roots = append(roots, c)
			}
			return query(req, re, func(ctx context.Context) error {
				self := libp2phost.InfoFromHost(n.Host())
				for _, c := range roots {
					err := n.Provide(ctx, c, option[bool](req, recursiveOption), func(c cid.Cid) {
						routing.PublishQueryEvent(ctx, &routing.QueryEvent{
							ID: self.ID, Type: routing.Provider, Responses: []*peer.AddrInfo{self}, Extra: c.String(),
						})
					})
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
		Type: routing.QueryEvent{},
		Encoders: queryText(func(e *routing.QueryEvent, verbose bool) string {
			switch {
			case !verbose:
			case e.Type == routing.Provider:
				return fmt.Sprintf("provided %s\n", printable(e.Extra))
			case e.Type == routing.FinalPeer:
				return fmt.Sprintf("sending provider record to peer %s\n", e.ID)
			}
			return ""
		}),
	}
}

// decodeName reads an IPNS name, with /ipns/ before it or alone.
func decodeName(s string) (ipns.Name, error) {
	name, err := ipns.NameFromString(s)
	if err != nil {
		return name, fmt.Errorf("key %q: %w, want /ipns/ and the name of a key", s, err)
	}
	return name, nil
}

func nameArg() cmds.Argument {
	return cmds.StringArg("key", true, false, "The name: /ipns/ and the id of its key.")
}

func routingGetCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Print the record of an IPNS name.",
			ShortDescription: `
Prints it as it is, in binary: the one with the highest sequence number of those that
are kept here and those that the network has. It is checked that the key of the name
has signed it. Without a daemon, and with --offline, nobody else is asked.
`,
		},
		Arguments: []cmds.Argument{nameArg()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			name, err := decodeName(req.Arguments[0])
			if err != nil {
				return err
			}
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			var options []routing.Option
			if option[bool](req, offlineOption) {
				options = append(options, routing.Offline)
			}
			record, err := n.Names().GetValue(req.Context, string(name.RoutingKey()), options...)
			if err != nil {
				return err
			}
			return re.Emit(&routing.QueryEvent{Type: routing.Value, Extra: base64.StdEncoding.EncodeToString(record)})
		},
		Type: routing.QueryEvent{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, e *routing.QueryEvent) error {
				record, err := base64.StdEncoding.DecodeString(e.Extra)
				if err != nil {
					return fmt.Errorf("decode record: %w", err)
				}
				_, err = w.Write(record)
				return err
			}),
		},
	}
}

func routingPutCommand() *cmds.Command {
	const alone = "allow-offline"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Store the record of an IPNS name.",
			ShortDescription: `
Tells the DHT, keeps the record here until it expires, and prints the id of the name's
key. Somebody else has made and signed the record: this node publishes no names of
its own, and does not tell the network again when that has forgotten.
`,
		},
		Arguments: []cmds.Argument{
			nameArg(),
			cmds.FileArg("value-file", true, false, "The file with the record, in binary.").EnableStdin(),
		},
		Options: []cmds.Option{cmds.BoolOption(alone, "Keep the record here if there is nobody to tell, instead of failing.")},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			name, err := decodeName(req.Arguments[0])
			if err != nil {
				return err
			}
			it := req.Files.Entries()
			if !it.Next() {
				return cmp.Or(it.Err(), errors.New("put record: no file, want the one with the record"))
			}
			file := files.FileFromEntry(it)
			if file == nil {
				return fmt.Errorf("put record: %s is no file", it.Name())
			}
			defer file.Close()
			record, err := io.ReadAll(io.LimitReader(file, int64(ipns.MaxRecordSize)+1)) // Names refuses what is longer
			if err != nil {
				return err
			}
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			var options []routing.Option
			if option[bool](req, alone) {
				options = append(options, routing.Offline)
			}
			err = n.Names().PutValue(req.Context, string(name.RoutingKey()), record, options...)
			if names.Alone(err) {
				err = fmt.Errorf("%w; with --%s it is kept here all the same", err, alone)
			}
			if err != nil {
				return err
			}
			return re.Emit(&routing.QueryEvent{Type: routing.Value, ID: name.Peer()})
		},
		Type: routing.QueryEvent{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, e *routing.QueryEvent) error {
				_, err := fmt.Fprintln(w, e.ID)
				return err
			}),
		},
	}
}
