package refpeer

import (
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Counters is what a Peer has seen and done, over all remotes.
type Counters struct {
	Messages   int // received, of which
	Unreadable int // were refused as a whole

	WantHaves  int // entries received
	WantBlocks int
	Cancels    int
	FullLists  int // want lists with the full flag
	AskedToSay int // entries with sendDontHave
	Haves      int // presences received
	DontHaves  int
	Blocks     int // deliveries received, in messages that could be read, of which
	Accepted   int // were stored
	Refused    int // were asked for and bad
	Spurious   int // were not asked for
	NotPending int // were asked for and no longer wanted

	MaxEntries   int // in one received want list
	MaxPresences int // in one received message
	MaxBlocks    int // in one received message
	MaxFrame     int // bytes of a received message, without its length

	StreamsAccepted int // opened by remotes
	StreamsOpened   int // by us
	FramesSent      int
	BlocksSent      int
	Disconnects     int // remotes that owed blocks for too long
}

// Counters returns the counts up to now.
func (p *Peer) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counters
}

// Kind says what a remote did wrong.
type Kind string

const (
	// Crash would have aborted the reference's process.
	Crash Kind = "crash"
	// Unreadable cost the sender the whole message and its stream.
	Unreadable Kind = "unreadable"
	// BadBlock is a block that does not hash to its CID, which costs message and
	// stream as well, or whose CID is not the one that was asked for.
	BadBlock Kind = "bad block"
	// BadProof is a leaf whose proof is missing, is of something else, or (unless
	// the peer is Lenient) does not lead to the root.
	BadProof Kind = "bad proof"
	// Spurious is a block that was not requested, or delivered twice.
	Spurious Kind = "spurious block"
	// UnaskedDontHave is a DONT_HAVE without the flag that asks for it. The
	// reference takes it for a HAVE.
	UnaskedDontHave Kind = "unasked don't have"
	// TooManyStreams is the 101st stream that a remote has open to us.
	TooManyStreams Kind = "too many streams"
)

// A Violation is something that a remote should not have done.
type Violation struct {
	From peer.ID
	Kind Kind
	Text string // what, and what was wanted instead
}

func (v Violation) String() string { return fmt.Sprintf("%s from %s: %s", v.Kind, v.From, v.Text) }

// Violations returns all violations up to now, in order. It is empty if every
// remote behaved.
func (p *Peer) Violations() []Violation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Violation(nil), p.violations...)
}

func (p *Peer) violate(from peer.ID, k Kind, format string, args ...any) {
	p.violations = append(p.violations, Violation{From: from, Kind: k, Text: fmt.Sprintf(format, args...)})
	p.announce()
}

// Received is one message from a remote.
type Received struct {
	From    peer.ID
	At      time.Time
	Body    []byte  // without the length in front; not to be changed
	Message Message // as far as it was read, if Err is not nil
	Err     error   // why it was refused

	taken bool // by Expect
}

// Received returns the messages that came in, in order, as far back as
// RecordBytes goes.
func (p *Peer) Received() []Received {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Received, len(p.log))
	for i, rec := range p.log {
		out[i] = *rec
	}
	return out
}

// keep records a message and counts what is in it.
func (p *Peer) keep(from peer.ID, body []byte, m Message, err error) {
	p.log = append(p.log, &Received{From: from, At: time.Now(), Body: body, Message: m, Err: err})
	p.logBytes += len(body)
	for p.logBytes > p.cfg.record && len(p.log) > 1 {
		p.logBytes -= len(p.log[0].Body)
		p.log[0] = nil
		p.log = p.log[1:]
	}
	p.announce()

	c := &p.counters
	c.Messages++
	c.MaxFrame = max(c.MaxFrame, len(body))
	if err != nil {
		c.Unreadable++
		return
	}
	c.MaxEntries = max(c.MaxEntries, len(m.WantList.Entries))
	c.MaxPresences = max(c.MaxPresences, len(m.Presences))
	c.MaxBlocks = max(c.MaxBlocks, len(m.Deliveries))
	c.Blocks += len(m.Deliveries)
	if m.WantList.Full {
		c.FullLists++
	}
	for _, e := range m.WantList.Entries {
		switch {
		case e.Cancel:
			c.Cancels++
		case e.Type == WantHave:
			c.WantHaves++
		default:
			c.WantBlocks++
		}
		if e.SendDontHave {
			c.AskedToSay++
		}
	}
	for _, pr := range m.Presences {
		if pr.Type == DontHave {
			c.DontHaves++
		} else {
			c.Haves++
		}
	}
}

// report is the state of the peer, for a test that has failed.
func (p *Peer) report() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "refpeer %s: %+v\n", p.host.ID(), p.counters)
	for _, v := range p.violations {
		fmt.Fprintf(&b, "  violation: %s\n", v)
	}
	for _, r := range p.remotes {
		fmt.Fprintf(&b, "  remote %s: wants %d, has %d, owes %d\n", r.id, len(r.wanted), len(r.has), len(r.outstanding))
	}
	fmt.Fprintf(&b, "  pending here: %d\n", len(p.wants))
	for _, rec := range p.log[max(0, len(p.log)-20):] {
		fmt.Fprintf(&b, "  received: %s\n", rec)
	}
	return b.String()
}

func (r *Received) String() string {
	if r.Err != nil {
		return fmt.Sprintf("%d bytes from %s: %v", len(r.Body), r.From, r.Err)
	}
	return fmt.Sprintf("%s from %s", r.Message, r.From)
}
