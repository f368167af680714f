package exchange

import (
	"context"
	"errors"

	"github.com/ipfs/go-cid"
	"go.opentelemetry.io/otel/trace"

	"github.com/codexchange/codexchange/exchange/spans"
	"github.com/codexchange/codexchange/exchange/wire"
)

// errLeft is what the span of a request says that has ended before everything came
// and was taken.
var errLeft = errors.New("the rest has not come, or was not taken")

// traceMany begins the span of a request for blocks, or for leaves. There is at
// least one want.
func traceMany(ctx context.Context, wants []wire.Want) (_ context.Context, span spans.Span) {
	if wants[0].Leaf {
		ctx, span = spans.Start(ctx, "exchange.GetLeaves")
		span.Cid(wants[0].Root)
	} else {
		ctx, span = spans.Start(ctx, "exchange.GetBlocks")
		span.Count("blocks", len(wants))
	}
	return ctx, span
}

// A traced is a request that somebody traces: its span, and what it asks for, so that
// searches for that are shown as a part of it. It never changes.
type traced struct {
	span  trace.SpanContext
	wants []wire.Want
}

// newTraced is nil if nobody traces the request that ctx is of.
func newTraced(ctx context.Context, wants []wire.Want) *traced {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsSampled() {
		return nil
	}
	return &traced{span, wants}
}

func (t *traced) asksFor(root cid.Cid) bool {
	if t != nil {
		for _, w := range t.wants {
			if w.Root == root {
				return true
			}
		}
	}
	return false
}

// searchContext is that of a search: a part of a request for the same, if there is one
// that is traced.
func (l *loop) searchContext(key cid.Cid) context.Context {
	for _, g := range l.getters {
		if g.traced.asksFor(key) {
			return trace.ContextWithSpanContext(l.ctx, g.traced.span)
		}
	}
	return l.ctx
}
