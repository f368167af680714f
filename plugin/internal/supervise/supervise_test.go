package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

var errKilled = errs.Errorf(errs.Crashed, errs.Plugin, "fake", "killed")

// A fake is a process that does what the test says.
type fake struct {
	pid  int
	end  sync.Once
	done chan struct{}
	err  error

	hangs     bool // answers nothing any more
	stubborn  bool // goes on after Stop
	stopped   bool // Stop was called
	killed    bool
	serveErrs chan error // ends Serve
	*world
}

func (p *fake) Conn() grpc.ClientConnInterface { return p }
func (p *fake) Done() <-chan struct{}          { return p.done }
func (p *fake) Err() error                     { <-p.done; return p.err }
func (p *fake) Pid() int                       { return p.pid }

func (p *fake) Kill() {
	p.lock(func() { p.killed = true })
	p.exit(errKilled)
}

// exit ends the process.
func (p *fake) exit(err error) { p.end.Do(func() { p.err = err; close(p.done) }) }

// Invoke is the plugin's side of Ping and Stop.
func (p *fake) Invoke(ctx context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	var hangs, stubborn bool
	p.lock(func() {
		hangs, stubborn = p.hangs, p.stubborn
		p.stopped = p.stopped || method == pb.Exchange_Stop_FullMethodName
	})
	if hangs {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	if method == pb.Exchange_Stop_FullMethodName && !stubborn {
		p.exit(errors.New("exit status 0"))
	}
	return nil
}

func (p *fake) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams here")
}

// A world is what a Supervisor finds: it counts directories, processes and
// Serves, of which there is never more than one.
type world struct {
	t *testing.T
	*Supervisor
	log  bytes.Buffer // written by run
	told []string     // by Gone and Back

	mu        sync.Mutex
	dirs      int
	serving   int
	now       *fake // the latest
	launches  int
	launchErr error         // of launches from now on
	launching time.Duration // how long they take
	starting  time.Duration // how long until they serve
	serveErr  error         // of Serve instead of serving
}

