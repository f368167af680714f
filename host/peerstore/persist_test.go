package peerstore_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/peerstore"
)

// disk is a datastore that counts its batches and can be made to fail.
type disk struct {
	datastore.Batching
	mu      sync.Mutex
	batches int
	fails   error
}

func newDisk() *disk { return &disk{Batching: memory()} }

func (d *disk) Batch(ctx context.Context) (datastore.Batch, error) {
	b, err := d.Batching.Batch(ctx)
	return &batch{Batch: b, disk: d}, err
}

type batch struct {
	datastore.Batch
	disk *disk
}

func (b *batch) Commit(ctx context.Context) error {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	if b.disk.fails != nil {
		return b.disk.fails
	}
	b.disk.batches++
	return b.Batch.Commit(ctx)
}

func (d *disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails = err
}

func (d *disk) written() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.batches
}

func keys(t testing.TB, d datastore.Datastore) []string {
	t.Helper()
	results, err := d.Query(context.Background(), query.Query{KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	all, err := results.Rest()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range all {
		out = append(out, e.Key)
	}
	slices.Sort(out)
	return out
}

// When changes are written (PS-23, PS-26, PS-27): not each, but when enough peers
// are dirty, when time is up, and at the end; one batch each time.
func TestWriteBehind(t *testing.T) {
	tests := []struct {
		name string
		o    peerstore.Options
		run  func(t *testing.T, s *peerstore.Store, d *disk)
	}{
		{"one peer below the threshold is not written, one more is", peerstore.Options{FlushPeers: 5, FlushEvery: -1}, func(t *testing.T, s *peerstore.Store, d *disk) {
			for n := range 4 {
				for k := range 3 {
					s.AddAddrs(id(n), addrs(k), hour)
				}
			}
			time.Sleep(hour / 2)
			if got := d.written(); got != 0 {
				t.Errorf("4 dirty peers: got %d batches, want 0", got)
			}
			s.AddAddrs(id(4), addrs(4), hour)
			synctest.Wait()
			if got, dirty := d.written(), s.Stats().Dirty; got != 1 || dirty != 0 {
				t.Errorf("5 dirty peers: got %d batches, %d dirty, want 1, 0", got, dirty)
			}
		}},
		{"a few changes do not stay unwritten for ever", peerstore.Options{FlushPeers: -1, FlushEvery: time.Minute}, func(t *testing.T, s *peerstore.Store, d *disk) {
			s.AddAddrs(id(1), addrs(1), 24*hour)
			time.Sleep(59 * time.Second)
			if got := d.written(); got != 0 {
				t.Errorf("before the minute: got %d batches, want 0", got)
			}
			time.Sleep(2 * time.Second)
			if got := d.written(); got != 1 {
				t.Errorf("after the minute: got %d batches, want 1", got)
			}
			time.Sleep(hour)
			if got := d.written(); got != 1 {
				t.Errorf("nothing new in an hour: got %d batches, want 1", got)
			}
		}},
		{"the end writes the rest", peerstore.Options{FlushPeers: -1, FlushEvery: -1}, func(t *testing.T, s *peerstore.Store, d *disk) {
			s.AddAddrs(id(1), addrs(1), hour)
			if err := s.Close(); err != nil || d.written() != 1 {
				t.Errorf("Close: got %v, %d batches, want no error, 1", err, d.written())
			}
		}},
		{"what changes nothing on disk is not dirty", peerstore.Options{FlushEvery: -1}, func(t *testing.T, s *peerstore.Store, d *disk) {
			s.AddAddrs(id(1), addrs(1), core.TempAddrTTL)
			_ = s.Put(id(1), "a number", 7)
			key, p := key(2)
			_ = s.AddPubKey(p, key.GetPublic())
			if err := s.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := keys(t, d); len(got) != 0 {
				t.Errorf("passing addresses, values of other types, keys that are part of an id: got %v, want nothing", got)
			}
			s.AddAddrs(id(3), addrs(1), hour)
			_ = s.Flush(context.Background())
			for range 100 {
				time.Sleep(time.Second)
				s.AddAddrs(id(3), addrs(1), hour)
				_ = s.SetProtocols(id(3))
			}
			if got := s.Stats().Dirty; got != 0 {
				t.Errorf("an address said again and again: got %d dirty, want 0", got)
			}
		}},
		{"a failed flush keeps the peers dirty, and a later one writes them", peerstore.Options{FlushPeers: 2, FlushEvery: time.Minute}, func(t *testing.T, s *peerstore.Store, d *disk) {
			full := errors.New("no space left on device")
			d.fail(full)
			s.AddAddrs(id(1), addrs(1), hour)
			s.AddAddrs(id(2), addrs(2), hour)
			synctest.Wait()
			if got := s.Stats().Dirty; got != 2 {
				t.Errorf("after a failure: got %d dirty, want 2", got)
			}
			if err := s.Flush(context.Background()); !errors.Is(err, errs.Storage) || !errors.Is(err, full) {
				t.Errorf("Flush: got %v, want %v and %v", err, errs.Storage, full)
			}
			d.fail(nil)
			time.Sleep(11 * time.Second)
			if got := s.Stats().Dirty; got != 0 || d.written() != 1 {
				t.Errorf("after its retry: got %d dirty, %d batches, want 0, 1", got, d.written())
			}
		}},
		{"deleting a peer deletes its keys", peerstore.Options{FlushEvery: -1}, func(t *testing.T, s *peerstore.Store, d *disk) {
			for n := range 2 {
				s.AddAddrs(id(n), addrs(1), hour)
				_ = s.SetProtocols(id(n), "a")
				_ = s.SetMetadata(id(n), map[string]any{"k": "v", "l": "v"})
			}
			_ = s.Flush(context.Background())
			if got := len(keys(t, d)); got != 8 {
				t.Errorf("two peers: got %d keys, want 8", got)
			}
			s.DeleteMetadata(id(0), "k")
			s.Forget(id(0))
			_ = s.Flush(context.Background())
			if got := keys(t, d); len(got) != 4 {
				t.Errorf("one of them deleted: got %q, want 4 keys", got)
			}
			s.Forget(id(1))
			s.AddAddrs(id(1), addrs(1), hour)
			_ = s.Flush(context.Background())
			if got := keys(t, d); len(got) != 1 || !strings.HasPrefix(got[0], "/peers/addrs/") {
				t.Errorf("deleted and known again between two flushes: got %q, want its addresses only", got)
			}
		}},
		{"many dirty peers are several batches", peerstore.Options{FlushPeers: -1, FlushEvery: -1}, func(t *testing.T, s *peerstore.Store, d *disk) {
			for n := range peerstore.FlushPeers + 1 {
				s.AddAddrs(id(n), addrs(1), hour)
			}
			_ = s.Flush(context.Background())
			if got := len(keys(t, d)); got != peerstore.FlushPeers+1 || d.written() != 2 {
				t.Errorf("got %d keys in %d batches, want %d in 2", got, d.written(), peerstore.FlushPeers+1)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDisk()
				test.o.Datastore = d
				test.run(t, open(t, test.o), d)
			})
		})
	}
}

// The keys are those of the design (PS-24), and what they hold comes back
// (PS-6, PS-7, PS-22, PS-25): each book, with everything that is written.
func TestKeysAndReload(t *testing.T) {
	private, _, err := crypto.GenerateKeyPairWithReader(crypto.RSA, 2048, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := peer.IDFromPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	odd := map[string]any{"AgentVersion": "kubo/0.42", "bytes": []byte{0, 1}, "a/b": "slash", "..": "dots", "": "empty", "%": "percent", "é ": "é"}
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		o := peerstore.Options{Datastore: d}
		s := open(t, o)
		s.View(peerstore.DHT).AddAddrs(p, addrs(1), hour)
		s.View(peerstore.Discovery).AddAddrs(p, addrs(1), 2*hour)
		if _, err := s.View(peerstore.Host).ConsumePeerRecord(signed(t, private, 3, addrs(2)), hour); err != nil {
			t.Fatal(err)
		}
		_ = s.SetProtocols(p, "b", "a")
		if err := s.AddPubKey(p, private.GetPublic()); err != nil {
			t.Fatal(err)
		}
		if err := s.SetMetadata(p, odd); err != nil {
			t.Fatal(err)
		}
		before, _ := s.Peer(p)
		s.Close()

		b32 := strings.TrimPrefix(keys(t, d)[0], "/peers/addrs/")
		for _, want := range []string{"/peers/addrs/" + b32, "/peers/protos/" + b32, "/peers/keys/" + b32, "/peers/metadata/" + b32 + "/AgentVersion"} {
			if ok, _ := d.Has(context.Background(), datastore.NewKey(want)); !ok || strings.Contains(want, "=") {
				t.Errorf("PS-24: got %q, want %q among them", keys(t, d), want)
			}
		}

		again := open(t, o)
		after, known := again.Peer(p)
		if !known {
			t.Fatal("the peer did not come back")
		}
		wantAddrs(t, "addresses", again.Addrs(p), addrs(1, 2))
		for i := range before.Addrs {
			b, a := before.Addrs[i], after.Addrs[i]
			if len(a.Claims) != len(b.Claims) {
				t.Fatalf("claims of %s: got %v, want %v", b.Addr, a.Claims, b.Claims)
			}
			for j := range b.Claims {
				got, want := a.Claims[j], b.Claims[j]
				if got.Expires, want.Expires = got.Expires.Truncate(time.Second), want.Expires.Truncate(time.Second); got != want {
					t.Errorf("claim of %s: got %+v, want %+v", b.Addr, got, want)
				}
			}
		}
		if want := []protocol.ID{"a", "b"}; !slices.Equal(after.Recalled, want) || len(after.Protocols) != 0 {
			t.Errorf("protocols: got %v, recalled %v, want none, recalled %v", after.Protocols, after.Recalled, want)
		}
		if after.PublicKey == nil || !after.PublicKey.Equals(private.GetPublic()) {
			t.Errorf("public key: got %v", after.PublicKey)
		}
		if !maps.EqualFunc(after.Metadata, odd, func(a, b any) bool {
			x, ok := b.([]byte)
			if ok {
				return bytes.Equal(a.([]byte), x)
			}
			return a == b
		}) {
			t.Errorf("metadata: got %q, want %q", after.Metadata, odd)
		}
		if e := again.GetPeerRecord(p); e == nil || !e.PublicKey.Equals(private.GetPublic()) {
			t.Errorf("signed record: got %v", e)
		}
		if got := d.written(); again.Stats().Dirty != 0 {
			t.Errorf("loading makes dirty: got %d peers after %d batches, want 0", again.Stats().Dirty, got)
		}
	})
}

