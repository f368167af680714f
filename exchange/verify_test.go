package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/internal/engine"
	"github.com/codexchange/codexchange/exchange/merkle"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// alone is a Network without peers.
type alone struct{}

func (alone) Self() peer.ID                                      { return "alone" }
func (alone) Attach(Handler) (func(), error)                     { return func() {}, nil }
func (alone) NewStream(context.Context, peer.ID) (Stream, error) { return nil, errs.Unreachable }
func (alone) Connect(context.Context, peer.AddrInfo) error       { return errs.Unreachable }
func (alone) Latency(peer.ID) time.Duration                      { return 0 }
func (alone) Streams(peer.ID) int                                { return 1 }
func (alone) Tag(peer.ID, int)                                   {}
func (alone) Size(context.Context, cid.Cid) (int, error)         { return 0, errs.NotFound }
func (alone) Get(context.Context, cid.Cid) (blocks.Block, error) { return nil, errs.NotFound }

func newAlone(t testing.TB) *Exchange {
	t.Helper()
	e, err := New(Config{Network: alone{}, Blocks: alone{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func cidOf(t testing.TB, data []byte, code uint64, length int) cid.Cid {
	t.Helper()
	h, err := mh.Sum(data, code, length)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.Raw, h)
}

// A block is what its CID says, whatever hash the CID was made with, or it is
// refused.
func TestHashes(t *testing.T) {
	data := bytes.Repeat([]byte("block"), 100)
	short := []byte("short")
	v0 := cid.NewCidV0(cidOf(t, data, mh.SHA2_256, -1).Hash())
	for _, c := range []struct {
		name string
		cid  cid.Cid
		data []byte
		text string // of the refusal, if the hash function is the reason
	}{
		{"sha2-256", cidOf(t, data, mh.SHA2_256, -1), data, ""},
		{"sha2-256 of nothing", cidOf(t, nil, mh.SHA2_256, -1), nil, ""},
		{"sha2-256, version 0", v0, data, ""},
		{"sha2-256, Codex block", codex.BlockCid(data), data, ""},
		{"sha2-256 of 20 bytes", cidOf(t, data, mh.SHA2_256, 20), data, ""},
		{"sha2-512", cidOf(t, data, mh.SHA2_512, -1), data, ""},
		{"blake2b-256", cidOf(t, data, mh.BLAKE2B_MIN+31, -1), data, ""},
		{"blake3", cidOf(t, data, mh.BLAKE3, 32), data, ""},
		{"identity", cidOf(t, short, mh.IDENTITY, -1), short, ""}, // the CID holds the block: nothing can be false
		{"murmur3", cidOf(t, data, mh.MURMUR3X64_64, -1), data, "potentially insecure hash functions not allowed"},
		{"md5", cidOf(t, data, mh.MD5, -1), data, "potentially insecure hash functions not allowed"},
		{"sha2-256 of 16 bytes", cidOf(t, data, mh.SHA2_256, 16), data, "digest too small"},
		{"identity of 200 bytes", cidOf(t, data[:200], mh.IDENTITY, -1), data[:200], "digest too large"},
	} {
		err := hashes(c.cid, c.data)
		if c.text == "" {
			if err != nil {
				t.Errorf("%s: %v, want it accepted", c.name, err)
			}
			// The same as the slow way says.
			if sum, err := c.cid.Prefix().Sum(c.data); err != nil || !sum.Equals(c.cid) {
				t.Errorf("%s: the test's own CID is wrong: %v, %v", c.name, sum, err)
			}
			other := append(bytes.Clone(c.data), 1)
			err = hashes(c.cid, other)
		} else if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want a refusal that says %q", c.name, err, c.text)
		}
		var e *errs.Error
		if !errors.Is(err, errs.BadBlock) || !errors.As(err, &e) || e.Fault != errs.Peer {
			t.Errorf("%s with a byte more: %v, want kind %v and the peer's fault", c.name, err, errs.BadBlock)
		}
	}
}

// For random bytes the fast way says what the slow way says.
func TestHashesFastAsSlow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		data := make([]byte, r.IntN(300))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		c := cidOf(t, data, mh.SHA2_256, -1)
		if len(data) > 0 && r.IntN(2) == 0 {
			data[r.IntN(len(data))] ^= 1 << r.IntN(8)
		}
		slow, err := c.Prefix().Sum(data)
		if err != nil {
			t.Fatal(err)
		}
		if fast := hashes(c, data) == nil; fast != slow.Equals(c) {
			t.Fatalf("%d bytes: fast says %v, slow says %v", len(data), fast, !fast)
		}
	}
}

