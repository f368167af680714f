package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	bspb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

const (
	idlePeers = 1000
	idleWants = 1000 // of each peer; Bitswap keeps 1,024 of one
	idleFor   = 30   // s; yamux and the exchange look after each connection as often

	calmLook  = 500 * time.Millisecond
	calmLimit = 30 * time.Second
	calmCores = 0.02

	dialling = 8 // peers that connect at a time
)

// An asking is how peers that do nothing else ask an exchange for blocks.
type asking struct {
	protocol protocol.ID
	write    func(io.Writer, []cid.Cid) error
}

var askingBlockexc = &asking{exchange.ProtocolID, func(w io.Writer, list []cid.Cid) error {
	var m wire.Message
	for _, c := range list {
		m.WantList.Entries = append(m.WantList.Entries, wire.Entry{Address: wire.Block(c), Type: wire.WantHave})
	}
	return blockexc.NewWriter(w, blockexc.Limits{}).Write(&m)
}}

var askingBitswap = &asking{bsnet.ProtocolBitswap, func(w io.Writer, list []cid.Cid) error {
	m := message.New(false)
	for _, c := range list {
		m.AddEntry(c, 1, bspb.Message_Wantlist_Have, false)
	}
	return m.ToNetV1(w)
}}

// idle leaves a node alone to which a crowd of peers is connected, each of which
// has asked it for so many blocks that it does not have, and that no other peer
// asks for. The crowd lives in one other process.
func (b *bench) idle(ctx context.Context, exchange string, peers, wants int, quiet time.Duration) (f figures, err error) {
	c, err := b.start(ctx, layout{exchange: exchange})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	node, crowd := c.seeders[0], c.leechers[0]
	begun := time.Now()
	if _, err := crowd.call(request{Op: "crowd", Exchange: exchange, Peer: node.peer, Addr: node.addr, Count: peers, Wants: wants}); err != nil {
		return nil, err
	}
	if err := calm(ctx, node); err != nil {
		return nil, err
	}
	loaded := time.Since(begun)
	m, err := b.measure(node)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, quiet); err != nil {
		return nil, err
	}
	u, err := m.end()
	if err != nil {
		return nil, err
	}
	// Only now, for to list a million wants takes memory too.
	a, err := node.call(request{Op: "standing"})
	if err != nil {
		return nil, err
	}
	if got, want := a.Figures["wants"], float64(peers*wants); got != want {
		return nil, fmt.Errorf("%s: %v wants stand of %v peers, want %v of %d", node.role, got, a.Figures["peers"], want, peers)
	}
	return figures{
		"wall_s": u.wall, "loading_s": loaded.Seconds(), "peers": float64(peers), "wants": a.Figures["wants"],
		"cpu_s": u.cpu[0], "cores_node": u.cpu[0] / u.wall, "rss_node_mib": u.peak[0], "rss_node_before_mib": u.before[0],
	}, nil
}

// calm returns when a node has little left to do, or calmLimit has passed.
func calm(ctx context.Context, p *process) error {
	for end := time.Now().Add(calmLimit); time.Now().Before(end); {
		before := p.total(processCPU)
		if math.IsNaN(before) {
			return nil
		}
		if err := wait(ctx, calmLook); err != nil {
			return err
		}
		if p.total(processCPU)-before <= calmCores*calmLook.Seconds() {
			return nil
		}
	}
	return nil
}

// wait returns after d, or with the reason why ctx has ended.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// crowd makes peers that connect to a node, each with a host and a connection of
// its own. Each announces the protocol, asks for blocks that nobody has, and is
// silent after that until this node is closed.
func (n *node) crowd(ctx context.Context, q request) (answer, error) {
	kind, err := exchangeByName(q.Exchange)
	if err != nil {
		return answer{}, err
	}
	info, err := peer.AddrInfoFromString(q.Addr + "/p2p/" + q.Peer)
	if err != nil {
		return answer{}, err
	}
	var mu sync.Mutex // guards n.closers
	var joining errgroup.Group
	joining.SetLimit(dialling)
	for i := range q.Count {
		joining.Go(func() error {
			h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(),
				libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New))
			if err != nil {
				return err
			}
			mu.Lock()
			n.closers = append(n.closers, h.Close)
			mu.Unlock()
			if err := ask(ctx, h, *info, kind.asking, nobodyHas(i, q.Wants)); err != nil {
				return fmt.Errorf("peer %d of %d: %w", i+1, q.Count, err)
			}
			return nil
		})
	}
	return answer{}, joining.Wait()
}

// ask connects to a node and asks it for blocks, if for any, over a stream that
// stays open.
func ask(ctx context.Context, h host.Host, to peer.AddrInfo, how *asking, list []cid.Cid) error {
	h.SetStreamHandler(how.protocol, func(s network.Stream) {
		io.Copy(io.Discard, s) // ends with the host
		s.Close()
	})
	if err := h.Connect(ctx, to); err != nil || len(list) == 0 {
		return err
	}
	s, err := h.NewStream(ctx, to.ID, how.protocol)
	if err != nil {
		return err
	}
	return how.write(s, list)
}

// nobodyHas are CIDs of no blocks, others for each peer.
func nobodyHas(number, count int) []cid.Cid {
	list := make([]cid.Cid, count)
	for i := range list {
		digest := sha256.Sum256(fmt.Appendf(nil, "%d %d", number, i))
		hash, err := mh.Encode(digest[:], mh.SHA2_256)
		if err != nil {
			panic(err) // 32 bytes are right for it
		}
		list[i] = cid.NewCidV1(cid.Raw, hash)
	}
	return list
}

// standing counts what the connected peers ask this node for.
func (n *node) standing(context.Context, request) (answer, error) {
	asked, ok := n.exchange.SessionExchange.(interface {
		WantlistForPeer(peer.ID) []cid.Cid
	})
	if !ok {
		return answer{}, errors.New("the exchange does not say what peers ask for")
	}
	f := figures{"peers": 0, "wants": 0}
	for _, p := range n.host.Network().Peers() {
		f["peers"]++
		f["wants"] += float64(len(asked.WantlistForPeer(p)))
	}
	return answer{Figures: f}, nil
}
