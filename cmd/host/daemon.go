package main

import (
	"os"

	cmds "github.com/ipfs/go-ipfs-cmds"
	cmdcli "github.com/ipfs/go-ipfs-cmds/cli"
	golog "github.com/ipfs/go-log/v2"

	"github.com/codexchange/codexchange/host/commands"
	"github.com/codexchange/codexchange/host/daemon"
)

func daemonCommand() *cmds.Command {
	const (
		initOption = "init"
		gcOption   = "enable-gc"
	)
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Run the node.",
			ShortDescription: `
Runs the node until it is interrupted, or 'host shutdown' stops it: connects to peers,
fetches and serves blocks, and serves commands under /api/v0 and files on the gateway,
at the addresses that the configuration names. Other commands on the same repo
are run by it.

The log goes to stderr; GOLOG_LOG_LEVEL sets its levels, such as
"error,codexchange=debug".
`,
		},
		Options: []cmds.Option{
			cmds.BoolOption(initOption, "Make the repo first if there is none."),
			cmds.BoolOption(gcOption, "Remove what no pin keeps when the repo takes more than Datastore.StorageGCWatermark percent of Datastore.StorageMax; looks each Datastore.GCPeriod."),
		},
		NoRemote: true,
		Extra:    commands.Orderly(),
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, env cmds.Environment) error {
			outlivePipes()
			if debug, _ := req.Options["debug"].(bool); debug {
				os.Setenv("GOLOG_LOG_LEVEL", "debug") // which package daemon, and plugins, look at
				c := golog.GetConfig()
				c.Level, c.SubsystemLevels = golog.LevelDebug, nil
				golog.SetupLogging(c)
			}
			makeRepo, _ := req.Options[initOption].(bool)
			enableGC, _ := req.Options[gcOption].(bool)
			return daemon.Run(req.Context, daemon.Options{
				RepoDir:  env.(*commands.Env).Dir(),
				Init:     makeRepo,
				EnableGC: enableGC,
				Out:      re.(cmdcli.ResponseEmitter).Stdout(),
			})
		},
	}
}
