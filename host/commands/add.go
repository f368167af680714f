package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/boxo/ipld/unixfs/importer/trickle"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	pin "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/host"
)

// AddEvent tells that a file or directory has been added, or, without a Hash, how
// much of a file has been read.
type AddEvent struct {
	Name  string
	Hash  string `json:",omitempty"`
	Bytes int64  `json:",omitempty"`
	Size  string `json:",omitempty"`
}

// Options of add and of others that store.
const (
	quietOption   = "quiet"
	quieterOption = "quieter"
	silentOption  = "silent"
	pinOption     = "pin"
)

func addCommand() *cmds.Command {
	const (
		hashOnlyOption   = "only-hash"
		wrapOption       = "wrap-with-directory"
		pinNameOption    = "pin-name"
		chunkerOption    = "chunker"
		trickleOption    = "trickle"
		cidVersionOption = "cid-version"
		rawLeavesOption  = "raw-leaves"
		hashOption       = "hash"
	)
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Store files and directories.",
			ShortDescription: `
Cuts files into blocks, stores and pins them, and prints the CID of each file and
directory. The same content gives the same CID as 'ipfs add' with the same options.

  host add picture.jpg
  host add -r photos
  host add --cid-version 1 --chunker size-1048576 film.mkv
  tar c dir | host add -Q --stdin-name dir.tar -w

Without --cid-version the CIDs are of version 0, as with ipfs; version 1 has raw
leaves too. Hidden files in directories are left out without --hidden.
`,
		},
		Arguments: []cmds.Argument{
			cmds.FileArg("path", true, true, "The file or directory to add.").EnableRecursive().EnableStdin(),
		},
		Options: []cmds.Option{
			cmds.OptionRecursivePath,
			cmds.OptionDerefArgs,
			cmds.OptionDerefSymlinks,
			cmds.OptionStdinName,
			cmds.OptionHidden,
			cmds.OptionIgnore,
			cmds.OptionIgnoreRules,
			cmds.BoolOption(quietOption, "q", "Print only CIDs."),
			cmds.BoolOption(quieterOption, "Q", "Print only the last CID."),
			cmds.BoolOption(silentOption, "Print nothing."),
			progressFlag(),
			cmds.BoolOption(hashOnlyOption, "n", "Compute CIDs and store nothing."),
			cmds.BoolOption(wrapOption, "w", "Put everything into one directory, which keeps the names of files."),
			cmds.BoolOption(pinOption, "Pin what is added, so that it is kept when garbage is collected.").WithDefault(true),
			cmds.StringOption(pinNameOption, "Name of the pin."),
			cmds.StringOption(chunkerOption, "s", "How to cut files: size-BYTES, rabin-MIN-AVG-MAX or buzhash.").WithDefault(fmt.Sprintf("size-%d", host.DefaultChunk)),
			cmds.BoolOption(trickleOption, "t", "Arrange blocks as trickle DAG, for reading from the beginning."),
			cmds.IntOption(cidVersionOption, "Version of CIDs, 0 or 1. Default: 0."),
			cmds.BoolOption(rawLeavesOption, "Leaves are blocks without an envelope. Default: with CIDs of version 1."),
			cmds.StringOption(hashOption, "Hash function. All but the default want CIDs of version 1.").WithDefault("sha2-256"),
		},
		PreRun: func(req *cmds.Request, environment cmds.Environment) error {
			if option[bool](req, quietOption) || option[bool](req, quieterOption) || option[bool](req, silentOption) {
				return nil
			}
			return defaultProgress(req, environment)
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			// Only the API lets options pass that nobody knows.
			for _, name := range kuboOnly {
				if v, ok := req.Options[name]; ok && v != "" && v != "false" {
					return fmt.Errorf("add: this node does not know the option %q of Kubo, and would make other CIDs without it", name)
				}
			}
			enc, err := encoder(req)
			if err != nil {
				return err
			}
			a := &adder{
				ctx: req.Context, chunker: option[string](req, chunkerOption), trickle: option[bool](req, trickleOption),
				progress: option[bool](req, progressOption),
			}
			a.emit = func(ev *AddEvent) error { return re.Emit(ev) }
			if option[bool](req, silentOption) {
				a.emit = func(*AddEvent) error { return nil }
			}
			a.encode = enc.Encode
			version, versionSet := req.Options[cidVersionOption].(int)
			if err := a.setCIDs(version, versionSet, option[string](req, hashOption)); err != nil {
				return err
			}
			a.rawLeaves = a.cids.Version == 1
			if raw, ok := req.Options[rawLeavesOption].(bool); ok {
				a.rawLeaves = raw
			}
			name, hashOnly := option[string](req, pinNameOption), option[bool](req, hashOnlyOption)
			a.pin = option[bool](req, pinOption) && !hashOnly
			if name != "" && !a.pin {
				return fmt.Errorf("--%s names a pin, and nothing is pinned", pinNameOption)
			}
			if hashOnly {
				a.dag = hashing{}
			} else if a.node, err = env(environment).Node(); err != nil {
				return err
			} else {
				a.dag = a.node.DAG()
			}
			a.name = name
			if option[bool](req, wrapOption) {
				return a.add(files.FileEntry("", req.Files))
			}
			it := req.Files.Entries()
			for it.Next() {
				if err := a.add(it); err != nil {
					return err
				}
			}
			return it.Err()
		},
		PostRun: cmds.PostRunMap{cmds.CLI: printAdded},
		Type:    AddEvent{},
	}
}

