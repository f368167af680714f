package crossing

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/integration/internal/nodetest"
)

const (
	churnFile  = 3 << 20
	churnChunk = 32 << 10
	pause      = 100 * time.Millisecond // between files, so that a minute does not fill the disk
	// afterChurn is how long the transfers that are under way may take when the
	// nodes stay connected.
	afterChurn = 30 * time.Second
)

// churnFor is how long nodes are connected and disconnected.
func churnFor(t testing.TB) time.Duration {
	t.Helper()
	if v := os.Getenv("CODEXCHANGE_CHURN"); v != "" {
		d, err := time.ParseDuration(v)
		must(t, "parse CODEXCHANGE_CHURN", err)
		return d
	}
	if testing.Short() {
		return 10 * time.Second
	}
	return 15 * time.Second
}

// A link joins two nodes, by a connection that either dials.
type link struct{ ends [2]*nodetest.Node }

// flip connects the nodes, or disconnects them. Either may fail: the other side
// may not have noticed yet what was done last.
func (l link) flip(r *rand.Rand, connect bool) error {
	i := r.IntN(2)
	from, to := l.ends[i], l.ends[1-i]
	if connect {
		return from.Connect(to.Addr)
	}
	return from.Disconnect(to.ID)
}

// up reports whether both ends know of a connection.
func (l link) up() bool {
	a, b := l.ends[0], l.ends[1]
	return slices.Contains(a.Peers(), b.ID) && slices.Contains(b.Peers(), a.ID)
}

// Three nodes, one with Bitswap only, one with both exchanges, one with Codex
// only, are connected and disconnected at random while files move along each link
// in both directions, and from one end to the other. Every transfer that was begun
// completes with the right content, soon after the churn has ended, and no plugin
// needs a restart.
func TestChurn(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("CODEXCHANGE_SEED"); v != "" {
		var err error
		seed, err = strconv.ParseUint(v, 10, 64)
		must(t, "parse CODEXCHANGE_SEED", err)
	}
	t.Logf("CODEXCHANGE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))

	bitswap := start(t, "bitswap", host.Bitswap)
	both := start(t, "both", host.Bitswap, host.Blockexc)
	codex := start(t, "codex", host.Blockexc)
	links := []link{{[2]*nodetest.Node{both, bitswap}}, {[2]*nodetest.Node{both, codex}}}

	ended := make(chan struct{}) // the churn
	var moves errgroup.Group
	ways := [][]*nodetest.Node{
		{bitswap, both, codex},
		{codex, both, bitswap},
		{both, bitswap},
		{both, codex},
	}
	moved := make([]int, len(ways))
	for i, way := range ways {
		moves.Go(func() error {
			for {
				select {
				case <-ended:
					return nil
				case <-time.After(pause):
				}
				content, want := random(uint64(1000*(i+1)+moved[i]), churnFile)
				root, err := way[0].Add(content, churnChunk)
				if err != nil {
					return err
				}
				for _, n := range way[1:] {
					if sum, err := n.Fetch(root); err != nil || sum != want {
						return fmt.Errorf("%s fetches file %d from %s: SHA-256 is %q, %w; want %s", n.Label, moved[i], way[0].Label, sum, err, want)
					}
				}
				moved[i]++
			}
		})
	}

	up := make([]bool, len(links))
	flips, failed := 0, 0
	end := time.After(churnFor(t))
churn:
	for {
		select {
		case <-end:
			break churn
		case <-time.After(time.Duration(20+r.IntN(400)) * time.Millisecond):
		}
		i := r.IntN(len(links))
		up[i] = !up[i]
		if links[i].flip(r, up[i]) != nil {
			failed++
		}
		flips++
	}
	close(ended)
	settled := time.Now()
	for _, l := range links {
		eventually(t, "the nodes are connected again", 10*time.Second, func() bool { return l.flip(r, true) == nil && l.up() })
	}

	done := make(chan error, 1) // what waits ends with the nodes
	go func() { done <- moves.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
		t.Logf("%d files moved, each way %v; %d times connected or disconnected, %d of them in vain; all was there %v after the churn",
			sum(moved), moved, flips, failed, time.Since(settled).Round(time.Millisecond))
		for i, n := range moved {
			if n == 0 {
				t.Errorf("from %s to %s moved no file, want some", ways[i][0].Label, ways[i][len(ways[i])-1].Label)
			}
		}
	case <-time.After(afterChurn):
		t.Errorf("transfers are under way %v after the churn", afterChurn)
	}
	for _, n := range []*nodetest.Node{bitswap, both, codex} {
		s := n.Status()
		for _, x := range s.Exchanges {
			if x.Restarts != 0 {
				t.Errorf("%s: the plugin %s was restarted %d times, want never", n.Label, x.Name, x.Restarts)
			}
		}
		if t.Failed() {
			t.Logf("%s: %+v", n.Label, s)
		}
	}
}

func sum(list []int) (n int) {
	for _, v := range list {
		n += v
	}
	return n
}
