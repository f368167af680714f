package pb

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// A trace crosses as the W3C has it: in the headers of a call, as everywhere in gRPC,
// and in a field of a request that is no call of its own.
const (
	traceParent = "traceparent"
	traceState  = "tracestate"
)

var traces propagation.TraceContext

// TraceOf is the span of ctx as a field of a message, nil if that is not recorded.
func TraceOf(ctx context.Context) *Trace {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	carrier := make(propagation.MapCarrier, 2)
	traces.Inject(ctx, carrier)
	return &Trace{Parent: carrier[traceParent], State: carrier[traceState]}
}

// Within is ctx as a part of the trace; as it is if t is nil or makes no sense.
func (t *Trace) Within(ctx context.Context) context.Context {
	if t.GetParent() == "" {
		return ctx
	}
	return traces.Extract(ctx, propagation.MapCarrier{traceParent: t.GetParent(), traceState: t.GetState()})
}

// TraceOfCall is the context of a call that a server serves, as a part of the
// trace that its client is part of, if there is one.
func TraceOfCall(ctx context.Context) context.Context {
	parent := metadata.ValueFromIncomingContext(ctx, traceParent)
	if len(parent) != 1 {
		return ctx
	}
	t := Trace{Parent: parent[0]}
	if state := metadata.ValueFromIncomingContext(ctx, traceState); len(state) == 1 {
		t.State = state[0]
	}
	return t.Within(ctx)
}

// TraceCalls has the trace of a call's context told to the server.
func TraceCalls() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			return invoke(tell(ctx), method, req, reply, cc, o...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(tell(ctx), desc, cc, method, o...)
		}),
	}
}

func tell(ctx context.Context) context.Context {
	t := TraceOf(ctx)
	if t == nil {
		return ctx
	}
	ctx = metadata.AppendToOutgoingContext(ctx, traceParent, t.GetParent())
	if state := t.GetState(); state != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, traceState, state)
	}
	return ctx
}
