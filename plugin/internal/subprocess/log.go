package subprocess

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
)

const (
	// MaxLine is how long a log line of a plugin is at most, bytes. Readers that
	// are not ours take up to 64 KiB.
	MaxLine = 60 << 10
	// maxValue is how long a text in it is at most, bytes.
	maxValue = 4 << 10
	// maxCut is how much text remains of a line that was too long. Escaping makes
	// at most six bytes of one.
	maxCut = MaxLine/6 - 1<<10
)

var (
	logLevel slog.LevelVar // info at first
	// stderr is standard error itself: go-plugin puts something else into os.Stderr.
	stderr = &lineWriter{w: os.Stderr}
	logger = sync.OnceValue(func() *slog.Logger { return slog.New(jsonHandler(stderr, &logLevel)) })
)

// Log is the log of a plugin: JSON lines on standard error, in the form of hclog,
// which the host logs under the plugin's name. A text beyond 4 KiB is cut, and a
// line beyond MaxLine loses attributes; "cut_bytes" says so. In a process that is
// not a plugin it writes the same lines.
func Log() *slog.Logger { return logger() }

// SetLogLevel sets the lowest level that Log writes; it begins with info. The
// levels of go-log are those of GOLOG_LOG_LEVEL.
func SetLogLevel(l slog.Level) { logLevel.Set(l) }

// jsonHandler writes records in the form of hclog.
func jsonHandler(w io.Writer, level slog.Leveler) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: replace})
}

// replace gives an attribute the name that it has with hclog, and cuts it.
func replace(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch a.Key {
		case slog.TimeKey:
			if a.Value.Kind() == slog.KindTime {
				return slog.String("@timestamp", a.Value.Time().Format(timeLayout))
			}
		case slog.LevelKey:
			if l, ok := a.Value.Any().(slog.Level); ok {
				return slog.String("@level", levelName(l))
			}
		case slog.MessageKey:
			a.Key = "@message"
		}
	}
	switch v := a.Value.Any().(type) {
	case string:
		a.Value = slog.StringValue(clip(v))
	case time.Duration:
		a.Value = slog.StringValue(v.String())
	case error:
		a.Value = slog.StringValue(clip(v.Error()))
	case fmt.Stringer:
		if a.Value.Kind() == slog.KindAny {
			a.Value = slog.StringValue(clip(v.String()))
		}
	}
	return a
}

func clip(s string) string {
	if len(s) <= maxValue {
		return s
	}
	return fmt.Sprintf("%s... (%d bytes)", s[:maxValue], len(s))
}

// zapCore writes what goes through zap, as go-log does, in the form of hclog.
func zapCore() zapcore.Core {
	return zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		MessageKey: "@message", LevelKey: "@level", TimeKey: "@timestamp", NameKey: "@module",
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeTime:     zapcore.TimeEncoderOfLayout(timeLayout),
		EncodeDuration: zapcore.StringDurationEncoder,
	}), zapcore.AddSync(stderr), zapcore.DebugLevel)
}

// A lineWriter writes lines whole, one at a time, and none that is too long. Each
// Write is a line.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) Write(line []byte) (int, error) {
	n := len(line)
	if n > MaxLine {
		line = shorten(line)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.w.Write(line); err != nil {
		return 0, err
	}
	return n, nil
}

// shorten is a log line with as many of its attributes as there is room for.
func shorten(line []byte) []byte {
	r, ok := parse(line)
	if !ok {
		r = slog.NewRecord(time.Now(), slog.LevelInfo, string(line[:maxCut]), 0)
	}
	short := slog.NewRecord(r.Time, r.Level, clip(r.Message), 0)
	room := maxCut - len(short.Message)
	r.Attrs(func(a slog.Attr) bool {
		a.Value = slog.StringValue(clip(a.Value.String()))
		room -= len(a.Key) + len(a.Value.String())
		if room >= 0 {
			short.AddAttrs(a)
		}
		return room >= 0
	})
	short.AddAttrs(slog.Int("cut_bytes", len(line)))
	var b bytes.Buffer
	_ = jsonHandler(&b, levelTrace).Handle(context.Background(), short)
	return b.Bytes()
}
