package commands

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	cidenc "github.com/ipfs/go-cidutil/cidenc"
	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host"
)

// A search is what one command asks peers for, from its newReader until it has
// returned. Its methods may be called from any goroutine.
type search struct {
	req  *cmds.Request
	ctx  context.Context // of req
	args []string        // of the command line or the URL, without those from stdin
	node *host.Node
	enc  cidenc.Encoder

	mu     sync.Mutex
	wanted map[cid.Cid]wanted // has been asked for, and has not come
	asked  uint64             // how many have been, ever
	came   uint64
	quiet  time.Time // since when none has come, while some are wanted
}

func newSearch(req *cmds.Request, args []string, n *host.Node, enc cidenc.Encoder) *search {
	return &search{req: req, ctx: req.Context, args: args, node: n, enc: enc, wanted: make(map[cid.Cid]wanted)}
}

// A wanted block is asked for by one request or more.
type wanted struct {
	turn     uint64 // in which it was asked for first
	requests int
}

// want counts a block that a request asks for.
func (s *search) want(c cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wanted) == 0 {
		s.quiet = time.Now()
	}
	w := s.wanted[c]
	if w.requests++; w.requests == 1 {
		s.asked++
		w.turn = s.asked
	}
	s.wanted[c] = w
}

// have counts a block that has come.
func (s *search) have(c cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.came++
	s.quiet = time.Now()
	s.forget(c)
}

// leave says that a request is over without this block. What is wanted when the time of
// the command is over stays, to be told.
func (s *search) leave(c cid.Cid) {
	if s.ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(c)
}

// forget takes one request for a block away. The lock is held.
func (s *search) forget(c cid.Cid) {
	w := s.wanted[c]
	if w.requests--; w.requests > 0 {
		s.wanted[c] = w
	} else {
		delete(s.wanted, c)
	}
}

// state is how the search goes.
func (s *search) state() Search {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Search{Command: strings.Join(s.req.Path, " "), Arguments: s.args, Wanted: len(s.wanted), Blocks: s.came}
	var first uint64
	for c, w := range s.wanted {
		if first == 0 || w.turn < first {
			first, out.Cid = w.turn, s.enc.Encode(c)
		}
	}
	if out.Wanted > 0 {
		out.Seconds = time.Since(s.quiet).Seconds()
	}
	return out
}

// A timeoutError is context.DeadlineExceeded in more words.
type timeoutError struct{ text string }

func (e *timeoutError) Error() string { return e.text }
func (e *timeoutError) Unwrap() error { return context.DeadlineExceeded }

// timedOut is why a command ended that had so much time. s is nil if it has asked no
// peers.
func timedOut(s *search, limit any) error {
	if s == nil {
		return &timeoutError{fmt.Sprintf("not done within --%s %v", cmds.TimeoutOpt, limit)}
	}
	state := s.state()
	return &timeoutError{state.unfinished(limit, len(s.node.Peers()))}
}

// unfinished says what the command lacked when its time was over.
func (s *Search) unfinished(limit any, peers int) string {
	text := s.Command
	if len(s.Arguments) == 1 {
		text += " " + s.Arguments[0]
	}
	text += ": "
	if s.Blocks > 0 {
		text += fmt.Sprintf("not complete, %s came, ", count(int(s.Blocks), "block", "blocks"))
	}
	switch {
	case s.Wanted == 0:
		return text + fmt.Sprintf("not done within %v", limit)
	case len(s.Arguments) != 1 || !strings.HasSuffix(s.Arguments[0], s.Cid):
		text += s.Cid + " "
	}
	text += fmt.Sprintf("not found within %v, %s connected", limit, countPeers(peers))
	if peers == 0 {
		text += ": 'host swarm connect' connects one"
	}
	return text
}

// countPeers is a number of peers, for people.
func countPeers(n int) string {
	if n == 0 {
		return "no peers"
	}
	return count(n, "peer", "peers")
}

// A searching exchange tells a search what is asked of the one below, and what comes.
type searching struct {
	boxo.Interface
	own fetches
}

func newSearching(x boxo.Interface, s *search) searching {
	return searching{x, fetches{x, s}}
}

// GetBlock implements exchange.Fetcher.
func (x searching) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return x.own.GetBlock(ctx, c)
}

