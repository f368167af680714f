package refpeer

import (
	"slices"

	"github.com/ipfs/go-cid"
)

// A store holds blocks by CID, and for leaves the CID and the proof that they
// came with. Blocks are found by the exact bytes of the CID.
type store struct {
	blocks map[cid.Cid][]byte
	leaves map[Address]leaf
}

type leaf struct {
	block cid.Cid
	proof Proof
}

func newStore() store {
	return store{blocks: make(map[cid.Cid][]byte), leaves: make(map[Address]leaf)}
}

func (s *store) put(c cid.Cid, data []byte) {
	if c != emptyBlock {
		s.blocks[c] = data
	}
}

// putLeaf writes the record of a leaf; the first one stays.
func (s *store) putLeaf(a Address, c cid.Cid, p Proof) {
	if _, ok := s.leaves[a]; !ok {
		s.leaves[a] = leaf{block: c, proof: p}
	}
}

// get returns what would be delivered for an address.
func (s *store) get(a Address) (Delivery, bool) {
	d := Delivery{Cid: a.Cid, Address: a}
	if a.Leaf {
		l, ok := s.leaves[a]
		if !ok {
			return d, false
		}
		d.Cid, d.Proof = l.block, &l.proof
	}
	if d.Cid == emptyBlock {
		d.Data = []byte{}
		return d, true
	}
	var ok bool
	d.Data, ok = s.blocks[d.Cid]
	if ok && d.Data == nil {
		d.Data = []byte{}
	}
	return d, ok
}

// held lists every address in the store, in a fixed order.
func (s *store) held() []Address {
	var as []Address
	for c := range s.blocks {
		as = append(as, Block(c))
	}
	for a := range s.leaves {
		as = append(as, a)
	}
	return sorted(as)
}

// sorted puts addresses into a fixed order, so that what follows depends on the
// seed and not on the order of a map.
func sorted(as []Address) []Address {
	slices.SortFunc(as, func(a, b Address) int {
		switch {
		case a.Cid != b.Cid && a.Cid.KeyString() < b.Cid.KeyString():
			return -1
		case a.Cid != b.Cid:
			return 1
		case a.Index < b.Index:
			return -1
		case a.Index > b.Index:
			return 1
		case !a.Leaf && b.Leaf:
			return -1
		case a.Leaf && !b.Leaf:
			return 1
		}
		return 0
	})
	return as
}

// A Dataset is what AddDataset has put into a Peer.
type Dataset struct {
	Tree         cid.Cid   // leaves are addressed by it
	Blocks       []cid.Cid // by index
	Manifest     cid.Cid   // a block of the peer too; undefined for AddLeaves
	ManifestData []byte
}

// Leaves is the addresses of all blocks of the dataset.
func (d Dataset) Leaves() []Address { return Leaves(d.Tree, len(d.Blocks)) }

// AddBlock gives the peer a block. Peers that wait for it by this CID are
// served. The data is not copied. It fails the test if data does not hash to c.
func (p *Peer) AddBlock(c cid.Cid, data []byte) {
	p.tb.Helper()
	if err := checkHash(c, data); err != nil {
		p.tb.Fatalf("refpeer: add block: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store.put(c, data)
	p.arrived([]Address{Block(c)}, nil)
}

// AddDataset cuts data into blocks as an upload to the reference does, the last
// one filled with zeros, and stores blocks, leaves and manifest. As there,
// remotes that wait for its blocks or manifest by CID are served at once, but
// those that wait for its leaves only when they next ask for anything.
func (p *Peer) AddDataset(data []byte, blockSize int) Dataset {
	p.tb.Helper()
	if blockSize <= 0 || len(data) == 0 {
		p.tb.Fatalf("refpeer: add dataset of %d bytes in blocks of %d: want both positive", len(data), blockSize)
	}
	var blocks [][]byte
	for b := range slices.Chunk(data, blockSize) {
		if len(b) < blockSize {
			b = append(slices.Clip(b), make([]byte, blockSize-len(b))...)
		}
		blocks = append(blocks, b)
	}
	d := p.AddLeaves(blocks...)
	d.ManifestData = encodeManifest(manifest{tree: d.Tree, blockSize: blockSize, size: len(data)})
	d.Manifest = mustSum(CodecManifest, d.ManifestData)
	p.AddBlock(d.Manifest, d.ManifestData)
	return d
}

// AddLeaves stores a dataset of the given blocks, at least one, whose lengths
// may differ; an honest upload makes them all equal. There is no manifest.
func (p *Peer) AddLeaves(blocks ...[]byte) Dataset {
	p.tb.Helper()
	if len(blocks) == 0 {
		p.tb.Fatalf("refpeer: add leaves: got none, want at least one")
	}
	var d Dataset
	var leaves [][32]byte
	for _, b := range blocks {
		c := BlockCid(b)
		_, dig, err := digest(c)
		if err != nil {
			p.tb.Fatalf("refpeer: add leaves: %v", err)
		}
		d.Blocks = append(d.Blocks, c)
		leaves = append(leaves, [32]byte(dig))
	}
	tree := layers(leaves)
	d.Tree = treeCid(rootOf(tree))

	p.mu.Lock()
	defer p.mu.Unlock()
	var added []Address
	for i, b := range blocks {
		p.store.put(d.Blocks[i], b)
		p.store.putLeaf(Leaf(d.Tree, uint64(i)), d.Blocks[i], prove(tree, i))
		added = append(added, Block(d.Blocks[i]))
	}
	p.arrived(added, nil)
	return d
}

// Block returns the data that the peer would deliver for an address.
func (p *Peer) Block(a Address) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, ok := p.store.get(a)
	return d.Data, ok
}

type manifest struct {
	tree            cid.Cid
	blockSize, size int // bytes
	name, mime      string
}

// encodeManifest writes the manifest of a plain dataset. The CID version is
// written as its ordinal in the reference, where version 1 is 2.
func encodeManifest(m manifest) []byte {
	b := appendBytes(nil, 1, m.tree.Bytes())
	b = appendVarint(b, 2, uint64(m.blockSize))
	b = appendVarint(b, 3, uint64(m.size))
	b = appendVarint(b, 4, CodecBlock)
	b = appendVarint(b, 5, sha256Code)
	b = appendVarint(b, 6, 2)
	if m.name != "" {
		b = appendBytes(b, 8, []byte(m.name))
	}
	if m.mime != "" {
		b = appendBytes(b, 9, []byte(m.mime))
	}
	return appendBytes(nil, 1, b)
}
