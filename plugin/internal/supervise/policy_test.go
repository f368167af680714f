package supervise

import (
	"errors"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Back-off doubles to its limit, a minute of good life makes it small again, and
// too many crashes within the window, or in a row without serving, are the end.
func TestRecord(t *testing.T) {
	policy, err := Policy{}.fill()
	if err != nil {
		t.Fatal(err)
	}
	type step struct {
		after  time.Duration // since the step before
		serves bool          // it serves now, rather than crashes
		wait   time.Duration // until the next start; -1 for none
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"five at once", []step{{wait: 100 * ms}, {wait: 200 * ms}, {wait: 400 * ms}, {wait: 800 * ms}, {wait: -1}}},
		{"four, and the fifth after the first has left the window", []step{
			{serves: true}, {wait: 100 * ms}, {serves: true}, {10 * s, false, 200 * ms}, {serves: true}, {10 * s, false, 400 * ms},
			{serves: true}, {10 * s, false, 800 * ms}, {serves: true}, {30 * s, false, 1600 * ms}}},
		{"slow ones that never serve", []step{{30 * s, false, 100 * ms}, {30 * s, false, 200 * ms}, {30 * s, false, 400 * ms}, {30 * s, false, 800 * ms}, {30 * s, false, -1}}},
		{"slow ones that serve in between", []step{{30 * s, false, 100 * ms}, {30 * s, false, 200 * ms}, {30 * s, false, 400 * ms},
			{30 * s, true, 0}, {s, false, 800 * ms}, {30 * s, false, 1600 * ms}, {30 * s, false, 3200 * ms}, {30 * s, false, 6400 * ms}, {30 * s, true, 0}, {s, false, 10 * s}}},
		{"good life", []step{{wait: 100 * ms}, {wait: 200 * ms}, {wait: 400 * ms}, {wait: 800 * ms}, {serves: true}, {60 * s, false, 100 * ms}}},
		{"nearly good life", []step{{wait: 100 * ms}, {wait: 200 * ms}, {serves: true}, {59 * s, false, 400 * ms}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, now := record{policy: policy}, time.Unix(1, 0)
			for i, st := range tc.steps {
				now = now.Add(st.after)
				if st.serves {
					r.served(now)
					continue
				}
				wait, giveUp := r.crashed(now, 0.5)
				if want := st.wait < 0; giveUp != want || !giveUp && wait != st.wait {
					t.Fatalf("step %d: wait %v, give up %v, want %v; %+v", i, wait, giveUp, st.wait, r)
				}
			}
		})
	}
	low, _ := (&record{policy: policy}).crashed(time.Unix(1, 0), 0)
	high, _ := (&record{policy: policy}).crashed(time.Unix(1, 0), 1)
	if low != 75*ms || high != 125*ms {
		t.Errorf("by chance the wait is from %v to %v, want from 75ms to 125ms", low, high)
	}
}

const (
	ms = time.Millisecond
	s  = time.Second
)

// A plugin hangs when it has given no sign of life for long enough, but not when
// it is this process that has not run.
func TestPulse(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(100, 0).Add(d) }
	p := pulse{hang: 5 * s, slack: s, last: at(0)}
	if p.silent(at(4 * s)) {
		t.Error("it hangs after 4s of silence, want 5s")
	}
	p.answered(at(4 * s))
	if got := p.deadline(); got != at(9*s) {
		t.Errorf("deadline is %v, want %v", got, at(9*s))
	}
	if p.silent(at(20 * s)) {
		t.Error("it hangs, noticed 11s late, want another chance")
	}
	if !p.silent(at(25 * s)) {
		t.Error("it does not hang after another 5s of silence")
	}
}

// Everything that is wrong with a policy is said at once.
func TestPolicyChecked(t *testing.T) {
	_, err := Policy{Ping: -1, Crashes: -1}.fill()
	if !errors.Is(err, errs.Invalid) || err.Error() != "supervise policy: field Ping is -1ns, want 0, or at most half of Hang, 5s\nfield Crashes is -1, want 0 or more" {
		t.Errorf("error is %v, want both fields named", err)
	}
	if p, err := (Policy{Hang: s}).fill(); err != nil || p.Ping != 200*ms {
		t.Errorf("of Hang %v follows Ping %v, %v, want 200ms", p.Hang, p.Ping, err)
	}
}
