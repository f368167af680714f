package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/boxo/namesys"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/routing"

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
	service, records := d.node.BlockService(), d.node.Names()
	if c.NoFetch {
		service, records = d.node.Blockstore().Service(offline.Exchange(d.node.Blockstore())), records.Kept()
	}
	blocks, err := gateway.NewBlocksBackend(service, gateway.WithValueStore(records))
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
	return whole(traced(h, "gateway", method)), conns, nil
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

// whole ends the connection when a CAR could not be sent to its end. boxo notes why in
// a header that has been sent before, and what was streamed so far would look like
// all there is.
func whole(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cut := new(atomic.Bool)
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), cutKey{}, cut)))
		if cut.Load() {
			panic(http.ErrAbortHandler) // which net/http does not log
		}
	})
}

// cutKey is where a request has an *atomic.Bool that says that its CAR has no end.
type cutKey struct{}

// A cuttable is a CAR that may end before its end.
type cuttable struct {
	io.ReadCloser
	cut *atomic.Bool
}

func (c cuttable) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		c.cut.Store(true)
	}
	return n, err
}

// rooted is boxo's backend, but for two things. CARs: boxo begins to send before it
// knows whether it has the root, so that one it cannot get looks like a CAR without
// blocks, where the specification wants 404. And whole hears of one that ends early.
// Names: one that nobody knows is 404, where boxo takes it for a fault of the gateway.
type rooted struct {
	*gateway.BlocksBackend
	service blockservice.BlockService
}

func (b rooted) GetCAR(ctx context.Context, p path.ImmutablePath, params gateway.CarParams) (gateway.ContentPathMetadata, io.ReadCloser, error) {
	// What is fetched stays in the store, where boxo finds it.
	if _, err := b.service.GetBlock(ctx, p.RootCid()); err != nil {
		return gateway.ContentPathMetadata{}, nil, err
	}
	md, r, err := b.BlocksBackend.GetCAR(ctx, p, params)
	if cut, ok := ctx.Value(cutKey{}).(*atomic.Bool); ok && err == nil {
		r = cuttable{r, cut}
	}
	return md, r, err
}

func (b rooted) ResolveMutable(ctx context.Context, p path.Path) (path.ImmutablePath, time.Duration, time.Time, error) {
	to, ttl, modified, err := b.BlocksBackend.ResolveMutable(ctx, p)
	return to, ttl, modified, unknown(ctx, err)
}

func (b rooted) GetIPNSRecord(ctx context.Context, c cid.Cid) ([]byte, error) {
	record, err := b.BlocksBackend.GetIPNSRecord(ctx, c)
	return record, unknown(ctx, err)
}

// unknown makes an error say 404 if it is that nobody knows a name.
func unknown(ctx context.Context, err error) error {
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case err == namesys.ErrResolveFailed: // which says no more
		err = fmt.Errorf("%w: no record of it is kept here, and nobody who was asked has one", err)
	case !errors.Is(err, namesys.ErrResolveFailed) && !errors.Is(err, routing.ErrNotFound):
		return err
	}
	return gateway.NewErrorStatusCode(err, http.StatusNotFound)
}
