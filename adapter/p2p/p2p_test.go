package p2p_test

import (
	"context"
	"crypto/rand"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"

	"github.com/codexchange/codexchange/adapter/p2p"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/porttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// classic are the options of a host that offers what a classic Codex node does,
// and nothing else.
func classic() []libp2p.Option {
	return []libp2p.Option{
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(mplex.ID, mplex.DefaultTransport),
	}
}

func secp256k1(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, err := p2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ed25519(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newHost makes a host on a free port of 127.0.0.1 that ends with the test.
func newHost(t *testing.T, key crypto.PrivKey, opts ...libp2p.Option) host.Host {
	t.Helper()
	opts = append(opts,
		libp2p.Identity(key),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.DisableRelay())
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func info(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// suite runs the contract over hosts that make makes, the i-th in each test
// with i.
func suite(t *testing.T, makeHost func(t *testing.T, i int) host.Host) {
	porttest.Network(t, func(t *testing.T, n int) []porttest.Node {
		nodes := make([]porttest.Node, n)
		for i := range nodes {
			h := makeHost(t, i)
			net, err := p2p.New(h, p2p.Options{})
			if err != nil {
				t.Fatal(err)
			}
			nodes[i] = porttest.Node{Network: net, Info: info(h), Disconnect: h.Network().ClosePeer}
			if f, ok := h.(*filledHost); ok {
				nodes[i].Put = func(b blocks.Block) error { return f.store.Put(t.Context(), b) }
			}
		}
		return nodes
	})
}

func TestContractYamux(t *testing.T) {
	suite(t, func(t *testing.T, _ int) host.Host { return newHost(t, secp256k1(t), p2p.HostOptions()...) })
}

// Every second host offers what a classic Codex node does, so that nodes meet on
// Noise and mplex.
func TestContractClassic(t *testing.T) {
	suite(t, func(t *testing.T, i int) host.Host {
		opts := p2p.HostOptions()
		if i%2 == 1 {
			opts = classic()
		}
		return newHost(t, secp256k1(t), opts...)
	})
}

// A host whose streams put blocks in, as a host does that is lent to a plugin. Its
// streams are exchange.BlockWriters to the exchange, and keep the contract.
func TestContractFilled(t *testing.T) {
	suite(t, func(t *testing.T, _ int) host.Host {
		return &filledHost{newHost(t, secp256k1(t), p2p.HostOptions()...), exchangetest.NewBlocks()}
	})
}

type filledHost struct {
	host.Host
	store *exchangetest.Blocks
}

func (h *filledHost) NewStream(ctx context.Context, p peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, p, protocols...)
	if err != nil {
		return nil, err
	}
	return &filledStream{s, h.store}, nil
}

func (h *filledHost) SetStreamHandler(id protocol.ID, f network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) { f(&filledStream{s, h.store}) })
}

type filledStream struct {
	network.Stream
	store *exchangetest.Blocks
}

func (s *filledStream) WriteBlock(c cid.Cid, size int) error {
	b, err := s.store.Get(context.Background(), c)
	if err != nil || len(b.RawData()) != size {
		return s.Reset()
	}
	_, err = s.Write(b.RawData())
	return err
}

func TestContractEd25519(t *testing.T) {
	suite(t, func(t *testing.T, i int) host.Host {
		key := ed25519(t)
		if i%2 == 1 {
			key = secp256k1(t)
		}
		return newHost(t, key, p2p.HostOptions()...)
	})
}