func TestCheckErrorsReadWell(t *testing.T) {
	want := cidOf(t, []byte("right"), mh.SHA2_256, -1)
	_, err := check(wire.Delivery{Address: wire.Block(want), Cid: want, Data: []byte("wrong")})
	const text = "verify block: block does not match its cid: 5 bytes hash to 8810ad581e59f2bc3928b261707a71308f7e139eb04820366dc4d5c18d980225, want "
	if err == nil || !strings.HasPrefix(err.Error(), text) {
		t.Errorf("got %q, want %q…", err, text)
	}
	_, err = check(wire.Delivery{Address: wire.Leaf(codex.TreeCid([32]byte{}), 0), Cid: want, Data: []byte("right")})
	if !errors.Is(err, errs.BadProof) {
		t.Errorf("a leaf without proof: %v, want kind %v", err, errs.BadProof)
	}
}

// The engine forgets a session that nobody holds, though its context never ends.
func TestASessionIsCollected(t *testing.T) {
	e := newAlone(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i, c := range []context.Context{context.Background(), ctx} {
		const many = 20
		for range many {
			s := e.NewSession(c)
			asked, stop := context.WithCancel(c)
			ch, err := s.GetBlocks(asked, []cid.Cid{codex.BlockCid([]byte{byte(i)})})
			if err != nil {
				t.Fatal(err)
			}
			stop()
			for range ch {
				t.Error("got a block from nobody")
			}
		}
		late := time.After(time.Minute)
		for sessions(e) > 0 {
			select {
			case <-late:
				t.Fatalf("context %d: %d of %d sessions are remembered after a minute of collecting garbage", i, sessions(e), many)
			default:
				runtime.GC()
				runtime.Gosched()
			}
		}
	}
}

// A session is not collected while it is held, nor forgotten before its context
// ends; then it is, also if a request began at the same moment.
func TestASessionIsForgottenWithItsContext(t *testing.T) {
	e := newAlone(t)
	key := codex.BlockCid([]byte{1})
	for range 200 {
		ctx, cancel := context.WithCancel(context.Background())
		s := e.NewSession(ctx)
		asked, stop := context.WithCancel(context.Background())
		ch, err := s.GetBlocks(asked, []cid.Cid{key})
		if err != nil {
			t.Fatal(err)
		}
		stop()
		for range ch {
			t.Error("got a block from nobody")
		}
		runtime.GC()
		if n := sessions(e); n != 1 {
			t.Fatalf("%d sessions are remembered, want the one that is held", n)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := s.GetBlock(context.Background(), key); !errors.Is(err, context.Canceled) {
				t.Errorf("GetBlock: %v, want %v", err, context.Canceled)
			}
		}()
		cancel()
		<-done
		late := time.After(time.Minute)
		for sessions(e) > 0 {
			select {
			case <-late:
				t.Fatal("the session is remembered a minute after its context has ended")
			default:
				runtime.Gosched()
			}
		}
		runtime.KeepAlive(s)
	}
}

// sessions is how many sessions the engine remembers.
func sessions(e *Exchange) (n int) {
	e.inspect(func(g *engine.Engine) { n = reflect.ValueOf(g).Elem().FieldByName("sessions").Len() })
	return n
}

// A getter takes what comes however much it is, in order, and never makes the
// loop wait.
func TestGiveNeverWaits(t *testing.T) {
	block := blocks.NewBlock([]byte("block"))
	g := &getter{in: make(chan arrival, 2)}
	for i := range 5 {
		g.give(arrival{block: block, address: wire.Address{Root: block.Cid(), Index: uint64(i)}})
	}
	g.all = true
	for i := range 5 {
		if len(g.late) > 0 && i >= 2 {
			g.catchUp()
		}
		a := <-g.in
		if a.address.Index != uint64(i) || (a.block == nil) != (i >= 2) {
			t.Fatalf("arrival %d is number %d, kept its block: %v, want kept only what had room", i, a.address.Index, a.block != nil)
		}
	}
	if _, more := <-g.in; more {
		t.Fatal("another came, want the channel closed")
	}
}

// The view knows what getters ask for as long as one of them does.
func TestView(t *testing.T) {
	v := newView()
	tree := codex.TreeCid([32]byte{1})
	c := codex.BlockCid([]byte{1})
	one := []wire.Want{wire.WantCid(c), wire.WantLeaves(tree, wire.Range{First: 5, Count: 10})}
	two := []wire.Want{wire.WantCid(c), wire.WantLeaves(tree, wire.Range{First: 12, Count: 10}), wire.WantCid(tree)}
	expect := func(why string, want string) {
		t.Helper()
		got := ""
		for _, a := range []wire.Address{wire.Block(c), wire.Leaf(c, 0), wire.Block(tree), wire.Leaf(tree, 4), wire.Leaf(tree, 5), wire.Leaf(tree, 13), wire.Leaf(tree, 21), wire.Leaf(tree, 22)} {
			if v.wanted(a) {
				got += "x"
			} else {
				got += "."
			}
		}
		if got != want {
			t.Errorf("%s: wanted are %s, want %s", why, got, want)
		}
	}
	expect("nothing yet", "........")
	v.add(one)
	expect("the first", "x...xx..")
	v.add(two)
	v.add(one)
	expect("both, the first twice", "x.x.xxx.")
	if k, ok := v.intern(c.Bytes()); !ok || k != c {
		t.Errorf("intern gives %v, %v, want the CID", k, ok)
	}
	v.remove(one)
	expect("the first once", "x.x.xxx.")
	v.remove(one)
	expect("only the second", "x.x..xx.")
	v.remove(two)
	expect("nothing more", "........")
	if _, ok := v.intern(c.Bytes()); ok {
		t.Error("intern knows a CID that nobody wants")
	}
	for i := range v.shards {
		if n := len(v.shards[i].roots); n != 0 {
			t.Errorf("shard %d has %d roots left, want none", i, n)
		}
	}
}

// What it costs to take blocks of one message from bytes to the event for the
// loop: decoding, looking up what is wanted, hashing, checking proofs.
func BenchmarkVerify(b *testing.B) {
	e := newAlone(b)
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		for _, kind := range []string{"cid", "leaf"} {
			b.Run(fmt.Sprintf("%s/%dKiB", kind, size>>10), func(b *testing.B) {
				receive(b, e, kind == "leaf", size)
			})
		}
	}
}

