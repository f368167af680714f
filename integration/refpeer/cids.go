package refpeer

import (
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-multihash"
)

// Content codecs of Codex CIDs.
const (
	CodecManifest = 0xCD01
	CodecBlock    = 0xCD02
	CodecRoot     = 0xCD03
)

const sha256Code = multihash.SHA2_256

// emptyBlock is the CID of no bytes, which the reference always has.
var emptyBlock = mustSum(CodecBlock, nil)

// BlockCid returns the CID of a block as the reference names those of a
// dataset: codec codex-block, sha2-256.
func BlockCid(data []byte) cid.Cid { return mustSum(CodecBlock, data) }

func mustSum(codec uint64, data []byte) cid.Cid {
	h, err := multihash.Sum(data, sha256Code, -1)
	if err != nil {
		panic(err) // sha2-256 takes any bytes
	}
	return cid.NewCidV1(codec, h)
}

// treeCid wraps a root digest; the root is not hashed again.
func treeCid(root [32]byte) cid.Cid {
	h, err := multihash.Encode(root[:], sha256Code)
	if err != nil {
		panic(err) // sha2-256 is registered
	}
	return cid.NewCidV1(CodecRoot, h)
}

// contentCodecs are those that the reference can parse in a CID; all others
// make the message that holds them undecodable.
var contentCodecs = func() map[uint64]bool {
	m := make(map[uint64]bool)
	for _, c := range []uint64{
		0x55, 0x70, 0x71, 0x72, 0x78, 0x7b, 0x7c, // raw, dag-pb, dag-cbor, libp2p-key, git, torrents
		0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, // ethereum
		0xb0, 0xb1, 0xc0, 0xc1, 0xd0, 0xd1, 0xe0, 0xe1, 0xf0, 0xf1, // other chains
		0xed, 0x0129, // ed25519-pub, dag-json
		CodecManifest, CodecBlock, CodecRoot, 0xCD04, 0xCD05, 0xCD06,
	} {
		m[c] = true
	}
	return m
}()

// knownHash reports whether the reference has a name for a hash code.
func knownHash(code uint64) bool {
	if code >= 0xCD10 && code <= 0xCD12 {
		return true
	}
	_, ok := multihash.Codes[code]
	return ok
}

// parseCid reads a binary CID as the reference does.
func parseCid(b []byte) (cid.Cid, error) {
	c, err := cid.Cast(b)
	if err != nil {
		return cid.Undef, fmt.Errorf("cid %x: %w", clip(b), err)
	}
	if codec := c.Prefix().Codec; !contentCodecs[codec] {
		return cid.Undef, fmt.Errorf("cid %x: unknown content codec 0x%x", clip(b), codec)
	}
	if code := c.Prefix().MhType; !knownHash(code) {
		return cid.Undef, fmt.Errorf("cid %x: unknown hash code 0x%x", clip(b), code)
	}
	return c, nil
}

func clip(b []byte) []byte { return b[:min(len(b), 64)] }

// errHash is the cause of every error about data that is not what its CID says.
var errHash = errors.New("data does not hash to the cid")

// checkHash reports whether data is the block that c names.
func checkHash(c cid.Cid, data []byte) error {
	if !c.Defined() {
		return fmt.Errorf("%w: no cid", errHash)
	}
	got, err := hashAs(c, data)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errHash, cidString(c), err)
	}
	if !got.Equals(c) {
		return fmt.Errorf("%w: got %d bytes of %s, want %s", errHash, len(data), cidString(got), cidString(c))
	}
	return nil
}

// hashAs names data in the manner of another CID. The reference's blake2b-256
// is the first half of blake2b-512, not the function of that name.
func hashAs(like cid.Cid, data []byte) (cid.Cid, error) {
	pre := like.Prefix()
	if pre.MhType != multihash.BLAKE2B_MIN+31 {
		return pre.Sum(data)
	}
	long, err := multihash.Sum(data, multihash.BLAKE2B_MAX, 32)
	if err != nil {
		return cid.Undef, err
	}
	d, err := multihash.Decode(long)
	if err != nil {
		return cid.Undef, err
	}
	h, err := multihash.Encode(d.Digest, pre.MhType)
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(pre.Codec, h), nil
}

// sameCid is equality as the reference has it: codec and multihash, whatever
// the version.
func sameCid(a, b cid.Cid) bool {
	return a.Defined() && b.Defined() && a.Prefix().Codec == b.Prefix().Codec && string(a.Hash()) == string(b.Hash())
}

// digest returns hash code and digest of a CID.
func digest(c cid.Cid) (code uint64, d []byte, err error) {
	if !c.Defined() {
		return 0, nil, errors.New("no cid")
	}
	h, err := multihash.Decode(c.Hash())
	if err != nil {
		return 0, nil, err
	}
	return h.Code, h.Digest, nil
}

// cidString writes Codex CIDs as Codex does, in base58btc.
func cidString(c cid.Cid) string {
	if !c.Defined() {
		return "(no cid)"
	}
	if c.Version() == 1 && c.Prefix().Codec>>8 == 0xCD {
		if s, err := c.StringOfBase(multibase.Base58BTC); err == nil {
			return s
		}
	}
	return c.String()
}
