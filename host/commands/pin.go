package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	pin "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
)

const (
	recursiveOption = "recursive"
	nameOption      = "name"
)

func pinCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "What is kept when garbage is collected.",
			ShortDescription: `
A pin keeps a block from 'host repo gc': a recursive one with everything that it
leads to, a direct one alone.
`,
		},
		Subcommands: map[string]*cmds.Command{
			"add": pinAddCommand(),
			"ls":  pinLsCommand(),
			"rm":  pinRmCommand(),
		},
	}
}

// AddPinOutput is what was pinned, or how far that is.
type AddPinOutput struct {
	Pins     []string `json:",omitempty"`
	Progress int      `json:",omitempty"` // blocks so far
	Bytes    uint64   `json:",omitempty"` // in these
}

func pinAddCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Fetch and pin.",
			ShortDescription: "Fetches what is not here, everything that the path leads to unless --recursive=false, and pins it.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("ipfs-path", true, true, "The path: a CID, or /ipfs/CID/name.").EnableStdin()},
		Options: []cmds.Option{
			cmds.BoolOption(recursiveOption, "r", "Pin what it leads to, too.").WithDefault(true),
			cmds.StringOption(nameOption, "n", "Name of the pin."),
			cmds.BoolOption(progressOption, "Show how far it is."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			mode := pin.Direct
			if option[bool](req, recursiveOption) {
				mode = pin.Recursive
			}
			var fetched merkledag.ProgressTracker
			pinAll := func() ([]string, error) {
				var pins []string
				for _, arg := range req.Arguments {
					c, err := pinOne(r, arg, mode, option[string](req, nameOption), &fetched)
					if err != nil {
						return nil, err
					}
					pins = append(pins, r.enc.Encode(c))
				}
				return pins, nil
			}
			if !option[bool](req, progressOption) {
				pins, err := pinAll()
				if err != nil {
					return err
				}
				return cmds.EmitOnce(re, &AddPinOutput{Pins: pins})
			}

			ctx, cancel := context.WithCancel(r.ctx) // ends the pinning when nobody listens any more
			defer cancel()
			r.ctx = ctx
			var pins []string
			done := make(chan error, 1)
			go func() {
				var err error
				pins, err = pinAll()
				done <- err
			}()
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			var unheard error
			for {
				select {
				case err := <-done:
					if err := cmp.Or(unheard, err); err != nil {
						return err
					}
					return re.Emit(&AddPinOutput{Pins: pins})
				case <-tick.C:
					if s := fetched.ProgressStat(); unheard == nil {
						if unheard = re.Emit(&AddPinOutput{Progress: s.Nodes, Bytes: s.Bytes}); unheard != nil {
							cancel()
						}
					}
				}
			}
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				stderr, shown := re.(cli.ResponseEmitter).Stderr(), false
				for {
					v, err := res.Next()
					if err == nil && v.(*AddPinOutput).Pins == nil {
						out := v.(*AddPinOutput)
						fmt.Fprintf(stderr, "\rFetched/Processed %d nodes (%s)", out.Progress, humanBytes(out.Bytes))
						shown = true
						continue
					}
					if shown {
						fmt.Fprintln(stderr)
						shown = false
					}
					if err == io.EOF {
						return nil
					}
					if err != nil {
						return err
					}
					if err := re.Emit(v); err != nil {
						return err
					}
				}
			},
		},
		Type: AddPinOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *AddPinOutput) error {
				how := "recursively"
				if r, ok := req.Options[recursiveOption].(bool); ok && !r {
					how = "directly"
				}
				for _, p := range out.Pins {
					if _, err := fmt.Fprintf(w, "pinned %s %s\n", p, how); err != nil {
						return err
					}
				}
				return nil
			}),
		},
	}
}

