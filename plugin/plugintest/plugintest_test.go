package plugintest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin"
)

const plain = "plain"

// newPlain is boxo's Bitswap, as a plugin that has nothing of its own.
func newPlain(ctx context.Context, env plugin.Env) (boxo.Interface, error) {
	env.Log.Info("made")
	return bitswap.New(ctx, bsnet.NewFromIpfsHost(env.Host), env.Router, env.Blockstore), nil
}

func TestMain(m *testing.M) {
	plugin.Main("test", map[string]plugin.New{plain: newPlain})
	goleak.VerifyTestMain(m,
		// Bitswap ends these in its own time after Close.
		goleak.IgnoreAnyFunction("github.com/ipfs/boxo/bitswap/network/bsnet.closeStreamAsync.func1"))
}

// The same call makes nodes whose plugins run in this process, in another one of
// this program, and in one of a program by path; blocks pass between them.
func TestNodes(t *testing.T) {
	path, sum := Build(t, "github.com/codexchange/codexchange/plugin/examples/bitswap")
	for name, c := range map[string]plugin.Config{
		"in this process": {Name: plain, Here: newPlain},
		"in another":      {Name: plain},
		"as a program":    {Name: plain, Path: path, SHA256: sum},
	} {
		t.Run(name, func(t *testing.T) {
			g := Nodes(t, 2, c)
			if err := g.Connect(0, 1); err != nil {
				t.Fatal(err)
			}
			want := blocks.NewBlock([]byte(name))
			if err := g.Nodes[0].Blockstore.Put(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			got, err := g.Nodes[1].Exchange.GetBlock(t.Context(), want.Cid())
			if err != nil || string(got.RawData()) != name {
				t.Errorf("got %v, %v, want the block of node 0, %q", got, err, name)
			}
			if err := g.Disconnect(0, 1); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A plugin that cannot be loaded fails the test with the reason, and leaves
// nothing.
func TestWhatCannotBeLoaded(t *testing.T) {
	bad := func(context.Context, plugin.Env) (boxo.Interface, error) { return nil, errors.New("no luck") }
	if _, err := start(t, plugin.Config{Name: plain, Here: bad}, nil); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("load: got %v, want kind %v and what the plugin said", err, errs.Invalid)
	}
	get := plugin.Getter(func(context.Context, cid.Cid) ([]byte, error) { return nil, errs.NotFound })
	here := func(context.Context, plugin.Env) (boxo.Interface, error) { return get, nil }
	n := New(t, plugin.Config{Name: plain, Here: here})
	if _, err := start(t, plugin.Config{Name: plain, Here: here, Host: n.Host}, nil); err == nil {
		t.Error("a node with a host of another: got no error")
	}
}

// A fakeTest is a test that has ended when end returns.
type fakeTest struct {
	testing.TB
	cleanup []func()
	said    []string
}

func (f *fakeTest) Cleanup(g func())  { f.cleanup = append(f.cleanup, g) }
func (f *fakeTest) Log(args ...any)   { f.said = append(f.said, args[0].(string)) }
func (f *fakeTest) end()              { f.cleanup[0]() }
func (f *fakeTest) has(s string) bool { return len(f.said) == 1 && strings.Contains(f.said[0], s) }

// A logger writes to the log of its test, and nowhere when the test has ended.
func TestLog(t *testing.T) {
	f := &fakeTest{TB: t}
	log := Log(f)
	log.Info("during")
	f.end()
	log.Info("after")
	if !f.has("during") {
		t.Errorf("the log is %q, want one line, with %q", f.said, "during")
	}
}
