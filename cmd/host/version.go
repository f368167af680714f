package main

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
)

const versionHelp = `Usage: host version

Prints the version of the node, of Go, and of the libraries that decide how it
talks to other nodes.
`

func (c *cli) version(args []string) error {
	operands, err := c.parse(flag.NewFlagSet("version", flag.ContinueOnError), versionHelp, args)
	if err != nil {
		return err
	}
	if len(operands) > 0 {
		return usageErrorf("unexpected argument %q", operands[0])
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return fmt.Errorf("read build information: this binary has none, want one built with modules")
	}
	fmt.Fprintf(c.stdout, "codexchange %s\n%s %s/%s\n", info.Main.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, m := range info.Deps {
		switch m.Path {
		case "github.com/ipfs/boxo", "github.com/libp2p/go-libp2p":
			fmt.Fprintf(c.stdout, "%s %s\n", m.Path, m.Version)
		}
	}
	return nil
}
