// Package errs holds the closed set of errors that an exchange returns.
//
// An [Error] says what was being done, to which thing, what went wrong, and
// whose fault it is. Callers choose by [Kind]: every kind is itself an error, so
//
//	errors.Is(err, errs.BadBlock)
//
// answers the same for an error made in this process and for one that came
// over a process boundary, because kinds and faults are numbers that can be
// sent. The package imports nothing of the project, so that both sides of such
// a boundary may share it.
package errs

import (
	"fmt"
	"strings"
)

// Kind classifies an error. The numbers are stable: they may be stored or sent.
type Kind uint8

const (
	// Other is an error that no other kind describes.
	Other Kind = iota
	// Invalid is an argument or a configuration value that cannot be used.
	Invalid
	// Closed is the answer of an exchange, a session or a stream after Close.
	Closed
	// NotFound is a block, leaf or peer that is not there.
	NotFound
	// Malformed is bytes that do not follow the wire format.
	Malformed
	// TooLarge is a length beyond a limit.
	TooLarge
	// BadBlock is a block whose bytes do not hash to its CID.
	BadBlock
	// BadProof is a leaf whose proof does not lead to the root of its tree.
	BadProof
	// Unreachable is a peer that could not be dialled or written to.
	Unreachable
	// Storage is a failure of the local store.
	Storage
	// Crashed is a plugin that ended or hung while it was being used.
	Crashed

	kinds // number of kinds
)

var kindText = [kinds]string{
	Other:       "other error",
	Invalid:     "invalid argument",
	Closed:      "closed",
	NotFound:    "not found",
	Malformed:   "malformed",
	TooLarge:    "too large",
	BadBlock:    "block does not match its cid",
	BadProof:    "proof does not lead to the root",
	Unreachable: "peer unreachable",
	Storage:     "store failed",
	Crashed:     "plugin crashed",
}

// Error makes every Kind usable as a target of errors.Is.
func (k Kind) Error() string {
	if k < kinds {
		return kindText[k]
	}
	return fmt.Sprintf("error kind %d", uint8(k))
}

// Kinds returns every kind, in order of their numbers.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Fault says who has to change something for the error to go away. The numbers
// are stable: they may be stored or sent.
type Fault uint8

const (
	// Unknown is the zero value: nobody has been blamed.
	Unknown Fault = iota
	// Caller passed something that cannot be used.
	Caller
	// Ours is a failure of this node: its store, its limits, a bug.
	Ours
	// Peer sent something wrong, or nothing at all.
	Peer
	// Plugin is the subprocess that runs an exchange.
	Plugin

	faults // number of faults
)

func (f Fault) String() string {
	switch f {
	case Caller:
		return "caller"
	case Ours:
		return "this node"
	case Peer:
		return "peer"
	case Plugin:
		return "plugin"
	}
	return "unknown"
}

// Faults returns every fault, in order of their numbers.
func Faults() []Fault {
	all := make([]Fault, faults)
	for i := range all {
		all[i] = Fault(i)
	}
	return all
}

// Error is one failure. Its text reads "op subject: kind: cause", without the
// parts that are empty, and is made for a person to act on. Kinds that say less
// than any cause (Other, Invalid, Malformed) are left out beside one.
type Error struct {
	Kind    Kind
	Fault   Fault
	Op      string // what was being done: "decode message"
	Subject string // to which thing: a CID, a peer, a field
	Err     error  // the cause, or nil
}

// E makes an Error. The cause may be nil.
func E(kind Kind, fault Fault, op, subject string, cause error) *Error {
	return &Error{Kind: kind, Fault: fault, Op: op, Subject: subject, Err: cause}
}

// Errorf makes an Error whose cause is the formatted text.
func Errorf(kind Kind, fault Fault, op, format string, args ...any) *Error {
	return &Error{Kind: kind, Fault: fault, Op: op, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Subject != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Subject)
	}
	sep := func() {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
	}
	if e.Err == nil || e.Kind != Other && e.Kind != Invalid && e.Kind != Malformed {
		sep()
		b.WriteString(e.Kind.Error())
	}
	if e.Err != nil {
		sep()
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the kind of this error.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}
