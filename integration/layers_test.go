package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/codexchange/codexchange"

// A rule says what the packages below a path must not import, and why. Paths end
// in "/..." to mean everything below as well; those of the project are written
// without the module's path.
type rule struct {
	packages string
	not      []string
	reason   string
}

var rules = []rule{
	{packages: "exchange/errs", not: []string{module + "/..."},
		reason: "both sides of a process boundary share it, whatever else they know"},
	{packages: "exchange/codex", not: except("exchange/errs"),
		reason: "identifiers know nothing of what is done with them"},
	{packages: "exchange/merkle", not: except("exchange/errs", "exchange/codex"),
		reason: "proofs are checked the same by everybody"},
	{packages: "exchange/manifest", not: except("exchange/errs", "exchange/codex", "exchange/merkle"),
		reason: "manifests are read the same by everybody"},
	{packages: "exchange/lent", not: []string{module + "/...", "github.com/libp2p/...", "io", "net", "os"},
		reason: "who lends bytes, and for what, is not the business of those who count their users"},
	{packages: "exchange/wire/...", not: append(except("exchange/errs", "exchange/codex", "exchange/lent", "exchange/merkle", "exchange/wire/..."), "github.com/libp2p/go-libp2p/..."),
		reason: "bytes become messages without knowing who sent them or what will be done"},
	{packages: "exchange/dataset", not: except("exchange/errs", "exchange/wire"),
		reason: "callers of an exchange share it with exchanges in other processes"},
	{packages: "exchange/spans", not: []string{module + "/...", "go.opentelemetry.io/otel/sdk/...", "go.opentelemetry.io/otel/exporters/..."},
		reason: "where spans are sent is the process' business, not the exchange's"},
	{packages: "exchange/internal/engine", not: append(except("exchange/wire", "exchange/errs"),
		"net", "os", "io", "sync/...", "context", "github.com/libp2p/go-libp2p", "github.com/libp2p/go-libp2p/p2p/...",
		"github.com/libp2p/go-libp2p/core/host", "github.com/libp2p/go-libp2p/core/network", "google.golang.org/grpc/..."),
		reason: "the engine decides; it waits for nothing and does nothing"},
	{packages: "exchange/internal/ahead", not: append(except("exchange/wire", "exchange/errs"), "net", "os", "sync/...", "context", "time",
		"github.com/libp2p/...", "google.golang.org/grpc/..."),
		reason: "what is read ahead is decided as the engine decides: without waiting or doing"},
	{packages: "exchange", not: []string{"adapter/...", "plugin/...", "host/...", "google.golang.org/grpc/...",
		"github.com/ipfs/go-ds-flatfs", "github.com/libp2p/go-libp2p", "github.com/libp2p/go-libp2p/p2p/...", "github.com/libp2p/go-libp2p/core/host"},
		reason: "what the exchange needs of the world it declares as ports"},
	{packages: "exchange/exchangetest/...", not: []string{"adapter/...", "plugin/...", "host/..."},
		reason: "the suites run over any exchange, wherever it runs"},
	{packages: "adapter/...", not: []string{"exchange/internal/...", "plugin/...", "host/...", "adapter/..."},
		reason: "an adapter joins one real thing to one port"},
	{packages: "plugin/...", not: []string{"exchange", "exchange/internal/...", "host/...", "adapter/..."},
		reason: "the contract serves any exchange in any host"},
	{packages: "plugin/channel", not: []string{"google.golang.org/grpc/...", "github.com/libp2p/go-libp2p/..."},
		reason: "bytes cross without knowing what they are"},
	{packages: "host/...", not: []string{"exchange/internal/..."},
		reason: "a host uses the exchange as anybody would"},
	{packages: "cmd/...", not: []string{"exchange/internal/...", "exchange/wire/...", "exchange/merkle", "exchange/manifest"},
		reason: "commands only wire and print"},
	{packages: "integration/refpeer", not: []string{module + "/..."},
		reason: "the reference peer is a witness: it shares no code with what it judges"},
	{packages: "integration/...", not: []string{"exchange/internal/..."},
		reason: "integration tests see what users see"},
}

// except is every package of the project but those named.
func except(allowed ...string) []string { return []string{"!" + strings.Join(allowed, " !")} }

// No package imports what lies above it: the table of docs/architecture.md, as rules.
func TestLayers(t *testing.T) {
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, r := range rules {
			if !within(path, r.packages) {
				continue
			}
			for _, imp := range p.Imports {
				if forbidden(path, imp, r.not) {
					t.Errorf("%s imports %s, which nothing in %s may: %s", path, imp, r.packages, r.reason)
				}
			}
		}
	}
}

func forbidden(path, imp string, not []string) bool {
	own, ours := strings.CutPrefix(imp, module+"/")
	if ours && own == path {
		return false
	}
	for _, n := range not {
		if all, ok := strings.CutPrefix(n, "!"); ok {
			allowed := strings.Split(all, " !")
			if ours && !slices.ContainsFunc(allowed, func(a string) bool { return within(own, a) }) {
				return true
			}
			continue
		}
		if within(imp, n) || ours && within(own, n) && !within(own, path+"/...") {
			return true
		}
	}
	return false
}

// within reports whether a path is the one named, or below it if that ends in "/...".
func within(path, name string) bool {
	base, below := strings.CutSuffix(name, "/...")
	return path == base || below && strings.HasPrefix(path, base+"/")
}

func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		path, imp string
		not       []string
		want      bool
	}{
		{"exchange", module + "/adapter/p2p", []string{"adapter/..."}, true},
		{"exchange", module + "/exchange/wire", []string{"adapter/..."}, false},
		{"exchange/errs", module + "/exchange/wire", []string{module + "/..."}, true},
		{"exchange/errs", "fmt", []string{module + "/..."}, false},
		{"exchange/merkle", module + "/exchange/codex", except("exchange/errs", "exchange/codex"), false},
		{"exchange/merkle", module + "/exchange/wire", except("exchange/errs", "exchange/codex"), true},
		{"exchange/internal/engine", "sync/atomic", []string{"sync/..."}, true},
		{"adapter/p2p", module + "/adapter/blocks", []string{"adapter/..."}, true},
	} {
		if got := forbidden(c.path, c.imp, c.not); got != c.want {
			t.Errorf("%s imports %s, not %v: forbidden is %v, want %v", c.path, c.imp, c.not, got, c.want)
		}
	}
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func list(t *testing.T) (all []pkg) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list names %d packages, want all of the module", len(all))
	}
	return all
}
