package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/codexchange/codexchange/exchange/wire"
)

func TestB20Serve(t *testing.T) {
	s := start(t, "a want-have is answered with a word, a want-block with the block and no word")
	s.store(A)
	alice := s.peer("alice")
	alice.asks(have(A))
	alice.isTold("we have it", has_(A))
	alice.gets("she did not ask for the block")
	alice.asks(block(A))
	alice.gets("the block", A)
	alice.isTold("the block says enough")
	if asks := s.e.Asks("alice"); len(asks) != 0 {
		s.fail("the ledger holds %v, want nothing", asks)
	}
}

func TestPriceIsTold(t *testing.T) {
	s := start(t, "what we have is offered at our price", func(c *Config) { c.Price = wire.Price{31: 9} })
	s.store(A)
	alice := s.peer("alice")
	alice.asks(have(A, B))
	alice.isTold("with a price", has_(A), hasNot_(B))
	if alice.prices[A] != (wire.Price{31: 9}) || !alice.prices[B].IsZero() {
		s.fail("A was offered at %v and B at %v, want 9 and nothing", alice.prices[A], alice.prices[B])
	}
}

func TestB22SilenceUnlessAsked(t *testing.T) {
	s := start(t, "don't have is said only to who asked for it: the reference takes it for have")
	alice, bob := s.peer("alice"), s.peer("bob")
	alice.asksQuietly(have(A), block(B))
	alice.isTold("the reference never asks for it")
	bob.asks(have(A), block(B))
	bob.isTold("he does", hasNot_(A, B))
	bob.asks(have(A))
	bob.isTold("and again", hasNot_(A))
}

func TestB23StandingWants(t *testing.T) {
	s := start(t, "what we do not have stands until we do: then the block is sent, or have is said")
	alice := s.peer("alice")
	alice.asksQuietly(block(A), have(B))
	alice.idle("we have nothing")
	if asks := s.e.Asks("alice"); len(asks) != 2 {
		s.fail("the ledger holds %v, want both", asks)
	}
	s.store(A, B, C)
	alice.gets("what she asked for as a block", A)
	alice.isTold("what she asked about", has_(B))
	s.store(A, B)
	alice.idle("once")
}

func TestB23StandingLeaves(t *testing.T) {
	s := start(t, "leaves that stand are served when they are stored, be they few or many")
	alice := s.peer("alice")
	all := leaves(tree, 0, 2400)
	alice.asksQuietly(block(all...))
	alice.idle("we have none")
	s.stored[wire.Leaf(tree, 7)] = blockSize
	s.step(StoredLeaves{Want: wire.WantLeaves(tree, wire.Range{First: 7, Count: 1})})
	alice.gets("one", wire.Leaf(tree, 7))
	for _, a := range all[1000:2300] {
		s.stored[a] = blockSize
	}
	s.step(StoredLeaves{Want: wire.WantLeaves(tree, wire.Range{First: 1000, Count: 1300})})
	alice.gets("many", all[1000:2300]...)
	s.step(StoredLeaves{Want: wire.WantLeaves(tree, wire.Range{Count: 1 << 60})})
	alice.idle("saying so does not make it so")
}

func TestB21AskTwice(t *testing.T) {
	s := start(t, "asking twice is one ask; asking for what was delivered is another")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A)
	alice.asks(block(A))
	alice.asks(block(A))
	alice.gets("once", A)
	alice.readsBlocks(true)
	alice.idle("once")
	alice.asks(block(A))
	alice.gets("anew", A)
}

func TestHaveOfWhatIsOnItsWay(t *testing.T) {
	s := start(t, "who asks about a block that is on its way to it is told that we have it")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A)
	alice.asks(block(A))
	alice.asks(have(A))
	alice.isTold("we have it", has_(A))
	alice.gets("once", A)
}

