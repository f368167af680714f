//go:build !linux && !darwin

package repo

import (
	"errors"
	"os"
)

// flock refuses: a repo needs a system whose locks are known.
func flock(f *os.File, exclusive bool) error {
	return &os.PathError{Op: "lock", Path: f.Name(), Err: errors.ErrUnsupported}
}

func recordLock(f *os.File) (pid int, locked bool, err error) {
	return 0, false, &os.PathError{Op: "ask for the lock of", Path: f.Name(), Err: errors.ErrUnsupported}
}
