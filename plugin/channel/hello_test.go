package channel

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/codexchange/codexchange/exchange/errs"
)

// The greeting has the bytes that hello.go says.
func TestHelloBytes(t *testing.T) {
	h := hello{version: 1, caps: 5, window: 0x40000, stream: 0x0807060504030201}
	for i := range h.token {
		h.token[i] = byte(i)
	}
	b := h.append(nil)
	want := "63786368" + "01" + "000000" + "05000000" + "00000400" + "0102030405060708" +
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	if got := hex.EncodeToString(b); got != want {
		t.Fatalf("hello is %s, want %s", got, want)
	}
	b[5], b[6], b[7] = 1, 2, 3 // room for later versions, not looked at
	if got, ok := parseHello((*[helloSize]byte)(b)); !ok || got != h {
		t.Fatalf("read again: %+v, %v, want %+v", got, ok, h)
	}

	a := answer{version: 1, verdict: welcome, caps: 1, window: 0x40000}
	b = a.append(nil)
	if got, want := hex.EncodeToString(b), "63786368"+"01"+"00"+"0000"+"01000000"+"00000400"; got != want {
		t.Fatalf("answer is %s, want %s", got, want)
	}
	b[6], b[7] = 1, 2
	if got, err := parseAnswer((*[answerSize]byte)(b)); err != nil || got != a {
		t.Fatalf("read again: %+v, %v, want %+v", got, err, a)
	}
}

// Every answer but a welcome to our version is an error that says why.
func TestAnswerRefused(t *testing.T) {
	for _, tc := range []struct {
		in   answer
		kind errs.Kind
		want string
	}{
		{answer{version: 1, verdict: badToken}, errs.Invalid, "refused: wrong token"},
		{answer{version: 1, verdict: unknownStream}, errs.Invalid, "refused: stream is not expected"},
		{answer{version: 2, verdict: badVersion}, errs.Invalid, "refused: the host speaks version 2, want 1"},
		{answer{version: 1, verdict: 200}, errs.Invalid, "refused: reason 200"},
		{answer{version: 2, window: MinWindow}, errs.Malformed, "version is 2, want 1"},
		{answer{version: 1, window: MinWindow - 1}, errs.Malformed, "window is 65535, want 65536 to 16777216"},
		{answer{version: 1, window: MaxWindow + 1}, errs.Malformed, "window is 16777217"},
	} {
		_, err := parseAnswer((*[answerSize]byte)(tc.in.append(nil)))
		if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error is %v, want %v with %q", tc.in, err, tc.kind, tc.want)
		}
	}
	var b [answerSize]byte
	if _, err := parseAnswer(&b); !errors.Is(err, errs.Malformed) {
		t.Errorf("zeros: error is %v, want %v", err, errs.Malformed)
	}
}

// A token is in no text.
func TestTokenText(t *testing.T) {
	token := Token{1, 2, 3}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, token); strings.Contains(got, "1") || strings.Contains(got, "3") {
			t.Errorf("%s gives %s", verb, got)
		}
	}
	var l log
	slog.New(slog.NewJSONHandler(&l, nil)).Info("x", "token", token)
	if !strings.Contains(l.String(), `"token":"(token)"`) {
		t.Errorf("logged as %s", l.String())
	}
}

// A greeting that was read is the same bytes when written again, but for the
// unused ones.
func FuzzHello(f *testing.F) {
	f.Add(hello{version: 1, window: DefaultWindow, stream: 7, token: Token{1}}.append(nil))
	f.Add(answer{version: 1, window: DefaultWindow}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= helloSize {
			in := [helloSize]byte(b)
			in[5], in[6], in[7] = 0, 0, 0
			if h, ok := parseHello(&in); ok && string(h.append(nil)) != string(in[:]) {
				t.Fatalf("written again: %x, want %x", h.append(nil), in)
			}
		}
		if len(b) >= answerSize {
			in := [answerSize]byte(b)
			in[6], in[7] = 0, 0
			if a, err := parseAnswer(&in); err == nil && string(a.append(nil)) != string(in[:]) {
				t.Fatalf("written again: %x, want %x", a.append(nil), in)
			}
		}
	})
}
