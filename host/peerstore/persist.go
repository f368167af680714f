package peerstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/errs"
)

// books is a set of those values of a peer that have a key of their own.
type books uint8

const (
	addrBook books = 1 << iota
	protocolBook
	keyBook
)

// unsaved names the keys of a peer that are to be written or deleted.
type unsaved struct {
	books    books
	metadata map[string]struct{}
}

func (u *unsaved) merge(v *unsaved) {
	u.books |= v.books
	for k := range v.metadata {
		u.key(k)
	}
}

func (u *unsaved) key(k string) {
	if u.metadata == nil {
		u.metadata = make(map[string]struct{})
	}
	u.metadata[k] = struct{}{}
}

func (u *unsaved) empty() bool { return u.books == 0 && len(u.metadata) == 0 }

// markDirty notes that a value of the entry has changed.
func (s *Store) markDirty(e *entry, b books) {
	switch {
	case s.options.Datastore == nil || s.closed || e.private != nil:
		return
	case b == keyBook && e.saved&keyBook == 0 && (e.public == nil || inlined(e.id)):
		return
	}
	s.unsavedOf(e.id).books |= b
}

// markDirtyKey notes that the metadata under a key has changed.
func (s *Store) markDirtyKey(e *entry, key string) {
	if s.options.Datastore == nil || s.closed || e.private != nil {
		return
	}
	s.unsavedOf(e.id).key(key)
}

// unsavedKey reports whether a metadata key is to be written or deleted, in which
// case something may be on disk under it.
func (s *Store) unsavedKey(p peer.ID, key string) bool {
	u := s.dirty[p]
	if u == nil {
		return false
	}
	_, found := u.metadata[key]
	return found
}

func (s *Store) unsavedOf(p peer.ID) *unsaved {
	u := s.dirty[p]
	if u == nil {
		u = &unsaved{}
		s.dirty[p] = u
		if s.options.FlushPeers > 0 && len(s.dirty) >= s.options.FlushPeers {
			wake(s.wakePersist)
		}
	}
	return u
}

// unsave notes that what was written of an entry that goes is to be deleted. If
// the datastore has failed for so long that twice the bound on peers is waiting,
// it does not: what stays on disk is read at the next start, and expires then.
func (s *Store) unsave(e *entry) {
	u := s.dirty[e.id]
	delete(s.dirty, e.id)
	if s.options.Datastore == nil || s.closed || len(s.dirty) >= 2*s.options.MaxPeers {
		return
	}
	gone := &unsaved{books: e.saved}
	for _, m := range e.metadata {
		if m.saved {
			gone.key(m.key)
		}
	}
	if u != nil { // keys deleted before
		for k := range u.metadata {
			if _, found := e.findMetadata(k); !found {
				gone.key(k)
			}
		}
	}
	if !gone.empty() {
		s.unsavedOf(e.id).merge(gone)
	}
}

// unsaveAll notes that everything written of an entry is to be deleted.
func (s *Store) unsaveAll(e *entry) {
	s.unsave(e)
	e.saved = 0
	for i := range e.metadata {
		e.metadata[i].saved = false
	}
}

// persist writes what is dirty when there is enough of it, and now and then.
// After a failure it waits for its time: the datastore will not be better at once.
func (s *Store) persist() {
	const retry = 10 * time.Second
	every := s.options.FlushEvery
	timer := time.NewTimer(max(every, 0))
	if every <= 0 {
		timer.Stop()
	}
	defer timer.Stop()
	enough := s.wakePersist
	for {
		select {
		case <-enough:
		case <-timer.C:
		case <-s.done:
			return // Close writes the rest
		}
		enough = s.wakePersist
		if err := s.Flush(context.Background()); err != nil {
			s.options.Log.Error("the peerstore was not written, and will be later", "err", err)
			enough = nil
			timer.Reset(retry)
			continue
		}
		if every > 0 {
			timer.Reset(every)
		}
	}
}

// flushPeers is the number of peers whose changes go into one batch.
const flushPeers = 1024

// Flush writes what is dirty: one batch, or several if more than 1,024 peers are.
// What could not be written stays dirty.
func (s *Store) Flush(ctx context.Context) error {
	if s.options.Datastore == nil {
		return nil
	}
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	rounds := (len(s.dirty) + flushPeers - 1) / flushPeers
	s.mu.Unlock()
	for range rounds { // what others change meanwhile is for the next flush
		taken, writes := s.collect()
		err := s.write(ctx, writes)
		s.finish(taken, err == nil)
		if err != nil {
			return errs.E(errs.Storage, errs.Ours, fmt.Sprintf("write %d peers", len(taken)), "", err)
		}
	}
	return nil
}

