package ahead

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	unixfs "github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/wire"
)

// pbNode is a dag-pb node with UnixFS data.
func pbNode(t testing.TB, data []byte, links ...*ipld.Link) *merkledag.ProtoNode {
	t.Helper()
	n := merkledag.NodeWithData(data)
	for _, l := range links {
		if err := n.AddRawLink(l.Name, l); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func decode(t testing.TB, c cid.Cid, data []byte) Node {
	t.Helper()
	n, err := Decode(c, data)
	if err != nil {
		t.Fatalf("decode %s: %v", c, err)
	}
	return n
}

// The links of a file come in order, each once, with sizes as far as those say
// anything of a block.
func TestDecodeFile(t *testing.T) {
	inside, err := cid.Prefix{Version: 1, Codec: cid.Raw, MhType: mh.IDENTITY, MhLength: -1}.Sum([]byte("in the cid"))
	if err != nil {
		t.Fatal(err)
	}
	n := pbNode(t, unixfs.FilePBData(nil, 100),
		&ipld.Link{Cid: cidOf("x0"), Size: 1000},
		&ipld.Link{Cid: cidOf("n1"), Size: 40 << 20},
		&ipld.Link{Cid: cidOf("x0"), Size: 1000},
		&ipld.Link{Cid: inside, Size: 10},
		&ipld.Link{Cid: cidOf("x2")},
	)
	got := decode(t, n.Cid(), n.RawData())
	want := []Link{{Cid: cidOf("x0"), Size: 1000, kind: leaf}, {Cid: cidOf("n1"), kind: branch}, {Cid: cidOf("x2"), kind: leaf}}
	if fmt.Sprint(got) != fmt.Sprint(Node{Links: want}) {
		t.Errorf("got %v\nwant %v", got, Node{Links: want})
	}
	for _, empty := range [][]byte{unixfs.FilePBData([]byte("hello"), 5), []byte("not UnixFS"), nil} {
		n := pbNode(t, empty)
		if got := decode(t, n.Cid(), n.RawData()); len(got.Links) > 0 || got.Named {
			t.Errorf("a node without links: got %v", got)
		}
	}
}

// Directories name their links; in those that are sharded, shards are told from
// entries.
func TestDecodeDirectory(t *testing.T) {
	flat := pbNode(t, unixfs.FolderPBData(), &ipld.Link{Name: "00a", Cid: cidOf("na")}, &ipld.Link{Name: "00z", Cid: cidOf("x")})
	if got := decode(t, flat.Cid(), flat.RawData()); !got.Named || len(got.Links) != 2 || got.Links[0].kind != branch || got.Links[1].kind != leaf {
		t.Errorf("got %v, want two named links, to a node and a leaf", got)
	}
	ctx, dag := context.Background(), mdtest.Mock()
	root, err := hamt.NewShard(dag, 16)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		if err := root.Set(ctx, fmt.Sprint("entry ", i), merkledag.NewRawNode([]byte{byte(i)})); err != nil {
			t.Fatal(err)
		}
	}
	node, err := root.Node()
	if err != nil {
		t.Fatal(err)
	}
	got := decode(t, node.Cid(), node.RawData())
	if !got.Named || len(got.Links) != len(node.Links()) {
		t.Fatalf("got %v, want all %d links", got, len(node.Links()))
	}
	shards := 0
	for i, l := range node.Links() {
		if isShard := len(l.Name) == 1; isShard != (got.Links[i].kind == shard) {
			t.Errorf("link %q is of kind %d", l.Name, got.Links[i].kind)
		} else if isShard {
			shards++
		}
	}
	if shards == 0 {
		t.Error("the directory has no shards, so nothing was tested")
	}
}

func cborNode(t testing.TB, build func(datamodel.MapAssembler)) (cid.Cid, []byte) {
	t.Helper()
	n, err := qp.BuildMap(basicnode.Prototype.Any, -1, build)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := dagcbor.Encode(n, &b); err != nil {
		t.Fatal(err)
	}
	c, err := cid.Prefix{Version: 1, Codec: cid.DagCBOR, MhType: mh.SHA2_256, MhLength: -1}.Sum(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return c, b.Bytes()
}

// Links of dag-cbor are found at any depth.
func TestDecodeCBOR(t *testing.T) {
	link := func(name string) qp.Assemble { return qp.Link(cidlink.Link{Cid: cidOf(name)}) }
	c, data := cborNode(t, func(m datamodel.MapAssembler) {
		qp.MapEntry(m, "a", link("x0"))
		qp.MapEntry(m, "b", qp.List(2, func(l datamodel.ListAssembler) {
			qp.ListEntry(l, link("n1"))
			qp.ListEntry(l, qp.String("no link"))
			qp.ListEntry(l, link("x0"))
		}))
	})
	got := decode(t, c, data)
	want := Node{Named: true, Links: []Link{{Cid: cidOf("x0"), kind: leaf}, {Cid: cidOf("n1"), kind: branch}}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// What is no node is refused, with its name.
func TestDecodeRefuses(t *testing.T) {
	for _, x := range []struct {
		name string
		cid  cid.Cid
		data []byte
		kind error
		text string
	}{
		{"garbage", cidOf("n"), []byte("garbage"), errs.Malformed, "protobuf"},
		{"garbage in cbor", cid.NewCidV1(cid.DagCBOR, cidOf("n").Hash()), []byte{0xff}, errs.Malformed, "invalid"},
		{"nesting", cid.NewCidV1(cid.DagCBOR, cidOf("n").Hash()), bytes.Repeat([]byte{0x81}, 1<<20), errs.Malformed, "depth"},
		{"length", cidOf("n"), make([]byte, 2<<20+1), errs.TooLarge, "block is 2097153 bytes, want at most 2097152"},
		{"codec", cid.NewCidV1(0xcd02, cidOf("n").Hash()), nil, errs.Malformed, "codec is 0xcd02"},
	} {
		_, err := Decode(x.cid, x.data)
		if !errors.Is(err, x.kind) || !strings.Contains(err.Error(), wire.CidString(x.cid)) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%s: got %v, want %v that names the block and says %q", x.name, err, x.kind, x.text)
		}
	}
}

// Whatever a block holds, it is decoded or refused; what is found is what boxo finds.
func FuzzDecode(f *testing.F) {
	file := pbNode(f, unixfs.FilePBData(nil, 100), &ipld.Link{Cid: cidOf("x0"), Size: 1000}, &ipld.Link{Cid: cidOf("n1"), Size: 1 << 40})
	f.Add(false, file.RawData())
	dir := pbNode(f, unixfs.FolderPBData(), &ipld.Link{Name: "a", Cid: cidOf("na")})
	f.Add(false, dir.RawData())
	_, data := cborNode(f, func(m datamodel.MapAssembler) { qp.MapEntry(m, "a", qp.Link(cidlink.Link{Cid: cidOf("x0")})) })
	f.Add(true, data)
	f.Fuzz(func(t *testing.T, cbor bool, data []byte) {
		codec := uint64(cid.DagProtobuf)
		if cbor {
			codec = cid.DagCBOR
		}
		c := cid.NewCidV1(codec, cidOf("n").Hash())
		n, err := Decode(c, data)
		seen := make(map[cid.Cid]bool)
		for _, l := range n.Links {
			if !l.Cid.Defined() || seen[l.Cid] || l.Size < 0 || l.Size > maxNode {
				t.Errorf("link %v: undefined, repeated or of an impossible size", l)
			}
			seen[l.Cid] = true
		}
		if cbor {
			return
		}
		want, wantErr := merkledag.DecodeProtobuf(data)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("got %v, want %v as boxo has it", err, wantErr)
		}
		if err != nil {
			return
		}
		for _, l := range want.Links() {
			if !seen[l.Cid] && l.Cid.Prefix().MhType != mh.IDENTITY {
				t.Errorf("link %s is missing", l.Cid)
			}
		}
	})
}
