package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/plugin"
)

// A lender is a libp2p host in this process with the Codex block exchange as a
// plugin in another.
type lender struct {
	testing.TB
	key    crypto.PrivKey
	host   libp2phost.Host
	store  blockstore.Blockstore
	plugin *plugin.Plugin
}

// lending starts one. What is zero in cfg is filled in.
func lending(t *testing.T, cfg plugin.Config) *lender {
	t.Helper()
	t.Setenv("TMPDIR", socketDir(t))
	l := &lender{TB: t}
	var err error
	l.key, err = p2p.NewIdentity()
	must(t, "make identity", err)
	l.host, err = libp2p.New(append(p2p.HostOptions(), libp2p.Identity(l.key), libp2p.NoListenAddrs, libp2p.DisableRelay())...)
	must(t, "make host", err)
	t.Cleanup(func() { must(t, "close host", l.host.Close()) })
	l.store = blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	cfg.Host, cfg.Blocks = l.host, l.store
	if cfg.Name == "" {
		cfg.Name = host.Blockexc
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	l.plugin, err = plugin.Load(t.Context(), cfg)
	must(t, "load plugin", err)
	t.Cleanup(func() { must(t, "close plugin", l.plugin.Close()) })
	must(t, "listen", l.host.Network().Listen(loopback))
	return l
}

func (l *lender) info() peer.AddrInfo { return *libp2phost.InfoFromHost(l.host) }

// add stores n blocks of random bytes and tells the exchange.
func (l *lender) add(n, size int) (keys []cid.Cid, bytes uint64) {
	l.Helper()
	for range n {
		data := make([]byte, size)
		_, _ = rand.Read(data) // never fails
		b := blocks.NewBlock(data)
		must(l, "put", l.store.Put(l.Context(), b))
		must(l, "notify", l.plugin.Exchange().NotifyNewBlocks(l.Context(), b))
		keys = append(keys, b.Cid())
	}
	return keys, uint64(n * size)
}

// get fetches blocks, all of which must come.
func get(t testing.TB, x boxo.Fetcher, keys []cid.Cid) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ch, err := x.GetBlocks(ctx, keys)
	must(t, "get blocks", err)
	n := 0
	for range ch {
		n++
	}
	if n != len(keys) {
		t.Fatalf("%d of %d blocks came: %v", n, len(keys), ctx.Err())
	}
}

// Serving moves no bytes of blocks through the plugin: it names them, and the
// host puts them into the stream. Payload that crosses the boundary: 0 bytes.
func TestServingMovesNoPayload(t *testing.T) {
	a, b := lending(t, plugin.Config{}), lending(t, plugin.Config{})
	keys, size := a.add(300, 64<<10)
	must(t, "connect", b.host.Connect(t.Context(), a.info()))
	get(t, b.plugin.Exchange(), keys)

	c := a.plugin.Counters()
	s, err := a.plugin.Inspect(t.Context())
	must(t, "inspect", err)
	if s.BytesSent != size || c.Streams.Filled.Load() != size || c.Streams.BlocksIn.Load() != uint64(len(keys)) {
		t.Errorf("sent %d bytes; the host filled in %d for %d references; want %d bytes and %d references",
			s.BytesSent, c.Streams.Filled.Load(), c.Streams.BlocksIn.Load(), size, len(keys))
	}
	if payload := s.BytesSent - c.Streams.Filled.Load(); payload != 0 {
		t.Errorf("%d bytes of blocks crossed the boundary, want 0", payload)
	}
	// What does cross is the rest of the messages, and calls.
	const each = 400
	if rest := c.Streams.DataIn.Load() + c.Results.DataIn.Load() + c.Calls.DataIn.Load() + c.Calls.DataOut.Load(); rest > each*uint64(len(keys)) {
		t.Errorf("%d bytes crossed beside references, want at most %d for each of %d blocks", rest, each, len(keys))
	}
}

