package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/lent"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

// loans are regions of memory that a test lends. All begin at multiples of regionSize.
type loans struct {
	host, its *memory.Memory
	ready     chan struct{}
	mu        sync.Mutex
	back      []uint64
}

const regionSize = 64 << 10

func newLoans(t testing.TB, regions int) *loans {
	t.Helper()
	host, err := memory.MakeInbound(regions * regionSize)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	its, err := memory.OpenInbound(host.Path(), uint64(host.Size()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(its.Close)
	return &loans{host: host, its: its, ready: make(chan struct{}, 1)}
}

func (l *loans) Memory() *memory.Memory { return l.its }
func (l *loans) Ready() <-chan struct{} { return l.ready }

func (l *loans) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.back)
}

func (l *loans) Take(to []uint64) []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	to, l.back = append(to, l.back...), nil
	return to
}

// region is a lent.Buffer.
type region struct {
	of     *loans
	offset uint64
	uses   int
}

func (r *region) Ref() { r.of.mu.Lock(); r.uses++; r.of.mu.Unlock() }

func (r *region) Free() {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.uses--; r.uses > 0 {
		return
	}
	r.of.back = append(r.of.back, r.offset)
	select {
	case r.of.ready <- struct{}{}:
	default:
	}
}

// put puts p into the memory, in regions from number first on, as a stream would, and
// makes a block of it where it lies. The bytes from..to of it are not lent.
func (l *loans) put(b blocks.Block, first, from, to int) blocks.Block {
	d, p := lent.NewData(), b.RawData()
	for at := 0; at < len(p); {
		end := min(len(p), at-at%regionSize+regionSize)
		if at < from {
			end = min(end, from)
		}
		if at == from && to > from {
			d.Append(slices.Clone(p[from:to]), nil)
			at = to
			continue
		}
		offset := first*regionSize + at
		copy(l.host.Bytes(offset, end-at), p[at:end])
		d.Append(l.its.Bytes(offset, end-at), &region{of: l, offset: uint64(offset)})
		at = end
	}
	return lent.NewBlock(b.Cid(), d)
}

// inPlace is an exchange that has the blocks it is given.
type inPlace map[cid.Cid]blocks.Block

func (x inPlace) GetBlock(_ context.Context, c cid.Cid) (blocks.Block, error) { return x[c], nil }

func (x inPlace) GetBlocks(_ context.Context, ks []cid.Cid) (<-chan blocks.Block, error) {
	ch := make(chan blocks.Block, len(ks))
	for _, c := range ks {
		ch <- x[c]
	}
	close(ch)
	return ch, nil
}

func (inPlace) NotifyNewBlocks(context.Context, ...blocks.Block) error { return nil }
func (inPlace) Close() error                                           { return nil }

var _ boxo.Interface = inPlace{}

// TestPayloadInPlace shows that blocks which lie where streams have brought them come to
// the host whole, and that their regions come back once the host has read them, and not
// before: it uses them again at once.
func TestPayloadInPlace(t *testing.T) {
	const size = 150_000
	for _, tc := range []struct {
		name     string
		from, to int // not lent
		returned int // regions, at the least
	}{
		{"all of it", 0, 0, 3},
		{"a small part inline", 70_000, 71_000, 4},
		{"much of it inline", 10_000, 140_000, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLoans(t, 64)
			list := makeBlocks(90, 10, size)
			x := inPlace{}
			for i, b := range list {
				x[b.Cid()] = l.put(b, 4*i, tc.from, tc.to)
			}
			var mu sync.Mutex
			var back []uint64
			c := newClient(t, ClientOptions{Verify: true})
			serveShared(t, c, x, nil, Shared{Inbound: l.host, Returned: func(regions []uint64) error {
				mu.Lock()
				defer mu.Unlock()
				back = append(back, regions...)
				for _, at := range regions {
					b := l.host.Bytes(int(at), regionSize-int(at%regionSize))
					for i := range b {
						b[i] = 0xee
					}
				}
				return nil
			}}, Instance{Inbound: l})
			ch, err := c.GetBlocks(t.Context(), keysOf(list))
			if err != nil {
				t.Fatal(err)
			}
			left := missing(list)
			collect(t, "the blocks", ch, left)
			if len(left) != 0 {
				t.Fatalf("%d blocks are missing or other ones", len(left))
			}
			eventually(t, "all regions come back", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(back) >= tc.returned*len(list)
			})
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(back)
			if n := len(slices.Compact(slices.Clone(back))); n != len(back) {
				t.Errorf("%d regions came back %d times, want once each", n, len(back))
			}
		})
	}
}

