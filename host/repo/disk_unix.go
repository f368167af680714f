//go:build linux || darwin

package repo

import (
	"errors"

	"golang.org/x/sys/unix"
)

func freeSpace(path string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return s.Bavail * uint64(s.Bsize), nil
}

// isOtherDisk reports whether a link failed because its ends are on different
// disks.
func isOtherDisk(err error) bool { return errors.Is(err, unix.EXDEV) }
