// Package supervise keeps one plugin running: it starts its process, asks it for
// signs of life, starts it again when it crashes or hangs, and gives up when that
// happens too often. How a process is started is the business of package
// subprocess; what is done with it that of the caller's Serve.
//
// # An incarnation
//
// Each process of the plugin has a directory, a launch, and a Serve, in this
// order, and they end in the reverse one: Serve has returned, the process has
// been waited for, and the directory is removed before the next begins. An
// incarnation that ends unasked, hangs, or whose launch or Serve ends with an
// error is a crash. An error of kind errs.Invalid is worse if it comes from a
// launch, or from Serve before any incarnation has served: another try would end
// in the same way, so there is none.
//
// # Goroutines
//
//	Supervisor.run   one per Supervisor; owns its whole life; Close waits for it
//	launch           one per incarnation; run waits for it
//	Serve            one per incarnation; run waits for it
//	beat             one per incarnation: asks for signs of life; run waits for it
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// reasonTimeout is how long the end of a process may come after that of Serve for
// the process to be named as the reason.
const reasonTimeout = time.Second

// A Process is one process of the plugin, as of package subprocess. If it has a
// method Pid() int, the status shows it.
type Process interface {
	// Conn carries service pb.Exchange.
	Conn() grpc.ClientConnInterface
	// Done is closed when the process has ended and been waited for.
	Done() <-chan struct{}
	// Err says how it ended.
	Err() error
	// Kill ends it at once, and waits until Done.
	Kill()
}

// Config says what is kept running. Launch, NewDir and Serve are required. All
// functions are called from one goroutine but Launch and Serve, which have one of
// their own; they must not call Close.
type Config struct {
	// Name is the plugin's, for errors.
	Name string
	// NewDir makes the private directory of an incarnation.
	NewDir func() (dir string, cleanup func(), err error)
	// Launch starts a process. If it returns an error, no process is left.
	Launch func(ctx context.Context, dir string) (Process, error)
	// Serve is the life of one incarnation. It starts the exchange, calls up when
	// that serves, and returns when it is over, at the latest soon after ctx ends.
	// It leaves nothing behind in dir that is still used.
	Serve func(ctx context.Context, dir string, p Process, up func()) error
	// Gone is told that the plugin has been given up, and why. Not if New says so.
	// nil is nobody.
	Gone func(err error)
	// Back is told that a plugin that was given up is tried again. nil is nobody.
	Back func()
	// LogLevel is the lowest level that the plugin's log shows now; each ping tells it.
	// nil: it is not told.
	LogLevel func() slog.Level
	// Policy is useful when zero.
	Policy Policy
	// Log is told of crashes and what is done about them; nil is slog.Default().
	// Give it an attribute that names the plugin.
	Log *slog.Logger
}

// State is what a Supervisor is at.
type State int

const (
	// Starting is before the first process serves.
	Starting State = iota
	// Running is while a process serves.
	Running
	// Restarting is between a crash, or Restart, and the next process that serves.
	Restarting
	// GivenUp is after too many crashes, until Restart.
	GivenUp
	// Stopped is after Close.
	Stopped
)

func (s State) String() string {
	switch s {
	case Starting:
		return "starting"
	case Running:
		return "running"
	case Restarting:
		return "restarting"
	case GivenUp:
		return "given up"
	case Stopped:
		return "stopped"
	}
	return fmt.Sprintf("state %d", int(s))
}

// A Status is how things are with a plugin.
type Status struct {
	State    State
	Since    time.Time // of the state
	Pid      int       // of the process, 0 if there is none
	Restarts int       // processes that were started after the first
	Crashes  int       // within the policy's window
	LastErr  error     // why the last process that crashed did, or could not be started
}

// A Supervisor keeps one plugin running until Close. Its methods may be called
// from any goroutine.
type Supervisor struct {
	cfg     Config
	restart chan struct{} // one request at a time; more are the same one
	first   chan error    // nil once the plugin has served, or why it never will
	closing chan struct{} // closed by Close
	done    chan struct{} // closed by run at its end
	close   sync.Once

	patience context.Context // ends when whoever closes has no more of it
	hurry    context.CancelFunc

	rec   record // owned by run
	begun bool   // owned by run: first has been answered

	mu      sync.Mutex
	status  Status
	crashes []time.Time // what rec shows, for Status
}

