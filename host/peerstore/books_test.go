package peerstore_test

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/peerstore"
)

// Each of the four books can get, set (replace), add (merge) and delete what it
// has of a peer, and above them are all data of a peer, the list of peers, and
// the end of one (PS-2, PS-4, PS-5, PS-6, PS-7, PS-8).
func TestBooks(t *testing.T) {
	s := open(t, peerstore.Options{})
	p := id(1)

	s.AddAddrs(p, addrs(1), hour)
	s.AddAddrs(p, addrs(2), hour)
	wantAddrs(t, "addresses added", s.Addrs(p), addrs(1, 2))
	s.ReplaceAddrs(p, addrs(3), hour)
	wantAddrs(t, "addresses set", s.Addrs(p), addrs(3))
	s.ClearAddrs(p)
	wantAddrs(t, "addresses deleted", s.Addrs(p), nil)

	protocols := func(why string, want ...protocol.ID) {
		t.Helper()
		if got, err := s.GetProtocols(p); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v, %v, want %v", why, got, err, want)
		}
	}
	_ = s.AddProtocols(p, "b")
	_ = s.AddProtocols(p, "a", "b")
	protocols("protocols added", "a", "b")
	_ = s.SetProtocols(p, "c")
	protocols("protocols set", "c")
	_ = s.SetProtocols(p)
	protocols("protocols deleted")

	private, _, err := crypto.GenerateSecp256k1Key(&counter{n: 5})
	if err != nil {
		t.Fatal(err)
	}
	owner, err := peer.IDFromPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.PubKey(owner); got == nil || !got.Equals(private.GetPublic()) || len(s.PeersWithKeys()) != 0 {
		t.Errorf("a key that is part of the id: got %v, %v with keys, want it, and nobody remembered for asking", got, s.PeersWithKeys())
	}
	for _, err := range []error{s.AddPubKey(p, private.GetPublic()), s.AddPrivKey(p, private), s.AddPubKey(p, nil), s.AddPrivKey(p, nil)} {
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("somebody else's key, or none: got %v, want %v", err, errs.Invalid)
		}
	}
	_, _ = s.AddPubKey(owner, private.GetPublic()), s.AddPrivKey(owner, private)
	s.DeleteKeys(owner)
	if s.PrivKey(owner) != nil || len(s.PeersWithKeys()) != 0 {
		t.Errorf("keys deleted: got %v of %v", s.PrivKey(owner), s.PeersWithKeys())
	}

	metadata := func(why string, want map[string]any) {
		t.Helper()
		if got := s.Metadata(p); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", why, got, want)
		}
	}
	_, _ = s.Put(p, "k", "1"), s.Put(p, "l", 2)
	_ = s.Put(p, "k", "3")
	metadata("metadata added", map[string]any{"k": "3", "l": 2})
	_ = s.SetMetadata(p, map[string]any{"l": 4, "m": true})
	metadata("metadata set", map[string]any{"l": 4, "m": true})
	s.DeleteMetadata(p, "l", "none")
	metadata("a key deleted", map[string]any{"m": true})
	_ = s.SetMetadata(p, nil)
	metadata("metadata deleted", map[string]any{})
	if _, err := s.Get(p, "m"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("no such key: got %v, want %v", err, core.ErrNotFound)
	}

	if got := s.Peers(); len(got) != 0 {
		t.Errorf("when everything is deleted: got peers %v, want none", got)
	}
	_ = s.Put(id(1), "k", "v")
	_ = s.SetProtocols(id(2), "a")
	s.AddAddrs(id(3), addrs(1), hour)
	s.RecordLatency(id(4), 100*time.Millisecond)
	s.RecordLatency(id(4), 200*time.Millisecond)
	if got := s.Peers(); len(got) != 4 {
		t.Errorf("peers with one thing known each: got %d, want 4", len(got))
	}
	if info, known := s.Peer(id(4)); !known || info.Latency != 110*time.Millisecond {
		t.Errorf("latency: got %v, want 110ms", info.Latency)
	}
	s.Notifiee().Connected(nil, conn{remote: id(3)})
	for n := range 4 {
		s.Forget(id(n + 1))
	}
	if info, _ := s.Peer(id(3)); len(s.Peers()) != 1 || !info.Connected || len(info.Addrs) != 0 {
		t.Errorf("after forgetting all: got %v, want the connected one, of which nothing else is known", s.Peers())
	}
	s.Notifiee().Disconnected(nil, conn{remote: id(3)})
	if got := s.Peers(); len(got) != 0 {
		t.Errorf("after its connection: got %v, want none", got)
	}
}

// Who forgets a connected peer does not take it from those who use its protocols,
// for it does not say them again: they hear of no change, and what it spoke is on disk.
func TestForgetConnected(t *testing.T) {
	d := newDisk()
	s := open(t, peerstore.Options{Datastore: d})
	s.Notifiee().Connected(nil, conn{remote: id(1)})
	s.AddAddrs(id(1), addrs(1), hour)
	if err := s.SetProtocols(id(1), "a"); err != nil {
		t.Fatal(err)
	}
	changes := s.Subscribe(peerstore.Changes)
	defer changes.Close()
	s.Forget(id(1))
	e, err := changes.Next(t.Context())
	if gone, ok := e.(peerstore.EvtPeerAddrsChanged); err != nil || !ok || len(gone.Removed) != 1 {
		t.Errorf("told first: got %v, %v, want that its address is gone", e, err)
	}
	s.AddAddrs(id(2), addrs(1), hour)
	if e, err := changes.Next(t.Context()); err != nil || e != (peerstore.EvtPeerDiscovered{Peer: id(2)}) {
		t.Errorf("told then: got %v, %v, want the next peer", e, err)
	}
	if spoken, _ := s.GetProtocols(id(1)); len(spoken) != 1 {
		t.Errorf("it speaks %v, want what it spoke", spoken)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, _ := open(t, peerstore.Options{Datastore: d}).Peer(id(1)); len(info.Recalled) != 1 || len(info.Addrs) != 0 {
		t.Errorf("after a restart: got %+v, want its protocols alone", info)
	}
}
