package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/go-datastore"
	flatfs "github.com/ipfs/go-ds-flatfs"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	kuboSpecName = "datastore_spec"
	// oldestKubo is the first version of Kubo's repo that names blocks by their
	// multihash.
	oldestKubo = 12

	blockSuffix = ".data"
	batch       = 1024 // directory entries that are read at once
)

// ImportOptions say how a repo is made from one of Kubo.
type ImportOptions struct {
	// Profiles are as in InitOptions.
	Profiles []string
	// WhileRunning imports although Kubo is running on its repo. Its blocks are
	// whole whenever they are there, so what is imported is sound; but what Kubo
	// adds or collects meanwhile may be missing.
	WhileRunning bool
	// Progress is told how far it is, now and then, by the goroutine that
	// imports. It may be nil.
	Progress func(Imported)
}

// Imported is what has been imported from a repo of Kubo.
type Imported struct {
	Config  *Config `json:"-"` // of the new repo; when all is done
	Total   int     // blocks that were there in the beginning
	Blocks  int     // those that are here
	Bytes   int64   // in them
	Linked  int     // by a hard link
	Copied  int     // byte by byte
	Gone    int     // collected by Kubo before they could be taken
	Skipped int     // files that are no blocks
	Odd     string  // the first of them
	Pins    int     // those of Kubo
	// Notes are what a person should know, one to a line.
	Notes []string

	noPins errPins // why they could not be imported
}

// ImportKubo makes a repo in dest, as [Init] does, with the identity, the blocks
// and, if they can be read, the pins of the Kubo repo in src. Blocks are linked, or copied where that cannot
// be done. Nothing in src is changed: a link only counts one more name.
//
// If it does not come to its end it may be run again, and goes on where it was.
func ImportKubo(ctx context.Context, src, dest string, o ImportOptions) (Imported, error) {
	const op = "import kubo repo"
	im := importer{ctx: ctx, report: o.Progress, made: map[string]bool{}, dest: filepath.Join(dest, blocksName)}
	k, err := openKubo(src)
	if err == nil && !o.WhileRunning {
		err = checkIdle(src)
	}
	if err == nil && isWithin(dest, src) {
		err = fmt.Errorf("%s is inside of it, want a directory of its own", dest)
	}
	if err != nil {
		return Imported{}, errs.E(errs.Invalid, errs.Caller, op, src, err)
	}
	im.src, im.shard = k.blocks, k.shard

	c, err := create("init repo", dest, InitOptions{Key: k.key, Profiles: o.Profiles}, func() error {
		err := im.run()
		if err == nil {
			err = im.pins(k.datastore, filepath.Join(dest, datastoreName))
		}
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return errs.E(errs.Other, errs.Caller, op, src, context.Cause(ctx))
		}
		if err == nil {
			err = syncDisk(im.dest)
		}
		if err != nil {
			return errs.E(errs.Storage, errs.Ours, op, src, fmt.Errorf("%w (run it again to go on)", err))
		}
		return nil
	})
	if err != nil {
		return im.done, err
	}
	im.done.Config = c
	im.done.note(k.key)
	return im.done, nil
}

func (d *Imported) note(key crypto.PrivKey) {
	add := func(format string, args ...any) { d.Notes = append(d.Notes, fmt.Sprintf(format, args...)) }
	add("This node and Kubo now have the same peer id, %s. Never run both at once.", d.Config.Identity.PeerID)
	if d.noPins.err != nil {
		add("Pins are not imported: %v. Pin what you want to keep before you collect garbage.", d.noPins)
	}
	add("MFS and Kubo's configuration are not imported. Pin what is only in MFS before you collect garbage.")
	if d.Linked > 0 {
		add("%d blocks share their place on the disk with Kubo's. It is free again when neither has them.", d.Linked)
	}
	if d.Gone > 0 {
		add("%d blocks went away while they were being imported: Kubo was collecting garbage.", d.Gone)
	}
	if d.Skipped > 0 {
		add("%d files among the blocks are none, and were left out; the first is %s.", d.Skipped, d.Odd)
	}
	if s := KeyNote(key); s != "" {
		add("%s", s)
	}
}

