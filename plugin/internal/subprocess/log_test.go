//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
)

// What a plugin logs appears in the host's log with its level, name and
// attributes; text appears too; nothing is lost because it is long, and nothing
// breaks because it is strange.
func TestLog(t *testing.T) {
	var log, raw logged
	p := start(t, Config{Log: log.logger(), Stderr: &raw})
	mustDo(t, p, "log")
	p.Kill()

	want := func(what string, m map[string]any) {
		t.Helper()
		for _, line := range log.lines(t) {
			if line["msg"] == m["msg"] {
				if fmt.Sprint(line) != fmt.Sprint(m) {
					t.Errorf("%s: line is\n%v, want\n%v", what, line, m)
				}
				return
			}
		}
		t.Errorf("%s: no line %q in the log", what, m["msg"])
	}
	want("attributes", map[string]any{"level": "DEBUG", "msg": "a debug line", "n": 7, "peer": "12D3", "block": map[string]any{"size": 65536, "held": true}})
	want("names", map[string]any{"level": "WARN", "msg": "a warning", "logger": "sub", "err": "why"})
	want("go-log", map[string]any{"level": "ERROR", "msg": "from go-log", "logger": "bitswap", "wants": 3})
	want("standard output", map[string]any{"level": "INFO", "msg": "noise on stdout", "stream": "stdout"})
	want("os.Stderr", map[string]any{"level": "INFO", "msg": "noise on os.Stderr", "stream": "stderr"})
	want("descriptor 1", map[string]any{"level": "INFO", "msg": "raw noise on stdout", "stream": "stdout"})
	want("descriptor 2", map[string]any{"level": "WARN", "msg": "[WARN] raw noise on stderr", "stream": "stderr"})
	want("a message that is no text", map[string]any{"level": "INFO", "msg": `{"@message":7,"@level":null}`, "stream": "stderr"})
	want("a long line of text", map[string]any{"level": "INFO", "msg": strings.Repeat("y", 200<<10), "stream": "stderr"})
	want("a long value", map[string]any{"level": "INFO", "msg": "a long line", "long": strings.Repeat("x", maxValue) + "... (102400 bytes)"})
	want("what comes afterwards", map[string]any{"level": "INFO", "msg": "the last line", "message": "of all", "took": "1.5s"})
	if !strings.Contains(raw.String(), `"@message":"the last line"`) {
		t.Errorf("the copy of standard error lacks the last line: %.300q", raw.String())
	}
}

// A line that is too long loses attributes, and stays a line that can be read.
func TestShorten(t *testing.T) {
	var b bytes.Buffer
	w := &lineWriter{w: &b}
	log := slog.New(jsonHandler(w, slog.LevelInfo))
	args := []any{"logger", "sub"}
	for i := range 100 {
		args = append(args, fmt.Sprintf("k%d", i), strings.Repeat("\x01", 1000))
	}
	log.Warn("many", args...)
	if n := b.Len(); n > MaxLine || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("written are %d bytes, want one line of at most %d", n, MaxLine)
	}
	r, ok := parse(b.Bytes())
	got := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { got[a.Key] = a.Value.String(); return true })
	if !ok || r.Message != "many" || r.Level != slog.LevelWarn || got["logger"] != "sub" || got["k0"] == "" || got["cut_bytes"] == "" {
		t.Errorf("line is %q at %v with %v, want many with a logger, k0 and cut_bytes", r.Message, r.Level, maps.Keys(got))
	}
	b.Reset()
	fmt.Fprint(w, strings.Repeat("text", MaxLine))
	if r, ok := parse(b.Bytes()); !ok || !strings.HasPrefix(r.Message, "texttext") || b.Len() > MaxLine {
		t.Errorf("text became %d bytes, %v, want a line", b.Len(), ok)
	}
}

// Lines are found wherever writes begin and end, and long ones come in pieces.
func TestSplitter(t *testing.T) {
	const text = "a\n\nlonger than eight\nend"
	want := "a||longer t|han eigh|t|end"
	for n := 1; n <= len(text); n++ {
		var got []string
		s := splitter{max: 8, line: func(l []byte) { got = append(got, string(l)) }}
		for b := []byte(text); len(b) > 0; {
			part := b[:min(n, len(b))]
			if m, err := s.Write(part); m != len(part) || err != nil {
				t.Fatalf("write: %d, %v, want %d", m, err, len(part))
			}
			b = b[len(part):]
		}
		s.flush()
		if strings.Join(got, "|") != want {
			t.Errorf("in writes of %d: %q, want %q", n, strings.Join(got, "|"), want)
		}
	}
}

// Of a panic the beginning is kept, of other text the end, and no more than
// there is room for.
func TestLastWords(t *testing.T) {
	o := &output{log: new(logged).logger()}
	for i := range 10000 {
		o.stderr(fmt.Appendf(nil, "text %d", i))
	}
	if words, panicked := o.lastWords(); panicked || !strings.HasSuffix(words, "text 9999") || len(words) > maxWords {
		t.Errorf("last words are %d bytes that end with %q", len(words), words[max(0, len(words)-20):])
	}
	o.stderr([]byte("panic: why"))
	for i := range 10000 {
		o.stderr(fmt.Appendf(nil, "frame %d", i))
	}
	if words, panicked := o.lastWords(); !panicked || !strings.HasPrefix(words, "panic: why\nframe 0\n") || len(words) > maxWords {
		t.Errorf("last words are %d bytes that begin with %q", len(words), words[:20])
	}
}

// Whatever a plugin writes to standard error costs the host nothing but a record.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"@message":"m","@level":"warn","@timestamp":"2026-01-02T15:04:05.000000Z","@module":"a","k":{"x":[1,2.5e400,null]}}`))
	f.Add([]byte(`{"@message":{},"@timestamp":1}`))
	f.Add([]byte(strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20)))
	f.Fuzz(func(t *testing.T, line []byte) {
		o := &output{log: slog.New(slog.DiscardHandler)}
		o.stderr(line)
		if r, ok := parse(line); ok {
			_ = jsonHandler(new(bytes.Buffer), levelTrace).Handle(t.Context(), r)
		}
	})
}
