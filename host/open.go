package host

import (
	"encoding/json"
	"log/slog"

	"github.com/codexchange/codexchange/host/repo"
)

// Open starts a node over a repo, as the repo's configuration says; offline if it
// shall only use what is there. The repo remains the caller's, to be closed after
// the node. Each of more may change the options once they are made.
func Open(r *repo.Repo, offline bool, log *slog.Logger, more ...func(*Options)) (*Node, error) {
	c := r.Config()
	opts := Options{
		Blocks: r.Blocks(), Datastore: r.Datastore(), Identity: r.Identity(),
		Use: c.Exchange.Use, Plugins: make(map[string]Plugin), Listen: c.Addresses.Swarm,
		Offline: offline, CountTraffic: true, Log: log,
	}
	for name, p := range c.Exchange.Plugins {
		opts.Plugins[name] = Plugin{Path: p.Path, SHA256: p.SHA256, InProcess: p.InProcess, Config: json.RawMessage(p.Config)}
	}
	for _, change := range more {
		change(&opts)
	}
	return New(opts)
}