// How addresses come back (PS-25): no connection has outlived the process, and
// what the configuration keeps connected it will name again.
func TestReloadLowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := peerstore.Options{Datastore: memory()}
		s := open(t, o)
		s.View(peerstore.Host).AddAddrs(id(1), addrs(1), core.ConnectedAddrTTL)
		s.View(peerstore.Peering).AddAddrs(id(2), addrs(2), core.PermanentAddrTTL)
		s.View(peerstore.Manual).AddAddrs(id(3), addrs(3), core.PermanentAddrTTL)
		s.AddAddrs(id(4), addrs(4), hour)
		s.AddAddrs(id(5), addrs(5), 10*time.Minute)
		s.AddAddrs(id(6), addrs(6), core.TempAddrTTL)
		s.Close()
		time.Sleep(11 * time.Minute)

		s = open(t, o)
		type left struct {
			ttl, life time.Duration
		}
		for n, want := range map[int]left{
			1: {core.RecentlyConnectedAddrTTL, core.RecentlyConnectedAddrTTL},
			2: {core.RecentlyConnectedAddrTTL, core.RecentlyConnectedAddrTTL},
			3: {core.PermanentAddrTTL, 0},
			4: {hour, 49 * time.Minute},
		} {
			info, _ := s.Peer(id(n))
			if len(info.Addrs) != 1 || len(info.Addrs[0].Claims) != 1 {
				t.Errorf("peer %d: got %+v, want one claim", n, info.Addrs)
				continue
			}
			c := info.Addrs[0].Claims[0]
			var life time.Duration
			if !c.Expires.IsZero() {
				life = time.Until(c.Expires).Round(time.Minute)
			}
			if got := (left{c.TTL, life}); got != want {
				t.Errorf("peer %d: got %v, want %v", n, got, want)
			}
		}
		if got := len(s.Peers()); got != 4 {
			t.Errorf("peers: got %d, want 4: two have expired or were not written", got)
		}
		s.Close()
		if got := keys(t, o.Datastore); len(got) != 4 {
			t.Errorf("keys: got %q, want 4: what has expired is deleted", got)
		}
	})
}

