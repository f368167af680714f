package commands

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/ipld/merkledag"
	pin "github.com/ipfs/boxo/pinning/pinner"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"

	"github.com/codexchange/codexchange/host"
)

func dagCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "Whole DAGs, as CAR files."},
		Subcommands: map[string]*cmds.Command{
			"import": dagImportCommand(),
			"export": dagExportCommand(),
			"stat":   dagStatCommand(),
		},
	}
}

// RootMeta is a root of a CAR file, and why it could not be pinned.
type RootMeta struct {
	Cid         cid.Cid
	PinErrorMsg string
}

// CarImportStats is what was in CAR files.
type CarImportStats struct {
	BlockCount      uint64
	BlockBytesCount uint64
}

// CarImportOutput is one root, or, at the end, what there was in all.
type CarImportOutput struct {
	Root  *RootMeta       `json:",omitempty"`
	Stats *CarImportStats `json:",omitempty"`
}

func dagImportCommand() *cmds.Command {
	const pinRootsOption, statsOption = "pin-roots", "stats"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Store the blocks of CAR files.",
			ShortDescription: `
Stores all blocks of the files, after comparing their hashes, and then pins the
roots that the files name. No peers are asked: a root that is not complete with what
is here is not pinned, and that is an error. CAR versions 1 and 2.
`,
		},
		Arguments: []cmds.Argument{cmds.FileArg("path", true, true, "The CAR file.").EnableStdin()},
		Options: []cmds.Option{
			cmds.BoolOption(pinRootsOption, "Pin the roots.").WithDefault(true),
			cmds.BoolOption(silentOption, "Print nothing."),
			cmds.BoolOption(statsOption, "Print how many blocks there were."),
			bigFlag(),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			ctx := req.Context
			if option[bool](req, pinRootsOption) {
				defer n.GCLocker().PinLock(ctx).Unlock(ctx)
			}
			in := carImport{ctx: ctx, node: n, seen: cid.NewSet(), check: func(size int) error { return checkSize(req, size) }}
			it := req.Files.Entries()
			for it.Next() {
				file := files.FileFromEntry(it)
				if file == nil {
					return fmt.Errorf("import %s: it is no file", it.Name())
				}
				err := in.read(file)
				file.Close()
				if err != nil {
					return fmt.Errorf("import %s: %w", it.Name(), err)
				}
			}
			if err := it.Err(); err != nil {
				return err
			}
			if err := in.flush(); err != nil {
				return err
			}
			if option[bool](req, pinRootsOption) {
				for _, root := range in.roots {
					out := &RootMeta{Cid: root}
					if err := in.pin(root); err != nil {
						out.PinErrorMsg = err.Error()
					}
					if err := re.Emit(&CarImportOutput{Root: out}); err != nil {
						return err
					}
				}
			}
			if option[bool](req, statsOption) {
				return re.Emit(&CarImportOutput{Stats: &in.stats})
			}
			return nil
		},
		Type: CarImportOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *CarImportOutput) error {
				if option[bool](req, silentOption) {
					return nil
				}
				if out.Stats != nil {
					_, err := fmt.Fprintf(w, "Imported %d blocks (%d bytes)\n", out.Stats.BlockCount, out.Stats.BlockBytesCount)
					return err
				}
				enc, err := encoder(req)
				if err != nil {
					return err
				}
				if out.Root == nil {
					return errors.New("print what was imported: found neither a root nor a sum")
				}
				if out.Root.PinErrorMsg != "" {
					return fmt.Errorf("pinning root %q FAILED: %s", enc.Encode(out.Root.Cid), out.Root.PinErrorMsg)
				}
				_, err = fmt.Fprintf(w, "Pinned root\t%s\tsuccess\n", enc.Encode(out.Root.Cid))
				return err
			}),
		},
	}
}

// What a carImport holds in memory before it stores it.
const (
	importBlocks = 128
	importBytes  = 16 << 20
)

// A carImport stores the blocks of CAR files.
type carImport struct {
	ctx   context.Context
	node  *host.Node
	check func(size int) error

	roots []cid.Cid // each once
	seen  *cid.Set
	stats CarImportStats
	held  []blocks.Block
	bytes int
}

func (in *carImport) read(file io.Reader) error {
	// The reader is told of nothing but Read: files from the network only seem to
	// be able to seek.
	r, err := car.NewBlockReader(struct{ io.Reader }{contextReader{in.ctx, file}})
	if err != nil {
		return err
	}
	for _, c := range r.Roots {
		if in.seen.Visit(c) {
			in.roots = append(in.roots, c)
		}
	}
	for last := "the header"; ; {
		b, err := r.Next() // compares the hash
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %s: %w", last, err)
		}
		size := len(b.RawData())
		if err := in.check(size); err != nil {
			return fmt.Errorf("block %s: %w", b.Cid(), err)
		}
		last = "block " + b.Cid().String()
		in.stats.BlockCount++
		in.stats.BlockBytesCount += uint64(size)
		in.held = append(in.held, b)
		if in.bytes += size; len(in.held) >= importBlocks || in.bytes >= importBytes {
			if err := in.flush(); err != nil {
				return err
			}
		}
	}
}

func (in *carImport) flush() error {
	list := in.held
	in.held, in.bytes = nil, 0
	if len(list) == 0 {
		return nil
	}
	return in.node.BlockService().AddBlocks(in.ctx, list)
}

// pin pins what is here as a whole.
func (in *carImport) pin(root cid.Cid) error {
	if err := merkledag.FetchGraph(in.ctx, root, in.node.LocalDAG()); err != nil {
		return err
	}
	if err := in.node.Pinner().PinWithMode(in.ctx, root, pin.Recursive, ""); err != nil {
		return err
	}
	return in.node.Pinner().Flush(in.ctx)
}

