// Command bitswap is a plugin that speaks Bitswap: boxo's, as it is, over what
// the host lends. Its configuration is empty.
package main

import (
	"context"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/exchange"

	"github.com/codexchange/codexchange/plugin"
)

func main() {
	plugin.Serve("boxo v0.42.0", func(ctx context.Context, env plugin.Env) (exchange.Interface, error) {
		return bitswap.New(ctx, bsnet.NewFromIpfsHost(env.Host), env.Router, env.Blockstore), nil
	})
}