// Values that cannot be read are skipped and logged, and harm nothing else
// (PS-27); keys of others are left alone.
func TestCorrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		d := newDisk()
		s := open(t, peerstore.Options{Datastore: d})
		for n := range 10 {
			s.AddAddrs(id(n), addrs(n), hour)
			_ = s.SetProtocols(id(n), "a")
			_ = s.Put(id(n), "k", "v")
		}
		s.Close()
		all := keys(t, d)
		for i := 0; i < len(all); i += 3 { // a third of everything, each in another way
			value, _ := d.Get(ctx, datastore.RawKey(all[i]))
			switch i % 4 {
			case 0:
				value = value[:len(value)-1]
			case 1:
				value = []byte{0xff}
			case 2:
				value = bytes.Repeat([]byte{0x0a}, 2<<20)
			case 3:
				value = append([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, value...)
			}
			_ = d.Put(ctx, datastore.RawKey(all[i]), value)
		}
		foreign := []string{"/peers/keys/CIQ/pub", "/peers/other/x", "/peers/gc/addrs/1/2", "/peers/x", "/peers/addrs/!", "/peersome/x"}
		for _, k := range foreign {
			_ = d.Put(ctx, datastore.RawKey(k), []byte("theirs"))
		}
		var log bytes.Buffer
		s = open(t, peerstore.Options{Datastore: d, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if got := len(s.PeersWithAddrs()); got < 6 || got == 10 {
			t.Errorf("peers with addresses: got %d, want those that were not damaged", got)
		}
		if err := s.Check(); err != nil {
			t.Error(err)
		}
		if text := log.String(); !strings.Contains(text, "unreadable=11") || !strings.Contains(text, "foreign=4") {
			t.Errorf("log: got %s, want 11 unreadable and 4 foreign", text)
		}
		s.Close()
		for _, k := range foreign {
			if ok, _ := d.Has(ctx, datastore.RawKey(k)); !ok {
				t.Errorf("%s: got deleted, want left alone", k)
			}
		}
	})
}

