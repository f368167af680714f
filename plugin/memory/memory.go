// Package memory makes memory that a host and its plugin share, and maps it. It
// owns the file behind it, its seals, and how long it stays mapped. What is put
// where, and when it may be used again, is the business of packages channel and
// remote.
//
// The host makes two pieces of it, each a file without a name (memfd, on Linux
// only) that the plugin opens by its path under /proc. Both are sealed against
// changes of size, so that no mapping of them can lose its pages. In addition the
// inbound one, which carries what comes from peers, is sealed against writing
// from when the host has mapped it: whoever opens it can neither write to it nor
// map it for writing. The outbound one is written by the plugin, at any time and
// whatever it has said before; so the host copies out of it first and looks then.
//
// Wherever this does not work, on other systems or if /proc is hidden, the error
// is an ordinary one, and everything crosses without shared memory.
//
// # Size
//
// [Inbound] is 64 MiB, [Outbound] 8. Pages are taken from the system when
// they are first written, and counted in the resident memory of both processes;
// they are given back when both are done with the memory. A plugin that is idle
// from its start takes none, and none takes more than both.
//
// The package has no goroutines.
package memory

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/codexchange/codexchange/exchange/errs"
)

const (
	// Inbound is how much a host shares for bytes of streams, where blocks stay until
	// they are with their requests; Outbound for results that are not there.
	Inbound  = 64 << 20
	Outbound = 8 << 20
	// MaxSize is the largest size that is made or mapped, bytes.
	MaxSize = 1 << 30
)

// A Memory is a piece of shared memory, as one of the processes has mapped it.
// Its methods may be called from any goroutine. Who got it ends it with Close.
//
// It stays mapped until Close was called and everybody who holds it has let go.
type Memory struct {
	file   *os.File // of who made it, nil for the other
	b      []byte
	held   atomic.Int64 // its holders; the owner is one until Close
	closed atomic.Bool
}

// MakeInbound makes memory that only this process can write. Sizes are in bytes
// and multiples of the page size.
func MakeInbound(size int) (*Memory, error) { return create("inbound", size, true) }

// MakeOutbound makes memory that another process writes. In this one it is mapped
// for reading.
func MakeOutbound(size int) (*Memory, error) { return create("outbound", size, false) }

// OpenInbound maps, for reading, what the process at the other end has made with
// MakeInbound. The error is of kind errs.Invalid if it is not what was said.
func OpenInbound(path string, size uint64) (*Memory, error) { return openAt(path, size, false) }

// OpenOutbound maps, for reading and writing, what the process at the other end has
// made with MakeOutbound.
func OpenOutbound(path string, size uint64) (*Memory, error) { return openAt(path, size, true) }

func create(name string, size int, own bool) (*Memory, error) {
	const op = "make shared memory"
	if err := checkSize(uint64(max(size, 0))); err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, op, name, err)
	}
	file, b, err := makeFile(name, size, own)
	if err != nil {
		return nil, errs.E(errs.Other, errs.Ours, op, name, err)
	}
	return newMemory(file, b), nil
}

func openAt(path string, size uint64, write bool) (*Memory, error) {
	const op = "map shared memory"
	if err := checkSize(size); err != nil {
		return nil, errs.E(errs.Invalid, errs.Ours, op, path, err)
	}
	b, err := mapPath(path, int(size), write)
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Ours, op, path, err)
	}
	return newMemory(nil, b), nil
}

func checkSize(n uint64) error {
	if page := uint64(os.Getpagesize()); n == 0 || n > MaxSize || n%page != 0 {
		return fmt.Errorf("size is %d, want a multiple of %d up to %d", n, page, MaxSize)
	}
	return nil
}

func newMemory(file *os.File, b []byte) *Memory {
	m := &Memory{file: file, b: b}
	m.held.Store(1)
	return m
}

// Path is where another process of this user opens the memory, until Close. Only
// who made it has one.
func (m *Memory) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.file.Fd())
}

// Size is how long it is, bytes.
func (m *Memory) Size() int { return len(m.b) }

// Hold keeps the memory mapped until Release; false after Close.
func (m *Memory) Hold() bool {
	for n := m.held.Load(); n > 0 && !m.closed.Load(); n = m.held.Load() {
		if m.held.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// Release undoes one Hold.
func (m *Memory) Release() {
	if m.held.Add(-1) == 0 {
		unmap(m.b)
	}
}

// Bytes are n bytes of the memory from offset on, which must be within it. They
// may be used by who holds it, and no longer than that: afterwards any access ends
// the process. Writing needs memory that is mapped for it.
func (m *Memory) Bytes(offset, n int) []byte { return m.b[offset : offset+n : offset+n] }

// Copy is a copy of n bytes from offset on; false after Close. The range must be
// within the memory.
func (m *Memory) Copy(offset, n int) ([]byte, bool) {
	if !m.Hold() {
		return nil, false
	}
	defer m.Release()
	b := append([]byte(nil), m.Bytes(offset, n)...) // which clears nothing first
	return b[:n:n], true
}

// CopyIn puts p at offset; false after Close. The range must be within the
// memory, which must be mapped for writing.
func (m *Memory) CopyIn(offset int, p []byte) bool {
	if !m.Hold() {
		return false
	}
	defer m.Release()
	copy(m.Bytes(offset, len(p)), p)
	return true
}

// Offset reports where in the memory b lies, if it does.
func (m *Memory) Offset(b []byte) (offset int, ok bool) {
	at, base := uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(unsafe.SliceData(m.b)))
	if at < base || at-base > uintptr(len(m.b)) || uintptr(len(b)) > uintptr(len(m.b))-(at-base) {
		return 0, false
	}
	return int(at - base), true
}

// Contains reports whether a range that another process has named is within the
// memory.
func (m *Memory) Contains(offset uint64, n int) bool {
	size := uint64(len(m.b))
	return n >= 0 && offset <= size && uint64(n) <= size-offset
}

// Close lets go of the memory. Others may open it no more, and it is unmapped when
// nobody here holds it. It may be called more than once.
func (m *Memory) Close() {
	if m.closed.Swap(true) {
		return
	}
	if m.file != nil {
		m.file.Close()
	}
	m.Release()
}