// kuboOnly are options of Kubo's add that change what is stored.
var kuboOnly = []string{
	"inline", "nocopy", "fscache", "to-files", "preserve-mode", "preserve-mtime", "mode", "mtime",
	"max-file-links", "max-directory-links", "max-hamt-fanout",
}

// printAdded prints what is added, and draws a bar if events tell how far it is.
func printAdded(res cmds.Response, re cmds.ResponseEmitter) error {
	req := res.Request()
	stdout, stderr := re.(cli.ResponseEmitter).Stdout(), re.(cli.ResponseEmitter).Stderr()
	quiet, quieter := option[bool](req, quietOption), option[bool](req, quieterOption)
	show := option[bool](req, progressOption)
	var total int64
	if show && req.Files != nil {
		total, _ = req.Files.Size() // stdin has none
	}
	bar := newBar(stderr, total, !show).Start()
	defer bar.Finish()

	var last, reading string
	var before, now int64 // bytes of the files that have ended, and of the one that is read
	for {
		v, err := res.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		ev, ok := v.(*AddEvent)
		if !ok {
			return fmt.Errorf("print what was added: got %T, want %T", v, ev)
		}
		if ev.Hash == "" {
			if ev.Name != reading || ev.Bytes < now {
				before, reading = before+now, ev.Name
			}
			now = ev.Bytes
			bar.SetCurrent(before + now)
			continue
		}
		last = ev.Hash
		if quieter {
			continue
		}
		if show {
			fmt.Fprint(stderr, clearLine)
		}
		if quiet {
			_, err = fmt.Fprintln(stdout, ev.Hash)
		} else {
			_, err = fmt.Fprintf(stdout, "added %s %s\n", ev.Hash, printable(ev.Name))
		}
		if err != nil {
			return err
		}
	}
	if quieter && last != "" {
		_, err := fmt.Fprintln(stdout, last)
		return err
	}
	return nil
}

// An adder stores files as Kubo does.
type adder struct {
	ctx       context.Context
	node      *host.Node // nil if nothing is stored
	dag       ipld.DAGService
	cids      cid.Prefix
	chunker   string
	trickle   bool
	rawLeaves bool
	pin       bool
	name      string // of the pin
	progress  bool
	encode    func(cid.Cid) string
	emit      func(*AddEvent) error

	dirs []*AddEvent // of one entry, in the order in which they are told
}

func (a *adder) setCIDs(version int, given bool, hash string) error {
	hash = strings.ToLower(hash)
	code, ok := mh.Names[hash]
	if !ok {
		return fmt.Errorf("hash function: got %q, want one of multihash, such as sha2-256 or blake3", hash)
	}
	if code != mh.SHA2_256 {
		if given && version == 0 {
			return fmt.Errorf("cid version: got 0, want 1 for a hash with %s", hash)
		}
		version = 1
	}
	var err error
	if a.cids, err = merkledag.PrefixForCidVersion(version); err != nil {
		return fmt.Errorf("cid version: got %d, want 0 or 1", version)
	}
	a.cids.MhType, a.cids.MhLength = code, -1
	return nil
}

// add stores what was named on the command line, and pins it.
func (a *adder) add(entry files.DirEntry) error {
	if a.pin {
		defer a.node.GCLocker().PinLock(a.ctx).Unlock(a.ctx)
	}
	a.dirs = nil
	root, err := a.any(entry.Name(), entry.Node())
	if err != nil {
		return err
	}
	for _, ev := range a.dirs {
		if err := a.emit(ev); err != nil {
			return err
		}
	}
	if !a.pin {
		return nil
	}
	if err := a.node.Pinner().PinWithMode(a.ctx, root.Cid(), pin.Recursive, a.name); err != nil {
		return fmt.Errorf("pin %s: %w", root.Cid(), err)
	}
	return a.node.Pinner().Flush(a.ctx)
}

// any stores a file, directory or link.
func (a *adder) any(name string, n files.Node) (ipld.Node, error) {
	defer n.Close()
	if a.ctx.Err() != nil {
		return nil, context.Cause(a.ctx)
	}
	switch n := n.(type) {
	case files.Directory:
		return a.directory(name, n)
	case *files.Symlink:
		return a.link(name, n)
	case files.File:
		return a.file(name, n)
	}
	return nil, fmt.Errorf("add %s: it is neither a file nor a directory nor a link", name)
}

