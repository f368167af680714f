package errs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/codexchange/codexchange/exchange/errs"
)

// TestKinds: each kind has a text of its own, is found by errors.Is through
// wrapping, and is not another.
func TestKinds(t *testing.T) {
	texts := map[string]errs.Kind{}
	for i, k := range errs.Kinds() {
		if int(k) != i {
			t.Errorf("kind %d is at place %d", k, i)
		}
		text := k.Error()
		if text == "" || strings.HasPrefix(text, "error kind") {
			t.Errorf("kind %d has no text", k)
		}
		if other, taken := texts[text]; taken {
			t.Errorf("kinds %d and %d have the same text %q", other, k, text)
		}
		texts[text] = k

		err := fmt.Errorf("get: %w", errs.E(k, errs.Peer, "op", "subject", nil))
		for _, other := range errs.Kinds() {
			if got := errors.Is(err, other); got != (other == k) {
				t.Errorf("error of kind %q is %q: %v", k, other, got)
			}
		}
		if !errors.Is(k, k) {
			t.Errorf("kind %q is not itself", k)
		}
	}
	if got, want := errs.Kind(200).Error(), "error kind 200"; got != want {
		t.Errorf("a kind from a newer version is %q, want %q", got, want)
	}
}

// TestNumbers: kinds and faults keep their numbers, which are stored and sent.
func TestNumbers(t *testing.T) {
	for i, k := range []errs.Kind{
		errs.Other, errs.Invalid, errs.Closed, errs.NotFound, errs.Malformed, errs.TooLarge,
		errs.BadBlock, errs.BadProof, errs.Unreachable, errs.Storage, errs.Crashed,
	} {
		if int(k) != i {
			t.Errorf("%v is %d, want %d for ever", k, k, i)
		}
	}
	for i, f := range []errs.Fault{errs.Unknown, errs.Caller, errs.Ours, errs.Peer, errs.Plugin} {
		if int(f) != i {
			t.Errorf("%v is %d, want %d for ever", f, f, i)
		}
	}
}

func TestFaults(t *testing.T) {
	texts := map[string]bool{}
	for i, f := range errs.Faults() {
		if int(f) != i {
			t.Errorf("fault %d is at place %d", f, i)
		}
		if f.String() == "" || texts[f.String()] {
			t.Errorf("fault %d has the text %q, want one of its own", f, f)
		}
		texts[f.String()] = true
	}
	if got, want := errs.Fault(200).String(), "unknown"; got != want {
		t.Errorf("a fault from a newer version is %q, want %q", got, want)
	}
}

func TestText(t *testing.T) {
	cause := errors.New("cid is 300 bytes, want at most 100")
	for _, tc := range []struct {
		err  *errs.Error
		want string
	}{
		{errs.E(errs.Malformed, errs.Peer, "decode want list", "from 12D3", cause), "decode want list from 12D3: cid is 300 bytes, want at most 100"},
		{errs.E(errs.Malformed, errs.Peer, "decode want list", "from 12D3", nil), "decode want list from 12D3: malformed"},
		{errs.E(errs.NotFound, errs.Unknown, "get block", "zDx", nil), "get block zDx: not found"},
		{errs.E(errs.NotFound, errs.Unknown, "get block", "", nil), "get block: not found"},
		{errs.E(errs.Storage, errs.Ours, "get block", "zDx", io.ErrUnexpectedEOF), "get block zDx: store failed: unexpected EOF"},
		{errs.E(errs.Other, errs.Ours, "get block", "zDx", io.ErrUnexpectedEOF), "get block zDx: unexpected EOF"},
		{errs.E(errs.Closed, errs.Unknown, "", "", nil), "closed"},
		{errs.E(errs.Closed, errs.Unknown, "", "exchange", nil), "exchange: closed"},
		{errs.E(errs.Invalid, errs.Caller, "", "", cause), cause.Error()},
		{errs.Errorf(errs.Invalid, errs.Caller, "config", "limit is %d, want at least %d", 0, 1), "config: limit is 0, want at least 1"},
		{&errs.Error{}, "other error"},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("text is %q, want %q", got, tc.want)
		}
	}
}

// TestCause: an Error is its kind and its cause, and can be taken apart.
func TestCause(t *testing.T) {
	inner := errs.E(errs.Storage, errs.Ours, "read", "block", io.ErrUnexpectedEOF)
	outer := errs.Errorf(errs.Closed, errs.Plugin, "get", "from the store: %w", inner)
	for _, target := range []error{errs.Closed, errs.Storage, io.ErrUnexpectedEOF, inner, outer} {
		if !errors.Is(outer, target) {
			t.Errorf("%q is not %q", outer, target)
		}
	}
	for _, target := range []error{errs.NotFound, context.Canceled, errs.E(errs.Closed, errs.Plugin, "", "", nil)} {
		if errors.Is(outer, target) {
			t.Errorf("%q is %q", outer, target)
		}
	}
	var e *errs.Error
	if !errors.As(fmt.Errorf("again: %w", outer), &e) || e != outer || e.Fault != errs.Plugin || e.Kind != errs.Closed {
		t.Errorf("errors.As finds %#v, want the outer error", e)
	}
	if errors.Unwrap(errs.E(errs.Closed, errs.Unknown, "", "", nil)) != nil {
		t.Error("an error without a cause has one")
	}
}