// Fetching moves next to no bytes of blocks through the plugin: they are in memory that
// both have, where the host has put them, and where it is told they are. It is so from
// when a stream flows on.
func TestFetchingMovesNoPayload(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("memory is shared on Linux only")
	}
	a, b := lending(t, plugin.Config{}), lending(t, plugin.Config{})
	keys, size := a.add(600, 64<<10)
	must(t, "connect", b.host.Connect(t.Context(), a.info()))
	get(t, b.plugin.Exchange(), keys)

	f, c := b.plugin.Fetched(), b.plugin.Counters()
	if f.Bytes != size || f.InPlace < size/2 {
		t.Errorf("got %d bytes, %d of them in place, want %d and most of them", f.Bytes, f.InPlace, size)
	}
	const each = 600 // what is said of a block, and its small parts
	if sent := c.Results.DataIn.Load(); sent > size-f.InPlace+each*uint64(len(keys)) {
		t.Errorf("%d bytes of results crossed, want at most %d for each of %d blocks, and the %d that are not in place", sent, each, len(keys), size-f.InPlace)
	}
	t.Logf("%.0f %% in place", 100*float64(f.InPlace)/float64(size))
}

// The private key is nowhere in the plugin: not in its environment, nor its
// arguments, nor its memory, into which everything goes that it is sent.
func TestKeyStaysInHost(t *testing.T) {
	a, b := lending(t, plugin.Config{}), lending(t, plugin.Config{})
	keys, _ := a.add(20, 1000)
	must(t, "connect", b.host.Connect(t.Context(), a.info()))
	get(t, b.plugin.Exchange(), keys)

	raw, err := a.key.Raw()
	must(t, "read key", err)
	coded, err := crypto.MarshalPrivateKey(a.key)
	must(t, "encode key", err)
	needles := map[string][]byte{
		"raw":    raw,
		"hex":    []byte(hex.EncodeToString(raw)),
		"base64": []byte(base64.StdEncoding.EncodeToString(coded))[8:48], // not its ends, which depend on what is around
	}
	pid := a.plugin.Status().Pid
	if got := find(t, pid, []byte(a.host.ID())); !got {
		t.Fatal("the peer id is not found in the plugin's memory: the search does not work")
	}
	for name, needle := range needles {
		if find(t, pid, needle) {
			t.Errorf("the private key, %s, is in the plugin's memory", name)
		}
		for _, file := range []string{"environ", "cmdline"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			must(t, "read "+file, err)
			if bytes.Contains(text, needle) {
				t.Errorf("the private key, %s, is in the plugin's %s", name, file)
			}
		}
	}
}

// find reports whether bytes are in the memory of a process that it can write.
func find(t testing.TB, pid int, needle []byte) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Skipf("the memory of another process cannot be read here: %v", err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("the memory of another process cannot be read here: %v", err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if !strings.HasPrefix(f[1], "rw") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		at, err := strconv.ParseInt(from, 16, 64)
		must(t, "read maps", err)
		end, err := strconv.ParseInt(to, 16, 64)
		must(t, "read maps", err)
		for at < end {
			n, err := mem.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
			if bytes.Contains(buf[:n], needle) {
				return true
			}
			if err != nil || n <= len(needle) {
				break // not backed
			}
			at += int64(n - len(needle)) // one that lies across two pieces
			if int64(n) < int64(len(buf)) {
				break
			}
		}
	}
	return false
}

// With both protocols in use a remote sees one peer, by one connection.
func TestOnePeerOneConnection(t *testing.T) {
	a := lending(t, plugin.Config{})
	both, err := bitswap.New(t.Context(), a.host, a.store, bitswap.Options{})
	must(t, "start Bitswap", err)
	defer both.Close()
	keys, _ := a.add(40, 1000)
	must(t, "notify", both.NotifyNewBlocks(t.Context()))

	b := lending(t, plugin.Config{})
	other, err := bitswap.New(t.Context(), b.host, b.store, bitswap.Options{})
	must(t, "start Bitswap", err)
	defer other.Close()
	must(t, "connect", b.host.Connect(t.Context(), a.info()))
	get(t, b.plugin.Exchange(), keys[:20])
	get(t, other, keys[20:])

	if peers := b.host.Network().Peers(); len(peers) != 1 || peers[0] != a.host.ID() {
		t.Errorf("the remote sees peers %v, want only %v", peers, a.host.ID())
	}
	if conns := b.host.Network().ConnsToPeer(a.host.ID()); len(conns) != 1 {
		t.Errorf("the remote sees %d connections, want 1", len(conns))
	}
	spoken, err := b.host.Peerstore().SupportsProtocols(a.host.ID(), append(bitswap.Protocols(), exchange.ProtocolID)...)
	if err != nil || len(spoken) < 2 {
		t.Errorf("the peer speaks %v, %v, want both protocols", spoken, err)
	}
}

