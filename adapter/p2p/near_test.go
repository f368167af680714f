package p2p_test

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/adapter/p2p"
)

// TestB8Near: a peer on the local network is near, and one that nobody is connected to
// is not unless it is kept by choice.
func TestB8Near(t *testing.T) {
	a, b := newHost(t, secp256k1(t)), newHost(t, secp256k1(t))
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
	n, err := p2p.New(a, p2p.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !n.Near(b.ID()) {
		t.Errorf("a peer at %v is near: got false, want true", b.Addrs())
	}
	far := newHost(t, secp256k1(t)).ID()
	if n.Near(far) {
		t.Error("a peer without a connection is near: got true, want false")
	}
}
