package peerstore

// A standing says how much a peer is worth when room is needed.
type standing uint8

const (
	unlisted standing = iota // not settled yet, or pinned: never evicted
	heard                    // known from others only; ordered by when
	met                      // was in contact with us; ordered by when

	standings
)

// An entryList is entries of one standing. The first to go is at the tail.
type entryList struct {
	head, tail *entry
	n          int
}

// place puts the entry into the list of its standing, in front if it was not
// in it before.
func (s *Store) place(e *entry) {
	to := heard
	switch {
	case e.pinned():
		to = unlisted
	case e.seen != 0:
		to = met
	}
	if to == e.standing {
		return
	}
	s.unlist(e)
	s.list(e, to)
}

// refresh moves the entry to the front of the list it is in, if that is to.
func (s *Store) refresh(e *entry, to standing) {
	if e.standing == to && to != unlisted && s.lists[to].head != e {
		s.unlist(e)
		s.list(e, to)
	}
}

func (s *Store) list(e *entry, to standing) {
	e.standing = to
	if to == unlisted {
		return
	}
	l := &s.lists[to]
	e.older = l.head
	if l.head != nil {
		l.head.newer = e
	} else {
		l.tail = e
	}
	l.head = e
	l.n++
}

func (s *Store) unlist(e *entry) {
	if e.standing == unlisted {
		return
	}
	l := &s.lists[e.standing]
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		l.head = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		l.tail = e.newer
	}
	e.newer, e.older, e.standing = nil, nil, unlisted
	l.n--
}

// evict makes room. Peers that are only heard of go first, so that gossip does
// not push out those that were met, but an eighth of the room is theirs: else a
// store full of old friends would forget a new peer between the call that adds
// its address and the dial that wants it. What has just changed, keep, stays, so
// the bound may be exceeded by it and by what is pinned.
func (s *Store) evict(keep *entry) {
	for len(s.peers) > s.options.MaxPeers || s.bytes > s.options.MaxBytes {
		victim := s.lists[heard].tail
		if s.lists[heard].n <= len(s.peers)/8 && s.lists[met].n > 0 {
			victim = s.lists[met].tail
		}
		if victim == keep {
			victim = keep.newer
		}
		if victim == nil {
			return
		}
		s.drop(victim)
	}
}
