// Package crossing moves files between nodes that speak different protocols: by
// Bitswap to a node that has both exchanges, and on by Codex, and back. Every
// node is a process of its own over a repo, as a person would run it. Real Kubo,
// Helia and kubo-rpc-client take part where the environment names them:
//
//	CODEXCHANGE_KUBO=FILE    the ipfs program; integration/kubo says what to build
//	CODEXCHANGE_HELIA=DIR    integration/helia, after npm ci: Helia and kubo-rpc-client
//	CODEXCHANGE_CHURN=60s    how long TestChurn connects and disconnects
//	CODEXCHANGE_SEED=N       what it is random by
package crossing

import (
	"testing"

	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

func TestMain(m *testing.M) {
	nodetest.Main(m, map[string]func(string) error{daemonRole: serveDaemon})
}

// What the tests here say all the time.
const (
	patience   = nodetest.Patience
	pluginEnds = nodetest.PluginEnds
)

var (
	must       = nodetest.Must
	eventually = nodetest.Eventually
	start      = nodetest.Start
	random     = nodetest.Random
	sumOf      = nodetest.Sum
	socketDir  = nodetest.SocketDir
	variable   = nodetest.Variable
)
