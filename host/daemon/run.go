package daemon

import (
	"context"

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/commands"
	"github.com/codexchange/codexchange/host/repo"
)

// Run opens the repo and its node and serves both until ctx ends or something
// fails, and returns when all is closed: nil if it ended in good order, else what
// went wrong, joined. A repo that another process has is a *repo.LockedError, which
// says where that can be reached.
func Run(ctx context.Context, o Options) error {
	return run(ctx, o, func(ctx context.Context, n *host.Node, r *repo.Repo, shutdown func()) (*cmds.Command, cmds.Environment) {
		return commands.Root(), commands.NewEnv(ctx, n, r, shutdown)
	}, defaultPatience)
}
