package commands

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/ipfs/boxo/files"
	boxotar "github.com/ipfs/boxo/tar"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
)

// barFrom is the size from which cat shows a bar, bytes.
const barFrom = 8 << 20

func catCommand() *cmds.Command {
	const offsetOption, lengthOption = "offset", "length"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Print a file.",
			ShortDescription: "Prints the content of files, one after the other, fetched from peers as far as it is not here.",
		},
		Arguments: []cmds.Argument{
			cmds.StringArg("ipfs-path", true, true, "The path of the file: a CID, or /ipfs/CID/name.").EnableStdin(),
		},
		Options: []cmds.Option{
			cmds.Int64Option(offsetOption, "o", "Where to begin, bytes."),
			cmds.Int64Option(lengthOption, "l", "How much to print, bytes."),
			progressFlag(),
		},
		PreRun: defaultProgress,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			offset := option[int64](req, offsetOption)
			length, limited := req.Options[lengthOption].(int64)
			if offset < 0 || length < 0 {
				return fmt.Errorf("--%s and --%s: got a negative number, want bytes", offsetOption, lengthOption)
			}
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			var parts []io.Reader
			var total int64
			for _, p := range req.Arguments {
				if limited && total == length {
					break
				}
				n, err := r.file(p)
				if err != nil {
					return err
				}
				f, ok := n.(files.File) // it ends with ctx: it may be read after Run has returned
				if !ok {
					return fmt.Errorf("print %s: it is a directory, want a file: 'host ls' lists it, 'host get' writes it", p)
				}
				size, err := f.Size()
				if err != nil {
					return err
				}
				if offset >= size {
					offset -= size
					continue
				}
				if offset > 0 {
					seeker, ok := f.(io.Seeker)
					if !ok {
						return fmt.Errorf("print %s: it can only be read from its beginning", p)
					}
					if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
						return err
					}
				}
				size, offset = size-offset, 0
				if limited {
					size = min(size, length-total)
				}
				parts = append(parts, io.LimitReader(f, size))
				total += size
			}
			re.SetLength(uint64(total))
			return re.Emit(io.MultiReader(parts...))
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				show := option[bool](res.Request(), progressOption) && res.Length() >= barFrom
				for {
					v, err := res.Next()
					if err == io.EOF {
						return nil
					}
					if err != nil {
						return err
					}
					r, ok := v.(io.Reader)
					if !ok {
						return fmt.Errorf("print file: got %T, want bytes", v)
					}
					bar := newBar(re.(cli.ResponseEmitter).Stderr(), int64(res.Length()), !show).Start()
					err = re.Emit(bar.NewProxyReader(r))
					bar.Finish()
					if err != nil {
						return err
					}
				}
			},
		},
	}
}

// Options of get.
const (
	outputOption   = "output"
	archiveOption  = "archive"
	compressOption = "compress"
	levelOption    = "compression-level"
)

func getCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Write files and directories to the disk.",
			ShortDescription: `
Writes a file or a directory under the last name of its path in the current
directory, or where --output says. What is not here is fetched from peers.

--archive writes a tar archive instead, and --compress compresses it, or a file,
with gzip.
`,
		},
		Arguments: []cmds.Argument{
			cmds.StringArg("ipfs-path", true, false, "The path: a CID, or /ipfs/CID/name.").EnableStdin(),
		},
		Options: []cmds.Option{
			cmds.StringOption(outputOption, "o", "Where to write."),
			cmds.BoolOption(archiveOption, "a", "Write a tar archive."),
			cmds.BoolOption(compressOption, "C", "Compress with gzip."),
			cmds.IntOption(levelOption, "l", "How hard to compress, 1 to 9."),
			progressFlag(),
		},
		PreRun: func(req *cmds.Request, environment cmds.Environment) error {
			if _, err := gzipLevel(req); err != nil {
				return err
			}
			return defaultProgress(req, environment)
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			level, err := gzipLevel(req)
			if err != nil {
				return err
			}
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			f, err := r.file(req.Arguments[0])
			if err != nil {
				return err
			}
			defer f.Close()
			size, err := f.Size()
			if err != nil {
				return err
			}
			asTar := option[bool](req, archiveOption)
			if level != gzip.NoCompression && !asTar {
				if _, ok := f.(files.File); !ok {
					return fmt.Errorf("compress %s: it is a directory: add --%s", req.Arguments[0], archiveOption)
				}
			}
			re.SetLength(uint64(size))
			re.SetEncodingType(cmds.OctetStream)
			if level != gzip.NoCompression {
				re.SetContentType("application/gzip")
			} else {
				re.SetContentType("application/x-tar")
			}
			return emitStream(req.Context, re, func(w io.Writer) error {
				return archive(w, f, lastName(req.Arguments[0]), asTar, level)
			})
		},
		PostRun: cmds.PostRunMap{cmds.CLI: writeGot},
	}
}

