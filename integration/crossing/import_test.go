package crossing

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

// A repo that real Kubo has made becomes one of ours by init --from-kubo: the same
// peer id, the same files, by hard links, and the same pins with their names; ours
// collects garbage, and Kubo's repo stays as it was, byte by byte.
func TestImportKubo(t *testing.T) {
	k, p := nodetest.NewKubo(t), newProgram(t)
	files := make(map[string]string) // SHA-256 by root
	for i, args := range [][]string{
		{"--cid-version=1", "--pin-name=a name"}, {"--raw-leaves=false"}, {"--cid-version=1", "--chunker=size-65536", "--pin=false"},
	} {
		content, sum := random(uint64(70+i), 3<<20)
		root, err := k.Run(content, append([]string{"add", "--quieter"}, args...)...)
		must(t, "add file with Kubo", err)
		files[strings.TrimSpace(root)] = sum
	}
	id, err := k.Run(nil, "config", "Identity.PeerID")
	must(t, "read Kubo's peer id", err)
	pins, err := k.Run(nil, "pin", "ls", "--type=recursive", "--names")
	must(t, "list Kubo's pins", err)
	before, links := fingerprint(t, k.Repo)

	ours := filepath.Join(t.TempDir(), "ours")
	host := func(args ...string) string {
		t.Helper()
		return p.must(append([]string{"--repo-dir=" + ours}, args...)...)
	}
	said := host("init", "--profile=test", "--from-kubo="+k.Repo)
	for _, want := range []string{"peer identity: " + strings.TrimSpace(id), "share their place", "Never run both at once"} {
		if !strings.Contains(said, want) {
			t.Errorf("init says %q, want %q in it", said, want)
		}
	}
	if strings.Contains(said, "Pins are not imported") {
		t.Errorf("init says %q, want the pins imported", said)
	}
	if _, after := fingerprint(t, k.Repo); after != 2*links {
		t.Errorf("Kubo's blocks have %d names, want each two, %d", after, 2*links)
	}
	if got := host("pin", "ls", "--type=recursive", "--names"); sorted(got) != sorted(pins) {
		t.Errorf("pins: got %q, want those of Kubo, %q", got, pins)
	}
	cat := func(root, sum string) {
		t.Helper()
		if got := p.sum("--repo-dir="+ours, "cat", root); got != sum {
			t.Errorf("%s: got other bytes than Kubo was given", root)
		}
	}
	for root, sum := range files {
		cat(root, sum)
	}
	if got := host("repo", "verify"); !strings.Contains(got, "all blocks validated") {
		t.Errorf("repo verify: got %q, want that all blocks are valid", got)
	}
	host("repo", "gc", "--quiet") // the file that is not pinned goes, here alone
	for root, sum := range files {
		if strings.Contains(pins, root) {
			cat(root, sum)
		} else if _, err := p.run("--repo-dir="+ours, "cat", root); err == nil {
			t.Errorf("%s is still here, want it collected", root)
		}
	}
	if after, _ := fingerprint(t, k.Repo); after != before {
		t.Errorf("Kubo's repo has changed:\n%s", after)
	}
	for root, sum := range files {
		got, err := k.Run(nil, "cat", "--offline", root)
		must(t, "read the file with Kubo", err)
		if sumOf([]byte(got)) != sum {
			t.Errorf("%s: Kubo reads other bytes than before", root)
		}
	}
}

// What cannot be taken from Kubo is refused with what to do, and nothing is changed: a
// repo that Kubo runs on, one that is used as it is, one whose blocks are in another store.
func TestImportKuboRefuses(t *testing.T) {
	k, p := nodetest.NewKubo(t), newProgram(t)
	ours := filepath.Join(t.TempDir(), "ours")
	refused := func(why string, want []string, args ...string) {
		t.Helper()
		before, _ := fingerprint(t, k.Repo)
		out, err := p.run(args...)
		if err == nil {
			t.Fatalf("%s: got %q, want an error", why, out)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: got %v, want %q in it", why, err, w)
			}
		}
		if after, _ := fingerprint(t, k.Repo); after != before {
			t.Errorf("%s: Kubo's repo has changed:\n%s", why, after)
		}
		if _, err := os.Stat(ours); err == nil {
			t.Errorf("%s: there is a new repo", why)
		}
	}
	refused("a daemon over Kubo's repo", []string{"it is a repo of Kubo", "--from-kubo"}, "--repo-dir="+k.Repo, "daemon")
	refused("init in Kubo's repo", []string{"it is a repo of Kubo", "--from-kubo"}, "--repo-dir="+k.Repo, "init")
	refused("a key of its own", []string{"want one of them"}, "--repo-dir="+ours, "init", "--key-type=ed25519", "--from-kubo="+k.Repo)
	refused("no repo", []string{"want a repo of Kubo"}, "--repo-dir="+ours, "init", "--from-kubo="+t.TempDir())

	t.Run("running", func(t *testing.T) {
		k := *k
		k.TB = t
		k.Daemon()
		out, err := p.run("--repo-dir="+ours, "init", "--from-kubo="+k.Repo)
		if err == nil || !strings.Contains(err.Error(), "ipfs shutdown") {
			t.Errorf("got %q, %v, want that Kubo has to be stopped", out, err)
		}
		said := p.must("--repo-dir="+filepath.Join(t.TempDir(), "ours"), "init", "--while-kubo-runs", "--from-kubo="+k.Repo)
		if !strings.Contains(said, "Kubo is running on its repo") {
			t.Errorf("while Kubo runs: init says %q, want that pins are missing", said)
		}
	})

	must(t, "remove Kubo's repo", os.RemoveAll(k.Repo))
	_, err := k.Run(nil, "init", "--empty-repo", "--profile=test,pebbleds")
	must(t, "make a repo for Kubo", err)
	refused("another store", []string{`"pebbleds", want flatfs`, "dag export"}, "--repo-dir="+ours, "init", "--from-kubo="+k.Repo)
}

// sum is the SHA-256 of what a command prints.
func (p program) sum(args ...string) string {
	p.Helper()
	out, err := p.command(p.Context(), args...).Output()
	must(p, "run a command", err)
	return sumOf(out)
}

// fingerprint is what is below a directory: names, modes, times and sums of all files;
// and how many names the blocks have together.
func fingerprint(t testing.TB, dir string) (list string, links uint64) {
	t.Helper()
	var b strings.Builder
	must(t, "read "+dir, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprint(&b, path, " ", fi.Mode(), " ", fi.ModTime().UnixNano())
		if fi.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(content)
			fmt.Fprint(&b, " ", hex.EncodeToString(sum[:8]))
			if filepath.Ext(path) == ".data" {
				links += uint64(fi.Sys().(*syscall.Stat_t).Nlink)
			}
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String(), links
}

// sorted is a text with its lines in order.
func sorted(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
