//go:build !linux

package memory

import (
	"errors"
	"os"
)

func makeFile(string, int, bool) (*os.File, []byte, error) { return nil, nil, errors.ErrUnsupported }
func mapPath(string, int, bool) ([]byte, error)            { return nil, errors.ErrUnsupported }
func unmap([]byte)                                         {}
