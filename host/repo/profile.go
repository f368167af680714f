package repo

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/boxo/autoconf"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
)

// auto stands in a list for what the public network uses: DefaultBootstrap, or the
// public routers.
const auto = "auto"

// DefaultBootstrap are the multiaddrs of the peers through which the public IPFS
// network is joined.
func DefaultBootstrap() []string { return slices.Clone(autoconf.FallbackBootstrapPeers) }

// BootstrapPeers are the peers that Bootstrap names.
func (c *Config) BootstrapPeers() ([]peer.AddrInfo, error) {
	var peers []peer.AddrInfo
	for i, s := range c.Bootstrap {
		list := []string{s}
		if s == auto {
			list = DefaultBootstrap()
		}
		for _, s := range list {
			p, err := peer.AddrInfoFromString(s)
			if err != nil {
				return nil, errs.E(errs.Invalid, errs.Caller, "read config key", index("Bootstrap", i), err)
			}
			peers = append(peers, *p)
		}
	}
	return peers, nil
}

// Routers are the URLs of the routers that Routing.DelegatedRouters names, none of
// a router that does what the type of routing does by itself.
func (c *Config) Routers() []string {
	native := []string{autoconf.SystemAminoDHT}
	if c.Routing.Type.Or("") == "delegated" {
		native = nil
	}
	return autoconf.ExpandDelegatedEndpoints(c.Routing.DelegatedRouters, autoconf.GetMainnetFallbackConfig(), native,
		autoconf.RoutingV1ProvidersPath, autoconf.RoutingV1PeersPath, autoconf.RoutingV1IPNSPath)
}

// PeeringPeers are the peers that Peering names.
func (c *Config) PeeringPeers() ([]peer.AddrInfo, error) {
	var peers []peer.AddrInfo
	for i, p := range c.Peering.Peers {
		id, err := peer.Decode(p.ID)
		info := peer.AddrInfo{ID: id}
		for _, s := range p.Addrs {
			var a multiaddr.Multiaddr
			if err == nil {
				a, err = multiaddr.NewMultiaddr(s)
			}
			info.Addrs = append(info.Addrs, a)
		}
		if err != nil {
			return nil, errs.E(errs.Invalid, errs.Caller, "read config key", index("Peering.Peers", i), err)
		}
		peers = append(peers, info)
	}
	return peers, nil
}

// newConfig is the configuration of a new node.
func newConfig(id Identity) *Config {
	return &Config{
		Identity: id,
		Addresses: Addresses{
			Swarm:   []string{"/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"},
			API:     Strings{"/ip4/127.0.0.1/tcp/5001"},
			Gateway: Strings{"/ip4/127.0.0.1/tcp/8080"},
		},
		Bootstrap: []string{auto},
		Routing:   Routing{DelegatedRouters: []string{auto}},
		Discovery: Discovery{MDNS: MDNS{Enabled: true}},
		Datastore: Datastore{
			StorageMax:         DefaultStorageMax,
			StorageGCWatermark: DefaultGCWatermark,
			GCPeriod:           DefaultGCPeriod,
		},
		Exchange: Exchange{
			Use:     []string{Blockexc},
			Plugins: map[string]Plugin{Blockexc: {Config: []byte("{}")}},
		},
	}
}

// A Profile is a set of values for one kind of use.
type Profile struct {
	Name        string
	Description string
	apply       func(*Config)
}

var profiles = []Profile{{
	Name:        "server",
	Description: "For a machine with a public address: does not look for peers in its local network, nor dials or announces private addresses.",
	apply: func(c *Config) {
		c.Addresses.NoAnnounce = union(c.Addresses.NoAnnounce, privateRanges)
		c.Swarm.AddrFilters = union(c.Swarm.AddrFilters, privateRanges)
		c.Swarm.DisableNatPortMap = true
		c.Discovery.MDNS.Enabled = false
	},
}, {
	Name:        "test",
	Description: "For tests: listens on free ports of the loopback address only, and looks for nobody.",
	apply: func(c *Config) {
		const free = "/ip4/127.0.0.1/tcp/0"
		c.Addresses.Swarm = []string{free}
		c.Addresses.API = Strings{free}
		c.Addresses.Gateway = Strings{free}
		c.Bootstrap = nil
		c.Routing.DelegatedRouters = nil
		c.Swarm.DisableNatPortMap = true
		c.Discovery.MDNS.Enabled = false
		c.Routing.Type = Some("none")
	},
}}

// Profiles are the profiles there are, by name.
func Profiles() []Profile { return slices.Clone(profiles) }

// Apply sets the values of a profile.
func (c *Config) Apply(name string) error {
	names := make([]string, len(profiles))
	for i, p := range profiles {
		if names[i] = p.Name; p.Name == name {
			p.apply(c)
			return nil
		}
	}
	return errs.E(errs.Invalid, errs.Caller, "apply profile", clip(name), fmt.Errorf("there is no such profile, want one of %s", strings.Join(names, ", ")))
}

// privateRanges are not on the public internet: the special-purpose registries of
// IANA, as Kubo's profile of the same name has them.
var privateRanges = []string{
	"/ip4/10.0.0.0/ipcidr/8",
	"/ip4/100.64.0.0/ipcidr/10",
	"/ip4/169.254.0.0/ipcidr/16",
	"/ip4/172.16.0.0/ipcidr/12",
	"/ip4/192.0.0.0/ipcidr/24",
	"/ip4/192.0.2.0/ipcidr/24",
	"/ip4/192.168.0.0/ipcidr/16",
	"/ip4/198.18.0.0/ipcidr/15",
	"/ip4/198.51.100.0/ipcidr/24",
	"/ip4/203.0.113.0/ipcidr/24",
	"/ip4/240.0.0.0/ipcidr/4",
	"/ip6/100::/ipcidr/64",
	"/ip6/2001:2::/ipcidr/48",
	"/ip6/2001:db8::/ipcidr/32",
	"/ip6/fc00::/ipcidr/7",
	"/ip6/fe80::/ipcidr/10",
}

// union is a, and what b has beside it.
func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
