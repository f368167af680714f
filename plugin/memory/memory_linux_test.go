package memory

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/codexchange/codexchange/exchange/errs"
)

const testSize = 1 << 20

func made(t *testing.T, f func(int) (*Memory, error)) *Memory {
	t.Helper()
	m, err := f(testSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func opened(t *testing.T, f func(string, uint64) (*Memory, error), m *Memory) *Memory {
	t.Helper()
	o, err := f(m.Path(), uint64(m.Size()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// TestShared shows that what one side writes the other reads: the maker what is
// inbound, who opened it what is outbound.
func TestShared(t *testing.T) {
	in, out := made(t, MakeInbound), made(t, MakeOutbound)
	for _, c := range []struct {
		name   string
		writer *Memory
		reader *Memory
	}{
		{"inbound", in, opened(t, OpenInbound, in)},
		{"outbound", opened(t, OpenOutbound, out), out},
	} {
		want, got := []byte("bytes of "+c.name), make([]byte, len("bytes of "+c.name))
		if !c.writer.CopyIn(testSize-len(want), want) || !copyOut(c.reader, got, testSize-len(got)) {
			t.Fatalf("%s: not mapped", c.name)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
	}
}

// TestSeals shows that nobody but its maker writes inbound memory, by whatever
// way, and that nobody at all changes the size of either.
func TestSeals(t *testing.T) {
	in, out := made(t, MakeInbound), made(t, MakeOutbound)
	file, err := os.OpenFile(in.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s: got %v, want EPERM or EACCES", what, err)
		}
	}
	mapAgain := func(fd, prot int) ([]byte, error) {
		b, err := unix.Mmap(fd, 0, testSize, prot, unix.MAP_SHARED)
		if err == nil {
			t.Cleanup(func() { unix.Munmap(b) })
		}
		return b, err
	}
	_, err = mapAgain(fd, unix.PROT_READ|unix.PROT_WRITE)
	refused("a second mapping for writing", err)
	_, err = mapAgain(int(in.file.Fd()), unix.PROT_READ|unix.PROT_WRITE)
	refused("the same of the maker's descriptor", err)
	_, err = unix.Pwrite(fd, []byte("x"), 0)
	refused("pwrite", err)
	refused("a hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	refused("another seal", err)
	if b, err := mapAgain(fd, unix.PROT_READ); err != nil {
		t.Errorf("a second mapping for reading: %v", err)
	} else {
		refused("mprotect of it", unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE))
	}
	refused("mprotect of what OpenInbound has mapped", unix.Mprotect(opened(t, OpenInbound, in).b, unix.PROT_READ|unix.PROT_WRITE))
	_, err = OpenOutbound(in.Path(), testSize)
	refused("OpenOutbound of it", err)

	for name, m := range map[string]*Memory{"inbound": in, "outbound": out} {
		refused(name+": shrink", os.Truncate(m.Path(), 0))
		refused(name+": grow", os.Truncate(m.Path(), 2*testSize))
	}
	if !in.CopyIn(0, []byte("still mine")) {
		t.Error("its maker has it no longer mapped")
	}
}

// TestOpenWhatIsNot shows that nothing is mapped that is not memory of that size
// which can keep it.
func TestOpenWhatIsNot(t *testing.T) {
	m := made(t, MakeOutbound)
	plain := t.TempDir() + "/file"
	if err := os.WriteFile(plain, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	unsealed, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(unsealed), "test")
	defer file.Close()
	if err := file.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		size       uint64
	}{
		{"no file", plain + "2", testSize},
		{"a file of a disk", plain, testSize},
		{"memory that may shrink", (&Memory{file: file}).Path(), testSize},
		{"another size", m.Path(), testSize / 2},
		{"no size", m.Path(), 0},
		{"half a page", m.Path(), 2048},
		{"too large", m.Path(), 1 << 40},
	} {
		got, err := OpenOutbound(c.path, c.size)
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: got %v, %v, want kind %v", c.name, got, err, errs.Invalid)
		}
	}
}

// TestClose shows that memory stays mapped for those who hold it when it is
// closed, however many try to use it meanwhile, and not for those who come later.
func TestClose(t *testing.T) {
	m := made(t, MakeInbound)
	if !m.Hold() {
		t.Fatal("new memory cannot be held")
	}
	b := m.Bytes(4096, 4096)
	var using sync.WaitGroup
	for range 4 {
		using.Go(func() {
			p := make([]byte, 64<<10)
			for copyOut(m, p, 0) {
			}
		})
	}
	m.Close()
	m.Close()
	b[0] = 1
	m.Release()
	using.Wait()
	if m.Hold() || m.CopyIn(0, b[:0]) || copyOut(m, nil, 0) {
		t.Error("closed memory can be used")
	}
}

// TestContains shows which ranges are within memory.
func TestContains(t *testing.T) {
	m := made(t, MakeInbound)
	for _, c := range []struct {
		offset uint64
		n      int
		want   bool
	}{
		{0, testSize, true}, {testSize - 1, 1, true}, {testSize, 0, true},
		{0, testSize + 1, false}, {testSize, 1, false}, {1 << 63, 1, false},
		{^uint64(0), 1, false}, {^uint64(0), 2, false}, {0, -1, false},
	} {
		if got := m.Contains(c.offset, c.n); got != c.want {
			t.Errorf("%d bytes at %d: got %v, want %v", c.n, c.offset, got, c.want)
		}
	}
}

// copyOut fills p from offset on; false after Close.
func copyOut(m *Memory, p []byte, offset int) bool {
	b, ok := m.Copy(offset, len(p))
	copy(p, b)
	return ok
}
