package daemon

import (
	"cmp"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"

	"github.com/codexchange/codexchange/plugin/logging"
)

const (
	// subsystem is the name of this program's own log.
	subsystem = "codexchange"
	// pluginSubsystem begins the names of those of its plugins.
	pluginSubsystem = "plugin/"
)

// Logger is the log of the process, kept by go-log as those of boxo and libp2p are:
// standard error, text on a terminal and JSON by GOLOG_LOG_FMT=json; see go-log for
// GOLOG_FILE and GOLOG_OUTPUT. Levels are by subsystem, in GOLOG_LOG_LEVEL and by
// go-log's SetLogLevel at any time: "codexchange" is the node, "plugin/NAME" what a
// plugin says and what happens to it. These two say what is "info" and above unless
// GOLOG_LOG_LEVEL has a level for them or for all, others only errors.
func Logger() *slog.Logger {
	setUpLogs()
	return slog.New(newSubsystem(subsystem))
}

// setUpLogs leads slog's default and libp2p's logs to go-log, once in a process.
var setUpLogs = sync.OnceFunc(func() {
	gologshim.SetDefaultHandler(logging.Handler())
	slog.SetDefault(slog.New(newSubsystem(subsystem)))
})

// begun are the subsystems that have been given the level they begin with, by name.
var begun sync.Map

// newSubsystem is the handler of a subsystem.
func newSubsystem(name string) slog.Handler {
	if _, again := begun.LoadOrStore(name, true); !again && !levelSet(name) {
		_ = golog.SetLogLevel(name, "info") // fails for unknown levels alone
	}
	return byPlugin{logging.Handler().WithAttrs([]slog.Attr{slog.String(logging.Subsystem, name)}), nil}
}

// levelSet reports whether the environment, as go-log reads it, has a level for a
// subsystem, or for all.
func levelSet(name string) bool {
	for level := range strings.SplitSeq(cmp.Or(os.Getenv("GOLOG_LOG_LEVEL"), os.Getenv("IPFS_LOGGING")), ",") {
		if of, _, ok := strings.Cut(level, "="); level != "" && (!ok || of == name) {
			return true
		}
	}
	return false
}

// byPlugin gives each plugin a subsystem of its own: package plugin names it in an
// attribute.
type byPlugin struct {
	slog.Handler
	attrs []slog.Attr // that the Handler has
}

func (h byPlugin) WithAttrs(attrs []slog.Attr) slog.Handler {
	all := slices.Concat(h.attrs, attrs)
	for _, a := range attrs {
		if a.Key == "plugin" {
			return newSubsystem(pluginSubsystem + a.Value.String()).(byPlugin).Handler.WithAttrs(all)
		}
	}
	return byPlugin{h.Handler.WithAttrs(attrs), all}
}

func (h byPlugin) WithGroup(name string) slog.Handler {
	return byPlugin{h.Handler.WithGroup(name), h.attrs}
}
