package remote

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

const (
	// MaxHead is the length of the longest head of a result, bytes.
	MaxHead = 64 << 10
	// MaxCommand is the length of the longest command, bytes.
	MaxCommand = 1 << 20
	// MaxBlock is the size of the largest block that can be a result, bytes.
	MaxBlock = 100 << 20
	// ResultCost is what a result costs of its request's credit beside its
	// payload, bytes.
	ResultCost = 1 << 10
	// MaxCID is the length of the longest CID that is asked for, bytes.
	MaxCID = 512

	lengthSize = 4
)

// A result is the head of one frame, checked.
type result struct {
	request uint64
	kind    resultKind
	size    int  // of the payload, bytes
	memory  bool // the payload is in outbound memory, at offset
	offset  uint64
	parts   []part // of the payload, in inbound memory but for inline bytes of it
	inline  int
	cid     cid.Cid

	root  cid.Cid // of a leaf only
	index uint64
	proof []byte

	err     error    // of done, if any
	regions []uint64 // that are returned
}

// A part is a range of inbound memory, or of what follows the head.
type part struct {
	offset uint64 // inlinePart if it follows the head
	size   int
}

const inlinePart = math.MaxUint64

type resultKind uint8

const (
	unknownResult resultKind = iota // of a later version; it has no payload
	blockResult
	heldResult
	doneResult
	returnedResult
)

// cost is what a block costs of its request's credit.
func cost(payload int) int { return payload + ResultCost }

