package repo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	flatfs "github.com/ipfs/go-ds-flatfs"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/codexchange/codexchange/exchange/errs"
)

// InitOptions say what a new repo is like.
type InitOptions struct {
	// KeyType is the type of the key that is made: Secp256k1 if empty, or
	// Ed25519. [KeyNote] says what that means.
	KeyType string
	// Key is the identity, whatever KeyType says. nil makes one.
	Key crypto.PrivKey
	// Profiles are the names of the profiles to apply, in this order.
	Profiles []string
}

// Init makes a repo in dir, which does not exist, or is empty, or has what an
// interrupted Init left. Everything else is refused and not touched.
func Init(dir string, o InitOptions) (*Config, error) {
	return create("init repo", dir, o, nil)
}

// create makes a repo. fill puts in what it is to begin with. If it fails, it may
// be called again and finds what it has done.
func create(op, dir string, o InitOptions, fill func() error) (*Config, error) {
	c, err := o.config()
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, op, dir, err)
	}
	if err := checkFree(op, dir); err != nil {
		return nil, err
	}
	failed := func(err error) (*Config, error) { return nil, errs.E(errs.Storage, errs.Ours, op, dir, err) }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return failed(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return failed(err)
	}
	lock, err := acquire(dir)
	if err != nil {
		return nil, lockFailed(op, dir, err)
	}
	defer lock.release()
	if err := checkFree(op, dir); err != nil { // another may have been quicker
		return nil, err
	}

	// From here on, until the version file has a number, what is here is ours
	// and may be written again.
	removeTemps(dir)
	if err := writeVersion(dir, beginning); err != nil {
		return failed(err)
	}
	if err := makeStores(dir); err != nil {
		return failed(err)
	}
	if fill != nil {
		if err := fill(); err != nil {
			return nil, err
		}
	}
	if err := writeFile(filepath.Join(dir, configName), c.Encode(), 0o600); err != nil {
		return failed(err)
	}
	if err := writeVersion(dir, strconv.Itoa(Version)); err != nil {
		return failed(err)
	}
	return c, nil
}

func (o *InitOptions) config() (*Config, error) {
	key := o.Key
	if key == nil {
		var err error
		if key, err = newKey(o.KeyType); err != nil {
			return nil, err
		}
	}
	id, err := newIdentity(key)
	if err != nil {
		return nil, err
	}
	c := newConfig(id)
	for _, name := range o.Profiles {
		if err := c.Apply(name); err != nil {
			return nil, err
		}
	}
	return c.Clone(), c.Check()
}

// checkFree is an error if no repo may be made in dir.
func checkFree(op, dir string) error {
	whose, _, what, err := identify(dir)
	switch {
	case err != nil:
		return errs.E(errs.Storage, errs.Caller, op, dir, err)
	case whose == ours:
		err = errors.New("there is a repo already")
	case whose == kubo:
		err = fmt.Errorf("it is a repo of Kubo: init another directory with --from-kubo %s", dir)
	case whose == others:
		err = fmt.Errorf("it has %q and is no repo, want an empty directory", what)
	}
	if err != nil {
		return errs.E(errs.Invalid, errs.Caller, op, dir, err)
	}
	return nil
}

// makeStores makes the directories of the stores, without opening them.
func makeStores(dir string) error {
	if err := flatfs.Create(filepath.Join(dir, blocksName), shards); err != nil && !errors.Is(err, flatfs.ErrDatastoreExists) {
		return err
	}
	return os.MkdirAll(filepath.Join(dir, datastoreName), 0o700)
}
