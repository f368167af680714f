package pb

import (
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// A span crosses as a field and as metadata of a call, with all that the W3C has of it;
// one that nobody records does not cross, and takes no memory.
func TestTrace(t *testing.T) {
	state, err := trace.ParseTraceState("vendor=value,other=1")
	if err != nil {
		t.Fatal(err)
	}
	sent := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, 2}, SpanID: trace.SpanID{3}, TraceFlags: trace.FlagsSampled, TraceState: state,
	})
	ctx := trace.ContextWithSpanContext(t.Context(), sent)
	check := func(how string, got trace.SpanContext) {
		t.Helper()
		if !got.IsRemote() || !got.WithRemote(false).Equal(sent) {
			t.Errorf("%s: got %v, want %v of another process", how, got, sent)
		}
	}
	check("as a field", trace.SpanContextFromContext(TraceOf(ctx).Within(t.Context())))
	headers, _ := metadata.FromOutgoingContext(tell(ctx))
	check("with a call", trace.SpanContextFromContext(TraceOfCall(metadata.NewIncomingContext(t.Context(), headers))))

	if n := testing.AllocsPerRun(100, func() {
		if TraceOf(t.Context()) != nil || tell(t.Context()) != t.Context() || TraceOf(t.Context()).Within(t.Context()) != t.Context() {
			t.Error("outside of a trace: there is one")
		}
	}); n != 0 {
		t.Errorf("outside of a trace: memory is taken %v times, want 0", n)
	}
}

// What is no trace is none, and breaks nothing.
func TestBadTrace(t *testing.T) {
	good := TraceOf(trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{3}, TraceFlags: trace.FlagsSampled,
	}))).GetParent()
	for _, c := range []struct {
		name string
		*Trace
		valid bool
	}{
		{"good", &Trace{Parent: good}, true},
		{"bad state", &Trace{Parent: good, State: strings.Repeat("=", 1<<20)}, true},
		{"none", nil, false},
		{"empty", &Trace{}, false},
		{"state alone", &Trace{State: "a=b"}, false},
		{"short", &Trace{Parent: good[:len(good)-4]}, false},
		{"long", &Trace{Parent: strings.Repeat(good, 1000)}, false},
		{"no id", &Trace{Parent: "00-00000000000000000000000000000000-0300000000000000-01"}, false},
	} {
		if got := trace.SpanContextFromContext(c.Trace.Within(t.Context())); got.IsValid() != c.valid {
			t.Errorf("%s: got %v, valid is %v, want %v", c.name, got, got.IsValid(), c.valid)
		}
	}
}
