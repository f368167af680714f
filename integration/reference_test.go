package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/manifest"
	"github.com/codexchange/codexchange/exchange/merkle"
	"github.com/codexchange/codexchange/integration/refpeer"
)

// behaved asserts that the reference peer saw nothing that the reference node
// would have choked on.
func behaved(t *testing.T, ref *refpeer.Peer) {
	t.Helper()
	for _, v := range ref.Violations() {
		t.Errorf("the reference peer says: %v", v)
	}
}

// A Codex node has a dataset: we fetch its manifest by CID and its blocks by
// tree and index, and every proof is checked.
func TestFetchDatasetFromReference(t *testing.T) {
	ref, n := refpeer.New(t), newNode(t)
	data := random(1, 3000*1024-100)
	d := ref.AddDataset(data, 1024)
	n.connect(ref.AddrInfo())

	m, err := n.service.GetBlock(soon(t), d.Manifest)
	must(t, "fetch manifest", err)
	man, err := manifest.Decode(m)
	must(t, "read manifest", err)
	if man.TreeCid != d.Tree || man.BlockCount() != 3000 {
		t.Fatalf("manifest speaks of tree %s with %d blocks, want %s with 3000", man.TreeCid, man.BlockCount(), d.Tree)
	}
	got, err := n.fetchDataset(soon(t), man.TreeCid, man.BlockCount())
	must(t, "fetch dataset", err)
	if !bytes.Equal(got[:man.DatasetSize], data) {
		t.Error("what came is not what was put in")
	}
	behaved(t, ref)
	if s := n.ex.Stat(); s.DuplicateBlocks+s.UnrequestedBlocks+s.BadBlocks > 0 {
		t.Errorf("duplicates %d, unrequested %d, bad %d, want none", s.DuplicateBlocks, s.UnrequestedBlocks, s.BadBlocks)
	}
	if c := ref.Counters(); c.MaxEntries > 1024 {
		t.Errorf("a want list had %d entries, want at most 1024", c.MaxEntries)
	}
}

// A Codex node downloads a dataset from us: it verifies every proof, and meets
// nothing that it would refuse.
func TestReferenceFetchesDataset(t *testing.T) {
	ref, n := refpeer.New(t), newNode(t)
	data := random(2, 2100*1024-7)
	d := n.addDataset(data, 1024)
	manifestCid, err := d.Manifest.Cid()
	must(t, "name manifest", err)
	must(t, "connect", ref.Connect(soon(t), n.info()))

	m, err := ref.Fetch(soon(t), refpeer.Block(manifestCid))
	must(t, "reference fetches manifest", err)
	if want, _ := d.Manifest.Marshal(); !bytes.Equal(m[0], want) {
		t.Errorf("manifest is %x, want %x", m[0], want)
	}
	parts, err := ref.FetchDataset(soon(t), d.Manifest.TreeCid, int(d.Tree.Len()))
	must(t, "reference fetches dataset", err)
	if got := bytes.Join(parts, nil); !bytes.Equal(got[:len(data)], data) {
		t.Error("what came is not what was put in")
	}
	behaved(t, ref)
	c := ref.Counters()
	if c.MaxBlocks > 20 {
		t.Errorf("a message had %d blocks, want at most 20", c.MaxBlocks)
	}
	if c.Blocks != int(d.Tree.Len())+1 {
		t.Errorf("%d blocks came, want each of %d once", c.Blocks, d.Tree.Len()+1)
	}
	if c.StreamsAccepted != 1 {
		t.Errorf("we opened %d streams, want 1", c.StreamsAccepted)
	}
}

// Blocks of IPFS and of Codex by plain CID, in both directions.
func TestPlainBlocksWithReference(t *testing.T) {
	codecs := map[string]func([]byte) cid.Cid{
		"raw":         func(b []byte) cid.Cid { return sum(1, cid.Raw, b) },
		"dag-pb v1":   func(b []byte) cid.Cid { return sum(1, cid.DagProtobuf, b) },
		"dag-pb v0":   func(b []byte) cid.Cid { return sum(0, cid.DagProtobuf, b) },
		"codex block": func(b []byte) cid.Cid { return sum(1, 0xCD02, b) },
	}
	for name, cidOf := range codecs {
		t.Run(name, func(t *testing.T) {
			ref, n := refpeer.New(t), newNode(t)
			theirs, ours := random(3, 5000), random(4, 70000)
			ref.AddBlock(cidOf(theirs), theirs)
			b, err := blocks.NewBlockWithCid(ours, cidOf(ours))
			must(t, "make block", err)
			n.add(b)
			n.connect(ref.AddrInfo())

			got, err := n.service.GetBlock(soon(t), cidOf(theirs))
			must(t, "fetch from reference", err)
			if !bytes.Equal(got.RawData(), theirs) {
				t.Error("what came from the reference is something else")
			}
			list, err := ref.Fetch(soon(t), refpeer.Block(cidOf(ours)))
			must(t, "reference fetches", err)
			if !bytes.Equal(list[0], ours) {
				t.Error("what came to the reference is something else")
			}
			behaved(t, ref)
		})
	}
}

