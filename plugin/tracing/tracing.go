// Package tracing sends the spans of a process to where the OTEL_* environment
// says, the host's and each plugin's alike. Which spans there are is decided where
// they are made, see package exchange/spans.
//
// Goroutines: OpenTelemetry has one per exporter. They end with the function that
// Start returns, which waits for them.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"time"

	boxo "github.com/ipfs/boxo/tracing"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// flushTimeout is how long the last spans may take to be sent.
const flushTimeout = 3 * time.Second

const (
	nameKey     = attribute.Key("service.name")
	defaultName = "codexchange"
)

// Start begins to send spans, if the environment says where to: OTEL_TRACES_EXPORTER
// is otlp, file, stdout or none, see package boxo/tracing. The service is called
// what the environment says, else "codexchange", and then part: "-plugin-NAME" for
// a plugin, nothing for the host. It is the whole process that is traced: there is
// one provider. What is returned sends the rest, within 3 s.
func Start(ctx context.Context, part, version string) (end func() error, err error) {
	const op = "start tracing"
	exporters, err := boxo.NewSpanExporters(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if len(exporters) == 0 {
		return func() error { return nil }, nil
	}
	about, err := service(ctx, part, version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
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

// service is what is said of the process. What the environment says of it wins,
// but for part.
func service(ctx context.Context, part, version string) (*resource.Resource, error) {
	about, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(nameKey.String(defaultName), attribute.String("service.version", version)),
		resource.WithFromEnv(),
	)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, err
	}
	if part == "" {
		return about, nil
	}
	name, _ := about.Set().Value(nameKey)
	return resource.Merge(about, resource.NewSchemaless(nameKey.String(name.AsString()+part)))
}