func (a *adder) file(name string, f files.File) (ipld.Node, error) {
	read := &counted{ctx: a.ctx, r: f}
	if a.progress {
		read.tell = func(n int64) error { return a.emit(&AddEvent{Name: name, Bytes: n}) }
	}
	cut, err := chunk.FromString(read, a.chunker)
	if err != nil {
		return nil, fmt.Errorf("chunker %q: %w", a.chunker, err)
	}
	batch := ipld.NewBufferedDAG(a.ctx, a.dag)
	params := helpers.DagBuilderParams{
		Dagserv: batch, RawLeaves: a.rawLeaves, Maxlinks: helpers.DefaultLinksPerBlock, CidBuilder: a.cids,
	}
	b, err := params.New(cut)
	if err != nil {
		return nil, err
	}
	layout := balanced.Layout
	if a.trickle {
		layout = trickle.Layout
	}
	root, err := layout(b)
	if err == nil {
		err = batch.Commit()
	}
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", name, err)
	}
	return a.stored(name, root)
}

func (a *adder) link(name string, l *files.Symlink) (ipld.Node, error) {
	data, err := unixfs.SymlinkData(l.Target)
	if err != nil {
		return nil, err
	}
	n := merkledag.NodeWithData(data)
	if err := n.SetCidBuilder(a.cids); err != nil {
		return nil, err
	}
	if err := a.dag.Add(a.ctx, n); err != nil {
		return nil, err
	}
	return a.stored(name, n)
}

// directory stores a directory, sharded if it is large. It is told after all files,
// as Kubo does.
func (a *adder) directory(name string, d files.Directory) (ipld.Node, error) {
	dir, err := uio.NewDirectory(a.dag, uio.WithCidBuilder(a.cids))
	if err != nil {
		return nil, err
	}
	it := d.Entries()
	for it.Next() {
		child, err := a.any(path.Join(name, it.Name()), it.Node())
		if err != nil {
			return nil, err
		}
		if err := dir.AddChild(a.ctx, entryName(it.Name(), child), child); err != nil {
			return nil, fmt.Errorf("add %s: %w", path.Join(name, it.Name()), err)
		}
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	root, err := dir.GetNode()
	if err == nil {
		err = a.dag.Add(a.ctx, root)
	}
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", name, err)
	}
	ev, err := a.event(name, root)
	if err != nil {
		return nil, err
	}
	a.dirs = append(a.dirs, ev)
	return root, nil
}

// entryName is the name of a child; one from stdin has none, and is called by its CID.
func entryName(name string, n ipld.Node) string {
	if name == "" {
		return n.Cid().String()
	}
	return name
}

func (a *adder) event(name string, n ipld.Node) (*AddEvent, error) {
	size, err := n.Size()
	if err != nil {
		return nil, err
	}
	return &AddEvent{Name: name, Hash: a.encode(n.Cid()), Size: strconv.FormatUint(size, 10)}, nil
}

// stored tells that a file or link has been stored. One from stdin has no name, and is
// called by its CID.
func (a *adder) stored(name string, n ipld.Node) (ipld.Node, error) {
	ev, err := a.event(name, n)
	if err != nil {
		return nil, err
	}
	if name == "" {
		ev.Name = ev.Hash
	}
	return n, a.emit(ev)
}

// progressStep is how many bytes of a file are read from one event to the next.
const progressStep = 256 << 10

// counted tells how much has been read, and stops when ctx ends.
type counted struct {
	ctx  context.Context
	r    io.Reader
	tell func(int64) error // nil: nobody wants to know
	n    int64             // read
	told int64
}

func (c *counted) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.tell != nil && (c.n-c.told >= progressStep || errors.Is(err, io.EOF) && c.n > c.told) {
		c.told = c.n
		if failed := c.tell(c.n); failed != nil {
			return n, failed
		}
	}
	return n, err
}

// hashing is a DAG service that stores nothing.
type hashing struct{}

func (hashing) Get(_ context.Context, c cid.Cid) (ipld.Node, error) {
	return nil, ipld.ErrNotFound{Cid: c}
}

func (hashing) GetMany(_ context.Context, list []cid.Cid) <-chan *ipld.NodeOption {
	out := make(chan *ipld.NodeOption, len(list))
	for _, c := range list {
		out <- &ipld.NodeOption{Err: ipld.ErrNotFound{Cid: c}}
	}
	close(out)
	return out
}

func (hashing) Add(context.Context, ipld.Node) error        { return nil }
func (hashing) AddMany(context.Context, []ipld.Node) error  { return nil }
func (hashing) Remove(context.Context, cid.Cid) error       { return nil }
func (hashing) RemoveMany(context.Context, []cid.Cid) error { return nil }
