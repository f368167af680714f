package borrow

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/pb"
)

// maxSizes is how many sizes are asked for in one call, and maxSizesBytes how
// many bytes their CIDs may have.
const (
	maxSizes      = 4096
	maxSizesBytes = 512 << 10
)

// errStore is why writing is refused.
var errStore = errors.New("the store belongs to the host")

// A Store reads the host's blocks. A block that is not there is an
// ipld.ErrNotFound. Blocks that are in their CID are found without asking. The
// bytes are not hashed again: the store is the host's.
type Store struct{ n *Node }

var _ blockstore.Blockstore = (*Store)(nil)

// Sizes says how long blocks are, in the order of the CIDs; -1 if the store does
// not have one.
func (s *Store) Sizes(ctx context.Context, cids []cid.Cid) ([]int, error) {
	const op = "read sizes of blocks"
	sizes := make([]int, len(cids))
	var asked []int // indices
	for i, c := range cids {
		content, inside := inline(c)
		switch {
		case inside:
			sizes[i] = len(content)
		case !c.Defined():
			sizes[i] = -1
		default:
			asked = append(asked, i)
		}
	}
	for len(asked) > 0 {
		var req pb.SizesRequest
		for size := 0; len(req.Cids) < min(len(asked), maxSizes); {
			b := cids[asked[len(req.Cids)]].Bytes()
			if size += len(b); size > maxSizesBytes && len(req.Cids) > 0 {
				break
			}
			req.Cids = append(req.Cids, b)
		}
		some := asked[:len(req.Cids)]
		asked = asked[len(some):]
		reply, err := s.n.client.Sizes(ctx, &req)
		if err != nil {
			return nil, s.n.failed(ctx, err, op)
		}
		if reply.GetError() != nil {
			return nil, reply.GetError().Err()
		}
		if got := len(reply.GetSizes()); got != len(some) {
			return nil, malformed(op, "%d sizes, want %d", got, len(some))
		}
		for i, size := range reply.GetSizes() {
			if size < -1 || size > channel.MaxBlock {
				return nil, malformed(op, "%v: size is %d, want -1 to %d", cids[some[i]], size, channel.MaxBlock)
			}
			sizes[some[i]] = int(size)
		}
	}
	return sizes, nil
}

// GetSize is the length of one block.
func (s *Store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	sizes, err := s.Sizes(ctx, []cid.Cid{c})
	if err != nil {
		return -1, err
	}
	if sizes[0] < 0 {
		return -1, ipld.ErrNotFound{Cid: c}
	}
	return sizes[0], nil
}

// Has says whether the store has a block.
func (s *Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	sizes, err := s.Sizes(ctx, []cid.Cid{c})
	return err == nil && sizes[0] >= 0, err
}

// Get reads a block.
func (s *Store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if !c.Defined() {
		return nil, ipld.ErrNotFound{Cid: c}
	}
	content, inside := inline(c)
	if !inside {
		var err error
		if content, err = s.read(ctx, c); err != nil {
			return nil, err
		}
	}
	return blocks.NewBlockWithCid(content, c)
}

func (s *Store) read(ctx context.Context, c cid.Cid) ([]byte, error) {
	op := "read block " + c.String()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends a call that has not ended
	parts, err := s.n.client.Read(ctx, &pb.ReadRequest{Cid: c.Bytes()})
	if err != nil {
		return nil, s.n.failed(ctx, err, op)
	}
	var data []byte
	for first := true; ; first = false {
		part, err := parts.Recv()
		switch {
		case err == io.EOF && (first || len(data) < cap(data)):
			return nil, malformed(op, "it ends after %d bytes, want %d", len(data), cap(data))
		case err == io.EOF:
			return data, nil
		case err != nil:
			return nil, s.n.failed(ctx, err, op)
		case part.GetError() != nil:
			return nil, part.GetError().Err()
		}
		if first {
			if part.GetSize() > channel.MaxBlock {
				return nil, errs.Errorf(errs.TooLarge, errs.Ours, op, "size is %d, want at most %d", part.GetSize(), channel.MaxBlock)
			}
			data = make([]byte, 0, part.GetSize())
		}
		if len(part.GetData()) > cap(data)-len(data) {
			return nil, malformed(op, "more than the %d bytes that were announced", cap(data))
		}
		data = append(data, part.GetData()...)
	}
}

// inline is the content of a block that is its own CID.
func inline(c cid.Cid) ([]byte, bool) {
	if !c.Defined() || c.Prefix().MhType != multihash.IDENTITY {
		return nil, false
	}
	h, err := multihash.Decode(c.Hash())
	if err != nil {
		return nil, false
	}
	return h.Digest, true
}

func readOnly(op string) error { return errs.E(errs.Invalid, errs.Caller, op, "", errStore) }

// Put is refused, and so is whatever else would change the store.
func (s *Store) Put(_ context.Context, b blocks.Block) error {
	return readOnly(fmt.Sprintf("put block %v", b.Cid()))
}

// PutMany is refused.
func (s *Store) PutMany(context.Context, []blocks.Block) error { return readOnly("put blocks") }

// DeleteBlock is refused.
func (s *Store) DeleteBlock(_ context.Context, c cid.Cid) error {
	return readOnly(fmt.Sprintf("delete block %v", c))
}

// AllKeysChan is refused: a plugin is told of blocks, and does not list them.
func (s *Store) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	return nil, readOnly("list blocks")
}
