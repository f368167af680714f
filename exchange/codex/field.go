package codex

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Field is one protobuf field as it stands in a message.
type Field struct {
	Num    protowire.Number
	Type   protowire.Type
	Varint uint64 // the value, if Type is protowire.VarintType
	Bytes  []byte // the value, if Type is protowire.BytesType: part of the message, not a copy
}

// NextField reads the first field of a message and returns what follows it. It
// does not allocate unless there is an error. To read a message call it until
// nothing is left, take a field only if both number and type are known, and skip
// the others; of a singular field that occurs again the last one counts, and
// sub-messages are not merged.
//
// NextField refuses what Codex nodes refuse, because blocks, proofs and
// manifests are passed on as they came: groups, varints that are longer than
// they need to be, and fields that are cut short.
func NextField(msg []byte) (f Field, rest []byte, err error) {
	tag, rest, err := nextVarint(msg)
	if err != nil {
		return f, nil, fmt.Errorf("tag: %w", err)
	}
	f.Num, f.Type = protowire.DecodeTag(tag)
	if f.Num < protowire.MinValidNumber || f.Num > protowire.MaxValidNumber {
		return f, nil, fmt.Errorf("tag %#x: no such field number", tag)
	}

	switch f.Type {
	case protowire.VarintType:
		f.Varint, rest, err = nextVarint(rest)
	case protowire.BytesType:
		var n uint64
		if n, rest, err = nextVarint(rest); err == nil && n > uint64(len(rest)) {
			err = fmt.Errorf("length is %d, but %d bytes are left", n, len(rest))
		}
		if err == nil {
			f.Bytes, rest = rest[:n:n], rest[n:]
		}
	case protowire.Fixed32Type:
		rest, err = skip(rest, 4)
	case protowire.Fixed64Type:
		rest, err = skip(rest, 8)
	default:
		err = fmt.Errorf("wire type %d, want 0, 1, 2 or 5", f.Type)
	}
	if err != nil {
		return f, nil, fmt.Errorf("field %d: %w", f.Num, err)
	}
	return f, rest, nil
}

var (
	errVarintCut  = errors.New("varint is cut short")
	errVarintLong = errors.New("varint is longer than 64 bits")
	errVarintPad  = errors.New("varint is not in its shortest form")
)

func nextVarint(b []byte) (v uint64, rest []byte, err error) {
	v, n := protowire.ConsumeVarint(b)
	switch {
	case n > 0 && n != protowire.SizeVarint(v):
		return 0, nil, errVarintPad
	case n > 0:
		return v, b[n:], nil
	case len(b) < 10:
		return 0, nil, errVarintCut
	}
	return 0, nil, errVarintLong
}

func skip(b []byte, n int) (rest []byte, err error) {
	if len(b) < n {
		return nil, fmt.Errorf("value is %d bytes, but %d are left", n, len(b))
	}
	return b[n:], nil
}