func gzipLevel(req *cmds.Request) (int, error) {
	if !option[bool](req, compressOption) {
		return gzip.NoCompression, nil
	}
	level, ok := req.Options[levelOption].(int)
	if !ok {
		return gzip.DefaultCompression, nil
	}
	if level < 1 || level > 9 {
		return 0, fmt.Errorf("--%s: got %d, want 1 to 9", levelOption, level)
	}
	return level, nil
}

// lastName is what a path is called on the disk.
func lastName(p string) string { return path.Base(path.Clean(strings.TrimRight(p, "/"))) }

// archive writes a file or directory as tar, or a file alone if it is only to be
// compressed.
func archive(w io.Writer, f files.Node, name string, asTar bool, level int) (err error) {
	b := bufio.NewWriterSize(w, 1<<20)
	var out io.Writer = b
	finish := b.Flush
	if level != gzip.NoCompression {
		z, err := gzip.NewWriterLevel(b, level)
		if err != nil {
			return err
		}
		out, finish = z, func() error { return errors.Join(z.Close(), b.Flush()) }
	}
	if file, ok := f.(files.File); ok && !asTar && level != gzip.NoCompression {
		if _, err := io.Copy(out, file); err != nil {
			return err
		}
		return finish()
	}
	t, err := files.NewTarWriter(out)
	if err != nil {
		return err
	}
	if !asTar {
		t.SetFormat(tar.FormatPAX) // it only crosses to the extractor: keep all of the times
	}
	if err := t.WriteFile(f, name); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	return finish()
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// writeGot writes to the disk what get has got.
func writeGot(res cmds.Response, re cmds.ResponseEmitter) error {
	req := res.Request()
	r, done, err := emitted(res, "write files")
	if err != nil {
		return err
	}
	defer done()
	level, err := gzipLevel(req)
	if err != nil {
		return err
	}
	to := option[string](req, outputOption)
	if to == "" {
		to = lastName(req.Arguments[0])
	}
	asTar := option[bool](req, archiveOption)
	if asTar && !strings.HasSuffix(to, ".tar") && !strings.HasSuffix(to, ".tar.gz") {
		to += ".tar"
	}
	if level != gzip.NoCompression && !strings.HasSuffix(to, ".gz") {
		to += ".gz"
	}
	if dir := filepath.Dir(filepath.Clean(to)); !isDir(dir) {
		return fmt.Errorf("write %s: there is no directory %s", to, dir)
	}
	stdout, stderr := re.(cli.ResponseEmitter).Stdout(), re.(cli.ResponseEmitter).Stderr()
	bar := newBar(stderr, int64(res.Length()), !option[bool](req, progressOption))
	if !asTar && level == gzip.NoCompression {
		fmt.Fprintf(stdout, "Saving file(s) to %s\n", to)
		bar.Start()
		defer bar.Finish()
		x := &boxotar.Extractor{Path: to, Progress: func(n int64) int64 { bar.Add64(n); return bar.Current() }}
		return x.Extract(r)
	}
	file, err := os.Create(filepath.Clean(to))
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Saving archive to %s\n", to)
	bar.Start()
	defer bar.Finish()
	_, err = io.Copy(file, bar.NewProxyReader(r))
	return errors.Join(err, file.Close())
}
