package crossing

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/codexchange/codexchange/host"
)

// heliaNode is the oldest Node.js that Helia runs on.
const heliaNode = 22

// node is the Node.js that runs what is in integration/helia: that which npm ci has
// installed there, or else that on PATH. Without, the test is skipped.
func node(t testing.TB) (program, dir string) {
	t.Helper()
	dir, err := filepath.Abs(variable(t, "CODEXCHANGE_HELIA", "directory with Helia: run npm ci in integration/helia"))
	must(t, "find Helia", err)
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "helia")); err != nil {
		t.Skipf("CODEXCHANGE_HELIA: Helia is not installed, run npm ci: %v", err)
	}
	program = filepath.Join(dir, "node_modules", ".bin", "node")
	if _, err := exec.LookPath(program); err != nil {
		program = "node"
	}
	version, err := exec.CommandContext(t.Context(), program, "--version").Output()
	if err != nil {
		t.Skipf("there is no Node.js: %v", err)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(string(version), "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < heliaNode {
		t.Skipf("Node.js is %s, Helia wants %d or later", bytes.TrimSpace(version), heliaNode)
	}
	return program, dir
}

// Helia, over TCP, Noise and yamux, fetches files by Bitswap: from a node that has
// Bitswap only, and one with both exchanges.
func TestHelia(t *testing.T) {
	program, dir := node(t)
	for _, use := range [][]string{{host.Bitswap}, {host.Blockexc, host.Bitswap}} {
		for _, chunk := range []int64{64 << 10, 1 << 20} {
			t.Run(strings.Join(use, " and ")+" "+strconv.Itoa(int(chunk>>10))+" KiB", func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
				defer cancel()
				n := start(t, "node", use...)
				content, want := random(uint64(chunk), 12<<20+1000)
				root, err := n.Add(content, chunk)
				must(t, "add file", err)
				helia := exec.CommandContext(ctx, program, "fetch.js", n.Addr, root)
				helia.Dir = dir
				var said bytes.Buffer
				helia.Stderr = &said
				out, err := helia.Output()
				if err != nil {
					t.Fatalf("Helia ended: %v\n%s", err, said.String())
				}
				var got struct {
					Bytes  int
					SHA256 string
				}
				must(t, "parse what Helia says: "+string(out), json.Unmarshal(out, &got))
				if got.Bytes != len(content) || got.SHA256 != want {
					t.Errorf("Helia got %d bytes, SHA-256 %s; want %d, %s", got.Bytes, got.SHA256, len(content), want)
				}
			})
		}
	}
}
