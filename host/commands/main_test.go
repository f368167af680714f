package commands

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

func TestMain(m *testing.M) {
	host.Main()
	goleak.VerifyTestMain(m,
		// leveldb's pool outlives its database by a second.
		goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"),
		// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		// One for the process, which ends by itself.
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"))
}

// outcome is what a command line left behind.
type outcome struct {
	args           []string
	code           int
	stdout, stderr string
}

func (o outcome) String() string {
	return fmt.Sprintf("host %s\nexit code %d\nstdout:\n%s\nstderr:\n%s", strings.Join(o.args, " "), o.code, o.stdout, o.stderr)
}

// A shell runs command lines on one repo.
type shell struct {
	t    *testing.T
	dir  string   // of the repo, by the environment
	with []string // options of every command
}

// newShell makes a repo.
func newShell(t *testing.T) *shell {
	t.Helper()
	s := &shell{t: t, dir: filepath.Join(t.TempDir(), "repo")}
	s.ok("init", "--profile", "test")
	return s
}

// feed runs a command line with text on stdin.
func (s *shell) feed(ctx context.Context, stdin string, args ...string) outcome {
	s.t.Helper()
	open := func(text string) *os.File {
		f, err := os.CreateTemp(s.t.TempDir(), "")
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err == nil {
			_, err = f.Seek(0, 0)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		return f
	}
	in, out, err := open(stdin), open(""), open("")
	defer in.Close()
	o := outcome{args: args}
	s.t.Setenv(repo.EnvDir, s.dir)
	o.code = Main(ctx, Root(), append(append([]string{"host"}, s.with...), args...), in, out, err)
	read := func(f *os.File) string {
		defer f.Close()
		data, err := os.ReadFile(f.Name())
		if err != nil {
			s.t.Fatal(err)
		}
		return string(data)
	}
	o.stdout, o.stderr = read(out), read(err)
	return o
}

// run runs a command line without input.
func (s *shell) run(args ...string) outcome {
	s.t.Helper()
	return s.feed(s.t.Context(), "", args...)
}

// ok runs a command that has to succeed in silence on stderr, and returns its
// output.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	o := s.run(args...)
	if o.code != ExitOK || o.stderr != "" {
		s.t.Fatalf("want success, and nothing on stderr\n%v", o)
	}
	return o.stdout
}

// prints runs a command that has to print exactly this.
func (s *shell) prints(want string, args ...string) {
	s.t.Helper()
	if got := s.ok(args...); got != want {
		s.t.Errorf("host %s:\ngot\n%s\nwant\n%s", strings.Join(args, " "), got, want)
	}
}

// fails runs a command that has to fail with one error, that has all of these parts,
// and nothing on stdout.
func (s *shell) fails(args []string, parts ...string) {
	s.t.Helper()
	o := s.run(args...)
	if o.code != ExitFailed || o.stdout != "" || !strings.HasPrefix(o.stderr, "Error: ") || strings.Count(o.stderr, "Error: ") != 1 {
		s.t.Errorf("want exit code %d, nothing on stdout and one error\n%v", ExitFailed, o)
	}
	for _, p := range parts {
		if !strings.Contains(o.stderr, p) {
			s.t.Errorf("want %q on stderr\n%v", p, o)
		}
	}
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// What Kubo 0.42 says of the tree that makeTree makes.
const (
	treeRoot  = "QmXgdptWhQpLZAcym6mrRM3WLakbSHeX2ZwQAWe3xs8BbA"
	treeAdded = `added Qmbvkmk9LFsGneteXk3G7YLqtLVME566ho6ibaQZZVHaC9 tree/a
added QmXz6gvwveDzTeiimPD4du8qenNYpoqksoLhRQWQzgsn8g tree/big
added QmQGdvJc5i8i3wPbkBgwtn91eoNg9cDxMBqaH4RBJVGX8S tree/link
added QmR9pC5uCF3UExca8RSrCVL8eKv7nHMpATzbEQkAHpXmVM tree/sub/b
added QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn tree/empty
added QmYK7dA9iTDSmYvSbEWFBkKLAtxNWkveYfEPptHimToKVJ tree/sub
added QmXgdptWhQpLZAcym6mrRM3WLakbSHeX2ZwQAWe3xs8BbA tree
`
	treeListed = `Hash                                           Size   Name
Qmbvkmk9LFsGneteXk3G7YLqtLVME566ho6ibaQZZVHaC9 2      a
QmXz6gvwveDzTeiimPD4du8qenNYpoqksoLhRQWQzgsn8g 600000 big
QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn -      empty/
QmQGdvJc5i8i3wPbkBgwtn91eoNg9cDxMBqaH4RBJVGX8S 1      link
QmYK7dA9iTDSmYvSbEWFBkKLAtxNWkveYfEPptHimToKVJ -      sub/
`
	treeRefs = `Qmbvkmk9LFsGneteXk3G7YLqtLVME566ho6ibaQZZVHaC9
QmXz6gvwveDzTeiimPD4du8qenNYpoqksoLhRQWQzgsn8g
QmPtBg68WR3S7PeajZ4A8nZuJtx5Q9HcegaqXa8P1ogwC5
QmXDmp765mu4Jsk1Zz3Ayt9cCcriJXcZ2mTMMJS7nJaxu7
QmUgZfJeCMSHu3ZRfBxLkwZRKym1hokfjCN6UUZgh4Eyc6
QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn
QmQGdvJc5i8i3wPbkBgwtn91eoNg9cDxMBqaH4RBJVGX8S
QmYK7dA9iTDSmYvSbEWFBkKLAtxNWkveYfEPptHimToKVJ
QmR9pC5uCF3UExca8RSrCVL8eKv7nHMpATzbEQkAHpXmVM
`
	treeStat = `
CID                                           	Blocks         	Size
QmXgdptWhQpLZAcym6mrRM3WLakbSHeX2ZwQAWe3xs8BbA	10             	600504

Summary
Total Size: 600504 (600 kB)
Unique Blocks: 10
Shared Size: 0 (0 B)
Ratio: 1.000000


`
	treeLeaf = "QmUgZfJeCMSHu3ZRfBxLkwZRKym1hokfjCN6UUZgh4Eyc6"                   // a part of big
	treeCAR  = "575b316721958d623789c92753af2eb0cd349da0e37277be950683e7446f6d91" // SHA-256

	helloCID = "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN" // "hello\n"
)

// makeTree makes a directory with files, a large one too, a link and directories.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	write(t, filepath.Join(dir, "a"), []byte("a\n"))
	write(t, filepath.Join(dir, "sub", "b"), []byte("b\n"))
	big := make([]byte, 600000)
	for i := range big {
		big[i] = byte(i*7 + (i>>8)*13 + (i>>16)*31)
	}
	write(t, filepath.Join(dir, "big"), big)
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// openNode opens the node of a repo, with a network.
func openNode(t *testing.T, dir string) (*host.Node, *repo.Repo) {
	t.Helper()
	r, err := repo.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	n, err := host.Open(t.Context(), r, false, nil)
	if err != nil {
		r.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, r
}
