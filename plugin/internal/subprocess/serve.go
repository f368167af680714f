//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package subprocess

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
	"google.golang.org/grpc"

	"github.com/codexchange/codexchange/plugin/logging"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// stopTimeout is how long ServeConfig.Stop may take.
	stopTimeout = 10 * time.Second
	// flushTimeout is how long the answer to Exchange.Stop has to leave the process.
	flushTimeout = 200 * time.Millisecond
	// removeTimeout is how long the plugin of a dead host has to remove its
	// directory.
	removeTimeout = time.Second
	// hostGrace is how long after a signal the end of the host may show. Pdeathsig
	// comes when one of its threads ends, its descriptors are closed with the last.
	hostGrace = time.Second
)

// ServeConfig says what a plugin serves.
type ServeConfig struct {
	// Register registers the plugin's services.
	Register func(*grpc.Server)
	// Stop ends them in good order. It is called at most once, before the process
	// exits, unless the host is gone; it has 10 s. nil does nothing.
	Stop func()
}

// Serve is the main function of a plugin. It does not return. The process exits
//
//	with 0  after Stop, when SIGTERM or SIGHUP came, when the host has called Stop of
//	        pb.Exchange and has its answer, or when it has ended go-plugin's server
//	with 1  when it was not started by a host, when it cannot listen, when Stop
//	        took too long; and at once, with its directory removed, when the host
//	        is gone
//
// Memory is collected less often than by default, unless GOGC says how often; see
// package heap. SIGINT is ignored: it is for the host. Serve takes over the process' log:
// slog.Default, go-log's core and so libp2p's logs write to the host, see [Log].
func Serve(c ServeConfig) {
	if PluginName() == "" || os.Getenv(CookieKey) != CookieValue || !isPipe(lifeFD) {
		fmt.Fprintf(os.Stderr, "%s is a plugin: it is started by a host that has it in its configuration, not by hand.\n", filepath.Base(os.Args[0]))
		os.Exit(1)
	}
	hostGone := make(chan struct{})
	go watchHost(hostGone, os.Getenv(socketDirKey))
	tune()
	slog.SetDefault(Log())
	golog.SetPrimaryCore(zapCore())
	gologshim.SetDefaultHandler(logging.Handler())

	// Writing a log line to a host that is gone must not end the process before
	// watchHost has tidied up. A signal that somebody asks for does not end it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	var once sync.Once
	exit := func(grace time.Duration) { once.Do(func() { quit(c.Stop, hostGone, grace) }) }
	signals := make(chan os.Signal, 1)
	// The system sends SIGHUP to a stopped process whose parent has ended, and lets
	// it go on: then watchHost has to tidy up, as after SIGTERM.
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		exit(hostGrace)
	}()

	served := false
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: plugins(c.Register),
		Logger:           hclogTo(Log(), slog.LevelError),
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			served = true
			var s *grpc.Server
			s = grpc.NewServer(append(append(o, ServerOptions()...), grpc.ChainUnaryInterceptor(
				func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
					reply, err := handler(ctx, req)
					if info.FullMethod == pb.Exchange_Stop_FullMethodName {
						go flush(s)
					}
					return reply, err
				}))...)
			return s
		},
	})
	if !served {
		os.Exit(1) // go-plugin has logged why
	}
	exit(0) // or wait for who was first
}

// flush lets the answers that are under way leave, and ends the server, and with
// it Serve. Calls that last as long as the process are cut off.
func flush(s *grpc.Server) {
	cut := time.AfterFunc(flushTimeout, s.Stop)
	defer cut.Stop()
	s.GracefulStop()
}

// quit ends the process in good order, or leaves it to watchHost if the host is
// gone, or so within grace.
func quit(stop func(), hostGone <-chan struct{}, grace time.Duration) {
	time.AfterFunc(stopTimeout, func() {
		Log().Error("plugin did not stop in time", "timeout", stopTimeout)
		os.Exit(1)
	})
	if stop != nil {
		stop()
	}
	select {
	case <-hostGone:
		select {} // watchHost tidies up, and exits
	case <-time.After(grace):
		os.Exit(0)
	}
}

// watchHost ends the process when the host does: the host alone holds the other
// end of the pipe, and never writes to it.
func watchHost(gone chan<- struct{}, dir string) {
	_ = syscall.SetNonblock(lifeFD, true) // waiting takes no thread
	syscall.CloseOnExec(lifeFD)
	life := os.NewFile(lifeFD, "host")
	_, _ = io.Copy(io.Discard, life)
	close(gone)
	time.AfterFunc(removeTimeout, func() { os.Exit(1) })
	removeDir(dir)
	os.Exit(1)
}

// isPipe reports whether a descriptor is that of a pipe.
func isPipe(fd int) bool {
	var st syscall.Stat_t
	return syscall.Fstat(fd, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFIFO
}
