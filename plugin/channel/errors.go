package channel

import (
	"errors"
	"fmt"
	"os"
)

// Codes with which this package resets streams by itself. Those of libp2p have
// libp2p's numbers, because a host passes codes on to its peers.
const (
	// CodeNone says nothing.
	CodeNone uint32 = 0
	// CodeProtocol says that the other side broke the protocol.
	CodeProtocol uint32 = 0x1004
	// CodeShutdown says that the process or the plugin is ending.
	CodeShutdown uint32 = 0x1007
	// CodeBlockMissing says that a block that was announced, or asked for by
	// reference, could not be had in full, so that the message it is part of
	// cannot be ended.
	CodeBlockMissing uint32 = 0xCD01
)

// ResetError is the error of a stream that ended before its time, in both
// directions. A [Stream] that was reset by its peer returns one too, so that
// [Bridge] can pass the code on.
type ResetError struct {
	Code   uint32 // what the side that reset it said; 0 if it said nothing
	Remote bool   // the other side did it, or died
	Err    error  // what happened, if it was no call of Reset; may be nil
}

func (e *ResetError) Error() string {
	who := "this side"
	if e.Remote {
		who = "the other side"
	}
	s := fmt.Sprintf("stream reset by %s, code %#x", who, e.Code)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns what happened, or nil.
func (e *ResetError) Unwrap() error { return e.Err }

// resetCode is the code in an error, 0 if there is none.
func resetCode(err error) uint32 {
	var reset *ResetError
	if errors.As(err, &reset) {
		return reset.Code
	}
	return CodeNone
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
