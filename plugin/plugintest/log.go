package plugintest

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// Log is a logger to the log of a test, from level info. What is logged when the
// test has ended is dropped: it would panic, and nobody reads it.
func Log(t testing.TB) *slog.Logger {
	w := &testLog{t: t}
	t.Cleanup(w.end)
	return slog.New(slog.NewTextHandler(w, nil))
}

// A testLog takes one line with each Write.
type testLog struct {
	mu sync.Mutex
	t  testing.TB // nil when the test has ended
}

func (l *testLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Log(string(bytes.TrimSuffix(line, []byte("\n"))))
	}
	return len(line), nil
}

func (l *testLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = nil
}
