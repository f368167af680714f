package plugin

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/internal/subprocess"
	"github.com/codexchange/codexchange/plugin/internal/supervise"
	"github.com/codexchange/codexchange/plugin/remote"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// The test binary is also its own plugin.
func TestMain(m *testing.M) {
	if subprocess.PluginName() == corruptName {
		serveCorrupt()
	}
	Main("test", map[string]New{"talker": newTalker, "seeker": newSeeker, corruptName: nil})
	goleak.VerifyTestMain(m)
}

// newTalker makes an exchange that has something to say at each level, and again
// whenever it is asked for a block.
func newTalker(_ context.Context, env Env) (boxo.Interface, error) {
	talk := func() {
		env.Log.Debug("whispers")
		env.Log.Info("speaks")
		env.Log.Error("shouts")
	}
	talk()
	return Getter(func(context.Context, cid.Cid) ([]byte, error) {
		talk()
		return nil, errs.NotFound
	}), nil
}

const proto = protocol.ID("/tiny/1.0.0")

// A tiny exchange has what its maker gave it, and handles a protocol until it is
// closed.
type tiny struct {
	Getter
	env Env
}

func (x *tiny) Close() error {
	x.env.Host.RemoveStreamHandler(proto)
	return nil
}

// newTiny makes a tiny exchange.
func newTiny(get Getter) New {
	return func(_ context.Context, env Env) (boxo.Interface, error) {
		env.Host.SetStreamHandler(proto, func(s network.Stream) { _ = s.Close() })
		return &tiny{get, env}, nil
	}
}

// A full exchange can everything that is offered to the host.
type full struct{ *tiny }

func (full) NewSession(context.Context) boxo.Fetcher { panic("not asked for") }
func (full) GetLeaves(context.Context, dataset.Tree, ...wire.Range) (<-chan dataset.LeafBlock, error) {
	panic("not asked for")
}
func (full) NotifyNewLeaves(context.Context, cid.Cid, ...wire.Range) error { return nil }
func (full) Inspect() (remote.Stat, error)                                 { return remote.Stat{BlocksSent: 3}, nil }
func (full) Wantlist() []wire.Address                                      { return []wire.Address{wire.Block(wanted.Cid())} }
func (full) WantlistForPeer(peer.ID) []cid.Cid                             { return []cid.Cid{wanted.Cid()} }
func (full) PeerLedger(p peer.ID) (remote.Ledger, bool) {
	return remote.Ledger{BytesSent: 7}, p == "known"
}

var wanted = blocks.NewBlock([]byte("wanted"))

// nothing is the Getter of who has nothing.
func nothing(context.Context, cid.Cid) ([]byte, error) { return nil, errs.NotFound }

// logs keeps what a host's log shows.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}

// calm fails the test if the log has a warning, or something worse.
func (l *logs) calm(t *testing.T) {
	t.Helper()
	if s := l.String(); strings.Contains(s, "level=WARN") || strings.Contains(s, "level=ERROR") {
		t.Errorf("the log has warnings or errors:\n%s", s)
	}
}

// newHost makes a libp2p host that does not listen, and ends with the test.
func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func newStore() blockstore.Blockstore {
	return blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
}

// load loads a plugin that ends with the test. What is missing in c is filled in.
func load(t *testing.T, c Config) (*Plugin, *logs) {
	t.Helper()
	said := &logs{}
	if c.Name == "" {
		c.Name = "tiny"
	}
	if c.Host == nil {
		c.Host = newHost(t)
	}
	if c.Blocks == nil {
		c.Blocks = newStore()
	}
	if c.Log == nil {
		c.Log = said.logger(slog.LevelDebug)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := Load(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p, said
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// Everything that is wrong with a configuration is said at once, in words that
// tell what to do, and nothing is started.
func TestConfig(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	good := Config{Name: "tiny", Here: newTiny(nothing), Host: newHost(t), Blocks: newStore()}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"nothing", func(c *Config) { *c = Config{} }, []string{"Name is empty", "Host is nil", "Blocks is nil"}},
		{"many things", func(c *Config) { c.Name, c.Host, c.Config, c.Policy = "a b", nil, []byte("{"), Policy{Hang: -1} },
			[]string{`Name is "a b", want letters, digits`, "Host is nil", "Config is no JSON", "field Hang is -1ns, want 0 or more"}},
		{"path and here", func(c *Config) { c.Path, c.SHA256 = "/bin/true", sum }, []string{"both Path and Here"}},
		{"sum without path", func(c *Config) { c.SHA256 = sum }, []string{"SHA256 is set without a Path"}},
		{"path without sum", func(c *Config) { c.Path, c.Here = "/bin/true", nil }, []string{"SHA256 is missing: sha256sum /bin/true prints it"}},
		{"short sum", func(c *Config) { c.Path, c.Here, c.SHA256 = "/bin/true", nil, "abcd" }, []string{`SHA256 is "abcd", want 64 hexadecimal digits`}},
		{"no plugin of this program", func(c *Config) { c.Here = nil }, []string{"no such plugin: it has corrupt, seeker, talker"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := good
			c.Log = slog.New(slog.DiscardHandler)
			tc.change(&c)
			p, err := Load(t.Context(), c)
			if err == nil {
				_ = p.Close()
			}
			if !errors.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), "load plugin "+c.Name) {
				t.Errorf("got %v, want kind %v that begins with the plugin's name", err, errs.Invalid)
			}
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want it to say %q", err, want)
				}
			}
		})
	}
}

