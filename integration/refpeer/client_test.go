package refpeer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// served is a client and the script that serves it.
func served(t *testing.T, opts ...Option) (client, script *Peer) {
	t.Helper()
	client, script = New(t, opts...), New(t, Scripted())
	connect(t, client, script)
	return client, script
}

// fetching starts a Fetch that ends with the test; the channel gets its error.
func fetching(t *testing.T, p *Peer, as ...Address) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	ctx := soon(t)
	go func() {
		_, err := p.Fetch(ctx, as...)
		done <- err
	}()
	t.Cleanup(func() { p.Close() }) // before goleak looks
	return done
}

func delivery(a Address, data []byte) Message {
	return Message{Deliveries: []Delivery{{Cid: BlockCid(data), Data: data, Address: a}}}
}

func TestDatasetMovesBetweenTwoPeers(t *testing.T) {
	client, server := New(t), New(t)
	data := content(3000*64 - 20)
	d := server.AddDataset(data, 64)
	connect(t, client, server)

	m, err := client.Fetch(soon(t), Block(d.Manifest))
	ok(t, "fetch manifest", err)
	if !bytes.Equal(m[0], d.ManifestData) {
		t.Errorf("manifest is %x, want %x", m[0], d.ManifestData)
	}
	blocks, err := client.FetchDataset(soon(t), d.Tree, len(d.Blocks))
	ok(t, "fetch dataset", err)
	sameBlocks(t, blocks, data)
	behaved(t, client, server)

	c, s := client.Counters(), server.Counters()
	if c.Accepted != 3001 || c.Blocks != 3001 || c.MaxBlocks != 20 {
		t.Errorf("client counts %+v, want each of 3001 blocks once, 20 a message", c)
	}
	if s.MaxEntries != 1024 || s.WantBlocks != 3001 || s.Cancels != 0 || s.AskedToSay != 0 {
		t.Errorf("server counts %+v, want a window of 1024, each block asked for once, no cancels", s)
	}
	if rec := server.Received()[0].Message; !rec.WantList.Full {
		t.Errorf("the first want list is %s, want it full", rec)
	}

	// What was downloaded is served on, with the proofs that came with it.
	third := New(t)
	connect(t, third, client)
	server.Close()
	blocks, err = third.FetchDataset(soon(t), d.Tree, len(d.Blocks))
	ok(t, "fetch from the one that fetched", err)
	sameBlocks(t, blocks, data)
	behaved(t, third, client)
}

func TestDatasetFromTwoServersAtOnce(t *testing.T) {
	client, left, right := New(t, RefreshUnit(40*time.Millisecond)), New(t), New(t)
	data := content(40 * 64)
	d := left.AddDataset(data, 64)
	right.AddDataset(data, 64)
	connect(t, client, left)
	connect(t, client, right)
	blocks, err := client.FetchDataset(soon(t), d.Tree, 40)
	ok(t, "fetch", err)
	sameBlocks(t, blocks, data)
	behaved(t, client, left, right)
	if c := client.Counters(); c.Blocks != 40 {
		t.Errorf("received %d blocks, want each of 40 once", c.Blocks)
	}
}

func TestConversationOfADownload(t *testing.T) {
	client, script := served(t)
	a, data := anyBlock("one")
	b, other := anyBlock("two")
	done := fetching(t, client, a, b)

	m := expect(t, script, "want-have for all that is wanted", func(m Message) bool { return m.Wants(WantHave, a) && m.Wants(WantHave, b) })
	if !m.WantList.Full || m.WantList.Entries[0].Priority != 0 || m.WantList.Entries[0].SendDontHave {
		t.Errorf("got %s, want a full list of plain entries", m)
	}
	say(t, script, client, Presences(Have, a, b))
	m = expect(t, script, "one want-block message", func(m Message) bool { return m.Wants(WantBlock, a) && m.Wants(WantBlock, b) })
	if m.WantList.Full {
		t.Errorf("got %s, want no full list of want-blocks", m)
	}
	say(t, script, client, delivery(a, data))
	say(t, script, client, delivery(b, other))
	ok(t, "fetch", <-done)
	behaved(t, client, script)
}

