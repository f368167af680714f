package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/multiformats/go-multihash"
)

// chunkSize is that of the files here, bytes: several blocks are little to read.
const chunkSize = 256

// A maker makes DAGs in memory.
type maker struct {
	testing.TB
	ctx   context.Context
	store blockstore.Blockstore
	dags  ipld.DAGService // over store
}

func newMaker(t testing.TB) maker {
	store := blockstore.NewBlockstore(dssync.MutexWrap(ds.NewMapDatastore()))
	return maker{t, context.Background(), store, merkledag.NewDAGService(blockservice.New(store, offline.Exchange(store)))}
}

func (m maker) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatalf("make fixtures: %v", err)
	}
}

// file makes a UnixFS file, whose leaves are raw.
func (m maker) file(content string) ipld.Node {
	m.Helper()
	return m.layout(content, helpers.DagBuilderParams{RawLeaves: true, CidBuilder: merkledag.V1CidPrefix()})
}

// oldFile makes a UnixFS file as they were first: DAG-PB throughout, by CIDv0.
func (m maker) oldFile(content string) ipld.Node {
	m.Helper()
	return m.layout(content, helpers.DagBuilderParams{CidBuilder: merkledag.V0CidPrefix()})
}

func (m maker) layout(content string, p helpers.DagBuilderParams) ipld.Node {
	m.Helper()
	p.Dagserv, p.Maxlinks = m.dags, helpers.DefaultLinksPerBlock
	b, err := p.New(chunk.NewSizeSplitter(strings.NewReader(content), chunkSize))
	m.must(err)
	n, err := balanced.Layout(b)
	m.must(err)
	return n
}

// dir makes a directory of entries in this order: name, node, name, node …
func (m maker) dir(entries ...any) ipld.Node {
	m.Helper()
	n := unixfs.EmptyDirNode()
	n.SetCidBuilder(merkledag.V1CidPrefix())
	for i := 0; i < len(entries); i += 2 {
		m.must(n.AddNodeLink(entries[i].(string), entries[i+1].(ipld.Node)))
	}
	m.must(m.dags.Add(m.ctx, n))
	return n
}

// sharded makes a directory that is a HAMT of several levels, with files of two blocks.
func (m maker) sharded(files int) ipld.Node {
	m.Helper()
	s, err := hamt.NewShard(m.dags, 16)
	m.must(err)
	s.SetCidBuilder(merkledag.V1CidPrefix())
	for i := range files {
		m.must(s.Set(m.ctx, shardedName(i), m.file(words(i, chunkSize+10))))
	}
	n, err := s.Node()
	m.must(err)
	return n
}

func shardedName(i int) string { return fmt.Sprintf("%d.txt", i) }

// document makes DAG-CBOR that leads to a node by a path of two keys.
func (m maker) document(key, under string, to ipld.Node) ipld.Node {
	m.Helper()
	n, err := qp.BuildMap(basicnode.Prototype.Any, -1, func(a datamodel.MapAssembler) {
		qp.MapEntry(a, key, qp.Map(-1, func(a datamodel.MapAssembler) { qp.MapEntry(a, under, qp.Link(cidlink.Link{Cid: to.Cid()})) }))
	})
	m.must(err)
	var b bytes.Buffer
	m.must(dagcbor.Encode(n, &b))
	c, err := cid.V1Builder{Codec: cid.DagCBOR, MhType: multihash.SHA2_256}.Sum(b.Bytes())
	m.must(err)
	block, err := blocks.NewBlockWithCid(b.Bytes(), c)
	m.must(err)
	m.must(m.store.Put(m.ctx, block))
	node, err := m.dags.Get(m.ctx, c)
	m.must(err)
	return node
}

// words is content that only this seed has.
func words(seed, size int) string {
	return strings.Repeat(fmt.Sprintf("file %d ", seed), size/7+1)[:size]
}

// links are the children of a block, in order.
func (m maker) links(c cid.Cid) []*ipld.Link {
	m.Helper()
	n, err := m.dags.Get(m.ctx, c)
	m.must(err)
	return n.Links()
}

// all is a DAG from its root, depth first; a block that occurs twice is there twice.
func (m maker) all(c cid.Cid) []cid.Cid {
	m.Helper()
	list := []cid.Cid{c}
	for _, l := range m.links(c) {
		list = append(list, m.all(l.Cid)...)
	}
	return list
}

// child is where a link leads.
func (m maker) child(c cid.Cid, name string) cid.Cid {
	m.Helper()
	for _, l := range m.links(c) {
		if l.Name == name {
			return l.Cid
		}
	}
	m.Fatalf("%s has no link %q", c, name)
	return cid.Undef
}

// A link of a HAMT has a digit before the name of an entry, or alone if it leads to
// a further shard.
const prefix = 1

// shards are the blocks of a HAMT, depth first.
func (m maker) shards(c cid.Cid) []cid.Cid {
	m.Helper()
	list := []cid.Cid{c}
	for _, l := range m.links(c) {
		if len(l.Name) == prefix {
			list = append(list, m.shards(l.Cid)...)
		}
	}
	return list
}

// way is the blocks of a HAMT from its root to an entry, and the root of that.
func (m maker) way(c cid.Cid, name string) (list []cid.Cid) {
	m.Helper()
	for _, l := range m.links(c) {
		if l.Name[prefix:] == name {
			return []cid.Cid{c, l.Cid}
		}
		if len(l.Name) == prefix {
			if rest := m.way(l.Cid, name); rest != nil {
				return append([]cid.Cid{c}, rest...)
			}
		}
	}
	return nil
}

// car is a CAR with the DAGs of some roots, but for the blocks that are left out.
func (m maker) car(roots []ipld.Node, without ...cid.Cid) []byte {
	m.Helper()
	var out bytes.Buffer
	w, err := storage.NewWritable(&out, []cid.Cid{roots[0].Cid()}, car.WriteAsCarV1(true))
	m.must(err)
	left := cid.NewSet()
	for _, c := range without {
		left.Add(c)
	}
	for _, r := range roots {
		for _, c := range m.all(r.Cid()) {
			if left.Visit(c) {
				n, err := m.dags.Get(m.ctx, c)
				m.must(err)
				m.must(w.Put(m.ctx, c.KeyString(), n.RawData()))
			}
		}
	}
	m.must(w.Finalize())
	return out.Bytes()
}
