package peerstore

import (
	"encoding/base32"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"
)

// Values are protobuf, so that other tools can read them and later versions can
// add fields; unknown fields are skipped. Times are Unix seconds, TTLs are
// nanoseconds.
//
//	/peers/addrs/<id>            AddrBookRecord of go-libp2p's pstoreds, with
//	                               16 last_seen           varint
//	                             and in AddrEntry (2) with
//	                               16 good                varint
//	                               17 claim, repeated     { 1 source, 2 expiry, 3 ttl, 4 certified }
//	/peers/protos/<id>           { 1 protocol, repeated string }
//	/peers/keys/<id>             PublicKey of libp2p's crypto.proto
//	/peers/metadata/<id>/<key>   { 1 string } or { 2 bytes }
//
// An AddrEntry without claims, as pstoreds writes it, is read as claimed by Host.
const (
	prefix         = "/peers"
	addrPrefix     = prefix + "/addrs/"
	protocolPrefix = prefix + "/protos/"
	keyPrefix      = prefix + "/keys/"
	metadataPrefix = prefix + "/metadata/"
)

// maxValue is the length of a value that is read. What is written is shorter.
const maxValue = 1 << 20

var b32 = base32.StdEncoding.WithPadding(base32.NoPadding)

func encodeID(p peer.ID) string { return b32.EncodeToString([]byte(p)) }

func decodeID(s string) (peer.ID, error) {
	if len(s) > b32.EncodedLen(maxPeerID) {
		return "", fmt.Errorf("peer id: got %d characters, want at most %d", len(s), b32.EncodedLen(maxPeerID))
	}
	b, err := b32.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("peer id: %w", err)
	}
	return peer.IDFromBytes(b)
}

// metadataDSKey escapes what would change the meaning of a path.
func metadataDSKey(p peer.ID, key string) datastore.Key {
	escaped := url.PathEscape(key)
	switch key {
	case "":
		escaped = "%" // never the result of an escape
	case ".", "..":
		escaped = strings.ReplaceAll(key, ".", "%2E")
	}
	return datastore.RawKey(metadataPrefix + encodeID(p) + "/" + escaped)
}

func decodeMetadataKey(s string) (string, error) {
	if s == "%" {
		return "", nil
	}
	return url.PathUnescape(s)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// unix is a time in seconds. What never expires does so in the year 2262, which
// is as far as nanoseconds go.
func unix(t int64) uint64 { return uint64(t / int64(time.Second)) }

// fromUnix undoes unix; times that cannot be told in nanoseconds are never.
func fromUnix(v uint64) int64 {
	if v > math.MaxInt64/uint64(time.Second) {
		return never
	}
	return int64(v) * int64(time.Second)
}

// encodeAddrs returns the addresses of an entry that are worth writing, and when
// the peer was in contact, or nil if that is nothing.
func encodeAddrs(e *entry, now int64) ([]byte, error) {
	body := appendBytes(nil, 1, []byte(e.id))
	empty := len(body)
	for i := range e.addrs {
		if a := &e.addrs[i]; a.worthWriting() {
			body = appendBytes(body, 2, encodeAddress(a))
		}
	}
	if e.signed != nil {
		raw, err := e.signed.envelope.Marshal()
		if err != nil {
			return nil, err
		}
		body = appendBytes(body, 3, appendBytes(appendVarint(nil, 1, e.signed.seq), 2, raw))
	}
	seen := e.seen
	if e.conns > 0 {
		seen = now
	}
	if seen != 0 {
		body = appendVarint(body, 16, unix(seen))
	}
	if len(body) == empty {
		return nil, nil
	}
	return body, nil
}

func (a *address) worthWriting() bool {
	if a.good != 0 {
		return true
	}
	for _, c := range a.claims {
		if lasting(c) {
			return true
		}
	}
	return false
}

func encodeAddress(a *address) []byte {
	var longest claim
	var claims []byte
	for _, c := range a.claims {
		if !lasting(c) {
			continue
		}
		if c.expires > longest.expires || c.ttl > longest.ttl {
			longest = c
		}
		one := appendVarint(nil, 1, uint64(c.source))
		one = appendVarint(one, 2, unix(c.expires))
		one = appendVarint(one, 3, uint64(c.ttl))
		if c.certified {
			one = appendVarint(one, 4, 1)
		}
		claims = appendBytes(claims, 17, one)
	}
	b := appendBytes(nil, 1, a.addr.Bytes())
	b = appendVarint(b, 2, unix(longest.expires))
	b = appendVarint(b, 3, uint64(longest.ttl))
	if a.good != 0 {
		b = appendVarint(b, 16, unix(a.good))
	}
	return append(b, claims...)
}

func encodeProtocols(e *entry) []byte {
	var b []byte
	for _, ids := range [][]protocol.ID{e.protocols, e.recalled} {
		for _, id := range ids {
			b = appendBytes(b, 1, []byte(id))
		}
	}
	return b
}

// encodeKey returns the public key, or nil if there is none or it is part of the
// peer's id.
func encodeKey(e *entry) ([]byte, error) {
	if e.public == nil || inlined(e.id) {
		return nil, nil
	}
	return crypto.MarshalPublicKey(e.public)
}

// inlined reports whether the key is part of the id.
func inlined(p peer.ID) bool {
	_, err := p.ExtractPublicKey()
	return err == nil
}

// encodeMetadata returns a value, or nil if it is of a type that is not written.
func encodeMetadata(value any) []byte {
	switch v := value.(type) {
	case string:
		return appendBytes(nil, 1, []byte(v))
	case []byte:
		return appendBytes(nil, 2, v)
	}
	return nil
}

// fields calls f for each field of a message. Varints come as v, bytes as b.
func fields(msg []byte, f func(field protowire.Number, v uint64, b []byte) error) error {
	for len(msg) > 0 {
		field, kind, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return protowire.ParseError(n)
		}
		msg = msg[n:]
		var v uint64
		var b []byte
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(msg)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(msg)
			if b == nil {
				b = []byte{}
			}
		default:
			n = protowire.ConsumeFieldValue(field, kind, msg)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		msg = msg[n:]
		if err := f(field, v, b); err != nil {
			return err
		}
	}
	return nil
}

