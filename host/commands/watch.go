package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	"golang.org/x/term"
)

const (
	// quietFor is how long no block has come before a person is told.
	quietFor = 5 * time.Second
	// retold is how often that is looked at then.
	retold = time.Second
)

// A patient executor runs commands by a daemon. A person at a terminal is told what a
// command waits for, and at the end of --timeout the daemon may say itself what was
// missing.
type patient struct {
	cmds.Executor
	api    string // what the daemon is called
	stderr *os.File
	ask    func(context.Context) (*Searches, error)
}

// Execute implements cmds.Executor.
func (p *patient) Execute(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
	if out, ok := re.(cli.ResponseEmitter); ok && isTerminal(p.stderr) {
		s := &screen{ResponseEmitter: out, width: func() int {
			width, _, err := term.GetSize(int(p.stderr.Fd()))
			if err != nil {
				return 0
			}
			return width
		}}
		re = s
		// Both copied here: while the command runs, they are its own.
		command, args := strings.Join(req.Path, " "), slices.Clone(req.Arguments)
		ctx, cancel := context.WithCancel(req.Context)
		var watching sync.WaitGroup
		defer watching.Wait()
		defer cancel()
		watching.Go(func() {
			s.watch(ctx, command, args, p.ask)
		})
	}
	ctx := req.Context
	var cancel context.CancelFunc
	req.Context, cancel = outlast(ctx, patience)
	defer cancel()
	err := p.Executor.Execute(req, re, environment)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("'%s': not done within --%s %v, and the daemon at %s does not answer: %w", strings.Join(req.Path, " "),
			cmds.TimeoutOpt, req.Options[cmds.TimeoutOpt], p.api, err)
	}
	return err
}

// outlast is ctx with a later deadline, if it has one.
func outlast(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	longer, cancel := context.WithDeadline(context.WithoutCancel(ctx), end.Add(by))
	stop := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})
	return longer, func() {
		stop()
		cancel()
	}
}

// askSearches asks a daemon for what its commands wait for.
func askSearches(client *http.Client, url string, header http.Header) func(context.Context) (*Searches, error) {
	return func(ctx context.Context) (*Searches, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+APIPath+"/exchange/searches", nil)
		if err != nil {
			return nil, err
		}
		req.Header, req.Close = header, true
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return nil, errors.New(res.Status)
		}
		out := new(Searches)
		return out, json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(out)
	}
}

// A screen is the emitter of a command that prints on a terminal. Below what the command
// prints it shows a line of its own, in place of any bar. Its methods may be called
// from any goroutine.
type screen struct {
	cli.ResponseEmitter
	width func() int // of the terminal, columns; 0: not known

	mu     sync.Mutex
	shown  bool // the line is there
	closed bool // nothing is drawn any more
}

// watch shows what the command waits for, until ctx ends. It ends sooner if the daemon
// does not know the command, which then asks nobody, or cannot be asked.
func (s *screen) watch(ctx context.Context, command string, args []string, ask func(context.Context) (*Searches, error)) {
	defer s.clear()
	for wait := quietFor; ; wait = retold {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		all, err := ask(ctx)
		if err != nil {
			return
		}
		i := slices.IndexFunc(all.Searches, func(x Search) bool { return x.Command == command && slices.Equal(x.Arguments, args) })
		switch {
		case i < 0:
			return
		case all.Searches[i].Wanted > 0 && all.Searches[i].Seconds >= quietFor.Seconds():
			s.show(&all.Searches[i], all.Peers)
		default:
			s.clear()
		}
	}
}

// show draws the line, on which a long CID gives way to the rest.
func (s *screen) show(x *Search, peers int) {
	line := x.looking(peers)
	if over := len(line) + 1 - s.width(); over > 0 && over < len(line) {
		const dots = "…"
		if keep := len(x.Cid) - over - 1; keep >= 8 {
			short := *x
			short.Cid = x.Cid[:keep/2] + dots + x.Cid[len(x.Cid)-(keep-keep/2):]
			line = short.looking(peers)
		} else {
			line = line[:len(line)-over]
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.shown = true
	fmt.Fprint(s.ResponseEmitter.Stderr(), clearLine+line)
}

func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
}

// wipe is clear. The lock is held.
func (s *screen) wipe() {
	if s.shown {
		fmt.Fprint(s.ResponseEmitter.Stderr(), clearLine)
		s.shown = false
	}
}

// Type implements what go-ipfs-cmds wants of the emitter of a command line.
func (*screen) Type() cmds.PostRunType { return cmds.CLI }

// Emit implements cmds.ResponseEmitter.
func (s *screen) Emit(v any) error {
	if r, ok := v.(io.Reader); ok {
		v = clearing{r, s}
	}
	s.clear()
	return s.ResponseEmitter.Emit(v)
}

// CloseWithError implements cmds.ResponseEmitter.
func (s *screen) CloseWithError(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	s.closed = true
	return s.ResponseEmitter.CloseWithError(err)
}

// Close implements cmds.ResponseEmitter.
func (s *screen) Close() error { return s.CloseWithError(nil) }

// Stdout implements cli.ResponseEmitter.
func (s *screen) Stdout() io.Writer { return paper{s.ResponseEmitter.Stdout(), s} }

// Stderr implements cli.ResponseEmitter.
func (s *screen) Stderr() io.Writer { return paper{s.ResponseEmitter.Stderr(), s} }

// clearing clears the line before what it has read can be printed.
type clearing struct {
	io.Reader
	s *screen
}

func (c clearing) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if n > 0 {
		c.s.clear()
	}
	return n, err
}

// paper is where a command prints. Bars, which begin with a carriage return, wait while
// the line is shown; whatever else is printed takes its place.
type paper struct {
	io.Writer
	s *screen
}

func (w paper) Write(p []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.shown && bytes.HasPrefix(p, []byte("\r")) {
		return len(p), nil
	}
	w.s.wipe()
	return w.Writer.Write(p)
}
