package finding

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	routinghelpers "github.com/libp2p/go-libp2p-routing-helpers"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/codexchange/codexchange/host/peerstore"
)

// The types of routing, as Kubo names them.
const (
	None       = "none"
	DHT        = "dht"
	DHTClient  = "dhtclient"
	DHTServer  = "dhtserver"
	Auto       = "auto"
	AutoClient = "autoclient"
	Delegated  = "delegated"
)

// Types are all of them.
func Types() []string {
	return []string{Auto, AutoClient, Delegated, DHT, DHTClient, DHTServer, None}
}

const (
	queries   = 10                     // peers of a DHT that one search asks at a time, as in Kubo
	lookEvery = 250 * time.Millisecond // for peers in the DHT
)

// RouterOptions say how content and peers are looked for.
type RouterOptions struct {
	// Type is one of Types; empty is None.
	Type string
	// Delegated are the URLs of routers that speak the Routing V1 HTTP API. A path
	// such as /routing/v1/providers says what one is asked, none all of it.
	Delegated []string
	// Loopback takes loopback addresses for those of the local network, so that the
	// nodes of one machine are a DHT.
	Loopback bool
}

// A Router is a node's routing. Its methods may be called from any goroutine.
type Router struct {
	routing.Routing
	dht  *dual.DHT       // nil if there is none
	http *http.Transport // nil if there are no delegated routers
}

// New makes the routing of a host, which does not listen yet. What the DHT has to
// keep it keeps in data, and what it hears of peers in the view DHT of store.
func New(h host.Host, store *peerstore.Store, data datastore.Batching, o RouterOptions) (*Router, error) {
	r := &Router{Routing: routinghelpers.Null{}}
	var mode dht.ModeOpt
	switch o.Type {
	case None, "":
		return r, nil
	case Delegated:
	case DHT, Auto:
		mode = dht.ModeAuto
	case DHTClient, AutoClient:
		mode = dht.ModeClient
	case DHTServer:
		mode = dht.ModeServer
	default:
		return nil, fmt.Errorf("routing of type %q, want one of %s", o.Type, strings.Join(Types(), ", "))
	}
	var parts []*routinghelpers.ParallelRouter
	if slices.Contains([]string{Auto, AutoClient, Delegated}, o.Type) {
		delegated, err := r.newDelegated(h, o.Delegated)
		if err != nil {
			return nil, err
		}
		parts = append(parts, delegated...)
	}
	if o.Type == Delegated && len(parts) == 0 {
		return nil, fmt.Errorf("routing of type %q, and no delegated routers: Routing.DelegatedRouters is empty", o.Type)
	}
	if o.Type != Delegated {
		var err error
		if r.dht, err = newDHT(viewed{h, store.View(peerstore.DHT)}, data, mode, o.Loopback); err != nil {
			return nil, fmt.Errorf("start DHT: %w", errors.Join(err, r.Close()))
		}
		if len(parts) == 0 {
			r.Routing = r.dht
			return r, nil
		}
		parts = append(parts, &routinghelpers.ParallelRouter{Router: r.dht, IgnoreError: true, DoNotWaitForSearchValue: true})
	}
	r.Routing = routinghelpers.NewComposableParallel(parts)
	return r, nil
}

func newDHT(h host.Host, data datastore.Batching, mode dht.ModeOpt, loopback bool) (*dual.DHT, error) {
	options := []dual.Option{dual.DHTOption(dht.Concurrency(queries), dht.Mode(mode), dht.Datastore(data))}
	if loopback {
		options = append(options, dual.LanDHTOption(dht.AddressFilter(nil)))
	}
	return dual.New(h, options...)
}

// Active reports whether somebody is asked at all.
func (r *Router) Active() bool { return r.dht != nil || r.http != nil }

// CanProvide reports whether there is somebody to be told what this node has.
func (r *Router) CanProvide() bool { return r.dht != nil }

// Alone reports whether the DHT is all there is to ask, and has no peers.
func (r *Router) Alone() bool { return r.dht != nil && r.http == nil && !r.Ready() }

// Ready reports whether the DHT has peers to ask and to tell.
func (r *Router) Ready() bool {
	return r.dht != nil && (r.dht.WANActive() || r.dht.LAN.RoutingTable().Size() > 0)
}

// WaitReady returns when Ready is true or ctx ends.
func (r *Router) WaitReady(ctx context.Context) error {
	if r.Ready() {
		return nil
	}
	// The DHT tells nobody.
	ticks := time.NewTicker(lookEvery)
	defer ticks.Stop()
	for !r.Ready() {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ErrNoDHT is a routing.ErrNotSupported.
var ErrNoDHT = fmt.Errorf("only a DHT can be told, and Routing.Type is one without: %w", routing.ErrNotSupported)

// Provide tells the DHT, and waits until it knows.
func (r *Router) Provide(ctx context.Context, c cid.Cid, announce bool) error {
	if r.dht == nil {
		return ErrNoDHT
	}
	return explain(r.dht.Provide(ctx, c, announce))
}

// FindPeer looks for the addresses of a peer.
func (r *Router) FindPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	info, err := r.Routing.FindPeer(ctx, p)
	return info, explain(err)
}

// explain says what to do when the DHT has nobody to ask.
func explain(err error) error {
	if errors.Is(err, kbucket.ErrLookupFailure) {
		return fmt.Errorf("no peer of the DHT is known: connect to one, or name bootstrap nodes: %w", err)
	}
	return err
}

// PutValue stores a value in the DHT.
func (r *Router) PutValue(ctx context.Context, key string, value []byte, options ...routing.Option) error {
	if r.dht == nil {
		return ErrNoDHT
	}
	return explain(r.dht.PutValue(ctx, key, value, options...))
}

// Close ends the DHT, and whoever searches it is told that there is nothing more. What
// delegated routers are asked ends with its context.
func (r *Router) Close() error {
	var err error
	if r.dht != nil {
		err = r.dht.Close()
	}
	if r.http != nil {
		r.http.CloseIdleConnections()
	}
	return err
}
