package peerstore_test

import (
	"testing"

	"github.com/benbjohnson/clock"
	core "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/test"

	"github.com/codexchange/codexchange/host/peerstore"
)

// kinds are the ways to use a Store that libp2p's suites run over.
var kinds = map[string]func() peerstore.Options{
	"in memory":  func() peerstore.Options { return peerstore.Options{} },
	"persistent": func() peerstore.Options { return peerstore.Options{Datastore: memory(), FlushPeers: 1} },
}

// What any libp2p peerstore must do (PS-2, PS-4 to PS-8, PS-28, PS-32), by
// libp2p's own suites.
func TestSuites(t *testing.T) {
	for name, options := range kinds {
		t.Run(name, func(t *testing.T) {
			with := func(o peerstore.Options) (*peerstore.Store, func()) {
				s := open(t, o)
				return s, func() { s.Close() }
			}
			t.Run("Peerstore", func(t *testing.T) {
				test.TestPeerstore(t, func() (core.Peerstore, func()) { return with(options()) })
			})
			t.Run("KeyBook", func(t *testing.T) {
				test.TestKeyBook(t, func() (core.KeyBook, func()) { return with(options()) })
			})
			t.Run("AddrBook", func(t *testing.T) {
				mock := clock.NewMock()
				test.TestAddrBook(t, func() (core.AddrBook, func()) {
					o := options()
					o.Now, o.MaxAddrs = mock.Now, 128 // it adds a hundred at once
					return with(o)
				}, mock)
			})
			t.Run("AddrBook of a view", func(t *testing.T) {
				mock := clock.NewMock()
				test.TestAddrBook(t, func() (core.AddrBook, func()) {
					o := options()
					o.Now, o.MaxAddrs = mock.Now, 128
					s, done := with(o)
					return s.View(peerstore.Host), done
				}, mock)
			})
			t.Run("ProtoStoreLimits", func(t *testing.T) {
				const limit = 10
				o := options()
				o.MaxProtocols = limit
				s, done := with(o)
				defer done()
				test.TestPeerstoreProtoStoreLimits(t, s, limit)
				test.TestPeerstoreProtoStoreLimits(t, s.View(peerstore.Host), limit)
			})
		})
	}
}