// New starts the plugin, and returns when it serves. If it cannot be started, or
// ctx ends before, nothing is left and the error says why. The context bounds New
// alone.
func New(ctx context.Context, c Config) (*Supervisor, error) {
	if c.NewDir == nil || c.Launch == nil || c.Serve == nil {
		return nil, errs.Errorf(errs.Invalid, errs.Caller, "supervise "+c.Name, "want NewDir, Launch and Serve")
	}
	var err error
	if c.Policy, err = c.Policy.fill(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Supervisor{
		cfg:     c,
		restart: make(chan struct{}, 1),
		first:   make(chan error, 1),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		rec:     record{policy: c.Policy},
		status:  Status{State: Starting, Since: time.Now()},
	}
	s.patience, s.hurry = context.WithCancel(context.Background())
	go s.run()
	select {
	case err = <-s.first:
	case <-ctx.Done():
		err = errs.E(errs.Other, errs.Unknown, "start plugin", c.Name, context.Cause(ctx))
		if last := s.Status().LastErr; last != nil {
			err = fmt.Errorf("%w (the last try: %w)", err, last)
		}
	}
	if err != nil {
		s.hurry()
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

// Status is how things are.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	shown := record{policy: s.cfg.Policy, crashes: s.crashes}
	st.Crashes = len(shown.within(time.Now()))
	return st
}

// Restart ends the process in good order and starts a new one, without waiting
// for it; also one that was given up, or that waits to be started again. What
// has crashed before is forgotten.
func (s *Supervisor) Restart() {
	select {
	case s.restart <- struct{}{}:
	default: // asked already
	}
}

// Close ends the plugin in good order, or by force when ctx ends or the policy's
// Stop has passed, and waits for everything. It may be called more than once.
func (s *Supervisor) Close(ctx context.Context) {
	s.close.Do(func() { close(s.closing) })
	stop := context.AfterFunc(ctx, s.hurry)
	defer stop()
	<-s.done
}

// ending is why an incarnation is over.
type ending int

const (
	crashed ending = iota
	hopeless
	restarted
	closed
)

// run is the life of the plugin.
func (s *Supervisor) run() {
	defer close(s.done)
	defer s.hurry()
	for {
		end, why := s.incarnation()
		switch end {
		case restarted:
			s.cfg.Log.Info("plugin is restarted as asked")
			s.again()
		case crashed, hopeless:
			end = s.after(end, why)
		}
		if end == closed {
			break
		}
		s.set(func(st *Status) { st.Restarts++ })
	}
	s.set(func(st *Status) { st.State = Stopped })
}

// after decides what comes of a crash, and waits until the next start. It returns
// closed if there is none.
func (s *Supervisor) after(end ending, why error) ending {
	wait, giveUp := s.rec.crashed(time.Now(), rand.Float64())
	state := Restarting
	switch {
	case end == crashed && !giveUp && !s.begun:
		state = Starting
	case end == hopeless || giveUp:
		state = GivenUp
	}
	s.set(func(st *Status) { st.State, st.LastErr = state, why })
	p, crashes := s.cfg.Policy, len(s.rec.crashes)

	var again <-chan time.Time
	switch {
	case state != GivenUp:
		s.cfg.Log.Warn("plugin crashed", "err", why, "crashes", crashes, "of", p.Crashes, "within", p.Window, "again_in", wait.Round(time.Millisecond))
		timer := time.NewTimer(wait)
		defer timer.Stop()
		again = timer.C
	case end == hopeless && !s.begun:
		s.first <- why
		return closed
	case !s.begun:
		s.first <- fmt.Errorf("%w (tried %d times)", why, max(crashes, s.rec.row))
		return closed
	case end == hopeless:
		s.cfg.Log.Error(`plugin is given up: another try would end in the same way; put right what is wrong, then "plugin restart"`, "err", why)
	default:
		s.cfg.Log.Error(`plugin is given up: it has crashed too often; "plugin restart" tries again`, "err", why, "crashes", crashes, "within", p.Window, "without_serving", s.rec.row)
	}
	if state == GivenUp && s.cfg.Gone != nil {
		s.cfg.Gone(why)
	}
	select {
	case <-again:
		return crashed
	case <-s.closing:
		return closed
	case <-s.restart:
	}
	s.cfg.Log.Info("plugin is started again as asked")
	s.again()
	if state == GivenUp && s.cfg.Back != nil {
		s.cfg.Back()
	}
	return restarted
}

// again begins anew, as asked.
func (s *Supervisor) again() {
	s.rec.forget()
	s.set(func(st *Status) {
		if s.begun {
			st.State = Restarting
		}
	})
}

// A life is one incarnation while its process runs.
type life struct {
	p        Process
	up       chan struct{} // closed when Serve says so
	finished chan struct{} // closed after serveErr is set
	serveErr error
	hangs    chan error // at most one
	shown    bool       // owned by run: that it is up
}

// incarnation is the life of one process, from its directory on. Nothing of it is
// left when it returns.
func (s *Supervisor) incarnation() (ending, error) {
	select {
	case <-s.restart: // asked before: this is it
	default:
	}
	dir, cleanup, err := s.cfg.NewDir()
	if err != nil {
		return verdict(false, err), err
	}
	defer cleanup()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	p, end, err := s.launch(ctx, cancel, dir)
	if p == nil {
		return end, err
	}
	pid := 0
	if p, ok := p.(interface{ Pid() int }); ok {
		pid = p.Pid()
	}
	s.set(func(st *Status) { st.Pid = pid })
	defer s.set(func(st *Status) {
		if st.Pid = 0; st.State == Running {
			st.State = Restarting // or worse, as is found next; but running it is not
		}
	})

	l := &life{p: p, up: make(chan struct{}), finished: make(chan struct{}), hangs: make(chan error, 1)}
	var helpers sync.WaitGroup
	helpers.Go(func() {
		defer close(l.finished)
		l.serveErr = s.cfg.Serve(ctx, dir, p, sync.OnceFunc(func() { close(l.up) }))
	})
	helpers.Go(func() {
		if err := s.beat(ctx, p); err != nil {
			l.hangs <- err
		}
	})
	end, why := s.watch(l)
	if end != crashed {
		s.stop(p)
	}
	cancel()
	p.Kill()
	helpers.Wait()
	s.show(l)
	switch {
	case end != crashed:
		return end, nil
	case verdict(s.begun, l.serveErr) == hopeless:
		return hopeless, l.serveErr
	case why == nil && l.serveErr == nil:
		why = errs.Errorf(errs.Crashed, errs.Plugin, "serve plugin "+s.cfg.Name, "it ended unasked")
	case why == nil:
		why = l.serveErr
	}
	return crashed, why
}

// verdict says whether another try makes sense after an error. It does if the
// same has succeeded before.
func verdict(before bool, err error) ending {
	if !before && errors.Is(err, errs.Invalid) {
		return hopeless
	}
	return crashed
}

// launch starts a process. If it does not return one, it says why.
func (s *Supervisor) launch(ctx context.Context, cancel context.CancelFunc, dir string) (Process, ending, error) {
	var p Process
	var err error
	launched := make(chan struct{})
	go func() {
		defer close(launched)
		p, err = s.cfg.Launch(ctx, dir)
	}()
	end := crashed
	select {
	case <-launched:
	case <-s.closing:
		end = closed
	case <-s.restart:
		end = restarted
	}
	if end == crashed {
		if err != nil {
			return nil, verdict(false, err), err
		}
		return p, end, nil
	}
	cancel()
	<-launched
	if err == nil {
		p.Kill()
	}
	return nil, end, nil
}

// watch waits until an incarnation is over. A crash without a reason is that of
// Serve.
func (s *Supervisor) watch(l *life) (ending, error) {
	up, finished := l.up, l.finished
	var late <-chan time.Time
	for {
		select {
		case <-up:
			up = nil
			s.show(l)
		case <-l.p.Done():
			return crashed, l.p.Err()
		case <-finished:
			if verdict(s.begun, l.serveErr) == hopeless {
				return crashed, nil
			}
			// If the process ends now, that is the reason.
			finished = nil
			timer := time.NewTimer(reasonTimeout)
			defer timer.Stop()
			late = timer.C
		case <-late:
			return crashed, nil
		case err := <-l.hangs:
			return crashed, err
		case <-s.closing:
			return closed, nil
		case <-s.restart:
			return restarted, nil
		}
	}
}

// show notes that an incarnation serves, if it does.
func (s *Supervisor) show(l *life) {
	select {
	case <-l.up:
	default:
		return
	}
	if l.shown {
		return
	}
	l.shown = true
	s.rec.served(time.Now())
	s.set(func(st *Status) { st.State = Running })
	if !s.begun {
		s.begun = true
		s.first <- nil
	}
}

// stop asks a plugin to end, and waits until its process has, but not for long.
func (s *Supervisor) stop(p Process) {
	ctx, cancel := context.WithTimeout(s.patience, s.cfg.Policy.Stop)
	defer cancel()
	reply, err := pb.NewExchangeClient(p.Conn()).Stop(ctx, &pb.StopRequest{})
	if err == nil {
		err = reply.Error.Err()
	} else {
		err = pb.FromStatus(ctx, err, errs.Plugin, "stop plugin "+s.cfg.Name)
	}
	if err != nil {
		s.cfg.Log.Warn("plugin did not stop in good order", "err", err)
		return
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		s.cfg.Log.Warn("plugin has stopped, but its process has not ended and is killed", "after", s.cfg.Policy.Stop)
	}
}

// beat asks for signs of life until ctx ends, and returns an error if there are
// none.
func (s *Supervisor) beat(ctx context.Context, p Process) error {
	x := pb.NewExchangeClient(p.Conn())
	v := pulse{hang: s.cfg.Policy.Hang, slack: s.cfg.Policy.Ping, last: time.Now()}
	for {
		select {
		case <-time.After(s.cfg.Policy.Ping):
		case <-ctx.Done():
			return nil
		}
		req := new(pb.PingRequest)
		if s.cfg.LogLevel != nil {
			req.LogLevel = proto.Int32(int32(s.cfg.LogLevel()))
		}
		asked, cancel := context.WithDeadline(ctx, v.deadline())
		_, err := x.Ping(asked, req)
		cancel()
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			v.answered(now)
		case v.silent(now):
			return errs.Errorf(errs.Crashed, errs.Plugin, "ping plugin "+s.cfg.Name, "it hangs: no answer for %v", v.hang)
		}
	}
}

// set changes the status. Since follows the state.
func (s *Supervisor) set(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.status.State
	change(&s.status)
	if s.status.State != was {
		s.status.Since = time.Now()
	}
	s.crashes = s.rec.crashes
}
