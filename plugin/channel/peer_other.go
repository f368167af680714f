//go:build !linux && !darwin

package channel

import "errors"

// peerUID is not known here, so every connection is refused.
func peerUID(int) (int, error) {
	return 0, errors.New("not known how to find them on this system")
}
