package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"time"

	"github.com/ipfs/boxo/blockstore"
	flatfs "github.com/ipfs/go-ds-flatfs"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
)

// operationLimit is how long one operation of a node may take.
const operationLimit = 3 * time.Minute

// A node is a peer: a libp2p host, a store and an exchange. It does one
// operation at a time.
type node struct {
	host     host.Host
	store    blockstore.Blockstore
	exchange runningExchange
	profile  *os.File
	closers  []func() error
}

// ops are the operations of the node protocol, with what they read of a request.
var ops = map[string]func(*node, context.Context, request) (answer, error){
	"start":       (*node).start,      // exchange, store, dir, transport, ip: answers with peer, addr, plugin
	"gen":         (*node).gen,        // count, size, seed, file (written), keep: fills the store
	"dag-add":     (*node).dagAdd,     // size (chunk), bytes, seed: answers with root
	"connect":     (*node).connect,    // peer, addr: dials
	"await":       (*node).await,      // peer: returns when it is known what the peer speaks
	"profile":     (*node).trace,      // file: begins a CPU profile; none: ends it
	"counts":      (*node).count,      // answers with received_bytes, duplicate_bytes, sent_bytes
	"crowd":       (*node).crowd,      // exchange, peer, addr, count, wants: peers that ask that node
	"standing":    (*node).standing,   // answers with peers, wants: what peers ask this one
	"fetch":       (*node).fetch,      // file, window
	"latency":     (*node).latency,    // file, way ("each", "session")
	"dag-walk":    (*node).dagWalk,    // root, bytes, way ("graph", "reader")
	"stream":      (*node).readStream, // peer, bytes
	"tcp-serve":   (*node).serveTCP,   // ip: answers with addr
	"tcp-receive": (*node).readTCP,    // addr, bytes; or count, size
}

// serveNode is a node, until in ends.
func serveNode(ctx context.Context, in io.Reader, out io.Writer) error {
	n := &node{}
	defer n.close()
	w := json.NewEncoder(out)
	for lines := bufio.NewReader(in); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		a, err := n.do(ctx, line)
		if err != nil {
			a = answer{Err: err.Error()}
		}
		if err := w.Encode(a); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	}
}

func (n *node) do(ctx context.Context, line []byte) (answer, error) {
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		return answer{}, fmt.Errorf("read request %.100q: %w", line, err)
	}
	op, ok := ops[q.Op]
	if !ok {
		return answer{}, fmt.Errorf("unknown operation %q", q.Op)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, operationLimit, fmt.Errorf("took longer than %v", operationLimit))
	defer cancel()
	return op(n, ctx, q)
}

// close ends what runs, the last first. Errors are of no use to anybody then.
func (n *node) close() {
	for i := len(n.closers) - 1; i >= 0; i-- {
		n.closers[i]()
	}
}

func (n *node) start(_ context.Context, q request) (answer, error) {
	var err error
	if n.store, err = n.openStore(q.Store, q.Dir); err != nil {
		return answer{}, err
	}
	if n.host, err = newHost(q.Transport); err != nil {
		return answer{}, err
	}
	n.closers = append(n.closers, n.host.Close)
	n.host.SetStreamHandler(streamProtocol, serveStream)
	if q.Exchange != "" {
		kind, err := exchangeByName(q.Exchange)
		if err != nil {
			return answer{}, err
		}
		if n.exchange, err = kind.start(n.host, n.store); err != nil {
			return answer{}, fmt.Errorf("start %s: %w", q.Exchange, err)
		}
		n.closers = append(n.closers, n.exchange.Close)
	}
	format := "/ip4/%s/tcp/0"
	if q.Transport == "quic" {
		format = "/ip4/%s/udp/0/quic-v1"
	}
	a, err := multiaddr.NewMultiaddr(fmt.Sprintf(format, orLoopback(q.IP)))
	if err != nil {
		return answer{}, err
	}
	if err := n.host.Network().Listen(a); err != nil {
		return answer{}, fmt.Errorf("listen on %s: %w", a, err)
	}
	return answer{Peer: n.host.ID().String(), Addr: n.host.Addrs()[0].String(), Plugin: n.exchange.plugin}, nil
}

func orLoopback(ip string) string {
	if ip == "" {
		return "127.0.0.1"
	}
	return ip
}

// openStore opens a store that is closed with the node.
func (n *node) openStore(kind, dir string) (blockstore.Blockstore, error) {
	switch kind {
	case "mem":
		return newMemStore(), nil
	case "made":
		return &madeStore{Blockstore: newMemStore()}, nil
	case "discard":
		return discardStore{newMemStore()}, nil
	case "flatfs":
		shard, err := flatfs.ParseShardFunc("/repo/flatfs/shard/v1/next-to-last/2")
		if err != nil {
			return nil, err
		}
		fs, err := flatfs.CreateOrOpen(dir, shard, false)
		if err != nil {
			return nil, fmt.Errorf("open flatfs %s: %w", dir, err)
		}
		n.closers = append(n.closers, fs.Close)
		return blockstore.NewBlockstore(fs, blockstore.NoPrefix()), nil
	}
	return nil, fmt.Errorf("unknown store %q, want mem, flatfs, made or discard", kind)
}

// newHost makes a libp2p host that does not listen yet. Its streams are not
// limited: Bitswap opens one for each message, and what go-libp2p refuses by
// default is lost for half a minute. Nor are its connections, as far as any suite
// has them: by default all beyond 192 would be closed.
func newHost(transport string) (host.Host, error) {
	limits, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits))
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(2*idlePeers, 3*idlePeers)
	if err != nil {
		return nil, err
	}
	opts := []libp2p.Option{libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.ResourceManager(limits), libp2p.ConnectionManager(conns)}
	switch transport {
	case "", "tcp-noise":
		opts = append(opts, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New))
	case "tcp-tls":
		opts = append(opts, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New))
	case "quic":
		opts = append(opts, libp2p.Transport(quic.NewTransport))
	default:
		return nil, fmt.Errorf("unknown transport %q, want tcp-noise, tcp-tls or quic", transport)
	}
	return libp2p.New(opts...)
}

func (n *node) connect(ctx context.Context, q request) (answer, error) {
	info, err := peer.AddrInfoFromString(q.Addr + "/p2p/" + q.Peer)
	if err != nil {
		return answer{}, err
	}
	if err := n.host.Connect(ctx, *info); err != nil {
		return answer{}, err
	}
	return n.await(ctx, q)
}

func (n *node) await(ctx context.Context, q request) (answer, error) {
	id, err := peer.Decode(q.Peer)
	if err != nil {
		return answer{}, err
	}
	identified, err := n.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return answer{}, err
	}
	defer identified.Close()
	for {
		known, err := n.host.Peerstore().GetProtocols(id)
		if err != nil || len(known) > 0 {
			return answer{}, err
		}
		select {
		case <-identified.Out():
		case <-ctx.Done():
			return answer{}, context.Cause(ctx)
		}
	}
}

func (n *node) trace(_ context.Context, q request) (answer, error) {
	if q.File == "" {
		pprof.StopCPUProfile()
		return answer{}, n.profile.Close()
	}
	var err error
	if n.profile, err = os.Create(q.File); err != nil {
		return answer{}, err
	}
	return answer{}, pprof.StartCPUProfile(n.profile)
}

func (n *node) count(context.Context, request) (answer, error) {
	c, err := n.exchange.counts()
	if err != nil {
		return answer{}, err
	}
	return answer{Figures: figures{
		"received_bytes":  float64(c.received),
		"duplicate_bytes": float64(c.duplicate),
		"sent_bytes":      float64(c.sent),
	}}, nil
}