func sum(version, codec uint64, data []byte) cid.Cid {
	c, err := cid.Prefix{Version: version, Codec: codec, MhType: mh.SHA2_256, MhLength: 32}.Sum(data)
	if err != nil {
		panic(err)
	}
	return c
}

// Wants stand on both sides until the block is there.
func TestLateBlocksWithReference(t *testing.T) {
	ref, n := refpeer.New(t), newNode(t)
	n.connect(ref.AddrInfo())
	theirs, ours := random(5, 3000), random(6, 3000)

	fetched := make(chan error, 2)
	go func() {
		_, err := n.service.GetBlock(soon(t), refpeer.BlockCid(theirs))
		fetched <- err
	}()
	go func() {
		_, err := ref.Fetch(soon(t), refpeer.Block(refpeer.BlockCid(ours)))
		fetched <- err
	}()
	_, err := waitFor(ref, func(c refpeer.Counters) bool { return c.WantHaves > 0 && c.FramesSent > 0 })
	must(t, "both ask", err)

	ref.AddBlock(refpeer.BlockCid(theirs), theirs)
	b, err := blocks.NewBlockWithCid(ours, refpeer.BlockCid(ours))
	must(t, "make block", err)
	n.add(b)
	must(t, "late block fetched", <-fetched)
	must(t, "late block fetched", <-fetched)
	behaved(t, ref)
}

// waitFor polls until the counters of a reference peer are as wished.
func waitFor(ref *refpeer.Peer, ok func(refpeer.Counters) bool) (refpeer.Counters, error) {
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	every := time.NewTicker(time.Millisecond)
	defer every.Stop()
	for {
		c := ref.Counters()
		if ok(c) {
			return c, nil
		}
		select {
		case <-every.C:
		case <-timeout.C:
			return c, context.DeadlineExceeded
		}
	}
}

// A liar and an honest Codex node have the same dataset. Whatever the lie, every
// block comes, from whoever tells the truth, and nothing false is stored.
func TestMisbehavingReference(t *testing.T) {
	for _, lie := range []refpeer.Misbehaviour{
		refpeer.ForgedProof, refpeer.WrongIndex, refpeer.WrongLength, refpeer.NotHashing,
		refpeer.ProofMissing, refpeer.UnrequestedPush, refpeer.StallAfterHave,
	} {
		t.Run(string(lie), func(t *testing.T) {
			liar, honest, n := refpeer.New(t, refpeer.Misbehave(lie)), refpeer.New(t), newNode(t)
			data := random(7, 200*512)
			d := liar.AddDataset(data, 512)
			honest.AddDataset(data, 512)

			// The liar is there first, so that it is asked first.
			n.connect(liar.AddrInfo())
			fetched := make(chan error, 1)
			var got []byte
			go func() {
				var err error
				got, err = n.fetchDataset(soon(t), d.Tree, uint64(len(d.Blocks)))
				fetched <- err
			}()
			_, err := waitFor(liar, func(c refpeer.Counters) bool { return c.WantBlocks > 0 })
			must(t, "the liar is asked", err)
			n.connect(honest.AddrInfo())
			must(t, "fetch dataset", <-fetched)
			if !bytes.Equal(got[:len(data)], data) {
				t.Error("what came is not what was put in")
			}
			must(t, "store holds nothing false", n.verifyStore(d))
			behaved(t, liar)
			behaved(t, honest)

			s := n.ex.Stat()
			ledger, ok := n.ex.Ledger(liar.ID())
			if !ok {
				t.Fatal("the liar was disconnected; it should only not be asked any more")
			}
			switch lie {
			case refpeer.UnrequestedPush:
				if s.UnrequestedBlocks == 0 {
					t.Error("no block counts as unrequested, want those that were pushed")
				}
			case refpeer.StallAfterHave:
				if ledger.TimedOut == 0 {
					t.Error("nothing timed out at the one that stalls")
				}
			default:
				if s.BadBlocks == 0 || ledger.Bad == 0 || ledger.BlocksReceived > 0 {
					t.Errorf("bad blocks: %d, of the liar %d, and %d good ones; want some bad and no good ones",
						s.BadBlocks, ledger.Bad, ledger.BlocksReceived)
				}
			}
		})
	}
}

