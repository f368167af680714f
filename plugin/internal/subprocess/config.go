package subprocess

import (
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-plugin"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	opStart      = "start plugin"
	socketDirKey = plugin.EnvUnixSocketDir
)

// DefaultStartTimeout is how long a plugin may take until its server answers.
const DefaultStartTimeout = 30 * time.Second

// Config says which process is started. Name and Dir are required.
type Config struct {
	// Name is what the plugin is told that it is, see PluginName.
	Name string
	// Path is the program; empty is this program itself, see Ready.
	Path string
	// SHA256 is the sum of the program. Required if Path is set.
	SHA256 []byte
	// Args are the arguments after the name of the program.
	Args []string
	// Env is added to the environment, each "KEY=value". The variables of the
	// handshake cannot be overridden.
	Env []string
	// Dir is a directory made by NewDir. Start does not remove it.
	Dir string
	// Log gets what the plugin logs, and at level debug what go-plugin says; nil
	// is slog.Default(). Give it an attribute that names the plugin. A plugin that
	// logs faster than Log writes waits for it.
	Log *slog.Logger
	// Stderr gets a copy of what the plugin writes to standard error, from one
	// goroutine, until Done; nil is nobody.
	Stderr io.Writer
	// StartTimeout is how long the start may take; 0 is DefaultStartTimeout.
	StartTimeout time.Duration
}

// fill puts defaults in place of zeros.
func (c Config) fill() (Config, error) {
	wrong := func(format string, args ...any) (Config, error) {
		return c, errs.Errorf(errs.Invalid, errs.Caller, opStart+" "+c.Name, format, args...)
	}
	switch {
	case c.Name == "" || strings.ContainsAny(c.Name, "=\x00"):
		return wrong("name is %q, want some text without \"=\"", c.Name)
	case !filepath.IsAbs(c.Dir):
		return wrong("directory is %q, want an absolute path", c.Dir)
	case c.Path == "" && len(c.SHA256) > 0:
		return wrong("a sha256 is given without a path")
	case c.StartTimeout < 0:
		return wrong("start timeout is %v, want 0 or more", c.StartTimeout)
	}
	c.Dir = filepath.Clean(c.Dir)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = DefaultStartTimeout
	}
	return c, nil
}