// pinOne fetches and pins. What it has fetched is written before it is pinned.
func pinOne(r *reader, arg string, mode pin.Mode, name string, fetched *merkledag.ProgressTracker) (cid.Cid, error) {
	defer r.node.GCLocker().PinLock(r.ctx).Unlock(r.ctx)
	c, err := r.resolve(arg)
	if err != nil {
		return cid.Undef, err
	}
	ctx := fetched.DeriveContext(r.ctx)
	if mode == pin.Recursive {
		err = merkledag.FetchGraph(ctx, c, r.dag)
	} else {
		_, err = r.dag.Get(ctx, c)
	}
	if err != nil {
		return cid.Undef, fmt.Errorf("pin %s: %w", c, err)
	}
	if err := r.node.Blockstore().Flush(r.ctx); err != nil {
		return cid.Undef, fmt.Errorf("pin %s: %w", c, err)
	}
	if err := r.node.Pinner().PinWithMode(r.ctx, c, mode, name); err != nil {
		return cid.Undef, fmt.Errorf("pin %s: %w", c, err)
	}
	return c, r.node.Pinner().Flush(r.ctx)
}

// PinOutput is what was unpinned.
type PinOutput struct{ Pins []string }

func pinRmCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Remove pins.",
			ShortDescription: "What was pinned stays until garbage is collected, by 'host repo gc' or by the daemon.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("ipfs-path", true, true, "The path: a CID, or /ipfs/CID/name.").EnableStdin()},
		Options: []cmds.Option{
			cmds.BoolOption(recursiveOption, "r", "Remove a recursive pin; false removes a direct one.").WithDefault(true),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			out := &PinOutput{Pins: []string{}}
			for _, arg := range req.Arguments {
				c, err := r.resolve(arg)
				if err != nil {
					return err
				}
				if err := r.node.Pinner().Unpin(r.ctx, c, option[bool](req, recursiveOption)); err != nil {
					return fmt.Errorf("unpin %s: %w", c, err)
				}
				out.Pins = append(out.Pins, r.enc.Encode(c))
			}
			if err := r.node.Pinner().Flush(r.ctx); err != nil {
				return err
			}
			return cmds.EmitOnce(re, out)
		},
		Type: PinOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *PinOutput) error {
				for _, p := range out.Pins {
					if _, err := fmt.Fprintf(w, "unpinned %s\n", p); err != nil {
						return err
					}
				}
				return nil
			}),
		},
	}
}

// PinLsType is what sort of pin it is.
type PinLsType struct {
	Type string
	Name string
}

// PinLsObject is one pin.
type PinLsObject struct {
	Cid  string `json:",omitempty"`
	Name string `json:",omitempty"`
	Type string `json:",omitempty"`
}

// PinLsOutput is all pins, or with --stream one of them.
type PinLsOutput struct {
	Keys map[string]PinLsType `json:",omitempty"`
	PinLsObject
}

