package commands

import (
	"context"
	"slices"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

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

// each is told of every node of the DAG under root once, in the order of reading.
func (r *reader) each(root ipld.Node, node func(ipld.Node) error) error {
	seen := cid.NewSet()
	seen.Add(root.Cid())
	w := walk{
		ctx: r.ctx, dag: r.dag, node: node,
		want: func(l *ipld.Link, _ int) bool { return !seen.Has(l.Cid) },
		link: func(_ cid.Cid, l *ipld.Link, _ int) (bool, error) { return seen.Visit(l.Cid), nil },
	}
	return w.from(root, 0)
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
