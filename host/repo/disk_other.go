//go:build !linux && !darwin

package repo

import "errors"

func freeSpace(string) (uint64, error) { return 0, errors.ErrUnsupported }

func isOtherDisk(error) bool { return false }
