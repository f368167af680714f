package lend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/plugin/pb"
)

func protocolID(s string) protocol.ID { return protocol.ID(s) }

func readBlock(ctx context.Context, p *plugin, c []byte) (data []byte, parts int, err error) {
	stream, err := p.Read(ctx, &pb.ReadRequest{Cid: c})
	if err != nil {
		return nil, 0, err
	}
	for size := uint64(0); ; parts++ {
		part, err := stream.Recv()
		if err == io.EOF {
			if uint64(len(data)) != size {
				err = fmt.Errorf("%d bytes, want the %d that were named", len(data), size)
				return data, parts, err
			}
			return data, parts, nil
		}
		if err == nil {
			err = part.GetError().Err()
		}
		if err != nil {
			return nil, parts, err
		}
		if parts == 0 {
			size = part.Size
		}
		data = append(data, part.Data...)
	}
}

// The store is read as it is: sizes, blocks in parts, leaves with their blocks'
// sizes. What is not there is no error where it can be said otherwise.
func TestStore(t *testing.T) {
	s := &store{}
	small, empty, big := random(10), []byte{}, random(600_000)
	cids := []cid.Cid{s.add(small), s.add(empty), s.add(big), cidOf(random(11))}
	tree := leaves{root: cidOf([]byte("root")), cids: []cid.Cid{cids[2], cids[3]}}
	p := newPlugin(t, newLender(t, newHost(t), Options{Blocks: s, Leaves: tree}))
	ctx := t.Context()
	if !p.start.Leaves || p.start.Routing {
		t.Errorf("the plugin was told of leaves %v and routing %v, want the leaves only", p.start.Leaves, p.start.Routing)
	}

	ask := &pb.SizesRequest{}
	for _, c := range cids {
		ask.Cids = append(ask.Cids, c.Bytes())
	}
	sizes, err := p.Sizes(ctx, ask)
	if want := []int64{10, 0, 600_000, -1}; err != nil || !slices.Equal(sizes.GetSizes(), want) {
		t.Errorf("sizes are %v, %v, want %v", sizes, err, want)
	}

	for i, want := range [][]byte{small, empty, big} {
		data, parts, err := readBlock(ctx, p, cids[i].Bytes())
		if err != nil || !bytes.Equal(data, want) || parts != max(1, (len(want)+maxPart-1)/maxPart) {
			t.Errorf("block of %d bytes: %d bytes in %d parts, %v", len(want), len(data), parts, err)
		}
	}
	if _, _, err := readBlock(ctx, p, cids[3].Bytes()); !ipld.IsNotFound(err) || !errors.Is(err, errs.NotFound) {
		t.Errorf("a block that is not there: %v, want not found", err)
	}

	reply, err := p.Leaves(ctx, &pb.LeavesRequest{Root: tree.root.Bytes(), Indices: []uint64{1, 0, 2}})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%q", reply.Leaves)
	want := fmt.Sprintf("%q", []*pb.Leaf{
		{Cid: cids[3].Bytes(), Proof: []byte("proof 1"), Size: -1},
		{Cid: cids[2].Bytes(), Proof: []byte("proof 0"), Size: 600_000},
		{Size: -1},
	})
	if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("leaves are\n%s, want\n%s", got, want)
	}

	s.mu.Lock()
	s.err = errors.New("the disk is on fire")
	s.mu.Unlock()
	sizes, err = p.Sizes(ctx, ask)
	_, _, readErr := readBlock(ctx, p, cids[0].Bytes())
	reply, leavesErr := p.Leaves(ctx, &pb.LeavesRequest{Root: tree.root.Bytes(), Indices: []uint64{0}})
	for what, err := range map[string]error{
		"sizes":  errors.Join(err, sizes.GetError().Err()),
		"read":   readErr,
		"leaves": errors.Join(leavesErr, reply.GetError().Err()),
	} {
		if !errors.Is(err, errs.Storage) || !strings.Contains(err.Error(), "on fire") {
			t.Errorf("%s of a store that fails: %v, want %v", what, err, errs.Storage)
		}
	}
}

