package bitswap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A stub is a session of Bitswap: blocks come when the test says so.
type stub struct {
	mu   sync.Mutex
	want map[cid.Cid]chan<- blocks.Block // of the call that asked last
	ends bool                            // calls end at once, without a block
}

func (s *stub) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ch, _ := s.GetBlocks(ctx, []cid.Cid{c})
	if b, ok := <-ch; ok {
		return b, nil
	}
	return nil, errors.New("closed without a reason, as Bitswap does")
}

func (s *stub) GetBlocks(ctx context.Context, keys []cid.Cid) (<-chan blocks.Block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in, out := make(chan blocks.Block, len(keys)), make(chan blocks.Block)
	for _, c := range keys {
		s.want[c] = in
	}
	if s.ends {
		close(out)
		return out, nil
	}
	go func() {
		defer close(out)
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, c := range keys {
				delete(s.want, c)
			}
		}()
		for range keys {
			select {
			case b := <-in:
				select {
				case out <- b:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// bring delivers blocks that are wanted.
func (s *stub) bring(list ...blocks.Block) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range list {
		if in := s.want[b.Cid()]; in != nil {
			delete(s.want, b.Cid())
			in <- b
		}
	}
}

// wants checks how many blocks Bitswap has been asked for and not brought.
func (s *stub) wants(t *testing.T, why string, n int) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.want) != n {
		t.Fatalf("%s: %d wants outstanding, want %d", why, len(s.want), n)
	}
}

func stubSession(ctx context.Context) (*session, *stub) {
	f := &stub{want: make(map[cid.Cid]chan<- blocks.Block)}
	x := &Exchange{window: DefaultWindow, closing: make(chan struct{})}
	return &session{x: x, ctx: ctx, fetcher: f, moved: time.Now()}, f
}

func data(n int) (list []blocks.Block, keys []cid.Cid) {
	for i := range n {
		b := blocks.NewBlock([]byte(fmt.Sprint("block ", i)))
		list, keys = append(list, b), append(keys, b.Cid())
	}
	return list, keys
}

func TestTheWindowSlides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bitswap := stubSession(t.Context())
		list, keys := data(2000)
		ch, err := s.GetBlocks(t.Context(), keys)
		if err != nil {
			t.Fatal(err)
		}
		bitswap.wants(t, "a window full, and no more", 512)
		bitswap.bring(list[:63]...)
		for range 63 {
			<-ch
		}
		bitswap.wants(t, "less than a part has come", 512-63)
		bitswap.bring(list[63])
		<-ch
		bitswap.wants(t, "the next part is asked for", 512)
		for i := 64; i < 2000; i++ {
			bitswap.bring(list[i])
			if b, ok := <-ch; !ok || b != list[i] {
				t.Fatalf("block %d: got %v, %v", i, b, ok)
			}
		}
		if _, ok := <-ch; ok {
			t.Fatal("the channel is open after the last block")
		}
		if s.used != 0 {
			t.Fatalf("%d places of the window are still taken", s.used)
		}
	})
}

func TestTheWindowBelongsToTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bitswap := stubSession(t.Context())
		list, keys := data(1001)
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := s.GetBlocks(ctx, keys[:500]); err != nil {
			t.Fatal(err)
		}
		bitswap.wants(t, "seven parts and the rest", 500)
		second, err := s.GetBlocks(t.Context(), keys[500:1000])
		if err != nil {
			t.Fatal(err)
		}
		bitswap.wants(t, "a second request finds no room", 500)
		go s.GetBlock(t.Context(), keys[1000])
		bitswap.wants(t, "a single block needs none", 501)
		bitswap.bring(list[1000])
		cancel()
		bitswap.wants(t, "the end of the first makes room", 500)
		bitswap.bring(list[500:1000]...)
		for range 500 {
			<-second
		}
	})
}

func TestAStallLetsMoreBeAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bitswap := stubSession(t.Context())
		list, keys := data(1000)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := time.Now()
		ch, err := s.GetBlocks(ctx, keys)
		if err != nil {
			t.Fatal(err)
		}
		bitswap.wants(t, "nobody has these", 512)
		last := list[999]
		for {
			bitswap.bring(last)
			select {
			case b := <-ch:
				if b != last {
					t.Fatalf("got %v, want the last block", b)
				}
				if d := time.Since(start); d > 20*stall {
					t.Fatalf("it came after %v, want %v or less", d, 20*stall)
				}
				return
			case <-time.After(stall / 4):
			}
		}
	})
}

func TestASlowReaderBoundsWhatItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bitswap := stubSession(t.Context())
		list, keys := data(2000)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ch, err := s.GetBlocks(ctx, keys)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			synctest.Wait()
			bitswap.bring(list...)
			time.Sleep(stall) // in virtual time
		}
		bitswap.wants(t, "a window of blocks waits to be read", 0)
		if s.used != 0 {
			t.Fatalf("%d places of the window are taken by blocks that have come", s.used)
		}
		for range 64 {
			<-ch
		}
		bitswap.wants(t, "who reads is served on", 64)
	})
}

func TestEnds(t *testing.T) {
	_, keys := data(3)
	for name, c := range map[string]struct {
		end  func(s *session, cancelSession, cancel func())
		want error
	}{
		"the session's": {func(_ *session, cancelSession, _ func()) { cancelSession() }, errs.Closed},
		"the exchange's": {func(s *session, _, _ func()) {
			close(s.x.closing)
			s.fetcher.(*stub).ends = true
		}, errs.Closed},
		"the caller's": {func(_ *session, _, cancel func()) { cancel() }, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sctx, cancelSession := context.WithCancel(t.Context())
				defer cancelSession()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s, _ := stubSession(sctx)
				ch, err := s.GetBlocks(ctx, keys)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				c.end(s, cancelSession, cancel)
				if b, ok := <-ch; ok {
					t.Fatalf("got %v, want the channel closed", b)
				}
				if s.used != 0 {
					t.Fatalf("%d places of the window are still taken", s.used)
				}
				if _, err := s.GetBlocks(ctx, keys); !errors.Is(err, c.want) {
					t.Errorf("GetBlocks after the end: %v, want %v", err, c.want)
				}
				if _, err := s.GetBlock(ctx, keys[0]); !errors.Is(err, c.want) {
					t.Errorf("GetBlock after the end: %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestOptionsAreCheckedTogether(t *testing.T) {
	o := Options{Window: 1, WantsPerPeer: -1, BroadcastPeers: -2, SearchPeers: -3, Patience: time.Minute}
	err := o.check()
	const want = "start bitswap: Window is 1, want 64 or more\nWantsPerPeer is -1, want 1 or more\n" +
		"BroadcastPeers is -2, want 1 or more\nSearchPeers is -3, want 1 or more\nPatience is 1m0s, want up to 7s"
	if !errors.Is(err, errs.Invalid) || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
	o = Options{}
	if err := o.check(); err != nil || o.Window != DefaultWindow || o.SearchPeers != 10 || o.Patience != 2*time.Second {
		t.Fatalf("the zero options became %+v, %v", o, err)
	}
}
