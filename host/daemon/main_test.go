package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

func TestMain(m *testing.M) {
	host.Main()
	// leveldb waits in one of its goroutines for a second after Close has returned.
	// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"),
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run")) // one for the process, which ends by itself
}

// deadline is how long a test waits for what has to happen.
const deadline = 30 * time.Second

// A running is a daemon in this process. Its commands are those of env.
type running struct {
	t       *testing.T
	dir     string
	api     string // URL without a path
	gateway string
	env     *env
	out     *output
	http    *http.Client
	cancel  func()
	ended   chan struct{}
	err     error // what run returned; after ended
}

// A setting changes what a daemon is started with.
type setting func(*repo.Config, *patience)

// newRepo makes a repo for tests, with the exchange in this process.
func newRepo(t *testing.T, settings ...setting) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := repo.Init(dir, repo.InitOptions{Profiles: []string{"test"}}); err != nil {
		t.Fatal(err)
	}
	f, err := repo.OpenConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := f.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.Exchange.Plugins = map[string]repo.Plugin{repo.Blockexc: {InProcess: true}}
	for _, s := range settings {
		s(c, new(patience))
	}
	if err := f.Write(c); err != nil {
		t.Fatal(err)
	}
	return dir
}

// launch starts a daemon over the repo in dir without waiting for it.
func launch(t *testing.T, o Options, settings ...setting) *running {
	t.Helper()
	p := defaultPatience
	for _, s := range settings {
		s(new(repo.Config), &p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &running{
		t: t, dir: o.RepoDir, env: newEnv(), out: newOutput(),
		http: &http.Client{
			Transport:     &http.Transport{},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		cancel: cancel, ended: make(chan struct{}),
	}
	o.Out = d.out
	if o.Log == nil {
		o.Log = testLog(t)
	}
	go func() {
		defer close(d.ended)
		d.err = run(ctx, o, d.env.tree, p)
		d.out.end()
	}()
	t.Cleanup(func() {
		d.http.CloseIdleConnections()
		d.cancel()
		<-d.ended
	})
	return d
}

// start starts a daemon over a new repo and returns when it is ready.
func start(t *testing.T, settings ...setting) *running {
	t.Helper()
	d := launch(t, Options{RepoDir: newRepo(t, settings...)}, settings...)
	d.ready()
	return d
}

// ready returns when the daemon is.
func (d *running) ready() {
	d.t.Helper()
	d.api = urlOf(d.t, d.out.line(d.t, "RPC API server listening on "))
	d.out.line(d.t, "Daemon is ready")
	if d.out.has("Gateway server listening on ") {
		d.gateway = urlOf(d.t, d.out.line(d.t, "Gateway server listening on "))
	}
}

// stop ends the daemon in good order.
func (d *running) stop() {
	d.t.Helper()
	d.http.CloseIdleConnections()
	d.cancel()
	if err := d.wait(); err != nil {
		d.t.Fatalf("the daemon ended with %v, want nil", err)
	}
}

// wait returns what the daemon ended with.
func (d *running) wait() error {
	d.t.Helper()
	select {
	case <-d.ended:
		return d.err
	case <-time.After(deadline):
		d.t.Fatalf("the daemon did not end")
		return nil
	}
}

// urlOf is the URL for a multiaddr; empty for a unix socket.
func urlOf(t *testing.T, addr string) string {
	t.Helper()
	a, err := multiaddr.NewMultiaddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	network, hostport, err := manet.DialArgs(a)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(network, "tcp") {
		return ""
	}
	return "http://" + hostport
}

// A response is one that was read.
type response struct {
	*http.Response
	body []byte
}

// do sends a request with headers in the form "Name: value".
func (d *running) do(method, url string, body io.Reader, headers ...string) response {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), method, url, body)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		}
		r.Header.Add(name, value)
	}
	res, err := d.http.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatalf("%s %s: read the body: %v", method, url, err)
	}
	return response{res, got}
}

// want fails unless the response has this status.
func (r response) want(t *testing.T, why string, status int) response {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("%s: got %s: %.200s, want %d", why, r.Status, r.body, status)
	}
	return r
}

// wantHeader fails unless the response has this header, which want is a part of.
func (r response) wantHeader(t *testing.T, name, want string) response {
	t.Helper()
	if got := r.Header.Get(name); !strings.Contains(got, want) || got == "" {
		t.Fatalf("header %s: got %q, want %q in it", name, got, want)
	}
	return r
}

