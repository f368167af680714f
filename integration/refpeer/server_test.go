package refpeer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/multiformats/go-multihash"
)

// pair is a script and the server that it talks to.
func pair(t *testing.T, opts ...Option) (script, server *Peer) {
	t.Helper()
	script, server = New(t, Scripted()), New(t, opts...)
	connect(t, script, server)
	return script, server
}

// anyBlock makes a block that no other test has.
func anyBlock(text string) (Address, []byte) {
	data := []byte(text)
	return Block(BlockCid(data)), data
}

// TestAnswersAreWhatTheReferenceWrites replays recorded messages to a server
// and compares what comes back byte for byte with recorded answers.
func TestAnswersAreWhatTheReferenceWrites(t *testing.T) {
	script, server := pair(t)
	ctx := soon(t)
	var blocks [][]byte
	for i := range 5 {
		blocks = append(blocks, fmt.Appendf(nil, "block %d", i))
	}
	d := server.AddLeaves(blocks...)
	hello := []byte("hello world")
	server.AddBlock(BlockCid(hello), hello)

	body := func(match func(Message) bool) string {
		m := expect(t, script, "an answer", match)
		for _, rec := range script.Received() {
			if rec.Message.String() == m.String() {
				return fmt.Sprintf("%x", rec.Body)
			}
		}
		t.Fatalf("%s is not on record", m)
		return ""
	}
	recorded := func(name string) string {
		frame, err := Vector(name)
		ok(t, "vector", err)
		_, rest, err := varint(frame)
		ok(t, "vector", err)
		return fmt.Sprintf("%x", rest)
	}

	say(t, script, server, Want(WantBlock, false, Leaf(d.Tree, 2)))
	if got, want := body(func(m Message) bool { return m.Delivers(Leaf(d.Tree, 2)) }), recorded("delivery-leaf"); got != want {
		t.Errorf("leaf is delivered as\n%s, want\n%s", got, want)
	}
	ok(t, "replay", script.Replay(ctx, server.ID(), "want-block-plain"))
	if got, want := body(func(m Message) bool { return m.Delivers(Block(BlockCid(hello))) }), recorded("delivery-plain"); got != want {
		t.Errorf("block is delivered as\n%s, want\n%s", got, want)
	}
	nothing(t, script, server, "the second block of that list is not held: silence")
	behaved(t, script, server)
}

func TestWantHave(t *testing.T) {
	script, server := pair(t)
	a, data := anyBlock("held")
	server.AddBlock(a.Cid, data)
	lacking, _ := anyBlock("not held")

	say(t, script, server, Want(WantHave, true, lacking, a))
	m := expect(t, script, "presence of what is held", func(m Message) bool { return m.Says(Have, a) })
	if len(m.Presences) != 1 || len(m.Presences[0].Price) != 32 {
		t.Errorf("got %v with price %x, want one presence, priced in 32 bytes", m, m.Presences[0].Price)
	}
	nothing(t, script, server, "and silence about what is not")

	ask := Want(WantHave, false, lacking)
	ask.WantList.Entries[0].SendDontHave = true
	say(t, script, server, ask)
	expect(t, script, "DONT_HAVE where the entry asks for it", func(m Message) bool { return m.Says(DontHave, lacking) })

	empty := Block(emptyBlock)
	say(t, script, server, Want(WantHave, false, empty))
	expect(t, script, "the empty block is always there", func(m Message) bool { return m.Says(Have, empty) })
	say(t, script, server, Want(WantBlock, false, empty))
	m = expect(t, script, "and is delivered", func(m Message) bool { return m.Delivers(empty) })
	if d := m.Deliveries[0]; d.Data == nil || len(d.Data) != 0 {
		t.Errorf("empty block has data %v, want none, in a field that is there", d.Data)
	}
	say(t, script, server, Message{WantList: WantList{Entries: []Entry{{Type: WantHave}}}})
	nothing(t, script, server, "an entry without address names nothing that is held")
	behaved(t, script, server)
}