// An exchange that cannot be made is not tried again: Load fails with what its
// maker said, the maker's context has ended, and the host is as before.
func TestNewFails(t *testing.T) {
	h := newHost(t)
	before := h.Mux().Protocols()
	tries := 0
	var life context.Context
	said := &logs{}
	_, err := Load(t.Context(), Config{Name: "tiny", Host: h, Blocks: newStore(), Log: said.logger(slog.LevelInfo),
		Here: func(ctx context.Context, env Env) (boxo.Interface, error) {
			tries, life = tries+1, ctx
			env.Host.SetStreamHandler(proto, func(s network.Stream) { _ = s.Reset() })
			return nil, errors.New("the license has run out")
		}})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "load plugin tiny: make exchange tiny: the license has run out") {
		t.Errorf("got %v, want kind %v with the words of the maker", err, errs.Invalid)
	}
	if tries != 1 || life.Err() == nil {
		t.Errorf("made %d times, its context has %v; want once, ended", tries, life.Err())
	}
	if after := h.Mux().Protocols(); !slices.Equal(after, before) {
		t.Errorf("the host handles %v, want %v as before", after, before)
	}
	said.calm(t) // Load has said it
}

// A Load whose context ends while the exchange is being made returns, and leaves
// nothing.
func TestLoadEnds(t *testing.T) {
	why := errors.New("enough waited")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := Load(ctx, Config{Name: "tiny", Host: newHost(t), Blocks: newStore(), Log: slog.New(slog.DiscardHandler),
		Here: func(ctx context.Context, _ Env) (boxo.Interface, error) {
			cancel(why)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
	if !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

// Callers find by type what the exchange can, and what it cannot they are told.
func TestOffers(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		make := newTiny(nothing)
		p, _ := load(t, Config{Here: func(ctx context.Context, env Env) (boxo.Interface, error) {
			x, err := make(ctx, env)
			return full{x.(*tiny)}, err
		}})
		if _, ok := p.Exchange().(dataset.LeafExchange); !ok {
			t.Errorf("the exchange is a %T, want a dataset.LeafExchange", p.Exchange())
		}
		if s, err := p.Inspect(t.Context()); err != nil || s.BlocksSent != 3 {
			t.Errorf("inspect: got %+v, %v, want 3 blocks sent", s, err)
		}
		if l, known, err := p.Ledger(t.Context(), "known"); err != nil || !known || l.BytesSent != 7 {
			t.Errorf("ledger of a peer: got %+v, %v, %v, want 7 bytes sent", l, known, err)
		}
		if _, known, err := p.Ledger(t.Context(), "stranger"); err != nil || known {
			t.Errorf("ledger of a stranger: got %v, %v, want none", known, err)
		}
		if got := p.GetWantlist(); len(got) != 1 || got[0] != wanted.Cid() {
			t.Errorf("want list is %v, want %v", got, wanted.Cid())
		}
		if got := p.Wantlist(); len(got) != 1 || got[0] != wire.Block(wanted.Cid()) {
			t.Errorf("want list of addresses is %v, want %v", got, wanted.Cid())
		}
		if got := p.WantlistForPeer("known"); len(got) != 1 || got[0] != wanted.Cid() {
			t.Errorf("want list of a peer is %v, want %v", got, wanted.Cid())
		}
	})
	t.Run("least", func(t *testing.T) {
		p, _ := load(t, Config{Here: newTiny(nothing)})
		if _, ok := p.Exchange().(dataset.LeafExchange); ok {
			t.Error("the exchange fetches leaves, want none")
		}
		if _, err := p.Inspect(t.Context()); !errors.Is(err, errs.Invalid) {
			t.Errorf("inspect: got %v, want kind %v", err, errs.Invalid)
		}
		if _, _, err := p.Ledger(t.Context(), "known"); !errors.Is(err, errs.Invalid) {
			t.Errorf("ledger: got %v, want kind %v", err, errs.Invalid)
		}
	})
}

// noLeaves and noRouter are lent, and have nothing.
type noLeaves struct{}

func (noLeaves) Leaf(context.Context, cid.Cid, uint64) (cid.Cid, []byte, error) {
	return cid.Undef, nil, errs.NotFound
}

type noRouter struct{}

func (noRouter) Provide(context.Context, cid.Cid, bool) error { return nil }
func (noRouter) FindProvidersAsync(context.Context, cid.Cid, int) <-chan peer.AddrInfo {
	c := make(chan peer.AddrInfo)
	close(c)
	return c
}

// An author is given what is lent and configured, and nil for what is not.
func TestEnv(t *testing.T) {
	h, store := newHost(t), newStore()
	if err := store.Put(t.Context(), wanted); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, c Config, f func(t *testing.T, env Env)) {
		c.Host, c.Blocks = h, store
		c.Here = func(ctx context.Context, env Env) (boxo.Interface, error) {
			f(t, env)
			return Getter(nothing), nil
		}
		p, said := load(t, c)
		_ = p.Close()
		if s := said.String(); !strings.Contains(s, "plugin="+p.cfg.Name+" ") || !strings.Contains(s, "msg=hello") {
			t.Errorf("the log is\n%s\nwant hello, under the plugin's name", s)
		}
	}
	t.Run("least", func(t *testing.T) {
		check(t, Config{Name: "least"}, func(t *testing.T, env Env) {
			env.Log.Info("hello", "x", 1)
			if env.Name != "least" || env.Config != nil || env.Leaves != nil || env.Router != nil {
				t.Errorf("name %q, config %q, leaves %v, router %v; want only the name, least", env.Name, env.Config, env.Leaves, env.Router)
			}
			if env.Host.ID() != h.ID() {
				t.Errorf("the host is %v, want %v", env.Host.ID(), h.ID())
			}
			b, err := env.Blockstore.Get(t.Context(), wanted.Cid())
			if err != nil || !bytes.Equal(b.RawData(), wanted.RawData()) {
				t.Errorf("get: %v, %v, want the host's block", b, err)
			}
			if err := env.Blockstore.Put(t.Context(), blocks.NewBlock([]byte("new"))); err == nil {
				t.Error("the plugin wrote to the host's store")
			}
		})
	})
	t.Run("all", func(t *testing.T) {
		c := Config{Name: "all", Config: []byte(`{"a": 1}`), Leaves: noLeaves{}, Router: noRouter{}}
		check(t, c, func(t *testing.T, env Env) {
			env.Log.Info("hello", "x", 1)
			if string(env.Config) != `{"a": 1}` || env.Leaves == nil || env.Router == nil {
				t.Errorf("config %q, leaves %v, router %v; want all three", env.Config, env.Leaves, env.Router)
			}
		})
	})
}

// A plugin in a process of its own logs from the level on that its host shows.
func TestLogLevel(t *testing.T) {
	for level, want := range map[slog.Level][]string{
		slog.LevelDebug: {"msg=whispers", "msg=speaks", "msg=shouts"},
		slog.LevelError: {"msg=shouts"},
	} {
		t.Run(level.String(), func(t *testing.T) {
			said := &logs{}
			// What it is told is what crosses, not what this logger drops.
			p, _ := load(t, Config{Name: "talker", Log: said.logger(level)})
			_ = p.Close()
			var got []string
			for _, line := range []string{"msg=whispers", "msg=speaks", "msg=shouts"} {
				if strings.Contains(said.String(), line) {
					got = append(got, line)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v; the log is\n%s", got, want, said)
			}
		})
	}
}

// A plugin that runs hears of it when its host begins to show more of its log.
func TestLogLevelChanges(t *testing.T) {
	var level slog.LevelVar
	said := &logs{}
	log := slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: &level}))
	p, _ := load(t, Config{Name: "talker", Log: log, Policy: Policy{Ping: 10 * time.Millisecond}})
	whispers := func() bool {
		_, _ = p.Exchange().GetBlock(t.Context(), wanted.Cid())
		return strings.Contains(said.String(), "msg=whispers")
	}
	if whispers() {
		t.Fatalf("at level %v it whispers", level.Level())
	}
	level.Set(slog.LevelDebug)
	eventually(t, "it whispers", whispers)
	if status := p.Status(); status.Restarts != 0 {
		t.Errorf("the plugin was started again %d times, want 0", status.Restarts)
	}
}