// storedAddrs is a decoded value of /peers/addrs.
type storedAddrs struct {
	addrs  []address // in the order of the value, claims as they were
	signed *signedRecord
	seen   int64
}

func decodeAddrs(p peer.ID, value []byte) (storedAddrs, error) {
	var out storedAddrs
	var idSeen bool
	err := fields(value, func(field protowire.Number, v uint64, b []byte) error {
		switch field {
		case 1:
			idSeen = true
			if string(b) != string(p) {
				return fmt.Errorf("peer id: got %x, want that of the key", b)
			}
		case 2:
			if len(out.addrs) >= 4096 {
				return errors.New("addresses: got more than 4096")
			}
			a, err := decodeAddress(b)
			if err != nil {
				return err
			}
			out.addrs = append(out.addrs, a)
		case 3:
			signed, err := decodeSigned(p, b)
			if err != nil {
				return err
			}
			out.signed = signed
		case 16:
			out.seen = fromUnix(v)
		}
		return nil
	})
	if err == nil && !idSeen {
		err = errors.New("peer id: got none")
	}
	return out, err
}

func decodeAddress(msg []byte) (address, error) {
	var a address
	var whole claim // what pstoreds says of the address
	whole.source = Host
	err := fields(msg, func(field protowire.Number, v uint64, b []byte) error {
		switch field {
		case 1:
			if len(b) > maxAddrBytes {
				return fmt.Errorf("address: got %d bytes, want at most %d", len(b), maxAddrBytes)
			}
			m, err := multiaddr.NewMultiaddrBytes(b)
			if err != nil {
				return fmt.Errorf("address: %w", err)
			}
			a.addr, a.size = slices.Clone(m), int32(len(b)) // parsed with room to grow
		case 2:
			whole.expires = fromUnix(v)
		case 3:
			whole.ttl = time.Duration(v)
		case 16:
			a.good = fromUnix(v)
		case 17:
			c, known, err := decodeClaim(b)
			if err != nil {
				return err
			}
			if known && a.claimOf(c.source) == nil {
				a.claims = append(a.claims, c)
			}
		}
		return nil
	})
	if err != nil {
		return a, err
	}
	if len(a.addr) == 0 {
		return a, errors.New("address: got none")
	}
	if len(a.claims) == 0 && whole.ttl > 0 {
		a.claims = []claim{whole}
	}
	return a, nil
}

// decodeClaim also says whether the source is one that this version knows.
func decodeClaim(msg []byte) (c claim, known bool, err error) {
	err = fields(msg, func(field protowire.Number, v uint64, _ []byte) error {
		switch field {
		case 1:
			known = v < uint64(sources)
			c.source = Source(v)
		case 2:
			c.expires = fromUnix(v)
		case 3:
			c.ttl = time.Duration(v)
		case 4:
			c.certified = v != 0
		}
		return nil
	})
	return c, known && c.ttl > 0, err
}

func decodeSigned(p peer.ID, msg []byte) (*signedRecord, error) {
	var raw []byte
	err := fields(msg, func(field protowire.Number, _ uint64, b []byte) error {
		if field == 2 {
			raw = b
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(raw) > maxSigned {
		return nil, fmt.Errorf("signed record: got %d bytes, want at most %d", len(raw), maxSigned)
	}
	var rec peer.PeerRecord
	envelope, err := record.ConsumeTypedEnvelope(raw, &rec)
	if err != nil {
		return nil, fmt.Errorf("signed record: %w", err)
	}
	if rec.PeerID != p || !p.MatchesPublicKey(envelope.PublicKey) {
		return nil, fmt.Errorf("signed record: got one of %s", rec.PeerID)
	}
	return &signedRecord{seq: rec.Seq, envelope: envelope, size: int32(len(raw))}, nil
}

// decodeProtocols takes ids that were seen before from shared, and adds the others.
func decodeProtocols(value []byte, shared map[string]protocol.ID) ([]protocol.ID, error) {
	ids := make([]protocol.ID, 0, 32)
	err := fields(value, func(field protowire.Number, _ uint64, b []byte) error {
		if field != 1 || len(b) > maxProtocolID {
			return nil
		}
		id, seen := shared[string(b)] // which copies nothing
		if !seen {
			id = intern(protocol.ID(b))
			shared[string(id)] = id
		}
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

func decodeKey(p peer.ID, value []byte) (crypto.PubKey, error) {
	key, err := crypto.UnmarshalPublicKey(value)
	if err != nil {
		return nil, err
	}
	if !p.MatchesPublicKey(key) {
		return nil, errors.New("public key: got that of another peer")
	}
	return key, nil
}

func decodeMetadata(value []byte) (any, error) {
	var out any
	err := fields(value, func(field protowire.Number, _ uint64, b []byte) error {
		switch {
		case len(b) > maxMetadata:
			return fmt.Errorf("value: got %d bytes, want at most %d", len(b), maxMetadata)
		case field == 1:
			out = intern(string(b))
		case field == 2:
			out = b
		}
		return nil
	})
	if err == nil && out == nil {
		err = errors.New("value: got none")
	}
	return out, err
}
