package subprocess

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/codexchange/codexchange/exchange/errs"
)

// self is what Ready has said of this program.
var self struct {
	sync.Mutex
	ready bool
	names []string    // of the plugins it can be; empty is any
	file  fs.FileInfo // of the program, as it was then; nil if unknown
}

// Ready allows this program to be started again as its own plugin, under these
// names, or under any if there are none. It is called at the start of main, and
// of TestMain, after the program has found out that it is not a plugin itself;
// see [PluginName].
func Ready(names ...string) {
	self.Lock()
	defer self.Unlock()
	self.ready, self.names = true, slices.Clone(names)
	if path, err := os.Executable(); err == nil {
		self.file, _ = os.Stat(path)
	}
}

// PluginName is the name under which this process was started as a plugin, or ""
// if it was not. Its children do not inherit it.
var PluginName = sync.OnceValue(func() string {
	name := os.Getenv(NameKey)
	os.Unsetenv(NameKey)
	return name
})

// program is the file to execute, and the name to give it in its arguments.
func (c *Config) program() (path, arg0 string, err error) {
	if c.Path == "" {
		return ownImage(c.Name)
	}
	path, err = filepath.Abs(c.Path)
	if err == nil {
		err = checkProgram(path, c.SHA256)
	}
	return path, path, err
}

// ownImage is the program of this process, for a plugin of that name.
func ownImage(name string) (path, arg0 string, err error) {
	refuse := func(format string, args ...any) (string, string, error) {
		return "", "", errs.Errorf(errs.Invalid, errs.Caller, "start plugin "+name, format, args...)
	}
	if plugin := PluginName(); plugin != "" {
		return refuse("this process is itself plugin %s, which does not start its own program: want a path", plugin)
	}
	self.Lock()
	ready, names, file := self.ready, self.names, self.file
	self.Unlock()
	if !ready {
		return refuse("this program is not prepared to be its own plugin: call plugin.Main first in main (in tests: in TestMain), or give a path")
	}
	if len(names) > 0 && !slices.Contains(names, name) {
		return refuse("this program has no such plugin: it has %s", strings.Join(names, ", "))
	}
	arg0, err = os.Executable()
	if err != nil {
		return "", "", errs.E(errs.Other, errs.Ours, "find this program", "", err)
	}
	// The file may have been replaced by another version since the program was
	// started. The two sides must be of one build, so the image that runs counts.
	now, err := os.Stat(arg0)
	if runtime.GOOS == "linux" {
		const image = "/proc/self/exe" // to the kernel, no link but the image itself
		if running, imageErr := os.Stat(image); imageErr == nil {
			file = running
			if err != nil || !os.SameFile(running, now) {
				return image, arg0, nil
			}
		}
	}
	switch {
	case err != nil:
		return refuse("this program is gone: %w: start it again", err)
	case file != nil && (!os.SameFile(file, now) || file.Size() != now.Size() || !file.ModTime().Equal(now.ModTime())):
		return refuse("%s was replaced after it was started: start it again", arg0)
	}
	return arg0, arg0, nil
}

// checkProgram reports why a file is not the program with that sum. It is read
// before each start; who can change it afterwards can do anything as this user.
// go-plugin's own check cannot be used with a runner, and would not name the sums.
func checkProgram(path string, want []byte) error {
	const op = "check program"
	if len(want) != sha256.Size {
		return errs.Errorf(errs.Invalid, errs.Caller, op+" "+path, "its sha256 is configured with %d bytes, want %d", len(want), sha256.Size)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return errs.E(errs.Invalid, errs.Caller, op, path, err)
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 {
		return errs.Errorf(errs.Invalid, errs.Caller, op+" "+path, "mode is %v, want an executable file", fi.Mode())
	}
	f, err := os.Open(path)
	if err != nil {
		return errs.E(errs.Invalid, errs.Caller, op, path, err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return errs.E(errs.Other, errs.Ours, op, path, err)
	}
	if got := sum.Sum(nil); subtle.ConstantTimeCompare(got, want) != 1 {
		return errs.E(errs.Invalid, errs.Caller, op, path, fmt.Errorf("sha256 is %x, want %x", got, want))
	}
	return nil
}
