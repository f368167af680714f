package remote

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/wire"
)

// Each kind of request is a step on the host's side, and within it one on the plugin's,
// also when the request is made again of the next plugin.
func TestTrace(t *testing.T) {
	seen := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(seen))
	otel.SetTracerProvider(provider)
	t.Cleanup(func() {
		otel.SetTracerProvider(noop.NewTracerProvider())
		_ = provider.Shutdown(context.Background())
	})
	list := makeBlocks(9, 3, 100)
	m := exchangetest.NewMesh(3)
	m.Connect(0, 1)
	m.Connect(0, 2)
	c := newClient(t, ClientOptions{Held: m.Blocks(1).Get})
	first := serve(t, c, m.Exchange(1), nil)

	ctx, root := provider.Tracer("test").Start(t.Context(), "root")
	ch, err := c.GetBlocks(ctx, keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin has the request", func() bool {
		first.server.mu.Lock()
		v := first.server.serving
		first.server.mu.Unlock()
		if v == nil {
			return false
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.calls) == 1
	})
	first.kill()
	_ = wait(t, "the end of the first plugin", first.ended)
	if err := m.Blocks(0).PutMany(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	second := serve(t, c, m.Exchange(2), nil)
	left := missing(list)
	collect(t, "blocks", ch, left)
	if len(left) > 0 {
		t.Fatalf("%d blocks are missing", len(left))
	}
	if _, err := c.GetBlock(ctx, list[0].Cid()); err != nil {
		t.Fatal(err)
	}
	leaves, err := c.GetLeaves(ctx, dataset.Tree{Root: list[0].Cid(), Leaves: 1}, wire.Range{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range leaves { // there are none: the mesh has no leaves
	}
	root.End()
	second.kill()
	c.Close()

	ids, count := make(map[string]string), make(map[string]int)
	spans := seen.GetSpans()
	for _, s := range spans {
		ids[s.Name] = s.SpanContext.SpanID().String()
		count[s.Name]++
	}
	for _, s := range spans {
		parent := map[string]string{
			"plugin.Client.GetBlock": "root", "plugin.Client.GetBlocks": "root", "plugin.Client.GetLeaves": "root",
			"plugin.Server.GetBlock": "plugin.Client.GetBlock", "plugin.Server.GetBlocks": "plugin.Client.GetBlocks", "plugin.Server.GetLeaves": "plugin.Client.GetLeaves",
		}[s.Name]
		if s.Name != "root" && s.Parent.SpanID().String() != ids[parent] {
			t.Errorf("%s is in %s, want it in %s, %q", s.Name, s.Parent.SpanID(), ids[parent], parent)
		}
	}
	for name, want := range map[string]int{
		"plugin.Client.GetBlock": 1, "plugin.Server.GetBlock": 1, "plugin.Client.GetLeaves": 1, "plugin.Server.GetLeaves": 1,
		"plugin.Client.GetBlocks": 1, "plugin.Server.GetBlocks": 2,
	} {
		if count[name] != want {
			t.Errorf("there are %d spans %s, want %d", count[name], name, want)
		}
	}
}
