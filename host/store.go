package host

import (
	"fmt"
	"os"
	"path/filepath"

	flatfs "github.com/ipfs/go-ds-flatfs"
)

// BlocksDir is the name of the blockstore in the directory of a node.
const BlocksDir = "blocks"

// shards is how Kubo spreads blocks over directories, so that its tools can
// read the store.
const shards = "/repo/flatfs/shard/v1/next-to-last/2"

// openBlocks opens the datastore of blocks under dir, or makes it. Only one flatfs may be
// open on a directory: opening deletes what another is writing. Writes are not
// forced to the disk one by one, as in Kubo.
func openBlocks(dir string) (*flatfs.Datastore, error) {
	path := filepath.Join(dir, BlocksDir)
	fail := func(err error) (*flatfs.Datastore, error) {
		return nil, fmt.Errorf("open blockstore %s: %w", path, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	shard, err := flatfs.ParseShardFunc(shards)
	if err != nil {
		return fail(err)
	}
	fs, err := flatfs.CreateOrOpen(path, shard, false)
	if err != nil {
		return fail(err)
	}
	return fs, nil
}
