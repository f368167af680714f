package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"
	cmdhttp "github.com/ipfs/go-ipfs-cmds/http"
	"github.com/libp2p/go-libp2p/core/metrics"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

// A served is a node whose commands are served as a daemon does it.
type served struct {
	*shell // that finds it by --api
	node   *host.Node
	url    string
	stops  chan struct{} // one for each shutdown
	end    func()        // begins the end of the daemon
}

// serve makes a repo, starts its node with the exchanges given, and serves it. More of
// the configuration are keys, each followed by its value in JSON.
func serve(t *testing.T, exchanges string, more ...string) *served {
	t.Helper()
	s := &served{shell: newShell(t), stops: make(chan struct{}, 1)}
	for pair := range slices.Chunk(append([]string{"Exchange", exchanges}, more...), 2) {
		s.ok("config", "--json", pair[0], pair[1])
	}
	var r *repo.Repo
	s.node, r = openNode(t, s.dir)
	running, end := context.WithCancel(t.Context())
	s.end = end
	cfg := cmdhttp.NewServerConfig()
	cfg.APIPath = APIPath
	server := httptest.NewServer(cmdhttp.NewHandler(NewEnv(running, s.node, r, func() { s.stops <- struct{}{} }), Root(), cfg))
	t.Cleanup(server.Close)
	s.url = server.URL + APIPath
	addr, err := manet.FromNetAddr(server.Listener.Addr())
	if err != nil {
		t.Fatal(err)
	}
	s.with = []string{"--api", addr.String()}
	return s
}

const inProcess = `{"Use":["blockexc","bitswap"],"Plugins":{"blockexc":{"InProcess":true}}}`

// Over HTTP the commands do and print what they do on a repo, and the daemon's node is
// the one they work on.
func TestServed(t *testing.T) {
	s, tree := serve(t, inProcess), makeTree(t)
	var id IDOutput
	if err := json.Unmarshal([]byte(s.ok("id")), &id); err != nil || id.ID != s.node.Host().ID().String() || len(id.Addresses) == 0 || len(id.Protocols) == 0 {
		t.Errorf("id is %+v, %v, want the running node", id, err)
	}
	s.prints(treeAdded, "add", "-r", tree)
	s.prints(treeRoot+"\n", "add", "-rQ", tree)
	s.prints(treeListed, "ls", "-v", treeRoot)
	s.prints(treeRefs, "refs", "-r", treeRoot)
	s.prints(treeStat, "dag", "stat", treeRoot)
	s.prints("\nb", "cat", "-o", "1", "-l", "2", treeRoot+"/a", treeRoot+"/sub/b")
	out := filepath.Join(t.TempDir(), "out")
	s.prints("Saving file(s) to "+out+"\n", "get", "-o", out, treeRoot)
	same(t, out, tree)
	car := write(t, filepath.Join(t.TempDir(), "tree.car"), []byte(s.ok("dag", "export", treeRoot)))
	s.prints("Pinned root\t"+treeRoot+"\tsuccess\n", "dag", "import", car)
	s.prints("unpinned "+treeRoot+"\n", "pin", "rm", treeRoot)
	if got := strings.Count(s.ok("repo", "gc"), "removed "); got != 10 {
		t.Errorf("%d blocks were garbage, want 10", got)
	}
	s.prints("verify complete, all blocks validated.\n", "repo", "verify")
	if o := s.feed(t.Context(), "hello\n", "add", "-q"); o.stdout != helloCID+"\n" {
		t.Errorf("add from stdin, want %s\n%v", helloCID, o)
	}
	s.prints("hello\n", "cat", helloCID)
	s.prints("", "config", "Datastore.StorageMax", "5GB")
	s.prints("5GB\n", "config", "Datastore.StorageMax")
	t.Setenv("EDITOR", "sed -i s/5GB/6GB/")
	s.prints("", "config", "edit")
	s.prints("6GB\n", "config", "Datastore.StorageMax")
	s.fails([]string{"config", "Datastore.StorageMax", "much"}, "StorageMax")
	s.fails([]string{"cat", treeRoot + "/a/b", "--offline"}, "--offline asks no peers")
	s.fails([]string{"--timeout=50ms", "cat", treeRoot}, "")
	profile := filepath.Join(t.TempDir(), "p.zip")
	s.prints("Wrote profiles to: "+profile+"\n", "diag", "profile", "--profile-time=0", "-o", profile)
	if head, err := os.ReadFile(profile); err != nil || !bytes.HasPrefix(head, []byte("PK")) {
		t.Errorf("the profile has %d bytes, %v, want a zip file", len(head), err)
	}
	var sys map[string]any
	if err := json.Unmarshal([]byte(s.ok("diag", "sys")), &sys); err != nil || sys["runtime"] == nil || sys["diskinfo"] == nil {
		t.Errorf("diag sys is %v, %v", sys, err)
	}
	s.prints("error\n", "log", "level")
	s.prints("Changed log level of 'cmds' to 'warn'\n", "log", "level", "cmds", "warn")
	s.prints("warn\n", "log", "level", "cmds")
	s.fails([]string{"log", "level", "cmds", "loud"}, `"loud"`)
	s.prints("", "shutdown")
	<-s.stops
}

