package writebehind_test

import (
	"crypto/sha256"
	"os"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	flatfs "github.com/ipfs/go-ds-flatfs"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		victim(dir) // killed by its parent
	}
	goleak.VerifyTestMain(m)
}

// openFlatfs opens a flatfs as the node does.
func openFlatfs(t testing.TB, dir string, sync bool) (blockstore.Blockstore, *flatfs.Datastore) {
	t.Helper()
	shard, err := flatfs.ParseShardFunc("/repo/flatfs/shard/v1/next-to-last/2")
	if err != nil {
		t.Fatal(err)
	}
	fs, err := flatfs.CreateOrOpen(dir, shard, sync)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return blockstore.NewBlockstore(fs, blockstore.NoPrefix()), fs
}

// block makes a block of its bytes.
func block(data string) blocks.Block {
	sum := sha256.Sum256([]byte(data))
	h, err := mh.Encode(sum[:], mh.SHA2_256)
	if err != nil {
		panic(err)
	}
	b, err := blocks.NewBlockWithCid([]byte(data), cid.NewCidV1(cid.Raw, h))
	if err != nil {
		panic(err)
	}
	return b
}
