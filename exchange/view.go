package exchange

import (
	"hash/maphash"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/wire"
)

// A view is what is wanted, as the goroutines that read from peers see it. They
// ask it before they spend anything on a block, and do not have to ask the
// loop. It holds what the getters that are there have asked for, so that a block
// stays in it that has just come; the engine knows better, and decides.
//
// Who makes a getter adds its wants before the loop hears of it, and removes them
// when the getter has ended; anybody reads.
type view struct {
	seed   maphash.Seed
	shards [16]viewShard
}

type viewShard struct {
	sync.RWMutex
	roots map[string]*rooted // by the bytes of the CID
}

// rooted is what is wanted under one root.
type rooted struct {
	cid    cid.Cid
	blocks int         // getters that want the block with this CID
	leaves []wire.Want // of getters that want blocks of the tree with this CID
}

func newView() *view {
	v := &view{seed: maphash.MakeSeed()}
	for i := range v.shards {
		v.shards[i].roots = make(map[string]*rooted)
	}
	return v
}

func (v *view) shard(root string) *viewShard {
	return &v.shards[maphash.String(v.seed, root)%uint64(len(v.shards))]
}

func (v *view) add(wants []wire.Want) {
	for _, w := range wants {
		key := w.Root.KeyString()
		s := v.shard(key)
		s.Lock()
		r := s.roots[key]
		if r == nil {
			r = &rooted{cid: w.Root}
			s.roots[key] = r
		}
		if w.Leaf {
			r.leaves = append(r.leaves, w)
		} else {
			r.blocks++
		}
		s.Unlock()
	}
}

// remove takes out what add was given.
func (v *view) remove(wants []wire.Want) {
	for _, w := range wants {
		key := w.Root.KeyString()
		s := v.shard(key)
		s.Lock()
		r := s.roots[key]
		if !w.Leaf {
			r.blocks--
		} else if i := slices.IndexFunc(r.leaves, func(x wire.Want) bool { return slices.Equal(x.Indices, w.Indices) }); i >= 0 {
			r.leaves = slices.Delete(r.leaves, i, i+1)
		}
		if r.blocks == 0 && len(r.leaves) == 0 {
			delete(s.roots, key)
		}
		s.Unlock()
	}
}

// wanted reports whether some getter has asked for the address.
func (v *view) wanted(a wire.Address) bool {
	s := v.shard(a.Root.KeyString())
	s.RLock()
	defer s.RUnlock()
	r := s.roots[a.Root.KeyString()]
	if r == nil {
		return false
	}
	if !a.Leaf {
		return r.blocks > 0
	}
	return slices.ContainsFunc(r.leaves, func(w wire.Want) bool { return w.Contains(a) })
}

// intern returns the CID with these bytes if it is wanted, so that it need not
// be made again.
func (v *view) intern(b []byte) (cid.Cid, bool) {
	s := &v.shards[maphash.Bytes(v.seed, b)%uint64(len(v.shards))]
	s.RLock()
	defer s.RUnlock()
	if r := s.roots[string(b)]; r != nil {
		return r.cid, true
	}
	return cid.Undef, false
}
