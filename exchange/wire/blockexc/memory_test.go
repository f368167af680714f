package blockexc_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/exchange/wire/blockexc"
)

// repeat is a stream that never ends: the same bytes again and again.
type repeat struct {
	b   []byte
	off int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.off:])
	r.off = (r.off + n) % len(r.b)
	return n, nil
}

// depth20 is the length of the proof of a leaf among a million, bytes.
const depth20 = 2 + 4 + 4 + 20*36

// deliveries is a message of n blocks of size bytes with CIDs of their own: by
// CID, or for a proof length above 0, as leaves of one tree.
func deliveries(n, size, proof int) *wire.Message {
	m := &wire.Message{}
	random := rand.New(rand.NewPCG(1, uint64(size)))
	for i := range n {
		digest := make([]byte, 32)
		for j := range digest {
			digest[j] = byte(random.Uint32())
		}
		mh, err := multihash.Encode(digest, multihash.SHA2_256)
		if err != nil {
			panic(err)
		}
		c := cid.NewCidV1(0xCD02, mh)
		d := wire.Delivery{Address: wire.Block(c), Cid: c, Data: bytes.Repeat([]byte{byte(i)}, size)}
		if proof > 0 {
			d.Address = wire.Leaf(treeT, uint64(1<<19+i))
			d.Proof = bytes.Repeat([]byte{byte(i)}, proof)
		}
		m.Deliveries = append(m.Deliveries, d)
	}
	return m
}

func encodeFrame(tb testing.TB, m *wire.Message) []byte {
	tb.Helper()
	var out bytes.Buffer
	if err := blockexc.NewWriter(&out, blockexc.Limits{MaxFrame: 1 << 30}).Write(m); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

type blockCase struct {
	name  string
	size  int
	proof int
}

func blockCases() (cases []blockCase) {
	for _, kind := range []struct {
		name  string
		proof int
	}{{"plain", 0}, {"leaf", depth20}} {
		for _, size := range []int{1 << 10, 64 << 10, 1 << 20, 2 << 20} {
			cases = append(cases, blockCase{fmt.Sprintf("%s/%dKiB", kind.name, size>>10), size, kind.proof})
		}
	}
	return cases
}

// allocated is how many bytes f takes from the heap, whether it keeps them or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestAnnouncedLengths: a length costs nothing until the bytes come, in every
// field that has one.
func TestAnnouncedLengths(t *testing.T) {
	const huge = 100 << 20
	for _, tc := range []struct {
		name string
		path []int // field numbers, outermost first
	}{
		{"message", nil},
		{"want list", []int{1}},
		{"entry", []int{1, 1}},
		{"address of an entry", []int{1, 1, 1}},
		{"tree cid of an entry", []int{1, 1, 1, 2}},
		{"cid of an entry", []int{1, 1, 1, 4}},
		{"delivery", []int{3}},
		{"cid of a delivery", []int{3, 1}},
		{"data of a delivery", []int{3, 2}},
		{"address of a delivery", []int{3, 3}},
		{"tree cid of a delivery's address", []int{3, 3, 2}},
		{"cid of a delivery's address", []int{3, 3, 4}},
		{"proof of a delivery", []int{3, 4}},
		{"presence", []int{4}},
		{"address of a presence", []int{4, 1}},
		{"cid of a presence", []int{4, 1, 4}},
		{"price", []int{4, 3}},
		{"account", []int{6}},
		{"address of an account", []int{6, 1}},
		{"payment", []int{7}},
		{"update of a payment", []int{7, 1}},
		{"unknown field", []int{9}},
		{"unknown field of an entry", []int{1, 1, 9}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := binary.AppendUvarint(nil, huge)
			for depth, num := range tc.path {
				in = append(in, announce(num, huge-10*(depth+1))...)
			}
			for _, arrived := range []int{0, 1, 1000} {
				// Proofs and payments as long as that are dropped anyway.
				limits := blockexc.Limits{MaxFrame: 1 << 30, MaxProof: 1 << 30, MaxPayment: 1 << 30}
				r := blockexc.NewReader(bytes.NewReader(append(in, make([]byte, arrived)...)), limits)
				var m wire.Message
				var err error
				got := allocated(func() { err = r.Next(&m) })
				if err != io.ErrUnexpectedEOF {
					t.Errorf("error %v, want %v", err, io.ErrUnexpectedEOF)
				}
				if got > 8<<10 {
					t.Errorf("%d bytes announced, %d arrived: took %d bytes of memory, want next to none", huge, arrived, got)
				}
			}
		})
	}
}