func TestWantListsAreCutAt1024ButWantBlocksAreNot(t *testing.T) {
	client, script := served(t)
	as := Leaves(treeCid([32]byte{1}), 2100)
	fetching(t, client, as...)
	var asked []Address
	for i, n := range []int{1024, 1024, 52} {
		m := expect(t, script, "want-haves", func(m Message) bool { return len(m.WantList.Entries) > 0 })
		if len(m.WantList.Entries) != n || m.WantList.Full != (i == 0) {
			t.Errorf("list %d has %d entries, full %t; want %d, full on the first only", i, len(m.WantList.Entries), m.WantList.Full, n)
		}
		for _, e := range m.WantList.Entries {
			asked = append(asked, e.Address)
		}
	}
	if !slices.Equal(sorted(asked), sorted(slices.Clone(as))) {
		t.Error("the three lists are not all that was wanted")
	}
	say(t, script, client, Presences(Have, as...))
	expect(t, script, "all want-blocks in one message", func(m Message) bool {
		return len(m.WantList.Entries) == 2100 && m.Wants(WantBlock, as[0])
	})
}

func TestDontHaveIsTakenForHave(t *testing.T) {
	client, script := served(t)
	a, data := anyBlock("trap")
	done := fetching(t, client, a)
	expect(t, script, "want-have", func(m Message) bool { return m.Wants(WantHave, a) })
	say(t, script, client, Presences(DontHave, a))
	expect(t, script, "want-block from the one that has not", func(m Message) bool { return m.Wants(WantBlock, a) })
	v, err := client.ExpectViolation(soon(t), UnaskedDontHave)
	ok(t, "it is noted", err)
	if v.From != script.ID() {
		t.Errorf("violation is of %s, want %s", v.From, script.ID())
	}
	say(t, script, client, delivery(a, data))
	ok(t, "fetch", <-done)
}

func TestPriceOf33BytesIsNoPresence(t *testing.T) {
	client, script := served(t, RefreshUnit(time.Hour))
	a, data := anyBlock("dear")
	b, cheap := anyBlock("cheap")
	done := fetching(t, client, a, b)
	expect(t, script, "want-have", func(m Message) bool { return m.Wants(WantHave, a) })
	m := Presences(Have, a, b)
	m.Presences[0].Price = make([]byte, 33)
	m.Presences[1].Price = []byte{1}
	say(t, script, client, m)
	expect(t, script, "want-block of the other alone", func(m Message) bool { return m.Wants(WantBlock, b) && !m.Wants(WantBlock, a) })
	say(t, script, client, Presences(Have, a))
	expect(t, script, "and of this when it is priced right", func(m Message) bool { return m.Wants(WantBlock, a) })
	say(t, script, client, delivery(a, data))
	say(t, script, client, delivery(b, cheap))
	ok(t, "fetch", <-done)
}

func TestSilenceIsAskedAgainWithTheFullList(t *testing.T) {
	client, script := served(t, RefreshUnit(20*time.Millisecond))
	a, _ := anyBlock("nobody has it")
	fetching(t, client, a)
	for range 4 {
		m := expect(t, script, "want-have, again", func(m Message) bool { return m.Wants(WantHave, a) })
		if !m.WantList.Full {
			t.Errorf("got %s, want a full list", m)
		}
	}
}