// At most two allocations for each block asked for by CID (its bytes, and the
// block that holds them), and one more for a leaf, whose CID is not known before.
func TestVerifyAllocates(t *testing.T) {
	e := newAlone(t)
	for kind, limit := range map[string]float64{"cid": 2, "leaf": 3} {
		r := testing.Benchmark(func(b *testing.B) { receive(b, e, kind == "leaf", 1<<10) })
		if got := r.Extra["allocs/block"]; got == 0 || got > limit+0.5 { // the half is the message's share
			t.Errorf("%s: %.2f allocations for each block, want at most %v and some for the message", kind, got, limit)
		}
	}
}

const perMessage = 20 // blocks, as the reference sends

func receive(b *testing.B, e *Exchange, leaf bool, size int) {
	var m wire.Message
	var wants []wire.Want
	var tree merkle.Builder
	for i := range perMessage {
		data := make([]byte, size)
		data[0] = byte(i)
		c := codex.BlockCid(data)
		digest, err := codex.Digest(c)
		if err != nil {
			b.Fatal(err)
		}
		tree.Add(digest)
		wants = append(wants, wire.WantCid(c))
		m.Deliveries = append(m.Deliveries, wire.Delivery{Address: wire.Block(c), Cid: c, Data: data})
	}
	if leaf {
		t, err := tree.Tree()
		if err != nil {
			b.Fatal(err)
		}
		wants = []wire.Want{wire.WantLeaves(t.Cid(), wire.Range{Count: perMessage})}
		for i := range m.Deliveries {
			p, err := t.Proof(uint64(i))
			if err != nil {
				b.Fatal(err)
			}
			m.Deliveries[i].Address, m.Deliveries[i].Proof = wire.Leaf(t.Cid(), uint64(i)), p.Marshal()
		}
	}
	e.view.add(wants)
	defer e.view.remove(wants)
	var stream bytes.Buffer
	if err := blockexc.NewWriter(&stream, blockexc.Limits{}).Write(&m); err != nil {
		b.Fatal(err)
	}
	r := blockexc.NewReader(&loopReader{b: stream.Bytes()}, blockexc.Limits{})
	r.Intern = e.view.intern
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	n := 0
	for n < b.N {
		if err := r.Next(&m); err != nil {
			b.Fatal(err)
		}
		in, _ := e.verify("peer", &m)
		if len(in.blocks) != perMessage {
			b.Fatalf("%d blocks are good, want %d", len(in.blocks), perMessage)
		}
		n += perMessage
	}
	b.StopTimer()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(n), "allocs/block")
}

