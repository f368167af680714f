package repo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/crypto/pb"

	"github.com/codexchange/codexchange/exchange/errs"
)

// What is put into the stores is there when the repo is opened again, where
// Kubo's tools look for it, and Stat counts it.
func TestStores(t *testing.T) {
	dir := newRepo(t)
	r := open(t, dir)
	block := blocks.NewBlock([]byte("a block"))
	store := blockstore.NewBlockstore(r.Blocks(), blockstore.NoPrefix())
	key := datastore.NewKey("/pins/x")
	if err := errors.Join(store.Put(t.Context(), block), r.Datastore().Put(t.Context(), key, []byte("y"))); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	path, _ := blockPath(block, shards)
	if got := read(t, filepath.Join(dir, blocksName, path)); got != "a block" {
		t.Errorf("%s: got %q, want the block", path, got)
	}
	if got, want := read(t, filepath.Join(dir, blocksName, "SHARDING")), "/repo/flatfs/shard/v1/next-to-last/2\n"; got != want {
		t.Errorf("SHARDING: got %q, want %q", got, want)
	}

	r = open(t, dir)
	if got, err := r.Datastore().Get(t.Context(), key); err != nil || string(got) != "y" {
		t.Errorf("datastore: got %q, %v, want y", got, err)
	}
	s, err := r.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.NumObjects != 1 || s.BlocksSize < 7 || s.RepoSize <= s.BlocksSize || s.Free == 0 ||
		s.StorageMax != 10e9 || s.RepoPath != dir || s.Version != Version {
		t.Errorf("got %+v, want one block, sizes that include it, 10 GB at most", s)
	}
	if got, want := r.Config().Identity.PeerID, idOf(t, r); got != want {
		t.Errorf("identity: got the key of %s, want %s", want, got)
	}
}

func idOf(t *testing.T, r *Repo) string {
	t.Helper()
	id, err := newIdentity(r.Identity())
	if err != nil {
		t.Fatal(err)
	}
	return id.PeerID
}

// A new repo is for its user's eyes only, has a secp256k1 key unless another is
// asked for, which has a note, and what its profiles say.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c, err := Init(dir, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700 | os.ModeDir, configName: 0o600} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != want {
			t.Errorf("mode of %q: got %v, %v, want %v", name, fi.Mode(), err, want)
		}
	}
	key, err := c.Key()
	if err != nil || key.Type() != pb.KeyType_Secp256k1 || KeyNote(key) != "" {
		t.Errorf("got a key of type %v, %v, note %q, want secp256k1 without a note", key.Type(), err, KeyNote(key))
	}
	if peers, err := c.BootstrapPeers(); err != nil || len(peers) == 0 {
		t.Errorf("bootstrap peers: got %v, %v, want some", peers, err)
	}

	dir = t.TempDir() // exists and is empty
	if c, err = Init(dir, InitOptions{KeyType: Ed25519, Profiles: []string{"server", "test"}}); err != nil {
		t.Fatal(err)
	}
	if key, err = c.Key(); err != nil || !strings.Contains(KeyNote(key), "only secp256k1") {
		t.Errorf("got note %q, %v, want one about secp256k1", KeyNote(key), err)
	}
	if got := c.Addresses; len(got.Swarm) != 1 || got.Swarm[0] != "/ip4/127.0.0.1/tcp/0" || len(got.NoAnnounce) != len(privateRanges) {
		t.Errorf("profiles: got %+v, want a loopback address only, and private ranges not announced", got)
	}
	if text := fmt.Sprintf("%v %+v", *c, c); strings.Contains(text, c.Identity.PrivKey) {
		t.Errorf("printed: got %s, want no private key in it", text)
	}
	got := open(t, dir).Config()
	if string(got.Encode()) != string(c.Encode()) {
		t.Errorf("opened: got %s\nwant %s", got.Encode(), c.Encode())
	}

	for _, o := range []InitOptions{{KeyType: "rsa"}, {Profiles: []string{"fast"}}} {
		dir := filepath.Join(t.TempDir(), "x")
		_, err := Init(dir, o)
		refused(t, err, errs.Invalid, "want")
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("options %+v: got a directory, want none", o)
		}
	}
}

