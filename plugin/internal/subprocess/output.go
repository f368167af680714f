package subprocess

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// maxHostLine is how much of a line of a plugin the host holds, bytes; a
	// longer one becomes several records.
	maxHostLine = 1 << 20
	// maxWords is how much is kept of what a plugin has said last, bytes.
	maxWords = 16 << 10
)

// output turns what a plugin writes into records of the host's log, and keeps
// its last words. Its methods may be called from any goroutine.
type output struct {
	log *slog.Logger

	mu       sync.Mutex
	words    []byte // text, not log lines; since the last panic began, if one has
	panicked bool   // a panic has begun
	inPanic  bool   // and no log line has come since
}

// stderr takes one line of standard error.
func (o *output) stderr(line []byte) {
	if r, ok := parse(line); ok {
		o.mu.Lock()
		o.inPanic = false
		o.mu.Unlock()
		o.handle(r)
		return
	}
	if len(bytes.TrimSpace(line)) == 0 {
		o.keep(line, false)
		return
	}
	text := strings.ToValidUTF8(string(line), "\uFFFD")
	level := slog.LevelInfo
	for _, l := range []string{"TRACE", "DEBUG", "INFO", "WARN", "ERROR"} {
		if strings.HasPrefix(text, "["+l+"]") {
			level = parseLevel(l)
		}
	}
	if o.keep(line, beginsPanic(text)) {
		level = slog.LevelError
	}
	o.text(level, text, "stderr")
}

// stdout takes one line of standard output after the handshake.
func (o *output) stdout(line []byte) {
	if len(bytes.TrimSpace(line)) > 0 {
		o.text(slog.LevelInfo, strings.ToValidUTF8(string(line), "\uFFFD"), "stdout")
	}
}

func (o *output) text(level slog.Level, text, stream string) {
	r := slog.NewRecord(time.Now(), level, text, 0)
	r.AddAttrs(slog.String("stream", stream))
	o.handle(r)
}

func (o *output) handle(r slog.Record) {
	h := o.log.Handler()
	if ctx := context.Background(); h.Enabled(ctx, r.Level) {
		_ = h.Handle(ctx, r)
	}
}

// keep adds a line to the last words: those of a panic from its first line on,
// because what it says and where comes first, and otherwise the last ones. It
// reports whether the line is part of a panic.
func (o *output) keep(line []byte, begins bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if begins && !o.inPanic {
		o.panicked, o.inPanic, o.words = true, true, o.words[:0]
	}
	o.words = append(append(o.words, line[:min(len(line), maxWords)]...), '\n')
	if over := len(o.words) - maxWords; over > 0 && o.panicked {
		o.words = o.words[:maxWords]
	} else if over > 0 {
		o.words = append(o.words[:0], o.words[over:]...)
	}
	return o.inPanic
}

// lastWords is what the plugin has said last, without log lines, and whether it
// was a panic.
func (o *output) lastWords() (words string, panicked bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.ToValidUTF8(strings.TrimSpace(string(o.words)), "\uFFFD"), o.panicked
}

// beginsPanic reports whether a line of text is the first of what the Go runtime,
// or the race detector, writes when a program goes wrong.
func beginsPanic(text string) bool {
	for _, p := range []string{"panic: ", "fatal error: ", "runtime: ", "SIG", "unexpected fault address", "WARNING: DATA RACE"} {
		if strings.HasPrefix(text, p) {
			return true
		}
	}
	return false
}

// A lockedSplitter is for go-plugin, which brings what the plugin writes to
// os.Stdout and os.Stderr after the handshake from a goroutine that nobody waits
// for.
type lockedSplitter struct {
	mu sync.Mutex
	s  splitter
}

func newLockedSplitter(line func([]byte)) *lockedSplitter {
	return &lockedSplitter{s: splitter{max: maxHostLine, line: line}}
}

func (l *lockedSplitter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s.Write(p)
}

func (l *lockedSplitter) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.flush()
}

// hclogTo is a logger for go-plugin itself. Everything it says comes at the
// level of the record, but at most at the given one.
func hclogTo(log *slog.Logger, most slog.Level) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(sink{log: log, most: most})
	return l
}

type sink struct {
	log  *slog.Logger
	most slog.Level
}

// Accept is called by hclog for each record.
func (s sink) Accept(name string, level hclog.Level, msg string, args ...any) {
	if name != "" {
		args = append(args, "logger", name)
	}
	s.log.Log(context.Background(), min(parseLevel(level.String()), s.most), msg, args...)
}