// GetBlocks implements exchange.Fetcher.
func (x searching) GetBlocks(ctx context.Context, list []cid.Cid) (<-chan blocks.Block, error) {
	return x.own.GetBlocks(ctx, list)
}

// NewSession implements exchange.SessionExchange.
func (x searching) NewSession(ctx context.Context) boxo.Fetcher {
	if sessions, ok := x.Interface.(boxo.SessionExchange); ok {
		return fetches{sessions.NewSession(ctx), x.own.search}
	}
	return x.own
}

// fetches are those of an exchange, or of a session of it. A request for several blocks
// has a goroutine that ends with it.
type fetches struct {
	from   boxo.Fetcher
	search *search
}

func (f fetches) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	f.search.want(c)
	b, err := f.from.GetBlock(ctx, c)
	if err != nil {
		f.search.leave(c)
		return nil, err
	}
	f.search.have(c)
	return b, nil
}

func (f fetches) GetBlocks(ctx context.Context, list []cid.Cid) (<-chan blocks.Block, error) {
	in, err := f.from.GetBlocks(ctx, list)
	if err != nil {
		return nil, err
	}
	left := make(map[cid.Cid]struct{}, len(list)) // a block comes once, however often it is in the list
	for _, c := range list {
		if _, twice := left[c]; !twice {
			left[c] = struct{}{}
			f.search.want(c)
		}
	}
	out := make(chan blocks.Block)
	go func() {
		defer close(out)
		for b := range in { // ends when ctx does
			if _, ok := left[b.Cid()]; ok {
				delete(left, b.Cid())
				f.search.have(b.Cid())
			}
			select {
			case out <- b:
			case <-ctx.Done():
			}
		}
		for c := range left {
			f.search.leave(c)
		}
	}()
	return out, nil
}

// A Search is how a command that reads blocks gets along.
type Search struct {
	Command   string
	Arguments []string
	Blocks    uint64  // that peers have sent for it
	Wanted    int     // blocks that peers were asked for and have not sent
	Cid       string  `json:",omitempty"` // of these, the one that was asked for first
	Seconds   float64 `json:",omitempty"` // how long none has come
}

// Searches are those of all commands that run, and how many peers there are to ask.
type Searches struct {
	Searches []Search
	Peers    int
}

func exchangeSearchesCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Show what commands wait for.",
			ShortDescription: `
Prints each command that reads blocks, how many of them have come from peers, which
one it waits for, and how long nothing has come. A command at a terminal says that
itself after some seconds without a block.
`,
		},
		NoLocal: true,
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			n, err := env(environment).online()
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, &Searches{Searches: env(environment).searches.list(), Peers: len(n.Peers())})
		},
		Type: Searches{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *Searches) error {
				var b strings.Builder
				for _, s := range out.Searches {
					fmt.Fprintf(&b, "%s\n\tblocks received: %d\n", printable(strings.Join(append([]string{s.Command}, s.Arguments...), " ")), s.Blocks)
					if s.Wanted > 0 {
						fmt.Fprintf(&b, "\t%s\n", s.looking(out.Peers))
					}
				}
				_, err := io.WriteString(w, b.String())
				return err
			}),
		},
	}
}

// looking says what is waited for.
func (s *Search) looking(peers int) string {
	more := ""
	if s.Wanted > 1 {
		more = fmt.Sprintf(" and %d more", s.Wanted-1)
	}
	return fmt.Sprintf("looking for %s%s: %s connected, %v", s.Cid, more, countPeers(peers), time.Duration(s.Seconds)*time.Second)
}

// searches are those of the commands that run, the oldest first. Its methods may be
// called from any goroutine.
type searches struct {
	mu  sync.Mutex
	all []*search
}

// begin registers the search of a request, which lasts until end.
func (l *searches) begin(s *search) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

// by is the search of a request, nil if it has none.
func (l *searches) by(req *cmds.Request) *search {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.IndexFunc(l.all, func(s *search) bool { return s.req == req }); i >= 0 {
		return l.all[i]
	}
	return nil
}

// end forgets the search of a request, if it has one.
func (l *searches) end(req *cmds.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(s *search) bool { return s.req == req })
}

func (l *searches) list() []Search {
	l.mu.Lock()
	all := slices.Clone(l.all)
	l.mu.Unlock()
	out := make([]Search, 0, len(all))
	for _, s := range all {
		out = append(out, s.state())
	}
	return out
}
