package plugin

import (
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	boxo "github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// newAsker makes an exchange that asks the one peer that is connected: a CID in,
// the bytes of the block out.
func newAsker(_ context.Context, env Env) (boxo.Interface, error) {
	return Getter(func(ctx context.Context, c cid.Cid) ([]byte, error) {
		s, err := env.Host.NewStream(ctx, env.Host.Network().Peers()[0], proto)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		if _, err := s.Write(c.Bytes()); err != nil {
			return nil, err
		}
		_ = s.CloseWrite()
		return io.ReadAll(s)
	}), nil
}

// TestMemory shows that bytes of peers and blocks cross in shared memory where the
// system has it, and by the sockets where it is switched off; and that they are
// the same bytes.
func TestMemory(t *testing.T) {
	have := make(map[cid.Cid]blocks.Block)
	var keys []cid.Cid
	total := 0
	for i, size := range []int{10, 20_000, 300_000, 1 << 20, 3 << 20} {
		for n := range 8 {
			data := make([]byte, size)
			random := rand.NewChaCha8([32]byte{byte(i), byte(n)})
			random.Read(data)
			b := blocks.NewBlock(data)
			have[b.Cid()] = b
			keys = append(keys, b.Cid())
			total += size
		}
	}
	far := newHost(t)
	far.SetStreamHandler(proto, func(s network.Stream) {
		defer s.Close()
		asked, _ := io.ReadAll(s)
		if c, err := cid.Cast(asked); err == nil {
			_, _ = s.Write(have[c].RawData())
		}
	})
	if err := far.Network().Listen(multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		t.Fatal(err)
	}
	for name, off := range map[string]bool{"on": false, "off": true} {
		t.Run(name, func(t *testing.T) {
			near := newHost(t)
			if err := near.Connect(t.Context(), peer.AddrInfo{ID: far.ID(), Addrs: far.Addrs()}); err != nil {
				t.Fatal(err)
			}
			p, said := load(t, Config{Host: near, Here: newAsker, NoMemory: off})
			got := make(map[cid.Cid]bool)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			ch, err := p.Exchange().GetBlocks(ctx, keys)
			if err != nil {
				t.Fatal(err)
			}
			for b := range ch {
				if want := have[b.Cid()]; want == nil || string(want.RawData()) != string(b.RawData()) {
					t.Errorf("got other bytes for %v", b.Cid())
				}
				got[b.Cid()] = true
			}
			if len(got) != len(keys) {
				t.Errorf("got %d blocks, want %d", len(got), len(keys))
			}
			c := p.Counters()
			streams, inline := int(c.Streams.MemoryOut.Load()), int(c.Results.DataIn.Load())
			// Blocks of 3 MiB are more than a quarter of the memory for results.
			if on := !off && runtime.GOOS == "linux"; on != (streams > total/4) || on != (inline < 25<<20) {
				t.Errorf("of %d bytes of peers %d came in memory, and %d of blocks and heads went inline", total, streams, inline)
			}
			said.calm(t)
		})
	}
}
