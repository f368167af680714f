//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package subprocess

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/exchange/errs"
)

// unsupported is the error of whoever wants a plugin here.
func unsupported(op string) error {
	system := runtime.GOOS
	if system == "windows" {
		system = "Windows"
	}
	return errs.Errorf(errs.Invalid, errs.Caller, op, "plugins are not supported on %s yet", system)
}

// Process is a plugin process; there are none here.
type Process struct{}

// Start returns an error of kind errs.Invalid.
func Start(context.Context, Config) (*Process, error) { return nil, unsupported(opStart) }

func (*Process) Conn() grpc.ClientConnInterface { return nil }
func (*Process) Pid() int                       { return 0 }
func (*Process) Done() <-chan struct{}          { return nil }
func (*Process) Err() error                     { return nil }
func (*Process) Kill()                          {}

// NewDir returns an error of kind errs.Invalid.
func NewDir() (dir string, cleanup func(), err error) {
	return "", nil, unsupported("make plugin directory")
}

// ServeConfig says what a plugin serves.
type ServeConfig struct {
	Register func(*grpc.Server)
	Stop     func()
}

// Serve says that there are no plugins here, and exits with 1.
func Serve(ServeConfig) {
	fmt.Fprintln(os.Stderr, unsupported("serve"))
	os.Exit(1)
}