// An output is what a person would read, line by line.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	ended   bool
	changed chan struct{} // replaced with every change
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.signal()
	return o.text.Write(p)
}

// end says that nothing more comes.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.signal()
}

func (o *output) signal() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *output) find(prefix string) (rest string, ok, ended bool, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for line := range strings.Lines(o.text.String()) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prefix); ok {
			return rest, true, false, nil
		}
	}
	return "", false, o.ended, o.changed
}

// has reports whether a line begins with prefix.
func (o *output) has(prefix string) bool {
	_, ok, _, _ := o.find(prefix)
	return ok
}

// line waits for a line that begins with prefix, and returns the rest of it.
func (o *output) line(t *testing.T, prefix string) string {
	t.Helper()
	late := time.After(deadline)
	for {
		rest, ok, ended, changed := o.find(prefix)
		if ok {
			return rest
		}
		if ended {
			t.Fatalf("no line %q before the end; there was:\n%s", prefix, o.text.String())
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no line %q", prefix)
		}
	}
}

// An env is what the commands of these tests work on.
type env struct {
	node     *host.Node
	repo     *repo.Repo
	running  context.Context
	shutdown func()
	entered  chan struct{} // one for each call of wait that has begun
	release  chan struct{} // closed to let the calls of wait end
	causes   chan error    // why a call of wait was ended
}

func newEnv() *env {
	return &env{entered: make(chan struct{}, 16), release: make(chan struct{}), causes: make(chan error, 16)}
}

// tree has a few commands, one of each kind.
func (e *env) tree(running context.Context, n *host.Node, r *repo.Repo, shutdown func()) (*cmds.Command, cmds.Environment) {
	e.node, e.repo, e.running, e.shutdown = n, r, running, shutdown
	file := []cmds.Argument{cmds.FileArg("data", true, false, "")}
	return &cmds.Command{
		Options: []cmds.Option{cmds.OptionEncodingType, cmds.OptionTimeout, cmds.OptionStreamChannels},
		Subcommands: map[string]*cmds.Command{
			"version": {Run: func(_ *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
				return cmds.EmitOnce(re, map[string]string{"Version": "1"})
			}},
			// size counts the bytes of a file.
			"size": {Arguments: file, Run: func(req *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
				files := req.Files.Entries()
				if !files.Next() {
					return fmt.Errorf("no file: %v", files.Err())
				}
				e.entered <- struct{}{}
				size, err := io.Copy(io.Discard, files.Node().(io.Reader))
				if err != nil {
					e.causes <- err
					return err
				}
				return cmds.EmitOnce(re, map[string]int64{"Size": size})
			}},
			// zeros sends bytes until nobody takes them.
			"zeros": {Run: func(_ *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
				e.entered <- struct{}{}
				err := re.Emit(zeros{})
				e.causes <- err
				return err
			}},
			// wait ends when it is released, or ended.
			"wait": {Run: func(req *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
				e.entered <- struct{}{}
				select {
				case <-e.release:
					return cmds.EmitOnce(re, map[string]string{"Waited": "yes"})
				case <-req.Context.Done():
					e.causes <- context.Cause(req.Context)
					return req.Context.Err()
				}
			}},
			"shutdown": {Run: func(_ *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
				e.shutdown()
				return nil
			}},
		},
	}, e
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// testLog is a log that a test shows.
func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// newBlock stores a block that no pin keeps.
func newBlock(t *testing.T, d *running, size int) cid.Cid {
	t.Helper()
	b := blocks.NewBlock(bytes.Repeat([]byte("garbage"), size/7+1)[:size])
	if err := d.env.node.BlockService().AddBlock(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.Cid()
}

// neighbour is a node with some exchanges in this process that is connected to d, and
// has a block, whose CID it returns. It ends with the test.
func neighbour(t *testing.T, d *running, use ...string) cid.Cid {
	t.Helper()
	n, err := host.New(t.Context(), host.Options{
		Dir: t.TempDir(), Use: use, Plugins: map[string]host.Plugin{host.Blockexc: {InProcess: true}}, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	b := blocks.NewBlock([]byte("of the neighbour"))
	if err := n.BlockService().AddBlock(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := d.env.node.Connect(t.Context(), n.AddrInfo()); err != nil {
		t.Fatal(err)
	}
	return b.Cid()
}

// receive takes one value from a channel.
func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(deadline):
		t.Fatalf("%s: nothing came", what)
		panic(errors.ErrUnsupported)
	}
}
