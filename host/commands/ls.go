package commands

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/boxo/ipld/unixfs/pb"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	ipld "github.com/ipfs/go-ipld-format"
)

// LsLink is an entry of a directory.
type LsLink struct {
	Name, Hash string
	Size       uint64
	Type       pb.Data_DataType
	Target     string // of a link
	Mode       os.FileMode
	ModTime    time.Time
}

// LsObject is a directory, or a part of one.
type LsObject struct {
	Hash  string // as it was asked for
	Links []LsLink
}

// LsOutput is what was listed.
type LsOutput struct{ Objects []LsObject }

// Options of ls.
const (
	headersOption = "headers"
	typeOption    = "resolve-type"
	sizeOption    = "size"
	streamOption  = "stream"
	longOption    = "long"
)

func lsCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "List a directory.",
			ShortDescription: `
Prints CID, size in bytes and name of each entry. Directories end with a slash and
have no size. For types and sizes the first block of each entry is fetched if it
is not here; --resolve-type=false --size=false does without.

--long shows mode and time of modification too, for entries that have them.
`,
		},
		Arguments: []cmds.Argument{
			cmds.StringArg("ipfs-path", true, true, "The path of the directory: a CID, or /ipfs/CID/name.").EnableStdin(),
		},
		Options: []cmds.Option{
			cmds.BoolOption(headersOption, "v", "Print what the columns are."),
			cmds.BoolOption(typeOption, "Find out the types of entries.").WithDefault(true),
			cmds.BoolOption(sizeOption, "Find out the sizes of files.").WithDefault(true),
			cmds.BoolOption(streamOption, "s", "Print entries as they are found."),
			cmds.BoolOption(longOption, "l", "Print mode and time of modification."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			l := lister{r: r, fetch: option[bool](req, typeOption) || option[bool](req, sizeOption)}
			out := &LsOutput{Objects: make([]LsObject, 0, len(req.Arguments))}
			for _, p := range req.Arguments {
				o := LsObject{Hash: p, Links: []LsLink{}}
				err := l.list(p, func(link LsLink) error {
					if option[bool](req, streamOption) {
						return re.Emit(&LsOutput{Objects: []LsObject{{Hash: p, Links: []LsLink{link}}}})
					}
					o.Links = append(o.Links, link)
					return nil
				})
				if err != nil {
					return err
				}
				slices.SortFunc(o.Links, func(a, b LsLink) int { return strings.Compare(a.Name, b.Name) })
				out.Objects = append(out.Objects, o)
			}
			if option[bool](req, streamOption) {
				return nil
			}
			return cmds.EmitOnce(re, out)
		},
		Type: LsOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: func(req *cmds.Request) func(io.Writer) cmds.Encoder {
				return func(w io.Writer) cmds.Encoder { return &lsTable{req: req, w: w} }
			},
		},
	}
}

// A lister lists directories.
type lister struct {
	r     *reader
	fetch bool // entries, for what their links do not tell
}

func (l lister) list(p string, entry func(LsLink) error) error {
	n, err := l.r.get(p)
	if err != nil {
		return err
	}
	each := func(link *ipld.Link) error {
		e, err := l.entry(link)
		if err != nil {
			return err
		}
		return entry(e)
	}
	dir, err := uio.NewDirectoryFromNode(l.r.dag, n)
	switch {
	case err == nil:
		return dir.ForEachLink(l.r.ctx, each)
	case !errors.Is(err, uio.ErrNotADir):
		return err
	}
	for _, link := range n.Links() { // the blocks of a file, or whatever it is
		if err := each(link); err != nil {
			return err
		}
	}
	return nil
}

func (l lister) entry(link *ipld.Link) (LsLink, error) {
	out := LsLink{Name: link.Name, Hash: l.r.enc.Encode(link.Cid)}
	if link.Cid.Type() == cid.Raw {
		out.Type, out.Size = unixfs.TFile, link.Size
		return out, nil
	}
	if !l.fetch || link.Cid.Type() != cid.DagProtobuf {
		return out, nil
	}
	n, err := l.r.dag.Get(l.r.ctx, link.Cid)
	if err != nil {
		return out, err
	}
	p, ok := n.(*merkledag.ProtoNode)
	if !ok {
		return out, nil
	}
	fs, err := unixfs.FSNodeFromBytes(p.Data())
	if err != nil {
		return out, fmt.Errorf("read %s as a file: %w", link.Cid, err)
	}
	switch fs.Type() {
	case unixfs.TFile, unixfs.TRaw:
		out.Type = unixfs.TFile
	case unixfs.TDirectory, unixfs.THAMTShard, unixfs.TMetadata:
		out.Type = unixfs.TDirectory
	case unixfs.TSymlink:
		out.Type, out.Target = unixfs.TSymlink, string(fs.Data())
	}
	out.Size, out.Mode, out.ModTime = fs.FileSize(), fs.Mode(), fs.ModTime()
	return out, nil
}

// lsTable prints what was listed, as ipfs does.
type lsTable struct {
	req  *cmds.Request
	w    io.Writer
	last string // the directory that is being printed
	any  bool
}

func (t *lsTable) Encode(v any) error {
	out, ok := v.(*LsOutput)
	if !ok {
		return fmt.Errorf("print list: got %T, want %T", v, out)
	}
	width := 1
	if option[bool](t.req, streamOption) {
		width = 10 // what comes later cannot be looked at
	}
	w := tabwriter.NewWriter(t.w, width, 2, 1, ' ', 0)
	long, size := option[bool](t.req, longOption), option[bool](t.req, sizeOption)
	row := func(mode, hash, bytes, when, name string) {
		cells := []string{hash}
		if long {
			cells = []string{mode, hash}
		}
		if size {
			cells = append(cells, bytes)
		}
		if long {
			cells = append(cells, when)
		}
		fmt.Fprintln(w, strings.Join(append(cells, name), "\t"))
	}
	for _, o := range out.Objects {
		if !t.any || o.Hash != t.last {
			if len(t.req.Arguments) > 1 {
				if t.any {
					fmt.Fprintln(w)
				}
				fmt.Fprintf(w, "%s:\n", o.Hash)
			}
			if option[bool](t.req, headersOption) {
				row("Mode", "Hash", "Size", "ModTime", "Name")
			}
			t.last, t.any = o.Hash, true
		}
		for _, l := range o.Links {
			mode, bytes, when, name := "-", fmt.Sprint(l.Size), "-", printable(l.Name)
			if l.Type == unixfs.TDirectory {
				bytes, name = "-", name+"/"
			}
			if l.Mode != 0 {
				mode = l.Mode.String()
			}
			if !l.ModTime.IsZero() {
				when = l.ModTime.UTC().Format("Jan 02 15:04 2006")
			}
			row(mode, l.Hash, bytes, when, name)
		}
	}
	return w.Flush()
}
