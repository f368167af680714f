package ahead

import (
	"bytes"
	"fmt"
	"slices"

	unixfs "github.com/ipfs/boxo/ipld/unixfs/pb"
	"github.com/ipfs/boxo/verifcid"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/ipld/go-ipld-prime/traversal"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

// maxNode is the longest block that is decoded, bytes: no node of IPFS is longer.
const maxNode = 2 << 20

// A Node is what the block of a node says of the blocks after it.
type Node struct {
	Links []Link // in order; each CID once, and only those that a block can be fetched by
	Named bool   // the links are entries, of which a walker may want just one
}

// A Link is a link to a block.
type Link struct {
	Cid  cid.Cid
	Size int // at most that of the block, as the node has it, bytes; 0 if it does not say
	kind kind
	done bool // was asked for, or need not be; owned by Plan
}

// kind is by what walkers of named links tell them apart.
type kind uint8

const (
	branch kind = iota // a node
	leaf               // a block without links
	shard              // more of the same directory
)

// HasLinks reports whether blocks with this CID can have links that Decode finds.
func HasLinks(c cid.Cid) bool {
	codec := c.Type()
	return codec == cid.DagProtobuf || codec == cid.DagCBOR
}

// Decode reads the links of the block c. The error is of kind errs.Malformed if
// the block is not what its CID says, or errs.TooLarge if it is longer than nodes
// are.
func Decode(c cid.Cid, data []byte) (n Node, err error) {
	const op = "read links"
	if len(data) > maxNode {
		return Node{}, errs.E(errs.TooLarge, errs.Peer, op, wire.CidString(c), fmt.Errorf("block is %d bytes, want at most %d", len(data), maxNode))
	}
	switch codec := c.Type(); codec {
	case cid.DagProtobuf:
		n, err = decodePB(data)
	case cid.DagCBOR:
		n, err = decodeCBOR(data)
	case cid.Raw:
	default:
		err = fmt.Errorf("codec is 0x%x, want one that has links", codec)
	}
	if err != nil {
		return Node{}, errs.E(errs.Malformed, errs.Peer, op, wire.CidString(c), err)
	}
	return n, nil
}

// A list makes the links of a node.
type list struct {
	links []Link
	seen  map[cid.Cid]struct{}
}

func (l *list) add(c cid.Cid, size int, k kind) {
	if c.Prefix().MhType == multihash.IDENTITY || verifcid.ValidateCid(verifcid.DefaultAllowlist, c) != nil {
		return // there is no block, or none that anybody accepts; such a CID may be as long as it likes
	}
	if _, again := l.seen[c]; again {
		return
	}
	if k == branch && !HasLinks(c) {
		k = leaf
	}
	l.seen[c] = struct{}{}
	l.links = append(l.links, Link{Cid: c, Size: size, kind: k})
}

// node makes a node that takes no more memory than its links do.
func (l *list) node(named bool) Node {
	if cap(l.links) > 2*len(l.links) {
		l.links = slices.Clone(l.links)
	}
	return Node{Links: l.links, Named: named}
}

func decodePB(data []byte) (Node, error) {
	build := dagpb.Type.PBNode.NewBuilder()
	if err := dagpb.DecodeBytes(build, data); err != nil {
		return Node{}, err
	}
	node := build.Build().(dagpb.PBNode)
	count := int(node.Links.Length())
	if count == 0 {
		return Node{}, nil
	}
	named, prefix := directory(node)
	l := list{links: make([]Link, 0, count), seen: make(map[cid.Cid]struct{}, count)}
	for it := node.Links.Iterator(); !it.Done(); {
		_, link := it.Next()
		k := branch
		if prefix > 0 && link.FieldName().Exists() && len(link.FieldName().Must().String()) == prefix {
			k = shard
		}
		// A block is no longer than all that is below it; what is longer than any
		// block says nothing.
		size := 0
		if t := link.FieldTsize(); t.Exists() {
			if n := t.Must().Int(); n > 0 && n <= maxNode {
				size = int(n)
			}
		}
		l.add(link.FieldHash().Link().(cidlink.Link).Cid, size, k)
	}
	return l.node(named), nil
}

// directory reports whether a node is a UnixFS directory, and how long the names
// of its shards are, if it has any.
func directory(node dagpb.PBNode) (named bool, shardName int) {
	if !node.Data.Exists() {
		return false, 0
	}
	var d unixfs.Data
	if proto.Unmarshal(node.Data.Must().Bytes(), &d) != nil {
		return false, 0 // not UnixFS
	}
	switch d.GetType() {
	case unixfs.Data_Directory:
		return true, 0
	case unixfs.Data_HAMTShard:
		return true, len(fmt.Sprintf("%X", max(d.GetFanout(), 1)-1))
	}
	return false, 0
}

func decodeCBOR(data []byte) (Node, error) {
	build := basicnode.Prototype.Any.NewBuilder()
	// Relaxed, as older writers were.
	if err := (dagcbor.DecodeOptions{AllowLinks: true, RelaxedDecode: true}).Decode(build, bytes.NewReader(data)); err != nil {
		return Node{}, err
	}
	links, err := traversal.SelectLinks(build.Build())
	if err != nil || len(links) == 0 {
		return Node{}, err
	}
	l := list{links: make([]Link, 0, len(links)), seen: make(map[cid.Cid]struct{}, len(links))}
	for _, x := range links {
		if c, ok := x.(cidlink.Link); ok && c.Defined() {
			l.add(c.Cid, 0, branch)
		}
	}
	return l.node(true), nil
}
