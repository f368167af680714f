package peerstore_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	leveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/host/peerstore"
)

// crashDir, in the environment, makes the test binary the process that is killed,
// and says where its datastore is.
const crashDir = "PEERSTORE_CRASH_DIR"

// writeUntilKilled adds one peer after the other, then changes some, and prints
// after each how many peers are whole and how many are not on disk as they are.
func writeUntilKilled(dir string) {
	die := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	disk, err := leveldb.NewDatastore(dir, nil)
	if err != nil {
		die(err)
	}
	s, err := peerstore.New(context.Background(), peerstore.Options{Datastore: disk, FlushPeers: 7, FlushEvery: 20 * time.Millisecond})
	if err != nil {
		die(err)
	}
	// Whoever is not whole, because the process was killed between two calls, is
	// written again; then come new ones, and then changes of those that are there.
	for n, there, fresh := 0, 0, 0; ; n++ {
		if fresh < 50 && whole(s, n) {
			there++
			continue
		}
		if fresh++; fresh > 50 {
			n = fresh % 50
			_ = s.Put(hashed(n), "again", strconv.Itoa(fresh))
		} else {
			s.AddAddrs(hashed(n), addrs(n, n+1), 1000*hour)
			_ = s.SetProtocols(hashed(n), "a", "b")
			_ = s.Put(hashed(n), "n", strconv.Itoa(n))
			there++
		}
		if _, err := fmt.Println(there, s.Stats().Dirty); err != nil {
			die(err)
		}
	}
}

// hashed is the id of the nth peer, cheaper than one with a key.
func hashed(n int) peer.ID {
	sum, err := multihash.Sum([]byte(strconv.Itoa(n)), multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return peer.ID(sum)
}

// whole reports whether everything is known of the nth peer that its writer said.
func whole(s *peerstore.Store, n int) bool {
	info, _ := s.Peer(hashed(n))
	return len(info.Addrs) == 2 && len(info.Recalled)+len(info.Protocols) == 2 && info.Metadata["n"] == strconv.Itoa(n)
}

// A process killed between flushes, or within one, loses at most what was dirty
// and leaves nothing that cannot be read (PS-27): two hundred times, on one
// leveldb, at random moments.
func TestKill(t *testing.T) {
	kills := 200
	if testing.Short() {
		kills = 20
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	var peers, lost, most int
	for kill := range kills {
		told, dirty := runAndKill(t, dir, time.Duration(random.Int64N(int64(30*time.Millisecond))))
		have := reopened(t, dir)
		if have < told-dirty || have < peers {
			t.Fatalf("seed %d, kill %d: got %d whole peers, want at least %d and %d: it had %d, at most %d of them dirty",
				seed, kill, have, told-dirty, peers, told, dirty)
		}
		lost, most = lost+max(0, told-have), max(most, told-have)
		peers = have
	}
	t.Logf("%d kills: %d peers, %d lost in all, %d at most", kills, peers, lost, most)
}

// runAndKill runs the writer, kills it some time after its first line, and
// returns what its last whole line says. Without a line it was killed too early
// to say.
func runAndKill(t *testing.T, dir string, after time.Duration) (told, dirty int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := make(chan error, 1)
	lines := bufio.NewReader(out)
	for first := true; ; first = false {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // what is cut off does not count
		}
		if first {
			time.AfterFunc(after, func() { killed <- cmd.Process.Kill() })
		}
		if _, err := fmt.Sscan(line, &told, &dirty); err != nil {
			t.Fatalf("line of the writer: got %q: %v", line, err)
		}
	}
	if told == 0 {
		_ = cmd.Process.Kill() // it ended by itself
		t.Fatalf("the writer: got no line, want one: %v: %s", cmd.Wait(), problems.String())
	}
	if err := <-killed; err != nil {
		t.Fatalf("kill: %v", err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("the writer: got %v, want it killed: %s", err, problems.String())
	}
	return told, dirty
}

// reopened counts the peers on disk that are whole, and checks that loading finds
// nothing to complain about.
func reopened(t *testing.T, dir string) int {
	t.Helper()
	disk, err := leveldb.NewDatastore(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	var log strings.Builder
	s, err := peerstore.New(context.Background(), peerstore.Options{Datastore: disk, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	count := 0
	for _, p := range s.Peers() {
		number, _ := s.Get(p, "n")
		if n, err := strconv.Atoi(fmt.Sprint(number)); err == nil && hashed(n) == p && whole(s, n) {
			count++
		}
	}
	if log.Len() > 0 {
		t.Errorf("loading complains: %s", log.String())
	}
	return count
}
