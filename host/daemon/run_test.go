package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/codexchange/codexchange/host/repo"
)

// With the node's own commands: what is added by the API comes out of it and out of
// the gateway, and a command ends the daemon.
func TestRun(t *testing.T) {
	dir := newRepo(t, noFetch)
	d := &running{t: t, out: newOutput(), http: &http.Client{Transport: &http.Transport{}}, ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	d.cancel = cancel
	go func() {
		defer close(d.ended)
		d.err = Run(ctx, Options{RepoDir: dir, Out: d.out, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		d.out.end()
	}()
	defer func() { d.cancel(); <-d.ended }()
	defer d.http.CloseIdleConnections()
	d.ready()

	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	part, err := parts.CreateFormFile("file", "name")
	if err != nil {
		t.Fatal(err)
	}
	data := strings.Repeat("what is added ", 1000)
	part.Write([]byte(data))
	parts.Close()
	added := d.do("POST", d.api+"/api/v0/add?quieter=true&cid-version=1", &body, "Content-Type: "+parts.FormDataContentType()).want(t, "add", http.StatusOK)
	_, rest, _ := strings.Cut(string(added.body), `"Hash":"`)
	root, _, found := strings.Cut(rest, `"`)
	if !found {
		t.Fatalf("add: got %q, want a Hash", added.body)
	}
	if got := d.do("POST", d.api+"/api/v0/cat?arg="+root, nil).want(t, "cat", http.StatusOK); string(got.body) != data {
		t.Errorf("cat: got %d bytes, want the %d that were added", len(got.body), len(data))
	}
	if got := d.do("GET", d.gateway+"/ipfs/"+root, nil).want(t, "gateway", http.StatusOK); string(got.body) != data {
		t.Errorf("gateway: got %d bytes, want the %d that were added", len(got.body), len(data))
	}
	id := d.do("POST", d.api+"/api/v0/id", nil).want(t, "id", http.StatusOK)
	if self := d.out.line(t, "PeerID: "); !bytes.Contains(id.body, []byte(self)) {
		t.Errorf("id: got %s, want %s in it", id.body, self)
	}
	d.do("POST", d.api+"/api/v0/init", nil).want(t, "a command for this machine alone", http.StatusNotFound)
	d.do("POST", d.api+"/api/v0/shutdown", nil).want(t, "shutdown", http.StatusOK)
	if err := d.wait(); err != nil {
		t.Errorf("the daemon ended with %v, want nil", err)
	}
	if _, err := repo.APIAddr(dir); err == nil {
		t.Error("the api file is still there")
	}
}
