package repo

import (
	"encoding/hex"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/boxo/autoconf"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// maxProvideInterval is how long the DHT keeps what it was told.
const maxProvideInterval = 48 * time.Hour

// check notes every value that cannot be used.
func (c *Config) check(p *problems) {
	c.Identity.check(p)

	a := &c.Addresses
	p.addrs("Addresses.Swarm", a.Swarm)
	p.addrs("Addresses.Announce", a.Announce)
	p.addrs("Addresses.AppendAnnounce", a.AppendAnnounce)
	p.addrs("Addresses.NoAnnounce", a.NoAnnounce)
	p.addrs("Addresses.API", a.API)
	p.addrs("Addresses.Gateway", a.Gateway)
	for i, s := range c.Bootstrap {
		if s != auto {
			p.peerAddr(index("Bootstrap", i), s)
		}
	}
	c.Routing.check(p)
	for i, peering := range c.Peering.Peers {
		path := index("Peering.Peers", i)
		if _, err := peer.Decode(peering.ID); err != nil {
			p.add(path+".ID", "found %q, want a peer id", clip(peering.ID))
		}
		p.addrs(path+".Addrs", peering.Addrs)
	}

	c.Swarm.check(p)

	d := &c.Datastore
	if _, err := d.MaxBytes(); err != nil {
		p.add("Datastore.StorageMax", "found %q, %v", clip(d.StorageMax), err)
	}
	if d.StorageGCWatermark < 0 || d.StorageGCWatermark > 100 {
		p.add("Datastore.StorageGCWatermark", "found %d, want a percentage, 0 to 100", d.StorageGCWatermark)
	}
	if t, err := time.ParseDuration(orDefault(d.GCPeriod, DefaultGCPeriod)); err != nil || t <= 0 {
		p.add("Datastore.GCPeriod", `found %q, want a duration above 0, such as "1h"`, clip(d.GCPeriod))
	}
	p.atLeast("Datastore.BlockKeyCacheSize", d.BlockKeyCacheSize, 0)

	p.oneOf("Provide.Strategy", c.Provide.Strategy, ProvideStrategies)
	if t := c.Provide.DHT.Interval.Or(DefaultProvideInterval); t < 0 || t > maxProvideInterval {
		p.add("Provide.DHT.Interval", "found %v, want 0 to %v", t, maxProvideInterval)
	}

	c.Exchange.check(p)

	for name, auth := range c.API.Authorizations {
		path := join("API.Authorizations", name)
		kind, rest, typed := strings.Cut(auth.AuthSecret, ":")
		if auth.AuthSecret == "" || typed && (kind != "bearer" && kind != "basic" || rest == "") {
			p.add(path+".AuthSecret", `found none or one of another type, want "bearer:token" or "basic:user:password"`)
		}
		for i, prefix := range auth.AllowedPaths {
			if !strings.HasPrefix(prefix, "/") {
				p.add(index(path+".AllowedPaths", i), `found %q, want a path such as "/api/v0"`, clip(prefix))
			}
		}
	}

	g := &c.Gateway
	p.notNegative("Gateway.RetrievalTimeout", g.RetrievalTimeout)
	p.notNegative("Gateway.MaxRequestDuration", g.MaxRequestDuration)
	p.atLeast("Gateway.MaxConcurrentRequests", g.MaxConcurrentRequests, 0)

	// What comes from maps has no order of its own.
	slices.SortStableFunc(*p, func(a, b Problem) int { return strings.Compare(a.Key, b.Key) })
}

func (i *Identity) check(p *problems) {
	const idPath, keyPath = "Identity.PeerID", "Identity.PrivKey"
	_, id, err := i.key()
	if err != nil {
		p.add(keyPath, "%v", err)
	}
	if p.at(keyPath) {
		return
	}
	if got, err := peer.Decode(i.PeerID); err != nil {
		p.add(idPath, "found %q, want the peer id of PrivKey, %s", clip(i.PeerID), id)
	} else if got != id {
		p.add(idPath, "found %s, want that of PrivKey, %s", got, id)
	}
}

func (r *Routing) check(p *problems) {
	if r.Type.Or("") == "custom" {
		p.add("Routing.Type", "found %q, want one of %s: routers cannot be put together one by one (Routing.Routers); "+
			"delegated asks those of Routing.DelegatedRouters", "custom", strings.Join(RoutingTypes, ", "))
	}
	p.oneOf("Routing.Type", r.Type, RoutingTypes)
	for i, url := range r.DelegatedRouters {
		if url == auto {
			continue
		}
		if _, err := autoconf.DetermineKnownCapabilities(url, true, false); err != nil || !isHTTP(url) {
			p.add(index("Routing.DelegatedRouters", i), `found %q, want "auto" or the URL of a router, without a path or with one such as %s`,
				clip(url), autoconf.RoutingV1ProvidersPath)
		}
	}
}

func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func (s *Swarm) check(p *problems) {
	p.ranges("Swarm.AddrFilters", s.AddrFilters)
	m := &s.ConnMgr
	p.oneOf("Swarm.ConnMgr.Type", m.Type, []string{"basic", "none"})
	p.atLeast("Swarm.ConnMgr.LowWater", m.LowWater, 0)
	p.atLeast("Swarm.ConnMgr.HighWater", m.HighWater, 0)
	p.notNegative("Swarm.ConnMgr.GracePeriod", m.GracePeriod)
	low, high := m.LowWater.Or(DefaultLowWater), m.HighWater.Or(DefaultHighWater)
	if low > high && !p.at("Swarm.ConnMgr.LowWater") {
		p.add("Swarm.ConnMgr.HighWater", "found %d, want at least LowWater, %d", high, low)
	}
	r := &s.ResourceMgr
	if !r.MaxMemory.IsDefault() {
		if _, err := ParseSize(r.MaxMemory.Or("")); err != nil {
			p.add("Swarm.ResourceMgr.MaxMemory", "found %q, %v", clip(r.MaxMemory.Or("")), err)
		}
	}
	p.atLeast("Swarm.ResourceMgr.MaxFileDescriptors", r.MaxFileDescriptors, 1)
	p.addrs("Swarm.ResourceMgr.Allowlist", r.Allowlist)
}

var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

func (e *Exchange) check(p *problems) {
	builtIn := []string{Bitswap, Blockexc}
	for i, name := range e.Use {
		path := index("Exchange.Use", i)
		_, isPlugin := e.Plugins[name]
		if !isPlugin && !slices.Contains(builtIn, name) {
			p.add(path, "found %q, want %s, %s or a key of Exchange.Plugins", clip(name), Bitswap, Blockexc)
		} else if slices.Index(e.Use, name) < i {
			p.add(path, "found %q twice, want it once", clip(name))
		}
	}
	for name, plugin := range e.Plugins {
		path := join("Exchange.Plugins", name)
		if !pluginName.MatchString(name) {
			p.add(path, "found this name, want up to 64 letters, digits, - and _")
		}
		switch sum, err := hex.DecodeString(plugin.SHA256); {
		case plugin.Path == "" && plugin.SHA256 != "":
			p.add(path+".SHA256", "found the sum of a program, want none without a Path")
		case plugin.Path == "" && !slices.Contains(builtIn, name):
			p.add(path+".Path", "found none, want the absolute path of a program: only %s and %s are built in", Bitswap, Blockexc)
		case plugin.Path == "":
		case !filepath.IsAbs(plugin.Path):
			p.add(path+".Path", "found %q, want an absolute path", clip(plugin.Path))
		case plugin.InProcess:
			p.add(path+".InProcess", "found true, want false with a Path: a program runs in a process of its own")
		case err != nil || len(sum) != 32:
			p.add(path+".SHA256", "found %q, want the 64 hex digits that sha256sum prints for %s", clip(plugin.SHA256), clip(plugin.Path))
		}
		if len(plugin.Config) > 0 && plugin.Config[0] != '{' && string(plugin.Config) != "null" {
			p.add(path+".Config", "found %s, want an object", found(plugin.Config))
		}
	}
}

func (p *problems) addrs(path string, list []string) {
	for i, s := range list {
		if _, err := multiaddr.NewMultiaddr(s); err != nil {
			p.add(index(path, i), `found %q, want a multiaddr such as "/ip4/127.0.0.1/tcp/4001"`, clip(s))
		}
	}
}

func (p *problems) ranges(path string, list []string) {
	for i, s := range list {
		m, err := multiaddr.NewMultiaddr(s)
		if err == nil {
			_, err = manet.MultiaddrToIPNet(m)
		}
		if err != nil {
			p.add(index(path, i), `found %q, want a range such as "/ip4/10.0.0.0/ipcidr/8"`, clip(s))
		}
	}
}

func (p *problems) peerAddr(path, s string) {
	if _, err := peer.AddrInfoFromString(s); err != nil {
		p.add(path, "found %q, want %q or a multiaddr that ends with /p2p/ and a peer id", clip(s), auto)
	}
}

func (p *problems) oneOf(path string, o Optional[string], values []string) {
	if v := o.Or(values[0]); !slices.Contains(values, v) {
		p.add(path, "found %q, want one of %s", clip(v), strings.Join(values, ", "))
	}
}

func (p *problems) atLeast(path string, o Optional[int64], least int64) {
	if v := o.Or(least); v < least {
		p.add(path, "found %d, want at least %d", v, least)
	}
}

func (p *problems) notNegative(path string, o Optional[time.Duration]) {
	if v := o.Or(0); v < 0 {
		p.add(path, "found %v, want at least 0", v)
	}
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func orDefault(s, byDefault string) string {
	if s == "" {
		return byDefault
	}
	return s
}

// MaxBytes is StorageMax in bytes.
func (d *Datastore) MaxBytes() (uint64, error) {
	return ParseSize(orDefault(d.StorageMax, DefaultStorageMax))
}

var units = map[string]float64{
	"": 1, "b": 1,
	"k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9, "t": 1e12, "tb": 1e12, "p": 1e15, "pb": 1e15,
	"ki": 1 << 10, "kib": 1 << 10, "mi": 1 << 20, "mib": 1 << 20, "gi": 1 << 30, "gib": 1 << 30,
	"ti": 1 << 40, "tib": 1 << 40, "pi": 1 << 50, "pib": 1 << 50,
}

// ParseSize reads a size as Kubo writes it: a number and a unit, "10GB", "1.5 GiB".
func ParseSize(s string) (uint64, error) {
	number := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, known := units[strings.ToLower(s[len(number):])]
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !known || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) || n*unit >= math.MaxUint64 {
		return 0, fmt.Errorf(`want a size such as "10GB" or "512MiB"`)
	}
	return uint64(n * unit), nil
}
