package ahead

import (
	"bytes"
	"testing"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

// A block of nothing but the beginnings of lists is refused, and ends nothing but
// itself: a decoder that goes down into each would need a gigabyte of stack.
func TestDeepNodes(t *testing.T) {
	for name, open := range map[string][]byte{"list": {0x81}, "map": {0xa1, 0x60}} {
		data := append(bytes.Repeat(open, maxNode/len(open)-1), 0)
		c, err := cid.V1Builder{Codec: cid.DagCBOR, MhType: mh.SHA2_256}.Sum(data)
		if err != nil {
			t.Fatal(err)
		}
		n, err := Decode(c, data)
		t.Log(name, len(n.Links), err)
	}
}
