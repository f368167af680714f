package repo

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
)

// APIAddr is where the daemon that uses the repo in dir serves its API. It is an
// error of kind errs.NotFound if none does: no file, or one that a process left
// which is gone.
func APIAddr(dir string) (multiaddr.Multiaddr, error) {
	const op = "find the API of"
	addr, err := readAPI(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.E(errs.NotFound, errs.Caller, op, dir, errors.New("no daemon runs on it"))
	}
	if err != nil {
		return nil, errs.E(errs.Malformed, errs.Ours, op, dir, err)
	}
	used, err := held(dir)
	if err != nil {
		return nil, errs.E(errs.Storage, errs.Ours, op, dir, err)
	}
	if !used {
		return nil, errs.E(errs.NotFound, errs.Caller, op, dir, errors.New("the daemon that served it is gone"))
	}
	return addr, nil
}

func readAPI(dir string) (multiaddr.Multiaddr, error) {
	text, err := readFile(filepath.Join(dir, apiName), 4<<10)
	if err != nil {
		return nil, err
	}
	return multiaddr.NewMultiaddr(strings.TrimSpace(string(text)))
}

// SetAPI tells other processes where the API of this one is, until Close. nil
// says that it is no longer served.
func (r *Repo) SetAPI(addr multiaddr.Multiaddr) error {
	const op = "set the API address of"
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errs.E(errs.Closed, errs.Caller, op, r.dir, nil)
	}
	var err error
	if addr == nil {
		err = removeAPI(r.dir)
	} else {
		err = writeFile(filepath.Join(r.dir, apiName), []byte(addr.String()), 0o600)
	}
	if err != nil {
		return errs.E(errs.Storage, errs.Ours, op, r.dir, err)
	}
	return nil
}

func removeAPI(dir string) error {
	err := os.Remove(filepath.Join(dir, apiName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