func TestManyWantHaves(t *testing.T) {
	script, server := pair(t)
	var all []Address
	for i := range 2100 {
		a, data := anyBlock(fmt.Sprint("many ", i))
		server.AddBlock(a.Cid, data)
		all = append(all, a)
	}
	say(t, script, server, Want(WantHave, true, all...))
	for _, want := range []int{1024, 1024, 52} {
		m := expect(t, script, "presences", func(m Message) bool { return len(m.Presences) > 0 })
		if len(m.Presences) != want {
			t.Errorf("got %d presences in a message, want %d", len(m.Presences), want)
		}
	}
	behaved(t, script, server)
}

func TestStandingWant(t *testing.T) {
	script, server := pair(t)
	a, data := anyBlock("comes later")
	b, _ := anyBlock("never wanted any more")

	ask := Want(WantBlock, false, a, b)
	ask.WantList.Entries[0].SendDontHave = true
	say(t, script, server, ask)
	nothing(t, script, server, "want-block of what is missing: silence, whatever the flag says")
	say(t, script, server, Want(WantHave, false, a))
	say(t, script, server, Want(WantHave, true))
	nothing(t, script, server, "want-have of what is wanted already: no answer")

	say(t, script, server, Cancel(b))
	say(t, script, server, Want(WantHave, false, b))
	nothing(t, script, server, "b is cancelled, and not there")
	server.AddBlock(b.Cid, []byte("never wanted any more"))
	server.AddBlock(a.Cid, data)
	expect(t, script, "a comes when it is there; that the list was full since then changed nothing",
		func(m Message) bool { return m.Delivers(a) && !m.Delivers(b) })
	nothing(t, script, server, "once")
	say(t, script, server, Want(WantHave, false, b))
	expect(t, script, "b was cancelled, so a want-have is answered again", func(m Message) bool { return m.Says(Have, b) })

	say(t, script, server, Want(WantBlock, false, a))
	expect(t, script, "what was delivered is delivered again when asked again", func(m Message) bool { return m.Delivers(a) })
	both := Want(WantBlock, false, a)
	both.WantList.Entries = append(both.WantList.Entries, Cancel(a).WantList.Entries...)
	say(t, script, server, both)
	nothing(t, script, server, "a cancellation in the same list stops the delivery")
	behaved(t, script, server)
}

func TestUploadDoesNotServeStandingWantsOfLeaves(t *testing.T) {
	script, server := pair(t)
	data := content(100)
	same := New(t).AddDataset(data, 50) // only to learn the names
	leaf, block := Leaf(same.Tree, 1), Block(same.Blocks[0])
	say(t, script, server, Want(WantBlock, false, leaf))
	nothing(t, script, server, "nothing is there yet")

	d := server.AddDataset(data, 50)
	if d.Tree != same.Tree || d.Manifest != same.Manifest {
		t.Fatalf("dataset is %s of %s, want %s of %s as in the other peer", d.Manifest, d.Tree, same.Manifest, same.Tree)
	}
	server.mu.Lock()
	r := server.remotes[script.ID()]
	if !r.wanted[leaf] || r.sending[leaf] {
		t.Error("the leaf is on its way after the upload, want it to stand until the remote is heard again")
	}
	server.mu.Unlock()

	say(t, script, server, Want(WantHave, false, leaf))
	say(t, script, server, Want(WantBlock, false, block))
	expect(t, script, "when it next asks for a block, all goes out", func(m Message) bool { return m.Delivers(leaf) && m.Delivers(block) })
	nothing(t, script, server, "want-have of what is held and wanted: no answer")
	behaved(t, script, server)
}

