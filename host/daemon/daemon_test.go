package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"
	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/repo"
)

// A daemon tells where it is, by the api file too, while it serves and no longer.
// A second one is told who has the repo and how to reach that.
func TestLife(t *testing.T) {
	d := start(t)
	addr, err := repo.APIAddr(d.dir)
	if err != nil || urlOf(t, addr.String()) != d.api {
		t.Fatalf("the api file: got %v, %v, want the address of %s", addr, err, d.api)
	}
	d.do("GET", d.api+"/healthz", nil).want(t, "healthz", http.StatusOK)
	d.do("GET", d.api+"/readyz", nil).want(t, "readyz", http.StatusOK)

	second := launch(t, Options{RepoDir: d.dir})
	var locked *repo.LockedError
	if err := second.wait(); !errors.As(err, &locked) {
		t.Fatalf("a second daemon: got %v, want a *repo.LockedError", err)
	}
	if locked.PID != os.Getpid() || locked.API != addr.String() {
		t.Errorf("a second daemon was told of process %d and API %s, want %d and %s", locked.PID, locked.API, os.Getpid(), addr)
	}

	d.stop()
	if _, err := repo.APIAddr(d.dir); !errors.Is(err, errs.NotFound) {
		t.Errorf("the api file after the end: got %v, want %v", err, errs.NotFound)
	}
	r, err := repo.Open(d.dir)
	if err != nil {
		t.Fatalf("open the repo after the end: %v", err)
	}
	r.Close()
}

// Without Init a missing repo is an error that says so; with it the repo is made,
// once.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repo")
	if err := launch(t, Options{RepoDir: dir}).wait(); !errors.Is(err, errs.NotFound) {
		t.Fatalf("without a repo: got %v, want %v", err, errs.NotFound)
	}
	r, err := openRepo(Options{RepoDir: dir, Init: true}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	id := r.Config().Identity.PeerID
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = openRepo(Options{RepoDir: dir, Init: true}, io.Discard); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Config().Identity.PeerID; got != id {
		t.Errorf("the second time: got identity %s, want that of the first, %s", got, id)
	}
}

// An address that cannot be had ends the daemon with an error that names it, and
// nothing stays open.
func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	addr := "/ip4/127.0.0.1/tcp/" + port
	dir := newRepo(t, func(c *repo.Config, _ *patience) { c.Addresses.Gateway = repo.Strings{addr} })
	err = launch(t, Options{RepoDir: dir}).wait()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr) {
		t.Fatalf("got %v, want %v with %s", err, syscall.EADDRINUSE, addr)
	}
}

// The API may be a unix socket, and what a killed process has left of one is
// replaced.
func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "") // a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "api")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()

	d := start(t, func(c *repo.Config, _ *patience) { c.Addresses.API = repo.Strings{"/unix" + path} })
	d.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	d.do("POST", "http://any.name/api/v0/version", nil).want(t, "by any name", http.StatusOK)
	d.stop()
}

// Requests that are under way when the daemon is told to stop are told so, and answered;
// new ones are not taken.
func TestStopAnswers(t *testing.T) {
	d := start(t)
	answer := make(chan response, 1)
	go func() { answer <- d.do("POST", d.api+"/api/v0/wait", nil) }()
	receive(t, "the request", d.env.entered)

	d.do("POST", d.api+"/api/v0/shutdown", nil).want(t, "shutdown", http.StatusOK)
	receive(t, "commands are told that the daemon stops", d.env.running.Done())
	hostport := strings.TrimPrefix(d.api, "http://")
	for late := time.Now().Add(deadline); ; { // the listener closes at any moment
		c, err := net.Dial("tcp", hostport)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(late) {
			t.Fatal("the daemon still listens after shutdown")
		}
	}
	if _, err := repo.APIAddr(d.dir); !errors.Is(err, errs.NotFound) {
		t.Errorf("the api file while the daemon stops: got %v, want %v", err, errs.NotFound)
	}
	select {
	case <-d.ended:
		t.Fatal("the daemon ended before its request")
	default:
	}
	close(d.env.release)
	got := receive(t, "the answer", answer).want(t, "the request under way", http.StatusOK)
	if !bytes.Contains(got.body, []byte("yes")) {
		t.Errorf("the request under way: got %q, want the answer", got.body)
	}
	if err := d.wait(); err != nil {
		t.Errorf("the daemon ended with %v, want nil", err)
	}
}

