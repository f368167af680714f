package demo

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// A Source is the data that is moved.
type Source struct {
	Name string // for people: "video.mp4"
	Size int64  // bytes
	Open func() (io.ReadCloser, error)
}

// File is the source that reads the regular file at path. An empty file is
// refused: Bitswap does not transfer blocks of length 0.
func File(path string) (Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Source{}, err // names the path
	}
	if info.IsDir() {
		return Source{}, fmt.Errorf("read %s: is a directory, want a file", path)
	}
	if !info.Mode().IsRegular() {
		return Source{}, fmt.Errorf("read %s: is a %s, want a regular file", path, kind(info.Mode()))
	}
	if info.Size() == 0 {
		return Source{}, fmt.Errorf("read %s: is empty, want at least 1 byte to move", path)
	}
	return Source{Name: filepath.Base(path), Size: info.Size(), Open: func() (io.ReadCloser, error) { return os.Open(path) }}, nil
}

func kind(m os.FileMode) string {
	switch {
	case m&os.ModeNamedPipe != 0:
		return "pipe"
	case m&os.ModeSocket != 0:
		return "socket"
	case m&os.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// Generated is the source of size pseudo-random bytes, the same for the same
// size at every call.
func Generated(size int64) Source {
	return Source{Name: "generated data", Size: size, Open: func() (io.ReadCloser, error) {
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], uint64(size))
		return io.NopCloser(io.LimitReader(rand.NewChaCha8(seed), size)), nil
	}}
}
