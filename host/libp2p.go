package host

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	connmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/codexchange/codexchange/adapter/bitswap"
	"github.com/codexchange/codexchange/adapter/p2p"
)

// Swarm says how a node deals with connections. The zero value keeps all of them,
// within libp2p's limits, and announces the addresses that libp2p finds.
type Swarm struct {
	// HighWater is the number of connections above which those of least use are
	// closed, but for those younger than Grace, until LowWater are left. 0: none is.
	LowWater, HighWater int
	Grace               time.Duration

	// Announce are the addresses that others are told instead of those that were
	// found, and AppendAnnounce beside them; NoAnnounce are those that they are not
	// told, and ranges of them, with /ipcidr/.
	Announce, AppendAnnounce, NoAnnounce []string
	// Filters are ranges that are neither dialled nor accepted, with /ipcidr/.
	Filters []string
	// MapPorts asks the router of the local network to let connections in.
	MapPorts bool

	// Unlimited puts no limit to what peers may use.
	Unlimited bool
	// MaxMemory in bytes and MaxFiles are what the limits are made for. 0: what
	// libp2p thinks right for this machine.
	MaxMemory int64
	MaxFiles  int
	// Trusted are addresses and ranges that the limits do not hold for.
	Trusted []string
}

// NewIdentity makes the key of a new node. It is a secp256k1 key: classic Codex
// nodes accept no other, and IPFS nodes accept it too.
func NewIdentity() (crypto.PrivKey, error) {
	key, err := p2p.NewIdentity()
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	return key, nil
}

// newLibp2p makes a libp2p host that does not listen yet, over a peerstore that it
// closes. It speaks what a connection to a classic Codex node is made of: TCP and
// Noise, with yamux for those who have it and mplex for those who do not.
//
// What passes is counted in traffic, unless that is nil.
func newLibp2p(key crypto.PrivKey, peers peerstore.Peerstore, s Swarm, traffic metrics.Reporter) (_ host.Host, err error) {
	var closers []func() error
	defer func() {
		if err != nil {
			err = fmt.Errorf("make libp2p host: %w", err)
			for _, c := range slices.Backward(closers) {
				err = errors.Join(err, c())
			}
		}
	}()
	announce, err := s.announced()
	if err != nil {
		return nil, err
	}
	filters, err := ranges("filter", s.Filters)
	if err != nil {
		return nil, err
	}
	limits, err := s.limits()
	if err != nil {
		return nil, err
	}
	closers = append(closers, limits.Close)
	options := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.Peerstore(peers),
		libp2p.NoListenAddrs,
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.Muxer(mplex.ID, mplex.DefaultTransport),
		libp2p.ResourceManager(limits),
		libp2p.BandwidthReporter(traffic),
		libp2p.UserAgent("codexchange/" + Version()),
		libp2p.AddrsFactory(announce),
		libp2p.ConnectionGater(gater{filters}),
	}
	if s.HighWater < 0 || s.LowWater > s.HighWater {
		return nil, fmt.Errorf("HighWater is %d, want 0 for no limit, or at least LowWater, %d", s.HighWater, s.LowWater)
	}
	if s.HighWater > 0 {
		conns, err := connmgr.NewConnManager(s.LowWater, s.HighWater, connmgr.WithGracePeriod(s.Grace))
		if err != nil {
			return nil, err
		}
		closers = append(closers, conns.Close)
		options = append(options, libp2p.ConnectionManager(conns))
	}
	if s.MapPorts {
		options = append(options, libp2p.NATPortMap())
	}
	return libp2p.New(options...)
}

// limits are those of libp2p, but for the streams of Bitswap.
func (s Swarm) limits() (network.ResourceManager, error) {
	if s.Unlimited {
		return &network.NullResourceManager{}, nil
	}
	scaled := rcmgr.DefaultLimits.AutoScale()
	if s.MaxMemory > 0 || s.MaxFiles > 0 {
		// What libp2p has taken for this machine's is what is above the base.
		auto, base := scaled.ToPartialLimitConfig().System, rcmgr.DefaultLimits.SystemBaseLimit
		memory := cmp.Or(s.MaxMemory, int64(auto.Memory)-base.Memory)
		files := cmp.Or(s.MaxFiles, int(auto.FD)-base.FD)
		scaled = rcmgr.DefaultLimits.Scale(memory, files)
	}
	trusted, err := addrs("trusted address", s.Trusted)
	if err != nil {
		return nil, err
	}
	lifted := bitswap.Limits()
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(lifted.Build(scaled)), rcmgr.WithAllowlistedMultiaddrs(trusted))
}

// announced is what others are told of the addresses that were found.
func (s Swarm) announced() (func([]multiaddr.Multiaddr) []multiaddr.Multiaddr, error) {
	instead, err := addrs("address to announce", s.Announce)
	if err != nil {
		return nil, err
	}
	beside, err := addrs("address to announce", s.AppendAnnounce)
	if err != nil {
		return nil, err
	}
	not, err := addrs("address not to announce", s.NoAnnounce)
	if err != nil {
		return nil, err
	}
	hidden := multiaddr.NewFilters()
	for _, a := range not {
		if r, err := manet.MultiaddrToIPNet(a); err == nil {
			hidden.AddFilter(*r, multiaddr.ActionDeny)
		}
	}
	return func(found []multiaddr.Multiaddr) []multiaddr.Multiaddr {
		if len(instead) > 0 {
			found = instead
		}
		var told []multiaddr.Multiaddr
		for _, a := range slices.Concat(found, beside) {
			if !multiaddr.Contains(told, a) && !multiaddr.Contains(not, a) && !hidden.AddrBlocked(a) {
				told = append(told, a)
			}
		}
		return told
	}, nil
}

// addrs are multiaddrs of a configuration.
func addrs(what string, list []string) ([]multiaddr.Multiaddr, error) {
	var out []multiaddr.Multiaddr
	for _, s := range list {
		a, err := multiaddr.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", what, s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// ranges are addresses with /ipcidr/, denied.
func ranges(what string, list []string) (*multiaddr.Filters, error) {
	masks, err := addrs(what, list)
	if err != nil {
		return nil, err
	}
	denied := multiaddr.NewFilters()
	for i, m := range masks {
		r, err := manet.MultiaddrToIPNet(m)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w, want a range such as /ip4/10.0.0.0/ipcidr/8", what, list[i], err)
		}
		denied.AddFilter(*r, multiaddr.ActionDeny)
	}
	return denied, nil
}

// A gater has no connections with addresses that are denied.
type gater struct{ denied *multiaddr.Filters }

func (g gater) InterceptAddrDial(_ peer.ID, a multiaddr.Multiaddr) bool {
	return !g.denied.AddrBlocked(a)
}

func (g gater) InterceptAccept(c network.ConnMultiaddrs) bool {
	return !g.denied.AddrBlocked(c.RemoteMultiaddr())
}

func (gater) InterceptPeerDial(peer.ID) bool { return true }

func (gater) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool { return true }

func (gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

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
