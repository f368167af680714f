package host

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/adapter/p2p"
)

// NewIdentity makes the key of a new node. It is a secp256k1 key: classic Codex
// nodes accept no other, and IPFS nodes accept it too.
func NewIdentity() (crypto.PrivKey, error) {
	key, err := p2p.NewIdentity()
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	return key, nil
}

// newLibp2p makes a libp2p host that does not listen yet. It speaks what a
// connection to a classic Codex node is made of: TCP and Noise, with yamux for
// those who have it and mplex for those who do not.
//
// The limits are libp2p's own, but for the streams of Bitswap. What passes is
// counted in traffic, unless that is nil.
func newLibp2p(key crypto.PrivKey, traffic metrics.Reporter) (host.Host, error) {
	lifted := bitswap.Limits()
	limits, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(lifted.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		return nil, fmt.Errorf("make libp2p host: %w", err)
	}
	h, err := libp2p.New(
		libp2p.Identity(key),
		libp2p.NoListenAddrs,
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.Muxer(mplex.ID, mplex.DefaultTransport),
		libp2p.ResourceManager(limits),
		libp2p.BandwidthReporter(traffic),
		libp2p.UserAgent("codexchange/"+Version()),
	)
	if err != nil {
		return nil, fmt.Errorf("make libp2p host: %w", errors.Join(err, limits.Close()))
	}
	return h, nil
}

// listen makes the host listen on each of the addresses.
func listen(h host.Host, addrs []string) error {
	for _, a := range addrs {
		m, err := multiaddr.NewMultiaddr(a)
		if err == nil {
			err = h.Network().Listen(m)
		}
		if err != nil {
			return fmt.Errorf("listen on %q: %w", a, err)
		}
	}
	return nil
}