// Whoever finds the sockets and has no token is refused, whatever he sends, and
// nothing else changes.
func TestGarbageOnSockets(t *testing.T) {
	a, b := lending(t, plugin.Config{}), lending(t, plugin.Config{})
	keys, _ := a.add(100, 64<<10)
	must(t, "connect", b.host.Connect(t.Context(), a.info()))
	var paths []string
	_ = filepath.WalkDir(os.Getenv("TMPDIR"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			paths = append(paths, path)
		}
		return nil
	})
	if len(paths) < 2 {
		t.Fatalf("found sockets %v, want the two of a plugin", paths)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		get(t, b.plugin.Exchange(), keys)
	}()
	for range 20 {
		for _, path := range paths {
			c, err := net.Dial("unix", path)
			must(t, "dial "+path, err)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			garbage := make([]byte, 200)
			_, _ = rand.Read(garbage)
			if strings.HasPrefix(filepath.Base(path), "s") {
				copy(garbage, "cxch\x01\x00\x00\x00") // a greeting with a wrong token
			}
			_, _ = c.Write(garbage)
			answer, _ := io.ReadAll(c)
			if bytes.Contains(answer, []byte("cxch\x01\x00")) {
				t.Errorf("%s welcomes a wrong token", path)
			}
			_ = c.Close()
		}
	}
	<-done
	for _, l := range []*lender{a, b} {
		if s := l.plugin.Status(); s.Restarts != 0 {
			t.Errorf("%d restarts, want none", s.Restarts)
		}
	}
}

// A plugin that does not read costs the host bounded memory, whatever peers send
// it and however much it has to be told.
func TestSlowPlugin(t *testing.T) {
	l := lending(t, plugin.Config{Policy: plugin.Policy{Hang: 10 * time.Minute}})
	key, err := p2p.NewIdentity()
	must(t, "make identity", err)
	remote, err := libp2p.New(append(p2p.HostOptions(), libp2p.Identity(key), libp2p.NoListenAddrs)...)
	must(t, "make host", err)
	defer remote.Close()
	must(t, "connect", remote.Connect(t.Context(), l.info()))
	var streams []network.Stream
	for range 8 {
		s, err := remote.NewStream(t.Context(), l.host.ID(), exchange.ProtocolID)
		must(t, "open stream", err)
		defer s.Reset()
		_, err = s.Write([]byte{0x80}) // the beginning of a length
		must(t, "write", err)
		streams = append(streams, s)
	}
	eventually(t, "the streams are bridged", 10*time.Second, func() bool { return l.plugin.Lent().Streams >= len(streams) })

	pid := l.plugin.Status().Pid
	must(t, "stop the plugin", signal(pid, syscall.SIGSTOP))
	defer signal(pid, syscall.SIGCONT)
	before := heap()
	junk := make([]byte, 1<<20)
	var writers sync.WaitGroup
	for _, s := range streams {
		must(t, "set deadline", s.SetWriteDeadline(time.Now().Add(2*time.Second)))
		writers.Go(func() {
			n := 0
			for n < 64<<20 {
				m, err := s.Write(junk)
				n += m
				if err != nil {
					return
				}
			}
			t.Errorf("a plugin that does not read was sent %d bytes, want its host to hold the peer back", n)
		})
	}
	writers.Wait()
	for i := range 300_000 {
		b := blocks.NewBlock(binaryOf(i))
		must(t, "notify", l.plugin.Exchange().NotifyNewBlocks(t.Context(), b))
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("the host holds %d MiB more, want at most 64", grown>>20)
	}
}

func binaryOf(i int) []byte { return fmt.Appendf(nil, "block %d", i) }

// heap is what lives in this process, bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