func pinLsCommand() *cmds.Command {
	const pinTypeOption, namesOption = "type", "names"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "List pins.",
			ShortDescription: `
Prints all pins, or whether and how the given ones are pinned, which fails if one is
not. Indirect are those that a recursive pin leads to.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("ipfs-path", false, true, "The path: a CID, or /ipfs/CID/name.")},
		Options: []cmds.Option{
			cmds.StringOption(pinTypeOption, "t", "Which pins: direct, indirect, recursive or all.").WithDefault("all"),
			cmds.BoolOption(quietOption, "q", "Print only CIDs."),
			cmds.StringOption(nameOption, "n", "Only pins with this in their names."),
			cmds.BoolOption(namesOption, "Print names."),
			cmds.BoolOption(streamOption, "s", "Print pins as they are found."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			kind, part := option[string](req, pinTypeOption), option[string](req, nameOption)
			mode, ok := pin.StringToMode(kind)
			if !ok || mode == pin.Internal || mode == pin.NotPinned {
				return fmt.Errorf("--%s: got %q, want direct, indirect, recursive or all", pinTypeOption, kind)
			}
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			out := &PinLsOutput{Keys: make(map[string]PinLsType)}
			l := pinLister{r: r, mode: mode, names: part != "" || option[bool](req, namesOption), part: part}
			l.emit = func(o PinLsObject) error {
				if option[bool](req, streamOption) {
					return re.Emit(&PinLsOutput{PinLsObject: o})
				}
				out.Keys[o.Cid] = PinLsType{Type: o.Type, Name: o.Name}
				return nil
			}
			if len(req.Arguments) > 0 {
				err = l.these(req.Arguments)
			} else {
				err = l.all()
			}
			if err != nil || option[bool](req, streamOption) {
				return err
			}
			return cmds.EmitOnce(re, out)
		},
		Type: PinLsOutput{},
		Encoders: cmds.EncoderMap{
			cmds.JSON: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *PinLsOutput) error {
				if option[bool](req, streamOption) {
					return json.NewEncoder(w).Encode(out.PinLsObject)
				}
				return json.NewEncoder(w).Encode(struct {
					Keys map[string]PinLsType `json:",omitempty"`
				}{out.Keys})
			}),
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *PinLsOutput) error {
				line := func(c string, t PinLsType) error {
					if !option[bool](req, quietOption) {
						c += " " + t.Type
						if t.Name != "" {
							c += " " + printable(t.Name)
						}
					}
					_, err := fmt.Fprintln(w, c)
					return err
				}
				if option[bool](req, streamOption) {
					return line(out.Cid, PinLsType{Type: out.Type, Name: out.Name})
				}
				for _, c := range slices.Sorted(maps.Keys(out.Keys)) {
					if err := line(c, out.Keys[c]); err != nil {
						return err
					}
				}
				return nil
			}),
		},
	}
}

// A pinLister lists pins.
type pinLister struct {
	r     *reader
	mode  pin.Mode
	names bool
	part  string // of the names that are listed
	emit  func(PinLsObject) error
}

// these lists the pins of paths.
func (l *pinLister) these(args []string) error {
	var list []cid.Cid
	for _, arg := range args {
		c, err := l.r.resolve(arg)
		if err != nil {
			return err
		}
		list = append(list, c)
	}
	found, err := l.r.node.Pinner().CheckIfPinnedWithType(l.r.ctx, l.mode, l.names, list...)
	if err != nil {
		return err
	}
	for _, p := range found {
		if !p.Pinned() {
			return fmt.Errorf("%s is not pinned", l.r.enc.Encode(p.Key))
		}
		kind, _ := pin.ModeToString(p.Mode)
		if p.Mode == pin.Indirect && p.Via.Defined() {
			kind = "indirect through " + l.r.enc.Encode(p.Via)
		}
		if err := l.emit(PinLsObject{Cid: l.r.enc.Encode(p.Key), Type: kind, Name: p.Name}); err != nil {
			return err
		}
	}
	return nil
}

// all lists all pins: direct ones, recursive ones, and then what these lead to.
func (l *pinLister) all() error {
	ctx, cancel := context.WithCancel(l.r.ctx) // ends the listings
	defer cancel()
	pinner := l.r.node.Pinner()
	listed := cid.NewSet()
	keys := func(all <-chan pin.StreamedPin, mode pin.Mode) (roots []cid.Cid, err error) {
		kind, _ := pin.ModeToString(mode)
		for p := range all {
			if p.Err != nil {
				return nil, p.Err
			}
			roots = append(roots, p.Pin.Key)
			if l.mode != pin.Any && l.mode != mode || !strings.Contains(p.Pin.Name, l.part) {
				continue
			}
			listed.Add(p.Pin.Key)
			if err := l.emit(PinLsObject{Cid: l.r.enc.Encode(p.Pin.Key), Type: kind, Name: p.Pin.Name}); err != nil {
				return nil, err
			}
		}
		return roots, nil
	}
	if l.mode == pin.Any || l.mode == pin.Direct {
		if _, err := keys(pinner.DirectKeys(ctx, l.names), pin.Direct); err != nil {
			return err
		}
	}
	if l.mode == pin.Direct {
		return nil
	}
	roots, err := keys(pinner.RecursiveKeys(ctx, l.names), pin.Recursive)
	if err != nil || l.mode == pin.Recursive || l.part != "" { // what is indirect has no name
		return err
	}
	seen := cid.NewSet()
	for _, root := range roots {
		err := merkledag.Walk(ctx, merkledag.GetLinksWithDAG(l.r.node.LocalDAG()), root, func(c cid.Cid) bool {
			return seen.Visit(c)
		}, merkledag.SkipRoot())
		if err != nil {
			return fmt.Errorf("list what %s leads to: %w", root, err)
		}
	}
	return seen.ForEach(func(c cid.Cid) error {
		if !listed.Visit(c) {
			return nil
		}
		return l.emit(PinLsObject{Cid: l.r.enc.Encode(c), Type: "indirect"})
	})
}
