package daemon

import (
	"context"
	"net/http"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"github.com/codexchange/codexchange/plugin/tracing"
)

// startTracing sends the spans of the process, which are those of requests and of
// what boxo, the exchanges and the plugins' hosts do for them, to where the OTEL_*
// environment says. Each plugin sends its own. What is returned sends the rest.
func startTracing(ctx context.Context) (end func() error, err error) {
	return tracing.Start(ctx, "", version())
}

// traced makes each request that h answers a trace, or a part of the one that its
// headers say. The trace is called after the server and what is asked of it.
func traced(h http.Handler, server string, asked func(*http.Request) string) http.Handler {
	return otelhttp.NewHandler(h, server, otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
		return server + " " + asked(r)
	}))
}

// command is the command that a request gives, such as block/get. That is asked before
// and after go-ipfs-cmds has cut the path.
func command(r *http.Request) string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, apiPath), "/")
}

// method is the method of a request.
func method(r *http.Request) string { return r.Method }
