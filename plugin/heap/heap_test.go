package heap

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"
)

const mib = 1 << 20

// TestPercent shows what a heap may grow by, from nothing to more than there is.
func TestPercent(t *testing.T) {
	for _, c := range []struct {
		policy Policy
		live   uint64
		want   int
	}{
		{Policy{64 * mib, 100}, 0, maxPercent},
		{Policy{64 * mib, 100}, 4 * mib, maxPercent},
		{Policy{64 * mib, 100}, 16 * mib, 400},
		{Policy{64 * mib, 100}, 32 * mib, 200},
		{Policy{64 * mib, 100}, 64 * mib, 100},
		{Policy{64 * mib, 100}, 1 << 40, 100},
		{Policy{64 * mib, 50}, 64 * mib, 100},
		{Policy{64 * mib, 50}, 256 * mib, 50},
		{Policy{0, 100}, mib, 100},
		{Policy{-1, 100}, mib, 100},
		{Policy{64 * mib, 800}, mib, 800},
		{Policy{math.MaxInt64 / 100, 100}, 1, maxPercent},
	} {
		if got := c.policy.percent(c.live); got != c.want {
			t.Errorf("%+v with %d bytes alive: %d %%, want %d", c.policy, c.live, got, c.want)
		}
	}
}

// TestFollow shows that the heap has its room when little is kept, no more than its
// percentage when much is, and room again afterwards.
func TestFollow(t *testing.T) {
	t.Setenv("GOGC", "") // the test may run with it
	before := debug.SetGCPercent(100)
	defer func() {
		following.Store(nil)
		debug.SetGCPercent(before)
	}()
	Follow(Policy{Room: 32 * mib, Percent: 60})
	is := func(what string, ok func(int) bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(percentage(t)); runtime.GC() {
			if time.Now().After(end) {
				t.Fatalf("%s: %d %% with %d bytes alive", what, percentage(t), live())
			}
		}
	}
	is("at first", func(p int) bool { return p == maxPercent })
	kept := make([]byte, 128*mib)
	is("much is kept", func(p int) bool { return p == 60 })
	runtime.KeepAlive(kept)
	kept = nil
	is("it is not any more", func(p int) bool { return p > 200 })

	following.Store(nil)
	debug.SetGCPercent(100)
	for range 3 {
		runtime.GC()
	}
	if p := percentage(t); p != 100 {
		t.Errorf("a policy that is no longer in force has set %d %%", p)
	}
}

// TestEnvironmentHasItsSay shows that GOGC holds.
func TestEnvironmentHasItsSay(t *testing.T) {
	before := percentage(t)
	t.Setenv("GOGC", "77")
	Follow(Policy{Room: 64 * mib, Percent: 60})
	if following.Load() != nil || percentage(t) != before {
		t.Errorf("with GOGC the percentage was changed from %d to %d", before, percentage(t))
	}
}

func percentage(t *testing.T) int { return int(metric(t, "/gc/gogc:percent")) }

func metric(t *testing.T, name string) uint64 {
	t.Helper()
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		t.Fatalf("the runtime does not tell %s", name)
	}
	return s[0].Value.Uint64()
}

// resident is how many bytes of memory the process has, 0 where nobody says.
func resident(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	var size, pages uint64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatalf("read /proc/self/statm: %v", err)
	}
	return pages * uint64(os.Getpagesize())
}

// TestCount shows that the heap may grow by more while something is counted, for
// which no pages are taken. It runs in a process of its own, whose heap has not been
// larger.
func TestCount(t *testing.T) {
	const alone = "HEAP_TEST_ALONE"
	if os.Getenv(alone) == "" {
		c := exec.Command(os.Args[0], "-test.run=^TestCount$", "-test.v")
		c.Env = append(os.Environ(), alone+"=1")
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestCount") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	const bytes = 256 * mib
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	runtime.GC()
	goal, taken := metric(t, "/gc/heap/goal:bytes"), resident(t)
	release := Count(bytes)
	runtime.GC()
	if grew := metric(t, "/gc/heap/goal:bytes") - goal; grew < 2*bytes-8*mib {
		t.Errorf("with %d bytes counted the heap may grow by %d more", bytes, grew)
	}
	if now := resident(t); now > taken+bytes/4 {
		t.Errorf("%d bytes are resident, %d were before %d were counted", now, taken, bytes)
	}
	release()
	for end := time.Now().Add(time.Minute); metric(t, "/gc/heap/goal:bytes") > goal+16*mib; runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("what was released is still counted")
		}
	}
}
