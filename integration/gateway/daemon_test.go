// Package gateway asks the gateway of a daemon for what the specification of trustless
// gateways promises, over HTTP, as a client would that believes nothing: each block
// is compared with its hash, and each CAR with the list of blocks that it should have.
//
//	https://specs.ipfs.tech/http-gateways/trustless-gateway/
//
// The cases are those that ipfs/gateway-conformance has under "trustless-gateway",
// written anew over DAGs that are made here (fixture_test.go). That suite itself runs
// where the environment names it:
//
//	CODEXCHANGE_GATEWAY_CONFORMANCE=FILE  its program, from a checkout with its tests
package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/daemon"
	"github.com/codexchange/codexchange/host/repo"
)

func TestMain(m *testing.M) {
	host.Main()
	// leveldb waits in one of its goroutines for a second after Close has returned,
	// and libp2p has one for the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"),
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"),
		goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// deadline is how long a test waits for what has to happen.
const deadline = 30 * time.Second

// A gateway is a daemon that has what it has, and no exchange.
type gateway struct {
	testing.TB
	url, api string // without a path
	http     *http.Client
}

// start starts a daemon, which ends with the test.
func start(t testing.TB) *gateway {
	t.Helper()
	dir := t.TempDir()
	if _, err := repo.Init(dir, repo.InitOptions{Profiles: []string{"test"}}); err != nil {
		t.Fatal(err)
	}
	f, err := repo.OpenConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Set("Exchange.Use", []byte("[]")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	g := &gateway{TB: t, http: &http.Client{
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	out := &lines{ready: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, daemon.Options{RepoDir: dir, Out: out, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	t.Cleanup(func() {
		g.http.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the daemon ended: %v, want no error", err)
		}
	})
	select {
	case <-out.ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("the daemon ended: %v", err)
	case <-time.After(deadline):
		t.Fatalf("the daemon is not ready after %v:\n%s", deadline, out.text.String())
	}
	g.url = out.url(t, "Gateway server listening on ")
	g.api = out.url(t, "RPC API server listening on ")
	return g
}

// lines is what a daemon prints.
type lines struct {
	mu    sync.Mutex
	text  strings.Builder
	ready chan struct{} // closed when the daemon says that it is
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("Daemon is ready")) {
		close(l.ready)
	}
	return l.text.Write(p)
}

// url is the address in the line that begins with prefix.
func (l *lines) url(t testing.TB, prefix string) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	_, rest, _ := strings.Cut(l.text.String(), prefix)
	addr, _, _ := strings.Cut(rest, "\n")
	a, err := multiaddr.NewMultiaddr(addr)
	if err != nil {
		t.Fatalf("%q in %q: %v", prefix, l.text.String(), err)
	}
	_, hostport, err := manet.DialArgs(a)
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + hostport
}

// load gives a CAR to the daemon, by dag import; what its roots lead to need not be
// there as a whole.
func (g *gateway) load(name string, car []byte) {
	g.Helper()
	if err := g.post("dag/import?pin-roots=false", name, car); err != nil {
		g.Fatalf("import %s: %v", name, err)
	}
}

// put gives the record of a name to the daemon, by routing put.
func (g *gateway) put(name string, record []byte) error {
	g.Helper()
	return g.post("routing/put?allow-offline=true&arg=/ipns/"+name, name, record)
}

// post runs a command with a file, and returns why it fails.
func (g *gateway) post(command, name string, file []byte) error {
	g.Helper()
	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	part, err := parts.CreateFormFile("file", name)
	if err != nil {
		g.Fatal(err)
	}
	part.Write(file)
	parts.Close()
	r, err := g.http.Post(g.api+"/api/v0/"+command, parts.FormDataContentType(), &body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	said, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK || r.Trailer.Get("X-Stream-Error") != "" {
		return fmt.Errorf("%s, %s%s, %v", r.Status, said, r.Trailer.Get("X-Stream-Error"), err)
	}
	return nil
}

// A response is one that was read to its end.
type response struct {
	*http.Response
	body []byte
}

// get sends a request with headers in the form "Name: value".
func (g *gateway) get(method, path string, headers ...string) response {
	g.Helper()
	ctx, cancel := context.WithTimeout(g.Context(), deadline)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, g.url+path, nil)
	if err != nil {
		g.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	res, err := g.http.Do(r)
	if err != nil {
		g.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		g.Fatalf("%s %s: read the body: %v", method, path, err)
	}
	return response{res, body}
}

// suite is the program of gateway-conformance, or the test is skipped.
func suite(t *testing.T) string {
	t.Helper()
	program := os.Getenv("CODEXCHANGE_GATEWAY_CONFORMANCE")
	if program == "" {
		t.Skip("CODEXCHANGE_GATEWAY_CONFORMANCE names no program: build cmd/gateway-conformance in a checkout of github.com/ipfs/gateway-conformance, which the Go module proxy may not serve")
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatal(fmt.Errorf("CODEXCHANGE_GATEWAY_CONFORMANCE: %w", err))
	}
	return program
}
