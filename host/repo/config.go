package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Config is the configuration of a node. Its keys in the file are the names of
// its fields, and have Kubo's meaning where Kubo has them. Optional values that
// are not set are what their comment says.
//
// A Config is a plain value for one goroutine; [Config.Clone] makes another.
// Make one with [Init] or [ParseConfig]: the zero value has no identity.
type Config struct {
	Identity  Identity
	Addresses Addresses
	Bootstrap []string // multiaddrs with /p2p/; "auto" stands for [DefaultBootstrap]
	Discovery Discovery
	Routing   Routing
	Peering   Peering
	Swarm     Swarm
	Datastore Datastore
	Provide   Provide
	Exchange  Exchange
	API       API
	Gateway   Gateway
	Unknown
}

// Identity is who the node is.
type Identity struct {
	PeerID  string
	PrivKey string // base64 of the key as a libp2p protobuf; fits PeerID
	Unknown
}

// String leaves the key out of what is logged.
func (i Identity) String() string { return i.PeerID }

// Addresses are where the node listens and what it says about that.
type Addresses struct {
	Swarm          []string // multiaddrs to listen on for peers
	Announce       []string // instead of those that were found
	AppendAnnounce []string // beside those
	NoAnnounce     []string // never: addresses, or ranges with /ipcidr/
	API            Strings  // multiaddrs of the RPC API
	Gateway        Strings  // multiaddrs of the gateway; none is no gateway
	Unknown
}

// Discovery is how peers nearby are found.
type Discovery struct {
	MDNS MDNS
	Unknown
}

// MDNS is discovery in the local network.
type MDNS struct {
	Enabled bool
	Unknown
}

// Routing is how it is found out who has a block.
type Routing struct {
	Type                      Optional[string] // one of RoutingTypes; "auto"
	DelegatedRouters          []string         // URLs; "auto" stands for the public ones. Of types auto, autoclient and delegated
	LoopbackAddressesOnLanDHT Optional[bool]   // false; true makes a DHT of the nodes of one machine
	Unknown
}

// RoutingTypes are the values of Routing.Type.
var RoutingTypes = []string{"auto", "autoclient", "delegated", "dht", "dhtclient", "dhtserver", "none"}

// Peering is which peers the node stays connected to.
type Peering struct {
	Peers []Peer
	Unknown
}

// Peer is a peer and where it may be found.
type Peer struct {
	ID    string
	Addrs []string // multiaddrs; empty if routing is to find it
	Unknown
}

// Swarm is the libp2p host.
type Swarm struct {
	AddrFilters             []string // ranges that are neither dialled nor accepted, with /ipcidr/
	DisableBandwidthMetrics bool
	DisableNatPortMap       bool
	ConnMgr                 ConnMgr
	ResourceMgr             ResourceMgr
	Unknown
}

// ConnMgr is how many connections are kept.
type ConnMgr struct {
	Type        Optional[string]        // "basic" or "none"; "basic"
	LowWater    Optional[int64]         // DefaultLowWater
	HighWater   Optional[int64]         // DefaultHighWater; at least LowWater
	GracePeriod Optional[time.Duration] // DefaultGracePeriod
	Unknown
}

// ResourceMgr is what peers may use up.
type ResourceMgr struct {
	Enabled            Optional[bool]   // true
	MaxMemory          Optional[string] // a size such as "4GiB"; half of the memory
	MaxFileDescriptors Optional[int64]  // half of what the process may have
	Allowlist          []string         // addresses and ranges that the limits do not hold for
	Unknown
}

// Datastore is what is kept on the disk.
type Datastore struct {
	StorageMax         string // a size such as "10GB"; empty is DefaultStorageMax
	StorageGCWatermark int64  // percent of StorageMax at which blocks are collected; 0 is DefaultGCWatermark
	GCPeriod           string // a duration; empty is DefaultGCPeriod
	HashOnRead         bool   // check each block that is read from the disk
	BlockKeyCacheSize  Optional[int64]
	Unknown
}

// Provide is what the node tells the network that it has.
type Provide struct {
	Enabled  Optional[bool]   // true
	Strategy Optional[string] // one of ProvideStrategies; "all"
	DHT      ProvideDHT
	Unknown
}

// ProvideStrategies are the values of Provide.Strategy.
var ProvideStrategies = []string{"all", "pinned", "roots"}

// ProvideDHT is when the DHT is told again.
type ProvideDHT struct {
	Interval Optional[time.Duration] // DefaultProvideInterval; 0 is never, at most 48h
	Unknown
}

