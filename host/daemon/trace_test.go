package daemon

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

// A span is one line of what the exporter writes into a file.
type span struct {
	Name        string
	SpanContext struct{ TraceID, SpanID string }
	Parent      struct{ SpanID string }
	Resource    []struct {
		Key   string
		Value struct{ Value any }
	}
}

// service is what the process that made a span is called.
func (s span) service() any {
	for _, r := range s.Resource {
		if r.Key == "service.name" {
			return r.Value.Value
		}
	}
	return nil
}

// readSpans are those in a file, by id.
func readSpans(t *testing.T, path string) map[string]span {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	spans := make(map[string]span)
	for d := json.NewDecoder(f); ; {
		var s span
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			return spans
		} else if err != nil {
			t.Fatal(err)
		}
		spans[s.SpanContext.SpanID] = s
	}
}

// A request is a trace, from the server through boxo and the boundary into the
// exchange of the plugin, sent to where the environment says before the daemon has
// ended.
func TestTracing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "traces.json")
	t.Setenv("OTEL_TRACES_EXPORTER", "file")
	t.Setenv("OTEL_EXPORTER_FILE_PATH", path)
	t.Setenv("OTEL_SERVICE_NAME", "a-name-of-our-own")
	d := start(t, func(c *repo.Config, _ *patience) {
		c.Exchange.Use = []string{repo.Blockexc}
		c.Exchange.Plugins = map[string]repo.Plugin{repo.Blockexc: {}} // in a process of its own
	})
	root := neighbour(t, d, host.Blockexc)
	d.do("GET", d.gateway+"/ipfs/"+root.String()+"?format=raw", nil).want(t, "the block", http.StatusOK)
	d.do("POST", d.api+"/api/v0/version", nil).want(t, "version", http.StatusOK)
	d.stop()

	spans := readSpans(t, path)
	names := make(map[string]span)
	for _, s := range spans {
		names[s.Name] = s
	}
	leaf, ok := names["exchange.GetBlock"]
	if !ok {
		t.Fatalf("there is no span exchange.GetBlock; there are %q", slices.Sorted(maps.Keys(names)))
	}
	// From the leaf up to the request.
	const ours, plugins = "a-name-of-our-own", "a-name-of-our-own-plugin-blockexc"
	way := map[string]any{}
	for s, more := leaf, true; more; s, more = spans[s.Parent.SpanID] {
		if s.SpanContext.TraceID != leaf.SpanContext.TraceID {
			t.Errorf("%s is of another trace than what is a part of it", s.Name)
		}
		way[s.Name] = s.service()
	}
	for name, service := range map[string]any{
		"gateway GET": ours, "plugin.Client.GetBlock": ours, "plugin.Server.GetBlock": plugins, "exchange.GetBlock": plugins,
	} {
		if got := way[name]; got != service {
			t.Errorf("on the way from the request to the exchange %s is of %v, want %s; the way is %v", name, got, service, way)
		}
	}
	if _, ok := names["rpc version"]; !ok {
		t.Errorf("there is no span rpc version; there are %q", slices.Sorted(maps.Keys(names)))
	}
}
