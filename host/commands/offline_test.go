package commands

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host/repo"
)

// The tree of commands is well formed, and each of them says what it is for.
func TestTree(t *testing.T) {
	root := Root()
	for path, errs := range root.DebugValidate() {
		t.Errorf("%s: %v", path, errs)
	}
	eachCommand(root, nil, func(path []string, c *cmds.Command) {
		if c.Helptext.Tagline == "" {
			t.Errorf("%v has no tagline", path)
		}
		if c.Run == nil && len(c.Subcommands) == 0 {
			t.Errorf("%v does nothing", path)
		}
	})
}

// Garbage is not collected for somebody who has gone: the pins are not all known then.
func TestCollectEnded(t *testing.T) {
	s := newShell(t)
	s.ok("add", "-r", makeTree(t))
	n, _ := openNode(t, s.dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // the listings choose at random what they see first
		err := CollectGarbage(ctx, n, func(c cid.Cid, err error) error {
			t.Errorf("%s was removed, or not: %v, want that nothing is", c, err)
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want %v", err, context.Canceled)
		}
	}
}

// What an exchange tells of a peer has units, and no more digits than a person reads.
func TestLedgerLine(t *testing.T) {
	for name, c := range map[string]struct {
		v    float64
		want string
	}{"latency_ms": {19.827025000000003, "latency: 19.8 ms"}, "rate": {1.1994443604995841e+08, "bytes per second: 120 MB"}, "timed_out": {1807, "timed out: 1807"}} {
		if got := ledgerLine(name, c.v, humanBytes); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// init makes a repo once, says who the node is, and what an ed25519 key means.
func TestInit(t *testing.T) {
	s := &shell{t: t, dir: filepath.Join(t.TempDir(), "repo")}
	out := s.ok("init", "--profile=test,server")
	id := strings.TrimSpace(s.ok("id", "-f", "<id>"))
	want := fmt.Sprintf("initialized the repo in %s\npeer identity: %s\nRun 'host daemon' to start the node.\n", s.dir, id)
	if out != want || !strings.HasPrefix(id, "16Uiu2HA") {
		t.Errorf("init printed\n%s\nwant\n%s", out, want)
	}
	s.fails([]string{"init"}, "there is a repo already")

	s = &shell{t: t, dir: filepath.Join(t.TempDir(), "repo")}
	s.fails([]string{"init", "--key-type=rsa"}, "rsa", "secp256k1 or ed25519")
	s.fails([]string{"init", "--profile=nonsense"}, "nonsense", "test")
	s.fails([]string{"id"}, "there is no repo")
	s.fails([]string{"init", "--from-kubo", s.dir}, s.dir)
	s.fails([]string{"init", "--from-kubo", s.dir, "--key-type=ed25519"}, "the identity is that of Kubo")
	s.fails([]string{"init", "--while-kubo-runs"}, "--from-kubo, which is missing")
	if out := s.ok("init", "-p", "test", "--key-type=ed25519"); !strings.Contains(out, "note: ") || !strings.Contains(out, "Classic Codex") {
		t.Errorf("init with ed25519 printed\n%s\nwant what that means for Codex", out)
	}
}

// add gives the CIDs that Kubo gives, prints as it does, and -n stores nothing.
func TestAdd(t *testing.T) {
	s, tree := newShell(t), makeTree(t)
	s.prints(treeRoot+"\n", "add", "-nrQ", tree)
	s.prints("", "refs", "local")
	s.prints(treeAdded, "add", "-r", tree)
	for _, c := range []struct{ options, want string }{
		{"--cid-version 1", "bafybeicea5agz6ceczlxxlazqe6qn2wpff7dhfbk7szwhh4k3hp5yg5z7m"},
		{"--raw-leaves", "QmRK1HGQLgFyJUu4smV5HwnS8YfuiHqnHFRpHpJuuiaGNx"},
		{"--cid-version 1 --raw-leaves=false", "bafybeihzba274yl5lqe2ht3xr44l2yobwp6hh3xktnsczdyphmh3xrva3y"},
		{"--trickle", "QmRiPuLLH7B1YwCsD1FwHiqNHE9ESGViGCp4Nzt4VzYS7c"},
		{"--hash blake3", "bafyb4iaxr4grejneoln2ywwuthrvuyn4gzivojyzqecqhrngd57xzlckzq"},
		{"--wrap-with-directory", "QmX5muJ1T7F64oAXLfwRVrMR8cXfgAmqiJLkXCtU7DAMkz"},
		{"--chunker size-1000", "QmbFRnbmb5bLd7gvQzLygpyNuASvqX7qX1rssgSeMY7Yzv"},
		{"--chunker buzhash", "QmXk6jFSNNNQ9zS72rF8jtyKPsxbPRmxhuwWABKGkYDTwj"},
	} {
		s.prints(c.want+"\n", append([]string{"add", "-nrQ", tree}, strings.Fields(c.options)...)...)
	}

	s.prints("bafybeiek27gm6ih6eotswj6xugwc4cs5eyp5r55stkuejrhtupw2mbhyxu\n", "add", "-nrQ", "--cid-base=base32", tree)

	o := s.feed(t.Context(), "hello\n", "add")
	if want := "added " + helloCID + " " + helloCID + "\n"; o.stdout != want || o.code != ExitOK {
		t.Errorf("add from stdin, want %q\n%v", want, o)
	}
	o = s.feed(t.Context(), "hello\n", "add", "-q", "--stdin-name", "hello", "-w")
	if lines := strings.Fields(o.stdout); len(lines) != 2 || lines[0] != helloCID {
		t.Errorf("add from stdin with a name, want %s and a directory\n%v", helloCID, o)
	} else {
		s.prints("hello\n", "cat", lines[1]+"/hello")
	}

	file := filepath.Join(tree, "a")
	s.fails([]string{"add", tree}, "recursive")
	s.fails([]string{"add", file + "none"}, file+"none")
	s.fails([]string{"add", "--chunker=size-x", file}, "size-x")
	s.fails([]string{"add", "--cid-version=2", file}, "got 2, want 0 or 1")
	s.fails([]string{"add", "--cid-version=0", "--hash=blake3", file}, "blake3")
	s.fails([]string{"add", "--hash=none", file}, `got "none"`)
	s.fails([]string{"add", "--pin=false", "--pin-name=x", file}, "--pin-name")
}

// A large directory is sharded as Kubo does it, also when nothing is stored.
func TestAddSharded(t *testing.T) {
	s, dir := newShell(t), t.TempDir()
	for i := range 2000 {
		write(t, filepath.Join(dir, fmt.Sprintf("a file with a long name, so that the directory is sharded, number %04d", i)), fmt.Append(nil, i))
	}
	const want = "QmNbDnKtHHfEWVkA1wahZszZufv4qyMYHcsF37RVK77Vsj\n"
	s.prints(want, "add", "-nrQ", dir)
	s.prints(want, "add", "-rQ", dir)
	if got := strings.Count(s.ok("ls", strings.TrimSpace(want)), "\n"); got != 2000 {
		t.Errorf("ls printed %d entries, want 2000", got)
	}
}

// What was added is read in all the ways there are, with Kubo's output.
func TestRead(t *testing.T) {
	s, tree := newShell(t), makeTree(t)
	s.ok("add", "-r", tree)
	s.prints(treeListed, "ls", "-v", treeRoot)
	s.prints("QmR9pC5uCF3UExca8RSrCVL8eKv7nHMpATzbEQkAHpXmVM 2 b\n", "ls", "/ipfs/"+treeRoot+"/sub")
	s.prints(treeRefs, "refs", "-r", treeRoot)
	s.prints(treeStat, "dag", "stat", treeRoot)
	s.prints("a\nb\n", "cat", treeRoot+"/a", treeRoot+"/sub/b")
	s.prints("\nb", "cat", "-o", "1", "-l", "2", treeRoot+"/a", treeRoot+"/sub/b")
	s.prints("Key: "+treeRoot+"\nSize: 232\n", "block", "stat", treeRoot)
	if got := s.ok("refs", "-e", treeRoot); !strings.HasPrefix(got, treeRoot+" -> Qmbvkmk9LFsGneteXk3G7YLqtLVME566ho6ibaQZZVHaC9\n") {
		t.Errorf("refs -e printed\n%s", got)
	}
	big, err := os.ReadFile(filepath.Join(tree, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.ok("cat", treeRoot+"/big"); got != string(big) {
		t.Errorf("cat printed %d bytes, want the %d of the file", len(got), len(big))
	}

	out := filepath.Join(t.TempDir(), "out")
	s.prints("Saving file(s) to "+out+"\n", "get", "-o", out, treeRoot)
	same(t, out, tree)
	s.prints("Saving archive to "+out+".tar.gz\n", "get", "-a", "-C", "-o", out, treeRoot)
	if head, err := os.ReadFile(out + ".tar.gz"); err != nil || len(head) < 100 || head[0] != 0x1f || head[1] != 0x8b {
		t.Errorf("archive has %d bytes, %v, want gzip", len(head), err)
	}

	s.fails([]string{"cat", treeRoot}, "is a directory", "host get")
	s.fails([]string{"cat", treeRoot + "/none"}, "none")
	s.fails([]string{"cat", "nonsense"}, `"nonsense"`, "want a CID")
	s.fails([]string{"cat", "/ipns/example.org"}, "no names of /ipns")
	s.fails([]string{"cat", "-o", "-1", treeRoot + "/a"}, "negative")
	s.fails([]string{"cat", helloCID}, helloCID, "not stored here", "host daemon")
	s.fails([]string{"--offline", "cat", helloCID}, "--offline asks no peers")
	s.fails([]string{"get", "-C", treeRoot}, "add --archive")
	s.fails([]string{"get", "-C", "-l", "11", treeRoot}, "got 11, want 1 to 9")
}

// same compares two directories.
func same(t *testing.T, got, want string) {
	t.Helper()
	list := func(dir string) (all []string) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(dir, path)
			line := rel + " " + d.Type().String()
			if d.Type().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %x", sha256.Sum256(data))
			}
			all = append(all, line)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if g, w := list(got), list(want); !slices.Equal(g, w) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(g, "\n"), strings.Join(w, "\n"))
	}
}

// Blocks go in and out, and one that is pinned is not removed.
func TestBlock(t *testing.T) {
	s := newShell(t)
	put := func(want string, args ...string) {
		t.Helper()
		if o := s.feed(t.Context(), "blk", append([]string{"block", "put"}, args...)...); o.stdout != want+"\n" || o.code != ExitOK {
			t.Errorf("want %s\n%v", want, o)
		}
	}
	put("zb2rhcmJ7Jqv32QuFVJStzY9iK2vyRakKeTL2ncPRdd2nhyJA", "--cid-base=base58btc")
	put("bafybeic26i4svfepsuhd7e7j6fy5uyr74zrjiqf4rv7cp6t3hflt4qhoom", "--cid-codec=dag-pb")
	const c = "QmUTfdFdgBmPx4dkToEFTovaAhi62qKiRFzY5kk3GWjo6S"
	put(c, "--format=v0")
	s.prints("blk", "block", "get", c)
	s.prints(`{"Key":"`+c+`","Size":3}`+"\n", "--enc=json", "block", "stat", c)
	s.prints("removed "+c+"\n", "block", "rm", c)
	if o := s.run("block", "rm", c); o.code != ExitFailed || !strings.Contains(o.stderr, "cannot remove "+c) || !strings.Contains(o.stderr, "1 blocks were not removed") {
		t.Errorf("want that it is not there\n%v", o)
	}
	s.prints("removed "+c+"\n", "block", "rm", "-f", c)

	s.feed(t.Context(), "hello\n", "add")
	if o := s.run("block", "rm", helloCID); o.code != ExitFailed || !strings.Contains(o.stderr, "pinned") {
		t.Errorf("want that it is pinned\n%v", o)
	}
	o := s.feed(t.Context(), strings.Repeat("x", softBlock+1), "block", "put")
	if o.code != ExitFailed || !strings.Contains(o.stderr, "want at most 2097152") {
		t.Errorf("want that it is too large\n%v", o)
	}
	s.fails([]string{"block", "put", "--mhtype=none", os.Args[0]}, `got "none"`)
}

// Garbage is what no pin keeps, and if a pin is not complete there is none.
func TestPinAndGC(t *testing.T) {
	s, tree := newShell(t), makeTree(t)
	s.ok("add", "-r", tree)
	s.feed(t.Context(), "hello\n", "add", "--pin=false")
	s.prints(treeRoot+" recursive\n", "pin", "ls", "--type=recursive")
	s.prints(`{"Keys":{"`+treeRoot+`":{"Type":"recursive","Name":""}}}`+"\n", "--enc=json", "pin", "ls", "-t", "recursive")
	s.prints("Qmbvkmk9LFsGneteXk3G7YLqtLVME566ho6ibaQZZVHaC9 indirect through "+treeRoot+"\n", "pin", "ls", treeRoot+"/a")
	if got := strings.Count(s.ok("pin", "ls"), " indirect\n"); got != 9 {
		t.Errorf("pin ls printed %d indirect pins, want 9", got)
	}
	s.fails([]string{"pin", "ls", helloCID}, "is not pinned")

	s.prints("", "repo", "gc", "--silent")
	if got := strings.Count(s.ok("refs", "local"), "\n"); got != 10 {
		t.Errorf("%d blocks after garbage was collected, want the 10 that are pinned", got)
	}
	s.ok("pin", "add", "--name", "one file", treeRoot+"/sub")
	s.prints("QmYK7dA9iTDSmYvSbEWFBkKLAtxNWkveYfEPptHimToKVJ recursive one file\n", "pin", "ls", "-n", "one")
	s.prints("unpinned "+treeRoot+"\n", "pin", "rm", treeRoot)
	s.prints("pinned "+treeRoot+" directly\n", "pin", "add", "-r=false", treeRoot)
	s.prints("QmYK7dA9iTDSmYvSbEWFBkKLAtxNWkveYfEPptHimToKVJ\n", "pin", "ls", "-q", "-t", "recursive")
	if got := strings.Count(s.ok("repo", "gc"), "removed "); got != 7 {
		t.Errorf("%d blocks were garbage, want all but the root, a directory and its file: 7", got)
	}
	s.prints("b\n", "cat", "QmYK7dA9iTDSmYvSbEWFBkKLAtxNWkveYfEPptHimToKVJ/b")

	// The file of the pinned directory is lost.
	file := blockFile(t, s, "QmR9pC5uCF3UExca8RSrCVL8eKv7nHMpATzbEQkAHpXmVM")
	data, err := os.ReadFile(file)
	if err == nil {
		err = os.Remove(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.feed(t.Context(), "hello\n", "add", "--pin=false")
	s.fails([]string{"repo", "gc"}, "nothing was removed")
	s.prints("hello\n", "cat", helloCID)
	write(t, file, data)
	s.ok("repo", "gc")
	s.fails([]string{"cat", helloCID}, "not stored here")
}

// blockFile is the file of a block.
func blockFile(t *testing.T, s *shell, c string) string {
	t.Helper()
	content := s.ok("block", "get", c)
	var found string
	err := filepath.WalkDir(filepath.Join(s.dir, "blocks"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".data") {
			if data, err := os.ReadFile(path); err == nil && string(data) == content {
				found = path
			}
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("no file of block %s: %v", c, err)
	}
	return found
}

// verify finds a block whose bytes have changed, and removes it when told to.
func TestVerify(t *testing.T) {
	s := newShell(t)
	s.feed(t.Context(), "hello\n", "add")
	s.prints("verify complete, all blocks validated.\n", "repo", "verify")
	file := blockFile(t, s, helloCID)
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, file, []byte("something else"))
	if o := s.run("repo", "verify"); o.code != ExitFailed || !strings.Contains(o.stdout, "was corrupt") || !strings.Contains(o.stderr, "1 blocks corrupt") {
		t.Errorf("want that one block is corrupt\n%v", o)
	}
	if out := s.ok("repo", "verify", "--drop"); !strings.Contains(out, "1 blocks corrupt, 1 removed") {
		t.Errorf("verify --drop printed\n%s", out)
	}
	s.prints("verify complete, all blocks validated.\n", "repo", "verify")
	var stat RepoStat
	if err := json.Unmarshal([]byte(s.ok("--enc=json", "repo", "stat")), &stat); err != nil || stat.NumObjects != 0 || stat.RepoPath != s.dir || stat.Version != "codexchange@1" {
		t.Errorf("repo stat is %+v, %v", stat, err)
	}
}

// A DAG goes from repo to repo as the CAR file that Kubo writes; what is wrong or not
// complete is said.
func TestCAR(t *testing.T) {
	from, to := newShell(t), newShell(t)
	from.ok("add", "-r", makeTree(t))
	data := from.ok("dag", "export", treeRoot)
	if sum := sha256.Sum256([]byte(data)); hex.EncodeToString(sum[:]) != treeCAR {
		t.Errorf("the CAR file has sum %x, want %s", sum, treeCAR)
	}
	file := write(t, filepath.Join(t.TempDir(), "tree.car"), []byte(data))
	to.prints("Pinned root\t"+treeRoot+"\tsuccess\nImported 10 blocks (600504 bytes)\n", "dag", "import", "--stats", file)
	to.prints("b\n", "cat", treeRoot+"/sub/b")
	to.prints(treeRoot+" recursive\n", "pin", "ls", "-t", "recursive")

	bad := []byte(data)
	bad[len(bad)-1] ^= 1
	to = newShell(t)
	to.fails([]string{"dag", "import", write(t, filepath.Join(t.TempDir(), "bad.car"), bad)}, "bad.car", "after block")
	to.fails([]string{"dag", "export", helloCID}, "not stored here")

	// Without its last block, which is a file, the DAG is not complete.
	last := len(from.ok("block", "get", "QmR9pC5uCF3UExca8RSrCVL8eKv7nHMpATzbEQkAHpXmVM"))
	part := write(t, filepath.Join(t.TempDir(), "part.car"), []byte(data[:len(data)-1-34-last])) // its length, CID and bytes
	to.fails([]string{"dag", "import", part}, "pinning root", treeRoot, "FAILED")
	to.prints("", "pin", "ls")
	to.prints("", "dag", "import", "--pin-roots=false", part)
	to.prints("a\n", "cat", treeRoot+"/a")
}

// The configuration is read, changed and replaced; its secrets are not shown.
func TestConfig(t *testing.T) {
	s := newShell(t)
	s.prints("/ip4/127.0.0.1/tcp/0\n", "config", "Addresses.API")
	s.prints("", "config", "Datastore.StorageMax", "5GB")
	s.prints("5GB\n", "config", "Datastore.StorageMax")
	s.prints(`{"Key":"Datastore.StorageMax","Value":"5GB"}`+"\n", "--enc=json", "config", "Datastore.StorageMax")
	s.prints("", "config", "--json", "Exchange.Use", `["bitswap"]`)
	s.prints("[\n  \"bitswap\"\n]\n", "config", "Exchange.Use")
	s.prints("", "config", "--bool", "Swarm.DisableNatPortMap", "false")
	s.prints("false\n", "config", "Swarm.DisableNatPortMap")
	s.fails([]string{"config", "Datastore.StorageMax", "much"}, "StorageMax")
	s.prints("5GB\n", "config", "Datastore.StorageMax")
	s.fails([]string{"config", "No.Such"}, "No.Such")
	s.fails([]string{"config", "--json", "Exchange.Use", "["}, "JSON")

	shown := s.ok("config", "show")
	if strings.Contains(shown, "PrivKey") || !strings.Contains(shown, `"StorageMax": "5GB"`) {
		t.Errorf("config show printed\n%s", shown)
	}
	id := s.ok("id", "-f", "<id>")
	file := write(t, filepath.Join(t.TempDir(), "config"), []byte(strings.Replace(shown, "5GB", "6GB", 1)))
	s.prints("", "config", "replace", file)
	s.prints("6GB\n", "config", "Datastore.StorageMax")
	s.prints(id, "id", "-f", "<id>")
	s.prints("", "config", "profile", "apply", "server")

	t.Setenv("VISUAL", "")
	t.Setenv("EDITOR", "")
	t.Setenv("TMPDIR", t.TempDir())
	s.fails([]string{"config", "edit"}, "$EDITOR")
	t.Setenv("EDITOR", "sed -i s/6GB/7GB/")
	s.prints("", "config", "edit")
	s.prints("7GB\n", "config", "Datastore.StorageMax")
	t.Setenv("EDITOR", "sed -i s/7GB/lots/")
	s.fails([]string{"config", "edit"}, "StorageMax", "what you wrote is in "+os.Getenv("TMPDIR"))
	s.prints("7GB\n", "config", "Datastore.StorageMax")
}

// Commands that need a running node say so, and how to start one.
func TestNoDaemon(t *testing.T) {
	s := newShell(t)
	for _, c := range []string{
		"swarm peers", "swarm connect /p2p/x", "swarm addrs local", "exchange stat", "exchange wantlist", "exchange peers", "plugin ls",
		"plugin restart blockexc", "shutdown", "log level", "diag profile",
	} {
		s.fails(strings.Fields(c), "no daemon runs on "+s.dir, "start one with 'host daemon'")
	}
	s.fails([]string{"--api=/ip4/127.0.0.1/tcp/1", "id"}, "/ip4/127.0.0.1/tcp/1", "connection refused")
	s.fails([]string{"--api=nonsense", "id"}, "nonsense", "want a multiaddr")
	s.fails([]string{"--api=/ip4/127.0.0.1/tcp/1", "init"}, "leave --api out")
}

// Command lines that cannot be understood get usage on stderr and exit code 1; help
// is no failure.
func TestUsage(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // parts; "" is nothing at all
	}{
		{"", ExitOK, "SUBCOMMANDS", ""},
		{"--help", ExitOK, "EXIT STATUS", ""},
		{"help", ExitOK, "EXIT STATUS", ""},
		{"help pin add", ExitOK, "host pin add", ""},
		{"pin add --help", ExitOK, "OPTIONS", ""},
		{"--version", ExitOK, "codexchange version ", ""},
		{"version --all", ExitOK, runtime.Version(), ""},
		{"version -n", ExitOK, ".", ""},
		{"fly", ExitFailed, "", `Unknown Command "fly"`},
		{"config", ExitFailed, "", "USAGE"},
		{"config Addresses.API a b", ExitFailed, "", "USAGE"},
		{"add --fast", ExitFailed, "", "fast"},
		{"--timeout=soon id", ExitFailed, "", "soon"},
	} {
		o := s.run(strings.Fields(c.args)...)
		for what, pair := range map[string][2]string{"stdout": {o.stdout, c.stdout}, "stderr": {o.stderr, c.stderr}} {
			if o.code != c.code || pair[1] == "" && pair[0] != "" || !strings.Contains(pair[0], pair[1]) {
				t.Errorf("want exit code %d and %q on %s\n%v", c.code, pair[1], what, o)
			}
		}
	}
}

// Interrupted, a command ends at once with the code that shells expect, even while it
// waits for input that does not come.
func TestInterrupted(t *testing.T) {
	s := newShell(t)
	in, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int)
	go func() {
		code <- Main(ctx, Root(), []string{"host", "--repo-dir", s.dir, "add"}, in, out, out)
	}()
	if _, err := writer.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := <-code; got != ExitInterrupted {
		t.Errorf("exit code %d, want %d", got, ExitInterrupted)
	}
	writer.Close() // ends the read, and then the command
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := repo.Open(s.dir)
		if err == nil {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the repo was not given up after 10 s: %v", err)
		}
	}
}

// The script for bash is one, and offers what may follow.
func TestCompletion(t *testing.T) {
	s := newShell(t)
	for _, sh := range []string{"bash", "zsh", "fish"} {
		if out := s.ok("completion", sh); !strings.Contains(out, "wantlist") || !strings.Contains(out, "quieter") {
			t.Errorf("completion %s does not have all commands and options", sh)
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash to try it with")
	}
	script := write(t, filepath.Join(t.TempDir(), "script"), []byte(s.ok("completion", "bash")))
	for _, c := range []struct{ line, want string }{
		{"repo v", "verify version"},
		{"pin add --rec", "--recursive"},
		{"--offline swarm d", "disconnect"},
		{"cat QmX ", ""},
	} {
		out, err := exec.Command(bash, "-c", fmt.Sprintf(`source %q; COMP_WORDS=(host %s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _host; echo "${COMPREPLY[*]}"`, script, c.line)).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
			t.Errorf("after %q it offers %q, %v, want %q", c.line, got, err, c.want)
		}
	}
}
