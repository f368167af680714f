package channel

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Version is the version of the greeting and the records.
//
//	1  as the package documentation has it
const Version = 1

// Caps are abilities that both sides must have for them to be used, one bit
// each. Bits that nobody knows are ignored.
type Caps uint32

// CapRegions lets the host send region records. Both sides then share memory that they
// have agreed on elsewhere, and the plugin gives each region back by name. (Bit 0 was
// for regions that came back with their credit.)
const CapRegions Caps = 1 << 1

// Limits of a window: how many bytes one side is ready to hold for the other.
const (
	MinWindow     = 64 << 10
	DefaultWindow = 512 << 10
	MaxWindow     = 16 << 20
)

// A Token proves that a connection comes from the process that was given it.
type Token [32]byte

// Format keeps tokens out of texts, whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { io.WriteString(f, "(token)") }

// LogValue keeps tokens out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue("(token)") }

const (
	magic      = "cxch"
	helloSize  = 56
	answerSize = 16
)

// hello is what the plugin sends first, little-endian:
//
//	magic (4), version (1), unused (3), caps (4), window (4), stream (8), token (32)
//
// The unused bytes are sent as 0 and not looked at.
type hello struct {
	version uint8
	caps    Caps
	window  uint32
	stream  uint64
	token   Token
}

func (h hello) append(b []byte) []byte {
	b = append(append(b, magic...), h.version, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.caps))
	b = binary.LittleEndian.AppendUint32(b, h.window)
	b = binary.LittleEndian.AppendUint64(b, h.stream)
	return append(b, h.token[:]...)
}

func parseHello(b *[helloSize]byte) (h hello, ok bool) {
	h.version = b[4]
	h.caps = Caps(binary.LittleEndian.Uint32(b[8:]))
	h.window = binary.LittleEndian.Uint32(b[12:])
	h.stream = binary.LittleEndian.Uint64(b[16:])
	h.token = Token(b[24:])
	return h, string(b[:4]) == magic
}

// verdict is what the host thinks of a hello. The numbers are on the wire.
type verdict uint8

const (
	welcome        verdict = 0
	badMagic       verdict = 1
	badVersion     verdict = 2
	badToken       verdict = 3
	badWindow      verdict = 4
	unknownStream  verdict = 5
	badCredentials verdict = 6
)

var verdictText = [...]string{
	welcome:        "welcome",
	badMagic:       "not a greeting",
	badVersion:     "version not spoken here",
	badToken:       "wrong token",
	badWindow:      "window out of range",
	unknownStream:  "stream is not expected",
	badCredentials: "process of another user",
}

func (v verdict) String() string {
	if int(v) < len(verdictText) {
		return verdictText[v]
	}
	return fmt.Sprintf("reason %d", uint8(v))
}

// answer is what the host sends back, little-endian:
//
//	magic (4), version (1), verdict (1), unused (2), caps (4), window (4)
//
// caps are those that both sides have.
type answer struct {
	version uint8
	verdict verdict
	caps    Caps
	window  uint32
}

func (a answer) append(b []byte) []byte {
	b = append(append(b, magic...), a.version, byte(a.verdict), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(a.caps))
	return binary.LittleEndian.AppendUint32(b, a.window)
}

// parseAnswer returns an error for whatever is not a welcome to version 1.
func parseAnswer(b *[answerSize]byte) (a answer, err error) {
	a.version = b[4]
	a.verdict = verdict(b[5])
	a.caps = Caps(binary.LittleEndian.Uint32(b[8:]))
	a.window = binary.LittleEndian.Uint32(b[12:])
	switch {
	case string(b[:4]) != magic:
		return a, errs.Errorf(errs.Malformed, errs.Ours, "answer", "begins with %q, want %q", b[:4], magic)
	case a.verdict == badVersion:
		return a, errs.Errorf(errs.Invalid, errs.Plugin, "answer", "refused: the host speaks version %d, want %d", a.version, Version)
	case a.verdict != welcome:
		return a, errs.Errorf(errs.Invalid, errs.Plugin, "answer", "refused: %v", a.verdict)
	case a.version != Version:
		return a, errs.Errorf(errs.Malformed, errs.Ours, "answer", "version is %d, want %d", a.version, Version)
	}
	if err := checkWindow(int64(a.window)); err != nil {
		return a, errs.E(errs.Malformed, errs.Ours, "answer", "", err)
	}
	return a, nil
}

func checkWindow(n int64) error {
	if n < MinWindow || n > MaxWindow {
		return fmt.Errorf("window is %d, want %d to %d", n, MinWindow, MaxWindow)
	}
	return nil
}
