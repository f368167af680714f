package bitswap

import (
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
)

// Limits are what a host must allow for Bitswap to work under load. Bitswap
// opens a stream for each message of blocks it sends, and libp2p's defaults
// allow 64 of a protocol from one peer: beyond, streams are reset, blocks are
// lost, and the receiver asks again after 30 s. So the limits of each protocol
// and of each protocol with each peer are lifted, and those on streams that this
// node opens itself. What one peer and what the whole system may open to us
// stays limited as libp2p has it, which is how Kubo runs.
//
//	limits := bitswap.Limits()
//	limiter := rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale()))
//	manager, err := rcmgr.NewResourceManager(limiter)
//	h, err := libp2p.New(libp2p.ResourceManager(manager))
//
// The caller may change what it gets.
func Limits() rcmgr.PartialLimitConfig {
	free := rcmgr.ResourceLimits{
		Streams:         rcmgr.Unlimited,
		StreamsInbound:  rcmgr.Unlimited,
		StreamsOutbound: rcmgr.Unlimited,
		Memory:          rcmgr.Unlimited64,
	}
	ours := rcmgr.ResourceLimits{
		Streams:         rcmgr.Unlimited,
		StreamsOutbound: rcmgr.Unlimited,
	}
	limits := rcmgr.PartialLimitConfig{
		System:       ours,
		Transient:    ours,
		PeerDefault:  ours,
		Protocol:     make(map[protocol.ID]rcmgr.ResourceLimits),
		ProtocolPeer: make(map[protocol.ID]rcmgr.ResourceLimits),
	}
	for _, p := range Protocols() {
		limits.Protocol[p] = free
		limits.ProtocolPeer[p] = free
	}
	return limits
}