func (w *world) lock(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) config(p Policy) Config {
	return Config{
		Name: "fake", Policy: p,
		Log:  slog.New(slog.NewTextHandler(&w.log, nil)),
		Gone: func(err error) { w.told = append(w.told, "gone: "+err.Error()) },
		Back: func() { w.told = append(w.told, "back") },
		NewDir: func() (string, func(), error) {
			w.lock(func() {
				if w.dirs++; w.dirs > 1 || w.serving > 0 || w.now != nil && !ended(w.now) {
					w.t.Errorf("a directory is made while there are %d, %d served, and process %+v", w.dirs-1, w.serving, w.now)
				}
			})
			return "/dir", func() { w.lock(func() { w.dirs-- }) }, nil
		},
		Launch: func(ctx context.Context, _ string) (Process, error) {
			var p *fake
			var err error
			var takes time.Duration
			w.lock(func() {
				w.launches++
				takes, err = w.launching, w.launchErr
				if err == nil {
					p = &fake{pid: 100 + w.launches, done: make(chan struct{}), serveErrs: make(chan error, 1), world: w}
				}
			})
			select {
			case <-time.After(takes):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			if err != nil {
				return nil, err
			}
			w.lock(func() { w.now = p })
			return p, nil
		},
		Serve: func(ctx context.Context, _ string, proc Process, up func()) error {
			p := proc.(*fake)
			var takes time.Duration
			var err error
			w.lock(func() { w.serving++; takes, err = w.starting, w.serveErr })
			defer w.lock(func() { w.serving-- })
			select {
			case <-time.After(takes):
			case <-p.done:
				return errors.New("connection lost")
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err != nil {
				return err
			}
			up()
			select {
			case err := <-p.serveErrs:
				return err
			case <-p.done:
				return errors.New("connection lost")
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		},
	}
}

func ended(p *fake) bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// process is the latest, which must have that number.
func (w *world) process(n int) *fake {
	w.t.Helper()
	synctest.Wait()
	var p *fake
	w.lock(func() { p = w.now })
	if p == nil || p.pid != 100+n {
		w.t.Fatalf("process is %+v, want number %d; status %+v; log\n%s", p, n, w.Status(), &w.log)
	}
	return p
}

// is checks the status.
func (w *world) is(why string, want Status) {
	w.t.Helper()
	synctest.Wait()
	got := w.Status()
	text := func(s Status) string {
		return fmt.Sprintf("%v pid %d, %d restarts, %d crashes, %v", s.State, s.Pid, s.Restarts, s.Crashes, s.LastErr)
	}
	if text(got) != text(want) {
		w.t.Errorf("%s: status is\n%s, want\n%s; log\n%s", why, text(got), text(want), &w.log)
	}
}

// nothing checks that nothing is left.
func (w *world) nothing() {
	w.t.Helper()
	w.lock(func() {
		if w.dirs != 0 || w.serving != 0 || w.now != nil && !ended(w.now) {
			w.t.Errorf("left are %d directories, %d Serves, process %+v, want nothing", w.dirs, w.serving, w.now)
		}
	})
}

// scenario runs a Supervisor in a bubble, and closes it at the end.
func scenario(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		var err error
		if w.Supervisor, err = New(t.Context(), w.config(Policy{})); err != nil {
			t.Fatal(err)
		}
		f(t, w)
		w.Close(context.Background())
		w.nothing()
		if got := w.Status().State; got != Stopped {
			t.Errorf("after Close: %v, want %v", got, Stopped)
		}
	})
}

// A plugin that crashes is started again, after a while that grows; nothing of
// one process is left when the next begins; and the log says all that.
func TestRestarts(t *testing.T) {
	scenario(t, func(t *testing.T, w *world) {
		w.is("it begins", Status{State: Running, Pid: 101})
		boom := errors.New("ended by signal 9 (killed)")
		w.process(1).exit(boom)
		w.is("it waits", Status{State: Restarting, Crashes: 1, LastErr: boom})
		time.Sleep(130 * ms)
		w.is("it runs again", Status{State: Running, Pid: 102, Restarts: 1, Crashes: 1, LastErr: boom})
		w.process(2).exit(boom)
		time.Sleep(140 * ms)
		w.is("it waits longer", Status{State: Restarting, Restarts: 1, Crashes: 2, LastErr: boom})
		time.Sleep(120 * ms)
		w.process(3)
		time.Sleep(2 * time.Minute)
		w.is("it has settled", Status{State: Running, Pid: 103, Restarts: 2, LastErr: boom})
		for _, want := range []string{`msg="plugin crashed" err="ended by signal 9 (killed)" crashes=1 of=5 within=1m0s again_in=`, "crashes=2"} {
			if !strings.Contains(w.log.String(), want) {
				t.Errorf("the log lacks %q:\n%s", want, &w.log)
			}
		}
	})
}

// After five crashes within a minute the plugin is given up, until Restart.
func TestGivesUp(t *testing.T) {
	scenario(t, func(t *testing.T, w *world) {
		boom := errors.New("boom")
		for i := 1; i <= 5; i++ {
			w.process(i).exit(boom)
			time.Sleep(2 * s)
		}
		w.is("given up", Status{State: GivenUp, Restarts: 4, Crashes: 5, LastErr: boom})
		time.Sleep(time.Hour)
		w.is("it stays so", Status{State: GivenUp, Restarts: 4, LastErr: boom})
		if !strings.Contains(w.log.String(), `plugin restart`) || !strings.Contains(w.log.String(), "crashes=5 within=1m0s") {
			t.Errorf("the log does not say what to do:\n%s", &w.log)
		}
		w.Restart()
		w.is("tried again", Status{State: Running, Pid: 106, Restarts: 5, LastErr: boom})
		if got := strings.Join(w.told, ", "); got != "gone: boom, back" {
			t.Errorf("told was %q, want gone and back", got)
		}
		w.process(6).exit(boom)
		w.is("with a clean record", Status{State: Restarting, Restarts: 5, Crashes: 1, LastErr: boom})
	})
}

// A plugin that does not answer is killed, and that is a crash.
func TestHangs(t *testing.T) {
	scenario(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		p := w.process(1)
		w.lock(func() { p.hangs = true })
		time.Sleep(4 * s)
		w.is("it may think", Status{State: Running, Pid: 101})
		time.Sleep(2 * s)
		w.process(2)
		if st := w.Status(); !p.killed || st.State != Running || !errors.Is(st.LastErr, errs.Crashed) || !strings.Contains(st.LastErr.Error(), "it hangs: no answer for 5s") {
			t.Errorf("status is %+v, want running after a hang; log\n%s", st, &w.log)
		}
	})
}

