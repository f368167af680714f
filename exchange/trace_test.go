package exchange_test

import (
	"context"
	"testing"

	"github.com/ipfs/go-cid"
	"go.opentelemetry.io/otel"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// tracing has what is traced kept in memory during a test.
func tracing(t *testing.T) *tracetest.InMemoryExporter {
	seen := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(seen))
	otel.SetTracerProvider(provider)
	t.Cleanup(func() {
		otel.SetTracerProvider(noop.NewTracerProvider())
		_ = provider.Shutdown(context.Background())
	})
	return seen
}

// Of a request that somebody traces one sees the request, the search for what it
// wants, and the dials of the search, in one another; of other requests nothing.
func TestTrace(t *testing.T) {
	seen := tracing(t)
	list := makeBlocks(1, 2, 1000)
	play(t, func(s *stage) {
		seeder := s.node("seeder")
		seeder.has(list...)
		n, _, router := s.searcher()
		router.Provide(list[0].Cid(), info("seeder"))
		ctx, root := otel.Tracer("test").Start(s.Context(), "root")
		s.getting(ctx, n, list[0].Cid()).gets("a provider has it", list[0])
		s.getting(s.Context(), n, list[1].Cid()).gets("and another, which nobody traces", list[1])
		ch, err := n.GetBlocks(ctx, []cid.Cid{list[1].Cid()})
		if err != nil {
			s.Fatal(err)
		}
		for range ch {
		}
		root.End()
		n.Close()
	})

	parents := make(map[string]string) // by name
	names := map[trace.SpanID]string{}
	spans := seen.GetSpans()
	for _, span := range spans {
		names[span.SpanContext.SpanID()] = span.Name
	}
	for _, span := range spans {
		if _, twice := parents[span.Name]; twice {
			t.Errorf("there are two spans %s, want one", span.Name)
		}
		parents[span.Name] = names[span.Parent.SpanID()]
	}
	want := map[string]string{
		"root": "", "exchange.GetBlocks": "root", "exchange.GetBlock": "root",
		"exchange.FindProviders": "exchange.GetBlock", "exchange.Connect": "exchange.FindProviders",
	}
	for name, parent := range want {
		if got, ok := parents[name]; !ok || got != parent {
			t.Errorf("the span %s is there: %v, in %q, want it in %q", name, ok, got, parent)
		}
	}
	if len(parents) != len(want) {
		t.Errorf("spans and their parents are %v, want %v", parents, want)
	}
}
