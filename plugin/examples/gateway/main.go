// Command gateway is a plugin that fetches blocks from a trustless HTTP gateway,
// named in its configuration: {"URL": "https://…"}. It is the template for
// plugins: an exchange, and a main that serves it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/plugin"
)

func main() {
	plugin.Serve("1.0.0", func(_ context.Context, env plugin.Env) (exchange.Interface, error) {
		var config struct{ URL string }
		if err := json.Unmarshal(env.Config, &config); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		env.Log.Info("fetching from a gateway", "url", config.URL)
		return plugin.Getter(func(ctx context.Context, c cid.Cid) ([]byte, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.URL+"/ipfs/"+c.String()+"?format=raw", nil)
			if err != nil {
				return nil, err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return nil, fmt.Errorf("get %s from %s: %s", c, config.URL, resp.Status)
			}
			return io.ReadAll(io.LimitReader(resp.Body, 2<<20)) // the largest block
		}), nil
	})
}
