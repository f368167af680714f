package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	ipld "github.com/ipfs/go-ipld-format"
)

// RefWrapper is one link, or why links could not be followed.
type RefWrapper struct {
	Ref string
	Err string
}

func refText() cmds.EncoderMap {
	return cmds.EncoderMap{
		cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *RefWrapper) error {
			if out.Err != "" {
				return errors.New(out.Err)
			}
			_, err := fmt.Fprintln(w, out.Ref)
			return err
		}),
	}
}

func refsCommand() *cmds.Command {
	const (
		formatOption    = "format"
		edgesOption     = "edges"
		uniqueOption    = "unique"
		recursiveOption = "recursive"
		depthOption     = "max-depth"
	)
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Links between blocks.",
			ShortDescription: `
Prints the CIDs that a block links to, with -r also those that they link to, and so
on. What is not here is fetched from peers.

--format takes a text in which <src>, <dst> and <linkname> are replaced.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("ipfs-path", true, true, "The path of the block: a CID, or /ipfs/CID/name.").EnableStdin()},
		Options: []cmds.Option{
			cmds.StringOption(formatOption, "What to print of each link, see above.").WithDefault("<dst>"),
			cmds.BoolOption(edgesOption, "e", "Print <src> -> <dst>."),
			cmds.BoolOption(uniqueOption, "u", "Print each CID once."),
			cmds.BoolOption(recursiveOption, "r", "Follow the links."),
			cmds.IntOption(depthOption, "With -r, how far to follow; -1 is to the end.").WithDefault(-1),
		},
		Subcommands: map[string]*cmds.Command{"local": refsLocalCommand()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			format, depth := option[string](req, formatOption), option[int](req, depthOption)
			if option[bool](req, edgesOption) {
				if format != "<dst>" {
					return fmt.Errorf("both --%s and --%s, want only one of them", formatOption, edgesOption)
				}
				format = "<src> -> <dst>"
			}
			if !option[bool](req, recursiveOption) {
				depth = 1
			}
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			unique := option[bool](req, uniqueOption)
			seen := make(map[cid.Cid]int) // and how near to a root
			w := walk{ctx: r.ctx, dag: r.dag}
			w.want = func(l *ipld.Link, at int) bool {
				before, again := seen[l.Cid]
				return (depth < 0 || at < depth) && !(again && (depth < 0 || before <= at))
			}
			w.link = func(parent cid.Cid, l *ipld.Link, at int) (bool, error) {
				if depth >= 0 && at > depth {
					return false, nil
				}
				further := depth < 0 || at < depth
				if unique {
					before, again := seen[l.Cid]
					if again && (depth < 0 || before <= at) {
						return false, nil
					}
					seen[l.Cid] = at
					if again { // nearer than before: go further, and say nothing
						return further, nil
					}
				}
				ref := strings.NewReplacer("<src>", r.enc.Encode(parent), "<dst>", r.enc.Encode(l.Cid), "<linkname>", l.Name).Replace(format)
				return further, re.Emit(&RefWrapper{Ref: ref})
			}
			for _, arg := range req.Arguments {
				n, err := r.get(arg)
				if err != nil {
					return err
				}
				if err := w.from(n, 0); err != nil {
					return err
				}
			}
			return nil
		},
		Type:     RefWrapper{},
		Encoders: refText(),
	}
}

func refsLocalCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "List all blocks that are stored.",
			ShortDescription: "Prints a CID for each block, in no order. The store does not know their codecs: the CIDs have version 1 and codec raw.",
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			enc, err := encoder(req)
			if err != nil {
				return err
			}
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(req.Context) // ends the listing if printing fails
			defer cancel()
			all, failed, err := n.Blockstore().AllKeysChanWithErr(ctx)
			if err != nil {
				return err
			}
			for c := range all {
				if err := re.Emit(&RefWrapper{Ref: enc.Encode(c)}); err != nil {
					return err
				}
			}
			return failed()
		},
		Type:     RefWrapper{},
		Encoders: refText(),
	}
}
