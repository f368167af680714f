package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-car/v2"
)

const (
	rawType = "application/vnd.ipld.raw"
	carType = "application/vnd.ipld.car"
)

// The DAGs that are asked for.
type fixtures struct {
	maker
	dir       ipld.Node // subdir/{ascii.txt,hello.txt,multiblock.txt}
	sub, file cid.Cid   // subdir, and multiblock.txt of five blocks, the last of 2 bytes
	sharded   ipld.Node // a HAMT of files with two blocks each
	mixed     ipld.Node // document, DAG-CBOR that leads to a file by files/single
	document  ipld.Node
	single    ipld.Node
	holed     ipld.Node // a file of three blocks, of which the second is nowhere
	oldHoled  ipld.Node // the same, as files were first
	twice     ipld.Node // ascii-copy.txt, ascii.txt, hello.txt, multiblock.txt: the first two are the same
}

// load makes the DAGs and gives them to a gateway.
func load(t *testing.T, g *gateway) fixtures {
	m := newMaker(t)
	f := fixtures{maker: m}
	ascii, hello, multi := m.file("goodbye application/vnd.ipld.car\n"), m.file("hello\n"), m.file(words(0, 4*chunkSize+2))
	sub := m.dir("ascii.txt", ascii, "hello.txt", hello, "multiblock.txt", multi)
	f.dir, f.sub, f.file = m.dir("subdir", sub), sub.Cid(), multi.Cid()
	f.sharded = m.sharded(300)
	f.single = m.file("one block\n")
	f.document = m.document("files", "single", f.single)
	f.mixed = m.dir("document", f.document)
	f.holed, f.oldHoled = m.file(words(1, 3*chunkSize)), m.oldFile(words(2, 3*chunkSize))
	f.twice = m.dir("ascii-copy.txt", ascii, "ascii.txt", ascii, "hello.txt", hello, "multiblock.txt", multi)
	if n := len(m.shards(f.sharded.Cid())); n < 10 {
		t.Fatalf("the HAMT has %d blocks, want several levels", n)
	}
	g.load("fixtures.car", m.car([]ipld.Node{f.dir, f.sharded, f.mixed, f.document, f.twice}))
	for _, n := range []ipld.Node{f.holed, f.oldHoled} {
		g.load("hole.car", m.car([]ipld.Node{n}, f.links(n.Cid())[1].Cid))
	}
	return f
}

func path(root ipld.Node, names ...string) string {
	return "/ipfs/" + strings.Join(append([]string{root.Cid().String()}, names...), "/")
}