func TestTwentyBlocksAMessageInAnyOrder(t *testing.T) {
	order := func(seed uint64) (got []Address) {
		script, server := pair(t, Seed(seed))
		d := server.AddDataset(content(50*10), 10)
		say(t, script, server, Want(WantBlock, false, d.Leaves()...))
		for _, want := range []int{20, 20, 10} {
			m := expect(t, script, "blocks", func(m Message) bool { return len(m.Deliveries) > 0 })
			if len(m.Deliveries) != want {
				t.Errorf("got %d blocks in a message, want %d", len(m.Deliveries), want)
			}
			for _, dl := range m.Deliveries {
				got = append(got, dl.Address)
			}
		}
		if !slices.Equal(sorted(slices.Clone(got)), sorted(d.Leaves())) {
			t.Errorf("got %v, want each of 50 leaves once", got)
		}
		if slices.Equal(got, d.Leaves()) {
			t.Error("leaves came in the order of their index, want any other")
		}
		behaved(t, script, server)
		return got
	}
	first, again, other := order(1), order(1), order(2)
	if !slices.Equal(first, again) {
		t.Error("two runs with one seed have different orders")
	}
	if slices.Equal(first, other) {
		t.Error("two seeds have one order")
	}
}

func TestAnswersComeOnTheServersOwnStream(t *testing.T) {
	server := New(t)
	a, data := anyBlock("own stream")
	server.AddBlock(a.Cid, data)
	key, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	ok(t, "key", err)
	h, err := libp2p.New(libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.Muxer(mplex.ID, mplex.DefaultTransport), libp2p.DisableRelay())
	ok(t, "host", err)
	defer h.Close()
	opened := make(chan network.Stream, 1)
	h.SetStreamHandler(ProtocolID, func(s network.Stream) { opened <- s })
	ok(t, "connect", h.Connect(soon(t), server.AddrInfo()))
	_, err = server.joined(soon(t), h.ID())
	ok(t, "join", err)

	ours, err := h.NewStream(soon(t), server.ID(), ProtocolID)
	ok(t, "open stream", err)
	_, err = ours.Write(Frame(Encode(Want(WantHave, false, a))))
	ok(t, "write", err)
	var theirs network.Stream
	select {
	case theirs = <-opened:
	case <-soon(t).Done():
		t.Fatal("the server opened no stream")
	}
	buf := make([]byte, 16)
	n, err := theirs.Read(buf)
	ok(t, "read the answer on the server's stream", err)
	if n == 0 {
		t.Error("read nothing")
	}
	agent, err := h.Peerstore().Get(server.ID(), "AgentVersion")
	ok(t, "identify", err)
	if agent != "Codex" {
		t.Errorf("agent is %q, want Codex", agent)
	}

	// The server reads what comes on its own stream as well.
	_, err = theirs.Write(Frame(Encode(Want(WantHave, false, Block(emptyBlock)))))
	ok(t, "write on the server's stream", err)
	_, err = server.Expect(soon(t), func(m Message) bool { return m.Wants(WantHave, Block(emptyBlock)) })
	ok(t, "be heard", err)
	if c := server.Counters(); c.StreamsAccepted != 1 || c.StreamsOpened != 1 {
		t.Errorf("streams: accepted %d, opened %d, want one each", c.StreamsAccepted, c.StreamsOpened)
	}
}

