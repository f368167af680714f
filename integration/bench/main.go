package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/codexchange/codexchange/host"
)

func main() {
	host.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		stop()
		os.Exit(1)
	}
}

// run is the whole command. Only "node" reads in, and "summary" if no file is
// named.
func run(ctx context.Context, args []string, in io.Reader, out, progress io.Writer) error {
	if len(args) > 0 && args[0] == "node" {
		return serveNode(ctx, in, out)
	}
	if len(args) > 0 && args[0] == "summary" {
		return summary(args[1:], in, out, progress)
	}
	b, chosen, err := parse(args, progress)
	if err != nil {
		return err
	}
	b.out, b.progress = out, progress
	return b.run(ctx, chosen)
}

// summary reads the command line of a summary and writes it.
func summary(args []string, in io.Reader, out, usage io.Writer) error {
	fs := flag.NewFlagSet("bench summary", flag.ContinueOnError)
	fs.SetOutput(usage)
	targets := fs.Bool("targets", false, "show the target of each row, and whether it is reached")
	if err := fs.Parse(args); err != nil {
		return err
	}
	return summarize(fs.Args(), *targets, in, out)
}

// parse reads the command line of a measurement.
func parse(args []string, usage io.Writer) (*bench, []suite, error) {
	b := &bench{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.IntVar(&b.rounds, "rounds", 5, "how often each case runs")
	fs.IntVar(&b.mib, "mib", fullMiB, "size of the bulk data set in MiB, at least 1; everything else scales with it")
	only := fs.String("only", "", "regular expression: run the cases whose CASE/EXCHANGE it matches")
	names := fs.String("exchanges", strings.Join([]string{"bitswap", inProcess, asPlugin, "floor"}, ","), "exchanges to compare, by commas; there is "+strings.Join(exchangeNames(), ", "))
	fs.StringVar(&b.dir, "dir", "", "where data is kept between runs (default: a temporary directory, removed at the end)")
	fs.StringVar(&b.profiles, "profile", "", "directory for a CPU profile of each node over the measured stretch")
	fs.DurationVar(&b.quiet, "quiet", 0, "wait so long in all, before runs, for other programs to become idle")
	fs.BoolVar(&b.verbose, "v", false, "show what the nodes write to standard error")
	fs.Usage = func() {
		fmt.Fprint(usage, "usage: bench [flags] SUITE...|gates|all > FIGURES\n       bench summary [-targets] [FIGURES...]\n\nsuites:\n")
		for _, s := range suites {
			fmt.Fprintf(usage, "  %-8s %s\n", s.name, s.about)
		}
		fmt.Fprintf(usage, "  %-8s what has a target that must hold, of all suites\n\nflags:\n", "gates")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return nil, nil, err
	}
	var err error
	if b.only, err = regexp.Compile(*only); err != nil {
		return nil, nil, fmt.Errorf("flag -only: %w", err)
	}
	if b.rounds < 1 || b.mib < 1 {
		return nil, nil, fmt.Errorf("flags: -rounds %d -mib %d, want 1 or more of each", b.rounds, b.mib)
	}
	for name := range strings.SplitSeq(*names, ",") {
		if _, err := exchangeByName(name); err != nil {
			return nil, nil, fmt.Errorf("flag -exchanges: %w", err)
		}
		b.exchanges = append(b.exchanges, name)
	}
	chosen, err := chooseSuites(fs.Args())
	if err != nil {
		fs.Usage()
	}
	return b, chosen, err
}

func chooseSuites(names []string) ([]suite, error) {
	switch {
	case len(names) == 1 && names[0] == "all":
		return suites, nil
	case len(names) == 1 && names[0] == "gates":
		return gates(), nil
	}
	var chosen []suite
	for _, name := range names {
		s, ok := suiteByName(name)
		if !ok {
			return nil, fmt.Errorf("unknown suite %q", name)
		}
		chosen = append(chosen, s)
	}
	if chosen == nil {
		return nil, errors.New("no suite named")
	}
	return chosen, nil
}
