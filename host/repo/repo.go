package repo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	flatfs "github.com/ipfs/go-ds-flatfs"
	leveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/codexchange/codexchange/exchange/errs"
)

// shards is how blocks are spread over directories: as Kubo does.
var shards = flatfs.NextToLast(2)

// A Repo is an opened repo. Nobody else uses its directory until Close. Its
// methods may be called from any goroutine.
type Repo struct {
	dir       string
	lock      *lock
	file      *ConfigFile
	key       crypto.PrivKey
	blocks    *flatfs.Datastore
	datastore *leveldb.Datastore
	readOnly  bool // the datastore is

	mu     sync.Mutex // the api file
	closed bool

	closeOnce sync.Once
	closeErr  error
}

// hold takes the repo in dir: it must be one of ours, and is brought to this
// version. What is not ours is not touched.
func hold(op, dir string) (_ *lock, err error) {
	fail := func(kind errs.Kind, text string, args ...any) (*lock, error) {
		return nil, errs.E(kind, errs.Caller, op, dir, fmt.Errorf(text, args...))
	}
	whose, _, what, err := identify(dir)
	switch {
	case err != nil:
		return nil, errs.E(errs.Storage, errs.Caller, op, dir, err)
	case whose == nobody:
		return fail(errs.NotFound, "there is no repo: make one with init")
	case whose == kubo:
		return fail(errs.Invalid, "it is a repo of Kubo, which is not opened: make one from it with init --from-kubo %s", dir)
	case whose == others:
		return fail(errs.Invalid, "it has %q and is no repo", what)
	}
	l, err := acquire(dir)
	if err != nil {
		return nil, lockFailed(op, dir, err)
	}
	defer func() {
		if err != nil {
			l.release()
		}
	}()
	// Whoever held it before may have changed it.
	whose, version, _, err := identify(dir)
	if err == nil && whose != ours {
		err = errors.New("init was interrupted: run it again")
	}
	if err == nil {
		err = migrate(dir, version, Version, migrations)
	}
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, op, dir, err)
	}
	removeTemps(dir)
	if err := removeAPI(dir); err != nil { // whoever wrote it is gone
		return nil, errs.E(errs.Storage, errs.Ours, op, dir, err)
	}
	return l, nil
}

// Open opens the repo in dir, for this process alone. If another has it, the
// error is a *LockedError; if its configuration cannot be used, a *ConfigError.
func Open(dir string) (_ *Repo, err error) {
	const op = "open repo"
	r := &Repo{dir: dir}
	if r.lock, err = hold(op, dir); err != nil {
		return nil, err
	}
	r.file = &ConfigFile{dir: dir}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	c, err := r.file.Config()
	if err != nil {
		return nil, err
	}
	if r.key, err = c.Key(); err != nil {
		return nil, err
	}
	// A write is not forced to the disk one by one: a power cut may lose the last
	// blocks, and their peers have them still.
	if r.blocks, err = flatfs.CreateOrOpen(filepath.Join(dir, blocksName), shards, false); err != nil {
		return nil, errs.E(errs.Storage, errs.Ours, op, dir, fmt.Errorf("%s: %w", blocksName, err))
	}
	path := filepath.Join(dir, datastoreName)
	r.datastore, err = leveldb.NewDatastore(path, nil)
	if DiskFull(err) {
		// Opening writes. A node that could not be opened for want of room could
		// not make room either.
		r.readOnly = true
		r.datastore, err = leveldb.NewDatastore(path, &leveldb.Options{ReadOnly: true})
	}
	if err != nil {
		return nil, errs.E(errs.Storage, errs.Ours, op, dir, fmt.Errorf("%s: %w", datastoreName, err))
	}
	return r, nil
}

