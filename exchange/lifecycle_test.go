package exchange_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/codexchange/codexchange/exchange"
	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/exchange/exchangetest/memnet"
	"github.com/codexchange/codexchange/exchange/wire"
)

func TestCloseEndsEverythingThatWaits(t *testing.T) {
	play(t, func(s *stage) {
		n := s.node("node")
		b := makeBlocks(1, 2, 100)
		session := n.NewSession(s.Context())
		one := s.getting(s.Context(), n, b[0].Cid())
		two := s.getting(s.Context(), session, b[0].Cid())
		many, err := n.GetBlocks(s.Context(), cids(b))
		if err != nil {
			s.Fatal(err)
		}
		tree := codex.TreeCid([32]byte{1})
		leaves, err := session.(exchange.LeafFetcher).GetLeaves(s.Context(), exchange.Tree{Root: tree}, wire.Range{Count: 10})
		if err != nil {
			s.Fatal(err)
		}
		one.waits("nobody has it")

		var closing sync.WaitGroup
		for range 8 {
			closing.Go(func() {
				if err := n.Close(); err != nil {
					s.Errorf("close: %v", err)
				}
			})
		}
		closing.Wait()

		one.fails("GetBlock says that the exchange has closed", errs.Closed)
		two.fails("so it does in a session", errs.Closed)
		if got := collect(s, "GetBlocks ends", many); len(got) != 0 {
			s.Fatalf("got %d blocks from nobody", len(got))
		}
		if got := collect(s, "GetLeaves ends", leaves); len(got) != 0 {
			s.Fatalf("got %d leaves from nobody", len(got))
		}

		s.getting(s.Context(), n, b[0].Cid()).fails("after Close nothing can be asked for", errs.Closed)
		s.getting(s.Context(), session, b[0].Cid()).fails("nor in a session", errs.Closed)
		s.getting(s.Context(), n.NewSession(s.Context()), b[0].Cid()).fails("nor in a new one", errs.Closed)
		if _, err := n.GetBlocks(s.Context(), cids(b)); !errors.Is(err, errs.Closed) {
			s.Errorf("GetBlocks after Close: %v, want %v", err, errs.Closed)
		}
		if _, err := n.GetBlocks(s.Context(), nil); !errors.Is(err, errs.Closed) {
			s.Errorf("GetBlocks of nothing after Close: %v, want %v", err, errs.Closed)
		}
		if _, err := n.GetLeaves(s.Context(), exchange.Tree{Root: tree}, wire.Range{Count: 1}); !errors.Is(err, errs.Closed) {
			s.Errorf("GetLeaves after Close: %v, want %v", err, errs.Closed)
		}
		if err := n.NotifyNewBlocks(s.Context(), b...); err != nil {
			s.Errorf("NotifyNewBlocks after Close: %v, want nil, or a blockservice fails the read", err)
		}
		if err := n.NotifyNewLeaves(s.Context(), tree, wire.Range{Count: 1}); err != nil {
			s.Errorf("NotifyNewLeaves after Close: %v", err)
		}
		if st := n.Stat(); st != (exchange.Stat{}) {
			s.Errorf("Stat after Close: %+v, want zero", st)
		}
		if _, ok := n.Ledger(n.id); ok || n.Peers() != nil || n.Wantlist() != nil || n.GetWantlist() != nil {
			s.Error("after Close something is still known")
		}
	})
}

// Requests that begin while the exchange closes end, and none outlives Close.
func TestCloseWhileRequestsBegin(t *testing.T) {
	for range 50 {
		play(t, func(s *stage) {
			n := s.node("node")
			b := makeBlocks(1, 3, 100)
			var requests sync.WaitGroup
			for range 8 {
				requests.Go(func() {
					ch, err := n.GetBlocks(context.Background(), cids(b))
					if err == nil {
						for range ch {
							s.Error("got a block from nobody")
						}
					} else if !errors.Is(err, errs.Closed) {
						s.Errorf("GetBlocks: %v, want %v", err, errs.Closed)
					}
				})
			}
			n.Close()
			requests.Wait()
		})
	}
}

func TestNewReportsEverythingWrongAtOnce(t *testing.T) {
	_, err := exchange.New(exchange.Config{
		MaxFrame: 1000, WantsPerPeer: 10, Window: -1, BufferedBytes: -1, ServingBytes: 1, BroadcastPeers: -5, SearchPeers: 5000,
	})
	if !errors.Is(err, errs.Invalid) {
		t.Fatalf("New: %v, want kind %v", err, errs.Invalid)
	}
	var e *errs.Error
	if !errors.As(err, &e) || e.Fault != errs.Caller {
		t.Errorf("New: %#v, want it to be the caller's fault", err)
	}
	for _, want := range []string{
		"configure exchange: ",
		"Network is nil, want a network",
		"Blocks is nil, want a store",
		"MaxFrame is 1000, want 65536 to 104857600",
		"WantsPerPeer is 10, want 1024 to ",
		"Window is -1, want 1 to ",
		"BufferedBytes is -1, want 1 to ",
		"ServingBytes is 1, want 1048576 to ",
		"BroadcastPeers is -5, want 1 to ",
		"SearchPeers is 5000, want 1 to 1000",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

// What fails in New leaves no goroutine behind (TestMain looks) and nothing
// registered.
func TestNewThatFailsLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		registry := prometheus.NewRegistry()
		cfg := exchange.Config{Network: net.Node(memnet.ID("node")), Blocks: exchangetest.NewBlocks(), Metrics: registry}
		first, err := exchange.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Network = net.Node(memnet.ID("other"))
		if _, err := exchange.New(cfg); !errors.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), "register metrics: ") {
			t.Errorf("New with metrics that are registered: %v, want kind %v", err, errs.Invalid)
		}
		first.Close()

		cfg.Network = net.Node(memnet.ID("node")) // can be attached to once
		if _, err := exchange.New(cfg); !errors.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), "attach to ") {
			t.Errorf("New on a network that is attached: %v, want the network's error", err)
		}

		cfg.Network = net.Node(memnet.ID("other"))
		second, err := exchange.New(cfg)
		if err != nil {
			t.Fatalf("after both failures, and with the first closed: %v", err)
		}
		second.Close()
	})
}