func TestHaveBecomesBlock(t *testing.T) {
	s := start(t, "who asked about a missing block and then for it gets it when it comes")
	alice := s.peer("alice")
	alice.asksQuietly(have(A))
	alice.asksQuietly(block(A))
	s.store(A)
	alice.gets("the block", A)
	alice.isTold("and no word")
}

func TestCancelAsk(t *testing.T) {
	s := start(t, "what is taken back is not served, also when it is taken back in the same list")
	alice := s.peer("alice")
	alice.asksQuietly(block(A))
	alice.asks(cancel(A))
	s.store(A)
	alice.idle("taken back")
	s.store(B)
	alice.asks(block(B), cancel(B))
	alice.idle("at once")
	alice.asks(cancel(B), block(B))
	alice.gets("the last word counts", B)
	alice.asks(cancel(C))
	alice.idle("there was nothing to take back")
}

func TestCancelOnTheWay(t *testing.T) {
	s := start(t, "a block on its way cannot be taken back, but is not tried again if the message fails")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A, B)
	alice.asks(block(A, B))
	alice.asks(cancel(A))
	alice.gets("both are on their way", A, B)
	alice.readsBlocks(false)
	s.advance(maxRefresh)
	alice.gets("only B is tried again", B)
}

func TestB33FullListDoesNotReplace(t *testing.T) {
	s := start(t, "a full list does not take back what it leaves out: the reference leaves out what it asked for")
	alice := s.peer("alice")
	alice.asksQuietly(block(A))
	s.step(WantlistIn{Peer: "alice", List: wire.WantList{Full: true, Entries: []wire.Entry{{Address: B, Type: wire.WantHave}}}})
	s.store(A)
	alice.gets("it stands", A)
}

func TestCaps(t *testing.T) {
	s := start(t, "a peer that asks for too much loses the oldest of what we do not have, and what does not fit",
		func(c *Config) { c.WantsPerPeer = 4 })
	alice := s.peer("alice")
	alice.slow = true
	x := many("x", 6)
	alice.asksQuietly(block(x[:4]...))
	alice.asksQuietly(block(x[4]))
	s.store(x[0])
	alice.gets("the oldest has given way")
	s.store(x[4])
	alice.gets("to the newest", x[4])
	if st := s.e.Stats(); st.WantsEvicted != 1 || st.WantsDropped != 0 {
		s.fail("%d evicted and %d dropped, want 1 and 0", st.WantsEvicted, st.WantsDropped)
	}

	y := many("y", 6)
	s.store(y...)
	bob := s.peer("bob")
	bob.slow = true
	bob.asks(block(y...))
	bob.gets("four fit", y[:4]...)
	if st := s.e.Stats(); st.WantsDropped != 2 {
		s.fail("%d dropped, want 2", st.WantsDropped)
	}
}

func TestClientOnly(t *testing.T) {
	s := start(t, "who does not serve says nothing and keeps nothing", func(c *Config) { c.Serve = false })
	alice := s.peer("alice")
	s.store(A)
	alice.asks(have(A), block(A), have(B))
	alice.idle("no word")
	if st := s.e.Stats(); st.Asks != 0 {
		s.fail("the ledger holds %d asks, want none", st.Asks)
	}
	g := s.get(0, B)
	alice.delivers(B)
	s.finished("it asks all the same", g)
}

