// Package spans makes the spans of this project: steps of requests that somebody
// traces with OpenTelemetry. A step is recorded within a trace that is recorded
// already, in this process or in the one that asks, and never begins one. So who
// wants to see a request gives it a context with a span, and to everybody else
// spans cost a look into the context, and no memory.
//
// Where spans are sent is decided by the process, see package plugin/tracing.
package spans

import (
	"context"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// scope is who makes the spans, as OpenTelemetry has it.
const scope = "github.com/codexchange/codexchange"

// A Span is a step under way, or nothing at all, as its zero value is. Who started
// it ends it, once. Its methods may be called from any goroutine.
type Span struct{ span trace.Span }

// Start begins a step of what ctx is part of, and returns the context for what
// belongs to it. If that is not recorded, both are as nothing.
func Start(ctx context.Context, name string) (context.Context, Span) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, Span{}
	}
	ctx, span := otel.Tracer(scope).Start(ctx, name)
	return ctx, Span{span}
}

// Recorded reports whether anybody sees the span.
func (s Span) Recorded() bool { return s.span != nil && s.span.IsRecording() }

// Cid says which block, or which tree, the step is about.
func (s Span) Cid(c cid.Cid) {
	if s.Recorded() && c.Defined() {
		s.span.SetAttributes(attribute.String("cid", c.String()))
	}
}

// Peer says which peer the step is about.
func (s Span) Peer(p peer.ID) {
	if s.Recorded() {
		s.span.SetAttributes(attribute.String("peer", p.String()))
	}
}

// Count says how many there are of something.
func (s Span) Count(what string, n int) {
	if s.Recorded() {
		s.span.SetAttributes(attribute.Int(what, n))
	}
}

// End ends the step; err is why it has failed, nil if it has not.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End()
}
