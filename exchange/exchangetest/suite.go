// Package exchangetest holds what any exchange must do, as tests that run over
// any exchange: [Run] takes a function that makes nodes, and plays the cases of
// the suite on them. The same cases are run over the Codex block exchange and
// over Bitswap, in this process and behind a process boundary, over libp2p hosts
// and over networks in memory; docs/conformance.md has the table.
//
// The cases use exchange.Interface of boxo and, by type assertion,
// SessionExchange, and whatever a boxo blockservice does. They do not know of
// leaves, peers or protocols. What an exchange of the project needs of the world
// is held in package porttest.
//
// The package also has the small fakes that tests of exchanges share: [Blocks],
// [Leaves] and [Router] for the ports, package memnet for the network, and
// [Mesh], an exchange without a protocol.
package exchangetest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/blockstore"
	boxo "github.com/ipfs/boxo/exchange"
	"github.com/libp2p/go-libp2p/core/peer"
)

// A Suite says how to make the nodes that are tested, and what is special about
// their exchange.
type Suite struct {
	// New makes n nodes that are not connected. It registers with t.Cleanup
	// whatever has to be closed, the exchanges too: a case may have closed an
	// exchange already.
	New func(t testing.TB, n int) Group

	// Window is how many CIDs one request may have; 0 for any number. Cases
	// that need more ask for one window after the other.
	Window int

	// Patience is how long a case may take; 0 for a minute. It is spent only by
	// a case that fails, or an exchange that is slow to see what it missed.
	Patience time.Duration

	// Attempts is how often a case may be played, each time with fresh nodes,
	// until it passes; 0 for once. It is for exchanges that are known to lose
	// something now and then, and the table says so.
	Attempts int

	// Bubble runs each case in a testing/synctest bubble, in virtual time. It
	// is for nodes that do no I/O.
	Bubble bool

	// Skip names cases that the exchange cannot pass, each with the reason. A
	// name that is no case fails the suite.
	Skip map[string]string
}

// A Group is some nodes of one network.
type Group struct {
	Nodes []Node
	// Connect connects two nodes and returns when both can use the connection,
	// or will soon.
	Connect func(i, j int) error
	// Disconnect closes every connection between two nodes.
	Disconnect func(i, j int) error
}

// A Node is one exchange and the store that it serves from.
type Node struct {
	Exchange   boxo.Interface
	Blockstore blockstore.Blockstore
	// ID is the peer id under which the exchanges of other nodes know this one,
	// for those that have WantlistForPeer(peer.ID) []cid.Cid. It may be empty.
	ID peer.ID
}

// Run plays every case, each as a subtest with fresh nodes. Two cases never run
// at the same time.
//
// Every wait in a case has a deadline. At the end of every case, want lists must
// become empty on exchanges that have GetWantlist() []cid.Cid, unless the case
// [WantListsEmpty] is skipped.
func Run(t *testing.T, s Suite) {
	t.Helper()
	for name := range s.Skip {
		if !slices.Contains(Cases(), name) {
			t.Errorf("skip of %q: there is no such case", name)
		}
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if reason := s.Skip[c.name]; reason != "" {
				t.Skip(reason)
			}
			if s.Bubble {
				synctest.Test(t, func(t *testing.T) { c.attempt(t, s) })
			} else {
				c.attempt(t, s)
			}
		})
	}
}

// WantListsEmpty is the case that every other case ends with.
const WantListsEmpty = "want lists become empty"

// Cases are the names of all cases, in order.
func Cases() []string {
	names := make([]string, len(cases))
	for i, c := range cases {
		names[i] = c.name
	}
	return names
}

// A testCase is one scene: what it is called, how many nodes play in it, and
// what happens.
type testCase struct {
	name  string
	nodes int
	run   func(*cast)
}

var cases = slices.Concat(fetching, asking, sharing, lasting, ending)

// attempt plays a case as often as the suite allows.
func (tc testCase) attempt(t testing.TB, s Suite) {
	t.Helper()
	for n := 1; n < s.Attempts; n++ {
		said, failed := try(t, func(t testing.TB) { tc.play(t, s) })
		if !failed {
			return
		}
		t.Logf("attempt %d of %d failed:\n%s", n, s.Attempts, said)
	}
	tc.play(t, s)
}

func (tc testCase) play(t testing.TB, s Suite) {
	c := newCast(t, s, tc)
	tc.run(c)
	if s.Skip[WantListsEmpty] == "" {
		c.wantNothing("at the end of the case")
	}
}
