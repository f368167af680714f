package repo

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Version is the version of the layout that this package writes.
const Version = 1

// versionWord begins the version file.
const versionWord = "codexchange"

// beginning stands for the number in the version file until Init is done.
const beginning = "init"

// migrations has, by the version that they start from, what makes a repo one
// version newer. They run under the lock, and again from the start after a crash.
var migrations = map[int]func(dir string) error{}

// parseVersion reads a version file: isOurs if it begins with our word, 0 if Init
// is not done.
func parseVersion(text string) (version int, isOurs bool, err error) {
	rest, isOurs := strings.CutPrefix(strings.TrimSpace(text), versionWord+" ")
	if !isOurs || rest == beginning {
		return 0, isOurs, nil
	}
	version, err = strconv.Atoi(rest)
	if err != nil || version < 1 {
		return 0, true, fmt.Errorf("version file: got %q, want %q and a number", clip(text), versionWord)
	}
	return version, true, nil
}

func writeVersion(dir, version string) error {
	return writeFile(filepath.Join(dir, versionName), []byte(versionWord+" "+version+"\n"), 0o600)
}

// migrate brings a repo from one version of the layout to another, step by step.
func migrate(dir string, from, to int, steps map[int]func(dir string) error) error {
	if from > to {
		return fmt.Errorf("its layout is version %d, and this program knows up to %d: use a newer program", from, to)
	}
	for v := from; v < to; v++ {
		step, ok := steps[v]
		if !ok {
			return fmt.Errorf("its layout is version %d, and this program cannot bring that to %d: use an older program first", v, v+1)
		}
		if err := step(dir); err != nil {
			return fmt.Errorf("migrate from version %d to %d: %w", v, v+1, err)
		}
		if err := writeVersion(dir, strconv.Itoa(v+1)); err != nil {
			return err
		}
	}
	return nil
}