func TestErrorsSayWhatAndWhoseFault(t *testing.T) {
	play(t, func(s *stage) {
		n := s.node("node")
		b := makeBlocks(1, 1, 100)[0]
		sum := func(codec, code uint64, length int) cid.Cid {
			digest := make([]byte, length)
			h, err := mh.Encode(digest, code)
			if err != nil {
				s.Fatal(err)
			}
			return cid.NewCidV1(codec, h)
		}
		tree := codex.TreeCid([32]byte{1})
		get := func(c cid.Cid) error { _, err := n.GetBlock(s.Context(), c); return err }
		many := func(c ...cid.Cid) error { _, err := n.GetBlocks(s.Context(), c); return err }
		leaf := func(root cid.Cid, r ...wire.Range) error {
			_, err := n.GetLeaves(s.Context(), exchange.Tree{Root: root}, r...)
			return err
		}
		cause := errors.New("the user went home")
		gone, cancel := context.WithCancelCause(s.Context())
		cancel(cause)
		late, stop := context.WithTimeout(s.Context(), time.Second)
		defer stop()
		_, goneErr := n.GetBlock(gone, b.Cid())
		_, lateErr := n.GetBlock(late, b.Cid())

		for _, c := range []struct {
			name string
			err  error
			is   []error
			text string
		}{
			{"no cid", get(cid.Undef), []error{errs.Invalid}, "get block (no cid): the cid is undefined"},
			{"no cid among others", many(b.Cid(), cid.Undef), []error{errs.Invalid}, "get blocks (no cid): the cid is undefined"},
			{"a hash that proves nothing", get(sum(cid.Raw, mh.MURMUR3X64_64, 8)), []error{errs.Invalid},
				"hash function is 0x22: potentially insecure hash functions not allowed"},
			{"a digest that is too short", get(sum(cid.Raw, mh.SHA2_256, 16)), []error{errs.Invalid}, "hash function is 0x12: "},
			{"a cid that no message holds", get(sum(cid.Raw, mh.IDENTITY, 120)), []error{errs.Invalid}, "cid is 124 bytes, want at most 100"},
			{"a hash of Codex proofs", get(sum(codex.SlotRootCodec, codex.Poseidon2Merkle, 32)), []error{errs.Invalid}, "hash function is 0xcd11: "},
			{"leaves of nothing", leaf(cid.Undef, wire.Range{Count: 1}), []error{errs.Invalid}, "get leaves (no cid): the cid is undefined"},
			{"leaves of a block", leaf(b.Cid(), wire.Range{Count: 1}), []error{errs.Invalid},
				"get leaves " + b.Cid().String() + ": codec is 0x70, want 0xcd03 (the root of a Codex tree)"},
			{"leaves of a tree of another hash", leaf(sum(codex.TreeCodec, mh.SHA2_512, 64), wire.Range{Count: 1}), []error{errs.Invalid},
				"hash is sha2-512 of 64 bytes, want sha2-256 of 32 bytes"},
			{"an index of 2^63", leaf(tree, wire.Range{First: 1 << 63, Count: 1}), []error{errs.Invalid},
				"range is 1 indices from 9223372036854775808, want them less than 9223372036854775807"},
			{"the largest index", leaf(tree, wire.Range{Count: 1}, wire.Range{First: ^uint64(0), Count: 1}), []error{errs.Invalid}, "range is 1 indices from "},
			{"a range that runs over", leaf(tree, wire.Range{First: 1, Count: ^uint64(0)}), []error{errs.Invalid}, "want them less than"},
			{"new leaves of a block", n.NotifyNewLeaves(s.Context(), b.Cid()), []error{errs.Invalid}, "notify new leaves "},
			{"a context that has ended", goneErr, []error{errs.Other, context.Canceled, cause},
				"get block " + b.Cid().String() + ": context canceled: the user went home"},
			{"a deadline", lateErr, []error{errs.Other, context.DeadlineExceeded}, "get block " + b.Cid().String() + ": context deadline exceeded"},
		} {
			for _, want := range c.is {
				if !errors.Is(c.err, want) {
					s.Errorf("%s: %v, want it to be %q", c.name, c.err, want)
				}
			}
			var e *errs.Error
			if !errors.As(c.err, &e) || e.Fault != errs.Caller {
				s.Errorf("%s: %#v, want it to be the caller's fault", c.name, c.err)
			}
			if c.err != nil && !strings.Contains(c.err.Error(), c.text) {
				s.Errorf("%s: got %q, want it to say %q", c.name, c.err, c.text)
			}
		}

		if err := leaf(tree); err != nil {
			s.Errorf("no indices at all: %v, want a channel that is closed", err)
		}
		if err := leaf(tree, wire.Range{First: 1<<63 - 2}); err != nil {
			s.Errorf("a range of none: %v, want a channel that is closed", err)
		}
		n.idle("nothing was asked for")
	})
}
