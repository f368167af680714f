// Command host is the codexchange node.
//
// This package owns signals, what becomes of `host daemon`, and all of `host demo`.
// The other commands are defined in package commands, which also decides whether one
// runs in this process or in the daemon.
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

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/commands"
)

// Exit codes. Only demo tells wrong command lines from failures; the others exit as
// ipfs does.
const (
	exitOK          = commands.ExitOK
	exitFailed      = commands.ExitFailed
	exitUsage       = 2
	exitInterrupted = commands.ExitInterrupted
)

func main() {
	host.Main()
	host.Tune()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	c := &cli{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(c.run(ctx, os.Args[1:]))
}

// cli is one command line at work.
type cli struct {
	stdin, stdout, stderr *os.File

	// inspect is demo.Config.Inspect.
	inspect func(ctx context.Context, fetcher *host.Node) error
}

// run executes a command line and returns the exit code. It stops early, and in good
// order, when ctx ends.
func (c *cli) run(ctx context.Context, args []string) int {
	switch {
	case len(args) > 0 && args[0] == "demo":
		outlivePipes()
		return c.exit(ctx, c.demo(ctx, args[1:]))
	case len(args) > 1 && args[0] == "help" && args[1] == "demo":
		return c.exit(ctx, c.demo(ctx, []string{"-h"}))
	}
	return commands.Main(ctx, root(), append([]string{"host"}, args...), c.stdin, c.stdout, c.stderr)
}

// outlivePipes is for commands that would leave something behind, were they ended by a
// write that nobody reads any more (`host demo | head`): the write fails instead.
func outlivePipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// root is the tree of all commands.
func root() *cmds.Command {
	r := commands.Root()
	r.Subcommands["daemon"] = daemonCommand()
	r.Subcommands["demo"] = &cmds.Command{ // for lists of commands; run does not come here
		Helptext: cmds.HelpText{
			Tagline:          "Two nodes side by side, and their exchanges compared.",
			ShortDescription: "'host demo -h' tells how.",
		},
		NoRemote: true,
	}
	r.ProcessHelp()
	return r
}

// errHelp is the error of a command that was asked for its help and printed it.
var errHelp = errors.New("help printed")

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// exit tells the user about err and chooses the exit code.
func (c *cli) exit(ctx context.Context, err error) int {
	var misuse usageError
	switch {
	case err == nil, errors.Is(err, errHelp):
		return exitOK
	case errors.As(err, &misuse):
		fmt.Fprintf(c.stderr, "host demo: %v\nRun \"host demo -h\" for help.\n", err)
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintln(c.stderr, "host demo: interrupted")
		return exitInterrupted
	}
	fmt.Fprintf(c.stderr, "host demo: %v\n", err)
	return exitFailed
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
