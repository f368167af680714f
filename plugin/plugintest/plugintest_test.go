package plugintest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
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

// The suite asks an exchange what peers want of it if it can tell; one in a plugin
// can if the exchange of the plugin does.
func TestWhatAnExchangeCanTell(t *testing.T) {
	get := plugin.Getter(func(context.Context, cid.Cid) ([]byte, error) { return nil, errs.NotFound })
	for name, c := range map[string]struct {
		new  plugin.New
		want bool
	}{
		"Bitswap":  {newPlain, true},
		"a getter": {func(context.Context, plugin.Env) (boxo.Interface, error) { return get, nil }, false},
	} {
		x := New(t, plugin.Config{Name: plain, Here: c.new}).Plugin.Exchange()
		if _, got := x.(interface{ WantlistForPeer(peer.ID) []cid.Cid }); got != c.want {
			t.Errorf("%s as a plugin, %T, lists what a peer wants: got %v, want %v", name, x, got, c.want)
		}
	}
}

// A plugin that cannot be loaded fails the test with the reason, and so does a
// node with the host of another; the nodes that could be made end.
func TestWhatCannotBeMade(t *testing.T) {
	get := plugin.Getter(func(context.Context, cid.Cid) ([]byte, error) { return nil, errs.NotFound })
	here := func(context.Context, plugin.Env) (boxo.Interface, error) { return get, nil }
	bad := func(context.Context, plugin.Env) (boxo.Interface, error) { return nil, errors.New("no luck") }
	node := New(t, plugin.Config{Name: plain, Here: here})
	for why, c := range map[string]plugin.Config{
		"no luck":   {Name: plain, Here: bad},
		"want nil":  {Name: plain, Here: here, Host: node.Host},
		"is empty":  {Here: here},
		"both Path": {Name: plain, Here: here, Path: "x"},
	} {
		f := &fakeTest{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Nodes(f, 2, c)
		}()
		<-done
		f.end()
		if !strings.Contains(f.fatal, why) {
			t.Errorf("the test fails with %q, want %q in it", f.fatal, why)
		}
	}
}

// A fakeTest is a test that has ended when end returns.
type fakeTest struct {
	testing.TB
	cleanup []func()
	said    []string
	fatal   string
}

func (f *fakeTest) Cleanup(g func()) { f.cleanup = append(f.cleanup, g) }
func (f *fakeTest) Log(args ...any)  { f.said = append(f.said, fmt.Sprint(args...)) }

func (f *fakeTest) Fatal(args ...any) {
	f.fatal = fmt.Sprint(args...)
	runtime.Goexit()
}

func (f *fakeTest) end() {
	for _, g := range slices.Backward(f.cleanup) {
		g()
	}
}

// A logger writes to the log of its test, and nowhere when the test has ended.
func TestLog(t *testing.T) {
	f := &fakeTest{TB: t}
	log := Log(f)
	log.Info("during")
	f.end()
	log.Info("after")
	if len(f.said) != 1 || !strings.Contains(f.said[0], "during") {
		t.Errorf("the log is %q, want one line, with %q", f.said, "during")
	}
}