// A write is a value to put, or nil to delete.
type write struct {
	key   datastore.Key
	value []byte
}

// collect takes peers from the dirty ones and encodes what changed of them.
func (s *Store) collect() (map[peer.ID]*unsaved, []write) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	taken := make(map[peer.ID]*unsaved)
	var writes []write
	for p, u := range s.dirty {
		if len(taken) == flushPeers {
			break
		}
		delete(s.dirty, p)
		if _, err := peer.IDFromBytes([]byte(p)); err != nil {
			continue // not the id of a peer, though somebody uses it as one
		}
		taken[p] = u
		writes = append(writes, s.encode(p, u, now)...)
	}
	s.writing = len(taken)
	return taken, writes
}

// encode returns what has to be written of a peer, which may be gone.
func (s *Store) encode(p peer.ID, u *unsaved, now int64) []write {
	e := s.peers[p]
	if e != nil && e.private != nil {
		e = nil // ourselves: nothing is to be on disk
	}
	id := encodeID(p)
	var writes []write
	book := func(b books, prefix string, encode func(*entry) ([]byte, error)) {
		if u.books&b == 0 {
			return
		}
		w := write{key: datastore.RawKey(prefix + id)}
		if e != nil {
			e.saved &^= b
			value, err := encode(e)
			if err != nil {
				s.options.Log.Error("encode peer", "key", w.key, "err", err)
			}
			if w.value = value; value != nil {
				e.saved |= b
			}
		}
		writes = append(writes, w)
	}
	book(addrBook, addrPrefix, func(e *entry) ([]byte, error) {
		e.savedAt = now
		return encodeAddrs(e, now)
	})
	book(protocolBook, protocolPrefix, func(e *entry) ([]byte, error) { return encodeProtocols(e), nil })
	book(keyBook, keyPrefix, encodeKey)
	for _, k := range slices.Sorted(maps.Keys(u.metadata)) {
		w := write{key: metadataDSKey(p, k)}
		if e != nil {
			if i, found := e.findMetadata(k); found {
				w.value = encodeMetadata(e.metadata[i].value)
				e.metadata[i].saved = w.value != nil
			}
		}
		writes = append(writes, w)
	}
	return writes
}

// write commits one batch.
func (s *Store) write(ctx context.Context, writes []write) error {
	if len(writes) == 0 {
		return nil
	}
	batch, err := s.options.Datastore.Batch(ctx)
	if err != nil {
		return err
	}
	for _, w := range writes {
		if w.value != nil {
			err = batch.Put(ctx, w.key, w.value)
		} else {
			err = batch.Delete(ctx, w.key)
		}
		if err != nil {
			return err
		}
	}
	if err := batch.Commit(ctx); err != nil {
		return err
	}
	return s.options.Datastore.Sync(ctx, datastore.NewKey(prefix))
}

// finish ends what collect began. Peers that could not be written are dirty
// again: what the batch may have written all the same is written once more, or
// deleted.
func (s *Store) finish(taken map[peer.ID]*unsaved, written bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = 0
	if written {
		return
	}
	for p, u := range taken {
		if now := s.dirty[p]; now != nil {
			now.merge(u)
		} else {
			s.dirty[p] = u
		}
		if e := s.peers[p]; e != nil { // which may have been dropped and known again meanwhile
			e.saved |= u.books
			for i := range e.metadata {
				if _, found := u.metadata[e.metadata[i].key]; found {
					e.metadata[i].saved = true
				}
			}
		}
	}
}

// load reads every peer. It runs before anybody else knows the Store.
func (s *Store) load(ctx context.Context) error {
	const op = "load peers"
	s.mu.Lock()
	defer s.mu.Unlock()
	results, err := s.options.Datastore.Query(ctx, query.Query{Prefix: prefix})
	if err != nil {
		return errs.E(errs.Storage, errs.Ours, op, "", err)
	}
	defer results.Close()
	var bad, foreign int
	now, shared := s.now(), make(map[string]protocol.ID)
	for {
		result, ok := results.NextSync()
		if !ok {
			break
		}
		if result.Error != nil {
			return errs.E(errs.Storage, errs.Ours, op, result.Key, result.Error)
		}
		if err := ctx.Err(); err != nil {
			return errs.E(errs.Other, errs.Caller, op, "", err)
		}
		switch err := s.restore(result.Key, result.Value, now, shared); {
		case errors.Is(err, errForeign):
			foreign++
		case err != nil:
			if bad++; bad <= 10 {
				s.options.Log.Warn("skip a stored value that cannot be read", "key", result.Key, "err", err)
			}
		}
	}
	s.arrange()
	if bad+foreign > 0 {
		s.options.Log.Warn("some of what is stored below /peers was skipped", "unreadable", bad, "foreign", foreign, "peers", len(s.peers))
	}
	return nil
}

