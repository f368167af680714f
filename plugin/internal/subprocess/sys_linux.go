package subprocess

import "syscall"

// sysProcAttr puts the process in a group of its own, and asks for a signal
// when the thread that starts it ends.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