// A block comes as it is, however it is asked for, with headers that let it be kept
// for ever.
func TestRaw(t *testing.T) {
	g := start(t)
	f := load(t, g)
	for name, n := range map[string]ipld.Node{"a directory": f.dir, "a file": f.single, "a document": f.document, "a shard": f.sharded} {
		for _, ask := range [][]string{{path(n) + "?format=raw"}, {path(n), "Accept: " + rawType}} {
			t.Run(name+" by "+way(ask), func(t *testing.T) {
				got := g.get(http.MethodGet, ask[0], ask[1:]...)
				got.status(t, http.StatusOK)
				if !bytes.Equal(got.body, n.RawData()) {
					t.Errorf("got %d bytes, want the %d of the block", len(got.body), len(n.RawData()))
				}
				got.header(t, "Content-Type", "^"+rawType+"$")
				got.header(t, "Content-Length", "^"+strconv.Itoa(len(n.RawData()))+"$")
				got.header(t, "Content-Disposition", `^attachment;\s*filename=".*\.bin"`)
				got.header(t, "X-Content-Type-Options", "^nosniff$")
				got.header(t, "X-Ipfs-Path", "^"+path(n)+"$")
				got.header(t, "X-Ipfs-Roots", n.Cid().String())
				got.forever(t)
				etag := got.header(t, "Etag", ".")
				g.get(http.MethodGet, ask[0], append(ask[1:], "If-None-Match: "+etag)...).status(t, http.StatusNotModified)
				if head := g.get(http.MethodHead, ask[0], ask[1:]...); head.StatusCode != http.StatusOK || len(head.body) > 0 {
					t.Errorf("HEAD: got %s and %d bytes, want 200 and none", head.Status, len(head.body))
				}
			})
		}
	}
	t.Run("by a path", func(t *testing.T) {
		got := g.get(http.MethodGet, path(f.dir, "subdir", "hello.txt")+"?format=raw")
		got.status(t, http.StatusOK)
		if string(got.body) != "hello\n" {
			t.Errorf("got %q, want the file", got.body)
		}
	})
	t.Run("with a name", func(t *testing.T) {
		got := g.get(http.MethodGet, path(f.single)+"?filename=foobar.bin", "Accept: "+rawType)
		got.header(t, "Content-Disposition", `attachment;\s*filename="foobar\.bin"`)
	})
	t.Run("a range", func(t *testing.T) {
		// Of several ranges a gateway may give the first alone, or the whole block.
		whole := f.single.RawData()
		for _, ask := range [][]string{{path(f.single) + "?format=raw"}, {path(f.single), "Accept: " + rawType}} {
			got := g.get(http.MethodGet, ask[0], append(ask[1:], "Range: bytes=2-5")...)
			got.status(t, http.StatusPartialContent)
			got.header(t, "Content-Type", "^"+rawType+"$")
			got.header(t, "Content-Range", fmt.Sprintf("^bytes 2-5/%d$", len(whole)))
			if !bytes.Equal(got.body, whole[2:6]) {
				t.Errorf("bytes 2 to 5: got %q, want %q", got.body, whole[2:6])
			}
			got = g.get(http.MethodGet, ask[0], append(ask[1:], "Range: bytes=4-6,0-1")...)
			got.status(t, http.StatusPartialContent)
			if got.Header.Get("Content-Type") == rawType {
				if r := got.header(t, "Content-Range", fmt.Sprintf("^(bytes 4-6/%d)?$", len(whole))); r == "" && !bytes.Equal(got.body, whole) || r != "" && !bytes.Equal(got.body, whole[4:7]) {
					t.Errorf("two ranges, of which it says %q: got %q", r, got.body)
				}
				continue
			}
			_, params, err := mime.ParseMediaType(got.header(t, "Content-Type", "^multipart/byteranges; boundary="))
			if err != nil {
				t.Fatal(err)
			}
			parts := multipart.NewReader(bytes.NewReader(got.body), params["boundary"])
			for _, want := range []struct {
				says  string
				bytes []byte
			}{{"bytes 4-6/%d", whole[4:7]}, {"bytes 0-1/%d", whole[:2]}} {
				part, err := parts.NextPart()
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(part)
				if says := fmt.Sprintf(want.says, len(whole)); err != nil || !bytes.Equal(data, want.bytes) || part.Header.Get("Content-Range") != says || part.Header.Get("Content-Type") != rawType {
					t.Errorf("a part: got %q, %v, %v, want %q, %q and %q", data, part.Header, err, want.bytes, says, rawType)
				}
			}
		}
	})
	t.Run("only if cached", func(t *testing.T) {
		g.get(http.MethodGet, path(f.single)+"?format=raw", "Cache-Control: only-if-cached").status(t, http.StatusOK)
		hole := f.links(f.holed.Cid())[1].Cid
		g.get(http.MethodGet, "/ipfs/"+hole.String()+"?format=raw", "Cache-Control: only-if-cached").status(t, http.StatusPreconditionFailed)
	})
}

