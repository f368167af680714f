package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Main()
	// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends,
	// libp2p one for the process, and leveldb's pool outlives its database by a second.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"),
		goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

// start starts a node in a directory of its own, and closes it with the test.
func start(t *testing.T, exchange string) *Node {
	t.Helper()
	n, err := New(t.Context(), Options{Dir: t.TempDir(), Use: []string{exchange}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func add(t *testing.T, n *Node, data []byte, chunk int64) cid.Cid {
	t.Helper()
	root, _, err := n.Add(t.Context(), bytes.NewReader(data), chunk)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// random is pseudo-random bytes, always the same.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// A file added to one node arrives at another that has nothing, whole, and can
// then be read without asking anybody. The exchange counts what it brought.
func TestFetch(t *testing.T) {
	const chunk = 4 << 10
	data := random(200*chunk + 1) // 201 leaves: more than one node can link to
	for _, name := range Exchanges() {
		t.Run(name, func(t *testing.T) {
			seeder, fetcher := start(t, name), start(t, name)
			root := add(t, seeder, data, chunk)
			if _, err := fetcher.Open(t.Context(), root); !ipld.IsNotFound(err) {
				t.Fatalf("open before the fetch: got %v, want not found", err)
			}
			if err := fetcher.Connect(t.Context(), seeder.AddrInfo()); err != nil {
				t.Fatal(err)
			}
			if err := seeder.WaitPeer(t.Context(), fetcher.AddrInfo().ID); err != nil {
				t.Fatal(err)
			}
			var progress merkledag.ProgressTracker
			if err := fetcher.Fetch(t.Context(), root, &progress); err != nil {
				t.Fatal(err)
			}

			r, err := fetcher.Open(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read back %d bytes, %v, want the %d that were added", len(got), err, len(data))
			}
			counts, err := fetcher.Exchanges()[0].Counts()
			if err != nil {
				t.Fatal(err)
			}
			const blocks = 201 + 2 + 1 // leaves, two nodes of links, root
			stat := progress.ProgressStat()
			if counts.Blocks != blocks || stat.Nodes != blocks {
				t.Errorf("the exchange counts %d blocks and the progress %d, want %d", counts.Blocks, stat.Nodes, blocks)
			}
			if counts.Bytes < stat.Bytes || stat.Bytes <= uint64(len(data)) {
				t.Errorf("the exchange counts %d bytes and the progress %d, want at least as many, and more than %d", counts.Bytes, stat.Bytes, len(data))
			}
		})
	}
}

// A fetch that nobody can serve ends with the reason its context ended for.
func TestFetchEndsWithContext(t *testing.T) {
	reason := errors.New("enough waited")
	for _, name := range Exchanges() {
		t.Run(name, func(t *testing.T) {
			n := start(t, name)
			root := cid.NewCidV1(cid.DagProtobuf, sum(t, []byte("nobody has this")))
			ctx, cancel := context.WithCancelCause(t.Context())
			failed := make(chan error)
			go func() { failed <- n.Fetch(ctx, root, nil) }()
			cancel(reason)
			if err := <-failed; !errors.Is(err, reason) || !strings.Contains(err.Error(), root.String()) {
				t.Errorf("got %v, want %v with the cid %s", err, reason, root)
			}
			if err := n.WaitPeer(ctx, peer.ID("somebody")); !errors.Is(err, reason) {
				t.Errorf("WaitPeer: got %v, want %v", err, reason)
			}
		})
	}
}

// A peer that does not say what it speaks is not waited for.
func TestConnectSilentPeer(t *testing.T) {
	n, silent := start(t, Blockexc), start(t, Blockexc)
	silent.Host().RemoveStreamHandler(identify.ID)
	if err := n.Connect(t.Context(), silent.AddrInfo()); err == nil || !strings.Contains(err.Error(), "does not say which protocols") {
		t.Errorf("got %v, want an error that says why", err)
	}
}

func sum(t *testing.T, data []byte) mh.Multihash {
	t.Helper()
	s := sha256.Sum256(data)
	h, err := mh.Encode(s[:], mh.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A file of one chunk is a single raw block, as `ipfs add --cid-version 1`
// makes it, and lies where Kubo's flatfs would look for it.
func TestAddLikeKubo(t *testing.T) {
	dir := t.TempDir()
	n, err := New(t.Context(), Options{Dir: dir, Use: []string{Bitswap}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	data := []byte("one chunk\n")
	root := add(t, n, data, DefaultChunk)
	if want := cid.NewCidV1(cid.Raw, sum(t, data)); !root.Equals(want) {
		t.Errorf("root is %s, want %s", root, want)
	}
	layout, err := os.ReadFile(filepath.Join(dir, BlocksDir, "SHARDING"))
	if got := strings.TrimSpace(string(layout)); err != nil || got != shards {
		t.Errorf("SHARDING: got %q, %v, want %q", got, err, shards)
	}
	files, err := filepath.Glob(filepath.Join(dir, BlocksDir, "??", "*.data"))
	if err != nil || len(files) != 1 {
		t.Fatalf("block files: got %v, %v, want one", files, err)
	}
	if got, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s holds %q, %v, want %q", files[0], got, err, data)
	}
}

func TestAddRefuses(t *testing.T) {
	n := start(t, Bitswap)
	broken := errors.New("disk on fire")
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	for _, c := range []struct {
		name  string
		ctx   context.Context
		r     io.Reader
		chunk int64
		want  string
	}{
		{"chunk too small", t.Context(), strings.NewReader("x"), MinChunk - 1, "chunk of 255 bytes, want 256 to 2097152"},
		{"chunk too large", t.Context(), strings.NewReader("x"), MaxChunk + 1, "chunk of 2097153 bytes"},
		{"reader fails", t.Context(), iotest.ErrReader(broken), DefaultChunk, broken.Error()},
		{"context has ended", gone, strings.NewReader("x"), DefaultChunk, broken.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := n.Add(c.ctx, c.r, c.chunk); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// What is wrong with the options is said, and nothing keeps running.
func TestNewRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		opts Options
		want string
	}{
		{"no directory", Options{Use: []string{Bitswap}}, "Options.Dir is empty"},
		{"directory is a file", Options{Dir: file, Use: []string{Bitswap}}, "open blockstore"},
		{"unknown exchange", Options{Dir: t.TempDir(), Use: []string{"carrier pigeon"}}, "start exchange carrier pigeon: unknown name, want one of bitswap, blockexc"},
		{"Bitswap as a plugin", Options{Dir: t.TempDir(), Use: []string{Bitswap}, Plugins: map[string]Plugin{Bitswap: {}}}, "load a Bitswap plugin under another name"},
		{"another in process", Options{Dir: t.TempDir(), Use: []string{"x"}, Plugins: map[string]Plugin{"x": {InProcess: true}}}, "only blockexc can run in the host's process"},
		{"in process, with a path", Options{Dir: t.TempDir(), Use: []string{Blockexc}, Plugins: map[string]Plugin{Blockexc: {InProcess: true, Path: "/bin/true"}}},
			`both InProcess and a program ("/bin/true") are set`},
		{"in process, wrong configuration", Options{Dir: t.TempDir(), Use: []string{Blockexc}, Plugins: map[string]Plugin{Blockexc: {InProcess: true, Config: []byte(`{"speed": 11}`)}}},
			`configuration of blockexc: json: unknown field "speed"`},
		{"wrong configuration", Options{Dir: t.TempDir(), Use: []string{Blockexc}, Plugins: map[string]Plugin{Blockexc: {Config: []byte(`{"speed": 11}`)}}},
			`configuration of blockexc: json: unknown field "speed"`},
		{"no size", Options{Dir: t.TempDir(), Use: []string{Blockexc}, Plugins: map[string]Plugin{Blockexc: {Config: []byte(`{"ReadAhead": "much"}`)}}},
			`configuration of blockexc: ReadAhead is "much", want "off" or a size of up to 1GiB such as "16MiB"`},
		{"no path", Options{Dir: t.TempDir(), Use: []string{"x"}, Plugins: map[string]Plugin{"x": {}}}, "the plugin has no Path"},
		{"no sum", Options{Dir: t.TempDir(), Use: []string{"x"}, Plugins: map[string]Plugin{"x": {Path: "/bin/true"}}}, "SHA256 is missing: sha256sum /bin/true prints it"},
		{"wrong sum", Options{Dir: t.TempDir(), Use: []string{"x"}, Plugins: map[string]Plugin{"x": {Path: file, SHA256: strings.Repeat("00", 32)}}}, "want an executable file"},
		{"unknown beside plugins", Options{Dir: t.TempDir(), Use: []string{"y"}, Plugins: map[string]Plugin{"x": {}}}, "unknown name, want one of bitswap, blockexc, x"},
		{"bad address", Options{Dir: t.TempDir(), Use: []string{Bitswap}, Listen: []string{"here"}}, "here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n, err := New(t.Context(), c.opts); err == nil {
				n.Close()
				t.Errorf("got a node, want an error with %q", c.want)
			} else if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// A node keeps its blocks and, if given one, its identity over a restart; its
// default identity is one that classic Codex nodes accept. Close is idempotent.
func TestRestart(t *testing.T) {
	key, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if key.Type() != crypto.Secp256k1 {
		t.Errorf("new identity is of type %v, want secp256k1", key.Type())
	}
	opts := Options{Dir: t.TempDir(), Identity: key}
	var root cid.Cid
	var id peer.ID
	for i, name := range Exchanges() {
		opts.Use = []string{name}
		n, err := New(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			root, id = add(t, n, random(1000), MinChunk), n.AddrInfo().ID
		} else if got := n.AddrInfo().ID; got != id {
			t.Errorf("id after a restart is %s, want %s", got, id)
		}
		r, err := n.Open(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, random(1000)) {
			t.Errorf("reading the file: %d bytes, %v, want the 1000 that were added", len(got), err)
		}
		for range 2 {
			if err := n.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	}
}