func TestWhoCannotConnect(t *testing.T) {
	secp, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	ok(t, "key", err)
	ed, _, err := crypto.GenerateEd25519Key(rand.Reader)
	ok(t, "key", err)
	rsa, _, err := crypto.GenerateRSAKeyPair(2048, rand.Reader)
	ok(t, "key", err)
	onlyMplex := libp2p.Muxer(mplex.ID, mplex.DefaultTransport)
	both := libp2p.ChainOptions(libp2p.Muxer(yamux.ID, yamux.DefaultTransport), onlyMplex)
	for name, tc := range map[string]struct {
		key  crypto.PrivKey
		opt  libp2p.Option
		want bool
	}{
		"secp256k1 and mplex":           {secp, onlyMplex, true},
		"secp256k1, yamux before mplex": {secp, both, true},
		"secp256k1 and yamux only":      {secp, libp2p.Muxer(yamux.ID, yamux.DefaultTransport), false},
		"Ed25519":                       {ed, onlyMplex, false},
		"RSA":                           {rsa, onlyMplex, false},
	} {
		t.Run(name, func(t *testing.T) {
			server := New(t)
			h, err := libp2p.New(libp2p.Identity(tc.key), libp2p.NoListenAddrs, tc.opt, libp2p.DisableRelay())
			ok(t, "host", err)
			defer h.Close()
			ctx, cancel := context.WithTimeout(soon(t), soonRefused)
			defer cancel()
			err = h.Connect(ctx, server.AddrInfo())
			if !tc.want {
				// The refusal may come after the dialer's side of the handshake.
				if err == nil {
					_, err = h.NewStream(network.WithNoDial(ctx, "test"), server.ID(), ProtocolID)
				}
				if err == nil {
					t.Error("it could connect, want a refusal")
				}
				return
			}
			ok(t, "connect", err)
			_, err = server.joined(soon(t), h.ID())
			ok(t, "join", err)
		})
	}
}

func TestPlainCidsOfManyKinds(t *testing.T) {
	client, server := New(t), New(t)
	data := []byte("a block of many names")
	hash, err := multihash.Sum(data, multihash.SHA2_256, -1)
	ok(t, "hash", err)
	var as []Address
	for _, c := range []cid.Cid{
		cid.NewCidV1(cid.Raw, hash), cid.NewCidV0(hash), cid.NewCidV1(cid.DagProtobuf, hash), BlockCid(data), mustSum(CodecManifest, data),
	} {
		server.AddBlock(c, data)
		as = append(as, Block(c))
	}
	connect(t, client, server)
	got, err := client.Fetch(soon(t), as...)
	ok(t, "fetch", err)
	for i, b := range got {
		if string(b) != string(data) {
			t.Errorf("%s is %q, want %q", as[i], b, data)
		}
	}
	behaved(t, client, server)
}

func TestUnknownPeersAreNotHeard(t *testing.T) {
	server := New(t)
	a, data := anyBlock("for nobody")
	server.AddBlock(a.Cid, data)
	stranger, err := peer.Decode("16Uiu2HAmEWQnHq2jLKJypwVnVoQeFCULuyop6atvq2eWjYSUjzNi")
	ok(t, "peer id", err)
	if !server.receive(stranger, Encode(Want(WantBlock, false, a))) {
		t.Error("the stream of a stranger is ended, want it ignored")
	}
	server.receive(stranger, Encode(Message{Deliveries: []Delivery{{Cid: a.Cid, Data: data, Address: a}}}))
	if c := server.Counters(); c.FramesSent != 0 || c.BlocksSent != 0 || c.Spurious != 1 {
		t.Errorf("counters are %+v, want nothing sent and its block spurious", c)
	}
}

func TestAHundredStreams(t *testing.T) {
	script, server := pair(t)
	ctx := network.WithNoDial(soon(t), "test")
	for i := range maxInbound {
		s, err := script.Host().NewStream(ctx, server.ID(), ProtocolID)
		ok(t, fmt.Sprint("stream ", i), err)
		_, err = s.Write([]byte{0}) // completes the negotiation; an empty message
		ok(t, "write", err)
	}
	for server.Counters().Messages < maxInbound {
		_, err := server.Expect(ctx, func(Message) bool { return true })
		ok(t, "empty messages are harmless", err)
	}
	s, err := script.Host().NewStream(ctx, server.ID(), ProtocolID)
	ok(t, "one more stream", err)
	_, err = s.Write([]byte{0})
	ok(t, "write", err)
	deadline, _ := ctx.Deadline()
	ok(t, "set deadline", s.SetReadDeadline(deadline))
	if n, err := io.ReadFull(s, make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes of the stream, and %v; want it ended at once", n, err)
	}
	_, err = server.ExpectViolation(ctx, TooManyStreams)
	ok(t, "violation", err)
}
