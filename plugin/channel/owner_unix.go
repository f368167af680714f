//go:build unix

package channel

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOwner reports that a file belongs to another user.
func checkOwner(fi fs.FileInfo) error {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("owner is user %d, want %d", st.Uid, os.Geteuid())
	}
	return nil
}