// A process that goes on while Serve has ended is killed, and Serve's reason is
// told; if the process ends too, that is the reason.
func TestServeEnds(t *testing.T) {
	scenario(t, func(t *testing.T, w *world) {
		p := w.process(1)
		p.serveErrs <- errs.E(errs.Invalid, errs.Plugin, "", "", errors.New("it talks nonsense"))
		time.Sleep(2 * s)
		if st := w.Status(); !p.killed || st.State != Running || st.LastErr.Error() != "it talks nonsense" {
			t.Errorf("status is %+v, want running after nonsense", st)
		}
		p = w.process(2)
		p.serveErrs <- errors.New("connection lost")
		time.Sleep(s / 2)
		p.exit(errors.New("exit status 2"))
		time.Sleep(s)
		w.is("the process is the reason", Status{State: Running, Pid: 103, Restarts: 2, Crashes: 2, LastErr: errors.New("exit status 2")})
		w.process(3).serveErrs <- nil
		time.Sleep(3 * s)
		if err := w.Status().LastErr; !strings.Contains(err.Error(), "ended unasked") {
			t.Errorf("error is %v, want that it ended unasked", err)
		}
	})
}

// What will not get better is not tried again: not by New, and not later.
func TestHopeless(t *testing.T) {
	wrong := errs.Errorf(errs.Invalid, errs.Caller, "check program", "sha256 is 1, want 2")
	for _, where := range []string{"launch", "serve"} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{t: t}
			if where == "launch" {
				w.launchErr = wrong
			} else {
				w.serveErr = wrong
			}
			if _, err := New(t.Context(), w.config(Policy{})); err != error(wrong) || w.launches != 1 {
				t.Errorf("%s: New: %v after %d launches, want %v after 1", where, err, w.launches, wrong)
			}
			if w.nothing(); w.told != nil {
				t.Errorf("%s: told was %q, want nothing: New has said it", where, w.told)
			}
		})
	}
	scenario(t, func(t *testing.T, w *world) {
		w.lock(func() { w.launchErr = wrong })
		w.process(1).exit(errors.New("boom"))
		time.Sleep(s)
		w.is("given up at once", Status{State: GivenUp, Restarts: 1, Crashes: 2, LastErr: wrong})
		w.lock(func() { w.launchErr = nil })
		w.Restart()
		w.is("put right", Status{State: Running, Pid: 103, Restarts: 2, LastErr: wrong})
	})
}

// What could be served once is tried more than once again: an exchange that
// refuses to start the second time may have met a passing trouble.
func TestRefusesLater(t *testing.T) {
	no := errs.Errorf(errs.Invalid, errs.Plugin, "make exchange", "no answer from the gateway")
	scenario(t, func(t *testing.T, w *world) {
		w.lock(func() { w.serveErr = no })
		w.process(1).exit(errors.New("boom"))
		time.Sleep(reasonTimeout + 200*ms)
		w.is("tried again", Status{State: Restarting, Restarts: 1, Crashes: 2, LastErr: no})
		w.lock(func() { w.serveErr = nil })
		time.Sleep(s)
		w.is("the trouble has passed", Status{State: Running, Pid: 103, Restarts: 2, Crashes: 2, LastErr: no})
		w.lock(func() { w.serveErr = no })
		w.process(3).exit(errors.New("boom"))
		time.Sleep(30 * s)
		w.is("it has not", Status{State: GivenUp, Restarts: 4, Crashes: 5, LastErr: no})
	})
}

// New tries more than once what may get better, in the end says why it did not,
// and leaves nothing, also when its context ends.
func TestNew(t *testing.T) {
	boom := errors.New("boom")
	for _, slow := range []time.Duration{0, 30 * s} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{t: t, launchErr: boom, launching: slow}
			if _, err := New(t.Context(), w.config(Policy{})); !errors.Is(err, boom) || w.launches != 5 || !strings.Contains(err.Error(), "tried 5 times") {
				t.Errorf("each takes %v: New: %v after %d launches, want %v after 5", slow, err, w.launches, boom)
			}
			w.nothing()
		})
	}
	for name, w := range map[string]*world{
		"launching": {launching: time.Hour},
		"starting":  {starting: time.Hour},
		"waiting":   {launchErr: boom},
	} {
		synctest.Test(t, func(t *testing.T) {
			w.t = t
			ctx, cancel := context.WithTimeout(t.Context(), 500*ms)
			defer cancel()
			if _, err := New(ctx, w.config(Policy{})); !errors.Is(err, context.DeadlineExceeded) || name == "waiting" && !errors.Is(err, boom) {
				t.Errorf("%s: New: %v, want %v", name, err, context.DeadlineExceeded)
			}
			w.nothing()
		})
	}
	if _, err := New(t.Context(), Config{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("New of nothing: %v, want of kind %v", err, errs.Invalid)
	}
}

