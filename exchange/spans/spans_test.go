package spans

import (
	"context"
	"errors"
	"testing"

	"github.com/ipfs/go-cid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

var key = cid.MustParse("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")

// step is a step with all that can be said of it.
func step(ctx context.Context, err error) {
	_, span := Start(ctx, "step")
	span.Cid(key)
	span.Peer("peer")
	span.Count("blocks", 3)
	span.End(err)
}

// A step is recorded within a trace, with what it is about and how it ended; where
// nobody records it there is nothing, and it takes no memory.
func TestStart(t *testing.T) {
	seen := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(seen))
	otel.SetTracerProvider(provider)
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })

	if n := testing.AllocsPerRun(100, func() { step(t.Context(), nil) }); n != 0 {
		t.Errorf("a step that nobody records takes memory %v times, want 0", n)
	}
	if got := seen.GetSpans(); len(got) != 0 {
		t.Errorf("outside of a trace: got %d spans, want none", len(got))
	}

	ctx, root := provider.Tracer("test").Start(t.Context(), "root")
	step(ctx, nil)
	step(ctx, errors.New("no luck"))
	root.End()
	got := seen.GetSpans()
	if len(got) != 3 {
		t.Fatalf("in a trace: got %d spans, want two and the root", len(got))
	}
	for _, s := range got[:2] {
		if s.Parent.SpanID() != root.SpanContext().SpanID() || s.Name != "step" || len(s.Attributes) != 3 {
			t.Errorf("got %s of %v with %v, want step of %v with cid, peer and blocks", s.Name, s.Parent.SpanID(), s.Attributes, root.SpanContext().SpanID())
		}
	}
	if got[0].Status.Code != codes.Unset || got[1].Status.Code != codes.Error || got[1].Status.Description != "no luck" {
		t.Errorf("statuses are %v and %v, want none, and an error", got[0].Status, got[1].Status)
	}
}
