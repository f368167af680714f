package peerstore

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	pstore "github.com/libp2p/go-libp2p/p2p/host/peerstore"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Info is everything known of one peer. It is a copy.
type Info struct {
	ID        peer.ID
	Addrs     []AddrInfo
	Protocols []protocol.ID // what it speaks
	Recalled  []protocol.ID // what it spoke before, and nobody has confirmed since
	PublicKey crypto.PubKey // nil if neither known nor part of the id
	Metadata  map[string]any
	Latency   time.Duration // 0 if not measured
	LastSeen  time.Time     // when it was last in contact with us; zero if never
	Connected bool
}

// AddrInfo is one address of a peer.
type AddrInfo struct {
	Addr   multiaddr.Multiaddr
	Claims []Claim   // none: it is remembered only because it was good
	Good   time.Time // the last success of a dial; zero if none
}

// A Claim is one source's word for an address.
type Claim struct {
	Source    Source
	TTL       time.Duration
	Expires   time.Time // zero: never
	Certified bool      // the peer has signed it
}

// Peers returns every peer of which anything is known.
func (s *Store) Peers() peer.IDSlice {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(peer.IDSlice, 0, len(s.peers))
	for p := range s.peers {
		out = append(out, p)
	}
	return out
}

// Peer returns all that is known of a peer, and whether that is anything.
func (s *Store) Peer(p peer.ID) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return Info{ID: p}, false
	}
	info := Info{
		ID: p, Protocols: slices.Clone(e.protocols), Recalled: slices.Clone(e.recalled), PublicKey: s.publicKey(p),
		Latency: e.latency, LastSeen: at(e.seen), Connected: e.conns > 0,
	}
	if e.conns > 0 {
		info.LastSeen = at(s.now())
	}
	for _, a := range e.addrs {
		ai := AddrInfo{Addr: a.addr, Good: at(a.good)}
		for _, c := range a.claims {
			ai.Claims = append(ai.Claims, Claim{Source: c.source, TTL: c.ttl, Expires: at(c.expires), Certified: c.certified})
		}
		info.Addrs = append(info.Addrs, ai)
	}
	if len(e.metadata) > 0 {
		info.Metadata = make(map[string]any, len(e.metadata))
		for _, m := range e.metadata {
			info.Metadata[m.key] = m.value
		}
	}
	return info, true
}

// Forget removes everything known of a peer. What other parts of the node, or
// its connections, say afterwards is new. A peer that is connected still speaks its
// protocols, which it says once a connection, and those who use them go on.
func (s *Store) Forget(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return
	}
	s.drop(e)
	if e.conns > 0 { // its end will be counted too
		again := s.obtain(p)
		again.conns, again.seen = e.conns, e.seen
		again.protocols = e.protocols
		s.markDirty(again, protocolBook)
		s.settle(again)
	}
}

// RemovePeer removes what is known of a peer except its addresses, as
// peerstore.Peerstore asks for. See Forget and [View.RemovePeer].
func (s *Store) RemovePeer(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return
	}
	s.speak(e, nil, nil)
	for len(e.metadata) > 0 {
		s.deleteMetadata(e, len(e.metadata)-1)
	}
	e.public, e.private, e.latency = nil, nil, 0
	s.markDirty(e, keyBook)
	s.settle(e)
}

// Keys.

// PubKey returns the public key of a peer, or nil. Keys that are part of the
// peer's id need not be known.
func (s *Store) PubKey(p peer.ID) crypto.PubKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publicKey(p)
}

func (s *Store) publicKey(p peer.ID) crypto.PubKey {
	if e := s.peers[p]; e != nil && e.public != nil {
		return e.public
	}
	key, err := p.ExtractPublicKey()
	if err != nil {
		return nil
	}
	return key
}