// The router is asked, and this node itself is never named.
func TestRouting(t *testing.T) {
	node, far := newHost(t), newHost(t)
	r := &router{provided: make(chan cid.Cid, 1)}
	for _, h := range []peer.ID{node.ID(), far.ID(), "", "third"} {
		r.peers = append(r.peers, peer.AddrInfo{ID: h, Addrs: far.Addrs()})
	}
	p := newPlugin(t, newLender(t, node, Options{Router: r}))
	c := cidOf(nil)
	find := func(most uint32) (found []string) {
		stream, err := p.FindProviders(t.Context(), &pb.FindProvidersRequest{Cid: c.Bytes(), Max: most})
		for err == nil {
			var reply *pb.FindProvidersReply
			if reply, err = stream.Recv(); err == nil {
				if len(reply.Addrs) != len(far.Addrs()) {
					t.Errorf("%d addresses, want %d", len(reply.Addrs), len(far.Addrs()))
				}
				found = append(found, string(reply.Peer))
			}
		}
		if err != io.EOF {
			t.Errorf("the search ends with %v, want %v", err, io.EOF)
		}
		return found
	}
	if got, want := find(0), []string{string(far.ID()), "third"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if got, want := find(1), []string{string(far.ID())}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if _, err := p.Provide(t.Context(), &pb.ProvideRequest{Cid: c.Bytes()}); err != nil {
		t.Fatal(err)
	}
	if got := <-r.provided; got != c {
		t.Errorf("provided %v, want %v", got, c)
	}
	p = newPlugin(t, newLender(t, node, Options{Router: &router{err: errors.New("nobody listens")}}))
	if reply, err := p.Provide(t.Context(), &pb.ProvideRequest{Cid: c.Bytes()}); err != nil || !strings.Contains(reply.GetError().GetText(), "nobody listens") {
		t.Errorf("a router that fails: %v, %v, want its error", reply, err)
	}
}

// Tags and protections reach the connection manager under the plugin's name, no
// more than may be, and go with the lease.
func TestValues(t *testing.T) {
	node, far := newHost(t), newHost(t)
	connect(t, node, far)
	l := newLender(t, node, Options{Name: "bs", Tags: 3})
	p := newPlugin(t, l)
	value := func(values ...*pb.PeerValue) {
		t.Helper()
		for _, v := range values {
			v.Peer = []byte(far.ID())
		}
		if _, err := p.Value(t.Context(), &pb.ValueRequest{Values: values}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(tags map[string]int, protected bool) {
		t.Helper()
		got := node.ConnManager().GetTagInfo(far.ID()).Tags
		if fmt.Sprint(got) != fmt.Sprint(tags) || node.ConnManager().IsProtected(far.ID(), "plugin.bs.c") != protected {
			t.Errorf("tags are %v, protected %v, want %v, %v", got, !protected, tags, protected)
		}
	}
	node.ConnManager().TagPeer(far.ID(), "mine", 1)
	set := func(tag string, n int64) *pb.PeerValue {
		return &pb.PeerValue{Tag: tag, What: &pb.PeerValue_Value{Value: n}}
	}
	value(set("a", 5), set("b", 6), &pb.PeerValue{Tag: "c", What: &pb.PeerValue_Protect{Protect: true}}, set("too many", 7), set("a", 1<<40))
	check(map[string]int{"mine": 1, "plugin.bs.a": maxValue, "plugin.bs.b": 6}, true)
	if s := l.Stat(); s.Tags != 3 || s.TagsIgnored != 1 {
		t.Errorf("stat is %+v, want 3 tags and 1 ignored", s)
	}
	value(&pb.PeerValue{Tag: "b", What: &pb.PeerValue_Untag{Untag: true}}, set("d", 8), &pb.PeerValue{Tag: "e"})
	check(map[string]int{"mine": 1, "plugin.bs.a": maxValue, "plugin.bs.d": 8}, true)
	p.end()
	check(map[string]int{"mine": 1}, false)
}

// What a plugin asks wrongly is refused, with an error that names what is wrong
// and blames it, and changes nothing.
func TestBadInput(t *testing.T) {
	node, far := newHost(t), newHost(t)
	p := newPlugin(t, newLender(t, node, Options{}))
	ctx := t.Context()
	self, other, good := []byte(node.ID()), []byte(far.ID()), cidOf(nil).Bytes()
	bad := []byte{1, 2, 3}
	open := func(peer []byte, protocols ...string) error {
		r, err := p.OpenStream(ctx, &pb.OpenStreamRequest{Peer: peer, Protocols: protocols, NoDial: true})
		return errors.Join(err, r.GetError().Err())
	}
	connect := func(peer []byte, addrs ...[]byte) error {
		r, err := p.Connect(ctx, &pb.ConnectRequest{Peer: peer, Addrs: addrs})
		return errors.Join(err, r.GetError().Err())
	}
	handle := func(id string) error { _, err := p.Handle(ctx, &pb.HandleRequest{Protocol: id}); return err }
	value := func(peer []byte, tag string) error {
		_, err := p.Value(ctx, &pb.ValueRequest{Values: []*pb.PeerValue{{Peer: peer, Tag: tag}}})
		return err
	}
	sizes := func(cids ...[]byte) error { _, err := p.Sizes(ctx, &pb.SizesRequest{Cids: cids}); return err }
	read := func(c []byte) error { _, _, err := readBlock(ctx, p, c); return err }
	leavesOf := func(root []byte) error { _, err := p.Leaves(ctx, &pb.LeavesRequest{Root: root}); return err }
	provide := func(c []byte) error { _, err := p.Provide(ctx, &pb.ProvideRequest{Cid: c}); return err }
	find := func(c []byte) error {
		s, err := p.FindProviders(ctx, &pb.FindProvidersRequest{Cid: c})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	for _, tc := range []struct {
		name string
		err  error
		kind errs.Kind
		says string
	}{
		{"open: bad peer", open(bad, echo), errs.Invalid, "peer 010203"},
		{"open: no peer", open(nil, echo), errs.Invalid, "peer "},
		{"open: this node", open(self, echo), errs.Invalid, "this node"},
		{"open: no protocol", open(other), errs.Invalid, "0 protocols"},
		{"open: too many protocols", open(other, slices.Repeat([]string{echo}, 65)...), errs.Invalid, "65 protocols"},
		{"open: empty protocol", open(other, echo, ""), errs.Invalid, "0 bytes"},
		{"open: not connected", open(other, echo), errs.Unreachable, far.ID().String()},
		{"connect: bad peer", connect(bad), errs.Invalid, "peer 010203"},
		{"connect: this node", connect(self), errs.Invalid, "this node"},
		{"connect: bad address", connect(other, far.Addrs()[0].Bytes(), bad), errs.Invalid, "address 1, 010203"},
		{"connect: bytes that are no text", connect(other, []byte("\x2a\x05\x2f\xca\xff\xe2\x13")), errs.Invalid, "address 0, 2a052fcaffe213"},
		{"connect: too many addresses", connect(other, slices.Repeat([][]byte{bad}, 257)...), errs.TooLarge, "257 addresses"},
		{"handle: empty", handle(""), errs.Invalid, "0 bytes"},
		{"handle: long", handle(strings.Repeat("x", 257)), errs.Invalid, "257 bytes"},
		{"handle: the host's own", handle("/ipfs/id/1.0.0"), errs.Invalid, "/ipfs/id/1.0.0: the host"},
		{"value: bad peer", value(bad, "tag"), errs.Invalid, "peer 010203"},
		{"value: no tag", value(other, ""), errs.Invalid, "0 bytes"},
		{"value: long tag", value(other, strings.Repeat("x", 257)), errs.Invalid, "257 bytes"},
		{"sizes: bad cid", sizes(good, bad), errs.Invalid, "cid 010203"},
		{"sizes: too many", sizes(slices.Repeat([][]byte{good}, 4097)...), errs.TooLarge, "4097 cids"},
		{"read: bad cid", read(bad), errs.Invalid, "cid 010203"},
		{"read: bytes after the cid", read(append(slices.Clone(good), 0)), errs.Invalid, "cid "},
		{"leaves: bad root", leavesOf(bad), errs.Invalid, "cid 010203"},
		{"leaves: none", leavesOf(good), errs.Invalid, "keeps no leaves"},
		{"find: bad cid", find(bad), errs.Invalid, "cid 010203"},
		{"find: no router", find(good), errs.Invalid, "no routing"},
		{"provide: bad cid", provide(bad), errs.Invalid, "cid 010203"},
		{"provide: no router", provide(good), errs.Invalid, "no routing"},
		{"a message that is too long", sizes(random(MaxRequest)), errs.TooLarge, "larger than max"},
	} {
		err := pb.FromStatus(ctx, tc.err, errs.Plugin, "ask")
		var e *errs.Error
		if !errors.Is(err, tc.kind) || !errors.As(err, &e) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %v that says %q", tc.name, err, tc.kind, tc.says)
		}
		if tc.kind == errs.Invalid && e != nil && e.Fault != errs.Plugin {
			t.Errorf("%s: the fault is of %v, want %v", tc.name, e.Fault, errs.Plugin)
		}
	}
	tree := newPlugin(t, newLender(t, newHost(t), Options{Leaves: leaves{}}))
	_, err := tree.Leaves(ctx, &pb.LeavesRequest{Root: good, Indices: make([]uint64, 1025)})
	if err := pb.FromStatus(ctx, err, errs.Plugin, "ask"); !errors.Is(err, errs.TooLarge) {
		t.Errorf("too many leaves: %v, want %v", err, errs.TooLarge)
	}
}

// All that is wrong with options is said at once.
func TestBadOptions(t *testing.T) {
	_, err := New(Options{Name: "a b", Streams: -1, InboundWait: -1})
	for _, want := range []string{"Name", "no Host", "no Blocks", "Streams is -1", "InboundWait is -1ns"} {
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want it to say %q", err, want)
		}
	}
}
