package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A second process is told who has the repo, since when, and where its API is.
// When the first one is killed, the second gets the repo, and the address that
// the first one left counts for nothing.
func TestSecondOpener(t *testing.T) {
	dir := newRepo(t)
	began := time.Now().Truncate(time.Second)
	daemon := start(t, "serve", dir)
	if got := daemon.line(t); got != "serving" {
		t.Fatalf("the daemon says %q, want %q", got, "serving")
	}

	_, err := Open(dir)
	refused(t, err, errs.Other, fmt.Sprintf("process %d", daemon.Process.Pid), apiText)
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Fatalf("got error %v, want a *LockedError", err)
	}
	if locked.PID != daemon.Process.Pid || locked.API != apiText {
		t.Errorf("got pid %d with API %q, want %d with %q", locked.PID, locked.API, daemon.Process.Pid, apiText)
	}
	if locked.Since.Before(began) || locked.Since.After(time.Now()) {
		t.Errorf("got since %v, want between %v and now", locked.Since, began)
	}
	if _, err := OpenConfig(dir); !errors.As(err, &locked) {
		t.Errorf("OpenConfig: got %v, want a *LockedError", err)
	}
	if a, err := APIAddr(dir); err != nil || a.String() != apiText {
		t.Errorf("API address while it serves: got %v, %v, want %s", a, err, apiText)
	}

	daemon.Process.Kill()
	daemon.Wait()
	if _, err := os.Stat(filepath.Join(dir, apiName)); err != nil {
		t.Fatalf("a killed daemon leaves its address: got %v", err)
	}
	_, err = APIAddr(dir)
	refused(t, err, errs.NotFound, "gone")
	open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, apiName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the address of a killed daemon after the next Open: got %v, want it gone", err)
	}
}

// Close gives the repo up and takes the address away; it may come twice, and
// nothing works after it. The same process cannot open a repo twice either.
func TestClose(t *testing.T) {
	dir := newRepo(t)
	r := open(t, dir)
	if err := r.SetAPI(addr(apiText)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir)
	refused(t, err, errs.Other, "in use by this process", apiText)
	if a, err := APIAddr(dir); err != nil || a.String() != apiText {
		t.Errorf("API address: got %v, %v, want %s", a, err, apiText)
	}

	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatalf("close: got %v, want nil", err)
		}
	}
	_, err = APIAddr(dir)
	refused(t, err, errs.NotFound, "no daemon")
	refused(t, r.SetAPI(addr(apiText)), errs.Closed)
	refused(t, r.SetConfig(r.Config()), errs.Closed)
	_, err = r.ConfigFile().Get("Exchange.Use")
	refused(t, err, errs.Closed)
	r = open(t, dir)
	if err := errors.Join(r.SetAPI(addr(apiText)), r.SetAPI(nil)); err != nil {
		t.Fatal(err)
	}
	_, err = APIAddr(dir)
	refused(t, err, errs.NotFound, "no daemon")
}

// Never do two processes hold one repo, however often they take it and give it
// up. (With go-fs-lock alone they do: it removes its file before it unlocks.)
func TestExclusion(t *testing.T) {
	dir := newRepo(t)
	var children []*child
	for range 4 {
		children = append(children, start(t, "contend", dir))
	}
	for _, c := range children {
		if got, want := c.line(t), "never"; got != want {
			t.Errorf("both had it: got %q, want %q", got, want)
		}
	}
}

func playContender(dir string) {
	mark := filepath.Join(dir, tempPrefix+"mark")
	for held := 0; held < 200; {
		l, err := acquire(dir)
		if errors.As(err, new(*LockedError)) {
			continue
		}
		must(err)
		f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			fmt.Println("here is another:", err)
			os.Exit(1)
		}
		f.Close()
		must(os.Remove(mark))
		must(l.release())
		held++
	}
	fmt.Println("never")
}

// A stale repo.lock and a holder that names a process long gone stop nobody; a
// repo.lock that somebody else has locked does.
func TestStaleLock(t *testing.T) {
	dir := newRepo(t)
	write(t, filepath.Join(dir, lockName), "")
	write(t, filepath.Join(dir, holderName), `{"PID":1,"Since":"2020-01-01T00:00:00Z"} and what else was there`)
	open(t, dir).Close()
	if got := read(t, filepath.Join(dir, holderName)); got != "" {
		t.Errorf("holder after Close: got %q, want nothing", got)
	}

	start(t, "kubo", dir).line(t)
	_, err := Open(dir)
	if !errors.As(err, new(*LockedError)) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("while another has repo.lock: got %v, want a *LockedError", err)
	}
}
