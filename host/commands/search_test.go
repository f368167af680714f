package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
)

// What nobody has is missed by name when the time is over, whichever command asks for
// it, and the daemon says so also over HTTP.
func TestNotFound(t *testing.T) {
	s := serve(t, inProcess)
	const limit = "--timeout=300ms"
	for _, args := range []string{"cat", "get", "pin add", "dag export", "dag stat", "refs -r", "block get", "block stat", "ls"} {
		name := strings.TrimSuffix(args, " -r")
		s.fails(append([]string{limit}, append(strings.Fields(args), treeRoot)...),
			name+" "+treeRoot+": not found within 300ms, no peers connected: 'host swarm connect' connects one\n")
	}
	s.fails([]string{limit, "cat", treeRoot + "/a/b"}, "cat "+treeRoot+"/a/b: "+treeRoot+" not found within 300ms")
	s.fails([]string{limit, "pin", "add", treeRoot, helloCID}, "pin add: "+treeRoot+" not found within 300ms")

	res, err := http.Post(s.url+"/get?timeout=300ms&arg="+treeRoot, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var failed struct {
		Message, Type string
		Code          int
	}
	if err := json.NewDecoder(res.Body).Decode(&failed); err != nil || res.StatusCode != http.StatusInternalServerError ||
		!strings.HasPrefix(failed.Message, "get "+treeRoot+": not found within 300ms") || failed.Type != "error" {
		t.Errorf("over HTTP: %s, %+v, %v, want status 500 and an error as ipfs has them", res.Status, failed, err)
	}
	if err := timedOut(nil, "1s"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not %v", err, context.DeadlineExceeded)
	}

	// What has come before is told, too.
	other := serve(t, inProcess)
	other.ok("add", "-r", makeTree(t))
	other.ok("pin", "rm", treeRoot)
	other.ok("block", "rm", treeLeaf)
	s.ok("swarm", "connect", strings.Fields(other.ok("swarm", "addrs", "local", "--id"))[0])
	o := s.run("--timeout=1s", "refs", "-r", treeRoot)
	if o.code != ExitFailed || !strings.Contains(o.stderr, "not complete, ") || !strings.Contains(o.stderr, " blocks came, "+treeLeaf+" not found within 1s, 1 peer connected\n") {
		t.Errorf("a block of the tree is missing, want that it is named\n%v", o)
	}
}

// While a command looks for a block, others can see that, and it is gone when the
// command has ended.
func TestSearches(t *testing.T) {
	s := serve(t, inProcess)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/cat?arg="+treeRoot, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
		}
		ended <- err
	}()
	want := fmt.Sprintf("cat %s\n\tblocks received: 0\n\tlooking for %s: no peers connected, ", treeRoot, treeRoot)
	until(t, "the command is listed", func() bool { return strings.HasPrefix(s.ok("exchange", "searches"), want) })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the command ended with %v, want %v", err, context.Canceled)
	}
	until(t, "it is not listed any more", func() bool { return s.ok("exchange", "searches") == "" })
}

// Commands that go on for ever end when the daemon begins to stop, and say why.
func TestEndless(t *testing.T) {
	s := serve(t, inProcess)
	ended := make(chan string, 2)
	for _, path := range []string{"/peerstore/events", "/stats/bw?poll=true&interval=1h"} {
		res, err := http.Post(s.url+path, "", nil) // it has begun
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer res.Body.Close()
			io.Copy(io.Discard, res.Body)
			ended <- res.Trailer.Get("X-Stream-Error")
		}()
	}
	s.end()
	for range 2 {
		if got := <-ended; got != errStopping.Error() {
			t.Errorf("it ended with %q, want %q", got, errStopping)
		}
	}
}

// A terminal is an emitter whose output is in memory.
type terminal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *terminal) Emit(v any) error {
	if r, ok := v.(io.Reader); ok {
		_, err := io.Copy(t, r)
		return err
	}
	_, err := fmt.Fprintln(t, v)
	return err
}

func (t *terminal) CloseWithError(err error) error {
	_, err = fmt.Fprintf(t, "Error: %v\n", err)
	return err
}

func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

// took is what has been written since it was asked last, with an escape sequence as <>.
func (t *terminal) took() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.text.Reset()
	return strings.ReplaceAll(t.text.String(), clearLine, "<>")
}