func TestB26MessageOfBlocks(t *testing.T) {
	s := start(t, "a message holds 20 blocks, and 256 KiB unless one block alone is larger; to a fast peer 1 MiB")
	alice := s.peer("alice")
	alice.slow = true
	sizes := func(why string, size int, want int) {
		t.Helper()
		x := many(why, 50)
		for _, a := range x {
			s.stored[a] = size
		}
		alice.asks(block(x...))
		for len(alice.flights) > 0 {
			n := len(alice.flights[0].Blocks)
			if n != want && n != 50%want {
				s.fail("%s: a message has %d blocks, want %d", why, n, want)
			}
			alice.readsBlocks(true)
		}
		alice.gets(why, x...)
	}
	sizes("small ones by number", 1000, 20)
	sizes("64 KiB ones by size", 64<<10, 4)
	sizes("large ones alone", 3<<20, 1)
	sizes("empty ones too", 0, 20)

	// It reads n messages of 1 MiB, some at a time.
	read := func(n, atOnce int) {
		x := many(fmt.Sprint(n, " at ", atOnce), n)
		for _, a := range x {
			s.stored[a] = 1 << 20
		}
		alice.asks(block(x...))
		for i := range n {
			if i%atOnce == 0 {
				s.advance(takesSpan)
			}
			alice.readsBlocks(true)
		}
		alice.gets("all", x...)
	}
	read(40, 10)
	sizes("64 KiB ones to a peer that took 200 MB/s", 64<<10, 16)
	read(10, 1)
	sizes("64 KiB ones when it takes 20 MB/s", 64<<10, 8)
}

func TestTwoMessagesAhead(t *testing.T) {
	s := start(t, "a peer that does not read has two messages on their way and no more, and does not stop others")
	alice, bob := s.peer("alice"), s.peer("bob")
	alice.slow = true
	x := many("x", 200)
	s.store(x...)
	alice.asks(block(x...))
	bob.asks(block(x...))
	if len(alice.flights) != 2 {
		s.fail("%d messages are on their way to alice, want 2", len(alice.flights))
	}
	bob.gets("everything at once", x...)
	for len(alice.flights) > 0 {
		alice.readsBlocks(true)
	}
	alice.gets("everything in the end", x...)
}

func TestB25ServingBytes(t *testing.T) {
	s := start(t, "no more is in memory on its way out than allowed, to all peers together, and everybody gets a turn",
		func(c *Config) { c.ServingBytes = 3 << 20 })
	x := many("x", 100)
	s.store(x...)
	players := s.peers("a", "b", "c", "d", "e", "f")
	for _, p := range players {
		p.slow = true
		p.asks(block(x...))
	}
	served := map[*player]int{}
	for left := true; left; {
		left = false
		if n := s.e.Stats().Flying; n >= 4<<20 {
			s.fail("%d bytes are on their way, want 3 MiB and less than a message", n)
		}
		for _, p := range players {
			if len(p.flights) > 0 {
				left = true
				served[p] += len(p.flights[0].Blocks)
				p.readsBlocks(true)
			}
		}
		for _, p := range players {
			for _, q := range players {
				if served[p]-served[q] > 3*16 {
					s.fail("%s was served %d blocks and %s %d, want them to be close", p.id, served[p], q.id, served[q])
				}
			}
		}
	}
	for _, p := range players {
		p.gets("all", x...)
	}
}

func TestB25SeveralStreamsThatNobodyReads(t *testing.T) {
	s := start(t, "peers that are sent on many streams, and read none of them, leave room for those with one")
	x := many("x", 200)
	for i := range 20 {
		p := s.peer(fmt.Sprint("greedy", i))
		p.slow = true
		s.step(Streams{Peer: p.id, Epoch: p.epoch, Streams: 8})
		p.asksQuietly(block(x...))
	}
	s.store(x...)
	if f := s.e.flying; f < 32<<20 || f >= 48<<20 {
		s.fail("%d bytes fly to peers that do not read, want a bit more than half of 64 MiB", f)
	}
	bob := s.peer("bob")
	bob.slow = true
	bob.asksQuietly(block(x...))
	if n := len(bob.flights); n != 2 {
		s.fail("%d messages fly to bob, want the two of one stream", n)
	}
}

func TestB25BigAndSmall(t *testing.T) {
	s := start(t, "a peer that asks for a little is not kept waiting by one that asks for much", func(c *Config) { c.ServingBytes = 2 * firstMessage })
	big, small := s.peer("big"), s.peer("small")
	big.slow, small.slow = true, true
	x := many("x", 500)
	s.store(x...)
	s.store(A)
	big.asks(block(x...))
	small.asks(block(A))
	small.gets("there is no room yet")
	big.readsBlocks(true)
	small.gets("but its turn is next", A)
}

