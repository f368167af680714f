package ahead

import (
	"bytes"
	"errors"
	"testing"

	unixfs "github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A block of nothing but the beginnings of lists is refused, and ends nothing but
// itself: a decoder that went down into each would need a gigabyte of stack.
func TestDeepNodes(t *testing.T) {
	for name, open := range map[string][]byte{"list": {0x81}, "map": {0xa1, 0x60}} {
		data := append(bytes.Repeat(open, maxNode/len(open)-1), 0)
		c, err := cid.V1Builder{Codec: cid.DagCBOR, MhType: mh.SHA2_256}.Sum(data)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := Decode(c, data); !errors.Is(err, errs.Malformed) {
			t.Errorf("%s in %s: got %d links, error %v, want that it is malformed", name, name, len(n.Links), err)
		}
	}
}

// What is remembered of a node is as small as the links that can be followed, however
// many others it has, and however long those are.
func TestLinksThatLeadNowhere(t *testing.T) {
	inside, err := cid.V1Builder{Codec: cid.Raw, MhType: mh.IDENTITY}.Sum(nil)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := mh.Encode(make([]byte, 1<<20), 0x1012) // sha2-256-trunc254-padded
	if err != nil {
		t.Fatal(err)
	}
	long := cid.NewCidV1(cid.Raw, hash)
	n := pbNode(t, unixfs.FilePBData(nil, 100), &ipld.Link{Cid: cidOf("x0")}, &ipld.Link{Cid: long})
	for range 50_000 {
		if err := n.AddRawLink("", &ipld.Link{Cid: inside}); err != nil {
			t.Fatal(err)
		}
	}
	got := decode(t, n.Cid(), n.RawData())
	if len(got.Links) != 1 || got.Links[0].Cid != cidOf("x0") {
		t.Errorf("got %d links, want the one that leads to a block", len(got.Links))
	}
	if c := cap(got.Links); c > 8 {
		t.Errorf("there is room for %d links, want it to be given back", c)
	}
}