// A kuboRepo is what is needed of one.
type kuboRepo struct {
	key       crypto.PrivKey
	blocks    string            // directory
	shard     *flatfs.ShardIdV1 // how it is laid out
	datastore string            // directory of a leveldb with all but the blocks; empty if it is another store
}

// openKubo reads what Kubo wrote.
func openKubo(dir string) (*kuboRepo, error) {
	text, err := readFile(filepath.Join(dir, versionName), 64)
	if err != nil {
		return nil, fmt.Errorf("want a repo of Kubo: %w", err)
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("version file: got %q, want that of a repo of Kubo, a number", clip(string(text)))
	}
	if version < oldestKubo {
		return nil, fmt.Errorf("version is %d, want at least %d: run \"ipfs repo migrate\" first", version, oldestKubo)
	}
	config, err := readFile(filepath.Join(dir, configName), maxConfig)
	if err != nil {
		return nil, err
	}
	var c struct {
		Identity  Identity
		Datastore struct{ Spec json.RawMessage }
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	var wrong problems
	c.Identity.check(&wrong)
	if err := wrong.err(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	k := new(kuboRepo)
	if k.key, _, err = c.Identity.key(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}

	// datastore_spec is what is on the disk, the config what was wished for.
	spec, err := readFile(filepath.Join(dir, kuboSpecName), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		spec, err = c.Datastore.Spec, nil
	}
	if err != nil {
		return nil, err
	}
	var s kuboSpec
	if err := json.Unmarshal(spec, &s); err != nil {
		return nil, fmt.Errorf("datastore spec: %w", err)
	}
	leaf := s.at("/blocks")
	if leaf.Type != "flatfs" {
		return nil, fmt.Errorf("its blocks are in a store of type %q, want flatfs: "+
			"make an empty repo with init and move them with \"ipfs dag export\" there and \"dag import\" here", clip(leaf.Type))
	}
	k.blocks = within(dir, leaf.Path)
	if rest := s.at("/"); rest.Type == "levelds" {
		k.datastore = within(dir, rest.Path)
	}
	if k.shard, err = readShards(k.blocks); err != nil {
		return nil, err
	}
	if want, err := parseShards(leaf.ShardFunc); err != nil || want.String() != k.shard.String() {
		return nil, fmt.Errorf("its blocks are laid out as %s, and its datastore spec says %q: have Kubo mend that first", k.shard, clip(leaf.ShardFunc))
	}
	return k, nil
}

func readShards(blocks string) (*flatfs.ShardIdV1, error) {
	text, err := readFile(filepath.Join(blocks, flatfs.SHARDING_FN), 1<<10)
	if err != nil {
		return nil, err
	}
	shard, err := parseShards(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(blocks, flatfs.SHARDING_FN), err)
	}
	return shard, nil
}

// parseShards reads the name of a layout. flatfs makes room for the number in it,
// whatever that is.
func parseShards(text string) (*flatfs.ShardIdV1, error) {
	text = strings.TrimSpace(text)
	const most = 16
	if n, err := strconv.Atoi(text[strings.LastIndexByte(text, '/')+1:]); err == nil && (n < 1 || n > most) {
		return nil, fmt.Errorf("layout %q: number is %d, want 1 to %d", clip(text), n, most)
	}
	return flatfs.ParseShardFunc(text)
}

// A kuboSpec describes a datastore of Kubo, which may be made of others.
type kuboSpec struct {
	Type, Mountpoint, Path, ShardFunc string

	Mounts []kuboSpec
	Child  *kuboSpec
}

// at is the store that is mounted at a point, or that at "/".
func (s kuboSpec) at(point string) kuboSpec {
	for {
		switch {
		case s.Child != nil:
			s = *s.Child
		case s.Type == "mount":
			var found kuboSpec
			for _, m := range s.Mounts {
				if m.Mountpoint == point || m.Mountpoint == "/" && found.Mountpoint == "" {
					found = m
				}
			}
			s = found
		default:
			return s
		}
	}
}

// within is a path of a spec: those that are not absolute are below dir.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// hasKuboSpec reports whether the config in dir describes datastores as Kubo's
// does.
func hasKuboSpec(dir string) bool {
	data, err := readFile(filepath.Join(dir, configName), maxConfig)
	if err != nil {
		return false
	}
	var c struct {
		Datastore struct{ Spec map[string]json.RawMessage }
	}
	return json.Unmarshal(data, &c) == nil && c.Datastore.Spec != nil
}

// checkIdle is an error if a process has the lock of a Kubo repo. It asks without
// locking, which would leave traces.
func checkIdle(dir string) error {
	f, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	pid, locked, err := recordLock(f)
	if err != nil || !locked {
		return err
	}
	who := "Kubo"
	if pid != 0 {
		who = fmt.Sprintf("Kubo, process %d,", pid)
	}
	return fmt.Errorf("%s is running on it: stop that with \"ipfs shutdown\" first", who)
}

// isWithin reports whether a path is dir or below it.
func isWithin(path, dir string) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// An importer takes blocks from one flatfs to another that nobody has open.
type importer struct {
	ctx    context.Context
	src    string
	shard  *flatfs.ShardIdV1 // of src
	dest   string
	report func(Imported)

	made   map[string]bool // directories below dest
	noLink bool            // the two are on different disks
	done   Imported
}

func (im *importer) run() error {
	top, err := os.ReadDir(im.src)
	if err != nil {
		return err
	}
	var dirs []string
	for _, e := range top {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			dirs = append(dirs, e.Name())
		}
	}
	for _, dir := range dirs {
		err := im.entries(dir, func(e fs.DirEntry) error {
			if strings.HasSuffix(e.Name(), blockSuffix) {
				im.done.Total++
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	im.tell()
	// What an interrupted copy left, flatfs removes when it is opened.
	if err := os.MkdirAll(filepath.Join(im.dest, ".temp"), 0o755); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := im.entries(dir, func(e fs.DirEntry) error { return im.take(dir, e) }); err != nil {
			return err
		}
		im.tell()
	}
	return nil
}

// entries calls f for each entry of a directory of src.
func (im *importer) entries(dir string, f func(fs.DirEntry) error) error {
	d, err := os.Open(filepath.Join(im.src, dir))
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		list, err := d.ReadDir(batch)
		for _, e := range list {
			if im.ctx.Err() != nil {
				return im.ctx.Err()
			}
			if err := f(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take brings one file over, if it is a block where flatfs would look for it.
func (im *importer) take(dir string, e fs.DirEntry) error {
	from := filepath.Join(im.src, dir, e.Name())
	name, isBlock := strings.CutSuffix(e.Name(), blockSuffix)
	if isBlock {
		_, err := dshelp.DsKeyToMultihash(datastore.RawKey("/" + name))
		isBlock = err == nil && e.Type().IsRegular() && im.shard.Func()(name) == dir
	}
	if !isBlock {
		if im.done.Skipped++; im.done.Skipped == 1 {
			im.done.Odd = from
		}
		return nil
	}
	fi, err := e.Info()
	if err == nil {
		err = im.bring(from, shards.Func()(name), e.Name(), fi.Size())
	}
	if err != nil {
		if _, serr := os.Lstat(from); errors.Is(serr, fs.ErrNotExist) {
			im.done.Gone++ // since it was listed
			return nil
		}
		return err
	}
	im.done.Blocks++
	im.done.Bytes += fi.Size()
	if im.done.Blocks%batch == 0 {
		im.tell()
	}
	return nil
}

// bring links or copies a block, unless an import before this one did.
func (im *importer) bring(from, dir, name string, size int64) error {
	dir = filepath.Join(im.dest, dir)
	if !im.made[dir] {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		im.made[dir] = true
	}
	to := filepath.Join(dir, name)
	if !im.noLink {
		err := os.Link(from, to)
		switch {
		case err == nil:
			im.done.Linked++
			return nil
		case errors.Is(err, fs.ErrExist):
			return nil
		case errors.Is(err, fs.ErrNotExist), DiskFull(err):
			return err
		}
		im.noLink = isOtherDisk(err)
	} else if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := im.copy(from, to, size); err != nil {
		return err
	}
	im.done.Copied++
	return nil
}

// copy makes to appear with all its bytes or not at all.
func (im *importer) copy(from, to string, size int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Join(im.dest, ".temp"), "import-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(out.Name())
		}
	}()
	n, err := io.Copy(out, in)
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%s: it has %d bytes, want %d", from, n, size)
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}

func (im *importer) tell() {
	if im.report != nil {
		im.report(im.done)
	}
}