// A loopReader reads the same bytes again and again.
type loopReader struct {
	b   []byte
	pos int
}

func (r *loopReader) Read(p []byte) (int, error) {
	if r.pos == len(r.b) {
		r.pos = 0
	}
	n := copy(p, r.b[r.pos:])
	r.pos += n
	return n, nil
}

// A root does not say how many leaves its tree has. A proof may state another
// number of the same depth and verify; where the number is known, it is put right,
// and where that is impossible, it is the caller who is wrong.
func TestTheNumberOfLeavesIsPutRight(t *testing.T) {
	var b merkle.Builder
	var list []blocks.Block
	for i := range 5 {
		blk := codex.NewBlock([]byte{byte(i)})
		digest, err := codex.Digest(blk.Cid())
		if err != nil {
			t.Fatal(err)
		}
		b.Add(digest)
		list = append(list, blk)
	}
	tree, err := b.Tree()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name                       string
		index, stated, known, want uint64
	}{
		{"the number is not known", 0, 6, 0, 6},
		{"it is, and is stated", 0, 5, 5, 5},
		{"another is stated", 0, 6, 5, 5},
		{"another is stated, of the last leaf", 4, 5, 5, 5},
		{"the caller's cannot be true", 4, 5, 64, 5},
	} {
		proof, err := tree.Proof(c.index)
		if err != nil {
			t.Fatal(err)
		}
		proof.Leaves = c.stated
		blk := list[c.index]
		d := wire.Delivery{Address: wire.Leaf(tree.Cid(), c.index), Cid: blk.Cid(), Data: blk.RawData(), Proof: proof.Marshal()}
		a, err := check(d)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		a.address = d.Address
		got, err := merkle.DecodeProof(proofFor(Tree{Root: tree.Cid(), Leaves: c.known}, a))
		if err != nil || got.Leaves != c.want {
			t.Errorf("%s: proof states %d, %v, want %d", c.name, got.Leaves, err, c.want)
		}
		if c.want == tree.Len() {
			if err := merkle.VerifyLeaf(got.Marshal(), tree.Cid(), c.index, blk.Cid(), tree.Len()); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}
