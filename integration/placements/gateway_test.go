package placements

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin"
	"github.com/codexchange/codexchange/plugin/plugintest"
)

const gatewayProgram = "github.com/codexchange/codexchange/plugin/examples/gateway"

// newGateway is an HTTP server that answers as a trustless gateway does when it is
// asked for single blocks. What it has under a CID need not be the block.
func newGateway(t *testing.T, has map[string][]byte) *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ipfs/{cid}", func(w http.ResponseWriter, r *http.Request) {
		data, ok := has[r.PathValue("cid")]
		switch {
		case r.URL.Query().Get("format") != "raw":
			http.Error(w, "want format=raw", http.StatusNotAcceptable)
		case !ok:
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Type", "application/vnd.ipld.raw")
			_, _ = w.Write(data) // who asked may be gone
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// The template for plugins, by its path: it fetches from a gateway, and does not
// believe it; and what it does not accept as a configuration its host's user reads.
func TestGateway(t *testing.T) {
	ctx := soon(t)
	list, _ := data(5, 100, 1<<10)
	has := make(map[string][]byte)
	for _, b := range list {
		has[b.Cid().String()] = b.RawData()
	}
	forged, absent := blocks.NewBlock([]byte("true")), blocks.NewBlock([]byte("absent"))
	has[forged.Cid().String()] = []byte("false")
	s := newGateway(t, has)

	path, sum := plugintest.Build(t, gatewayProgram)
	n := plugintest.New(t, plugin.Config{
		Name: "gateway", Path: path, SHA256: sum, Config: []byte(`{"URL": "` + s.URL + `"}`),
	})
	x := n.Plugin.Exchange()
	must(t, "get blocks", getAll(ctx, x, list))
	must(t, "get blocks in a session", getAll(ctx, x.NewSession(ctx), list))
	if b, err := x.GetBlock(ctx, forged.Cid()); !errors.Is(err, errs.BadBlock) {
		t.Errorf("the gateway has other bytes: got %v, %v, want kind %v", b, err, errs.BadBlock)
	}
	if b, err := x.GetBlock(ctx, absent.Cid()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("the gateway does not have it: got %v, %v, want an error that says 404", b, err)
	}
	_, err := plugin.Load(ctx, plugin.Config{
		Name: "gateway", Path: path, SHA256: sum, Config: []byte(`[]`), Host: n.Host, Blocks: n.Blockstore, Log: plugintest.Log(t),
	})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "read configuration") {
		t.Errorf("its configuration is a list: got %v, want kind %v and what the plugin said", err, errs.Invalid)
	}
}

// A program of another sum is not started: the error names both sums, and the
// program, which would leave a mark, has left none. With the right sum it does.
func TestWrongSum(t *testing.T) {
	dir := t.TempDir()
	mark, path := filepath.Join(dir, "mark"), filepath.Join(dir, "plugin")
	script := "#!/bin/sh\n: > '" + mark + "'\n"
	must(t, "write program", os.WriteFile(path, []byte(script), 0o755))
	right := plugintest.Sum(t, path)
	wrong := strings.Repeat("ab", 32)
	node := plugintest.New(t, plugin.Config{Name: "plain", Here: newBlockexc})

	load := func(sum string) error {
		p, err := plugin.Load(soon(t), plugin.Config{
			Name: "other", Path: path, SHA256: sum, Host: node.Host, Blocks: node.Blockstore, Log: plugintest.Log(t),
		})
		if err == nil {
			p.Close()
		}
		return err
	}
	err := load(wrong)
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), right) || !strings.Contains(err.Error(), wrong) {
		t.Errorf("got %v, want kind %v and the sums %s and %s", err, errs.Invalid, right, wrong)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the program was started")
	}
	if err := load(right); err == nil {
		t.Error("a program that is no plugin: got no error")
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("with its own sum the program was not started: %v", err)
	}
}
