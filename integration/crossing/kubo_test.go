package crossing

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

// Real Kubo as the peer that has Bitswap only.
func TestCrossKubo(t *testing.T) {
	cross(t, nodetest.NewKubo(t).Daemon())
}

// emptyDirectory is a block that Kubo puts into every blockstore that it opens.
var emptyDirectory = cid.MustParse("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")

// Kubo's own tools read a blockstore of ours, of which it gets a copy: the files
// in it, every block against its hash, and the same list of blocks. A byte that is
// changed is found, so they do look.
func TestKuboReadsBlocks(t *testing.T) {
	k := nodetest.NewKubo(t)
	n, seeder := start(t, "node", host.Blockexc), start(t, "seeder", host.Blockexc)
	must(t, "connect", n.Connect(seeder.Addr))
	files := make(map[string]string) // SHA-256 by root
	for i, chunk := range []int64{64 << 10, 1 << 20} {
		content, sum := random(uint64(20+i), 20<<20)
		root, err := n.Add(content, chunk)
		must(t, "add file", err)
		files[root] = sum

		content, sum = random(uint64(30+i), 4<<20)
		root, err = seeder.Add(content, chunk)
		must(t, "add file at the seeder", err)
		_, err = n.Fetch(root)
		must(t, "fetch file", err)
		files[root] = sum
	}
	stored := n.Stored()
	n.Stop()

	blocks := filepath.Join(k.Repo, "blocks")
	must(t, "remove Kubo's blocks", os.RemoveAll(blocks))
	must(t, "copy the blocks", os.CopyFS(blocks, os.DirFS(filepath.Join(n.Dir, "blocks"))))
	for root, sum := range files {
		got, err := k.Run(nil, "cat", "--offline", root)
		must(t, "read a file", err)
		if sumOf([]byte(got)) != sum {
			t.Errorf("Kubo reads %d bytes of %s, not those that were stored", len(got), root)
		}
	}
	_, err := k.Run(nil, "repo", "verify")
	must(t, "verify the blocks", err)

	refs, err := k.Run(nil, "refs", "local")
	must(t, "list the blocks", err)
	var keys []string
	for line := range strings.Lines(refs) {
		c, err := cid.Decode(strings.TrimSpace(line))
		must(t, "parse "+line, err)
		if key := c.Hash().HexString(); key != emptyDirectory.Hash().HexString() {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	if !slices.Equal(keys, stored.Keys) {
		t.Errorf("Kubo lists %d blocks, want the %d that were stored", len(keys), len(stored.Keys))
	}

	spoil(t, blocks)
	if out, err := k.Run(nil, "repo", "verify"); err == nil {
		t.Errorf("repo verify after a byte was changed: got %q, want an error", out)
	}
}

// spoil changes one byte of one block below a directory.
func spoil(t testing.TB, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.data"))
	if err != nil || len(files) == 0 {
		t.Fatalf("blocks in %s: got %d, %v, want some", dir, len(files), err)
	}
	b, err := os.ReadFile(files[0])
	must(t, "read block", err)
	b[len(b)/2] ^= 1
	must(t, "write block", os.WriteFile(files[0], b, 0o600))
}
