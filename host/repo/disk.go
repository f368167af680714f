package repo

import (
	"errors"
	"strings"
	"syscall"

	"github.com/codexchange/codexchange/exchange/errs"
)

// DiskFull reports whether an operation ended with err because there was no room
// left on the disk, or in the quota of the user. Fetching must stop then, serving
// need not.
//
// An error of kind errs.Storage counts by its text too: some layers of the store,
// and the way from another process, keep nothing else.
func DiskFull(err error) bool {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return true
	}
	if !errors.Is(err, errs.Storage) {
		return false
	}
	text := err.Error()
	return strings.Contains(text, syscall.ENOSPC.Error()) || strings.Contains(text, syscall.EDQUOT.Error())
}

// FreeSpace is how many bytes this user may still write on the disk of path.
func FreeSpace(path string) (uint64, error) {
	free, err := freeSpace(path)
	if err != nil {
		return 0, errs.E(errs.Storage, errs.Ours, "find free space of", path, err)
	}
	return free, nil
}
