package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/boxo/ipld/merkledag"
	pin "github.com/ipfs/boxo/pinning/pinner"
	"github.com/ipfs/boxo/pinning/pinner/dspinner"
	blocks "github.com/ipfs/go-block-format"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	flatfs "github.com/ipfs/go-ds-flatfs"
	leveldb "github.com/ipfs/go-ds-leveldb"
	fslock "github.com/ipfs/go-fs-lock"

	"github.com/codexchange/codexchange/exchange/errs"
)

// kuboBlocks is how many blocks a Kubo repo of a test has.
const kuboBlocks = 40

func kuboBlock(i int) *blocks.BasicBlock { return blocks.NewBlock(fmt.Appendf(nil, "block %d", i)) }

// blockPath is where flatfs keeps a block, and its directory.
func blockPath(b blocks.Block, shard *flatfs.ShardIdV1) (path, dir string) {
	key := strings.TrimPrefix(dshelp.MultihashToDsKey(b.Cid().Hash()).String(), "/")
	dir = shard.Func()(key)
	return filepath.Join(dir, key+".data"), dir
}

// The parts of a Kubo repo as version 18 writes it.
const (
	kuboSpecText = `{"mounts":[{"mountpoint":"/blocks","path":"blocks","shardFunc":"/repo/flatfs/shard/v1/next-to-last/2","type":"flatfs"},` +
		`{"mountpoint":"/","path":"datastore","type":"levelds"}],"type":"mount"}`
	kuboConfigSpec = `{"type":"mount","mounts":[` +
		`{"mountpoint":"/blocks","type":"measure","prefix":"flatfs.datastore","child":{"type":"flatfs","path":"blocks","sync":false,"shardFunc":"/repo/flatfs/shard/v1/next-to-last/2"}},` +
		`{"mountpoint":"/","type":"measure","prefix":"leveldb.datastore","child":{"type":"levelds","path":"datastore","compression":"none"}}]}`
	nextToLast2 = "/repo/flatfs/shard/v1/next-to-last/2"
)

// newKubo makes a Kubo repo with an Ed25519 identity, as Kubo does.
func newKubo(t *testing.T, dir string) Identity { return newKuboLaidOut(t, dir, nextToLast2) }

