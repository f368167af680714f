package lend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
)

// Blocks is the part of boxo's blockstore that is lent. Methods return when ctx
// ends, and say that a block is not there with an error that ipld.IsNotFound
// knows, or one of kind errs.NotFound.
type Blocks interface {
	GetSize(context.Context, cid.Cid) (int, error)
	Get(context.Context, cid.Cid) (blocks.Block, error)
}

// Leaves knows which block stands at which place of a tree, and the encoded
// proof of it. The error is of kind errs.NotFound if it does not know.
type Leaves interface {
	Leaf(ctx context.Context, root cid.Cid, index uint64) (block cid.Cid, proof []byte, err error)
}

// Router is libp2p's routing.ContentRouting.
type Router interface {
	Provide(ctx context.Context, c cid.Cid, announce bool) error
	FindProvidersAsync(ctx context.Context, c cid.Cid, max int) <-chan peer.AddrInfo
}

// Options say what is lent to whom. Name, Host and Blocks are required.
type Options struct {
	// Name is the plugin's, at most 64 bytes without spaces. Its streams are
	// accounted in the host's resource manager as a service called "plugin." and
	// the name, whose limits are the host's to choose, and its tags in the
	// connection manager begin with that.
	Name   string
	Host   host.Host // remains the caller's
	Blocks Blocks
	Leaves Leaves       // nil if there are none
	Router Router       // nil if there is none
	Log    *slog.Logger // nil means slog.Default()

	// InboundWait is how long a stream that a peer has opened waits to be told
	// of, between two incarnations of the plugin, say. Default 5 s; at most 1 min.
	InboundWait time.Duration
	// InboundPerPeer and Inbound are how many streams of one peer, and of all,
	// may wait so; those beyond are reset. Default 32 and 256.
	InboundPerPeer, Inbound int
	// Streams is how many streams the plugin may have open, of either direction.
	// Default 4,096.
	Streams int
	// Tags is how many tags and protections of peers the plugin may have; those
	// beyond are ignored. Default 16,384.
	Tags int
	// Reconcile is the time between two passes over all connected peers, which
	// find what no event tells, as the latency. Default 30 s; negative switches
	// it off.
	Reconcile time.Duration
	// NoMemory says to share no memory with the plugin, so that everything crosses
	// by sockets.
	NoMemory bool

	dialWait  time.Duration // 0 means DialWait
	closeWait time.Duration // 0 means 2 s, see Lease.Close and Lease.watch
}

const (
	maxName           = 64 // bytes
	defaultWait       = 5 * time.Second
	maxWait           = time.Minute
	defaultPerPeer    = 32
	defaultInbound    = 256
	defaultStreams    = 4096
	defaultTags       = 16384
	maxNumber         = 1 << 20 // of each limit that is a number
	defaultReconcile  = 30 * time.Second
	busBuffer         = 256 // events of the host that wait for watch, which takes them at once
	maxProtocols      = 256 // that plugins may handle
	maxProtocolLength = 256 // bytes
)

