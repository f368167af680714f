package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	fslock "github.com/ipfs/go-fs-lock"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A lock is this process's hold on a repo. It is two locks:
//
// repo.lock is go-fs-lock's, which other tools of the field look at. Its file is
// removed before it is unlocked, so a process that opened the file just before
// may lock what is no longer there, while the next one makes a new file and locks
// that. And it may hold no text, so it cannot say who has it.
//
// Therefore holder comes first and goes last: a file that stays, locked with
// flock(2), with the text of a holding.
type lock struct {
	holder *os.File
	repo   io.Closer
}

// A holding says who has a repo.
type holding struct {
	PID   int
	Since time.Time
}

// A LockedError is why a repo cannot be opened: a process has it. Its fields are
// zero if they are not known.
type LockedError struct {
	Dir   string
	PID   int
	Since time.Time
	API   string // multiaddr of the API of that process, if it serves one
}

func (e *LockedError) Error() string {
	text := "in use by another process"
	switch {
	case e.PID == os.Getpid():
		text = "in use by this process"
	case e.PID != 0:
		text = fmt.Sprintf("in use by process %d", e.PID)
	}
	if !e.Since.IsZero() {
		text += " since " + e.Since.Local().Format("2006-01-02 15:04:05")
	}
	if e.API != "" {
		return text + "; its API is at " + e.API + ": use that, or stop the process"
	}
	return text + ", which serves no API: wait until it ends"
}

const (
	// probes is how often acquire tries: held holds the lock for a moment.
	probes = 5
	// probeDelay is how long it waits in between.
	probeDelay = 10 * time.Millisecond
)

// errHeld is the answer of flock when another has the lock.
var errHeld = errors.New("held by another")

// acquire takes the repo in dir, or returns a *LockedError.
func acquire(dir string) (*lock, error) {
	holder, err := os.OpenFile(filepath.Join(dir, holderName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		err = flock(holder, true)
		if !errors.Is(err, errHeld) || try == probes {
			break
		}
		time.Sleep(probeDelay)
	}
	if errors.Is(err, errHeld) {
		err = lockedBy(dir, holder)
	}
	if err != nil {
		holder.Close()
		return nil, err
	}
	// On a full disk the text may be missing, and the repo can still be opened
	// to delete from it.
	text, _ := json.Marshal(holding{PID: os.Getpid(), Since: time.Now().Truncate(time.Second)})
	holder.Truncate(0)
	holder.WriteAt(text, 0)

	l := &lock{holder: holder}
	if l.repo, err = fslock.Lock(dir, lockName); err != nil {
		if errors.As(err, new(fslock.LockedError)) {
			err = &LockedError{Dir: dir}
		}
		l.repo = nil
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}

// release gives the repo up. The file holder stays, empty.
func (l *lock) release() error {
	var err error
	if l.repo != nil {
		err = l.repo.Close()
	}
	return errors.Join(err, l.holder.Truncate(0), l.holder.Close())
}

// lockedBy says who has the repo in dir.
func lockedBy(dir string, holder io.ReaderAt) *LockedError {
	e := &LockedError{Dir: dir}
	text, _ := io.ReadAll(io.NewSectionReader(holder, 0, 1<<10))
	var h holding
	if json.Unmarshal(text, &h) == nil {
		e.PID, e.Since = h.PID, h.Since
	}
	if addr, err := readAPI(dir); err == nil {
		e.API = addr.String()
	}
	return e
}

// held reports whether a process has the repo in dir. It opens nothing of
// go-fs-lock's: closing that file would drop this process's own lock on it.
func held(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, holderName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = flock(f, false)
	if errors.Is(err, errHeld) {
		return true, nil
	}
	return false, err
}

// lockFailed says what to do about an error of acquire.
func lockFailed(op, dir string, err error) error {
	var locked *LockedError
	if errors.As(err, &locked) {
		return errs.E(errs.Other, errs.Caller, op, dir, err)
	}
	return errs.E(errs.Storage, errs.Ours, op, dir, err)
}
