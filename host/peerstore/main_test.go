package peerstore_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host/peerstore"
)

// The crash test runs the test binary again as the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		writeUntilKilled(dir)
	}
	// A leveldb that is closed has a goroutine that ends a second later.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// open opens a store that is closed with the test.
func open(t testing.TB, o peerstore.Options) *peerstore.Store {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet
	}
	s, err := peerstore.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func memory() datastore.Batching { return sync.MutexWrap(datastore.NewMapDatastore()) }

// id returns the id of the nth peer; each has a key of its own.
func id(n int) peer.ID {
	_, p := key(n)
	return p
}

func key(n int) (crypto.PrivKey, peer.ID) {
	private, _, err := crypto.GenerateEd25519Key(&counter{n: n})
	if err != nil {
		panic(err)
	}
	p, err := peer.IDFromPrivateKey(private)
	if err != nil {
		panic(err)
	}
	return private, p
}

// counter is a source of the same bytes each time.
type counter struct{ n int }

func (c *counter) Read(b []byte) (int, error) {
	copy(b, fmt.Sprintf("%032d", c.n))
	return len(b), nil
}

func addr(n int) multiaddr.Multiaddr {
	return multiaddr.StringCast(fmt.Sprintf("/ip4/10.%d.%d.%d/tcp/4001", n>>16&255, n>>8&255, n&255))
}

func addrs(ns ...int) []multiaddr.Multiaddr {
	var out []multiaddr.Multiaddr
	for _, n := range ns {
		out = append(out, addr(n))
	}
	return out
}

// wantAddrs compares sets of addresses.
func wantAddrs(t testing.TB, why string, got, want []multiaddr.Multiaddr) {
	t.Helper()
	text := func(as []multiaddr.Multiaddr) []string {
		out := []string{}
		for _, a := range as {
			out = append(out, a.String())
		}
		slices.Sort(out)
		return out
	}
	if g, w := text(got), text(want); !slices.Equal(g, w) {
		t.Errorf("%s: got %v, want %v", why, g, w)
	}
}

const hour = time.Hour

// signed returns a record of addresses, signed by the peer itself.
func signed(t testing.TB, private crypto.PrivKey, seq uint64, addrs []multiaddr.Multiaddr) *record.Envelope {
	t.Helper()
	p, err := peer.IDFromPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	e, err := record.Seal(&peer.PeerRecord{PeerID: p, Addrs: addrs, Seq: seq}, private)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A conn is as much of a connection as the store looks at.
type conn struct {
	network.Conn
	remote  peer.ID
	addr    multiaddr.Multiaddr
	dialled bool
}

func (c conn) RemotePeer() peer.ID                  { return c.remote }
func (c conn) RemoteMultiaddr() multiaddr.Multiaddr { return c.addr }
func (c conn) Stat() network.ConnStats {
	direction := network.DirInbound
	if c.dialled {
		direction = network.DirOutbound
	}
	return network.ConnStats{Stats: network.Stats{Direction: direction}}
}

func tcpTransport(u transport.Upgrader, r network.ResourceManager) (*tcp.TcpTransport, error) {
	return tcp.NewTCPTransport(u, r, nil)
}
