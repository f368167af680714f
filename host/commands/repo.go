package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/ipfs/boxo/ipld/merkledag"
	pin "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/codexchange/codexchange/host"
)

func repoCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "Garbage, size and health of the repo."},
		Subcommands: map[string]*cmds.Command{
			"gc":      repoGCCommand(),
			"stat":    repoStatCommand(),
			"verify":  repoVerifyCommand(),
			"version": repoVersionCommand(),
			"ls":      refsLocalCommand(),
		},
	}
}

// GCResult is a block that was removed, or why one was not.
type GCResult struct {
	Key   cid.Cid
	Error string `json:",omitempty"`
}

func repoGCCommand() *cmds.Command {
	const streamErrorsOption = "stream-errors"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Remove what is not pinned.",
			ShortDescription: `
Removes the blocks that no pin keeps. Nothing is added or pinned meanwhile. If a part
of what is pinned is not here, nothing is removed: 'host pin add' fetches it.
`,
		},
		Options: []cmds.Option{
			cmds.BoolOption(streamErrorsOption, "Go on when a block cannot be removed, and print why."),
			cmds.BoolOption(quietOption, "q", "Print only CIDs."),
			cmds.BoolOption(silentOption, "Print nothing."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			failed := 0
			err = CollectGarbage(req.Context, n, func(c cid.Cid, err error) error {
				if err != nil {
					failed++
					if !option[bool](req, streamErrorsOption) {
						return err
					}
					return re.Emit(&GCResult{Error: err.Error()})
				}
				if option[bool](req, silentOption) {
					return nil
				}
				return re.Emit(&GCResult{Key: c})
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d blocks were not removed", failed)
			}
			return err
		},
		Type: GCResult{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *GCResult) error {
				var err error
				switch {
				case option[bool](req, silentOption):
				case out.Error != "":
					_, err = fmt.Fprintf(w, "Error: %s\n", out.Error)
				case option[bool](req, quietOption):
					_, err = fmt.Fprintln(w, out.Key)
				default:
					_, err = fmt.Fprintf(w, "removed %s\n", out.Key)
				}
				return err
			}),
		},
	}
}

// CollectGarbage removes the blocks of a node that no pin keeps. It tells of each
// block that it has removed, or could not, until told returns an error. If something
// that is pinned is not here it removes nothing.
func CollectGarbage(ctx context.Context, n *host.Node, told func(cid.Cid, error) error) error {
	const op = "collect garbage"
	defer n.GCLocker().GCLock(ctx).Unlock(ctx)
	// What cannot be written is listed and removed like everything else.
	_ = n.Blockstore().Flush(ctx)

	kept := make(map[string]struct{}) // by multihash
	keep := func(c cid.Cid) bool {
		k := string(c.Hash())
		_, before := kept[k]
		kept[k] = struct{}{}
		return !before
	}
	ctx, cancel := context.WithCancel(ctx) // ends the listings
	defer cancel()
	// Recursive pins come first: a block that a direct pin has marked would not be
	// walked through.
	links := merkledag.GetLinksWithDAG(n.LocalDAG())
	for _, pins := range []<-chan pin.StreamedPin{n.Pinner().RecursiveKeys(ctx, false), n.Pinner().InternalPins(ctx, false)} {
		for p := range pins {
			if p.Err != nil {
				return fmt.Errorf("%s: list pins: %w", op, p.Err)
			}
			if err := merkledag.Walk(ctx, links, p.Pin.Key, keep, merkledag.Concurrent()); err != nil {
				return fmt.Errorf("%s: %s is pinned, and a part of it is not here: nothing was removed: %w", op, p.Pin.Key, err)
			}
		}
	}
	for p := range n.Pinner().DirectKeys(ctx, false) {
		if p.Err != nil {
			return fmt.Errorf("%s: list pins: %w", op, p.Err)
		}
		keep(p.Pin.Key)
	}
	if ctx.Err() != nil {
		// The listings end without an error then, and without the rest of the pins.
		return fmt.Errorf("%s: nothing was removed: %w", op, context.Cause(ctx))
	}

	all, failed, err := n.Blockstore().AllKeysChanWithErr(ctx)
	if err != nil {
		return fmt.Errorf("%s: list blocks: %w", op, err)
	}
	for c := range all {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", op, context.Cause(ctx))
		}
		if _, ok := kept[string(c.Hash())]; ok {
			continue
		}
		err := n.Blockstore().DeleteBlock(ctx, c)
		if err != nil && !ipld.IsNotFound(err) {
			err = fmt.Errorf("remove %s: %w", c, err)
		}
		if err := told(c, err); err != nil {
			return err
		}
	}
	if err := failed(); err != nil {
		return fmt.Errorf("%s: list blocks: %w", op, err)
	}
	return nil
}

// RepoStat says how large a repo is, bytes.
type RepoStat struct {
	RepoSize   uint64
	StorageMax uint64
	NumObjects uint64
	RepoPath   string
	Version    string
}

