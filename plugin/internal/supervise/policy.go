package supervise

import (
	"errors"
	"fmt"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Policy is how patient a host is with its plugin. The zero value is useful: each
// field that is 0 has its default.
type Policy struct {
	// Ping is how often the plugin is asked for a sign of life, at most half of
	// Hang; 0 is 1 s, or a fifth of Hang if that is less.
	Ping time.Duration
	// Hang is how long a plugin may give none before it is killed, which counts as
	// a crash; 0 is 5 s.
	Hang time.Duration
	// Backoff is how long after a crash the plugin is started again; 0 is 100 ms.
	// It doubles with each crash, up to MaxBackoff; 0 is 10 s. A quarter more or
	// less is left to chance.
	Backoff, MaxBackoff time.Duration
	// Good is how long a plugin has to serve for its earlier crashes to be
	// forgotten; 0 is 1 minute.
	Good time.Duration
	// Crashes is how many crashes within Window make the host give up; 0 are 5 and
	// 1 minute. So do as many in a row, however slow, without serving in between.
	Crashes int
	Window  time.Duration
	// Stop is how long a plugin has to end in good order before it is killed; 0 is
	// 5 s.
	Stop time.Duration
}

// Check reports everything that is wrong with a policy.
func (p Policy) Check() error {
	_, err := p.fill()
	return err
}

// fill puts defaults in place of zeros.
func (p Policy) fill() (Policy, error) {
	var bad []error
	for _, f := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"Hang", &p.Hang, 5 * time.Second},
		{"Backoff", &p.Backoff, 100 * time.Millisecond},
		{"MaxBackoff", &p.MaxBackoff, 10 * time.Second},
		{"Good", &p.Good, time.Minute},
		{"Window", &p.Window, time.Minute},
		{"Stop", &p.Stop, 5 * time.Second},
	} {
		if *f.value < 0 {
			bad = append(bad, fmt.Errorf("field %s is %v, want 0 or more", f.name, *f.value))
		}
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	switch {
	case p.Ping == 0:
		p.Ping = min(time.Second, p.Hang/5)
	case p.Ping < 0 || p.Ping > p.Hang/2:
		bad = append(bad, fmt.Errorf("field Ping is %v, want 0, or at most half of Hang, %v", p.Ping, p.Hang))
	}
	if p.Crashes < 0 {
		bad = append(bad, fmt.Errorf("field Crashes is %d, want 0 or more", p.Crashes))
	}
	if p.Crashes == 0 {
		p.Crashes = 5
	}
	if len(bad) > 0 {
		return p, errs.E(errs.Invalid, errs.Caller, "supervise policy", "", errors.Join(bad...))
	}
	return p, nil
}

// A record is what a plugin has done so far, and decides what comes of it. It
// reads no clock and has no lock.
type record struct {
	policy  Policy
	crashes []time.Time   // within the window
	row     int           // crashes in a row before the plugin served
	wait    time.Duration // before the last start; 0 if nothing has crashed lately
	up      time.Time     // since when it serves; zero if it does not
}

// served notes that the plugin serves.
func (r *record) served(now time.Time) { r.up = now }

// crashed notes a crash, and says how long to wait before the next start, or that
// there is to be none. The chance is from 0 to 1.
func (r *record) crashed(now time.Time, chance float64) (wait time.Duration, giveUp bool) {
	switch {
	case r.up.IsZero():
		r.row++
	case now.Sub(r.up) >= r.policy.Good:
		r.forget()
	default:
		r.row = 0
	}
	r.up = time.Time{}
	r.crashes = append(r.crashes[:0:0], r.within(now)...)
	r.crashes = append(r.crashes, now)
	if len(r.crashes) >= r.policy.Crashes || r.row >= r.policy.Crashes {
		return 0, true
	}
	if r.wait == 0 {
		r.wait = r.policy.Backoff
	} else {
		r.wait *= 2
	}
	r.wait = min(r.wait, r.policy.MaxBackoff)
	return r.wait + time.Duration((chance-0.5)/2*float64(r.wait)), false
}

// within are the crashes that the window still shows.
func (r *record) within(now time.Time) []time.Time {
	for i, t := range r.crashes {
		if now.Sub(t) < r.policy.Window {
			return r.crashes[i:]
		}
	}
	return nil
}

// forget begins anew.
func (r *record) forget() { *r = record{policy: r.policy} }

// A pulse decides whether a plugin hangs.
type pulse struct {
	hang  time.Duration
	slack time.Duration
	last  time.Time // sign of life
}

// answered notes a sign of life.
func (p *pulse) answered(now time.Time) { p.last = now }

// deadline is when the plugin has to have answered.
func (p *pulse) deadline() time.Time { return p.last.Add(p.hang) }

// silent notes that a question was not answered, and reports whether the plugin
// hangs. If that is noticed much too late, it is this process that has not run,
// and the plugin gets another chance.
func (p *pulse) silent(now time.Time) bool {
	switch d := now.Sub(p.last); {
	case d < p.hang:
		return false
	case d > p.hang+p.slack:
		p.last = now
		return false
	}
	return true
}
