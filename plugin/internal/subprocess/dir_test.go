//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A directory is closed to others, and short enough for go-plugin's sockets.
func TestNewDir(t *testing.T) {
	t.Setenv("TMPDIR", "/"+strings.Repeat("long", 30))
	dir, cleanup, err := NewDir()
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(dir)
	if err != nil || fi.Mode() != fs.ModeDir|0o700 {
		t.Errorf("mode is %v, %v, want drwx------", fi.Mode(), err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "plugin4294967295"))
	if err != nil {
		t.Error(err)
	} else {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	cleanup()
	cleanup()
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after cleanup: %v, want it gone", err)
	}
	if _, err := dirBase("/"+strings.Repeat("long", 30), "relative"); !errors.Is(err, errs.Invalid) {
		t.Errorf("no place that is short: %v, want of kind %v", err, errs.Invalid)
	}
}

// What a dead host has left is removed, and nothing else: not what a host holds,
// what is being made, what is not private, what has another name, and not what a
// link leads to.
func TestSweep(t *testing.T) {
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, name) }
	held := func(name string) *os.File {
		lock, err := makeDir(at(name))
		if err != nil {
			t.Fatal(err)
		}
		return lock
	}
	dir := func(name string, mode fs.FileMode) {
		if err := errors.Join(os.Mkdir(at(name), mode), os.WriteFile(filepath.Join(at(name), "file"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		if err := os.Symlink(to, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	alive := held("cxp-0000000a")
	defer alive.Close()
	held("cxp-0000000d").Close()
	dir("precious", 0o700)
	link(at("precious"), "cxp-0000000d/link")
	link(at("precious"), "cxp-00000001")
	dir("cxp-00000002", 0o755)
	dir("cxp-00000003", 0o700) // half removed: the lock has gone first
	dir("cxp-0000000", 0o700)
	dir("cxp-0000000X", 0o700)
	dir("cxp-00000004.new", 0o700)
	dir("cxp-00000005.new", 0o700)
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(at("cxp-00000005.new"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("cxp-00000006"), nil, 0o700); err != nil {
		t.Fatal(err)
	}

	sweep(base, time.Now())
	for name, want := range map[string]bool{
		"cxp-0000000a/lock":     true,
		"cxp-0000000d":          false,
		"precious/file":         true,
		"cxp-00000001":          true,
		"cxp-00000002/file":     true,
		"cxp-00000003":          false,
		"cxp-0000000/file":      true,
		"cxp-0000000X/file":     true,
		"cxp-00000004.new/file": true,
		"cxp-00000005.new":      false,
		"cxp-00000006":          true,
	} {
		_, err := os.Lstat(at(name))
		if got := err == nil; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
	alive.Close()
	sweep(base, time.Now())
	if _, err := os.Lstat(at("cxp-0000000a")); err == nil {
		t.Error("cxp-0000000a is there after its host has ended")
	}
	removeDir(at("precious"))
	removeDir(at("cxp-00000001"))
	if _, err := os.Lstat(at("precious/file")); err != nil {
		t.Errorf("removeDir of what is no private directory: %v", err)
	}
}
