package exchangetest

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// An attempt is a test that may fail without failing the test it is part of. It
// has its own cleanup, which runs when it ends.
type attempt struct {
	testing.TB

	mu      sync.Mutex
	said    []string
	failed  bool
	cleanup []func()
}

// try runs f as an attempt, waits for its end, and returns what it said and
// whether it failed.
func try(t testing.TB, f func(testing.TB)) (said string, failed bool) {
	a := &attempt{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer a.cleanUp()
		f(a)
	}()
	<-done
	return strings.Join(a.said, "\n"), a.failed
}

// cleanUp calls what Cleanup was given, last first, also what is added meanwhile.
func (a *attempt) cleanUp() {
	for {
		a.mu.Lock()
		list := a.cleanup
		a.cleanup = nil
		a.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, f := range slices.Backward(list) {
			f()
		}
	}
}

func (a *attempt) say(fails bool, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = a.failed || fails
	a.said = append(a.said, strings.TrimSuffix(text, "\n"))
}

func (a *attempt) Cleanup(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cleanup = append(a.cleanup, f)
}

func (a *attempt) Failed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

func (a *attempt) Log(args ...any)                 { a.say(false, fmt.Sprintln(args...)) }
func (a *attempt) Logf(format string, args ...any) { a.say(false, fmt.Sprintf(format, args...)) }

func (a *attempt) Error(args ...any)                 { a.say(true, fmt.Sprintln(args...)) }
func (a *attempt) Errorf(format string, args ...any) { a.say(true, fmt.Sprintf(format, args...)) }

func (a *attempt) Fatal(args ...any) {
	a.Error(args...)
	runtime.Goexit()
}

func (a *attempt) Fatalf(format string, args ...any) {
	a.Errorf(format, args...)
	runtime.Goexit()
}

func (a *attempt) Fail() { a.say(true, "failed") }

func (a *attempt) FailNow() {
	a.Fail()
	runtime.Goexit()
}
