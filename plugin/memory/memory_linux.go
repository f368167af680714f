package memory

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sizeSeals are what keeps every mapping of a file whole.
const sizeSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// makeFile makes a file and maps it. If own, it is mapped for writing, and
// nobody can write to it in any other way.
func makeFile(name string, size int, own bool) (_ *os.File, b []byte, err error) {
	fd, err := memfd("codexchange-" + name)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, nil, fmt.Errorf("fchmod: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, nil, fmt.Errorf("ftruncate: %w", err)
	}
	prot, seals := unix.PROT_READ, sizeSeals|unix.F_SEAL_SEAL
	if own {
		prot |= unix.PROT_WRITE
		seals |= unix.F_SEAL_FUTURE_WRITE // not the mapping that is there before
	}
	if b, err = unix.Mmap(fd, 0, size, prot, unix.MAP_SHARED); err != nil {
		return nil, nil, fmt.Errorf("mmap: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unmap(b)
		return nil, nil, fmt.Errorf("seals %#x: %w", seals, err)
	}
	return file, b, nil
}

func memfd(name string) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		return unix.MemfdCreate(name, flags)
	}
	return fd, err
}

// mapPath maps what another process has made.
func mapPath(path string, size int, write bool) ([]byte, error) {
	flag, prot := os.O_RDONLY, unix.PROT_READ
	if write {
		flag, prot = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	file, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// If it can shrink, a read of the mapping can end the process.
	seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("seals: %w", err)
	}
	if seals&sizeSeals != sizeSeals {
		return nil, fmt.Errorf("seals are %#x, want at least %#x", seals, sizeSeals)
	}
	fi, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() != int64(size) {
		return nil, fmt.Errorf("size is %d, want %d", fi.Size(), size)
	}
	b, err := unix.Mmap(int(file.Fd()), 0, size, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return b, nil
}

func unmap(b []byte) { _ = unix.Munmap(b) } // cannot fail: b is a whole mapping