// The JSON of the API has the fields that Kubo's clients read.
func TestFields(t *testing.T) {
	s := serve(t, inProcess)
	post := func(path string, body []byte, args ...string) string {
		t.Helper()
		q := url.Values{}
		for i := 0; i < len(args); i += 2 {
			q.Add(args[i], args[i+1])
		}
		var b bytes.Buffer
		kind := ""
		if body != nil {
			m := multipart.NewWriter(&b)
			f, err := m.CreateFormFile("file", "name")
			if err == nil {
				_, err = f.Write(body)
			}
			if err == nil {
				err = m.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			kind = m.FormDataContentType()
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path+"?"+q.Encode(), &b)
		if err != nil {
			t.Fatal(err)
		}
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		req.Close = true
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", res.StatusCode, text)
	}
	want := func(want, got string) {
		t.Helper()
		if got != want+"\n" {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
	const hello = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
	want(`200 {"Name":"name","Hash":"`+helloCID+`","Size":"14"}`, post("/add", []byte("hello\n")))
	want(`200 {"Name":"name","Bytes":6}`+"\n"+`{"Name":"name","Hash":"`+helloCID+`","Size":"14"}`, post("/add", []byte("hello\n"), "progress", "true"))
	want(`200 {"Key":"`+hello+`","Size":6}`, post("/block/put", []byte("hello\n")))
	want(`200 {"Key":"`+hello+`","Size":6}`, post("/block/stat", nil, "arg", hello))
	want(`200 {"Keys":{"`+helloCID+`":{"Type":"recursive","Name":""}}}`, post("/pin/ls", nil))
	want(`200 {"Cid":"`+helloCID+`","Type":"recursive"}`, post("/pin/ls", nil, "stream", "true", "type", "recursive"))
	want(`200 {"Pins":["`+helloCID+`"]}`, post("/pin/rm", nil, "arg", helloCID))
	want(`200 {"Pins":["`+helloCID+`"]}`, post("/pin/add", nil, "arg", helloCID))
	want(`200 {"Hash":"`+hello+`"}`, post("/block/rm", nil, "arg", hello))
	want(`200 {"Ref":"bafkreiffndsajwhk3lwjewwdxqntmjm4b5wxaaanokonsggenkbw6slwk4","Err":""}`, post("/refs/local", nil))
	want(`200 {"Peers":[]}`, post("/swarm/peers", nil))
	want(`200 {"Objects":[{"Hash":"`+helloCID+`","Links":[]}]}`, post("/ls", nil, "arg", helloCID))
	if got := post("/add", []byte("hello\n"), "inline", "true"); !strings.HasPrefix(got, "500") || !strings.Contains(got, "inline") {
		t.Errorf("add with an option that is not known: %s, want that it is refused", got)
	}
	if got := post("/init", nil); !strings.HasPrefix(got, "404") {
		t.Errorf("init over HTTP: %s, want 404", got)
	}
	if got := post("/cat", nil, "arg", "nonsense"); !strings.HasPrefix(got, `500 {"Message":"path \"nonsense\"`) || !strings.Contains(got, `"Code":0,"Type":"error"`) {
		t.Errorf("cat of nonsense: %s", got)
	}
	var version VersionOutput
	if err := json.Unmarshal([]byte(post("/version", nil)[4:]), &version); err != nil || version.Version == "" || version.Version[0] == 'v' || version.Golang == "" || version.System == "" {
		t.Errorf("version is %+v, %v", version, err)
	}
	var stat RepoStat
	if err := json.Unmarshal([]byte(post("/repo/stat", nil)[4:]), &stat); err != nil || stat.NumObjects != 1 || stat.StorageMax != 10e9 {
		t.Errorf("repo stat is %+v, %v", stat, err)
	}
}

// Two nodes connect, a file goes from one to the other, and what the exchanges tell of
// it is right. The second one has its exchange in a plugin.
func TestTwoNodes(t *testing.T) {
	a, b := serve(t, inProcess), serve(t, `{"Use":["blockexc"],"Plugins":{"blockexc":{}}}`)
	a.ok("add", "-r", makeTree(t))
	self := b.node.Host().ID().String()
	addr := strings.Fields(a.ok("swarm", "addrs", "local", "--id"))[0]
	other := a.node.Host().ID().String()
	b.prints("connect "+other+" success\n", "swarm", "connect", addr)
	if out := b.ok("swarm", "peers", "--direction"); out != addr+" outbound\n" {
		t.Errorf("swarm peers printed %q, want %q", out, addr+" outbound\n")
	}
	b.prints(other+" blockexc\n", "exchange", "peers")
	b.prints("b\n", "cat", treeRoot+"/sub/b")
	out := filepath.Join(t.TempDir(), "out")
	b.ok("get", "-o", out, treeRoot)
	// libp2p counts once in a second.
	var passed metrics.Stats
	for end := time.Now().Add(20 * time.Second); passed.TotalIn < 1000; {
		if err := json.Unmarshal([]byte(b.ok("--enc=json", "stats", "bw", "--peer", other)), &passed); err != nil || time.Now().After(end) {
			t.Fatalf("stats bw is %+v, %v, want at least the bytes of the files", passed, err)
		}
	}
	b.prints("pinned "+treeRoot+" recursively\n", "pin", "add", "--progress", treeRoot)
	b.prints(treeRefs, "--offline", "refs", "-r", treeRoot)

	for _, c := range []struct {
		node           *served
		sent, received uint64
		plugin         bool
	}{{a, 10, 0, false}, {b, 0, 10, true}} {
		var got ExchangeStats
		if err := json.Unmarshal([]byte(c.node.ok("--enc=json", "exchange", "stat")), &got); err != nil || len(got.Exchanges) == 0 {
			t.Fatalf("exchange stat is %+v, %v", got, err)
		}
		if s := got.Exchanges[0]; s.BlocksSent != c.sent || s.BlocksReceived != c.received || s.Plugin != c.plugin || s.Error != "" || s.Peers != 1 {
			t.Errorf("exchange stat is %+v, want %d sent, %d received, plugin %v", s, c.sent, c.received, c.plugin)
		}
	}
	if out := a.ok("exchange", "ledger", self); !strings.Contains(out, "blocks sent: 10\n") || !strings.Contains(out, "bytes sent: 600504\n") {
		t.Errorf("exchange ledger printed\n%s", out)
	}
	b.prints("", "exchange", "wantlist")
	b.fails([]string{"exchange", "wantlist", "-x", "none"}, `"none"`)
	a.fails([]string{"exchange", "ledger", "nonsense"}, "nonsense")
	a.prints("", "plugin", "ls")
	if out := b.ok("plugin", "status", "blockexc"); !strings.Contains(out, "state: running since") || !strings.Contains(out, "protocols: /codex/blockexc/1.0.0 ") {
		t.Errorf("plugin status printed\n%s", out)
	}
	b.prints("restart blockexc requested\n", "plugin", "restart", "blockexc")
	b.fails([]string{"plugin", "restart", "none"}, `no plugin "none"`)

	var who IDOutput
	if err := json.Unmarshal([]byte(b.ok("id", other)), &who); err != nil || who.ID != other || len(who.Protocols) == 0 {
		t.Errorf("id of the other node is %+v, %v", who, err)
	}
	b.prints("disconnect "+other+" success\n", "swarm", "disconnect", "/p2p/"+other)
	b.fails([]string{"swarm", "disconnect", "/p2p/" + other}, "not connected")
	b.fails([]string{"swarm", "connect", "/ip4/127.0.0.1/tcp/4001"}, "want a multiaddr with the peer")
	b.fails([]string{"swarm", "connect", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWE6RLfkVrVFbRJbwHQq3NcYek1tJaLqcFE9Xp5TwXrDU9"}, "connect to 12D3KooWE6RL")
}

// Bitswap's ledger has the bytes of each way, and the blocks of both together.
func TestBitswapLedger(t *testing.T) {
	const use = `{"Use":["bitswap"]}`
	a, b := serve(t, use), serve(t, use)
	a.ok("add", "-r", makeTree(t))
	b.ok("swarm", "connect", strings.Fields(a.ok("swarm", "addrs", "local", "--id"))[0])
	b.ok("refs", "-r", treeRoot)
	self, other := b.node.Host().ID().String(), a.node.Host().ID().String()
	const ledger = "Ledger for %s\nbitswap\n\tblocks sent and received: 10\n\tbytes sent: %d\n\tbytes received: %d\n"
	b.prints(fmt.Sprintf(ledger, other, 0, 600504), "exchange", "ledger", other)
	b.prints(`{"Peer":"`+other+`","Ledgers":[{"Exchange":"bitswap","BytesReceived":600504,"BytesSent":0,"Blocks":10}]}`+"\n", "--enc=json", "exchange", "ledger", other)
	// What was sent is counted after the message has left.
	want := fmt.Sprintf(ledger, self, 600504, 0)
	for end := time.Now().Add(20 * time.Second); a.ok("exchange", "ledger", self) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			a.prints(want, "exchange", "ledger", self)
			break
		}
	}
	b.ok("swarm", "disconnect", "/p2p/"+other)
	b.fails([]string{"exchange", "ledger", other}, "no exchange knows this peer")
}

// A command that is ended says why: that the client has gone, that the time is over, or
// what the daemon says.
func TestWhyItEnded(t *testing.T) {
	stopping := errors.New("the daemon is stopping")
	daemon := &Env{shutdown: func() {}}
	for _, c := range []struct {
		name    string
		env     *Env
		options cmds.OptMap
		cause   error
		want    string
	}{
		{"the client has gone", daemon, nil, nil, context.Canceled.Error()},
		{"the daemon stops", daemon, nil, stopping, stopping.Error()},
		{"a command line is interrupted", &Env{}, nil, stopping, context.Canceled.Error()},
		{"the time is over", daemon, cmds.OptMap{cmds.TimeoutOpt: "1s"}, context.DeadlineExceeded, "not done within --timeout 1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(c.cause)
			run := explained(func(*cmds.Request, cmds.ResponseEmitter, cmds.Environment) error { return errors.New("half done") })
			if err := run(&cmds.Request{Context: ctx, Options: c.options}, nil, c.env); err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// A daemon is found by the file in its repo, and the secret goes into the header.
func TestFindDaemon(t *testing.T) {
	s := newShell(t)
	r, err := repo.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.fails([]string{"repo", "stat"}, "in use by")
	s.fails([]string{"swarm", "peers"}, "no daemon runs")

	var asked, secret string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked, secret = r.Method+" "+r.URL.String(), r.Header.Get("Authorization")
		http.Error(w, "403 - Forbidden", http.StatusForbidden)
	}))
	defer server.Close()
	addr, err := manet.FromNetAddr(server.Listener.Addr())
	if err == nil {
		err = r.SetAPI(addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{"bearer:a:b": "Bearer a:b", "basic:user:pass": "Basic dXNlcjpwYXNz", "token": "Bearer token"} {
		s.fails([]string{"--api-auth", given, "repo", "stat"}, "Forbidden")
		if secret != want || !strings.HasPrefix(asked, "POST /api/v0/repo/stat?") || strings.Contains(asked, "auth") {
			t.Errorf("the daemon was asked %q with %q, want the secret as %q, in the header alone", asked, secret, want)
		}
	}
}