// A directory that is something else is refused by Init and by Open and not
// touched: its files, their modes and times stay.
func TestNotOurs(t *testing.T) {
	for name, c := range map[string]struct {
		make       func(t *testing.T, dir string)
		init, open string
	}{
		"a repo": {func(t *testing.T, dir string) {
			if _, err := Init(dir, InitOptions{}); err != nil {
				t.Fatal(err)
			}
		}, "a repo already", ""},
		"files":              {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "thesis.txt"), "x") }, `"thesis.txt" and is no repo`, `"thesis.txt" and is no repo`},
		"nothing":            {func(t *testing.T, dir string) { os.Remove(dir) }, "", "make one with init"},
		"kubo":               {func(t *testing.T, dir string) { newKubo(t, dir) }, "--from-kubo " + "DIR", "a repo of Kubo, which is not opened: make one from it with init --from-kubo DIR"},
		"kubo without spec":  {func(t *testing.T, dir string) { newKubo(t, dir); os.Remove(filepath.Join(dir, kuboSpecName)) }, "repo of Kubo", "repo of Kubo"},
		"kubo without vers.": {func(t *testing.T, dir string) { newKubo(t, dir); os.Remove(filepath.Join(dir, versionName)) }, "repo of Kubo", "repo of Kubo"},
		"kubo by config": {func(t *testing.T, dir string) {
			newKubo(t, dir)
			os.Remove(filepath.Join(dir, versionName))
			os.Remove(filepath.Join(dir, kuboSpecName))
		}, "repo of Kubo", "repo of Kubo"},
		"newer":   {func(t *testing.T, dir string) { write(t, filepath.Join(dir, versionName), "codexchange 7\n") }, "a repo already", "layout is version 7, and this program knows up to 1: use a newer program"},
		"damaged": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, versionName), "codexchange x\n") }, `got "codexchange x`, `got "codexchange x`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			if err := os.Mkdir(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			c.make(t, dir)
			var before string
			if name != "nothing" {
				before = tree(t, dir)
			}
			unchanged := func() {
				t.Helper()
				if name == "nothing" {
					return
				}
				if after := tree(t, dir); after != before {
					t.Errorf("got %s\nwant %s", after, before)
				}
			}
			if c.init != "" {
				_, err := Init(dir, InitOptions{})
				if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(c.init, "DIR", dir)) {
					t.Errorf("init: got %v, want %q", err, c.init)
				}
				unchanged()
			}
			if c.open != "" {
				_, err := Open(dir)
				if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(c.open, "DIR", dir)) {
					t.Errorf("open: got %v, want %q", err, c.open)
				}
				if name != "newer" { // ours to lock
					unchanged()
				}
			}
		})
	}
}

// Of those who make a repo at the same time one does, and the others are refused.
// What a fresh disk has does not count.
func TestInitAtOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	results := make(chan error)
	for range 8 {
		go func() { _, err := Init(dir, InitOptions{}); results <- err }()
	}
	made := 0
	for range 8 {
		err := <-results
		switch {
		case err == nil:
			made++
		case !errors.As(err, new(*LockedError)) && !errors.Is(err, errs.Invalid):
			t.Errorf("got %v, want a *LockedError or that there is a repo", err)
		}
	}
	if made != 1 {
		t.Errorf("got %d repos, want 1", made)
	}
	open(t, dir)
}

// An Init that was interrupted is done again by the next one, and not opened before.
func TestInterruptedInit(t *testing.T) {
	dir := newRepo(t)
	write(t, filepath.Join(dir, versionName), "codexchange init\n")
	os.Remove(filepath.Join(dir, configName))
	_, err := Open(dir)
	refused(t, err, errs.Invalid, "interrupted")
	if _, err := Init(dir, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

// Migrations run one after the other, and each is on record before the next.
func TestMigrate(t *testing.T) {
	dir := t.TempDir()
	var ran []int
	failing := errors.New("no")
	steps := map[int]func(string) error{
		1: func(string) error { ran = append(ran, 1); return nil },
		2: func(string) error { ran = append(ran, 2); return failing },
	}
	if err := migrate(dir, 1, 4, steps); !errors.Is(err, failing) {
		t.Errorf("got %v, want %v", err, failing)
	}
	if got := fmt.Sprint(ran, read(t, filepath.Join(dir, versionName))); got != "[1 2]codexchange 2\n" {
		t.Errorf("got %q, want both to have run and the first on record", got)
	}
	delete(steps, 2)
	if err := migrate(dir, 2, 4, steps); err == nil || !strings.Contains(err.Error(), "use an older program") {
		t.Errorf("without a step: got %v, want it to say so", err)
	}
}

// The flag is before the environment, the environment before the default, and ~
// is the home directory in each.
func TestDir(t *testing.T) {
	home := t.TempDir()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, env, want string }{
		{"/a", "/b", "/a"},
		{"", "/b/", "/b"},
		{"", "", home + "/.codexchange"},
		{"~/x", "", home + "/x"},
		{"", "~", home},
		{"~x", "", filepath.Join(wd, "~x")},
	} {
		t.Setenv("HOME", home)
		t.Setenv(EnvDir, c.env)
		if got, err := Dir(c.flag); err != nil || got != c.want {
			t.Errorf("flag %q, environment %q: got %q, %v, want %q", c.flag, c.env, got, err, c.want)
		}
	}
	t.Setenv("HOME", "")
	_, err = Dir("")
	refused(t, err, errs.Invalid, "home directory")
}

// A full disk is recognised however the error came.
func TestDiskFull(t *testing.T) {
	wrapped := fmt.Errorf("put: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{wrapped, true},
		{errs.E(errs.Storage, errs.Ours, "put", "x", wrapped), true},
		{errs.E(errs.Storage, errs.Ours, "put", "x", errors.New(wrapped.Error())), true},
		{errors.New(wrapped.Error()), false},
		{syscall.EDQUOT, true},
		{errs.E(errs.Storage, errs.Ours, "put", "x", os.ErrPermission), false},
	} {
		if got := DiskFull(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
	if full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0); err == nil {
		defer full.Close()
		if _, err := full.WriteString("x"); !DiskFull(err) {
			t.Errorf("/dev/full: got %v, want it recognised", err)
		}
	}
	if free, err := FreeSpace(t.TempDir()); err != nil || free == 0 {
		t.Errorf("free space: got %d, %v, want some", free, err)
	}
	_, err := FreeSpace(filepath.Join(t.TempDir(), "none"))
	refused(t, err, errs.Storage)
}