// AddPubKey keeps the public key of a peer, which must be the one of its id.
func (s *Store) AddPubKey(p peer.ID, key crypto.PubKey) error {
	if key == nil || !p.MatchesPublicKey(key) {
		return errs.E(errs.Invalid, errs.Caller, "add public key", p.String(), errors.New("the key is not that of the peer id"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return tooLongID("add public key", p)
	}
	if e.public == nil {
		e.public = key
		s.markDirty(e, keyBook)
	}
	s.settle(e)
	return nil
}

// PrivKey returns the private key of a peer, which is nil but for ourselves.
func (s *Store) PrivKey(p peer.ID) crypto.PrivKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.peers[p]; e != nil {
		return e.private
	}
	return nil
}

// AddPrivKey keeps a private key, in memory only. Nothing is written of a peer
// whose private key is known: that is ourselves.
func (s *Store) AddPrivKey(p peer.ID, key crypto.PrivKey) error {
	if key == nil || !p.MatchesPrivateKey(key) {
		return errs.E(errs.Invalid, errs.Caller, "add private key", p.String(), errors.New("the key is not that of the peer id"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return tooLongID("add private key", p)
	}
	e.private = key
	s.unsaveAll(e)
	s.settle(e)
	return nil
}

// DeleteKeys removes the keys of a peer. A public key that is part of the peer's
// id can still be asked for.
func (s *Store) DeleteKeys(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return
	}
	e.public, e.private = nil, nil
	s.markDirty(e, keyBook)
	s.settle(e)
}

// PeersWithKeys returns the peers of which a key was added.
func (s *Store) PeersWithKeys() peer.IDSlice {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out peer.IDSlice
	for p, e := range s.peers {
		if e.public != nil || e.private != nil {
			out = append(out, p)
		}
	}
	return out
}

// Protocols. What is recalled from an earlier run is in none of the answers until
// somebody, as a rule identify, says it again.

// errTooManyProtocols has the text that libp2p's own stores give, which its
// tests ask for.
var errTooManyProtocols = errs.E(errs.Invalid, errs.Peer, "", "", errors.New("too many protocols"))

// GetProtocols returns the protocols that the peer speaks, sorted.
func (s *Store) GetProtocols(p peer.ID) ([]protocol.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.peers[p]; e != nil {
		return slices.Clone(e.protocols), nil
	}
	return nil, nil
}

// SetProtocols makes protocols all that the peer speaks; none deletes them.
func (s *Store) SetProtocols(p peer.ID, protocols ...protocol.ID) error {
	set := union(nil, protocols)
	if len(set) > s.options.MaxProtocols {
		return errTooManyProtocols
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return tooLongID("set protocols", p)
	}
	s.speak(e, set, nil)
	s.settle(e)
	return nil
}

// AddProtocols adds to the protocols that the peer speaks.
func (s *Store) AddProtocols(p peer.ID, protocols ...protocol.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return tooLongID("add protocols", p)
	}
	defer s.settle(e)
	set := union(e.protocols, protocols)
	if len(set) > s.options.MaxProtocols {
		return errTooManyProtocols
	}
	s.speak(e, set, without(e.recalled, protocols))
	return nil
}

// RemoveProtocols takes protocols from those that the peer speaks.
func (s *Store) RemoveProtocols(p peer.ID, protocols ...protocol.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.lookup(p); e != nil {
		s.speak(e, without(e.protocols, protocols), without(e.recalled, protocols))
		s.settle(e)
	}
	return nil
}

// SupportsProtocols returns those of the protocols that the peer speaks.
func (s *Store) SupportsProtocols(p peer.ID, protocols ...protocol.ID) ([]protocol.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]protocol.ID, 0, len(protocols))
	if e := s.peers[p]; e != nil {
		for _, id := range protocols {
			if _, found := slices.BinarySearch(e.protocols, id); found {
				out = append(out, id)
			}
		}
	}
	return out, nil
}

// FirstSupportedProtocol returns the first of the protocols that the peer speaks.
func (s *Store) FirstSupportedProtocol(p peer.ID, protocols ...protocol.ID) (protocol.ID, error) {
	supported, err := s.SupportsProtocols(p, protocols...)
	if err != nil || len(supported) == 0 {
		return "", err
	}
	return supported[0], nil
}

// speak changes what a peer speaks, and what is recalled of it.
func (s *Store) speak(e *entry, protocols, recalled []protocol.ID) {
	if !slices.Equal(e.protocols, protocols) {
		s.changing(e)
		e.protocols = protocols
		s.markDirty(e, protocolBook)
	}
	if !slices.Equal(e.recalled, recalled) {
		e.recalled = recalled
		s.markDirty(e, protocolBook)
	}
}

// withdraw turns what a peer speaks into what it is remembered to have spoken.
func (s *Store) withdraw(e *entry) {
	if len(e.protocols) == 0 {
		return
	}
	s.changing(e)
	e.recalled = union(e.recalled, e.protocols)
	if len(e.recalled) > s.options.MaxProtocols {
		e.recalled = e.protocols
		s.markDirty(e, protocolBook)
	}
	e.protocols = nil
}

