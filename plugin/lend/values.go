package lend

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

// maxValue bounds what a tag may be worth, so that sums of tags stay sums; what
// lies beyond counts as this.
const maxValue = 1 << 20

// values are the tags and protections that one incarnation has set in the host's
// connection manager. Methods may be called from any goroutine.
type values struct {
	l *Lender

	mu     sync.Mutex // held while the connection manager is told, which does not wait
	closed bool
	full   bool // the limit was met, and logged
	set    map[valueKey]struct{}
}

type valueKey struct {
	peer    peer.ID
	name    string // in the connection manager
	protect bool
}

func newValues(l *Lender) *values { return &values{l: l, set: make(map[valueKey]struct{})} }

func (v *values) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.set)
}

// apply tells the connection manager all of it, or nothing if one is wrong.
func (v *values) apply(all []*pb.PeerValue) error {
	const op = "value connections"
	keys := make([]valueKey, len(all))
	for i, m := range all {
		p, err := parsePeer(op, m.GetPeer())
		if err != nil {
			return err
		}
		if tag := m.GetTag(); tag == "" || len(tag) > maxTag {
			return errs.Errorf(errs.Invalid, errs.Plugin, op, "%v: tag %.40q is %d bytes, want 1 to %d", p, tag, len(tag), maxTag)
		}
		_, protect := m.GetWhat().(*pb.PeerValue_Protect)
		keys[i] = valueKey{peer: p, name: v.l.service + "." + m.GetTag(), protect: protect}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return errs.E(errs.Closed, errs.Unknown, op, "", nil)
	}
	conns := v.l.opts.Host.ConnManager()
	for i, m := range all {
		k := keys[i]
		switch what := m.GetWhat().(type) {
		case *pb.PeerValue_Value:
			if v.room(k) {
				conns.TagPeer(k.peer, k.name, int(max(-maxValue, min(what.Value, maxValue))))
			}
		case *pb.PeerValue_Untag:
			if what.Untag {
				v.remove(k)
			}
		case *pb.PeerValue_Protect:
			if !what.Protect {
				v.remove(k)
			} else if v.room(k) {
				conns.Protect(k.peer, k.name)
			}
		}
	}
	return nil
}

// room notes a key if it is new, unless there are too many. mu is held.
func (v *values) room(k valueKey) bool {
	if _, ok := v.set[k]; ok {
		return true
	}
	if len(v.set) >= v.l.opts.Tags {
		v.l.ignored.Add(1)
		if !v.full {
			v.full = true
			v.l.opts.Log.Warn("a plugin tags more peers than it may; the rest is ignored", "plugin", v.l.opts.Name, "limit", v.l.opts.Tags)
		}
		return false
	}
	v.set[k] = struct{}{}
	return true
}

// remove undoes what was set under a key. mu is held.
func (v *values) remove(k valueKey) {
	if _, ok := v.set[k]; !ok {
		return
	}
	delete(v.set, k)
	if k.protect {
		v.l.opts.Host.ConnManager().Unprotect(k.peer, k.name)
	} else {
		v.l.opts.Host.ConnManager().UntagPeer(k.peer, k.name)
	}
}

// undo removes everything, and lets nothing be set any more.
func (v *values) undo() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for k := range v.set {
		v.remove(k)
	}
}
