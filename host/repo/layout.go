package repo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/codexchange/codexchange/exchange/errs"
)

// EnvDir is the environment variable that names the repo.
const EnvDir = "CODEXCHANGE_PATH"

// defaultDir is where the repo is if nobody says otherwise, under the home
// directory.
const defaultDir = ".codexchange"

// The names in a repo.
const (
	configName    = "config"
	blocksName    = "blocks"
	datastoreName = "datastore"
	versionName   = "version"
	lockName      = "repo.lock"
	holderName    = "holder"
	apiName       = "api"

	tempPrefix = ".tmp-" // files being written; of no use to anybody later
)

// Dir is the absolute path of the repo to use: the flag if it is not empty, else
// $CODEXCHANGE_PATH, else ~/.codexchange. A leading ~ is the home directory.
func Dir(flag string) (string, error) {
	dir, from := flag, "--repo-dir"
	if dir == "" {
		dir, from = os.Getenv(EnvDir), "$"+EnvDir
	}
	if dir == "" {
		dir, from = filepath.Join("~", defaultDir), "the default"
	}
	if rest, ok := strings.CutPrefix(dir, "~"); ok && (rest == "" || os.IsPathSeparator(rest[0])) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errs.E(errs.Invalid, errs.Caller, "find repo", dir, fmt.Errorf("%s needs a home directory: %w", from, err))
		}
		dir = filepath.Join(home, rest)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", errs.E(errs.Invalid, errs.Caller, "find repo", dir, err)
	}
	return abs, nil
}

// An owner is whose a directory is.
type owner int

const (
	nobody     owner = iota // it does not exist, or is empty
	ours                    // a repo of this package
	unfinished              // what an interrupted Init left
	kubo                    // a repo of Kubo
	others                  // something else
)

// identify tells whose dir is, and which version of the layout it has if it is
// ours. It only reads. For others, what is the name of something in it.
func identify(dir string) (whose owner, version int, what string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nobody, 0, "", nil
	}
	if err != nil {
		return others, 0, "", err
	}
	var number bool
	if text, err := readFile(filepath.Join(dir, versionName), 64); err == nil {
		v, isOurs, err := parseVersion(string(text))
		switch {
		case isOurs && err != nil:
			return others, 0, "", err
		case isOurs && v == 0:
			return unfinished, 0, "", nil
		case isOurs:
			return ours, v, "", nil
		}
		_, err = strconv.Atoi(strings.TrimSpace(string(text)))
		number = err == nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return others, 0, "", err
	}
	var spec, config bool
	for _, e := range entries {
		name := e.Name()
		spec = spec || name == kuboSpecName
		config = config || name == configName
		switch {
		case name == lockName, name == holderName, strings.HasPrefix(name, tempPrefix):
		case name == "lost+found": // of a disk that was mounted here
		default:
			what = name
		}
	}
	switch {
	case spec, config && (number || hasKuboSpec(dir)):
		return kubo, 0, "", nil
	case what == "":
		return nobody, 0, "", nil
	}
	return others, 0, what, nil
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w: it has more than %d bytes", errs.TooLarge, limit)}
	}
	return b, err
}

// writeFile replaces a file as a whole: whoever reads it, now or after a crash,
// finds either the old one or the new one. A file that exists keeps its mode, and
// a link keeps pointing to it.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if fi, err := os.Stat(path); err == nil {
		mode = fi.Mode().Perm()
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes what was renamed in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeTemps removes what writeFile left when its process was killed. The
// caller holds the lock.
func removeTemps(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	for _, path := range left {
		os.Remove(path)
	}
}
