package pb

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
)

// sentinels are the errors that are compared, by the names under which they
// cross. New ones may be added; who does not know a name keeps the text.
var sentinels = []struct {
	name string
	err  error
}{
	{"context.Canceled", context.Canceled},
	{"context.DeadlineExceeded", context.DeadlineExceeded},
	{"io.EOF", io.EOF},
	{"io.ErrUnexpectedEOF", io.ErrUnexpectedEOF},
	{"io.ErrClosedPipe", io.ErrClosedPipe},
	{"net.ErrClosed", net.ErrClosed},
	{"os.ErrDeadlineExceeded", os.ErrDeadlineExceeded},
	{"fs.ErrNotExist", fs.ErrNotExist},
	{"fs.ErrPermission", fs.ErrPermission},
	{"network.ErrNoConn", network.ErrNoConn},
	{"network.ErrLimitedConn", network.ErrLimitedConn},
	{"network.ErrNoRemoteAddrs", network.ErrNoRemoteAddrs},
	{"network.ErrResourceLimitExceeded", network.ErrResourceLimitExceeded},
	{notSupported, multistream.ErrNotSupported[protocol.ID]{}},
}

// notSupported names the one sentinel that == does not find.
const notSupported = "multistream.ErrNotSupported"

const (
	// maxCauses bounds how deep and how wide an error may be that is sent or
	// received; what lies beyond survives as text.
	maxCauses = 16
	// maxText bounds each of its texts, bytes.
	maxText = 4 << 10
)

// FromError returns err as a message, nil for nil. What errors.Is and errors.As
// find in err of kinds and faults (package errs), of the standard library's
// sentinels, of ipld.ErrNotFound and of *channel.ResetError, they find in the
// error that [Error.Err] makes of the message. The text is the same.
func FromError(err error) *Error {
	if err == nil {
		return nil
	}
	return fromError(err, maxCauses)
}

func fromError(err error, depth int) *Error {
	m := &Error{Text: clip(err.Error())}
	var causes []error
	switch e := err.(type) {
	case *errs.Error:
		m.Is = &Error_Fault_{Fault: &Error_Fault{Kind: uint32(e.Kind), Fault: uint32(e.Fault), Op: clip(e.Op), Subject: clip(e.Subject)}}
	case errs.Kind:
		m.Is = &Error_Kind{Kind: uint32(e)}
	case ipld.ErrNotFound:
		m.Is = &Error_NotFound{NotFound: e.Cid.Bytes()}
	case *channel.ResetError:
		m.Is = &Error_StreamReset_{StreamReset: &Error_StreamReset{Code: e.Code, Remote: e.Remote}}
	case multistream.ErrNotSupported[protocol.ID]:
		m.Is = &Error_Sentinel{Sentinel: notSupported}
	default:
		for _, s := range sentinels {
			if err == s.err {
				m.Is = &Error_Sentinel{Sentinel: s.name}
			}
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if c := e.Unwrap(); c != nil {
			causes = []error{c}
		}
	case interface{ Unwrap() []error }:
		causes = e.Unwrap()
	}
	if depth > 0 {
		for _, c := range causes[:min(len(causes), maxCauses)] {
			if c != nil {
				m.Causes = append(m.Causes, fromError(c, depth-1))
			}
		}
	}
	return m
}

// clip makes a text one that a message can hold: valid UTF-8, and not too long.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText-3] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Err returns the error that a message stands for, nil for a nil message. See
// [FromError].
func (m *Error) Err() error {
	if m == nil {
		return nil
	}
	return m.err(maxCauses)
}

func (m *Error) err(depth int) error {
	var causes []error
	if depth > 0 {
		for _, c := range m.Causes[:min(len(m.Causes), maxCauses)] {
			if c != nil {
				causes = append(causes, c.err(depth-1))
			}
		}
	}
	var cause error
	switch len(causes) {
	case 0:
	case 1:
		cause = causes[0]
	default:
		cause = errors.Join(causes...)
	}
	switch is := m.Is.(type) {
	case *Error_Fault_:
		e := errs.E(kind(is.Fault.GetKind()), fault(is.Fault.GetFault()), is.Fault.GetOp(), is.Fault.GetSubject(), cause)
		return said(m.Text, e)
	case *Error_Kind:
		return said(m.Text, kind(is.Kind))
	case *Error_NotFound:
		e := ipld.ErrNotFound{}
		if _, c, err := cid.CidFromBytes(is.NotFound); err == nil {
			e.Cid = c
		}
		return said(m.Text, e)
	case *Error_StreamReset_:
		return said(m.Text, &channel.ResetError{Code: is.StreamReset.GetCode(), Remote: is.StreamReset.GetRemote(), Err: cause})
	case *Error_Sentinel:
		for _, s := range sentinels {
			if s.name == is.Sentinel {
				return said(m.Text, s.err)
			}
		}
	}
	if cause == nil {
		return errors.New(m.Text)
	}
	return &remoteError{text: m.Text, cause: cause}
}

func kind(n uint32) errs.Kind {
	if n < uint32(len(errs.Kinds())) {
		return errs.Kind(n)
	}
	return errs.Other
}

func fault(n uint32) errs.Fault {
	if n < uint32(len(errs.Faults())) {
		return errs.Fault(n)
	}
	return errs.Unknown
}

// said is e, with the text that it had on the other side if that differs.
func said(text string, e error) error {
	if e.Error() == text {
		return e
	}
	return &remoteError{text: text, cause: e}
}

// A remoteError is an error that was made in another process.
type remoteError struct {
	text  string
	cause error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.cause }

// Status returns err in the form in which a method of a gRPC service returns
// it, so that [FromStatus] brings it back. nil stays nil.
func Status(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Unknown
	switch {
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	s, serr := status.New(code, clip(err.Error())).WithDetails(FromError(err))
	if serr != nil {
		return status.Error(code, clip(err.Error()))
	}
	return s.Err()
}

// FromStatus is the error that a call of a gRPC method means: what the method
// returned by [Status], or, if there is no such thing, why the call did not
// succeed. That is the context's error if the caller's context ended, and of
// kind errs.Crashed, blamed on the given side, if the other process is gone. The
// op says what was being asked.
func FromStatus(ctx context.Context, err error, blame errs.Fault, op string) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return errs.E(errs.Other, blame, op, "", err)
	}
	for _, d := range s.Details() {
		if e, ok := d.(*Error); ok {
			return e.Err()
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch s.Code() {
	case codes.Canceled, codes.Unavailable, codes.Aborted:
		return errs.E(errs.Crashed, blame, op, "", errors.New(s.Message()))
	case codes.DeadlineExceeded:
		return errs.E(errs.Crashed, blame, op, "", context.DeadlineExceeded)
	case codes.Unimplemented, codes.InvalidArgument:
		return errs.E(errs.Invalid, blame, op, "", errors.New(s.Message()))
	case codes.ResourceExhausted:
		return errs.E(errs.TooLarge, blame, op, "", errors.New(s.Message()))
	}
	return errs.E(errs.Other, blame, op, "", errors.New(s.Message()))
}