// TestMemoryFollowsArrival: a large block takes memory as it comes, and is the
// same block in the end.
func TestMemoryFollowsArrival(t *testing.T) {
	const size = 30 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	whole := encodeFrame(t, &wire.Message{Deliveries: []wire.Delivery{{
		Address: wire.Leaf(treeT, 1), Cid: cidA, Data: data, Proof: make([]byte, depth20),
	}}})
	for _, tc := range []struct{ arrived, most int }{
		{12 << 10, 0}, // not yet the first 16 KiB
		{17 << 10, 2 << 20},
		{3 << 20, 10 << 20}, // 2 MiB, then 8
		{len(whole), 40<<20 + 64<<10},
	} {
		r := blockexc.NewReader(bytes.NewReader(whole[:tc.arrived]), blockexc.Limits{})
		var m wire.Message
		var err error
		got := allocated(func() { err = r.Next(&m) })
		if got > uint64(tc.most)+8<<10 {
			t.Errorf("%d of %d bytes arrived: took %d bytes of memory, want at most %d", tc.arrived, len(whole), got, tc.most)
		}
		if tc.arrived < len(whole) {
			if err != io.ErrUnexpectedEOF {
				t.Errorf("error %v, want %v", err, io.ErrUnexpectedEOF)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Deliveries[0].Data, data) || len(m.Deliveries[0].Proof) != depth20 {
			t.Error("the block or its proof is not what was sent")
		}
	}
}

// TestReaderAllocations: two allocations a block, its memory and its CID.
func TestReaderAllocations(t *testing.T) {
	for _, tc := range blockCases() {
		t.Run(tc.name, func(t *testing.T) {
			const n = 4
			r := blockexc.NewReader(&repeat{b: encodeFrame(t, deliveries(n, tc.size, tc.proof))}, blockexc.Limits{})
			var m wire.Message
			next := func() {
				if err := r.Next(&m); err != nil {
					t.Fatal(err)
				}
			}
			// Proofs of blocks above 1 KiB lie with their data, too.
			if got := testing.AllocsPerRun(10, next); got > 2*n {
				t.Errorf("%v allocations for %d blocks, want at most 2 each", got, n)
			}
			r.Intern = func([]byte) (cid.Cid, bool) { return cidA, true }
			if got := testing.AllocsPerRun(10, next); got > n {
				t.Errorf("%v allocations for %d blocks with known cids, want at most 1 each", got, n)
			}
		})
	}
}

// pinned is how many bytes of memory each of n received blocks holds when its
// data, CID and proof are kept.
func pinned(tb testing.TB, n, size, proof int) float64 {
	tb.Helper()
	const perMessage = 16
	var stream []byte
	m := deliveries(n, size, proof)
	for part := range slices.Chunk(m.Deliveries, perMessage) {
		stream = append(stream, encodeFrame(tb, &wire.Message{Deliveries: part})...)
	}
	m = nil
	kept := make([]wire.Delivery, 0, n)
	r := blockexc.NewReader(bytes.NewReader(stream), blockexc.Limits{})
	var got wire.Message
	next := func() {
		if err := r.Next(&got); err != nil {
			tb.Fatal(err)
		}
		kept = append(kept, got.Deliveries...)
	}
	next() // the message's lists are there from now on
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	for len(kept) < n {
		next()
	}
	got.Reset()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	runtime.KeepAlive(stream)
	runtime.KeepAlive(r)
	return float64(after.HeapAlloc-before.HeapAlloc) / float64(n-perMessage)
}

// TestPinnedMemory: a small block that is kept does not keep the message.
func TestPinnedMemory(t *testing.T) {
	for _, tc := range []struct {
		name  string
		proof int
	}{{"plain", 0}, {"leaf", depth20}} {
		if got := pinned(t, 4096, 1<<10, tc.proof); got < 1<<10 || got > 2<<10 {
			t.Errorf("%s: a block of 1 KiB keeps %.0f bytes, want at most 2048", tc.name, got)
		}
	}
}

// TestNoRoomForForgery: what is said to lie around small data does not make the
// memory that it keeps larger without bound.
func TestNoRoomForForgery(t *testing.T) {
	small, large := field(2, make([]byte, 1<<10)), field(2, make([]byte, 1<<20))
	proof := field(4, make([]byte, depth20))
	for _, tc := range []struct {
		name   string
		fields []byte // of a delivery, beside cid and address
	}{
		{"2000 bytes of an unknown field behind", slices.Concat(small, field(15, make([]byte, 2000)))},
		{"a proof of 2000 bytes behind", slices.Concat(small, field(4, make([]byte, 2000)))},
		{"1 MiB of an unknown field behind", slices.Concat(small, field(15, make([]byte, 1<<20)))},
		{"larger data and a proof before", slices.Concat(large, proof, small)},
		{"larger data and two proofs before", slices.Concat(large, proof, proof, small)},
	} {
		in := frame(field(3, field(1, cidA.Bytes()), tc.fields, leafAddress(3, treeT, 1)))
		r := blockexc.NewReader(&repeat{b: in}, blockexc.Limits{})
		var m wire.Message
		var kept [][]byte
		var before, after runtime.MemStats
		const n = 64
		runtime.GC()
		runtime.ReadMemStats(&before)
		proofs := 0
		for range n {
			if err := r.Next(&m); err != nil {
				t.Fatal(err)
			}
			kept = append(kept, m.Deliveries[0].Data, m.Deliveries[0].Proof)
			proofs += len(m.Deliveries[0].Proof)
		}
		m.Reset()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if got, most := int(after.HeapAlloc-before.HeapAlloc)/n, 2300+proofs/n; got > most {
			t.Errorf("%s: a block of 1 KiB keeps %d bytes, want at most %d", tc.name, got, most)
		}
		runtime.KeepAlive(kept)
		runtime.KeepAlive(r)
	}
}

// TestWriterAllocations: messages cost no memory on their way out, nor does a
// block in them.
func TestWriterAllocations(t *testing.T) {
	for _, tc := range blockCases() {
		t.Run(tc.name, func(t *testing.T) {
			m := deliveries(4, tc.size, tc.proof)
			for i := range 1000 {
				m.WantList.Entries = append(m.WantList.Entries, wire.Entry{Address: wire.Leaf(treeT, uint64(i)), Type: wire.WantHave})
				m.Presences = append(m.Presences, wire.Presence{Address: wire.Leaf(treeT, uint64(i))})
			}
			w := blockexc.NewWriter(io.Discard, blockexc.Limits{})
			if got := testing.AllocsPerRun(10, func() {
				if err := w.Write(m); err != nil {
					t.Fatal(err)
				}
			}); got > 0 {
				t.Errorf("%v allocations a message, want none", got)
			}
		})
	}
}
