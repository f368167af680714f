package tracing

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The environment says what the host is called, and a plugin is called after its host.
func TestService(t *testing.T) {
	for _, c := range []struct{ service, attributes, part, want string }{
		{"", "", "", "codexchange"},
		{"", "", "-plugin-x", "codexchange-plugin-x"},
		{"node", "", "-plugin-x", "node-plugin-x"},
		{"", "service.name=node", "-plugin-x", "node-plugin-x"},
		{"node", "", "", "node"},
	} {
		t.Setenv("OTEL_SERVICE_NAME", c.service)
		t.Setenv("OTEL_RESOURCE_ATTRIBUTES", c.attributes)
		about, err := service(t.Context(), c.part, "1.2")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := about.Set().Value(nameKey); got.AsString() != c.want {
			t.Errorf("%+v: got %q, want %q", c, got.AsString(), c.want)
		}
		if got, _ := about.Set().Value("service.version"); got.AsString() != "1.2" {
			t.Errorf("%+v: version is %q, want 1.2", c, got.AsString())
		}
	}
}

// Nothing is sent unless the environment says so, and what it says wrong is an error.
func TestStart(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	end, err := Start(t.Context(), "", "1.2")
	if err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
	if _, err := Start(t.Context(), "", "1.2"); err == nil || !strings.Contains(err.Error(), "start tracing: ") || !strings.Contains(err.Error(), "carrier-pigeon") {
		t.Errorf("got %v, want an error that names the exporter", err)
	}
}