// A datastore that cannot be queried, and options that make no sense, are told at
// once.
func TestOpenFails(t *testing.T) {
	_, err := peerstore.New(context.Background(), peerstore.Options{Datastore: broken{}})
	if !errors.Is(err, errs.Storage) {
		t.Errorf("no query: got %v, want %v", err, errs.Storage)
	}
	_, err = peerstore.New(context.Background(), peerstore.Options{MaxPeers: -1, MaxBytes: -1})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "MaxPeers") || !strings.Contains(err.Error(), "MaxBytes") {
		t.Errorf("options: got %v, want both named", err)
	}
}

type broken struct{ datastore.Batching }

func (broken) Query(context.Context, query.Query) (query.Results, error) {
	return nil, errors.New("leveldb: closed")
}

// Whom a node dials when it starts (PS-31): peers that were dialled with success,
// the latest first, for a week, even when every claim to their addresses is long
// gone (PS-22, PS-29).
func TestRecentlyGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := peerstore.Options{Datastore: memory()}
		s := open(t, o)
		for n := 1; n <= 3; n++ {
			c := conn{remote: id(n), addr: addr(n), dialled: n != 2}
			s.Notifiee().Connected(nil, c)
			s.View(peerstore.Host).AddAddrs(id(n), addrs(n, n+10), core.ConnectedAddrTTL)
			time.Sleep(time.Minute)
			if n == 1 {
				wantNobody(t, "connected peers are not to be dialled", s)
			}
			s.View(peerstore.Host).UpdateAddrs(id(n), core.ConnectedAddrTTL, core.RecentlyConnectedAddrTTL)
			s.Notifiee().Disconnected(nil, c)
		}
		s.AddAddrs(id(4), addrs(4), hour)
		s.Close()
		time.Sleep(24 * hour)

		s = open(t, o)
		got := s.RecentlyGood(10)
		if len(got) != 2 || got[0].ID != id(3) || got[1].ID != id(1) {
			t.Fatalf("a day later: got %v, want 3 and 1: 2 was accepted, 4 never met", got)
		}
		wantAddrs(t, "the address that was dialled", got[1].Addrs, addrs(1))
		wantAddrs(t, "which the dialler does not see by itself", s.Addrs(id(1)), nil)
		if got := s.RecentlyGood(1); len(got) != 1 || got[0].ID != id(3) {
			t.Errorf("at most one: got %v, want 3", got)
		}
		time.Sleep(7 * 24 * hour)
		wantNobody(t, "a week later", s)
		if err := s.Check(); err != nil {
			t.Error(err)
		}
	})
}

func wantNobody(t *testing.T, why string, s *peerstore.Store) {
	t.Helper()
	if got := s.RecentlyGood(10); len(got) != 0 {
		t.Errorf("%s: got %v, want nobody", why, got)
	}
}
