package repo

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncDisk returns when everything on the disk of dir is there to stay.
func syncDisk(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