// fill puts defaults in place of zeros, and says everything that is wrong.
func (o Options) fill() (Options, error) {
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if o.Name == "" || len(o.Name) > maxName || strings.ContainsFunc(o.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		bad("Name is %.80q, want 1 to %d bytes without spaces", o.Name, maxName)
	}
	if o.Host == nil {
		bad("no Host")
	}
	if o.Blocks == nil {
		bad("no Blocks")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.InboundWait == 0 {
		o.InboundWait = defaultWait
	}
	if o.InboundWait < 0 || o.InboundWait > maxWait {
		bad("InboundWait is %v, want at most %v", o.InboundWait, maxWait)
	}
	for _, n := range []struct {
		name  string
		value *int
		usual int
	}{
		{"InboundPerPeer", &o.InboundPerPeer, defaultPerPeer},
		{"Inbound", &o.Inbound, defaultInbound},
		{"Streams", &o.Streams, defaultStreams},
		{"Tags", &o.Tags, defaultTags},
	} {
		if *n.value == 0 {
			*n.value = n.usual
		}
		if *n.value < 1 || *n.value > maxNumber {
			bad("%s is %d, want 1 to %d", n.name, *n.value, maxNumber)
		}
	}
	if o.Reconcile == 0 {
		o.Reconcile = defaultReconcile
	}
	if o.dialWait == 0 {
		o.dialWait = DialWait
	}
	if o.closeWait == 0 {
		o.closeWait = defaultCloseWait
	}
	if len(wrong) > 0 {
		return o, errs.E(errs.Invalid, errs.Caller, "lend to plugin", "", errors.Join(wrong...))
	}
	return o, nil
}

// A Lender lends a host, a store and a router to one plugin, over all its
// incarnations. Its methods may be called from any goroutine. Get one from New,
// before the host listens or dials if that is possible, and end it with Close;
// what was given in Options may be closed afterwards.
type Lender struct {
	opts     Options
	service  string // "plugin." and the name
	counters Counters
	epoch    atomic.Uint64 // of the latest that was given to a peer
	expired  atomic.Uint64 // see Stat
	refused  atomic.Uint64
	missing  atomic.Uint64
	ignored  atomic.Uint64

	bus    event.Subscription
	notifs network.Notifiee
	stop   chan struct{} // closed by Close
	calls  sync.WaitGroup
	ended  chan struct{} // closed when Close is done

	counting sync.Once
	uncount  func() // of heap.Count; nil if nothing was shared

	// handling is held while the host's handlers are changed, so that they agree
	// with protocols. It is taken before mu.
	handling sync.Mutex

	mu         sync.Mutex // while it is held nobody is waited for, and no other lock of the package is taken
	closed     bool
	lease      *Lease // the open one
	feed       *feed  // of its call of Events
	protocols  map[protocol.ID]*handler
	waiting    map[peer.ID][]*inbound // in the order in which they came
	waitingAll int
	identified map[string]network.Conn // by id; open connections on which identify has completed
}

// New begins to watch the host. The error is of kind errs.Invalid, and names
// everything that is wrong with the options.
func New(o Options) (*Lender, error) {
	o, err := o.fill()
	if err != nil {
		return nil, err
	}
	l := &Lender{
		opts: o, service: "plugin." + o.Name,
		stop: make(chan struct{}), ended: make(chan struct{}),
		protocols: make(map[protocol.ID]*handler), waiting: make(map[peer.ID][]*inbound), identified: make(map[string]network.Conn),
	}
	l.bus, err = o.Host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerProtocolsUpdated),
	}, eventbus.BufSize(busBuffer), eventbus.Name(l.service))
	if err != nil {
		return nil, errs.E(errs.Other, errs.Ours, "lend to plugin", o.Name, err)
	}
	l.notifs = &network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { l.look(c.RemotePeer()) },
		DisconnectedF: func(_ network.Network, c network.Conn) { l.gone(c) },
	}
	o.Host.Network().Notify(l.notifs)
	// Nobody tells whether identify has completed on connections that are there
	// already. That the protocols are known says so, nearly always.
	for _, c := range o.Host.Network().Conns() {
		if known, err := o.Host.Peerstore().GetProtocols(c.RemotePeer()); err == nil && len(known) > 0 {
			l.identify(c)
		}
	}
	l.calls.Go(l.watch)
	return l, nil
}

// Counters count what crosses the boundary, by what the byte channels are for. Out
// is to the plugin. The fields may be read at any time.
type Counters struct {
	Streams channel.Counters // libp2p streams
	Results channel.Counters // what the exchange brings
	Calls   channel.Counters // calls of service Host
}

// Counters are those of all incarnations.
func (l *Lender) Counters() *Counters { return &l.counters }

