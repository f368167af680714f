//go:build !linux

package repo

// syncDisk does nothing: there is no call for one disk, and one for each file
// takes too long. The blocks of an import are still where they came from.
func syncDisk(string) error { return nil }
