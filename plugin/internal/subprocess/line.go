package subprocess

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"time"
)

// timeLayout is how hclog writes "@timestamp".
const timeLayout = "2006-01-02T15:04:05.000000Z07:00"

// levelTrace is hclog's level below debug.
const levelTrace = slog.LevelDebug - 4

// maxDepth is how deep objects in a log line become groups; below, they are text.
const maxDepth = 4

// A splitter cuts what is written to it into lines, without their ends. A line
// beyond max bytes comes in pieces, so nothing is lost and memory is bounded.
type splitter struct {
	max  int
	line func([]byte) // must not keep the bytes
	buf  []byte       // a line that has not ended
}

func (s *splitter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		if room := s.max - len(s.buf); len(part) > room {
			part, rest, ended = p[:room], p[room:], true
		}
		switch {
		case !ended:
			s.buf = append(s.buf, part...)
		case len(s.buf) == 0:
			s.line(part)
		default:
			s.line(append(s.buf, part...))
			s.buf = s.buf[:0]
		}
		p = rest
	}
	return n, nil
}

// flush ends a line that has not ended.
func (s *splitter) flush() {
	if len(s.buf) > 0 {
		s.line(s.buf)
	}
	s.buf = nil
}

// parse reads a log line in hclog's form: a JSON object with a "@message", and
// what else it says as attributes, in order. False if it is not one.
func parse(line []byte) (slog.Record, bool) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' || !json.Valid(line) {
		return slog.Record{}, false
	}
	r := slog.Record{Level: slog.LevelInfo}
	said := false
	err := members(line, func(key string, raw json.RawMessage) {
		var text string
		isText := json.Unmarshal(raw, &text) == nil
		switch {
		case key == "@message" && isText && !said:
			r.Message, said = text, true
		case key == "@level" && isText:
			r.Level = parseLevel(text)
		case key == "@timestamp" && isText:
			r.Time, _ = time.Parse(timeLayout, text)
		case key == "@module" && isText:
			r.AddAttrs(slog.String("logger", text))
		default:
			r.AddAttrs(slog.Attr{Key: strings.TrimPrefix(key, "@"), Value: value(raw, maxDepth)})
		}
	})
	if err != nil || !said {
		return slog.Record{}, false
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	return r, true
}

// members calls f with each member of a JSON object, in order.
func members(object []byte, f func(string, json.RawMessage)) error {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(err, errors.New("no object"))
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		f(key.(string), raw)
	}
	return nil
}

// value is a JSON value as that of an attribute.
func value(raw json.RawMessage, depth int) slog.Value {
	if raw[0] == '{' && depth > 0 {
		var group []slog.Attr
		err := members(raw, func(key string, raw json.RawMessage) {
			group = append(group, slog.Attr{Key: key, Value: value(raw, depth-1)})
		})
		if err == nil {
			return slog.GroupValue(group...)
		}
	}
	if raw[0] == '{' || raw[0] == '[' {
		return slog.StringValue(string(raw))
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return slog.StringValue(string(raw))
	}
	if n, ok := v.(json.Number); ok {
		if i, err := n.Int64(); err == nil {
			return slog.Int64Value(i)
		}
		if f, err := n.Float64(); err == nil {
			return slog.Float64Value(f)
		}
		return slog.StringValue(n.String())
	}
	return slog.AnyValue(v)
}

// parseLevel is the level of that name: hclog's, and zap's that are worse than
// an error.
func parseLevel(name string) slog.Level {
	switch strings.ToLower(name) {
	case "trace":
		return levelTrace
	case "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "dpanic", "panic", "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// levelName is how hclog writes a level.
func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "trace"
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	}
	return "error"
}
