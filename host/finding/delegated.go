package finding

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/ipfs/boxo/autoconf"
	"github.com/ipfs/boxo/routing/http/client"
	"github.com/ipfs/boxo/routing/http/contentrouter"
	routinghelpers "github.com/libp2p/go-libp2p-routing-helpers"
	"github.com/libp2p/go-libp2p/core/host"
)

const (
	delegatedWithin = 15 * time.Second // for all that one router has to say, as in Kubo
	delegatedBytes  = 1 << 20          // of an answer, at most
	delegatedConns  = 100              // idle, to one router
)

// CheckDelegated says what is wrong with the URL of a delegated router.
func CheckDelegated(url string) error {
	_, err := autoconf.DetermineKnownCapabilities(url, true, false)
	return err
}

// protocols are those whose providers are asked for, with those that are not told
// of any.
func protocols() []string { return []string{"unknown", "transport-bitswap"} }

// newDelegated makes a router for each server that the URLs name.
func (r *Router) newDelegated(h host.Host, urls []string) ([]*routinghelpers.ParallelRouter, error) {
	servers := make(map[string]autoconf.EndpointCapabilities)
	for _, url := range urls {
		endpoint, err := autoconf.DetermineKnownCapabilities(url, true, false)
		if err != nil {
			return nil, fmt.Errorf("delegated router %q: %w", url, err)
		}
		can := servers[endpoint.BaseURL]
		can.Merge(endpoint.Capabilities)
		servers[endpoint.BaseURL] = can
	}
	if len(servers) == 0 {
		return nil, nil
	}
	r.http = http.DefaultTransport.(*http.Transport).Clone()
	r.http.MaxIdleConnsPerHost = delegatedConns
	do := &http.Client{Transport: &client.ResponseBodyLimitedTransport{RoundTripper: r.http, LimitBytes: delegatedBytes}}
	var parts []*routinghelpers.ParallelRouter
	for _, url := range slices.Sorted(maps.Keys(servers)) {
		c, err := client.New(url, client.WithHTTPClient(do), client.WithProviderInfoFunc(h.ID(), h.Addrs),
			client.WithProtocolFilter(protocols()), client.WithStreamResultsRequired(), client.WithDisabledLocalFiltering(false))
		if err != nil {
			return nil, fmt.Errorf("delegated router %q: %w", url, err)
		}
		asked := contentrouter.NewContentRoutingClient(c)
		part := &routinghelpers.Compose{}
		can := servers[url]
		if can.Providers {
			part.ContentRouting = asked
		}
		if can.Peers {
			part.PeerRouting = asked
		}
		if can.IPNSGet {
			part.ValueStore = &routinghelpers.LimitedValueStore{ValueStore: asked, Namespaces: []string{"ipns"}}
		}
		// A server that does not answer shall not spoil what others say.
		parts = append(parts, &routinghelpers.ParallelRouter{
			Router: part, IgnoreError: true, Timeout: delegatedWithin, DoNotWaitForSearchValue: true,
		})
	}
	return parts, nil
}
