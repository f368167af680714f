package commands

import (
	"context"
	"fmt"
	"slices"

	"github.com/ipfs/boxo/blockservice"
	bsfetcher "github.com/ipfs/boxo/fetcher/impl/blockservice"
	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/ipld/merkledag"
	unixfile "github.com/ipfs/boxo/ipld/unixfs/file"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/boxo/path/resolver"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipfs/go-unixfsnode"
	dagpb "github.com/ipld/go-codec-dagpb"

	// The codecs whose links can be followed, besides dag-pb and raw.
	_ "github.com/ipld/go-ipld-prime/codec/dagcbor"
	_ "github.com/ipld/go-ipld-prime/codec/dagjson"

	"github.com/codexchange/codexchange/host"
)

// A reader reads blocks for one command: from the store, and else from peers,
// unless the command or the node is offline. Peers are asked in one session.
type reader struct {
	ctx    context.Context
	node   *host.Node
	blocks blockservice.BlockService
	dag    ipld.DAGService
}

func newReader(req *cmds.Request, environment cmds.Environment) (*reader, error) {
	n, err := env(environment).Node()
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: req.Context, node: n, blocks: n.BlockService(), dag: n.DAG()}
	if option[bool](req, offlineOption) || !n.Online() {
		r.blocks, r.dag = blockservice.New(n.Blockstore(), nil), n.LocalDAG()
	}
	r.dag = merkledag.NewReadOnlyDagService(merkledag.NewSession(req.Context, r.dag))
	return r, nil
}

// parsePath reads a path or a CID alone.
func parsePath(s string) (path.ImmutablePath, error) {
	p, err := path.NewPath(s)
	if err != nil {
		var second error
		if p, second = path.NewPath("/ipfs/" + s); second != nil {
			return path.ImmutablePath{}, fmt.Errorf("path %q: %w; want a CID, or /ipfs/CID/name", s, err)
		}
	}
	if p.Mutable() {
		return path.ImmutablePath{}, fmt.Errorf("path %q: this node resolves no names of /%s, want a CID, or /ipfs/CID/name", s, p.Namespace())
	}
	return path.NewImmutablePath(p)
}

// resolve finds the block that a path leads to.
func (r *reader) resolve(s string) (cid.Cid, error) {
	p, err := parsePath(s)
	if err != nil {
		return cid.Undef, err
	}
	if len(p.Segments()) == 2 { // the namespace and the root
		return p.RootCid(), nil
	}
	factory := bsfetcher.NewFetcherConfig(r.blocks)
	factory.PrototypeChooser = dagpb.AddSupportToChooser(bsfetcher.DefaultPrototypeChooser)
	c, rest, err := resolver.NewBasicResolver(factory.WithReifier(unixfsnode.Reify)).ResolveToLastNode(r.ctx, p)
	if err != nil {
		return cid.Undef, err
	}
	if len(rest) > 0 {
		return cid.Undef, fmt.Errorf("path %q: %q is inside of the block %s, want the path of a block", s, path.SegmentsToString(rest...), c)
	}
	return c, nil
}

// get is the node that a path leads to.
func (r *reader) get(s string) (ipld.Node, error) {
	c, err := r.resolve(s)
	if err != nil {
		return nil, err
	}
	return r.dag.Get(r.ctx, c)
}

// file is the file, directory or link that a path leads to.
func (r *reader) file(s string) (files.Node, error) {
	n, err := r.get(s)
	if err != nil {
		return nil, err
	}
	f, err := unixfile.NewUnixfsFile(r.ctx, r.dag, n)
	if err != nil {
		return nil, fmt.Errorf("read %s as a file: %w", s, err)
	}
	return f, nil
}

// ahead is how many children of a node are asked for together.
const ahead = 32

// A walk goes through DAGs in the order of reading: parents before children, and the
// whole of one child before the next.
type walk struct {
	ctx context.Context
	dag ipld.NodeGetter
	// want says whether the target of a link may be needed, at that depth, so that it
	// is fetched together with others. nil is: yes.
	want func(l *ipld.Link, depth int) bool
	// link is told of each link in order, and says whether to go there. nil is: yes.
	link func(parent cid.Cid, l *ipld.Link, depth int) (bool, error)
	// node is told of each node that is reached. It may be nil.
	node func(ipld.Node) error
}

// from walks the DAG under n. At any time it holds up to ahead blocks for each
// level of the DAG.
func (w *walk) from(n ipld.Node, depth int) error {
	if w.node != nil {
		if err := w.node(n); err != nil {
			return err
		}
	}
	for some := range slices.Chunk(n.Links(), ahead) {
		var wanted []cid.Cid
		for _, l := range some {
			if w.want == nil || w.want(l, depth+1) {
				wanted = append(wanted, l.Cid)
			}
		}
		nodes, err := getAll(w.ctx, w.dag, wanted)
		if err != nil {
			return err
		}
		for _, l := range some {
			if w.link != nil {
				if ok, err := w.link(n.Cid(), l, depth+1); err != nil {
					return err
				} else if !ok {
					continue
				}
			}
			child := nodes[l.Cid]
			if child == nil {
				if child, err = w.dag.Get(w.ctx, l.Cid); err != nil {
					return err
				}
			}
			if err := w.from(child, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// getAll gets nodes that may come in any order.
func getAll(ctx context.Context, dag ipld.NodeGetter, list []cid.Cid) (map[cid.Cid]ipld.Node, error) {
	ctx, cancel := context.WithCancel(ctx) // ends what is still asked for
	defer cancel()
	nodes := make(map[cid.Cid]ipld.Node, len(list))
	wanted := make([]cid.Cid, 0, len(list))
	for _, c := range list {
		if _, twice := nodes[c]; !twice {
			nodes[c] = nil
			wanted = append(wanted, c)
		}
	}
	for got := range dag.GetMany(ctx, wanted) {
		if got.Err != nil {
			break // it does not say of which
		}
		nodes[got.Node.Cid()] = got.Node
	}
	for _, c := range wanted {
		if nodes[c] != nil {
			continue
		}
		n, err := dag.Get(ctx, c)
		if err != nil {
			return nil, err
		}
		nodes[c] = n
	}
	return nodes, nil
}
