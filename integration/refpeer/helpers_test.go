package refpeer

import (
	"bytes"
	"context"
	"fmt"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestImportsNothingOfTheProject holds the package to being an independent
// witness.
func TestImportsNothingOfTheProject(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if strings.HasPrefix(imp.Path.Value, `"github.com/codexchange/`) {
				t.Errorf("%s imports %s", e.Name(), imp.Path.Value)
			}
		}
	}
	if files < 10 {
		t.Errorf("looked at %d files, want all of the package", files)
	}
}

// soon is time enough for anything on this machine.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// ok ends the test if a step of it failed.
func ok(t *testing.T, step string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
}

// connect makes two peers know each other, both ways.
func connect(t *testing.T, a, b *Peer) {
	t.Helper()
	ctx := soon(t)
	ok(t, "connect", a.Connect(ctx, b.AddrInfo()))
	_, err := b.joined(ctx, a.ID())
	ok(t, "be connected", err)
}

// expect waits for a message that does what it is expected to do.
func expect(t *testing.T, p *Peer, reason string, match func(Message) bool) Message {
	t.Helper()
	m, err := p.Expect(soon(t), match)
	ok(t, reason, err)
	return m
}

// nothing asserts that all that the remote has sent by now has been expected.
// It first makes the remote answer something else, so that what it sent before
// is here.
func nothing(t *testing.T, script, remote *Peer, reason string) {
	t.Helper()
	fence := fmt.Appendf(nil, "fence %d", rand.Uint64())
	a := Block(BlockCid(fence))
	remote.AddBlock(a.Cid, fence)
	say(t, script, remote, Want(WantBlock, false, a))
	expect(t, script, "the fence, which is sent after all else", func(m Message) bool { return m.Delivers(a) })
	for _, rec := range script.Received() {
		if !rec.taken {
			t.Errorf("%s: got %s", reason, &rec)
		}
	}
}

// say sends a message from a script to a remote.
func say(t *testing.T, script, remote *Peer, m Message) {
	t.Helper()
	ok(t, "send "+m.String(), script.SendMessage(soon(t), remote.ID(), m))
}

// behaved asserts that no remote of these peers did anything wrong.
func behaved(t *testing.T, ps ...*Peer) {
	t.Helper()
	for _, p := range ps {
		if vs := p.Violations(); len(vs) > 0 {
			t.Errorf("violations: %v, want none", vs)
		}
	}
}

// content is n bytes that are the same in every run.
func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	r.Read(b)
	return b
}

// sameBlocks asserts that blocks are what a dataset was made of: data, and then
// zeros.
func sameBlocks(t *testing.T, blocks [][]byte, data []byte) {
	t.Helper()
	all := bytes.Join(blocks, nil)
	if len(all) < len(data) || !bytes.Equal(all[:len(data)], data) {
		t.Fatalf("got %d bytes, which are not the %d that were put in", len(all), len(data))
	}
	if rest := all[len(data):]; !bytes.Equal(rest, make([]byte, len(rest))) {
		t.Errorf("the last block is filled with %x, want zeros", rest)
	}
}

// soonRefused is how long a refusal may take.
const soonRefused = 10 * time.Second

// soonOver is a context that has ended.
func soonOver(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// waitFor polls for a condition.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	every := time.NewTicker(time.Millisecond)
	defer every.Stop()
	for ctx := soon(t); !cond(); {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