func TestB25LargeBlocksPayInTurns(t *testing.T) {
	s := start(t, "turns are counted in bytes: who gets 4 MiB blocks gets one while another gets 4 MiB of small ones", func(c *Config) { c.ServingBytes = 1 })
	big, small := s.peer("big"), s.peer("small")
	big.slow, small.slow = true, true
	x, y := many("x", 20), many("y", 2000)
	for _, a := range x {
		s.stored[a] = 4 << 20
	}
	s.store(y...)
	big.asks(block(x...))
	small.asks(block(y...))
	var toBig, toSmall int
	for range 100 {
		for _, p := range []*player{big, small} {
			for len(p.flights) > 0 {
				for _, b := range p.flights[0].Blocks {
					if p == big {
						toBig += b.Size
					} else {
						toSmall += b.Size
					}
				}
				p.readsBlocks(true)
			}
		}
		if toBig >= 40<<20 {
			break
		}
	}
	if toBig > 2*toSmall+8<<20 || toSmall > 2*toBig+8<<20 {
		s.fail("big was sent %d MiB and small %d, want about the same", toBig>>20, toSmall>>20)
	}
}

func TestMissing(t *testing.T) {
	s := start(t, "a block that is gone when it is read is as one that we never had")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A, B)
	alice.asks(block(A, B))
	alice.gets("on their way", A, B)
	delete(s.stored, A)
	alice.readsBlocks(true, A)
	alice.isTold("she asked to be told", hasNot_(A))
	alice.reads()
	s.store(A)
	alice.gets("it stands", A)
}

func TestMissingAndBack(t *testing.T) {
	s := start(t, "a block that is gone when it is read, and stored again meanwhile, is served")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A)
	alice.asks(block(A))
	alice.gets("on its way", A)
	s.store(A)
	alice.readsBlocks(true, A)
	alice.gets("again", A)
	alice.isTold("no word")
}

func TestB27StoredWhileLookedUp(t *testing.T) {
	s := start(t, "a block that is stored while it is looked up is not missed")
	alice := s.peer("alice")
	s.watch.event(WantlistIn{Peer: "alice", List: wire.WantList{Entries: []wire.Entry{{Address: A}}}})
	s.e.Step(s.now, WantlistIn{Peer: "alice", List: wire.WantList{Entries: []wire.Entry{{Address: A}}}})
	if a, ok := s.e.Actions()[0].(Lookup); !ok || len(a.Addresses) != 1 {
		s.fail("no lookup")
	}
	s.store(A)
	s.step(Looked{Peer: "alice", Epoch: alice.epoch, Items: []LookedItem{{Address: A}}})
	alice.gets("looked up again, and served", A)
}

func TestStoreThatCannotTell(t *testing.T) {
	s := start(t, "what the store cannot tell of stands, without a word and without asking the store for ever")
	alice := s.peer("alice")
	ev := WantlistIn{Peer: "alice", List: wire.WantList{Entries: []wire.Entry{{Address: A, SendDontHave: true}}}}
	s.watch.event(ev)
	s.e.Step(s.now, ev)
	s.e.Actions()
	s.e.Step(s.now, Looked{Peer: "alice", Epoch: alice.epoch})
	if a := s.e.Actions(); len(a) != 0 {
		s.fail("%v follows, want nothing", a)
	}
	s.store(A)
	alice.gets("it stands", A)
}

func TestSendFailureKeepsAsks(t *testing.T) {
	s := start(t, "blocks that could not be sent are kept, and sent when the peer can be reached again")
	alice := s.peer("alice")
	alice.slow = true
	x := many("x", 40)
	s.store(x...)
	alice.asks(block(x...))
	alice.readsBlocks(false)
	alice.readsBlocks(false)
	alice.deaf()
	s.advance(firstRefresh / 2)
	alice.gets("she is left alone")
	alice.slow = false
	s.advance(maxRefresh)
	alice.gets("everything", x...)
}

