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
	cidenc "github.com/ipfs/go-cidutil/cidenc"
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
	enc    cidenc.Encoder // for the CIDs that are printed
}

// newReader is what a command about paths begins with. It also reads the arguments
// that come on stdin.
func newReader(req *cmds.Request, environment cmds.Environment) (*reader, error) {
	given := slices.Clone(req.Arguments)
	if err := req.ParseBodyArgs(); err != nil {
		return nil, err
	}
	enc, err := encoder(req)
	if err != nil {
		return nil, err
	}
	n, err := env(environment).Node()
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: req.Context, node: n, enc: enc}
	if option[bool](req, offlineOption) || !n.Online() {
		r.blocks, r.dag = blockservice.New(n.Blockstore(), nil), n.LocalDAG()
	} else {
		s := newSearch(req, given, n, enc)
		env(environment).searches.begin(s) // explained ends it
		r.blocks = n.Blockstore().Service(newSearching(n.BlockService().Exchange(), s))
		r.dag = merkledag.NewDAGService(r.blocks)
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
		return path.ImmutablePath{}, fmt.Errorf("path %q: commands resolve no names of /%s, which the gateway does; want a CID, or /ipfs/CID/name", s, p.Namespace())
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