// A CAR has the blocks that prove the path and those that dag-scope and entity-bytes
// name, each once, parents before children, and no others.
func TestCAR(t *testing.T) {
	g := start(t)
	f := load(t, g)
	list := func(parts ...[]cid.Cid) []cid.Cid { return slices.Concat(parts...) }
	one := func(c ...cid.Cid) []cid.Cid { return c }
	root, shardedWay := f.dir.Cid(), f.way(f.sharded.Cid(), shardedName(7))
	ascii := f.child(f.sub, "ascii.txt")
	leaves := f.all(f.file)[1:]
	hole, oldHole := f.all(f.holed.Cid())[1:], f.all(f.oldHoled.Cid())[1:]
	for _, c := range []struct {
		name, path, query string
		want              []cid.Cid
	}{
		{"by default all of a file, and the path to it", path(f.dir, "subdir", "ascii.txt"), "", one(root, f.sub, ascii)},
		{"the path through a HAMT", path(f.sharded, shardedName(7)), "", list(shardedWay, f.all(shardedWay[len(shardedWay)-1])[1:])},
		{"the path through DAG-CBOR", path(f.document, "files", "single"), "", one(f.document.Cid(), f.single.Cid())},

		{"block of a directory", path(f.dir, "subdir"), "dag-scope=block", one(root, f.sub)},
		{"block of a file", path(f.dir, "subdir", "ascii.txt"), "dag-scope=block", one(root, f.sub, ascii)},
		{"block of a file of several blocks", path(f.dir, "subdir", "multiblock.txt"), "dag-scope=block", one(root, f.sub, f.file)},
		{"block of a file in a HAMT", path(f.sharded, shardedName(7)), "dag-scope=block", shardedWay},

		{"entity of a directory", path(f.dir), "dag-scope=entity", one(root)},
		{"entity of a HAMT", path(f.sharded), "dag-scope=entity", f.shards(f.sharded.Cid())},
		{"entity of a file", path(f.dir, "subdir", "ascii.txt"), "dag-scope=entity", one(root, f.sub, ascii)},
		{"entity of a file of several blocks", path(f.dir, "subdir", "multiblock.txt"), "dag-scope=entity", list(one(root, f.sub, f.file), leaves)},
		{"entity of DAG-CBOR", path(f.mixed, "document"), "dag-scope=entity", one(f.mixed.Cid(), f.document.Cid())},

		{"all of a directory", path(f.dir, "subdir"), "dag-scope=all", list(one(root), f.all(f.sub))},
		{"all of a file of several blocks", path(f.dir, "subdir", "multiblock.txt"), "dag-scope=all", list(one(root, f.sub, f.file), leaves)},

		{"bytes before a block that is nowhere", path(f.holed), "dag-scope=entity&entity-bytes=0:200", one(f.holed.Cid(), hole[0])},
		{"bytes after it", path(f.holed), "dag-scope=entity&entity-bytes=520:*", one(f.holed.Cid(), hole[2])},
		{"bytes before it, in an old file", path(f.oldHoled), "dag-scope=entity&entity-bytes=0:200", one(f.oldHoled.Cid(), oldHole[0])},
		{"bytes after it, in an old file", path(f.oldHoled), "dag-scope=entity&entity-bytes=520:*", one(f.oldHoled.Cid(), oldHole[2])},
		{"all bytes", path(f.dir, "subdir", "multiblock.txt"), "dag-scope=entity&entity-bytes=0:*", list(one(root, f.sub, f.file), leaves)},
		{"bytes of a HAMT", path(f.sharded), "dag-scope=entity&entity-bytes=0:*", f.shards(f.sharded.Cid())},
		{"from the middle", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=512:*", list(one(f.file), leaves[2:])},
		{"the middle", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=512:1023", list(one(f.file), leaves[2:4])},
		{"the middle, from the end", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=512:-256", list(one(f.file), leaves[2:4])},
		{"the last bytes", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=-5:*", list(one(f.file), leaves[3:])},
		{"more than there are", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=-9999:*", list(one(f.file), leaves)},
		{"more than there are, but for the last", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=-9999:-3", list(one(f.file), leaves[:4])},
		{"the first byte", "/ipfs/" + f.file.String(), "dag-scope=entity&entity-bytes=0:0", list(one(f.file), leaves[:1])},
	} {
		for _, ask := range [][]string{{c.path + "?format=car&" + c.query}, {c.path + "?" + c.query, "Accept: " + carType}} {
			t.Run(c.name+" by "+way(ask), func(t *testing.T) {
				got := g.get(http.MethodGet, ask[0], ask[1:]...)
				got.status(t, http.StatusOK)
				got.header(t, "Content-Type", "^"+carType)
				got.header(t, "Content-Disposition", `^attachment; filename=".*\.car"`)
				got.header(t, "X-Content-Type-Options", "^nosniff$")
				got.header(t, "Accept-Ranges", "^none$")
				got.header(t, "Etag", "^W/")
				got.blocks(t, c.want)
			})
		}
	}
	t.Run("a name that is not there", func(t *testing.T) {
		// 404 would do too; these blocks prove that the name is not there.
		for _, ask := range [][]string{{path(f.dir, "subdir", "none") + "?format=car"}, {path(f.dir, "subdir", "none"), "Accept: " + carType}} {
			got := g.get(http.MethodGet, ask[0], ask[1:]...)
			got.status(t, http.StatusOK)
			got.blocks(t, one(root, f.sub))
		}
	})
	t.Run("a block is missing", func(t *testing.T) {
		res, err := g.http.Get(g.url + path(f.holed) + "?format=car")
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("got %s and a body that ends well, want that the connection ends in the middle", res.Status)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		for _, query := range []string{"dag-scope=everything", "dag-scope=entity&entity-bytes=x:y", "dag-scope=entity&entity-bytes=5", "car-version=7"} {
			g.get(http.MethodGet, path(f.dir)+"?format=car&"+query).status(t, http.StatusBadRequest)
		}
	})
}

// The order of blocks, and whether one comes twice, can be asked for, and the answer
// says what it is.
func TestCAROrder(t *testing.T) {
	g := start(t)
	f := load(t, g)
	all := f.all(f.twice.Cid())
	once := unique(all)
	for _, c := range []struct {
		name, query, accept string
		says                []string
		want                []cid.Cid
	}{
		{"twice", "", carType + "; version=1; order=dfs; dups=y", []string{"order=dfs", "dups=y"}, all},
		{"once", "", carType + "; version=1; order=dfs; dups=n", []string{"order=dfs", "dups=n"}, once},
		{"in any order", "", carType + "; version=1; order=unk", []string{"order="}, once},
		{"twice, with a format", "?format=car", carType + "; version=1; order=dfs; dups=y", []string{"order=dfs", "dups=y"}, all},
		{"twice, by parameters of the URL", "?format=car&car-version=1&car-order=dfs&car-dups=y", "", []string{"order=dfs", "dups=y"}, all},
		{"parameters of the URL come first", "?format=car&car-dups=n", carType + "; order=dfs; dups=y", []string{"dups=n"}, once},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := g.get(http.MethodGet, path(f.twice)+c.query, "Accept: "+c.accept)
			got.status(t, http.StatusOK)
			for _, want := range append(c.says, carType) {
				got.header(t, "Content-Type", regexp.QuoteMeta(want))
			}
			got.blocks(t, c.want)
		})
	}
	t.Run("identity", func(t *testing.T) { // such a block is in its CID, and never in a CAR
		got := g.get(http.MethodGet, "/ipfs/bafkqaf3imvwgy3zaneqgc3janfxgy2lomvscay3jmqfa", "Accept: "+carType+"; dups=y")
		got.status(t, http.StatusOK)
		got.header(t, "Content-Type", "dups=y")
		got.blocks(t, nil)
	})
}

// The suite itself, which asks the same and more.
func TestSuite(t *testing.T) {
	program := suite(t)
	g := start(t)
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), program, args...)
		c.Dir = filepath.Dir(program)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := run("extract-fixtures", "--directory", dir); err != nil {
		t.Fatalf("extract fixtures: %v\n%s", err, out)
	}
	cars := 0
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		read := func() []byte {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		switch file := filepath.Base(path); filepath.Ext(file) {
		case ".car":
			g.load(file, read())
			cars++
		case ".ipns-record": // KEY.ipns-record, or KEY_words.ipns-record
			key, _, _ := strings.Cut(strings.TrimSuffix(file, ".ipns-record"), "_")
			if err := g.put(key, read()); err != nil {
				t.Logf("%s: %v", file, err) // some are there to be refused
			}
		}
		return nil
	})
	if err != nil || cars == 0 {
		t.Fatalf("fixtures in %s: got %d CARs, %v, want some", dir, cars, err)
	}
	report := filepath.Join(dir, "report.json")
	said, failed := run("test", "--gateway-url", g.url, "--json", report, "--specs", "trustless-gateway")
	counts := tally(t, report)
	t.Logf("passed %d, failed %d, skipped %d", counts["pass"], counts["fail"], counts["skip"])
	if failed != nil {
		t.Errorf("the suite: %v\n%s", failed, said)
	}
}

// tally counts the results of tests in the output of go test -json.
func tally(t *testing.T, report string) map[string]int {
	t.Helper()
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int)
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var e struct{ Action, Test string }
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return counts
		} else if err != nil {
			t.Fatalf("read %s: %v", report, err)
		}
		if e.Test != "" {
			counts[e.Action]++
		}
	}
}

