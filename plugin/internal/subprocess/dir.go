//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A private directory is called "cxp-" and 8 hexadecimal digits, and holds a
// file "lock" that the host keeps locked while it lives. It is made and locked
// under a name that ends in ".new" and renamed afterwards, so that a directory
// of the final name whose lock is free always belongs to nobody.
const (
	dirPrefix  = "cxp-"
	newSuffix  = ".new"
	lockName   = "lock"
	staleAfter = time.Hour // of a directory that was never renamed
)

// longestName is the longest name of a socket in a directory: go-plugin's
// "plugin" and up to 10 digits, and the byte channels' "s" and 8 digits.
const longestName = len("plugin4294967295")

// NewDir makes a directory for the sockets of one plugin process: mode 0700, and
// with a path that is short enough for them. cleanup removes it with what is in
// it; it is called once the process is gone, and may be called more than once.
//
// Directories that dead hosts of this user have left in the same place are
// removed on the way.
func NewDir() (dir string, cleanup func(), err error) {
	const op = "make plugin directory"
	base, err := dirBase(os.TempDir(), "/tmp")
	if err != nil {
		return "", nil, err
	}
	sweep(base, time.Now())
	var name [4]byte
	rand.Read(name[:]) // never fails
	dir = filepath.Join(base, fmt.Sprintf("%s%x", dirPrefix, name))
	lock, err := makeDir(dir)
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EROFS):
		return "", nil, errs.E(errs.Other, errs.Ours, op, dir, fmt.Errorf("%w: set TMPDIR to a directory that can be written", err))
	case err != nil:
		return "", nil, errs.E(errs.Other, errs.Ours, op, dir, err)
	}
	return dir, sync.OnceFunc(func() {
		removeDir(dir)
		lock.Close() // frees the lock, after the removal
	}), nil
}

// dirBase is the first of bases in which a directory's sockets have paths that
// the system takes.
func dirBase(bases ...string) (string, error) {
	limit := len(syscall.RawSockaddrUnix{}.Path) - 1 // of a socket's path
	room := limit - len("/") - longestName - len("/"+dirPrefix+"01234567")
	for _, base := range bases {
		if filepath.IsAbs(base) && len(base) <= room {
			return filepath.Clean(base), nil
		}
	}
	return "", errs.Errorf(errs.Invalid, errs.Caller, "make plugin directory",
		"in %s: its path is %d bytes, want at most %d for sockets: set TMPDIR to a shorter one", bases[0], len(bases[0]), room)
}

// makeDir makes and locks a directory. The lock is freed when the file closes.
func makeDir(dir string) (*os.File, error) {
	if _, err := os.Lstat(dir); err == nil {
		return nil, fs.ErrExist
	}
	temporary := dir + newSuffix
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(temporary, lockName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(lock, os.Getpid()) // for people
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			err = os.Rename(temporary, dir)
		}
		if err != nil {
			lock.Close()
		}
	}
	if err != nil {
		os.RemoveAll(temporary)
		return nil, err
	}
	return lock, nil
}

// sweep removes the directories in base that dead hosts of this user have left.
func sweep(base string, now time.Time) {
	entries, _ := os.ReadDir(base) // what can be read of it
	for _, e := range entries {
		name, fresh := strings.CutSuffix(e.Name(), newSuffix)
		if !isDirName(name) {
			continue
		}
		dir := filepath.Join(base, e.Name())
		switch root, fi, err := openDir(dir); {
		case err != nil:
		case fresh:
			if now.Sub(fi.ModTime()) > staleAfter {
				empty(root, dir)
			}
			root.Close()
		default:
			if lock, free := tryLock(root); free {
				empty(root, dir)
				if lock != nil {
					lock.Close()
				}
			}
			root.Close()
		}
	}
}

// tryLock takes the lock of a directory; free is false if a host has it. There is
// none, and lock is nil, in a directory that is half removed.
func tryLock(root *os.Root) (lock *os.File, free bool) {
	lock, err := root.OpenFile(lockName, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Is(err, fs.ErrNotExist)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, false
	}
	return lock, true
}

// removeDir removes a private directory with what is in it, and nothing that is
// not one.
func removeDir(dir string) {
	if !isDirName(filepath.Base(dir)) {
		return
	}
	root, _, err := openDir(dir)
	if err != nil {
		return
	}
	defer root.Close()
	empty(root, dir)
}

// removeTries is how often a directory is emptied into which somebody still puts
// something: a plugin that was just beginning to listen when its host died.
const removeTries = 10

// empty removes what is in an open directory, and then the directory itself.
func empty(root *os.Root, dir string) {
	for range removeTries {
		f, err := root.Open(".")
		if err != nil {
			return
		}
		names, _ := f.Readdirnames(-1)
		f.Close()
		for _, name := range names {
			_ = root.RemoveAll(name) // does not follow links
		}
		// This removes nothing but an empty directory.
		if err := syscall.Rmdir(dir); err != syscall.ENOTEMPTY && err != syscall.EEXIST {
			return
		}
	}
}

func isDirName(name string) bool {
	digits, ok := strings.CutPrefix(name, dirPrefix)
	return ok && len(digits) == 8 && strings.Trim(digits, "0123456789abcdef") == ""
}

// openDir opens a directory of this user that is closed to others, and no link
// to one.
func openDir(dir string) (*os.Root, fs.FileInfo, error) {
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, nil, err
	}
	if !fi.IsDir() || fi.Mode().Perm() != 0o700 {
		return nil, nil, fmt.Errorf("mode is %v, want drwx------", fi.Mode())
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return nil, nil, errors.New("it belongs to another user")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, err
	}
	// Another user who may rename here could have put a link in its place.
	if now, err := root.Stat("."); err != nil || !os.SameFile(fi, now) {
		root.Close()
		return nil, nil, errors.New("it was replaced")
	}
	return root, fi, nil
}
