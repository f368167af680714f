package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
	"github.com/codexchange/codexchange/plugin/remote"
)

// dashboard is what the metrics are shown with.
const dashboard = "../../packaging/grafana.json"

// Metrics are there for the node, its plugin, Bitswap, libp2p and the gateway, all those
// that the dashboard shows among them, and a scrape is what Prometheus can read.
func TestMetrics(t *testing.T) {
	d := start(t, func(c *repo.Config, _ *patience) {
		c.Exchange.Use = []string{repo.Blockexc, repo.Bitswap}
		c.Exchange.Plugins = map[string]repo.Plugin{repo.Blockexc: {}} // in a process of its own
	}, noFetch)
	root, _ := d.addFile()
	d.do("GET", d.gateway+"/ipfs/"+root.String(), nil).want(t, "the file", http.StatusOK)
	d.do("POST", d.api+"/api/v0/version", nil).want(t, "version", http.StatusOK)
	fetched := neighbour(t, d, host.Bitswap)
	if _, err := d.env.node.BlockService().GetBlock(t.Context(), fetched); err != nil {
		t.Fatal(err)
	}
	if err := d.env.node.Blockstore().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}

	scrape := d.do("GET", d.api+"/debug/metrics/prometheus", nil).want(t, "metrics", http.StatusOK)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(scrape.body))
	if err != nil {
		t.Fatal(err)
	}
	// value is that of the metric whose labels have all these values.
	value := func(name string, labels ...string) (float64, error) {
	next:
		for _, m := range families[name].GetMetric() {
			for _, l := range labels {
				if !strings.Contains(fmt.Sprint(m.GetLabel()), fmt.Sprintf("%q", l)) {
					continue next
				}
			}
			return m.GetGauge().GetValue() + m.GetCounter().GetValue(), nil
		}
		return 0, fmt.Errorf("there is no %s with %q", name, labels)
	}
	for _, c := range []struct {
		name   string
		labels []string
		ok     func(float64) bool
	}{
		{"codexchange_build_info", nil, func(v float64) bool { return v == 1 }},
		{"codexchange_peers", nil, func(v float64) bool { return v == 1 }},
		{"codexchange_repo_size_bytes", nil, func(v float64) bool { return v > 10<<10 }},
		{"codexchange_repo_free_bytes", nil, func(v float64) bool { return v > 0 }},
		{"codexchange_repo_max_bytes", nil, func(v float64) bool { return v == 1e10 }},
		{"codexchange_disk_full", nil, func(v float64) bool { return v == 0 }},
		{"codexchange_writebehind_bytes", nil, func(v float64) bool { return v == 0 }},
		{"codexchange_exchange_blocks_received_total", []string{"blockexc"}, func(v float64) bool { return v == 0 }},
		{"codexchange_exchange_blocks_received_total", []string{"bitswap"}, func(v float64) bool { return v == 1 }},
		{"codexchange_plugin_state", []string{"blockexc", "running"}, func(v float64) bool { return v == 1 }},
		{"codexchange_plugin_state", []string{"blockexc", "given up"}, func(v float64) bool { return v == 0 }},
		{"codexchange_plugin_restarts_total", []string{"blockexc"}, func(v float64) bool { return v == 0 }},
		{"codexchange_plugin_channel_bytes_total", []string{"calls", "from_plugin"}, func(v float64) bool { return v > 0 }},
		{"codexchange_plugin_memory_bytes", []string{"blockexc"}, func(v float64) bool { return v > 0 }},
		{"codexchange_plugin_events_total", []string{"blockexc", "timed_out"}, func(v float64) bool { return v == 0 }},
		{"codexchange_http_requests_total", []string{"api", "200", "post"}, func(v float64) bool { return v == 1 }},
		{"codexchange_http_requests_in_flight", []string{"api"}, func(v float64) bool { return v == 0 }},
		{"ipfs_http_gw_responses_total", []string{"200"}, func(v float64) bool { return v == 1 }},
		{"ipfs_bitswap_blocks_received", nil, func(v float64) bool { return v > 0 }}, // of all nodes of this process
		{"libp2p_rcmgr_connections", []string{"system"}, func(v float64) bool { return v > 0 }},
		{"libp2p_swarm_connections_opened_total", nil, func(v float64) bool { return v > 0 }},
		{"go_goroutines", nil, func(v float64) bool { return v > 0 }},
	} {
		v, err := value(c.name, c.labels...)
		if err != nil {
			t.Error(err)
		} else if !c.ok(v) {
			t.Errorf("%s%q is %v", c.name, c.labels, v)
		}
	}

	for _, name := range shown(t, dashboard) {
		if _, ok := families[name]; !ok {
			t.Errorf("%s shows %s, which there is not", dashboard, name)
		}
	}
}

// shown are the metrics that a dashboard asks for, histograms by the name of the whole.
func shown(t *testing.T, path string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	metric := regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\{`)
	part := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, p := range board.Panels {
		found := 0
		for _, target := range p.Targets {
			for _, m := range metric.FindAllStringSubmatch(target.Expr, -1) {
				names = append(names, part.ReplaceAllString(m[1], ""))
				found++
			}
		}
		if found == 0 && p.Type != "row" {
			t.Errorf("%s: the panel %q shows no metric", path, p.Title)
		}
	}
	return names
}

// A plugin may count whatever it likes, but not flood the metrics, nor break them.
func TestEvents(t *testing.T) {
	s := remote.Stat{More: map[string]uint64{"\xff": 1, strings.Repeat("x", maxEventName+1): 1}}
	if got := events(s); len(got) != 0 {
		t.Errorf("names that are no labels: got %q, want none", got)
	}
	for i := range 2 * maxEvents {
		s.More[fmt.Sprintf("event%03d", i)] = 1
	}
	if got := events(s); len(got) != maxEvents || got[0] != "event000" {
		t.Errorf("many names: got %d from %q, want the first %d", len(got), got[0], maxEvents)
	}
}