// Close ends an exchange in good order: it can still take back its handlers, and
// nobody has anything to complain of. It ends what waits, and may be called again
// and by several. So it is here and in a process, and however often.
func TestClose(t *testing.T) {
	h := newHost(t)
	for i := range 50 {
		p, said := load(t, Config{Host: h, Here: newTiny(func(ctx context.Context, _ cid.Cid) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})})
		if !slices.Contains(h.Mux().Protocols(), proto) {
			t.Fatalf("turn %d: the host handles %v, want %v too", i, h.Mux().Protocols(), proto)
		}
		failed := make(chan error, 1)
		go func() {
			_, err := p.Exchange().GetBlock(t.Context(), wanted.Cid())
			failed <- err
		}()
		if i%2 == 0 {
			eventually(t, "the request waits", func() bool { return p.client.Pending() == 1 })
		}
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() {
				if err := p.Exchange().Close(); err != nil {
					t.Errorf("turn %d: close: %v", i, err)
				}
			})
		}
		closers.Wait()
		if err := <-failed; !errors.Is(err, errs.Closed) {
			t.Errorf("turn %d: a request that waits: got %v, want kind %v", i, err, errs.Closed)
		}
		if _, err := p.Exchange().GetBlock(t.Context(), wanted.Cid()); !errors.Is(err, errs.Closed) {
			t.Errorf("turn %d: a later request: got %v, want kind %v", i, err, errs.Closed)
		}
		if st := p.Status(); st.State != supervise.Stopped || st.LastErr != nil {
			t.Errorf("turn %d: status is %+v, want stopped without an error", i, st)
		}
		if slices.Contains(h.Mux().Protocols(), proto) {
			t.Errorf("turn %d: the host still handles %v", i, proto)
		}
		said.calm(t)
		if t.Failed() {
			return
		}
	}
}