// Stat is how things are with a Lender.
type Stat struct {
	Open           bool          // there is a lease
	Protocols      []protocol.ID // that plugins have handled, sorted
	Streams        int           // that the plugin has open, with those being opened
	InboundWaiting int           // streams of peers that the plugin has not been told of
	Tags           int           // tags and protections of peers

	InboundExpired uint64 // streams that waited too long for the plugin, ever
	StreamsRefused uint64 // streams of either direction beyond a limit, ever
	TagsIgnored    uint64 // tags and protections beyond the limit, ever
	BlocksMissing  uint64 // block references that could not be filled, ever
}

// Stat counts. It is cheap.
func (l *Lender) Stat() Stat {
	s := Stat{
		InboundExpired: l.expired.Load(), StreamsRefused: l.refused.Load(),
		TagsIgnored: l.ignored.Load(), BlocksMissing: l.missing.Load(),
	}
	l.mu.Lock()
	lease := l.lease
	s.InboundWaiting = l.waitingAll
	for id := range l.protocols {
		s.Protocols = append(s.Protocols, id)
	}
	if lease != nil {
		s.Open, s.Streams = !lease.closed, lease.streams
	}
	l.mu.Unlock()
	if lease != nil {
		s.Tags = lease.values.count()
	}
	slices.Sort(s.Protocols)
	return s
}

// Close closes the open lease, gives the plugin's protocols back to the host,
// resets the streams that wait, and waits for everything that was started. It
// returns nil, also when called again.
func (l *Lender) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.ended
		return nil
	}
	l.closed = true
	lease := l.lease
	l.mu.Unlock()

	if lease != nil {
		lease.Close()
	}
	l.counting.Do(func() {}) // nothing is counted from now on
	if l.uncount != nil {
		l.uncount()
	}
	l.forget(func(*handler) bool { return true })
	l.opts.Host.Network().StopNotify(l.notifs)
	_ = l.bus.Close() // cannot fail
	close(l.stop)
	l.calls.Wait()
	close(l.ended)
	return nil
}

// watch takes events from the host's bus until Close.
func (l *Lender) watch() {
	var pass <-chan time.Time // nil: never
	if every := l.opts.Reconcile; every > 0 {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		pass = ticker.C
	}
	for {
		select {
		case <-l.stop:
			return
		case <-pass:
			l.lookAtAll()
		case ev, ok := <-l.bus.Out():
			if !ok {
				return
			}
			switch ev := ev.(type) {
			case event.EvtPeerIdentificationCompleted:
				if ev.Conn != nil {
					l.identify(ev.Conn)
				}
				l.look(ev.Peer)
			case event.EvtPeerProtocolsUpdated:
				l.look(ev.Peer)
			}
		}
	}
}

// look has the plugin told how things are with a peer, if it reads Events.
func (l *Lender) look(p peer.ID) {
	l.mu.Lock()
	f := l.feed
	l.mu.Unlock()
	if f != nil {
		f.look(p)
	}
}

func (l *Lender) lookAtAll() {
	l.mu.Lock()
	f := l.feed
	for id, c := range l.identified {
		if c.IsClosed() {
			delete(l.identified, id)
		}
	}
	l.mu.Unlock()
	if f == nil {
		return
	}
	for _, p := range l.opts.Host.Network().Peers() {
		f.look(p)
	}
	for _, p := range f.toldPeers() {
		f.look(p)
	}
}

// identify notes that identify has completed on a connection. A connection is
// closed before the host tells so, and then gone removes it.
func (l *Lender) identify(c network.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.IsClosed() {
		l.identified[c.ID()] = c
	}
}

func (l *Lender) gone(c network.Conn) {
	l.mu.Lock()
	delete(l.identified, c.ID())
	l.mu.Unlock()
	l.look(c.RemotePeer())
}

// anyIdentified reports whether identify has completed on one of the connections.
func (l *Lender) anyIdentified(conns []network.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(conns, func(c network.Conn) bool { return l.identified[c.ID()] != nil })
}