func repoStatCommand() *cmds.Command {
	const sizeOnlyOption = "size-only"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show the size of the repo.",
			ShortDescription: "Prints how many blocks there are, what the repo takes on the disk and how much it may, where it is, and the version of its layout.",
		},
		Options: []cmds.Option{
			cmds.BoolOption(sizeOnlyOption, "s", "Print only sizes, and do not count blocks."),
			cmds.BoolOption(humanOption, "H", "Print sizes for people (1.5 GB)."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := env(environment).Repo()
			if err != nil {
				return err
			}
			if option[bool](req, sizeOnlyOption) {
				s, err := r.Size(req.Context)
				if err != nil {
					return err
				}
				return cmds.EmitOnce(re, &RepoStat{RepoSize: s.RepoSize, StorageMax: s.StorageMax})
			}
			s, err := r.Stat(req.Context)
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, &RepoStat{
				RepoSize: s.RepoSize, StorageMax: s.StorageMax, NumObjects: s.NumObjects,
				RepoPath: s.RepoPath, Version: fmt.Sprintf("codexchange@%d", s.Version),
			})
		},
		Type: RepoStat{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *RepoStat) error {
				t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
				all := !option[bool](req, sizeOnlyOption)
				if all {
					fmt.Fprintf(t, "NumObjects:\t%d\n", out.NumObjects)
				}
				size := sizes(req)
				fmt.Fprintf(t, "RepoSize:\t%s\nStorageMax:\t%s\n", size(out.RepoSize), size(out.StorageMax))
				if all {
					fmt.Fprintf(t, "RepoPath:\t%s\nVersion:\t%s\n", out.RepoPath, out.Version)
				}
				return t.Flush()
			}),
		},
	}
}

const humanOption = "human"

// sizes is how the request wants sizes to be printed.
func sizes(req *cmds.Request) func(uint64) string {
	if option[bool](req, humanOption) {
		return humanBytes
	}
	return func(n uint64) string { return fmt.Sprint(n) }
}

// RepoVersion is the version of the layout of a repo.
type RepoVersion struct{ Version string }

func repoVersionCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "Show the version of the layout of repos."},
		Options:  []cmds.Option{cmds.BoolOption(quietOption, "q", "Print only the number.")},
		Extra:    here(),
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
			return cmds.EmitOnce(re, &RepoVersion{buildVersion().Repo})
		},
		Type: RepoVersion{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *RepoVersion) error {
				if option[bool](req, quietOption) {
					_, err := fmt.Fprintln(w, out.Version)
					return err
				}
				_, err := fmt.Fprintf(w, "codexchange repo version %s\n", out.Version)
				return err
			}),
		},
	}
}

// VerifyProgress tells of a bad block, of the end, or of how far it is.
type VerifyProgress struct {
	Msg      string
	Progress int
}

func repoVerifyCommand() *cmds.Command {
	const dropOption = "drop"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Check all blocks that are stored.",
			ShortDescription: `
Reads every block and compares its hash. Bad blocks are named, and with --drop
removed; reading what they belong to fetches them anew. Fails if there are bad blocks
and they were not removed.
`,
		},
		Options: []cmds.Option{cmds.BoolOption(dropOption, "Remove bad blocks.")},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(req.Context) // ends the listing
			defer cancel()
			all, failed, err := n.Blockstore().AllKeysChanWithErr(ctx)
			if err != nil {
				return err
			}
			count, bad, left := 0, 0, 0
			for c := range all {
				count++
				if why := checkBlock(ctx, n, c); why != nil {
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					bad++
					msg := fmt.Sprintf("block %s was corrupt (%v)", c, why)
					if !option[bool](req, dropOption) {
						left++
					} else if err := n.Blockstore().DeleteBlock(ctx, c); err != nil {
						left++
						msg += fmt.Sprintf(", and could not be removed (%v)", err)
					} else {
						msg += ", and was removed"
					}
					if err := re.Emit(&VerifyProgress{Msg: msg}); err != nil {
						return err
					}
				}
				if err := re.Emit(&VerifyProgress{Progress: count}); err != nil {
					return err
				}
			}
			switch err := failed(); {
			case err != nil:
				return err
			case left > 0:
				return fmt.Errorf("verify complete, %d blocks corrupt: 'host repo verify --%s' removes them", left, dropOption)
			case bad > 0:
				return re.Emit(&VerifyProgress{Msg: fmt.Sprintf("verify complete, %d blocks corrupt, %d removed", bad, bad)})
			}
			return re.Emit(&VerifyProgress{Msg: "verify complete, all blocks validated."})
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				stdout, stderr := re.(cli.ResponseEmitter).Stdout(), re.(cli.ResponseEmitter).Stderr()
				show := isTerminal(stderr)
				for {
					v, err := res.Next()
					if show && err != nil {
						fmt.Fprint(stderr, clearLine)
					}
					if err == io.EOF {
						return nil
					}
					if err != nil {
						return err
					}
					out, ok := v.(*VerifyProgress)
					switch {
					case !ok:
						return fmt.Errorf("print what was verified: got %T, want %T", v, out)
					case out.Msg == "" && show:
						fmt.Fprintf(stderr, "\r%d blocks processed.", out.Progress)
					case out.Msg != "":
						if show {
							fmt.Fprint(stderr, clearLine)
						}
						if _, err := fmt.Fprintln(stdout, out.Msg); err != nil {
							return err
						}
					}
				}
			},
		},
		Type: VerifyProgress{},
	}
}

// checkBlock is what is wrong with a block that is stored; nil if nothing is, or if
// it has been removed meanwhile.
func checkBlock(ctx context.Context, n *host.Node, c cid.Cid) error {
	b, err := n.Blockstore().Get(ctx, c)
	if ipld.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	sum, err := c.Prefix().Sum(b.RawData())
	if err != nil {
		return err
	}
	if !sum.Equals(c) {
		return errors.New("its bytes have another hash")
	}
	return nil
}
