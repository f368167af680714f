package borrow

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// maxValues is how many tags and protections are kept, and how many changes
	// may wait to be sent. Beyond it new ones are refused, and that is logged.
	maxValues = 1 << 14
	// valuesAtOnce is how many changes are sent in one call.
	valuesAtOnce = 1024
	// maxTag is how long a tag may be, bytes.
	maxTag = 256
)

// values is connmgr.ConnManager over the host's: it keeps what was set here, and
// run sends the changes, of each tag the latest only. As in libp2p's own, tags go
// with the last connection of a peer, and protections stay.
type values struct {
	n    *Node
	wake chan struct{} // capacity 1: changes is not empty

	mu      sync.Mutex
	peers   map[peer.ID]*valued
	count   int // tags and protections in peers
	changes map[valueKey]*pb.PeerValue
	lost    int // refused since that was logged
}

// valued is what was set of a peer.
type valued struct {
	since     time.Time
	tags      map[string]int
	protected map[string]struct{}
}

type valueKey struct {
	peer    peer.ID
	tag     string
	protect bool
}

var _ connmgr.ConnManager = (*values)(nil)

func newValues(n *Node) *values {
	return &values{n: n, wake: make(chan struct{}, 1), peers: make(map[peer.ID]*valued), changes: make(map[valueKey]*pb.PeerValue)}
}

func (v *values) TagPeer(p peer.ID, tag string, value int) {
	v.UpsertTag(p, tag, func(int) int { return value })
}

func (v *values) UpsertTag(p peer.ID, tag string, upsert func(int) int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	old, had := 0, false
	if of := v.peers[p]; of != nil {
		old, had = of.tags[tag], has(of.tags, tag)
	}
	value := upsert(old)
	if had && value == old || !v.change(valueKey{p, tag, false}, !had, &pb.PeerValue{What: &pb.PeerValue_Value{Value: int64(value)}}) {
		return
	}
	v.of(p).tags[tag] = value
}

func (v *values) UntagPeer(p peer.ID, tag string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	of := v.peers[p]
	if of == nil || !has(of.tags, tag) {
		return
	}
	v.untag(p, of, tag)
	v.tidy(p, of)
}

func (v *values) Protect(p peer.ID, tag string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if of := v.peers[p]; of != nil && has(of.protected, tag) {
		return
	}
	if v.change(valueKey{p, tag, true}, true, &pb.PeerValue{What: &pb.PeerValue_Protect{Protect: true}}) {
		v.of(p).protected[tag] = struct{}{}
	}
}

// Unprotect reports whether the peer is protected by another tag that was set
// here.
func (v *values) Unprotect(p peer.ID, tag string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	of := v.peers[p]
	if of == nil {
		return false
	}
	if has(of.protected, tag) {
		delete(of.protected, tag)
		v.count--
		v.change(valueKey{p, tag, true}, false, &pb.PeerValue{What: &pb.PeerValue_Protect{}})
		v.tidy(p, of)
	}
	return len(of.protected) > 0
}

func (v *values) IsProtected(p peer.ID, tag string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	of := v.peers[p]
	return of != nil && (tag == "" && len(of.protected) > 0 || has(of.protected, tag))
}

// GetTagInfo is what was set here, nil if that is nothing.
func (v *values) GetTagInfo(p peer.ID) *connmgr.TagInfo {
	v.mu.Lock()
	defer v.mu.Unlock()
	of := v.peers[p]
	if of == nil {
		return nil
	}
	info := &connmgr.TagInfo{FirstSeen: of.since, Tags: maps.Clone(of.tags), Conns: make(map[string]time.Time)}
	for _, value := range of.tags {
		info.Value += value
	}
	for _, c := range v.n.mirror.connsTo(p) {
		info.Conns[c.id] = c.opened
	}
	return info
}

// TrimOpenConns, Notifee, CheckLimit and Close have nothing to do: connections
// are trimmed by the host.
func (v *values) TrimOpenConns(context.Context)           {}
func (v *values) Notifee() network.Notifiee               { return network.GlobalNoopNotifiee }
func (v *values) CheckLimit(connmgr.GetConnLimiter) error { return nil }
func (v *values) Close() error                            { return nil }

func has[K comparable, V any](m map[K]V, key K) bool {
	_, ok := m[key]
	return ok
}

// of is the record of a peer, made if need be. Lock held.
func (v *values) of(p peer.ID) *valued {
	of := v.peers[p]
	if of == nil {
		of = &valued{since: time.Now(), tags: make(map[string]int), protected: make(map[string]struct{})}
		v.peers[p] = of
	}
	return of
}

// tidy forgets a record that is empty. Lock held.
func (v *values) tidy(p peer.ID, of *valued) {
	if len(of.tags)+len(of.protected) == 0 {
		delete(v.peers, p)
	}
}

// left forgets the tags of a peer whose last connection is lost, also in the host,
// which may count them.
func (v *values) left(p peer.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if of := v.peers[p]; of != nil {
		for tag := range of.tags {
			v.untag(p, of, tag)
		}
		v.tidy(p, of)
	}
}

// untag forgets a tag. Lock held.
func (v *values) untag(p peer.ID, of *valued, tag string) {
	delete(of.tags, tag)
	v.count--
	v.change(valueKey{p, tag, false}, false, &pb.PeerValue{What: &pb.PeerValue_Untag{Untag: true}})
}

// change puts a change into the queue, in place of an earlier one of the same
// tag; more says that one more is to be kept. It returns false if there is no
// room. Lock held.
func (v *values) change(key valueKey, more bool, to *pb.PeerValue) bool {
	_, err := peer.IDFromBytes([]byte(key.peer))
	odd := err != nil || key.tag == "" || len(key.tag) > maxTag // the host would refuse all that go with it
	if odd || !has(v.changes, key) && len(v.changes) >= maxValues || more && v.count >= maxValues {
		v.lost++
		return false
	}
	if more {
		v.count++
	}
	to.Peer, to.Tag = []byte(key.peer), key.tag
	v.changes[key] = to
	select {
	case v.wake <- struct{}{}:
	default:
	}
	return true
}

// take takes some changes from the queue, and says how many were refused.
func (v *values) take() (some []*pb.PeerValue, lost int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for key, change := range v.changes {
		if len(some) == valuesAtOnce {
			break
		}
		some = append(some, change)
		delete(v.changes, key)
	}
	lost, v.lost = v.lost, 0
	return some, lost
}

// run sends changes until the node is over. Those that fail are lost.
func (v *values) run() {
	for {
		some, lost := v.take()
		if lost > 0 {
			v.n.log.Warn("tags of peers were not set: there are too many, or their names are too long", "refused", lost, "limit", maxValues)
		}
		if len(some) == 0 {
			select {
			case <-v.wake:
				continue
			case <-v.n.done:
				return
			}
		}
		_, err := v.n.client.Value(v.n.ctx, &pb.ValueRequest{Values: some})
		if v.n.Err() != nil {
			return
		}
		if err != nil {
			v.n.log.Warn("tags of peers were not set", "lost", len(some), "err", pb.FromStatus(v.n.ctx, err, errs.Ours, "value peers"))
		}
	}
}
