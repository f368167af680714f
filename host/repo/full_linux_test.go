package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-datastore"
)

// On a disk that is really full, writing fails with an error that DiskFull knows
// and leaves what was there; a repo can still be opened to serve from it and to
// delete, and after that be written to.
//
// The disk is a small one in memory, which only the other process sees.
func TestFullDisk(t *testing.T) {
	c := prepare(t, "fill", t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if err := c.Start(); err != nil {
		t.Skipf("cannot have a disk of its own: %v", err)
	}
	defer c.Wait()
	switch got := c.line(t); {
	case got == "no disk":
		t.Skip("cannot have a disk of its own")
	case got != "as it should be":
		t.Errorf("on a full disk: got %s", got)
	}
}

func playFullDisk(disk string) {
	if syscall.Mount("none", disk, "tmpfs", 0, "size=4m") != nil {
		fmt.Println("no disk")
		return
	}
	block := blocks.NewBlock(make([]byte, 100_000))
	large := blocks.NewBlock(make([]byte, 100_001))
	key := datastore.NewKey("/pins/x")
	dir := filepath.Join(disk, "repo")
	_, err := Init(dir, InitOptions{})
	must(err)
	r, err := Open(dir)
	must(err)
	store := func() blockstore.Blockstore { return blockstore.NewBlockstore(r.Blocks(), blockstore.NoPrefix()) }
	ctx := context.Background()
	must(store().Put(ctx, block))
	must(r.Datastore().Put(ctx, key, []byte("y")))
	before := string(r.Config().Encode())

	fill, err := os.Create(filepath.Join(disk, "fill"))
	must(err)
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	full := func(what string, err error) {
		if !DiskFull(err) {
			must(fmt.Errorf("%s: got %v, want an error that says that the disk is full", what, err))
		}
	}
	full("fill", err)
	full("put", store().Put(ctx, large))
	full("put many", store().PutMany(ctx, []blocks.Block{large}))
	c := r.Config()
	c.Datastore.StorageMax = "1GB"
	full("set config", r.SetConfig(c))
	full("set api", r.SetAPI(addr(apiText)))
	must(r.Close())

	r, err = Open(dir)
	must(err)
	if got := string(r.Config().Encode()); got != before {
		must(fmt.Errorf("config: got %s, want it as before", got))
	}
	_, err = store().Get(ctx, block.Cid())
	must(err)
	value, err := r.Datastore().Get(ctx, key)
	must(err)
	if !r.ReadOnly() || string(value) != "y" {
		must(fmt.Errorf("datastore: got %q, read-only %v, want y and true", value, r.ReadOnly()))
	}
	if r.Datastore().Put(ctx, key, nil) == nil {
		must(errors.New("put into the datastore: got nil, want an error"))
	}
	must(store().DeleteBlock(ctx, block.Cid()))
	must(r.Close())

	r, err = Open(dir)
	must(err)
	if r.ReadOnly() {
		must(errors.New("with room again: got a read-only datastore"))
	}
	must(r.Datastore().Put(ctx, key, []byte("z")))
	must(r.Close())
	fmt.Println("as it should be")
}