// The same with blocks by CID, where the hash alone has to tell.
func TestMisbehavingReferencePlain(t *testing.T) {
	for _, lie := range []refpeer.Misbehaviour{refpeer.NotHashing, refpeer.WrongLength, refpeer.UnrequestedPush} {
		t.Run(string(lie), func(t *testing.T) {
			liar, honest, n := refpeer.New(t, refpeer.Misbehave(lie)), refpeer.New(t), newNode(t)
			data := random(8, 3000)
			c := refpeer.BlockCid(data)
			liar.AddBlock(c, data)
			honest.AddBlock(c, data)
			n.connect(liar.AddrInfo())
			fetched := make(chan error, 1)
			go func() {
				b, err := n.service.GetBlock(soon(t), c)
				if err == nil && !bytes.Equal(b.RawData(), data) {
					err = errors.New("what came is something else")
				}
				fetched <- err
			}()
			_, err := waitFor(liar, func(c refpeer.Counters) bool { return c.WantBlocks > 0 })
			must(t, "the liar is asked", err)
			n.connect(honest.AddrInfo())
			must(t, "fetch", <-fetched)
			behaved(t, liar)
		})
	}
}

// ask has a script ask for a block until it comes: what it writes before it sees that
// its stream has been closed fails, or is lost.
func ask(ref *refpeer.Peer, n *node, a refpeer.Address) error {
	whole := soon(n.t)
	for {
		err := ref.SendMessage(whole, n.host.ID(), refpeer.Want(refpeer.WantBlock, false, a))
		if err == nil {
			ctx, cancel := context.WithTimeout(whole, time.Second)
			_, err = ref.Expect(ctx, func(m refpeer.Message) bool { return m.Delivers(a) })
			cancel()
		}
		if err == nil || whole.Err() != nil {
			return err
		}
	}
}

// malformed is how many streams were closed for what came on them.
func (n *node) malformed() int {
	families, err := n.metrics.Gather()
	must(n.t, "gather metrics", err)
	for _, f := range families {
		if f.GetName() == "codex_block_exchange_malformed_messages_total" {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	n.t.Fatal("the metric of malformed messages is missing")
	return 0
}

// verifyStore checks every block and every leaf record of a dataset.
func (n *node) verifyStore(d refpeer.Dataset) error {
	ctx := soon(n.t)
	for i, want := range d.Blocks {
		got, proof, err := n.leaves.Leaf(ctx, d.Tree, uint64(i))
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("leaf %d is stored as %s, want %s", i, got, want)
		}
		if err := merkle.VerifyLeaf(proof, d.Tree, uint64(i), want, uint64(len(d.Blocks))); err != nil {
			return err
		}
	}
	keys, err := n.store.AllKeysChan(ctx)
	if err != nil {
		return err
	}
	for k := range keys {
		b, err := n.store.Get(ctx, k)
		if err != nil {
			return err
		}
		if sum(1, cid.Raw, b.RawData()).Hash().B58String() != k.Hash().B58String() {
			return fmt.Errorf("stored block %s hashes to something else", k)
		}
	}
	return nil
}

// A scripted peer sends every recorded message of the reference, and then bytes
// that no node should send. The connection stays, and the exchange goes on.
func TestReplayedBytes(t *testing.T) {
	ref, n := refpeer.New(t, refpeer.Scripted()), newNode(t)
	n.connect(ref.AddrInfo())
	asked := 0
	answers := func(after string) {
		t.Helper()
		asked++
		data := random(9, 100+asked)
		b, err := blocks.NewBlockWithCid(data, refpeer.BlockCid(data))
		must(t, "make block", err)
		n.add(b)
		must(t, "ask after "+after, ask(ref, n, refpeer.Block(b.Cid())))
	}
	for _, name := range []string{
		"empty", "want-have-leaves", "want-have-leaves-full", "want-block-plain", "cancel", "presence-have",
		"presence-have-price", "presence-donthave", "delivery-plain", "delivery-leaf", "delivery-leaf-noproof",
		"pending-bytes", "account", "payment",
	} {
		must(t, "replay "+name, ref.Replay(soon(t), n.host.ID(), name))
		answers(name)
	}
	for i, hostile := range []struct {
		name  string
		frame []byte
	}{
		{"group wire type", []byte{2, 0x0b, 0x0c}},
		{"length beyond the limit", []byte{0xff, 0xff, 0xff, 0xff, 0x7f}},
		{"overlong length", []byte{0x80, 0x00}},
		{"want list longer than its message", []byte{3, 0x0a, 0x7f, 0x0a}},
	} {
		must(t, "send "+hostile.name, ref.Send(soon(t), n.host.ID(), hostile.frame))
		_, err := waitFor(ref, func(refpeer.Counters) bool { return n.malformed() == i+1 })
		must(t, "refuse "+hostile.name, err)
		answers(hostile.name)
	}
}