// A restart is no crash and no news to callers: what waits is asked of the next
// exchange, and Exchange is the same as before.
func TestRestart(t *testing.T) {
	asked, made := make(chan int, 10), 0
	p, said := load(t, Config{Here: func(_ context.Context, env Env) (boxo.Interface, error) {
		made++
		number := made
		return Getter(func(ctx context.Context, _ cid.Cid) ([]byte, error) {
			asked <- number
			if number > 1 {
				return wanted.RawData(), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}), nil
	}})
	x := p.Exchange()
	got := make(chan error, 1)
	go func() {
		b, err := x.GetBlock(t.Context(), wanted.Cid())
		if err == nil && !bytes.Equal(b.RawData(), wanted.RawData()) {
			err = errors.New("other bytes")
		}
		got <- err
	}()
	if n := <-asked; n != 1 {
		t.Fatalf("exchange %d is asked, want 1", n)
	}
	p.Restart()
	if n := <-asked; n != 2 {
		t.Errorf("exchange %d is asked after the restart, want 2", n)
	}
	if err := <-got; err != nil {
		t.Errorf("the request that waited: %v", err)
	}
	if p.Exchange() != x {
		t.Error("Exchange is another one after the restart")
	}
	// It is asked before it is noted that it runs.
	eventually(t, "it runs", func() bool { return p.Status().State == supervise.Running })
	if st := p.Status(); st.Restarts != 1 || st.Crashes != 0 {
		t.Errorf("status is %+v, want one restart, no crash", st)
	}
	said.calm(t)
}

// An exchange that breaks the contract later than its start is given up after
// some tries; requests then fail with the reason, and Restart begins anew.
func TestGivenUp(t *testing.T) {
	var mu sync.Mutex
	broken := false
	set := func(b bool) {
		mu.Lock()
		defer mu.Unlock()
		broken = b
	}
	p, _ := load(t, Config{
		Policy: Policy{Crashes: 3, Backoff: time.Millisecond},
		Here: func(context.Context, Env) (boxo.Interface, error) {
			mu.Lock()
			defer mu.Unlock()
			if broken {
				return nil, errors.New("no more licenses")
			}
			return Getter(func(context.Context, cid.Cid) ([]byte, error) { return wanted.RawData(), nil }), nil
		},
	})
	set(true)
	p.Restart()
	eventually(t, "it is given up", func() bool { return p.Status().State == supervise.GivenUp })
	if _, err := p.Exchange().GetBlock(t.Context(), wanted.Cid()); err == nil || !strings.Contains(err.Error(), "no more licenses") {
		t.Errorf("a request: got %v, want the reason", err)
	}
	if err := p.Exchange().NotifyNewBlocks(t.Context(), wanted); err != nil {
		t.Errorf("notify: %v, want no error whatever the plugin does", err)
	}
	set(false)
	p.Restart()
	eventually(t, "it serves again", func() bool { return p.Status().State == supervise.Running })
	if _, err := p.Exchange().GetBlock(t.Context(), wanted.Cid()); err != nil {
		t.Errorf("a request after the restart: %v", err)
	}
}
