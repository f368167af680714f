package commands

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	logging "github.com/ipfs/go-log/v2"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/codexchange/codexchange/host/repo"
)

func statsCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Numbers about the node.",
			ShortDescription: "'host exchange stat' tells what the exchanges have moved, and the daemon serves metrics for Prometheus at /debug/metrics/prometheus.",
		},
		Subcommands: map[string]*cmds.Command{"bw": bandwidthCommand(), "repo": repoStatCommand()},
	}
}

func logCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Levels of the log.",
			ShortDescription: "The log of the daemon goes to stderr. GOLOG_LOG_LEVEL sets its levels at the start, 'host log level' while it runs.",
		},
		Subcommands: map[string]*cmds.Command{
			"level": logLevelCommand(),
			"ls":    logLsCommand(),
		},
	}
}

// LogLevelOutput is the levels of subsystems, or what was changed.
type LogLevelOutput struct {
	Levels  map[string]string `json:",omitempty"`
	Message string            `json:",omitempty"`
}

func logLevelCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Show or set levels.",
			ShortDescription: `
Without a level shows that of a subsystem, or of "all"; without a subsystem the
level of those that have none of their own. A new level holds until the daemon ends.

  host log level bitswap debug
  host log level all warn
`,
		},
		Arguments: []cmds.Argument{
			cmds.StringArg("subsystem", false, false, "The subsystem; 'host log ls' lists them. all or * is all of them."),
			cmds.StringArg("level", false, false, "debug, info, warn, error, dpanic, panic, fatal, or default."),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
			var subsystem, level string
			switch args := req.Arguments; len(args) {
			case 2:
				subsystem, level = args[0], args[1]
			case 1:
				subsystem = args[0]
			}
			all := subsystem == "all" || subsystem == "*"
			if all {
				subsystem = "*"
			}
			if level != "" {
				if level == "default" {
					level = logging.DefaultLevel().String()
				}
				if err := logging.SetLogLevel(subsystem, level); err != nil {
					return fmt.Errorf("set level of %s to %q: %w", subsystem, level, err)
				}
				return cmds.EmitOnce(re, &LogLevelOutput{Message: fmt.Sprintf("Changed log level of '%s' to '%s'\n", subsystem, level)})
			}
			out := &LogLevelOutput{Levels: make(map[string]string)}
			switch {
			case subsystem == "":
				out.Levels[logging.DefaultName] = logging.DefaultLevel().String()
			case all:
				maps.Copy(out.Levels, logging.SubsystemLevelNames())
				out.Levels["(default)"] = out.Levels[logging.DefaultName]
				delete(out.Levels, logging.DefaultName)
			default:
				l, err := logging.SubsystemLevelName(subsystem)
				if err != nil {
					return fmt.Errorf("level of %q: %w: 'host log ls' lists the subsystems", subsystem, err)
				}
				out.Levels[subsystem] = l
			}
			return cmds.EmitOnce(re, out)
		},
		Type: LogLevelOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *LogLevelOutput) error {
				if out.Message != "" {
					_, err := io.WriteString(w, out.Message)
					return err
				}
				for _, s := range slices.Sorted(maps.Keys(out.Levels)) {
					line := out.Levels[s]
					if len(out.Levels) > 1 {
						line = s + ": " + line
					}
					if _, err := fmt.Fprintln(w, line); err != nil {
						return err
					}
				}
				return nil
			}),
		},
	}
}

func logLsCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "List the subsystems that log."},
		NoLocal:  true,
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
			out := &stringList{Strings: logging.GetSubsystems()}
			slices.Sort(out.Strings)
			return cmds.EmitOnce(re, out)
		},
		Type:     stringList{},
		Encoders: listText(),
	}
}

func diagCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "What to attach to a bug report."},
		Subcommands: map[string]*cmds.Command{
			"sys":     diagSysCommand(),
			"profile": diagProfileCommand(),
		},
	}
}

func diagSysCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Describe this system.",
			ShortDescription: "Prints the version, the Go runtime, the disk and the network as JSON. No identity and no secrets are in it.",
		},
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			e := env(environment)
			addrs, err := manet.InterfaceMultiaddrs()
			if err != nil {
				return err
			}
			text := make([]string, len(addrs))
			for i, a := range addrs {
				text[i] = a.String()
			}
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			free, err := repo.FreeSpace(e.dir)
			disk := map[string]any{"free_space": free}
			if err != nil {
				disk = map[string]any{"error": err.Error()}
			}
			memory := map[string]any{"heap": mem.HeapAlloc, "virt": mem.Sys}
			if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
				memory["limit"] = limit
			}
			v := buildVersion()
			out := map[string]any{
				"codexchange_version": v.Version,
				"codexchange_commit":  v.Commit,
				"environment":         map[string]any{repo.EnvDir: os.Getenv(repo.EnvDir), "GOLOG_LOG_LEVEL": os.Getenv("GOLOG_LOG_LEVEL")},
				"diskinfo":            disk,
				"memory":              memory,
				"net":                 map[string]any{"interface_addresses": text, "online": e.shutdown != nil},
				"runtime": map[string]any{
					"os": runtime.GOOS, "arch": runtime.GOARCH, "compiler": runtime.Compiler, "version": runtime.Version(),
					"numcpu": runtime.NumCPU(), "gomaxprocs": runtime.GOMAXPROCS(0), "numgoroutines": runtime.NumGoroutine(),
				},
			}
			return cmds.EmitOnce(re, &out)
		},
		Type: map[string]any{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *map[string]any) error {
				e := json.NewEncoder(w)
				e.SetIndent("", "  ")
				return e.Encode(out)
			}),
		},
	}
}

func diagProfileCommand() *cmds.Command {
	const timeOption = "profile-time"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Collect profiles of the daemon.",
			ShortDescription: `
Writes a zip file with the stacks of all goroutines, the heap, the locks that were
waited for, and what the processor does while --profile-time passes. 'go tool pprof'
reads these. Stacks may tell what files are called; no identity and no blocks are
in them.
`,
		},
		Options: []cmds.Option{
			cmds.StringOption(outputOption, "o", "Where to write. Default: codexchange-profile-TIME.zip."),
			cmds.StringOption(timeOption, "How long to look at the processor; 0 is not at all.").WithDefault("30s"),
		},
		NoLocal: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
			text := option[string](req, timeOption)
			long, err := time.ParseDuration(text)
			if err != nil || long < 0 || long > time.Hour {
				return fmt.Errorf("--%s: got %q, want a time of up to an hour, such as 30s", timeOption, text)
			}
			re.SetEncodingType(cmds.OctetStream)
			re.SetContentType("application/zip")
			return emitStream(req.Context, re, func(w io.Writer) error { return profile(req.Context, w, long) })
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				r, done, err := emitted(res, "write profiles")
				if err != nil {
					return err
				}
				defer done()
				path := option[string](res.Request(), outputOption)
				if path == "" {
					path = "codexchange-profile-" + time.Now().Format("20060102-150405") + ".zip"
				}
				f, err := os.Create(path)
				if err != nil {
					return err
				}
				_, err = io.Copy(f, r)
				if err = errors.Join(err, f.Close()); err != nil {
					return err
				}
				_, err = fmt.Fprintf(re.(cli.ResponseEmitter).Stdout(), "Wrote profiles to: %s\n", path)
				return err
			},
		},
	}
}

// profile writes profiles of this process as a zip file.
func profile(ctx context.Context, w io.Writer, long time.Duration) error {
	z := zip.NewWriter(w)
	for _, p := range []struct {
		profile, file string
		debug         int
	}{
		{"goroutine", "goroutines.stacks", 2},
		{"goroutine", "goroutines.pprof", 0},
		{"heap", "heap.pprof", 0},
		{"allocs", "allocs.pprof", 0},
		{"mutex", "mutex.pprof", 0},
		{"block", "block.pprof", 0},
	} {
		f, err := z.Create(p.file)
		if err != nil {
			return err
		}
		if err := pprof.Lookup(p.profile).WriteTo(f, p.debug); err != nil {
			return err
		}
	}
	f, err := z.Create("version.json")
	if err != nil {
		return err
	}
	if err := json.NewEncoder(f).Encode(buildVersion()); err != nil {
		return err
	}
	if long > 0 {
		if f, err = z.Create("cpu.pprof"); err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("profile the processor: %w", err) // another looks at it already
		}
		timer := time.NewTimer(long)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		pprof.StopCPUProfile()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return z.Close()
}