// Close closes the stores and gives up the repo. What uses the stores must have
// ended. It may be called more than once.
func (r *Repo) Close() error {
	r.closeOnce.Do(func() {
		var failed []error
		r.mu.Lock()
		if !r.closed {
			r.closed = true
			failed = append(failed, removeAPI(r.dir))
		}
		r.mu.Unlock()
		r.file.end()
		if r.datastore != nil {
			failed = append(failed, r.datastore.Close())
		}
		if r.blocks != nil {
			failed = append(failed, r.blocks.Close())
		}
		failed = append(failed, r.lock.release())
		if err := errors.Join(failed...); err != nil {
			r.closeErr = errs.E(errs.Storage, errs.Ours, "close repo", r.dir, err)
		}
	})
	return r.closeErr
}

// Path is the directory of the repo.
func (r *Repo) Path() string { return r.dir }

// Identity is the private key of the node.
func (r *Repo) Identity() crypto.PrivKey { return r.key }

// Blocks is the store of the blocks, by multihash and without a prefix: for
// blockstore.NewBlockstore with blockstore.NoPrefix. Close closes it.
func (r *Repo) Blocks() datastore.Batching { return r.blocks }

// Datastore is the store for everything else. Close closes it.
func (r *Repo) Datastore() datastore.Batching { return r.datastore }

// ReadOnly reports whether the datastore was opened for reading only, because the
// disk was full. Blocks can be served and deleted as always; writing to the
// datastore fails until the repo is opened again with some room.
func (r *Repo) ReadOnly() bool { return r.readOnly }

// ConfigFile reads and changes the config file key by key, until Close.
func (r *Repo) ConfigFile() *ConfigFile { return r.file }

// Config is the configuration as it was read by Open, or as this process has
// changed it since; for the caller to keep.
func (r *Repo) Config() *Config {
	r.file.mu.Lock()
	defer r.file.mu.Unlock()
	return r.file.last.Clone()
}

// SetConfig checks a configuration and writes it. Most of it has an effect when
// the node starts the next time.
func (r *Repo) SetConfig(c *Config) error { return r.file.Write(c) }

// A Stat says how large a repo is, in bytes where nothing else is said. The names
// are Kubo's where it has them.
type Stat struct {
	RepoPath   string
	Version    int
	RepoSize   uint64 // BlocksSize and what the datastore takes
	BlocksSize uint64 // flatfs's count, which estimates in large directories
	NumObjects uint64 // blocks
	StorageMax uint64 // what the configuration allows
	Free       uint64 // what the disk still has for this user
}

// Stat looks how large the repo is. It counts the blocks, one directory after the
// other, which takes a while when there are millions.
func (r *Repo) Stat(ctx context.Context) (Stat, error) {
	const op = "stat repo"
	s, err := r.Size(ctx)
	if err != nil {
		return s, err
	}
	fail := func(err error) (Stat, error) { return s, errs.E(errs.Storage, errs.Ours, op, r.dir, err) }
	all, err := r.blocks.Query(ctx, query.Query{KeysOnly: true})
	if err != nil {
		return fail(err)
	}
	defer all.Close()
	for e := range all.Next() {
		if e.Error != nil {
			return fail(e.Error)
		}
		s.NumObjects++
	}
	if ctx.Err() != nil {
		return s, context.Cause(ctx)
	}
	return s, nil
}

// Size is Stat without NumObjects, at once.
func (r *Repo) Size(ctx context.Context) (Stat, error) {
	s := Stat{RepoPath: r.dir, Version: Version}
	c := r.Config()
	max, err := c.Datastore.MaxBytes()
	if err == nil {
		s.BlocksSize, err = r.blocks.DiskUsage(ctx)
	}
	var rest uint64
	if err == nil {
		rest, err = r.datastore.DiskUsage(ctx)
	}
	if err == nil {
		s.Free, err = freeSpace(r.dir)
	}
	if err != nil {
		return s, errs.E(errs.Storage, errs.Ours, "stat repo", r.dir, err)
	}
	s.StorageMax, s.RepoSize = max, s.BlocksSize+rest
	return s, nil
}
