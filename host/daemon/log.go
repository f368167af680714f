package daemon

import (
	"log/slog"
	"os"
	"sync"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
)

const (
	// subsystem is the name of this program's own log.
	subsystem = "codexchange"
	// pluginSubsystem begins the names of those of its plugins.
	pluginSubsystem = "plugin/"
	// subsystemKey is the attribute by which go-log knows a subsystem.
	subsystemKey = "logger"
)

// Logger is the log of the process, kept by go-log as those of boxo and libp2p are:
// standard error, text on a terminal and JSON by GOLOG_LOG_FMT=json; see go-log for
// GOLOG_FILE and GOLOG_OUTPUT. Levels are by subsystem, in GOLOG_LOG_LEVEL and by
// go-log's SetLogLevel at any time: "codexchange" is the node, "plugin/NAME" what a
// plugin says and what happens to it. If GOLOG_LOG_LEVEL is not set these two say
// what is "info" and above, all others only errors.
func Logger() *slog.Logger {
	setUpLogs()
	return slog.New(newSubsystem(subsystem))
}

// setUpLogs leads slog's default and libp2p's logs to go-log, once in a process.
var setUpLogs = sync.OnceFunc(func() {
	gologshim.SetDefaultHandler(golog.SlogHandler())
	slog.SetDefault(slog.New(newSubsystem(subsystem)))
})

// newSubsystem is the handler of a subsystem.
func newSubsystem(name string) slog.Handler {
	if os.Getenv("GOLOG_LOG_LEVEL") == "" && os.Getenv("IPFS_LOGGING") == "" {
		golog.SetLogLevel(name, "info") // fails for unknown levels alone
	}
	return byPlugin{golog.SlogHandler().WithAttrs([]slog.Attr{slog.String(subsystemKey, name)})}
}

// byPlugin gives each plugin a subsystem of its own: package plugin names it in an
// attribute.
type byPlugin struct{ slog.Handler }

func (h byPlugin) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "plugin" {
			return newSubsystem(pluginSubsystem + a.Value.String()).(byPlugin).Handler.WithAttrs(attrs)
		}
	}
	return byPlugin{h.Handler.WithAttrs(attrs)}
}

func (h byPlugin) WithGroup(name string) slog.Handler { return byPlugin{h.Handler.WithGroup(name)} }