// errForeign is a key that the Store has not written, and leaves alone.
var errForeign = errors.New("not a key of the peerstore")

// restore takes in one stored value. Most peers speak the same protocols, whose
// ids are in shared.
func (s *Store) restore(key string, value []byte, now int64, shared map[string]protocol.ID) error {
	if len(value) > maxValue {
		return fmt.Errorf("got %d bytes, want at most %d", len(value), maxValue)
	}
	rest, ok := strings.CutPrefix(key, prefix+"/")
	book, rest, found := strings.Cut(rest, "/")
	id, name, named := strings.Cut(rest, "/")
	if !ok || !found || named != (book == "metadata") || strings.Contains(name, "/") {
		return errForeign
	}
	switch book {
	case "addrs", "protos", "keys", "metadata":
	default:
		return errForeign
	}
	p, err := decodeID(id)
	if err != nil {
		return err
	}
	known := func() *entry {
		e := s.peers[p]
		if e == nil {
			e = newEntry(p)
			s.peers[p] = e
		}
		return e
	}
	switch book {
	case "addrs":
		stored, err := decodeAddrs(p, value)
		if err != nil {
			return err
		}
		e := known()
		e.saved |= addrBook
		s.restoreAddrs(e, stored, now)
	case "protos":
		ids, err := decodeProtocols(value, shared)
		if err != nil {
			return err
		}
		e := known()
		e.saved |= protocolBook
		if e.recalled = asSet(ids); len(e.recalled) > s.options.MaxProtocols {
			e.recalled = e.recalled[:s.options.MaxProtocols:s.options.MaxProtocols]
		}
	case "keys":
		public, err := decodeKey(p, value)
		if err != nil {
			return err
		}
		e := known()
		e.saved |= keyBook
		e.public = public
	case "metadata":
		name, err := decodeMetadataKey(name)
		if err != nil {
			return err
		}
		v, err := decodeMetadata(value)
		if err != nil {
			return err
		}
		e := known()
		if i, found := e.findMetadata(name); !found && len(e.metadata) < s.options.MaxMetadata {
			e.metadata = slices.Insert(e.metadata, i, metadatum{key: intern(name), value: v, saved: true})
		}
	}
	return nil
}

// restoreAddrs takes in addresses as they are worth something now. Connections
// are gone, so what was connected is recently connected; so is what others than a
// person made permanent, for they will say so again if they still think it.
func (s *Store) restoreAddrs(e *entry, stored storedAddrs, now int64) {
	e.seen, e.signed, e.savedAt = min(stored.seen, now), stored.signed, now
	for _, a := range stored.addrs {
		if i, found := e.find(a.addr); !found {
			a.good = min(a.good, now)
			kept := a.claims[:0]
			for _, c := range a.claims {
				if c.connected() && !(c.source == Manual && c.ttl == peerstore.PermanentAddrTTL) {
					c.ttl = peerstore.RecentlyConnectedAddrTTL
					c.expires = expiry(now, c.ttl)
					if a.good != 0 {
						a.good = now // the connection was up when this was written
					}
				}
				c.expires = min(c.expires, expiry(now, c.ttl)) // the clock was set back
				if c.connected() {
					c.expires = never
				}
				if c.expires > now {
					kept = append(kept, c)
				}
			}
			a.claims = kept
			e.addrs = slices.Insert(e.addrs, i, a)
		}
	}
	s.sweep(e)
}

// arrange settles what was loaded, the one seen last in front, and drops what has
// expired or is too much.
func (s *Store) arrange() {
	all := slices.SortedFunc(maps.Values(s.peers), func(a, b *entry) int {
		switch {
		case a.seen != b.seen && a.seen < b.seen, a.seen == b.seen && a.id < b.id:
			return -1
		}
		return 1
	})
	for _, e := range all {
		if s.peers[e.id] == e { // not evicted meanwhile
			s.settle(e)
		}
	}
}

// asSet returns the ids sorted, each once.
func asSet(ids []protocol.ID) []protocol.ID {
	slices.Sort(ids)
	return slices.Clone(slices.Compact(ids)) // no longer than it is
}

// Stats say how much is kept.
type Stats struct {
	Peers int
	Bytes int64 // estimated
	Dirty int   // peers with changes that are not on disk
}

// Stats returns how much is kept now.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Peers: len(s.peers), Bytes: s.bytes, Dirty: len(s.dirty) + s.writing}
}