// Exchange is how blocks come from peers and go to them.
type Exchange struct {
	Use     []string          // Bitswap, Blockexc and names of Plugins; none is offline
	Plugins map[string]Plugin // by name
	Unknown
}

// The exchanges that need no plugin of their own.
const (
	Bitswap  = "bitswap"
	Blockexc = "blockexc"
)

// Plugin is an exchange in a process of its own.
type Plugin struct {
	Path      string          // of the program, absolute; empty is the one built in
	SHA256    string          // of the program, 64 hex digits; empty if Path is
	InProcess bool            // run the one built in without a process of its own
	Config    json.RawMessage // an object that only the plugin knows
	Unknown
}

// API is the RPC API.
type API struct {
	HTTPHeaders    map[string][]string
	Authorizations map[string]Authorization // none: whoever reaches the API may use it
	Unknown
}

// Authorization is who may use which part of the API.
type Authorization struct {
	AuthSecret   string   // "bearer:token", "basic:user:password" or a token alone
	AllowedPaths []string // prefixes: "/api/v0"
	Unknown
}

// Gateway is the HTTP gateway.
type Gateway struct {
	HTTPHeaders           map[string][]string
	RootRedirect          string
	NoFetch               bool                    // serve only what is here
	NoDNSLink             bool                    // do not look for DNSLink records
	DeserializedResponses Optional[bool]          // true; false is a trustless gateway only
	RetrievalTimeout      Optional[time.Duration] // boxo's; 0 is none
	MaxRequestDuration    Optional[time.Duration] // boxo's; 0 is none
	MaxConcurrentRequests Optional[int64]         // boxo's; 0 is no limit
	PublicGateways        map[string]PublicGateway
	Unknown
}

// PublicGateway is how the gateway behaves under one host name.
type PublicGateway struct {
	Paths                 []string
	UseSubdomains         bool
	NoDNSLink             bool
	InlineDNSLink         Optional[bool] // false
	DeserializedResponses Optional[bool] // as the gateway
	Unknown
}

// What values are that are not set. They are Kubo's.
const (
	DefaultStorageMax      = "10GB"
	DefaultGCWatermark     = 90
	DefaultGCPeriod        = "1h"
	DefaultLowWater        = 32
	DefaultHighWater       = 96
	DefaultGracePeriod     = 20 * time.Second
	DefaultProvideInterval = 22 * time.Hour
)

// maxConfig is the longest config that is read, bytes.
const maxConfig = 16 << 20

// ParseConfig reads a configuration. Everything that is wrong with it is in one
// *ConfigError.
func ParseConfig(data []byte) (*Config, error) {
	c, wrong := parseConfig(data)
	return c, wrong.err()
}

// parseConfig is ParseConfig; the Config is there even if something is wrong.
func parseConfig(data []byte) (*Config, problems) {
	c, wrong := new(Config), problems(nil)
	if err := checkJSON(data); err != nil {
		wrong.add("", "%v", err)
		return c, wrong
	}
	wrong.decode("", data, reflect.ValueOf(c).Elem())
	c.check(&wrong)
	return c, wrong
}

// checkJSON says where data stops being JSON.
func checkJSON(data []byte) error {
	var any json.RawMessage
	err := json.Unmarshal(data, &any)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		before := data[:min(max(syntax.Offset-1, 0), int64(len(data)))]
		line := bytes.Count(before, []byte{'\n'}) + 1
		column := len(before) - bytes.LastIndexByte(before, '\n')
		return fmt.Errorf("line %d, column %d: %w", line, column, err)
	}
	return err
}

// Check is what [ParseConfig] checks.
func (c *Config) Check() error {
	var wrong problems
	c.check(&wrong)
	return wrong.err()
}

// Encode is the configuration as it is in the file, the private key included:
// known keys in the order of the fields, then the unknown ones.
func (c *Config) Encode() []byte { return indent(encode(reflect.ValueOf(*c))) }

// MarshalJSON is Encode for encoding/json.
func (c Config) MarshalJSON() ([]byte, error) { return c.Encode(), nil }

// Clone is a copy that shares nothing with c.
func (c *Config) Clone() *Config {
	clone, wrong := new(Config), problems(nil)
	wrong.decode("", encode(reflect.ValueOf(*c)), reflect.ValueOf(clone).Elem())
	return clone
}

// Key is the private key of the node.
func (c *Config) Key() (crypto.PrivKey, error) {
	key, _, err := c.Identity.key()
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, "read identity", "", err)
	}
	return key, nil
}
