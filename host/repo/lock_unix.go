//go:build linux || darwin

package repo

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// flock locks a file until it is closed, for this opener alone or for all who ask
// so. It does not wait: it returns errHeld.
func flock(f *os.File, exclusive bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return errHeld
		case err != nil:
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// recordLock reports which other process has the record lock of a file, as
// go-fs-lock takes it, without touching the lock: 0 and false if nobody. The pid
// is 0 if the process cannot be seen from here.
func recordLock(f *os.File) (pid int, locked bool, err error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, false, &os.PathError{Op: "ask for the lock of", Path: f.Name(), Err: err}
	}
	return int(max(l.Pid, 0)), l.Type != unix.F_UNLCK, nil
}