// contextReader stops reading when its ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func dagExportCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Write a DAG to stdout, as a CAR file.",
			ShortDescription: "Writes every block that the path leads to once, parents before children, as CAR version 1. What is not here is fetched from peers.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("root", true, false, "The path: a CID, or /ipfs/CID/name.").EnableStdin()},
		Options:   []cmds.Option{progressFlag()},
		PreRun:    defaultProgress,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			root, err := r.get(req.Arguments[0])
			if err != nil {
				return err
			}
			re.SetEncodingType(cmds.OctetStream)
			re.SetContentType("application/vnd.ipld.car")
			return emitStream(req.Context, re, func(w io.Writer) error { return export(r, root, w) })
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				r, done, err := emitted(res, "write CAR")
				if err != nil {
					return err
				}
				defer done()
				bar := newBar(re.(cli.ResponseEmitter).Stderr(), 0, !option[bool](res.Request(), progressOption)).Start()
				defer bar.Finish()
				return re.Emit(bar.NewProxyReader(r))
			},
		},
	}
}

// export writes a DAG as CAR.
func export(r *reader, root ipld.Node, to io.Writer) error {
	buffer := bufio.NewWriterSize(to, 1<<20)
	w, err := storage.NewWritable(buffer, []cid.Cid{root.Cid()}, car.WriteAsCarV1(true))
	if err != nil {
		return err
	}
	err = r.each(root, func(n ipld.Node) error { return w.Put(r.ctx, n.Cid().KeyString(), n.RawData()) })
	if err != nil {
		return err
	}
	if err := w.Finalize(); err != nil {
		return err
	}
	return buffer.Flush()
}

// DagStat is the size of a DAG, each of its blocks counted once.
type DagStat struct {
	Cid       string
	Size      uint64 `json:",omitempty"`
	NumBlocks int64  `json:",omitempty"`
}

// DagStatSummary is the size of several DAGs, and how much they share.
type DagStatSummary struct {
	UniqueBlocks int        `json:",omitempty"`
	TotalSize    uint64     `json:",omitempty"` // of all together
	SharedSize   uint64     `json:",omitempty"` // of blocks beside their first occurrence
	Ratio        float32    `json:",omitempty"` // sum of the sizes to TotalSize
	DagStats     []*DagStat `json:",omitempty"`
}

func dagStatCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show the size of DAGs.",
			ShortDescription: "Counts the blocks that each path leads to, once each, and how much the DAGs share. What is not here is fetched from peers.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("root", true, true, "The path: a CID, or /ipfs/CID/name.").EnableStdin()},
		Options:   []cmds.Option{progressFlag()},
		PreRun:    defaultProgress,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			out := &DagStatSummary{}
			all, sum, told := cid.NewSet(), uint64(0), 0
			for _, arg := range req.Arguments {
				root, err := r.get(arg)
				if err != nil {
					return err
				}
				one := &DagStat{Cid: r.enc.Encode(root.Cid())}
				out.DagStats = append(out.DagStats, one)
				err = r.each(root, func(n ipld.Node) error {
					size := uint64(len(n.RawData()))
					one.NumBlocks++
					one.Size += size
					sum += size
					if all.Visit(n.Cid()) {
						out.TotalSize += size
					}
					if told++; option[bool](req, progressOption) && told%256 == 0 {
						return re.Emit(&DagStatSummary{DagStats: []*DagStat{{Cid: one.Cid, Size: one.Size, NumBlocks: one.NumBlocks}}})
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
			out.UniqueBlocks = all.Len()
			out.SharedSize = sum - out.TotalSize
			if out.TotalSize > 0 {
				out.Ratio = float32(sum) / float32(out.TotalSize)
			}
			return re.Emit(out)
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				stderr, shown := re.(cli.ResponseEmitter).Stderr(), false
				var last *DagStatSummary
				for {
					v, err := res.Next()
					if err == io.EOF {
						break
					}
					if err != nil {
						return err
					}
					var ok bool
					if last, ok = v.(*DagStatSummary); !ok {
						return fmt.Errorf("print sizes: got %T, want %T", v, last)
					}
					if option[bool](res.Request(), progressOption) && last.UniqueBlocks == 0 && len(last.DagStats) > 0 {
						s := last.DagStats[0]
						fmt.Fprintf(stderr, "\r%s: %d blocks, %s", s.Cid, s.NumBlocks, humanBytes(s.Size))
						shown = true
					}
				}
				if shown {
					fmt.Fprint(stderr, clearLine)
				}
				if last == nil {
					return errors.New("print sizes: got nothing")
				}
				return re.Emit(last)
			},
		},
		Type: DagStatSummary{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *DagStatSummary) error {
				var b strings.Builder
				width := 0
				for _, s := range out.DagStats {
					width = max(width, len(s.Cid))
				}
				fmt.Fprintf(&b, "\n%-*s\t%-15s\tSize\n", width, "CID", "Blocks")
				for _, s := range out.DagStats {
					fmt.Fprintf(&b, "%s\t%-15d\t%d\n", s.Cid, s.NumBlocks, s.Size)
				}
				fmt.Fprintf(&b, "\nSummary\nTotal Size: %d (%s)\nUnique Blocks: %d\nShared Size: %d (%s)\nRatio: %f\n\n\n",
					out.TotalSize, humanBytes(out.TotalSize), out.UniqueBlocks, out.SharedSize, humanBytes(out.SharedSize), out.Ratio)
				_, err := io.WriteString(w, b.String())
				return err
			}),
		},
	}
}