func TestBackOff(t *testing.T) {
	client, script := served(t, RefreshUnit(time.Hour))
	a, _ := anyBlock("announced late")
	b, _ := anyBlock("not wanted")
	fetching(t, client, a)
	expect(t, script, "want-have", func(m Message) bool { return m.Wants(WantHave, a) })
	units := func() int {
		client.mu.Lock()
		defer client.mu.Unlock()
		return client.remotes[script.ID()].backOff
	}
	for _, want := range []int{2, 4, 8, 16, 32, 36, 36} {
		say(t, script, client, Presences(Have, b))
		_, err := client.Expect(soon(t), func(m Message) bool { return m.Says(Have, b) })
		ok(t, "presence", err)
		if got := units(); got != want {
			t.Errorf("after a presence of nothing new, %d units to the next list, want %d", got, want)
		}
	}
	say(t, script, client, Presences(Have, a))
	expect(t, script, "want-block", func(m Message) bool { return m.Wants(WantBlock, a) })
	if got := units(); got != 1 {
		t.Errorf("after a presence of something new, %d units to the next list, want 1", got)
	}
}

func TestNewWantsAreSentAlone(t *testing.T) {
	client, script := served(t, RefreshUnit(time.Hour))
	a, _ := anyBlock("first")
	b, _ := anyBlock("second")
	c, _ := anyBlock("third")
	fetching(t, client, a, b)
	expect(t, script, "want-have", func(m Message) bool { return m.Wants(WantHave, a) })
	say(t, script, client, Presences(Have, a)) // an answer, so that the refresh is over
	expect(t, script, "want-block", func(m Message) bool { return m.Wants(WantBlock, a) })
	fetching(t, client, c)
	m := expect(t, script, "delta", func(m Message) bool { return m.Wants(WantHave, c) })
	if m.WantList.Full || len(m.WantList.Entries) != 1 {
		t.Errorf("got %s, want only what is new, not full", m)
	}
}

func TestWantsAreSentInFullOnJoining(t *testing.T) {
	client, script := New(t, RefreshUnit(time.Hour)), New(t, Scripted())
	a, data := anyBlock("wanted before anybody is there")
	done := fetching(t, client, a)
	waitFor(t, "the want", func() bool {
		client.mu.Lock()
		defer client.mu.Unlock()
		return len(client.wants) > 0
	})
	connect(t, client, script)
	m := expect(t, script, "full list", func(m Message) bool { return m.Wants(WantHave, a) })
	if !m.WantList.Full {
		t.Errorf("got %s, want it full", m)
	}
	say(t, script, client, Presences(Have, a))
	expect(t, script, "want-block", func(m Message) bool { return m.Wants(WantBlock, a) })
	say(t, script, client, delivery(a, data))
	ok(t, "fetch", <-done)
}

func TestStallingPeerIsDisconnected(t *testing.T) {
	client := New(t, PeerTimeout(300*time.Millisecond), RefreshUnit(40*time.Millisecond))
	staller, honest := New(t, Misbehave(StallAfterHave)), New(t)
	data := content(10 * 64)
	d := honest.AddDataset(data, 64)
	connect(t, client, staller)
	gone := make(chan struct{})
	staller.Host().Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) { close(gone) }})

	type result struct {
		blocks [][]byte
		err    error
	}
	got := make(chan result, 1)
	ctx := soon(t)
	go func() {
		blocks, err := client.FetchDataset(ctx, d.Tree, 10)
		got <- result{blocks, err}
	}()
	_, err := staller.Expect(soon(t), func(m Message) bool { return m.Wants(WantBlock, Leaf(d.Tree, 9)) })
	ok(t, "the staller captures the requests", err)
	connect(t, client, honest)
	select {
	case <-gone:
	case <-soon(t).Done():
		t.Fatal("the staller is still connected")
	}
	r := <-got
	ok(t, "fetch from the other", r.err)
	sameBlocks(t, r.blocks, data)
	if c := client.Counters(); c.Disconnects != 1 {
		t.Errorf("disconnected %d peers, want the staller", c.Disconnects)
	}
	if c := staller.Counters(); c.BlocksSent != 0 {
		t.Errorf("staller sent %d blocks, want none", c.BlocksSent)
	}
}

