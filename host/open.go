package host

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/pbnjay/memory"

	"github.com/codexchange/codexchange/host/finding"
	"github.com/codexchange/codexchange/host/repo"
)

// Open starts a node over a repo, as the repo's configuration says; offline if it
// shall only use what is there. Ctx bounds the start alone. The repo remains the caller's, to be closed after
// the node. Each of more may change the options once they are made.
func Open(ctx context.Context, r *repo.Repo, offline bool, log *slog.Logger, more ...func(*Options)) (*Node, error) {
	c := r.Config()
	opts := Options{
		Blocks: r.Blocks(), Datastore: r.Datastore(), Identity: r.Identity(),
		Use: c.Exchange.Use, Plugins: make(map[string]Plugin), Listen: c.Addresses.Swarm,
		Offline: offline, CountTraffic: !c.Swarm.DisableBandwidthMetrics, Log: log,
	}
	for name, p := range c.Exchange.Plugins {
		opts.Plugins[name] = Plugin{Path: p.Path, SHA256: p.SHA256, InProcess: p.InProcess, Config: json.RawMessage(p.Config)}
	}
	if err := opts.contact(c, r); err != nil {
		return nil, err
	}
	for _, change := range more {
		change(&opts)
	}
	return New(ctx, opts)
}

// contact is what the configuration says of connections and routing.
func (o *Options) contact(c *repo.Config, r *repo.Repo) error {
	s, m := &c.Swarm, &c.Swarm.ConnMgr
	o.Swarm = Swarm{
		Announce: c.Addresses.Announce, AppendAnnounce: c.Addresses.AppendAnnounce, NoAnnounce: c.Addresses.NoAnnounce,
		Filters: s.AddrFilters, MapPorts: !s.DisableNatPortMap, Trusted: s.ResourceMgr.Allowlist,
		Unlimited: !s.ResourceMgr.Enabled.Or(true), MaxFiles: int(s.ResourceMgr.MaxFileDescriptors.Or(0)),
		MaxMemory: int64(memory.TotalMemory() / 2),
	}
	if max := s.ResourceMgr.MaxMemory; !max.IsDefault() {
		size, err := repo.ParseSize(max.Or(""))
		if err != nil {
			return fmt.Errorf("Swarm.ResourceMgr.MaxMemory is %q, %w", max.Or(""), err)
		}
		o.Swarm.MaxMemory = int64(min(size, math.MaxInt64))
	}
	if m.Type.Or("basic") == "basic" {
		o.Swarm.LowWater, o.Swarm.HighWater = int(m.LowWater.Or(repo.DefaultLowWater)), int(m.HighWater.Or(repo.DefaultHighWater))
		o.Swarm.Grace = m.GracePeriod.Or(repo.DefaultGracePeriod)
	}

	peers, err := c.PeeringPeers()
	if err != nil {
		return err
	}
	o.Routing = Routing{
		RouterOptions: finding.RouterOptions{
			Type: c.Routing.Type.Or(finding.Auto), Delegated: c.Routers(), Loopback: c.Routing.LoopbackAddressesOnLanDHT.Or(false),
		},
		ContactOptions: finding.ContactOptions{
			// Read each time, so that nodes which are added need no restart.
			Bootstrap: func() []peer.AddrInfo {
				nodes, err := r.Config().BootstrapPeers()
				if err != nil {
					o.Log.Warn("bootstrap nodes are not dialled", "err", err)
				}
				return nodes
			},
			MDNS: c.Discovery.MDNS.Enabled, Peering: peers,
		},
		Forget: r.ReadOnly(),
	}
	if c.Provide.Enabled.Or(true) && !r.ReadOnly() {
		o.Routing.Provide = Provide{
			Strategy: c.Provide.Strategy.Or(ProvideAll), Interval: c.Provide.DHT.Interval.Or(repo.DefaultProvideInterval),
		}
	}
	return nil
}
