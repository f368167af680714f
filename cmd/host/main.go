// Command host is the codexchange node.
//
// This package owns commands, flags, signals, what is printed and exit codes;
// what the commands do is in package host and below.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/codexchange/codexchange/host"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 128 + int(syscall.SIGINT) // as shells count it
)

func main() {
	host.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	// A write that nobody reads any more (`host demo | head`) fails. It does not
	// end the process, which would leave its directories behind.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code. It stops early, and
// in good order, when ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr}
	return c.run(ctx, args)
}

// cli is one command line at work.
type cli struct {
	stdout, stderr io.Writer

	// inspect is demo.Config.Inspect.
	inspect func(ctx context.Context, fetcher *host.Node) error
}

const usage = `host demonstrates the codexchange node.

Usage:

  host demo [flags] [FILE]   move a file between two nodes, by each exchange
  host version               print the version and what it was built with
  host help [COMMAND]        print help

"host COMMAND -h" lists the flags of a command.
`

func (c *cli) run(ctx context.Context, args []string) int {
	if len(args) == 0 {
		io.WriteString(c.stderr, usage)
		return exitUsage
	}
	name, args := args[0], args[1:]
	switch name {
	case "demo":
		return c.exit(ctx, "demo", c.demo(ctx, args))
	case "version":
		return c.exit(ctx, "version", c.version(args))
	case "help", "-h", "-help", "--help":
		return c.exit(ctx, "help", c.help(args))
	}
	return c.exit(ctx, "", usageErrorf("unknown command %q, want demo, version or help", name))
}

// errHelp is the error of a command that was asked for its help and printed it.
var errHelp = errors.New("help printed")

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// exit tells the user about err and chooses the exit code.
func (c *cli) exit(ctx context.Context, command string, err error) int {
	prefix := "host"
	if command != "" {
		prefix += " " + command
	}
	var misuse usageError
	switch {
	case err == nil, errors.Is(err, errHelp):
		return exitOK
	case errors.As(err, &misuse):
		fmt.Fprintf(c.stderr, "%s: %v\nRun \"%s -h\" for help.\n", prefix, err, prefix)
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintf(c.stderr, "%s: interrupted\n", prefix)
		return exitInterrupted
	}
	fmt.Fprintf(c.stderr, "%s: %v\n", prefix, err)
	return exitFailed
}

func (c *cli) help(args []string) error {
	switch {
	case len(args) == 0:
		_, err := io.WriteString(c.stdout, usage)
		return err
	case args[0] == "demo":
		return c.demo(context.Background(), []string{"-h"})
	case args[0] == "version":
		return c.version([]string{"-h"})
	}
	return usageErrorf("unknown command %q, want demo or version", args[0])
}

// parse reads the flags in args, which may stand before and after the operands,
// and returns the operands. A request for help is answered on stdout.
func (c *cli) parse(flags *flag.FlagSet, help string, args []string) (operands []string, err error) {
	flags.SetOutput(io.Discard) // errors are reported once, by exit
	flags.Usage = func() {}
	for {
		if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			if _, err := io.WriteString(c.stdout, help); err != nil {
				return nil, err
			}
			return nil, errHelp
		} else if err != nil {
			return nil, usageError{err}
		}
		rest := flags.Args()
		if len(rest) == 0 {
			return operands, nil
		}
		if n := len(args) - len(rest); n > 0 && args[n-1] == "--" {
			return append(operands, rest...), nil
		}
		operands, args = append(operands, rest[0]), rest[1:]
	}
}
