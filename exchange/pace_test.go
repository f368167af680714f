package exchange

import (
	"testing"
	"time"
)

// TestPace shows how many streams blocks go over, by how fast they go and how long
// the way is; and that a pause is not taken for slowness.
func TestPace(t *testing.T) {
	for _, tc := range []struct {
		name    string
		rate    int // bytes/s
		latency time.Duration
		limit   int
		want    int
	}{
		{"nothing known", 0, 0, 8, 1},
		{"slow, in a house", 10_000_000, time.Millisecond, 8, 1},
		{"1 Gbit/s, in a house", 125_000_000, 500 * time.Microsecond, 8, 2},
		{"1 Gbit/s, in a country", 125_000_000, 4 * time.Millisecond, 8, 6},
		{"1 Gbit/s, in a country, to a peer that reads three", 125_000_000, 4 * time.Millisecond, 3, 3},
		{"1 Gbit/s, to a peer that reads one", 125_000_000, 100 * time.Millisecond, 1, 1},
		{"1 Gbit/s, round the world", 125_000_000, 200 * time.Millisecond, 8, 8},
		{"in one machine", 350_000_000, 100 * time.Microsecond, 8, 4},
		{"more than anybody reads", 350_000_000, time.Second, 100, maxStreams},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p pace
			now := time.Unix(1, 0)
			run := func() {
				for range 100 {
					p.carried(now, tc.rate/100)
					now = now.Add(10 * time.Millisecond)
				}
			}
			run()
			now = now.Add(time.Hour)
			run()
			if !p.due(false) || p.due(false) {
				t.Error("due is not once true after a second")
			}
			if got := p.streams(tc.latency, tc.limit); got != tc.want {
				t.Errorf("got %d streams at %.0f bytes/s, want %d", got, p.rate, tc.want)
			}
		})
	}
}

// TestFirstPace shows that streams are opened before anything is measured if more
// waits to be sent, and the way is long.
func TestFirstPace(t *testing.T) {
	var p pace
	if p.due(false) {
		t.Error("due is true with nothing measured and nothing waiting")
	}
	if !p.due(true) || p.due(true) {
		t.Error("due is not once true when a message waits for the first")
	}
	for latency, want := range map[time.Duration]int{0: 1, time.Millisecond: 1, 20 * time.Millisecond: 4, 100 * time.Millisecond: 8} {
		if got := p.streams(latency, 8); got != want {
			t.Errorf("latency %v: got %d streams, want %d", latency, got, want)
		}
	}
}