func TestLeaverIsForgotten(t *testing.T) {
	s := start(t, "what a peer asked for goes with it")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A)
	alice.asks(block(A), block(B))
	alice.down()
	if st := s.e.Stats(); st.Asks != 0 || st.Flying != 0 {
		s.fail("%d asks and %d bytes are left, want none", st.Asks, st.Flying)
	}
	alice.deaf()
	alice.up()
	s.store(B)
	alice.idle("she asks for nothing now")
}

func TestPeerThatDoesNotRead(t *testing.T) {
	s := start(t, "who asks and never reads our answers costs a bounded amount of memory and no lookups")
	alice := s.peer("alice")
	alice.slow = true
	s.store(A)
	x := many("x", 600)
	for range 200 {
		alice.asks(have(x...), have(A), block(A))
	}
	for range 20 {
		alice.asks(slices.Repeat(have(A), 1000))
	}
	p := s.e.peers["alice"]
	if len(p.presences) > maxPresences || cap(p.presences) > 4*maxPresences {
		s.fail("%d presences wait in room for %d, want %d at most", len(p.presences), cap(p.presences), maxPresences)
	}
	if n := s.e.Stats().Asks; n > 601 {
		s.fail("the ledger holds %d asks, want those for 601 blocks", n)
	}
	alice.slow = false
	for len(alice.sends) > 0 {
		if n := len(alice.sends[0].Presences); n > listEntries {
			s.fail("a message holds %d presences, want %d at most", n, listEntries)
		}
		alice.reads()
	}
}

func TestB37ServeWhileFetching(t *testing.T) {
	s := start(t, "a block that arrives for a getter and is stored goes on to who waits for it, but not back to who sent it")
	alice, bob := s.peer("alice"), s.peer("bob")
	bob.asksQuietly(block(A))
	g := s.get(0, A)
	alice.has(A)
	alice.delivers(A)
	s.gets("ours", g, A)
	bob.gets("not stored yet")
	s.store(A)
	bob.gets("now his", A)
	alice.gets("she sent it")
}

func TestCrowd(t *testing.T) {
	s := start(t, "many peers that ask for the same block are all served, in whichever order they come and go")
	var crowd []*player
	for i := range 40 {
		p := s.peer(fmt.Sprint("p", i))
		crowd = append(crowd, p)
		p.asksQuietly(block(A), have(B))
	}
	for i := range 10 {
		crowd[4*i].down()
		crowd[4*i+1].asks(cancel(A))
	}
	s.store(A, B)
	for i, p := range crowd {
		switch i % 4 {
		case 0:
			p.idle("it has left")
		case 1:
			p.gets("it took A back")
			p.isTold("and asked about B", has_(B))
		default:
			p.gets("A was asked for", A)
			p.isTold("and asked about B", has_(B))
		}
	}
	if st := s.e.Stats(); st.Asks != 0 {
		s.fail("%d asks are left, want none", st.Asks)
	}
}

func TestNoAnswerIsLost(t *testing.T) {
	s := start(t, "when more blocks come at once than there is room for answers, whoever stands for them is told of the rest when it reads again")
	alice := s.peer("alice")
	x := many("x", 12000)
	for part := range slices.Chunk(x, 1024) {
		alice.asksQuietly(have(part...))
	}
	alice.slow = true
	s.store(x...)
	alice.slow = false
	for len(alice.sends) > 0 {
		alice.reads()
	}
	told := map[wire.Address]bool{}
	for _, l := range alice.told {
		told[l.a] = true
	}
	if len(told) != len(x) {
		s.fail("%d blocks were announced, want all %d", len(told), len(x))
	}
	if n := s.e.peers["alice"].asking; n != 0 {
		s.fail("%d wants still stand, want none", n)
	}
}
