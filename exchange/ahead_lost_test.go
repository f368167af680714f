package exchange

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	ipld "github.com/ipfs/go-ipld-format"
)

// A session that nobody holds any more stops reading ahead, though its context never
// ends and what it asked for never comes.
func TestALostSessionReadsNothingAhead(t *testing.T) {
	e := newAlone(t)
	root := merkledag.NodeWithData(nil)
	var leaves []ipld.Node
	for i := range 10 {
		leaves = append(leaves, merkledag.NewRawNode([]byte{byte(i)}))
		if err := root.AddRawLink("", &ipld.Link{Cid: leaves[i].Cid(), Size: 1}); err != nil {
			t.Fatal(err)
		}
	}
	func() {
		s := e.NewSession(context.Background()).(*Session)
		s.ahead.learn(root)
		ctx, cancel := context.WithCancel(context.Background())
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			if _, err := s.GetBlock(ctx, leaves[0].Cid()); err == nil {
				t.Error("got a block from nobody")
			}
		}()
		until(t, "the rest is wanted", func() bool { return e.Stat().Wants == 10 })
		cancel()
		<-asked
	}()
	until(t, "nothing is wanted", func() bool {
		runtime.GC()
		s := e.Stat()
		return s.Wants == 0 && s.Getters == 0 && s.ReadAhead == 0 && sessions(e) == 0
	})
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("not within 20 seconds: %s", what)
		}
	}
}
