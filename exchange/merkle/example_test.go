package merkle_test

import (
	"crypto/sha256"
	"fmt"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/merkle"
)

// A provider builds the tree of a dataset and proves one of its blocks to
// somebody who knows the tree's CID and nothing else.
func Example() {
	var leaves merkle.Builder
	for _, block := range []string{"first block", "second block", "third block"} {
		leaves.Add(sha256.Sum256([]byte(block)))
	}
	tree, err := leaves.Tree()
	if err != nil {
		fmt.Println(err)
		return
	}
	proof, err := tree.Proof(1)
	if err != nil {
		fmt.Println(err)
		return
	}
	encoded := proof.Marshal()

	received := codex.NewBlock([]byte("second block"))
	fmt.Println("tree", codex.String(tree.Cid()))
	fmt.Println(len(encoded), "bytes of proof:", merkle.VerifyLeaf(encoded, tree.Cid(), 1, received.Cid(), 3))

	forged := codex.NewBlock([]byte("another block"))
	fmt.Println("forged:", merkle.VerifyLeaf(encoded, tree.Cid(), 1, forged.Cid(), 3) != nil)

	// Output:
	// tree zDzSvJTfCjq4BkLGVS5112rfMQXgUxBJxCGhsyG5jAixLiB8iQvh
	// 78 bytes of proof: <nil>
	// forged: true
}
