// Package logging leads slog to go-log, which keeps the logs of boxo and libp2p, in
// the host and in plugins alike. Where lines go, and who sees them, is the business
// of whoever sets up go-log.
package logging

import (
	"context"
	"log/slog"
	"slices"

	golog "github.com/ipfs/go-log/v2"
)

// Subsystem is the attribute by which go-log knows a subsystem.
const Subsystem = "logger"

// Handler is go-log's handler for slog, with two things mended: an error is told by
// its text, where go-log would show its fields, which is {} as a rule; and go-log
// lists the subsystems that log through it as it lists its own.
func Handler() slog.Handler { return handler{golog.SlogHandler()} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(told(a))
		return true
	})
	return h.Handler.Handle(ctx, out)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	attrs = slices.Clone(attrs)
	for i, a := range attrs {
		if a.Key == Subsystem {
			golog.Logger(a.Value.String())
		}
		attrs[i] = told(a)
	}
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }

// told is an attribute whose errors are texts.
func told(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			a.Value = slog.StringValue(err.Error())
		}
	case slog.KindGroup:
		group := slices.Clone(v.Group())
		for i := range group {
			group[i] = told(group[i])
		}
		a.Value = slog.GroupValue(group...)
	}
	return a
}
