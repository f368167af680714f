package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"github.com/codexchange/codexchange/plugin/tracing"
)

// newSeeker makes an exchange that asks its host for all that is traced, and then has
// the block.
func newSeeker(_ context.Context, env Env) (boxo.Interface, error) {
	return Getter(func(ctx context.Context, c cid.Cid) ([]byte, error) {
		for p := range env.Router.FindProvidersAsync(ctx, c, 1) {
			_ = env.Host.Connect(ctx, p)
			_, _ = env.Host.NewStream(ctx, p.ID, proto)
		}
		return wanted.RawData(), nil
	}), nil
}

// oneProvider is a router that knows one provider of everything.
type oneProvider peer.AddrInfo

func (r oneProvider) Provide(context.Context, cid.Cid, bool) error { return nil }
func (r oneProvider) FindProvidersAsync(context.Context, cid.Cid, int) <-chan peer.AddrInfo {
	ch := make(chan peer.AddrInfo, 1)
	ch <- peer.AddrInfo(r)
	close(ch)
	return ch
}

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
		if _, twice := spans[s.Name]; twice {
			t.Errorf("there are two spans %s, want one", s.Name)
		}
		spans[s.Name] = s
	}
}

// A trace crosses the boundary, there and back: what the plugin's process does for a
// request of the host is a part of the host's span, and what the host does for the
// plugin one of the plugin's. Both processes have sent all when they have ended.
func TestTrace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "traces.json")
	t.Setenv("OTEL_TRACES_EXPORTER", "file")
	t.Setenv("OTEL_EXPORTER_FILE_PATH", path)
	t.Setenv("OTEL_SERVICE_NAME", "node")
	end, err := tracing.Start(t.Context(), "", "test")
	if err != nil {
		t.Fatal(err)
	}
	p, _ := load(t, Config{Name: "seeker", Router: oneProvider{ID: newHost(t).ID()}})
	if _, err := p.Exchange().GetBlock(t.Context(), wanted.Cid()); err != nil { // which nobody traces
		t.Fatal(err)
	}
	ctx, root := otel.Tracer("test").Start(t.Context(), "root")
	if _, err := p.Exchange().NewSession(t.Context()).GetBlock(ctx, wanted.Cid()); err != nil {
		t.Fatal(err)
	}
	root.End()
	if err := errors.Join(p.Close(), end()); err != nil {
		t.Fatal(err)
	}

	spans := readSpans(t, path)
	for _, want := range []struct{ name, service, parent string }{
		{"root", "node", ""},
		{"plugin.Client.GetBlock", "node", "root"},
		{"plugin.Server.GetBlock", "node-plugin-seeker", "plugin.Client.GetBlock"},
		{"plugin.Host.FindProviders", "node", "plugin.Server.GetBlock"},
		{"plugin.Host.Connect", "node", "plugin.Server.GetBlock"},
		{"plugin.Host.OpenStream", "node", "plugin.Server.GetBlock"},
	} {
		got, ok := spans[want.name]
		if !ok {
			t.Errorf("there is no span %s; there are %q", want.name, slices.Sorted(maps.Keys(spans)))
			continue
		}
		if id := root.SpanContext().TraceID().String(); got.SpanContext.TraceID != id {
			t.Errorf("%s is of trace %s, want %s", want.name, got.SpanContext.TraceID, id)
		}
		parent := trace.SpanID{}.String()
		if want.parent != "" {
			parent = spans[want.parent].SpanContext.SpanID
		}
		if got.Parent.SpanID != parent {
			t.Errorf("the parent of %s is %s, want %s, %q", want.name, got.Parent.SpanID, parent, want.parent)
		}
		if got.service() != want.service {
			t.Errorf("%s is of %v, want %s", want.name, got.service(), want.service)
		}
	}
}