// A frameReader reads results. Whoever calls next then reads or skips the
// payload, before the next call. It is used by one goroutine.
type frameReader struct {
	r     *bufio.Reader
	ring  *ringReader // nil if no memory is shared
	count int         // frames begun
	head  []byte

	inbound  *memory.Memory // nil if none is shared
	returned func([]uint64) error
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next reads a head. The error is io.EOF if the stream ends between two frames;
// of kind errs.Malformed, blamed on the plugin, if there is something wrong with
// the frame; and otherwise that of the stream.
func (f *frameReader) next() (result, error) {
	f.count++
	var length [lengthSize]byte
	if _, err := io.ReadFull(f.r, length[:]); err != nil {
		return result{}, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > MaxHead {
		return result{}, f.malformed(fmt.Errorf("head is %d bytes, want at most %d", n, MaxHead))
	}
	if cap(f.head) < int(n) {
		f.head = make([]byte, n)
	}
	f.head = f.head[:n]
	if _, err := io.ReadFull(f.r, f.head); err != nil {
		return result{}, cut(err)
	}
	var m pb.Result
	if err := proto.Unmarshal(f.head, &m); err != nil {
		return result{}, f.malformed(fmt.Errorf("head of %d bytes: %w", n, err))
	}
	res, err := parseResult(&m)
	if err != nil {
		return result{}, f.malformed(err)
	}
	return res, nil
}

func parseResult(m *pb.Result) (res result, err error) {
	res.request = m.Request
	switch what := m.What.(type) {
	case *pb.Result_Block:
		if what.Block.GetSize() > MaxBlock {
			return res, fmt.Errorf("payload is %d bytes, want at most %d", what.Block.GetSize(), MaxBlock)
		}
		res.kind, res.size = blockResult, int(what.Block.GetSize())
		res.memory, res.offset = what.Block.GetInMemory(), what.Block.GetOffset()
		if err := res.parseParts(what.Block); err != nil {
			return res, err
		}
		return res, res.parseBlock(what.Block)
	case *pb.Result_Held:
		res.kind = heldResult
		return res, res.parseBlock(what.Held)
	case *pb.Result_Done:
		res.kind, res.err = doneResult, what.Done.GetError().Err()
	case *pb.Result_Returned:
		res.kind, res.regions = returnedResult, what.Returned.GetRegions()
	}
	return res, nil
}

// parseParts reads where the payload is in inbound memory, if it is there.
func (res *result) parseParts(m *pb.BlockResult) error {
	offsets, sizes := m.GetPartOffsets(), m.GetPartSizes()
	if len(offsets) != len(sizes) {
		return fmt.Errorf("payload has %d offsets of parts and %d sizes, want as many", len(offsets), len(sizes))
	}
	if len(offsets) == 0 {
		return nil
	}
	sum := uint64(0)
	res.parts = make([]part, len(offsets))
	for i, at := range offsets {
		res.parts[i] = part{at, int(sizes[i])}
		sum += uint64(sizes[i])
		if at == inlinePart {
			res.inline += int(sizes[i])
		}
	}
	if sum != uint64(res.size) {
		return fmt.Errorf("payload is %d bytes and its parts are %d, want as many", res.size, sum)
	}
	return nil
}

func (res *result) parseBlock(m *pb.BlockResult) (err error) {
	if res.cid, err = parseCID(m.GetCid()); err != nil {
		return fmt.Errorf("cid: %w", err)
	}
	if len(m.GetRoot()) == 0 {
		return nil
	}
	if res.root, err = parseCID(m.Root); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	res.index, res.proof = m.Index, m.Proof
	return nil
}

// parseCID reads a CID that one process has sent to the other.
func parseCID(b []byte) (cid.Cid, error) {
	switch {
	case len(b) == 0:
		return cid.Undef, errors.New("is missing")
	case len(b) > MaxCID:
		return cid.Undef, fmt.Errorf("is %d bytes, want at most %d", len(b), MaxCID)
	}
	return cid.Cast(b)
}

// payload reads the payload of the frame into memory of its own.
func (f *frameReader) payload(res result) ([]byte, error) {
	if len(res.parts) > 0 {
		return f.join(res)
	}
	if !res.memory {
		data := make([]byte, res.size)
		if _, err := io.ReadFull(f.r, data); err != nil {
			return nil, cut(err)
		}
		return data, nil
	}
	begin, err := f.ring.begin(res)
	if err != nil {
		return nil, f.malformed(err)
	}
	data, ok := f.ring.m.Copy(int(res.offset), res.size)
	if !ok {
		return nil, errs.E(errs.Closed, errs.Ours, "read results", "shared memory", nil)
	}
	f.ring.done(begin + uint64(res.size))
	return data, nil
}

// join copies the parts of a payload together.
func (f *frameReader) join(res result) ([]byte, error) {
	inline := make([]byte, res.inline)
	if _, err := io.ReadFull(f.r, inline); err != nil {
		return nil, cut(err)
	}
	if f.inbound == nil {
		return nil, f.malformed(errors.New("payload is in inbound memory, and none is shared"))
	}
	if !f.inbound.Hold() {
		return nil, errs.E(errs.Closed, errs.Ours, "read results", "shared memory", nil)
	}
	defer f.inbound.Release()
	pieces := make([][]byte, len(res.parts))
	for i, p := range res.parts {
		if p.offset == inlinePart {
			pieces[i], inline = inline[:p.size], inline[p.size:]
			continue
		}
		if !f.inbound.Contains(p.offset, p.size) {
			return nil, f.malformed(fmt.Errorf("part %d of the payload is %d bytes at %d, and the memory has %d", i, p.size, p.offset, f.inbound.Size()))
		}
		pieces[i] = f.inbound.Bytes(int(p.offset), p.size)
	}
	b := bytes.Join(pieces, nil) // which clears nothing first
	return b[:len(b):len(b)], nil
}

// takeBack takes what the plugin returns.
func (f *frameReader) takeBack(regions []uint64) error {
	if f.inbound == nil {
		return errors.New("regions of inbound memory are returned, and none is shared")
	}
	return f.returned(regions)
}

// skip passes over the payload.
func (f *frameReader) skip(res result) error {
	if len(res.parts) > 0 {
		_, err := f.r.Discard(res.inline)
		return cut(err)
	}
	if !res.memory {
		_, err := f.r.Discard(res.size)
		return cut(err)
	}
	begin, err := f.ring.begin(res)
	if err != nil {
		return f.malformed(err)
	}
	f.ring.done(begin + uint64(res.size))
	return nil
}

// malformed is an error about the frame begun last.
func (f *frameReader) malformed(cause error) error {
	return errs.E(errs.Malformed, errs.Plugin, "read results", fmt.Sprintf("frame %d", f.count), cause)
}

// cut is the error of a stream that ends inside a frame.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendHead appends the length of a head, and the head.
func appendHead(b []byte, m *pb.Result) ([]byte, error) { return appendMessage(b, m, MaxHead) }

// appendMessage appends the length of a message, and the message; b as it was, if
// that is more than limit bytes.
func appendMessage(b []byte, m proto.Message, limit int) ([]byte, error) {
	at := len(b)
	b = append(b, make([]byte, lengthSize)...)
	out, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return b[:at], err
	}
	n := len(out) - at - lengthSize
	if n > limit {
		return out[:at], fmt.Errorf("%s is %d bytes, want at most %d", m.ProtoReflect().Descriptor().Name(), n, limit)
	}
	binary.LittleEndian.PutUint32(out[at:], uint32(n))
	return out, nil
}

// A commandReader reads commands. It is used by one goroutine.
type commandReader struct {
	r     *bufio.Reader
	count int // frames begun
	buf   []byte
}

func newCommandReader(r io.Reader) *commandReader {
	return &commandReader{r: bufio.NewReaderSize(r, 16<<10)}
}

// next reads a command. The error is io.EOF if the stream ends between two frames;
// of kind errs.Malformed, and the host's fault, if there is something wrong with the
// frame; and otherwise that of the stream.
func (f *commandReader) next() (*pb.Command, error) {
	const op = "read commands"
	f.count++
	var length [lengthSize]byte
	if _, err := io.ReadFull(f.r, length[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > MaxCommand {
		return nil, errs.Errorf(errs.Malformed, errs.Ours, op, "frame %d is %d bytes, want at most %d", f.count, n, MaxCommand)
	}
	if cap(f.buf) < int(n) || cap(f.buf) > batchSize {
		f.buf = make([]byte, n)
	}
	f.buf = f.buf[:n]
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return nil, cut(err)
	}
	m := new(pb.Command)
	if err := proto.Unmarshal(f.buf, m); err != nil {
		return nil, errs.E(errs.Malformed, errs.Ours, op, fmt.Sprintf("frame %d of %d bytes", f.count, n), err)
	}
	return m, nil
}