// Requests that take too long when the daemon stops are ended, and know why.
func TestStopEnds(t *testing.T) {
	d := start(t, func(_ *repo.Config, p *patience) { p.finish = 10 * time.Millisecond })
	go func() {
		if res, err := d.http.Post(d.api+"/api/v0/wait", "", nil); err == nil {
			res.Body.Close()
		}
	}()
	receive(t, "the request", d.env.entered)
	d.cancel()
	if got := receive(t, "the end of the request", d.env.causes); !errors.Is(got, errStopping) {
		t.Errorf("the request ended with %v, want %v", got, errStopping)
	}
	if err := d.wait(); err != nil {
		t.Errorf("the daemon ended with %v, want nil", err)
	}
}

// Who falls asleep in the middle of an upload is not waited for; nor is who asks
// for something and does not read it.
func TestSleepers(t *testing.T) {
	d := start(t, func(_ *repo.Config, p *patience) { p.body, p.write = 50*time.Millisecond, 50*time.Millisecond })
	t.Run("upload", func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		parts := multipart.NewWriter(w)
		go func() {
			part, _ := parts.CreateFormFile("data", "name")
			part.Write(make([]byte, 64<<10))
		}()
		req, err := http.NewRequestWithContext(t.Context(), "POST", d.api+"/api/v0/size", r)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", parts.FormDataContentType())
		go func() {
			if res, err := d.http.Do(req); err == nil {
				res.Body.Close()
			}
		}()
		receive(t, "the upload", d.env.entered)
		if err := receive(t, "the end of the upload", d.env.causes); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the upload ended with %v, want %v", err, os.ErrDeadlineExceeded)
		}
	})
	t.Run("download", func(t *testing.T) {
		res, err := d.http.Post(d.api+"/api/v0/zeros", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		receive(t, "the download", d.env.entered)
		if err := receive(t, "the end of the download", d.env.causes); err == nil {
			t.Error("the download ended without an error, want one")
		}
	})
}

// Each piece of an upload has its own time, and while none is awaited there is no
// deadline: the server would take it for a client that is gone.
func TestPacedBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = time.Minute
		var w deadlines
		body := &pacedBody{io.NopCloser(slowly{&w, t, limit}), http.NewResponseController(&w), limit}
		for range 10 { // together longer than the limit
			if n, err := body.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Fatalf("read: got %d, %v, want 1, nil", n, err)
			}
			if !w.last.IsZero() {
				t.Fatalf("after a read: the deadline is %v, want none", w.last)
			}
		}
	})
}

// deadlines is a response of which only the last read deadline is of interest.
type deadlines struct {
	http.ResponseWriter
	last time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.last = t; return nil }

// slowly is a body that takes nearly the limit for each byte.
type slowly struct {
	w     *deadlines
	t     *testing.T
	limit time.Duration
}

func (s slowly) Read(p []byte) (int, error) {
	if left := time.Until(s.w.last); left != s.limit {
		s.t.Errorf("a read has %v, want %v", left, s.limit)
	}
	time.Sleep(s.limit - time.Second)
	return 1, nil
}

// The service manager hears when the daemon is ready, that it lives, and that it
// stops.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "40000")
	d := start(t)
	l.SetReadDeadline(time.Now().Add(deadline))
	want := func(state string) {
		t.Helper()
		for buf := make([]byte, 100); ; {
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", state, err)
			}
			if string(buf[:n]) == state {
				return
			}
		}
	}
	want("READY=1")
	want("WATCHDOG=1")
	want("WATCHDOG=1")
	d.cancel()
	want("STOPPING=1")
}

