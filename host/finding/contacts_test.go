package finding

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/bootstrap"
	routinghelpers "github.com/libp2p/go-libp2p-routing-helpers"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"
	"github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host/peerstore"
)

func TestMain(m *testing.M) {
	// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// A dialler is a host that only notes whom it shall dial.
type dialler struct {
	host.Host
	dials   chan peer.ID
	answers chan error // one for each dial, which waits for it or its context
	going   atomic.Int32
}

func newDialler(t *testing.T) *dialler {
	t.Helper()
	net := mocknet.New()
	h, err := net.GenPeer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	return &dialler{Host: h, dials: make(chan peer.ID, 100), answers: make(chan error)}
}

func (d *dialler) Connect(ctx context.Context, p peer.AddrInfo) error {
	d.going.Add(1)
	defer d.going.Add(-1)
	d.dials <- p.ID
	select {
	case err := <-d.answers:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func openStore(t *testing.T) *peerstore.Store {
	t.Helper()
	s, err := peerstore.New(context.Background(), peerstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func keep(t *testing.T, h host.Host, s *peerstore.Store, o ContactOptions) *Contacts {
	t.Helper()
	c, err := Keep(h, s, routinghelpers.Null{}, o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var somewhere = multiaddr.StringCast("/ip4/192.0.2.1/tcp/1")

// named are peers with an address each.
func named(names ...string) []peer.AddrInfo {
	var peers []peer.AddrInfo
	for _, n := range names {
		peers = append(peers, peer.AddrInfo{ID: peer.ID(n), Addrs: []multiaddr.Multiaddr{somewhere}})
	}
	return peers
}

// A conn is a connection that was dialled with success.
type conn struct {
	network.Conn
	to peer.ID
}

func (c conn) RemotePeer() peer.ID                  { return c.to }
func (c conn) RemoteMultiaddr() multiaddr.Multiaddr { return somewhere }
func (c conn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Direction: network.DirOutbound}}
}

// good lets the store know of peers that were dialled with success.
func good(s *peerstore.Store, names ...string) {
	for _, p := range named(names...) {
		s.Notifiee().Connected(nil, conn{to: p.ID})
		s.Notifiee().Disconnected(nil, conn{to: p.ID})
	}
}

// next is whom a dialler is to dial next.
func (d *dialler) next(t *testing.T, n int) []string {
	t.Helper()
	var names []string
	for range n {
		select {
		case p := <-d.dials:
			names = append(names, string(p))
		case <-time.After(time.Minute):
			t.Fatalf("dialled %q, want %d", names, n)
		}
	}
	slices.Sort(names)
	return names
}

// Peers that were good before are dialled first; when there are enough of them,
// bootstrap nodes are dialled, of which more would be needed if those connections
// were real (PS-31). Close ends a dial that hangs.
func TestKnownPeersFirst(t *testing.T) {
	d, s := newDialler(t), openStore(t)
	good(s, "a", "b", "c", "d", "e")
	c := keep(t, d, s, ContactOptions{Bootstrap: func() []peer.AddrInfo { return named("boot") }})
	if got, want := d.next(t, 5), []string{"a", "b", "c", "d", "e"}; !slices.Equal(got, want) {
		t.Errorf("dialled first: got %q, want %q", got, want)
	}
	for range enough - 1 {
		d.answers <- nil
	}
	select {
	case p := <-d.dials:
		t.Errorf("dialled %q with %d connections, want nobody yet", p, enough-1)
	default:
	}
	d.answers <- nil
	if got := d.next(t, 1)[0]; got != "boot" {
		t.Errorf("dialled then: got %q, want the bootstrap node", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := d.going.Load(); n > 0 {
		t.Errorf("after Close %d dials go on, want none", n)
	}
}

// When known peers do not answer, bootstrap nodes are dialled after a short while,
// and at once when none of them can be reached.
func TestBootstrapAfterPatience(t *testing.T) {
	for _, answer := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d, s := newDialler(t), openStore(t)
			good(s, "a", "b")
			begun := time.Now()
			keep(t, d, s, ContactOptions{Bootstrap: func() []peer.AddrInfo { return named("boot") }})
			d.next(t, 2)
			want := patience
			if answer {
				want = 0
				d.answers <- context.DeadlineExceeded
				d.answers <- context.DeadlineExceeded
			}
			got := d.next(t, 1)
			if waited := time.Since(begun); got[0] != "boot" || waited != want {
				t.Errorf("known peers that answer %v: dialled %q after %v, want the bootstrap node after %v", answer, got, waited, want)
			}
		})
	}
}

// Bootstrap nodes that are named while the node runs are dialled, though there was
// nobody to dial when it began.
func TestBootstrapNamedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newDialler(t), openStore(t)
		var list atomic.Pointer[[]peer.AddrInfo]
		list.Store(new([]peer.AddrInfo))
		keep(t, d, s, ContactOptions{Bootstrap: func() []peer.AddrInfo { return *list.Load() }})
		synctest.Wait()
		boot, begun := named("boot"), time.Now()
		list.Store(&boot)
		got := d.next(t, 1)
		if waited := time.Since(begun); got[0] != "boot" || waited > bootstrap.DefaultBootstrapConfig.Period {
			t.Errorf("dialled %q after %v, want the bootstrap node within %v", got, waited, bootstrap.DefaultBootstrapConfig.Period)
		}
	})
}

// What mDNS finds is claimed by discovery and dialled (PS-9), so many at a time; the
// others are remembered. After Close nobody is.
func TestPeerFound(t *testing.T) {
	d, s := newDialler(t), openStore(t)
	c := keep(t, d, s, ContactOptions{})
	found := make(chan struct{})
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for _, p := range named(names...) {
		go func() { c.HandlePeerFound(p); found <- struct{}{} }()
	}
	if got := d.next(t, dialsOnce); !slices.Equal(got, names) {
		t.Errorf("dialled: got %q, want %q", got, names)
	}
	c.HandlePeerFound(named("late")[0]) // does not wait
	if len(d.dials) > 0 {
		t.Errorf("dialled one more than %d", dialsOnce)
	}
	info, known := s.Peer("late")
	if !known || len(info.Addrs) != 1 || info.Addrs[0].Claims[0].Source != peerstore.Discovery {
		t.Errorf("the last: got %+v, want an address claimed by %v", info, peerstore.Discovery)
	}
	if err := c.Close(); err != nil { // while all of them hang
		t.Error(err)
	}
	for range names {
		<-found
	}
	c.HandlePeerFound(named("too late")[0])
	if _, known := s.Peer("too late"); known {
		t.Error("a peer that is found after Close is remembered")
	}
}

// The wrappers write as the source they are of.
func TestViews(t *testing.T) {
	d, s := newDialler(t), openStore(t)
	p := &peered{viewed: viewed{d, s.View(peerstore.Peering)}, reached: make(map[peer.ID]bool)}
	go func() { d.answers <- nil }()
	if err := p.Connect(t.Context(), named("a")[0]); err != nil {
		t.Fatal(err)
	}
	info, _ := s.Peer("a")
	if len(info.Addrs) != 1 || info.Addrs[0].Claims[0].Source != peerstore.Peering {
		t.Errorf("got %+v, want an address claimed by %v", info, peerstore.Peering)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (bounded{p.viewed, over}).Connect(t.Context(), named("b")[0]); err != context.Canceled {
		t.Errorf("dial when it is over: got %v, want %v", err, context.Canceled)
	}
}

// A peer whose connection boxo's peering does not see go, because it went before the
// dial was quite done, is dialled all the same; one that could not be reached is left
// to boxo, which waits longer each time.
func TestPeeringForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newDialler(t), openStore(t)
		keep(t, d, s, ContactOptions{Peering: named("lost", "away")})
		for range 2 { // they are dialled in any order
			if p := d.next(t, 1)[0]; p == "lost" {
				d.answers <- nil // and is not connected when boxo looks
			} else {
				d.answers <- context.DeadlineExceeded
			}
		}
		begun := time.Now()
		for {
			p := d.next(t, 1)[0]
			d.answers <- context.DeadlineExceeded
			if p == "lost" {
				break
			}
		}
		if took := time.Since(begun); took > 2*peeringPass {
			t.Errorf("the lost peer is dialled after %v, want within two passes, %v", took, 2*peeringPass)
		}
	})
}
