package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/boxo/tracing"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// flushTimeout is how long the last spans may take to be sent.
const flushTimeout = 5 * time.Second

// startTracing sends the spans of the process, which are boxo's and those of each
// request, to where the OTEL_* environment says; see package boxo/tracing for
// OTEL_TRACES_EXPORTER. It is the whole process that is traced: there is one
// provider. What is returned sends the rest.
func startTracing(ctx context.Context) (end func() error, err error) {
	exporters, err := tracing.NewSpanExporters(ctx)
	if err != nil {
		return nil, fmt.Errorf("start tracing: %w", err)
	}
	if len(exporters) == 0 {
		return func() error { return nil }, nil
	}
	// What the environment says of the service comes last, and wins.
	about, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "codexchange"), attribute.String("service.version", version())),
		resource.WithFromEnv(),
	)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("start tracing: %w", err)
	}
	options := []trace.TracerProviderOption{trace.WithResource(about)}
	for _, e := range exporters {
		options = append(options, trace.WithBatcher(e))
	}
	provider := trace.NewTracerProvider(options...)
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			return fmt.Errorf("send the last spans: %w", err)
		}
		return nil
	}, nil
}
