package subprocess

import (
	"context"
	"errors"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

const (
	// Version is the version of the contract between host and plugin. It counts
	// up when package pb or package channel change in a way that an older side
	// cannot ignore.
	//
	//	1  pb and channel as first released
	Version = 1

	// CookieKey and CookieValue tell a plugin that a host of this kind has started
	// it. They are a courtesy to who starts it by hand, and prove nothing.
	CookieKey   = "CODEXCHANGE_PLUGIN_COOKIE"
	CookieValue = "6e1d3f7c0b9a4852"

	// NameKey is the environment variable that tells a plugin its name.
	NameKey = "CODEXCHANGE_PLUGIN"

	// MaxMessage is how long a gRPC message may be in either direction, bytes.
	MaxMessage = 8 << 20

	// flowWindow is how many bytes of a call, or of all calls together, may be on
	// their way. As it is fixed, gRPC does not measure the connection: that would be
	// a ping, and its answer, for each message.
	flowWindow = 1 << 20
)

// lifeFD is the descriptor in the plugin whose end is the end of the host.
const lifeFD = 3

func handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: Version, MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// ServerOptions are those of every gRPC server of a plugin.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.StaticStreamWindowSize(flowWindow), grpc.StaticConnWindowSize(flowWindow),
	}
}

// DialOptions are those of every gRPC connection to a plugin.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithStaticStreamWindowSize(flowWindow), grpc.WithStaticConnWindowSize(flowWindow),
	}
}

// services is the plugin of go-plugin: its services are registered by a function,
// and the host calls them over the connection itself.
type services struct {
	plugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server)
}

func (s services) GRPCServer(_ *plugin.GRPCBroker, g *grpc.Server) error {
	s.register(g)
	return nil
}

func (services) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("not dispensed: services are called over the connection")
}

// plugins is what both sides offer by version.
func plugins(register func(*grpc.Server)) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{Version: {"exchange": services{register: register}}}
}
