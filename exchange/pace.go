package exchange

import (
	"sync"
	"time"
)

const (
	// streamShare is how much of what is on its way is left to one stream, bytes. A
	// stream of yamux begins with a window of 256 KiB and is widened as it is used
	// up, a round trip each time; several together fill a long way sooner, and fill
	// it whole.
	streamShare = 128 << 10
	// streamRate is how much goes through one stream, bytes/s, before another is of
	// use on the shortest way too: at either end one goroutine copies what passes, and
	// at one of them hashes it, and several share that among cores.
	streamRate = 100_000_000
	// paceSpan is over how long the pace is measured, and looked at.
	paceSpan = 50 * time.Millisecond
	// paceGap is the longest time without a message that counts as one stretch. A
	// message of 1 MiB takes four round trips on a stream that is new.
	paceGap = time.Second
	// firstPace is what is taken for the rate until it has been measured, bytes/s, if a
	// second message waits while the first is on its way.
	firstPace = 20_000_000
)

// A pace is how fast blocks go to one peer. Its methods may be called from any
// goroutine; the zero value is ready.
type pace struct {
	mu    sync.Mutex
	rate  float64   // bytes/s, running mean; 0 if unknown
	bytes int       // carried since
	since time.Time // the stretch that is being measured began
	last  time.Time // message
	fresh bool      // rate has changed since due was asked
}

// carried says that a message of so many bytes of blocks has been written.
func (p *pace) carried(now time.Time, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.IsZero() || now.Sub(p.last) > paceGap {
		p.since, p.bytes = now, 0
	} else {
		p.bytes += bytes
	}
	p.last = now
	if t := now.Sub(p.since); t >= paceSpan {
		r := float64(p.bytes) / t.Seconds()
		if p.rate == 0 {
			p.rate = r
		} else {
			p.rate += (r - p.rate) / 2
		}
		p.since, p.bytes, p.fresh = now, 0, true
	}
}

// due reports whether there is a new measurement, or, if there was none and a
// message waits for another, a guess instead of the first.
func (p *pace) due(waits bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 && waits {
		p.rate, p.fresh = firstPace, true
	}
	was := p.fresh
	p.fresh = false
	return was
}

// streams is how many streams it takes to keep up this pace, if a round trip takes
// so long, from 1 to limit. Nothing is known of a latency of 0.
func (p *pace) streams(latency time.Duration, limit int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 1 + int(p.rate*latency.Seconds()/streamShare+p.rate/streamRate)
	return max(1, min(n, limit, maxStreams))
}