func newKuboLaidOut(t *testing.T, dir, layout string) Identity {
	t.Helper()
	shard, err := flatfs.ParseShardFunc(layout)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey(Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	id, err := newIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"Identity":  map[string]string{"PeerID": id.PeerID, "PrivKey": id.PrivKey},
		"Datastore": map[string]any{"StorageMax": "10GB", "Spec": json.RawMessage(strings.Replace(kuboConfigSpec, nextToLast2, layout, 1))},
		"Bootstrap": []string{"auto"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"blocks/.temp", "datastore", "keystore"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "config"), string(config))
	write(t, filepath.Join(dir, "version"), "18\n")
	write(t, filepath.Join(dir, "datastore_spec"), strings.Replace(kuboSpecText, nextToLast2, layout, 1))
	pinAll(t, filepath.Join(dir, "datastore"))
	write(t, filepath.Join(dir, "blocks", "SHARDING"), layout+"\n")
	write(t, filepath.Join(dir, "blocks", "_README"), "This is a repository of IPLD objects.")
	write(t, filepath.Join(dir, "blocks", "diskUsage.cache"), `{"diskUsage":4096,"accuracy":"initial-exact"}`)
	write(t, filepath.Join(dir, "blocks", ".temp", "put-1"), "half a block")
	for i := range kuboBlocks {
		b := kuboBlock(i)
		path, sub := blockPath(b, shard)
		if err := os.MkdirAll(filepath.Join(dir, "blocks", sub), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "blocks", path), string(b.RawData()))
		if err := os.Chmod(filepath.Join(dir, "blocks", path), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// pinAll pins the blocks of a Kubo repo, every third by itself, as Kubo's pinner does.
func pinAll(t *testing.T, datastore string) {
	t.Helper()
	store, err := leveldb.NewDatastore(datastore, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	pins := openPins(t, store)
	for i := range kuboBlocks {
		if err := pins.PinWithMode(t.Context(), kuboBlock(i).Cid(), kuboMode(i), fmt.Sprint("name ", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Put(t.Context(), ds.NewKey("/local/filesroot"), []byte("of MFS")); err != nil {
		t.Fatal(err)
	}
	if err := pins.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func openPins(t *testing.T, store ds.Datastore) pin.Pinner {
	t.Helper()
	pins, err := dspinner.New(t.Context(), store, merkledag.NewDAGService(nil))
	if err != nil {
		t.Fatal(err)
	}
	return pins
}

func kuboMode(i int) pin.Mode {
	if i%3 == 0 {
		return pin.Direct
	}
	return pin.Recursive
}

// hasPins checks that all pins of a Kubo repo are in the repo in dir, with their names,
// and nothing else.
func hasPins(t *testing.T, dir string) {
	t.Helper()
	r := open(t, dir)
	defer r.Close()
	pins, got := openPins(t, r.Datastore()), 0
	for i := range kuboBlocks {
		found, err := pins.CheckIfPinnedWithType(t.Context(), kuboMode(i), true, kuboBlock(i).Cid())
		if err != nil || len(found) != 1 || !found[0].Pinned() || found[0].Name != fmt.Sprint("name ", i) {
			t.Fatalf("pin %d: got %+v, %v, want it with its name", i, found, err)
		}
	}
	all, err := r.Datastore().Query(t.Context(), query.Query{KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	for e := range all.Next() {
		if e.Error != nil || !strings.HasPrefix(e.Key, pinsPrefix+"/") {
			t.Errorf("datastore: got %s, %v, want pins alone", e.Key, e.Error)
		}
		if strings.HasPrefix(e.Key, pinPrefix) {
			got++
		}
	}
	if got != kuboBlocks {
		t.Errorf("got %d pins, want %d", got, kuboBlocks)
	}
}

// playKubo has the lock of a repo as Kubo has it.
func playKubo(dir string) {
	l, err := fslock.Lock(dir, "repo.lock")
	must(err)
	fmt.Println("running")
	waitForEnd()
	must(l.Close())
}

// hasBlocks checks that all blocks of a Kubo repo are in the repo in dir, and
// nothing else.
func hasBlocks(t *testing.T, dir string) {
	t.Helper()
	r := open(t, dir)
	store := blockstore.NewBlockstore(r.Blocks(), blockstore.NoPrefix())
	for i := range kuboBlocks {
		want := kuboBlock(i)
		got, err := store.Get(t.Context(), want.Cid())
		if err != nil || string(got.RawData()) != string(want.RawData()) {
			t.Fatalf("block %d: got %v, %v, want %s", i, got, err, want.RawData())
		}
	}
	if s, err := r.Stat(t.Context()); err != nil || s.NumObjects != kuboBlocks {
		t.Errorf("got %d blocks, %v, want %d", s.NumObjects, err, kuboBlocks)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// Identity and blocks of a Kubo repo come over, by link where that can be done,
// laid out as ours whatever its layout is, and the Kubo repo stays as it was:
// names, bytes, modes and times.
func TestImport(t *testing.T) {
	for _, c := range []struct {
		name, layout string
		copy         bool
	}{
		{"linked", nextToLast2, false},
		{"copied", nextToLast2, true},
		{"laid out by prefix", "/repo/flatfs/shard/v1/prefix/5", false},
		{"copied by suffix", "/repo/flatfs/shard/v1/suffix/3", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmp := t.TempDir()
			src, dest := filepath.Join(tmp, "ipfs"), filepath.Join(tmp, "ours")
			if c.copy {
				dest = otherDisk(t)
			}
			id := newKuboLaidOut(t, src, c.layout)
			write(t, filepath.Join(src, "blocks", "SHARDING"), c.layout+"\n\n")
			os.Mkdir(filepath.Join(src, "blocks", "AA"), 0o755)
			write(t, filepath.Join(src, "blocks", "AA", "put-123"), "half a block")
			write(t, filepath.Join(src, "blocks", "AA", "CIQAA.data"), "not a multihash")
			before := tree(t, src)

			var last Imported
			got, err := ImportKubo(t.Context(), src, dest, ImportOptions{
				Profiles: []string{"test"},
				Progress: func(p Imported) { last = p },
			})
			if err != nil {
				t.Fatal(err)
			}
			if after := tree(t, src); after != before {
				t.Errorf("the source after: got %s\nwant %s", after, before)
			}
			linked, copied := kuboBlocks, 0
			if c.copy {
				linked, copied = copied, linked
			}
			if got.Blocks != kuboBlocks || got.Linked != linked || got.Copied != copied || got.Gone != 0 || got.Skipped != 2 || got.Pins != kuboBlocks || got.Total != kuboBlocks+1 {
				t.Errorf("got %+v, want %d blocks, %d of them linked", got, kuboBlocks, linked)
			}
			if last.Blocks != kuboBlocks || last.Bytes != got.Bytes {
				t.Errorf("progress: got %+v, want it to end with %d blocks", last, kuboBlocks)
			}
			if got := got.Config.Identity; got.PeerID != id.PeerID || got.PrivKey != id.PrivKey {
				t.Errorf("identity: got %s, want %s", got.PeerID, id.PeerID)
			}
			notes := strings.Join(got.Notes, "\n")
			for _, want := range []string{id.PeerID, "MFS", "only secp256k1", "2 files among the blocks"} {
				if !strings.Contains(notes, want) {
					t.Errorf("notes: got %s, want something about %q", notes, want)
				}
			}
			hasBlocks(t, dest)
			hasPins(t, dest)
			if after := tree(t, src); after != before {
				t.Errorf("the source after the repo was used: got %s\nwant %s", after, before)
			}
		})
	}
}

// otherDisk is a directory that cannot be linked to from a test's own.
func otherDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "repo")
	if err != nil {
		t.Skipf("there is no second disk: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	probe := filepath.Join(t.TempDir(), "x")
	write(t, probe, "")
	if os.Link(probe, filepath.Join(dir, "x")) == nil {
		t.Skip("/dev/shm is on the same disk")
	}
	return filepath.Join(dir, "ours")
}

// While Kubo runs on its repo, nothing is imported unless the caller insists;
// asking leaves no trace.
func TestImportWhileRunning(t *testing.T) {
	src, dest := filepath.Join(t.TempDir(), "ipfs"), filepath.Join(t.TempDir(), "ours")
	newKubo(t, src)
	daemon := start(t, "kubo", src)
	daemon.line(t)
	before := tree(t, src)
	_, err := ImportKubo(t.Context(), src, dest, ImportOptions{})
	refused(t, err, errs.Invalid, fmt.Sprintf("process %d", daemon.Process.Pid), "ipfs shutdown")
	if after := tree(t, src); after != before {
		t.Errorf("the source after: got %s\nwant %s", after, before)
	}
	if _, err := os.Stat(dest); err == nil {
		t.Errorf("got a new directory, want none")
	}
	if _, err := ImportKubo(t.Context(), src, dest, ImportOptions{WhileRunning: true}); err != nil {
		t.Fatal(err)
	}
	hasBlocks(t, dest)

	daemon.Process.Kill() // leaves its lock file
	daemon.Wait()
	if _, err := ImportKubo(t.Context(), src, filepath.Join(t.TempDir(), "ours"), ImportOptions{}); err != nil {
		t.Errorf("after Kubo was killed: got %v, want nil", err)
	}
}

// Blocks that Kubo collects while they are imported are counted and do no harm.
func TestImportWhileCollecting(t *testing.T) {
	src, dest := filepath.Join(t.TempDir(), "ipfs"), filepath.Join(t.TempDir(), "ours")
	newKubo(t, src)
	collected := false
	got, err := ImportKubo(t.Context(), src, dest, ImportOptions{WhileRunning: true, Progress: func(p Imported) {
		if p.Blocks > 0 && !collected {
			collected = true
			for i := range kuboBlocks {
				path, _ := blockPath(kuboBlock(i), shards)
				os.Remove(filepath.Join(src, "blocks", path))
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Blocks == 0 || got.Blocks == kuboBlocks || got.Total != kuboBlocks {
		t.Errorf("got %+v, want some of %d blocks", got, kuboBlocks)
	}
	r := open(t, dest)
	if s, err := r.Stat(t.Context()); err != nil || s.NumObjects != uint64(got.Blocks) {
		t.Errorf("got %d blocks, %v, want %d", s.NumObjects, err, got.Blocks)
	}
}

// An import that is cancelled says so, cannot be opened, and goes on when it is
// run again.
func TestImportAgain(t *testing.T) {
	src, dest := filepath.Join(t.TempDir(), "ipfs"), filepath.Join(t.TempDir(), "ours")
	id := newKubo(t, src)
	ctx, cancel := context.WithCancel(t.Context())
	got, err := ImportKubo(ctx, src, dest, ImportOptions{Progress: func(p Imported) {
		if p.Blocks > 0 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || got.Blocks == 0 || got.Blocks == kuboBlocks {
		t.Fatalf("got %+v, %v, want some blocks and context.Canceled", got, err)
	}
	_, err = Open(dest)
	refused(t, err, errs.Invalid, "interrupted")
	again, err := ImportKubo(t.Context(), src, dest, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again.Blocks != kuboBlocks || again.Linked != kuboBlocks-got.Linked || again.Config.Identity.PeerID != id.PeerID {
		t.Errorf("again: got %+v, want %d blocks, %d of them there before", again, kuboBlocks, got.Linked)
	}
	hasBlocks(t, dest)
	hasPins(t, dest)
}

// Pins that cannot be read are no reason to refuse the blocks; it is said why, and
// nothing is made where they are.
func TestImportWithoutPins(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, src string)
		want  string
	}{
		"Kubo runs": {func(t *testing.T, src string) {
			store, err := leveldb.NewDatastore(filepath.Join(src, "datastore"), nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { store.Close() })
		}, "Kubo is running on its repo"},
		"no leveldb": {func(t *testing.T, src string) {
			if err := emptyDir(filepath.Join(src, "datastore")); err != nil {
				t.Fatal(err)
			}
		}, "is no leveldb"},
		"damaged": {func(t *testing.T, src string) {
			write(t, filepath.Join(src, "datastore", "CURRENT"), "MANIFEST-999999\n")
		}, "Pins are not imported"},
		"another store": {func(t *testing.T, src string) {
			write(t, filepath.Join(src, "datastore_spec"), strings.Replace(kuboSpecText, "levelds", "badgerds", 1))
		}, "another type than levelds"},
	} {
		t.Run(name, func(t *testing.T) {
			src, dest := filepath.Join(t.TempDir(), "ipfs"), filepath.Join(t.TempDir(), "ours")
			newKubo(t, src)
			c.spoil(t, src)
			before := tree(t, src)
			got, err := ImportKubo(t.Context(), src, dest, ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if notes := strings.Join(got.Notes, "\n"); got.Pins != 0 || !strings.Contains(notes, c.want) || !strings.Contains(notes, "Pin what you want to keep") {
				t.Errorf("got %d pins, %s, want none, and %q", got.Pins, notes, c.want)
			}
			if after := tree(t, src); after != before {
				t.Errorf("the source after: got %s\nwant %s", after, before)
			}
			hasBlocks(t, dest)
		})
	}
}

// What cannot be imported is refused with what to do, before anything is made.
func TestImportRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		file, text string // replaces a file of the Kubo repo
		want       []string
	}{
		"badger": {"datastore_spec", `{"path":"badgerds","type":"badgerds"}`, []string{`"badgerds", want flatfs`, "dag export"}},
		"pebble": {"datastore_spec", `{"type":"measure","child":{"path":"pebbleds","type":"pebbleds"}}`, []string{`"pebbleds", want flatfs`}},
		"blocks in leveldb": {"datastore_spec", `{"type":"mount","mounts":[{"mountpoint":"/","type":"levelds","path":"datastore"}]}`,
			[]string{`"levelds", want flatfs`}},
		"old":             {"version", "11\n", []string{"version is 11, want at least 12", "ipfs repo migrate"}},
		"ours":            {"version", "codexchange 1\n", []string{"want that of a repo of Kubo"}},
		"other layout":    {"blocks/SHARDING", "/repo/flatfs/shard/v1/prefix/2\n", []string{"laid out as /repo/flatfs/shard/v1/prefix/2", nextToLast2}},
		"unknown layout":  {"blocks/SHARDING", "/repo/flatfs/shard/v2/magic/2\n", []string{"SHARDING"}},
		"absurd layout":   {"blocks/SHARDING", "/repo/flatfs/shard/v1/prefix/2000000000\n", []string{"2000000000, want 1 to 16"}},
		"no identity":     {"config", `{"Identity":{}}`, []string{"Identity.PrivKey: found none"}},
		"damaged config":  {"config", `{`, []string{"config: unexpected end"}},
		"damaged spec":    {"datastore_spec", `{`, []string{"datastore spec: unexpected end"}},
		"spec of nothing": {"datastore_spec", `{}`, []string{`type "", want flatfs`}},
	} {
		t.Run(name, func(t *testing.T) {
			src, dest := filepath.Join(t.TempDir(), "ipfs"), filepath.Join(t.TempDir(), "ours")
			newKubo(t, src)
			write(t, filepath.Join(src, c.file), c.text)
			before := tree(t, src)
			_, err := ImportKubo(t.Context(), src, dest, ImportOptions{})
			refused(t, err, errs.Invalid, append(c.want, src)...)
			if after := tree(t, src); after != before {
				t.Errorf("the source after: got %s\nwant %s", after, before)
			}
			if _, err := os.Stat(dest); err == nil {
				t.Errorf("got a new directory, want none")
			}
		})
	}
	src := filepath.Join(t.TempDir(), "ipfs")
	newKubo(t, src)
	_, err := ImportKubo(t.Context(), src, filepath.Join(src, "ours"), ImportOptions{})
	refused(t, err, errs.Invalid, "inside of it")
	_, err = ImportKubo(t.Context(), filepath.Join(src, "none"), filepath.Join(t.TempDir(), "ours"), ImportOptions{})
	refused(t, err, errs.Invalid, "want a repo of Kubo")
}
