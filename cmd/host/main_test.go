package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/host"
)

// asCommand in the environment makes this test program the command itself.
const asCommand = "HOST_TEST_COMMAND"

func TestMain(m *testing.M) {
	host.Main()
	if os.Getenv(asCommand) != "" {
		main()
	}
	// leveldb's pool outlives its database by a second.
	// boxo's client of delegated routers brings a goroutine of OpenCensus that never ends.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

// outcome is what a command line left behind.
type outcome struct {
	code           int
	stdout, stderr string
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", o.code, o.stdout, o.stderr)
}

// command runs a command line with a directory for temporary files of its own,
// and fails the test if anything is left there.
func command(t *testing.T, ctx context.Context, args ...string) outcome {
	t.Helper()
	return commandWith(t, ctx, &cli{}, args...)
}

func commandWith(t *testing.T, ctx context.Context, c *cli, args ...string) outcome {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	dir := t.TempDir()
	for name, f := range map[string]**os.File{"stdin": &c.stdin, "stdout": &c.stdout, "stderr": &c.stderr} {
		var err error
		if *f, err = os.Create(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		defer (*f).Close()
	}
	o := outcome{code: c.run(ctx, args)}
	read := func(f *os.File) string {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	o.stdout, o.stderr = read(c.stdout), read(c.stderr)
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind in the directory for temporary files: %v, %v", left, err)
	}
	return o
}

func file(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "some file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// --json prints one object with a row for each exchange and exactly the fields
// that are promised; nothing else is on stdout.
func TestDemoJSON(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 3000)
	for i := range data {
		data[i] += byte(i >> 10) // no two chunks alike
	}
	o := command(t, t.Context(), "demo", file(t, data), "--json", "--runs=1", "--chunk", "1KiB")
	if o.code != exitOK {
		t.Fatal(o)
	}
	var got struct {
		Runs []map[string]any `json:"runs"`
	}
	d := json.NewDecoder(strings.NewReader(o.stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil || d.More() {
		t.Fatalf("stdout is not one object of runs: %v\n%v", err, o)
	}
	if len(got.Runs) != len(host.Exchanges()) {
		t.Fatalf("%d runs, want one for each of %v\n%v", len(got.Runs), host.Exchanges(), o)
	}
	for i, name := range host.Exchanges() {
		run := got.Runs[i]
		if run["exchange"] != name || run["plugin"] != (name == host.Blockexc) || run["verified"] != true {
			t.Errorf("run is %v, want %s, verified, and only the Codex block exchange as a plugin", run, name)
		}
		for _, field := range []string{"seconds", "mb_per_s", "cpu_seconds"} {
			if v, ok := run[field].(float64); !ok || v <= 0 {
				t.Errorf("%s of %s is %v, want a positive number", field, name, run[field])
			}
		}
		if run["blocks"] != 48.0 { // 47 leaves and the root
			t.Errorf("blocks of %s is %v, want 48", name, run["blocks"])
		}
		if _, ok := run["duplicates"].(float64); !ok || len(run) != 8 {
			t.Errorf("run of %s is %v, want the 8 fields promised", name, run)
		}
	}
}

// The table has a row for each exchange, followed by what it says in words; how
// far things are goes to stderr, one line for each stage.
func TestDemoTable(t *testing.T) {
	o := command(t, t.Context(), "demo", "--size", "300kB", "--runs", "2")
	if o.code != exitOK {
		t.Fatal(o)
	}
	if !regexp.MustCompile(`(?m)^exchange +where it runs +time +MB/s +blocks +duplicates +CPU seconds$`).MatchString(o.stdout) {
		t.Errorf("no head of the table\n%v", o)
	}
	all := host.Exchanges()
	for _, name := range all {
		where := "in process"
		if name == host.Blockexc {
			where = "plugin"
		}
		if !regexp.MustCompile(`(?m)^` + name + ` +` + where + ` +\d+\.\d\d s +\d+\.\d +3 +0 +\d+\.\d\d$`).MatchString(o.stdout) {
			t.Errorf("no row of %s with 3 blocks\n%v", name, o)
		}
		for _, run := range []string{"1", "2"} {
			if !regexp.MustCompile(`(?m)^run ` + run + ` of 2, ` + name + `: .* verified$`).MatchString(o.stderr) {
				t.Errorf("no line of run %s of %s\n%v", run, name, o)
			}
		}
	}
	words := all[0] + " moved 293 KiB in "
	if !strings.Contains(o.stdout, words) || !strings.Contains(o.stdout, "every byte of every run was verified by SHA-256.") {
		t.Errorf("no sentence with %q\n%v", words, o)
	}
	for _, other := range all[1:] {
		if !strings.Contains(o.stdout, "times the throughput of "+other) {
			t.Errorf("the sentence does not compare with %s\n%v", other, o)
		}
	}
	if lines := strings.Count(o.stderr, "\n"); lines != 1+2*len(all) {
		t.Errorf("%d lines on stderr, want one for each stage\n%v", lines, o)
	}
}

// A wrong byte in what was fetched makes the demo fail, and both kinds of output
// say so.
func TestDemoWrongByte(t *testing.T) {
	data := []byte("a file of a single block")
	hash, err := mh.Sum(data, mh.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	root := cid.NewCidV1(cid.Raw, hash)
	wrong, err := blocks.NewBlockWithCid([]byte("a file of a singel block"), root)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(ctx context.Context, fetcher *host.Node) error {
		if err := fetcher.Blockstore().DeleteBlock(ctx, root); err != nil {
			return err
		}
		return fetcher.Blockstore().Put(ctx, wrong)
	}
	path := file(t, data)

	o := commandWith(t, t.Context(), &cli{inspect: spoil}, "demo", "--runs", "1", "--json", path)
	if o.code != exitFailed || strings.Count(o.stdout, `"verified":false`) != len(host.Exchanges()) ||
		!strings.Contains(o.stderr, errUnverified.Error()) {
		t.Errorf("want exit code %d, no run verified, and the reason\n%v", exitFailed, o)
	}
	o = commandWith(t, t.Context(), &cli{inspect: spoil}, "demo", "--runs", "1", path)
	if o.code != exitFailed || !strings.Contains(o.stdout, "WHAT ARRIVED IS NOT WHAT WAS SENT by "+strings.Join(host.Exchanges(), " and ")) ||
		strings.Contains(o.stdout, "was verified") {
		t.Errorf("want exit code %d, and in words that the content is wrong\n%v", exitFailed, o)
	}
}

// Interrupted, the demo removes what it made and exits as shells expect.
func TestDemoInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	interrupt := func(ctx context.Context, _ *host.Node) error {
		cancel()
		return ctx.Err()
	}
	o := commandWith(t, ctx, &cli{inspect: interrupt}, "demo", "--size", "1MB")
	if o.code != exitInterrupted || o.stdout != "" || !strings.HasSuffix(o.stderr, "host demo: interrupted\n") {
		t.Errorf("want exit code %d and nothing on stdout\n%v", exitInterrupted, o)
	}
}

// Command lines that do nothing but print, and those that are refused.
func TestCommandLines(t *testing.T) {
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent")
	for _, c := range []struct {
		args           string // separated by spaces
		code           int
		stdout, stderr string // parts; "" means that nothing is printed
	}{
		{"", exitOK, "SUBCOMMANDS", ""},
		{"help", exitOK, "demo          Two nodes side by side", ""},
		{"--help", exitOK, "EXIT STATUS", ""},
		{"help demo", exitOK, "--chunk SIZE", ""},
		{"demo -h", exitOK, "--chunk SIZE", ""},
		{"help daemon", exitOK, "host daemon [--init]", ""},
		{"fly", exitFailed, "", `Unknown Command "fly"`},
		{"version", exitOK, "codexchange version ", ""},
		{"version --all", exitOK, runtime.Version(), ""},
		{"version now", exitFailed, "", "expected 0 argument(s), got 1"},
		{"daemon now", exitFailed, "", "USAGE"},
		{"--api /ip4/127.0.0.1/tcp/5001 daemon", exitFailed, "", "leave --api out"},
		{"--repo-dir " + absent + " daemon", exitFailed, "", "there is no repo"},
		{"demo --fast", exitUsage, "", "-fast"},
		{"demo --runs 0", exitUsage, "", "--runs is 0, want at least 1"},
		{"demo --runs many", exitUsage, "", `"many"`},
		{"demo --size 0", exitUsage, "", "--size is 0 B, want at least 1 byte"},
		{"demo --size big", exitUsage, "", "want bytes, like 64MiB"},
		{"demo --chunk 3MiB", exitUsage, "", "--chunk is 3 MiB, want 256 B to 2 MiB"},
		{"demo --chunk 1", exitUsage, "", "--chunk is 1 B, want 256 B to 2 MiB"},
		{"demo one two", exitUsage, "", "2 files (one, two), want at most one"},
		{"demo --size 1MB one", exitUsage, "", "both FILE and --size"},
		{"demo one --size 1MB", exitUsage, "", "both FILE and --size"},
		{"demo " + absent, exitFailed, "", absent + ": no such file or directory"},
		{"demo -- --absent", exitFailed, "", "--absent: no such file or directory"},
		{"demo " + dir, exitFailed, "", dir + ": is a directory"},
	} {
		t.Run("host "+c.args, func(t *testing.T) {
			o := command(t, t.Context(), strings.Fields(c.args)...)
			if o.code != c.code {
				t.Errorf("want exit code %d\n%v", c.code, o)
			}
			check := func(what, got, want string) {
				if want == "" && got != "" || !strings.Contains(got, want) {
					t.Errorf("want %q on %s\n%v", want, what, o)
				}
			}
			check("stdout", o.stdout, c.stdout)
			check("stderr", o.stderr, c.stderr)
		})
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		text  string
		bytes int64
		back  string
	}{
		{"0", 0, "0 B"},
		{"1000", 1000, "1000 B"},
		{"1023B", 1023, "1023 B"},
		{"64MiB", 64 << 20, "64 MiB"},
		{"64 mib", 64 << 20, "64 MiB"},
		{"1.5GiB", 3 << 29, "1.5 GiB"},
		{"1MB", 1e6, "976.6 KiB"},
		{"2tb", 2e12, "1.8 TiB"},
	} {
		if n, err := parseSize(c.text); err != nil || n != c.bytes {
			t.Errorf("parseSize(%q) = %d, %v, want %d", c.text, n, err, c.bytes)
		}
		if s := formatSize(c.bytes); s != c.back {
			t.Errorf("formatSize(%d) = %q, want %q", c.bytes, s, c.back)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1 PiB", "NaN", "9e18B9", "9000000TiB", "1e30"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, n)
		}
	}
}