// Close asks first, and kills when it is not heard, or when its context ends.
func TestClose(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*fake)
		patient bool
		takes   time.Duration
		killed  bool
	}{
		{"in good order", func(*fake) {}, true, 0, false},
		{"hangs", func(p *fake) { p.hangs = true }, true, 5 * s, true},
		{"stays", func(p *fake) { p.stubborn = true }, true, 5 * s, true},
		{"impatient", func(p *fake) { p.hangs = true }, false, s, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			scenario(t, func(t *testing.T, w *world) {
				p := w.process(1)
				w.lock(func() { tc.prepare(p) })
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if !tc.patient {
					time.AfterFunc(s, cancel)
				}
				begin := time.Now()
				w.Close(ctx)
				if got := time.Since(begin); got != tc.takes || !p.stopped || p.err == errKilled != tc.killed {
					t.Errorf("closed after %v, asked %v, ended by %v, want after %v, asked, killed %v; log\n%s", got, p.stopped, p.err, tc.takes, tc.killed, &w.log)
				}
				w.nothing()
			})
		})
	}
	scenario(t, func(t *testing.T, w *world) {
		w.process(1).exit(errors.New("boom"))
		synctest.Wait() // and now it waits to be started again
	})
	scenario(t, func(t *testing.T, w *world) {
		w.lock(func() { w.launching = time.Hour })
		w.Restart()
		synctest.Wait() // and now it is being launched
		w.is("being launched", Status{State: Restarting, Restarts: 1})
	})
}

// Restart of a running plugin is in good order, no crash, and one for many; it
// also ends a wait, and a launch.
func TestRestart(t *testing.T) {
	scenario(t, func(t *testing.T, w *world) {
		p := w.process(1)
		w.Restart()
		w.Restart()
		w.is("restarted", Status{State: Running, Pid: 102, Restarts: 1})
		if !p.stopped || p.err == errKilled {
			t.Errorf("the first ended by %v, want in good order", p.err)
		}
		boom := errors.New("boom")
		w.process(2).exit(boom)
		synctest.Wait()
		w.Restart()
		w.is("not waited for", Status{State: Running, Pid: 103, Restarts: 2, LastErr: boom})
		w.lock(func() { w.launching = time.Hour })
		w.process(3).exit(boom)
		time.Sleep(s)
		w.lock(func() { w.launching = 0 })
		w.Restart()
		w.is("launched anew", Status{State: Running, Pid: 105, Restarts: 4, LastErr: boom})
	})
}

// Whatever happens, and when, there is at most one process, and nothing is left
// after Close.
func TestAnything(t *testing.T) {
	for seed := range uint64(100) {
		scenario(t, func(t *testing.T, w *world) {
			r := rand.New(rand.NewPCG(seed, 0))
			for range 30 {
				var p *fake
				w.lock(func() {
					p = w.now
					w.launching, w.starting = time.Duration(r.IntN(3))*s, time.Duration(r.IntN(3))*s
					w.launchErr, w.serveErr = nil, nil
					switch r.IntN(8) {
					case 0:
						w.launchErr = errors.New("boom")
					case 1:
						w.serveErr = errors.New("boom")
					case 2:
						w.serveErr = errs.E(errs.Invalid, errs.Plugin, "boom", "", nil)
					}
				})
				switch r.IntN(5) {
				case 0:
					w.Restart()
				case 1:
					p.exit(errors.New("boom"))
				case 2:
					w.lock(func() { p.hangs = true })
				case 3:
					select {
					case p.serveErrs <- errors.New("boom"):
					default:
					}
				}
				time.Sleep(time.Duration(r.IntN(4000)) * ms)
			}
			w.lock(func() { w.launching, w.starting, w.launchErr, w.serveErr = 0, 0, nil, nil })
			time.Sleep(time.Minute)
			if w.Status().State == GivenUp {
				w.Restart()
				synctest.Wait()
			}
			if st := w.Status(); st.State != Running || st.Pid == 0 {
				t.Errorf("seed %d: status is %+v, want running in the end; log\n%s", seed, st, &w.log)
			}
		})
	}
}