// way says how something is asked for.
func way(ask []string) string {
	if len(ask) > 1 {
		return "header"
	}
	return "format"
}

func unique(list []cid.Cid) (once []cid.Cid) {
	seen := cid.NewSet()
	for _, c := range list {
		if seen.Visit(c) {
			once = append(once, c)
		}
	}
	return once
}

func (r response) status(t *testing.T, want int) {
	t.Helper()
	if r.StatusCode != want {
		t.Fatalf("%s: got %s: %.200s, want %d", r.Request.URL, r.Status, r.body, want)
	}
}

// header returns a header, which has to match.
func (r response) header(t *testing.T, name, want string) string {
	t.Helper()
	got := r.Header.Get(name)
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("header %s: got %q, want a match of %s", name, got, want)
	}
	return got
}

// forever checks that the answer may be kept for nearly a year at least.
func (r response) forever(t *testing.T) {
	t.Helper()
	got := r.Header.Get("Cache-Control")
	age := -1
	for part := range strings.SplitSeq(got, ",") {
		if seconds, ok := strings.CutPrefix(strings.TrimSpace(part), "max-age="); ok {
			age, _ = strconv.Atoi(seconds)
		}
	}
	if age < 29030400 || !strings.Contains(got, "public") || !strings.Contains(got, "immutable") {
		t.Errorf("Cache-Control: got %q, want public, immutable, and max-age of 29030400 at least", got)
	}
}

// blocks checks that the body is a CAR of these blocks in this order, each of which
// has its hash.
func (r response) blocks(t *testing.T, want []cid.Cid) {
	t.Helper()
	in, err := car.NewBlockReader(bytes.NewReader(r.body)) // compares the hashes
	if err != nil {
		t.Fatalf("read the CAR: %v", err)
	}
	var got []cid.Cid
	for {
		b, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("read the CAR after %d blocks: %v", len(got), err)
		}
		got = append(got, b.Cid())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got blocks %v\nwant %v", got, want)
	}
}