func TestAnyBlockCountsAsActivity(t *testing.T) {
	client, script := served(t)
	lastActive := func() time.Time {
		client.mu.Lock()
		defer client.mu.Unlock()
		return client.remotes[script.ID()].active
	}
	if !lastActive().IsZero() {
		t.Fatal("the remote was active before it did anything")
	}
	a, data := anyBlock("spurious")
	say(t, script, client, delivery(a, data))
	_, err := client.ExpectViolation(soon(t), Spurious)
	ok(t, "violation", err)
	if lastActive().IsZero() {
		t.Error("a block that nobody asked for did not count, want it to keep the remote alive, as in the reference")
	}
}

func TestRequestsMoveOnWhenAPeerLeaves(t *testing.T) {
	client := New(t, RefreshUnit(time.Hour))
	one, two := New(t, Scripted()), New(t, Scripted())
	connect(t, client, one)
	connect(t, client, two)
	a, data := anyBlock("moves on")
	done := fetching(t, client, a)
	expect(t, one, "want-have to one", func(m Message) bool { return m.Wants(WantHave, a) })
	expect(t, two, "want-have to two", func(m Message) bool { return m.Wants(WantHave, a) })
	say(t, one, client, Presences(Have, a))
	expect(t, one, "the first announcer is asked", func(m Message) bool { return m.Wants(WantBlock, a) })
	say(t, two, client, Presences(Have, a))
	ok(t, "leave", client.Disconnect(one.ID()))
	expect(t, two, "then the other", func(m Message) bool { return m.Wants(WantBlock, a) })
	say(t, two, client, delivery(a, data))
	ok(t, "fetch", <-done)
	behaved(t, client, one, two)
}

func TestBlockFoundElsewhereIsCancelled(t *testing.T) {
	client, script := served(t)
	a, data := anyBlock("found elsewhere")
	done := fetching(t, client, a)
	expect(t, script, "want-have", func(m Message) bool { return m.Wants(WantHave, a) })
	say(t, script, client, Presences(Have, a))
	expect(t, script, "want-block", func(m Message) bool { return m.Wants(WantBlock, a) })
	client.AddBlock(a.Cid, data)
	ok(t, "fetch ends with the upload", <-done)
	m := expect(t, script, "cancellation", func(m Message) bool { return m.Cancels(a) })
	if e := m.WantList.Entries[0]; e.Type != WantHave || m.WantList.Full {
		t.Errorf("got %+v, full %t; want type have, not full", e, m.WantList.Full)
	}
	say(t, script, client, delivery(a, data))
	_, err := client.Expect(soon(t), func(m Message) bool { return m.Delivers(a) })
	ok(t, "the block that was on its way", err)
	behaved(t, client)
}

func TestAbandonedFetchSaysNothing(t *testing.T) {
	client, script := served(t, RefreshUnit(time.Hour))
	a, data := anyBlock("given up")
	ctx, cancel := context.WithCancel(soon(t))
	done := make(chan error, 1)
	go func() {
		_, err := client.Fetch(ctx, a)
		done <- err
	}()
	expect(t, script, "want-have", func(m Message) bool { return m.Wants(WantHave, a) })
	say(t, script, client, Presences(Have, a))
	expect(t, script, "want-block", func(m Message) bool { return m.Wants(WantBlock, a) })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("fetch gives %v, want %v", err, context.Canceled)
	}
	nothing(t, script, client, "no cancellation is sent")
	say(t, script, client, delivery(a, data))
	_, err := client.Expect(soon(t), func(m Message) bool { return m.Delivers(a) })
	ok(t, "late block", err)
	nothing(t, script, client, "and the late block is not stored")
	if c := client.Counters(); c.NotPending != 1 || c.Spurious != 0 {
		t.Errorf("counters %+v, want one block that is no longer pending", c)
	}
	if _, held := client.Block(a); held {
		t.Error("the late block is held")
	}
}
