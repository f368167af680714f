// Package memnet is a network in memory for tests: nodes that implement
// exchange.Network, links between them, and faults on demand.
//
// It keeps what the contract of exchange.Network promises (ordered PeerUp and
// PeerDown with rising epochs, streams of bytes with back-pressure, resets that
// differ from a close) and leaves out what a real transport adds: dialling,
// encryption, loss. A link can have a latency. Bandwidth has no limit. A node can
// have streams that put blocks in by themselves, as those of a plugin do
// (Node.FillFrom).
//
// It works in a testing/synctest bubble if the Net is made in the bubble: it
// waits on channels and timers only, and holds no lock while it waits, so that
// a latency of ten seconds takes no time.
//
//	net := memnet.New()
//	alice, bob := net.Node(memnet.ID("alice")), net.Node(memnet.ID("bob"))
//	net.SetLatency(alice.Self(), bob.Self(), 20*time.Millisecond)
//	net.Connect(alice.Self(), bob.Self())
//
// Goroutines: one for each attached node, which calls its handler, and one for
// each call of HandleStream. The function that Attach returned waits for them.
package memnet

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// DefaultBuffer is how many bytes a stream holds in one direction before its
// writer has to wait for the reader. It is the initial window of yamux.
const DefaultBuffer = 256 << 10

// ID returns the peer id of a name: the same name has the same id in every run,
// and the id is one that a libp2p host could have.
func ID(name string) peer.ID {
	seed := sha256.Sum256([]byte(name))
	pub, err := crypto.UnmarshalEd25519PublicKey(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
	if err != nil {
		panic(fmt.Sprintf("memnet: key of %q: %v", name, err))
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		panic(fmt.Sprintf("memnet: id of %q: %v", name, err))
	}
	return id
}

// A Net is a set of nodes and the links between them. Its methods may be called
// from any goroutine.
type Net struct {
	mu      sync.Mutex // guards all below, and the nodes' fields that say so
	nodes   map[peer.ID]*Node
	links   map[pair]*link
	latency map[pair]time.Duration
	buffer  int
	streams int
}

// New makes a network without nodes.
func New() *Net {
	return &Net{
		nodes:   make(map[peer.ID]*Node),
		links:   make(map[pair]*link),
		latency: make(map[pair]time.Duration),
		buffer:  DefaultBuffer,
		streams: 1,
	}
}

// A pair is two different nodes in a fixed order.
type pair struct{ low, high peer.ID }

func pairOf(a, b peer.ID) pair {
	if a > b {
		a, b = b, a
	}
	return pair{a, b}
}

// A link is one connection. Guarded by Net.mu.
type link struct {
	streams map[*stream]struct{} // the opening side of each
}

// Node returns the node with this id, and makes it if there is none.
func (n *Net) Node(id peer.ID) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node(id)
}

func (n *Net) node(id peer.ID) *Node {
	x := n.nodes[id]
	if x == nil {
		x = &Node{net: n, id: id, up: make(map[peer.ID]uint64), tags: make(map[peer.ID]int), wake: make(chan struct{}, 1)}
		n.nodes[id] = x
	}
	return x
}

// SetBuffer sets how many bytes each direction of a stream holds, from streams
// opened after the call. It must be at least 1.
func (n *Net) SetBuffer(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.buffer = max(bytes, 1)
}

// SetStreams sets how many streams of a peer each node reads at a time, 1 if it is
// not called.
func (n *Net) SetStreams(count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.streams = count
}

// SetLatency sets how long bytes, ends and resets travel between two nodes in
// one direction, for streams opened after the call. A stream is announced to the
// other side after the same time.
func (n *Net) SetLatency(a, b peer.ID, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency[pairOf(a, b)] = d
}

// Connect links two nodes, unless they are. Both handlers hear PeerUp when both
// nodes are attached.
func (n *Net) Connect(a, b peer.ID) {
	if a == b {
		panic(fmt.Sprintf("memnet: connect %s to itself", a))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	x, y := n.node(a), n.node(b)
	if p := pairOf(a, b); n.links[p] == nil {
		n.links[p] = &link{streams: make(map[*stream]struct{})}
		n.tell(x, y)
	}
}

// Disconnect cuts the link between two nodes, if there is one: streams are reset
// on both sides at once, and both handlers hear PeerDown.
func (n *Net) Disconnect(a, b peer.ID) {
	n.mu.Lock()
	p := pairOf(a, b)
	l := n.links[p]
	delete(n.links, p)
	if l != nil {
		n.tell(n.node(a), n.node(b))
	}
	n.mu.Unlock()
	if l != nil {
		l.cut(n)
	}
}

// Connected reports whether two nodes are linked.
func (n *Net) Connected(a, b peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[pairOf(a, b)] != nil
}

// DropStreams resets every stream between two nodes on both sides and keeps
// them connected. It returns how many there were.
func (n *Net) DropStreams(a, b peer.ID) int {
	n.mu.Lock()
	l := n.links[pairOf(a, b)]
	n.mu.Unlock()
	if l == nil {
		return 0
	}
	return l.cut(n)
}

// Streams is the number of streams between two nodes that have been neither
// reset nor closed by both sides.
func (n *Net) Streams(a, b peer.ID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[pairOf(a, b)]
	if l == nil {
		return 0
	}
	return len(l.streams)
}

// cut resets all streams of the link, without latency.
func (l *link) cut(n *Net) int {
	n.mu.Lock()
	streams := l.streams
	l.streams = make(map[*stream]struct{})
	n.mu.Unlock()
	for s := range streams {
		s.sever()
	}
	return len(streams)
}

// neighbours are the nodes linked to one, in order of their ids. The caller
// holds n.mu.
func (n *Net) neighbours(id peer.ID) []*Node {
	var list []*Node
	for p := range n.links {
		switch id {
		case p.low:
			list = append(list, n.node(p.high))
		case p.high:
			list = append(list, n.node(p.low))
		}
	}
	slices.SortFunc(list, func(a, b *Node) int { return cmp.Compare(a.id, b.id) })
	return list
}

// tell queues what the handlers of two nodes have to hear about each other after
// a change. The caller holds n.mu.
func (n *Net) tell(x, y *Node) {
	up := n.links[pairOf(x.id, y.id)] != nil && x.handler != nil && y.handler != nil
	x.tell(y.id, up)
	y.tell(x.id, up)
}
