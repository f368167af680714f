package leaves

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-varint"

	"github.com/codexchange/codexchange/exchange/merkle"
)

// version is the first byte of every record.
const version = 1

const (
	// maxCid is the longest CID of a block that is read, bytes; those that
	// are written have 38.
	maxCid = 128
	// sumSize is the length of the checksum.
	sumSize = crc32.Size
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode makes the value of a record; see the package comment for its form.
func encode(block cid.Cid, proof []byte) []byte {
	b := make([]byte, 0, 1+varint.MaxLenUvarint63+block.ByteLen()+len(proof)+sumSize)
	b = append(b, version)
	b = binary.AppendUvarint(b, uint64(block.ByteLen()))
	b = append(b, block.KeyString()...)
	return seal(append(b, proof...))
}

// seal appends the checksum.
func seal(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decode reads what encode made. The proof shares memory with value.
func decode(value []byte) (block cid.Cid, proof []byte, err error) {
	fail := func(format string, args ...any) (cid.Cid, []byte, error) {
		return cid.Undef, nil, fmt.Errorf(format, args...)
	}
	if len(value) < 1+sumSize {
		return fail("it is %d bytes, want at least %d", len(value), 1+sumSize)
	}
	if value[0] != version {
		return fail("version is %d, want %d", value[0], version)
	}
	body, end := value[:len(value)-sumSize], value[len(value)-sumSize:]
	if got, want := crc32.Checksum(body, castagnoli), binary.BigEndian.Uint32(end); got != want {
		return fail("checksum is %08x, want %08x", got, want)
	}
	body = body[1:]
	size, n, err := varint.FromUvarint(body) // only the shortest form
	if err != nil {
		return fail("length of the cid: %w", err)
	}
	body = body[n:]
	if size > maxCid || size > uint64(len(body)) {
		return fail("cid is %d bytes, want at most %d and the %d that are left", size, maxCid, len(body))
	}
	block, err = cid.Cast(body[:size])
	if err != nil {
		return fail("cid: %w", err)
	}
	proof = body[size:]
	if len(proof) > merkle.MaxProofSize {
		return fail("proof is %d bytes, want at most %d", len(proof), merkle.MaxProofSize)
	}
	return block, proof[:len(proof):len(proof)], nil
}