// WATCHDOG_USEC counts only for the process that it is for, and if it makes sense.
func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		name, usec, pid string
		want            time.Duration
	}{
		{"none", "", "", 0},
		{"30 s", "30000000", "", 30 * time.Second},
		{"of another process", "30000000", "1", 0},
		{"no number", "soon", "", 0},
		{"negative", "-1", "", 0},
		{"beyond what a duration holds", "9223372036854775807", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", c.usec)
			t.Setenv("WATCHDOG_PID", c.pid)
			if got := watchdog(); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// A full disk is logged when it becomes full and when it has room again, not in
// between, whether a write behind or a command finds it.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		log := slog.New(slog.NewTextHandler(&lines, nil))
		var d disk
		full := errs.E(errs.Storage, errs.Ours, "write", "", syscall.ENOSPC)
		other := errs.E(errs.Storage, errs.Ours, "write", "", syscall.EIO)
		step := func(why string, failing error, free uint64, want string) {
			t.Helper()
			lines.Reset()
			d.check(log, failing, free)
			if got := lines.String(); (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Fatalf("%s: logged %q, want %q", why, got, want)
			}
		}
		const room = 1 << 30
		step("there is room", nil, room, "")
		step("a write fails", full, room, "level=ERROR")
		step("and fails", full, 0, "")
		step("the disk stays full", nil, 0, "")
		step("there is room again", nil, room, "level=INFO")
		step("and stays", nil, room, "")
		step("a write fails for another reason", other, room, "")
		step("no room is left", nil, minFree-1, "level=ERROR")
		step("there is room again", nil, room, "level=INFO")

		var fails, writing error
		command := &cmds.Command{Run: func(*cmds.Request, cmds.ResponseEmitter, cmds.Environment) error { return fails }}
		d.listen(command, func() error { return writing })
		req := &cmds.Request{Context: t.Context()}
		for _, fails = range []error{nil, other} {
			command.Run(req, nil, nil)
			step("a command ends otherwise", nil, room, "")
		}
		fails = full
		if err := command.Run(req, nil, nil); err != full {
			t.Fatalf("the command returns %v, want %v", err, full)
		}
		step("a command finds the disk full", nil, room, "no space left")
		time.Sleep(remembered - 1)
		step("that is not forgotten at once", nil, room, "")
		time.Sleep(time.Nanosecond)
		step("but soon", nil, room, "level=INFO")
		command.Run(req, nil, nil)
		step("a command finds the disk full again", nil, room, "no space left")
		step("a little more room is not enough", nil, room+minFree-1, "")
		step("but more is", nil, room+minFree, "level=INFO")
		command.Run(req, nil, nil)
		step("a command and a write find the disk full", full, 0, "level=ERROR")
		step("there is room for both", nil, room, "level=INFO")

		// Fetching ends with an error of boxo that has lost the reason.
		missing := errors.New("failed to fetch all nodes")
		fails, writing = missing, full
		if err := command.Run(req, nil, nil); !errors.Is(err, missing) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a fetch on a full disk: got %v, want both %v and %v", err, missing, full)
		}
		step("a fetch finds the disk full", nil, room, "no space left")
		stated := cmds.Errorf(cmds.ErrClient, "no such option")
		ended, end := context.WithCancel(t.Context())
		end()
		for why, c := range map[string]struct {
			fails, writing error
			req            *cmds.Request
		}{
			"writing fails for another reason": {missing, other, req},
			"nothing fails to be written":      {missing, nil, req},
			"the client is at fault":           {stated, full, req},
			"the client is gone":               {missing, full, &cmds.Request{Context: ended}},
		} {
			fails, writing = c.fails, c.writing
			if err := command.Run(c.req, nil, nil); err != c.fails {
				t.Errorf("%s: got %v, want %v", why, err, c.fails)
			}
		}
	})
}

// What a plugin says has a level of its own.
func TestLogLevels(t *testing.T) {
	log := Logger()
	plugin := log.With("plugin", "some")
	debug := func(l *slog.Logger) bool { return l.Enabled(t.Context(), slog.LevelDebug) }
	if debug(log) || debug(plugin) || !log.Enabled(t.Context(), slog.LevelInfo) {
		t.Fatalf("at first: debug is %v and %v, info is %v, want only info", debug(log), debug(plugin), log.Enabled(t.Context(), slog.LevelInfo))
	}
	if err := golog.SetLogLevel("plugin/some", "debug"); err != nil {
		t.Fatal(err)
	}
	plugin = log.With("plugin", "some") // as if it were loaded again
	if debug(log) || !debug(plugin) || !debug(plugin.With("more", 1)) {
		t.Errorf("with plugin/some=debug: the node's is %v, the plugin's %v, want false, true", debug(log), debug(plugin))
	}
	gologshim.Logger("of-libp2p").Debug("nobody sees this, but it makes the subsystem known")
	for _, want := range []string{"codexchange", "plugin/some", "of-libp2p"} {
		if got := golog.GetSubsystems(); !slices.Contains(got, want) {
			t.Errorf("subsystems are %q, want %s among them", got, want)
		}
	}
}

// The environment has the last word on the levels that it names.
func TestLevelSet(t *testing.T) {
	t.Setenv("IPFS_LOGGING", "")
	for _, c := range []struct {
		env  string
		want bool
	}{
		{"", false}, {"warn", true}, {"bitswap=debug", false}, {"bitswap=debug,warn", true},
		{"codexchange=warn", true}, {"plugin/codexchange=warn", false},
	} {
		t.Setenv("GOLOG_LOG_LEVEL", c.env)
		if got := levelSet("codexchange"); got != c.want {
			t.Errorf("with %q: got %v, want %v", c.env, got, c.want)
		}
	}
}
