package peerstore_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoreds/pb"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/host/peerstore"
)

// What is written under /peers/addrs is what libp2p's own tools read there, and
// what they have written is read here.
func TestStockFormat(t *testing.T) {
	ctx := context.Background()
	d := memory()
	s := open(t, peerstore.Options{Datastore: d})
	s.View(peerstore.DHT).AddAddrs(id(1), addrs(1, 2), hour)
	s.Close()
	key := keys(t, d)[0]
	value, err := d.Get(ctx, datastore.RawKey(key))
	if err != nil {
		t.Fatal(err)
	}
	var rec pb.AddrBookRecord
	if err := proto.Unmarshal(value, &rec); err != nil {
		t.Fatal(err)
	}
	var got []multiaddr.Multiaddr
	for _, e := range rec.Addrs {
		a, err := multiaddr.NewMultiaddrBytes(e.Addr)
		if err != nil || e.Ttl != int64(hour) || e.Expiry == 0 {
			t.Errorf("entry: got %v (%v), want a TTL of %d and an expiry", e, err, hour)
		}
		got = append(got, a)
	}
	wantAddrs(t, "as libp2p reads it", got, addrs(1, 2))
	if string(rec.Id) != string(id(1)) {
		t.Errorf("id: got %x, want %x", rec.Id, id(1))
	}

	stock, err := proto.Marshal(&pb.AddrBookRecord{Id: []byte(id(1)), Addrs: []*pb.AddrBookRecord_AddrEntry{
		{Addr: addr(7).Bytes(), Expiry: rec.Addrs[0].Expiry, Ttl: int64(hour)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(ctx, datastore.RawKey(key), stock); err != nil {
		t.Fatal(err)
	}
	s = open(t, peerstore.Options{Datastore: d})
	wantAddrs(t, "as libp2p wrote it", s.Addrs(id(1)), addrs(7))
	if info, _ := s.Peer(id(1)); info.Addrs[0].Claims[0].Source != peerstore.Host {
		t.Errorf("source: got %v, want %v", info.Addrs[0].Claims[0].Source, peerstore.Host)
	}
}

// Whatever bytes are on disk, decoding ends, and what it understood is encoded
// and decoded to the same.
func FuzzDecode(f *testing.F) {
	d := memory()
	s := open(f, peerstore.Options{Datastore: d})
	private, p := key(1)
	s.View(peerstore.DHT).AddAddrs(p, addrs(1, 2), hour)
	if _, err := s.ConsumePeerRecord(signed(f, private, 1, addrs(3)), hour); err != nil {
		f.Fatal(err)
	}
	s.Notifiee().Connected(nil, conn{remote: p, addr: addr(4), dialled: true})
	_ = s.SetProtocols(p, "a", "b")
	_ = s.Put(p, "k", "v")
	if err := s.Flush(context.Background()); err != nil {
		f.Fatal(err)
	}
	results, err := d.Query(context.Background(), query.Query{})
	if err != nil {
		f.Fatal(err)
	}
	all, err := results.Rest()
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range all {
		f.Add(e.Value, e.Key)
	}
	f.Fuzz(func(t *testing.T, value []byte, key string) {
		_, _ = peerstore.DecodeProtocols(value)
		_, _ = peerstore.DecodeMetadata(value)
		if name, err := peerstore.DecodeMetadataKey(key); err == nil && len(name) <= 128 {
			_ = name
		}
		_, once, err := peerstore.DecodeAddrs(p, value)
		if err != nil || once == nil {
			return
		}
		_, twice, err := peerstore.DecodeAddrs(p, once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("decoded, encoded, decoded, encoded:\n got %x (%v)\nwant %x", twice, err, once)
		}
	})
}

// Every key of metadata has a place of its own below its peer's, and is found
// there again.
func FuzzMetadataKey(f *testing.F) {
	for _, k := range []string{"", ".", "..", "%", "a/b", "AgentVersion", "%2E", "é"} {
		f.Add(k)
	}
	p := id(1)
	base := peerstore.MetadataKey(p, "x").Parent()
	f.Fuzz(func(t *testing.T, key string) {
		k := peerstore.MetadataKey(p, key)
		if datastore.NewKey(k.String()) != k || k.Parent() != base {
			t.Fatalf("%q: got %s, want a clean key below %s", key, k, base)
		}
		if got, err := peerstore.DecodeMetadataKey(k.BaseNamespace()); err != nil || got != key {
			t.Errorf("%q: got %q, %v", key, got, err)
		}
	})
}