// TestHostileParts shows that a host believes nothing of where payload is, nor of what
// comes back, that cannot be.
func TestHostileParts(t *testing.T) {
	b := makeBlocks(91, 1, 60_000)[0]
	const all = 4 * regionSize
	block := func(offsets []uint64, sizes []uint32) *pb.Result_Block {
		return &pb.Result_Block{Block: &pb.BlockResult{Cid: b.Cid().Bytes(), Size: 60_000, PartOffsets: offsets, PartSizes: sizes}}
	}
	for name, tc := range map[string]struct {
		none bool
		what *pb.Result_Block
		back []uint64
		kind errs.Kind
		text string
	}{
		"no memory":           {none: true, what: block([]uint64{0}, []uint32{60_000}), kind: errs.Malformed, text: "none is shared"},
		"past the end":        {what: block([]uint64{all - 1}, []uint32{60_000}), kind: errs.Malformed, text: "part 0 of the payload is 60000 bytes at 262143, and the memory has 262144"},
		"far away":            {what: block([]uint64{1 << 63}, []uint32{60_000}), kind: errs.Malformed, text: "part 0"},
		"too few":             {what: block([]uint64{0}, []uint32{59_999}), kind: errs.Malformed, text: "payload is 60000 bytes and its parts are 59999"},
		"sizes missing":       {what: block([]uint64{0, 60_000}, []uint32{60_000}), kind: errs.Malformed, text: "2 offsets of parts and 1 sizes"},
		"other bytes":         {what: block([]uint64{0}, []uint32{60_000}), kind: errs.BadBlock},
		"returned, no memory": {none: true, back: []uint64{0}, kind: errs.Malformed, text: "none is shared"},
		"returned, not lent":  {back: []uint64{7}, kind: errs.Malformed, text: "not lent: [7]"},
	} {
		t.Run(name, func(t *testing.T) {
			var shared Shared
			if !tc.none {
				shared = Shared{Inbound: newLoans(t, 4).host, Returned: func(regions []uint64) error { return fmt.Errorf("not lent: %d", regions) }}
			}
			c := newClient(t, ClientOptions{Verify: true})
			s := scriptShared(t, c, shared)
			got := getting(t, c, b)
			n := s.next("the request").GetWant().GetRequest()
			if tc.what != nil {
				s.write(&pb.Result{Request: n, What: tc.what})
			} else {
				s.write(&pb.Result{What: &pb.Result_Returned{Returned: &pb.Returned{Regions: tc.back}}})
			}
			err := wait(t, "Run ends", s.ended)
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != tc.kind || e.Fault != errs.Plugin || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %v, by the plugin: %s", err, tc.kind, tc.text)
			}
			c.Close()
			wait(t, "the request ends", got)
		})
	}
}

// manyLoans has got back more at once than a head can name.
type manyLoans struct{ *loans }

func (manyLoans) Take(to []uint64) []uint64 {
	for i := range uint64(20_000) {
		to = append(to, 32<<20+1500*i)
	}
	return to
}

// TestManyReturned shows that however much is given back at once can be said.
func TestManyReturned(t *testing.T) {
	near, far := socketPair(t)
	w := &writer{v: &serving{instance: &Instance{Inbound: manyLoans{}, Results: far}}}
	wrote := later(func() error { return w.flush(nil) })
	frames, n := newFrameReader(near), 0
	for n < 20_000 {
		res, err := frames.next()
		if err != nil || res.kind != returnedResult {
			t.Fatalf("after %d: got %+v, %v, want more that is returned", n, res, err)
		}
		n += len(res.regions)
	}
	if err := wait(t, "it is written", wrote); err != nil {
		t.Error(err)
	}
}
