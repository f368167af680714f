package daemon

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/boxo/path"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"github.com/codexchange/codexchange/host/repo"
)

// spareConns is how many connections a gateway has beyond the requests that it
// works on, so that those above the limit are told so.
const spareConns = 1024

// forever is how long a request may take when there is no limit: boxo has no word
// for that.
const forever = 100 * 365 * 24 * time.Hour

// gateway is what a gateway server answers, and how many connections it may have;
// 0 is no limit.
func (d *daemon) gateway(c *repo.Gateway, m *metrics) (http.Handler, int, error) {
	service := d.node.BlockService()
	if c.NoFetch {
		service = d.node.Blockstore().Service(offline.Exchange(d.node.Blockstore()))
	}
	blocks, err := gateway.NewBlocksBackend(service)
	if err != nil {
		return nil, 0, err
	}
	backend := rooted{blocks, service}
	config := gatewayConfig(c)
	config.MetricsRegistry = m.registry

	content := gateway.NewHandler(config, backend)
	mux := http.NewServeMux()
	mux.Handle("/ipfs/", content)
	mux.Handle("/ipns/", content)
	if c.RootRedirect != "" {
		mux.Handle("GET /{$}", http.RedirectHandler(c.RootRedirect, http.StatusFound))
	}
	var h http.Handler = gateway.NewHostnameHandler(config, backend, mux)
	h = gateway.NewHeaders(c.HTTPHeaders).ApplyCors().Wrap(h)
	conns := 0
	if config.MaxConcurrentRequests > 0 {
		conns = config.MaxConcurrentRequests + spareConns
	}
	return otelhttp.NewHandler(h, "gateway"), conns, nil
}

// gatewayConfig is boxo's configuration for ours. What is not set is as boxo has
// it, and localhost is a subdomain gateway, as Kubo's users expect.
func gatewayConfig(c *repo.Gateway) gateway.Config {
	config := gateway.Config{
		DeserializedResponses: c.DeserializedResponses.Or(true),
		NoDNSLink:             c.NoDNSLink,
		RetrievalTimeout:      c.RetrievalTimeout.Or(gateway.DefaultRetrievalTimeout),
		MaxRequestDuration:    c.MaxRequestDuration.Or(gateway.DefaultMaxRequestDuration),
		MaxConcurrentRequests: int(c.MaxConcurrentRequests.Or(gateway.DefaultMaxConcurrentRequests)),
		PublicGateways:        make(map[string]*gateway.PublicGateway),
	}
	if config.MaxRequestDuration == 0 {
		config.MaxRequestDuration = forever
	}
	config.PublicGateways["localhost"] = &gateway.PublicGateway{
		Paths: []string{"/ipfs/", "/ipns/"}, UseSubdomains: true,
		DeserializedResponses: config.DeserializedResponses,
	}
	for name, g := range c.PublicGateways {
		config.PublicGateways[name] = &gateway.PublicGateway{
			Paths: g.Paths, UseSubdomains: g.UseSubdomains, NoDNSLink: g.NoDNSLink,
			InlineDNSLink:         g.InlineDNSLink.Or(false),
			DeserializedResponses: g.DeserializedResponses.Or(config.DeserializedResponses),
		}
	}
	return config
}

// rooted is boxo's backend, but for CARs: boxo begins to send before it knows
// whether it has the root, so that one it cannot get looks like a CAR without
// blocks, where the specification wants 404.
type rooted struct {
	*gateway.BlocksBackend
	service blockservice.BlockService
}

func (b rooted) GetCAR(ctx context.Context, p path.ImmutablePath, params gateway.CarParams) (gateway.ContentPathMetadata, io.ReadCloser, error) {
	// What is fetched stays in the store, where boxo finds it.
	if _, err := b.service.GetBlock(ctx, p.RootCid()); err != nil {
		return gateway.ContentPathMetadata{}, nil, err
	}
	return b.BlocksBackend.GetCAR(ctx, p, params)
}
