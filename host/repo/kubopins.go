package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	leveldb "github.com/ipfs/go-ds-leveldb"
)

// Where boxo's pinner keeps all that it knows, and each pin, in the datastore of
// Kubo and in ours.
const (
	pinsPrefix = "/pins"
	pinPrefix  = pinsPrefix + "/pin/"
)

// errPins is why the pins of a Kubo repo cannot be read.
type errPins struct{ err error }

func (e errPins) Error() string { return e.err.Error() }

// pins imports the pins of Kubo, from the datastore in src to the one in dest. That
// they cannot be read is no reason to do without the blocks.
func (im *importer) pins(src, dest string) error {
	n, err := importPins(im.ctx, src, dest)
	if errors.As(err, &im.done.noPins) {
		return emptyDir(dest)
	}
	im.done.Pins = n
	return err
}

// importPins writes what the pinner of Kubo has kept in its datastore, a leveldb in src,
// to a new one in dest, and returns how many pins that are. Nothing in src is
// changed; if it cannot be read the error is an errPins.
func importPins(ctx context.Context, src, dest string) (pins int, err error) {
	if src == "" {
		return 0, errPins{errors.New("they are in a datastore of another type than levelds")}
	}
	// Opening would make the lock file.
	if _, err := os.Lstat(filepath.Join(src, "LOCK")); errors.Is(err, fs.ErrNotExist) {
		return 0, errPins{fmt.Errorf("%s is no leveldb", src)}
	}
	from, err := leveldb.NewDatastore(src, &leveldb.Options{ReadOnly: true})
	if errors.Is(err, syscall.EAGAIN) {
		err = errors.New("they are locked, as Kubo is running on its repo")
	}
	if err != nil {
		return 0, errPins{err}
	}
	defer from.Close()
	all, err := from.Query(ctx, query.Query{Prefix: pinsPrefix})
	if err != nil {
		return 0, errPins{err}
	}
	defer all.Close()

	if err := emptyDir(dest); err != nil { // an import before this one may have written it
		return 0, err
	}
	to, err := leveldb.NewDatastore(dest, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	for {
		b, err := to.Batch(ctx)
		if err != nil {
			return pins, err
		}
		n := 0
		for ; n < batch; n++ {
			e, more := all.NextSync()
			if !more {
				break
			}
			if e.Error != nil {
				return pins, errPins{e.Error}
			}
			if err := b.Put(ctx, datastore.NewKey(e.Key), e.Value); err != nil {
				return pins, err
			}
			if strings.HasPrefix(e.Key, pinPrefix) {
				pins++
			}
		}
		if err := b.Commit(ctx); err != nil {
			return pins, err
		}
		if n < batch {
			return pins, ctx.Err()
		}
	}
}

func emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}
