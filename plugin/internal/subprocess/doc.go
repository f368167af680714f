// Package subprocess is one plugin process, seen from both sides: [Start] in
// the host, [Serve] in the plugin. It owns the process, its private directory,
// its log lines, and that neither side outlives the other unnoticed. What is
// said over the connection is the business of package pb; starting again after a
// crash is that of package supervise.
//
// # What a plugin is given
//
// Arguments: those of [Config], and none of the host's. Environment: what
// go-plugin needs, the variables listed in environment.go, and what [Config]
// adds; nothing else of the host's environment crosses. Descriptors: standard
// input is empty, standard output carries the handshake and afterwards nothing,
// standard error carries the log, and 3 is a pipe that ends with the host.
//
// A plugin is a program of its own (checked against a SHA-256), or the host's
// program once more. In the second case it is the image that runs, also if the
// file has been replaced since: both sides are always of one build. A program
// has to call [Ready] before it may be its own plugin, and a plugin never starts
// itself, so that no program multiplies without end.
//
// # Who dies first
//
//	the plugin   Process.Done closes when it has been waited for and its last
//	             words have been read; Process.Err says why.
//	the host     Its end of the pipe closes, in whatever way it ends. The plugin
//	             removes the directory and exits at once, also if it was stopped.
//	             On Linux SIGTERM comes too, as a second line (Pdeathsig).
//	both         The next host of this user removes the directory. So it does if
//	             the host dies before the plugin has got to Serve.
//
// The process is in a group of its own: an interrupt typed at a terminal goes to
// the host alone.
//
// # Logs
//
// The plugin writes JSON lines as hclog does, see [Log]; they become records of
// the host's logger with their time, level and attributes. The host reads them
// itself rather than let go-plugin do it, which splits lines beyond 64 KiB and
// panics at a line whose "@message" is no string. Text becomes records too: what
// begins like a panic at level error, and it is kept for Process.Err; otherwise
// its level is info, as for everything on standard output.
//
// # Goroutines of the host
//
//	Process.reap     one per process; ends with it; Done tells
//	runner.run       one per process, on a thread of its own, because Pdeathsig
//	                 follows the thread that forked; reap waits for it
//	runner.readers   two per process; they end with the pipes, at the latest
//	                 drainTimeout after the process; reap waits for them
//	go-plugin        four that read and wait; reap waits for them. Three of the
//	                 broker and one of the standard streams cannot be waited for:
//	                 they end when reap closes the gRPC connection.
//
// # Goroutines of the plugin
//
//	watchHost        one; ends with the process
//	signals          one; ends with the process
//	flush            one, after Exchange.Stop; ends with the process
//
// Start, Serve and NewDir work on Linux, macOS and the BSDs. Elsewhere Start and
// NewDir return an error of kind errs.Invalid.
package subprocess