func (t *terminal) Close() error                      { return t.CloseWithError(nil) }
func (t *terminal) SetLength(uint64)                  {}
func (t *terminal) SetEncodingType(cmds.EncodingType) {}
func (t *terminal) SetContentType(string)             {}
func (t *terminal) Stdout() io.Writer                 { return t }
func (t *terminal) Stderr() io.Writer                 { return t }
func (t *terminal) SetStatus(int)                     {}
func (t *terminal) Status() int                       { return 0 }

var _ cli.ResponseEmitter = (*terminal)(nil)

// A person is told after 5 s without a block what is looked for, in a line that is
// drawn again each second, gives way to whatever the command prints, holds bars back,
// and goes when blocks come.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const c = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
		out, width := new(terminal), new(atomic.Int64)
		width.Store(120)
		s := &screen{ResponseEmitter: out, width: func() int { return int(width.Load()) }}
		searches := Searches{Searches: []Search{
			{Command: "get", Arguments: []string{"another"}, Wanted: 1, Cid: "other", Seconds: 60},
			{Command: "get", Arguments: []string{c}, Wanted: 1, Cid: c, Seconds: 5},
		}}
		own := &searches.Searches[1]
		var mu sync.Mutex // of what the daemon says
		locked := func(f func()) {
			mu.Lock()
			defer mu.Unlock()
			f()
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		asked := 0
		go s.watch(ctx, "get", []string{c}, func(context.Context) (*Searches, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return &Searches{Searches: slices.Clone(searches.Searches), Peers: searches.Peers}, nil
		})
		after := func(d time.Duration, why, want string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := out.took(); got != want {
				t.Errorf("%s: got %q, want %q", why, got, want)
			}
		}
		after(4999*time.Millisecond, "nobody is told before 5 s", "")
		locked(func() {
			if asked != 0 {
				t.Errorf("the daemon was asked %d times, want 0", asked)
			}
		})
		after(time.Millisecond, "then the CID is", "<>looking for "+c+": no peers connected, 5s")
		locked(func() { own.Seconds, own.Wanted, searches.Peers = 6, 3, 2 })
		after(time.Second, "the line is drawn in place", "<>looking for "+c+" and 2 more: 2 peers connected, 6s")
		width.Store(60)
		after(time.Second, "a narrow terminal has the ends of the CID", "<>looking for bafkre…n5v6am and 2 more: 2 peers connected, 6s")
		fmt.Fprint(s.Stderr(), "\r10 B of 20 B")
		after(0, "a bar waits", "")
		fmt.Fprint(s.Stdout(), "some line\n")
		fmt.Fprint(s.Stderr(), "\r11 B of 20 B")
		after(0, "other output takes its place, and then bars do", "<>some line\n\r11 B of 20 B")
		width.Store(0)
		after(time.Second, "a terminal of unknown width has all", "<>looking for "+c+" and 2 more: 2 peers connected, 6s")
		s.Emit(strings.NewReader("bytes"))
		after(0, "a stream takes its place", "<>bytes")
		after(time.Second, "and it comes again", "<>looking for "+c+" and 2 more: 2 peers connected, 6s")
		locked(func() { own.Seconds = 0 })
		after(time.Second, "blocks come", "<>")
		locked(func() { own.Seconds = 5 })
		after(time.Second, "and stop", "<>looking for "+c+" and 2 more: 2 peers connected, 5s")
		s.CloseWithError(errors.New("wrong"))
		after(time.Second, "the command fails", "<>Error: wrong\n")
		locked(func() { searches.Searches, asked = searches.Searches[:1], 0 })
		after(time.Minute, "a command that asks nobody", "")
		locked(func() {
			if asked != 1 {
				t.Errorf("the daemon was asked %d times for a command that it does not know, want 1", asked)
			}
		})
	})
}

// The daemon has a moment to say that the time is over; who interrupts does not wait.
func TestOutlast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		longer, end := outlast(ctx, patience)
		defer end()
		start := time.Now()
		<-longer.Done()
		if got := time.Since(start); got != time.Second+patience || !errors.Is(longer.Err(), context.DeadlineExceeded) {
			t.Errorf("it ended after %v with %v, want %v later than the 1s", got, longer.Err(), patience)
		}

		ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
		longer, end = outlast(ctx, patience)
		defer end()
		cancel()
		synctest.Wait()
		if !errors.Is(longer.Err(), context.Canceled) {
			t.Errorf("after an interrupt: %v, want %v", longer.Err(), context.Canceled)
		}
	})
}

// until waits for something that happens elsewhere.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s until %s", what)
		}
	}
}
