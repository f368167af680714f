package pb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
)

// across sends an error as a message does.
func across(t *testing.T, err error) error {
	t.Helper()
	b, merr := proto.Marshal(FromError(err))
	if merr != nil {
		t.Fatal(merr)
	}
	var m Error
	if merr := proto.Unmarshal(b, &m); merr != nil {
		t.Fatal(merr)
	}
	return m.Err()
}

// errorCases are errors of each sort, alone and inside others.
func errorCases() []error {
	c := cid.MustParse("bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e")
	list := []error{
		ipld.ErrNotFound{Cid: c},
		ipld.ErrNotFound{},
		&channel.ResetError{Code: channel.CodeBlockMissing, Remote: true},
		&channel.ResetError{Code: 7, Err: io.ErrUnexpectedEOF},
		errors.New("nothing that anybody knows"),
		fmt.Errorf("fetch %s: %w", c, errs.E(errs.Unreachable, errs.Peer, "dial", "12D3Koo", os.ErrDeadlineExceeded)),
		errors.Join(errs.Errorf(errs.TooLarge, errs.Plugin, "read frame", "9 bytes, want 4"), context.Canceled),
		fmt.Errorf("%w and %w", ipld.ErrNotFound{Cid: c}, net.ErrClosed),
		fmt.Errorf("bare kind: %w", errs.BadProof),
	}
	for _, s := range sentinels {
		list = append(list, s.err, fmt.Errorf("doing it: %w", s.err))
	}
	for _, k := range errs.Kinds() {
		list = append(list, k)
		for _, f := range errs.Faults() {
			list = append(list, errs.E(k, f, "do", "this", nil), errs.E(k, f, "do", "", io.EOF))
		}
	}
	return list
}

// An error answers errors.Is and errors.As the same on both sides, and reads the
// same.
func TestErrorsCross(t *testing.T) {
	targets := []error{ipld.ErrNotFound{}}
	for _, s := range sentinels {
		targets = append(targets, s.err)
	}
	for _, k := range errs.Kinds() {
		targets = append(targets, k)
	}
	for _, want := range errorCases() {
		for way, got := range map[string]error{
			"message": across(t, want),
			"status":  FromStatus(t.Context(), Status(want), errs.Ours, "call"),
		} {
			if got == nil || got.Error() != want.Error() {
				t.Errorf("%s: got %v, want %v", way, got, want)
				continue
			}
			for _, target := range targets {
				if g, w := errors.Is(got, target), errors.Is(want, target); g != w {
					t.Errorf("%s: errors.Is(%q, %q): got %v, want %v", way, got, target, g, w)
				}
			}
			var ge, we *errs.Error
			if g, w := errors.As(got, &ge), errors.As(want, &we); g != w {
				t.Errorf("%s: errors.As(%q, *errs.Error): got %v, want %v", way, got, g, w)
			} else if g && (ge.Kind != we.Kind || ge.Fault != we.Fault || ge.Op != we.Op || ge.Subject != we.Subject) {
				t.Errorf("%s: got %+v, want %+v", way, *ge, *we)
			}
			var gr, wr *channel.ResetError
			if g, w := errors.As(got, &gr), errors.As(want, &wr); g != w || g && (gr.Code != wr.Code || gr.Remote != wr.Remote) {
				t.Errorf("%s: got reset %+v, want %+v", way, gr, wr)
			}
			var gn, wn ipld.ErrNotFound
			if g, w := errors.As(got, &gn), errors.As(want, &wn); g != w || g && gn.Cid != wn.Cid {
				t.Errorf("%s: got not found %v, want %v", way, gn.Cid, wn.Cid)
			}
		}
	}
	var none *Error
	if FromError(nil) != nil || none.Err() != nil || Status(nil) != nil {
		t.Error("no error becomes one")
	}
}

// What a later version may name is kept as text, and numbers that nobody knows
// mean the least.
func TestErrorsOfLaterVersions(t *testing.T) {
	for name, m := range map[string]*Error{
		"sentinel": {Text: "t", Is: &Error_Sentinel{Sentinel: "later.ErrNew"}},
		"kind":     {Text: "t", Is: &Error_Fault_{Fault: &Error_Fault{Kind: 200, Fault: 200}}},
		"cid":      {Text: "t", Is: &Error_NotFound{NotFound: []byte("no cid")}},
		"empty":    {Text: "t"},
		"no cause": {Text: "t", Causes: []*Error{nil}},
	} {
		if got := m.Err(); got == nil || got.Error() != "t" {
			t.Errorf("%s: got %v, want an error that reads \"t\"", name, got)
		}
	}
}

// An error costs bounded memory, however long and deep it is.
func TestErrorsAreBounded(t *testing.T) {
	deep := errors.New("bottom")
	for range 1000 {
		deep = errs.E(errs.Other, errs.Ours, strings.Repeat("x", 100), "", deep)
	}
	wide := make([]error, 1000)
	for i := range wide {
		wide[i] = io.EOF
	}
	for name, err := range map[string]error{
		"deep": deep, "wide": errors.Join(wide...),
		"binary": errors.New("\xff\xfe"), "cut in a rune": errors.New(strings.Repeat("x", maxText-4) + "ééé"),
	} {
		m := FromError(err)
		if n := proto.Size(m); n > 2*maxCauses*maxText {
			t.Errorf("%s error takes %d bytes, want at most %d", name, n, 2*maxCauses*maxText)
		}
		if _, merr := proto.Marshal(m); merr != nil || m.Err() == nil {
			t.Errorf("%s error is lost: %v", name, merr)
		}
	}
}

// Without a message of ours, the status tells what happened to the call.
func TestFromStatus(t *testing.T) {
	gone, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("changed my mind")
	cancel(reason)
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want error
	}{
		{"the other process is gone", t.Context(), status.Error(codes.Unavailable, "transport is closing"), errs.Crashed},
		{"it does not answer", t.Context(), status.Error(codes.DeadlineExceeded, "too late"), errs.Crashed},
		{"it does not know the method", t.Context(), status.Error(codes.Unimplemented, "unknown method"), errs.Invalid},
		{"too much", t.Context(), status.Error(codes.ResourceExhausted, "9 > 4"), errs.TooLarge},
		{"who knows", t.Context(), status.Error(codes.Internal, "oh"), errs.Other},
		{"no status", t.Context(), io.EOF, io.EOF},
		{"the caller gave up", gone, status.Error(codes.Canceled, "canceled"), reason},
	} {
		if got := FromStatus(c.ctx, c.err, errs.Plugin, "call"); !errors.Is(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	if err := FromStatus(t.Context(), nil, errs.Plugin, "call"); err != nil {
		t.Errorf("no error: got %v", err)
	}
}

func FuzzError(f *testing.F) {
	for _, err := range errorCases() {
		b, merr := proto.Marshal(FromError(err))
		if merr != nil {
			f.Fatal(merr)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Error
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		err := m.Err()
		if err == nil {
			t.Fatal("an error that is none")
		}
		again := across(t, err)
		if len(m.Text) <= maxText && again.Error() != err.Error() {
			t.Errorf("sent on it reads %q, want %q", again, err)
		}
		for _, k := range errs.Kinds() {
			if errors.Is(again, k) && !errors.Is(err, k) {
				t.Errorf("sent on it is %v, which it was not", k)
			}
		}
	})
}