// Metadata. Strings and byte slices are written; values of other types last as
// long as the Store. Byte slices are kept as given: nobody changes them.

// Get returns the value of a key, or an error that is peerstore.ErrNotFound.
func (s *Store) Get(p peer.ID, key string) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.peers[p]; e != nil {
		if i, found := e.findMetadata(key); found {
			return e.metadata[i].value, nil
		}
	}
	return nil, peerstore.ErrNotFound
}

// Put sets the value of a key.
func (s *Store) Put(p peer.ID, key string, value any) error {
	const op = "put metadata"
	if len(key) > maxMetadataKey {
		return errs.Errorf(errs.TooLarge, errs.Caller, op, "key of %s: got %d bytes, want at most %d", p, len(key), maxMetadataKey)
	}
	if n := sizeOf(value); n > maxMetadata {
		return errs.Errorf(errs.TooLarge, errs.Caller, op, "%q of %s: got %d bytes, want at most %d", key, p, n, maxMetadata)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return tooLongID(op, p)
	}
	defer s.settle(e)
	if v, ok := value.(string); ok {
		value = intern(v)
	}
	i, found := e.findMetadata(key)
	switch {
	case found && same(e.metadata[i].value, value):
		return nil
	case found:
		e.metadata[i].value = value
	case len(e.metadata) >= s.options.MaxMetadata:
		return errs.Errorf(errs.TooLarge, errs.Caller, op, "%q of %s: got key number %d, want at most %d", key, p, len(e.metadata)+1, s.options.MaxMetadata)
	default:
		e.metadata = slices.Insert(e.metadata, i, metadatum{key: intern(key), value: value, saved: s.unsavedKey(p, key)})
	}
	s.markDirtyKey(e, key)
	return nil
}

// same reports whether two values that can be written are equal.
func same(a, b any) bool {
	switch a := a.(type) {
	case string:
		b, ok := b.(string)
		return ok && a == b
	case []byte:
		b, ok := b.([]byte)
		return ok && slices.Equal(a, b)
	}
	return false
}

// Metadata returns all keys and values of a peer.
func (s *Store) Metadata(p peer.ID) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]any)
	if e := s.peers[p]; e != nil {
		for _, m := range e.metadata {
			out[m.key] = m.value
		}
	}
	return out
}

// SetMetadata makes values all the metadata of a peer; none deletes them. It is
// several changes, and an error leaves those that came before it.
func (s *Store) SetMetadata(p peer.ID, values map[string]any) error {
	s.DeleteMetadata(p, slices.DeleteFunc(s.metadataKeys(p), func(k string) bool { _, stays := values[k]; return stays })...)
	for k, v := range values {
		if err := s.Put(p, k, v); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) metadataKeys(p peer.ID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	if e := s.peers[p]; e != nil {
		for _, m := range e.metadata {
			keys = append(keys, m.key)
		}
	}
	return keys
}

// DeleteMetadata removes keys of a peer.
func (s *Store) DeleteMetadata(p peer.ID, keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(p)
	if e == nil {
		return
	}
	for _, k := range keys {
		if i, found := e.findMetadata(k); found {
			s.deleteMetadata(e, i)
		}
	}
	s.settle(e)
}

func (s *Store) deleteMetadata(e *entry, i int) {
	m := e.metadata[i]
	e.metadata = slices.Delete(e.metadata, i, i+1)
	s.markDirtyKey(e, m.key)
}

// Latency.

// RecordLatency adds a measurement to the moving average.
func (s *Store) RecordLatency(p peer.ID, d time.Duration) {
	smoothing := pstore.LatencyEWMASmoothing
	if smoothing < 0 || smoothing > 1 {
		smoothing = 0.1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.obtain(p)
	if e == nil {
		return
	}
	if e.latency == 0 {
		e.latency = d
	} else {
		e.latency = time.Duration((1-smoothing)*float64(e.latency) + smoothing*float64(d))
	}
	s.settle(e)
}

// LatencyEWMA returns the moving average of what was measured, or 0.
func (s *Store) LatencyEWMA(p peer.ID) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.peers[p]; e != nil {
		return e.latency
	}
	return 0
}

func tooLongID(op string, p peer.ID) error {
	return errs.Errorf(errs.TooLarge, errs.Caller, op, "peer id %.40s…: got %d bytes, want at most %d", strings.ToValidUTF8(p.String(), "?"), len(p), maxPeerID)
}
