package refpeer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestLiesAreLies has a strict client take a dataset from a liar, which it must
// refuse for the right reason, and then from an honest peer.
func TestLiesAreLies(t *testing.T) {
	for _, tc := range []struct {
		lie  Misbehaviour
		kind Kind
		text string
	}{
		{ForgedProof, BadProof, "leads to root"},
		{WrongIndex, BadProof, "proof is of index"},
		{WrongLength, BadProof, "leads to root"},
		{ProofMissing, BadProof, "no proof"},
		{NotHashing, BadBlock, "does not hash"},
	} {
		t.Run(string(tc.lie), func(t *testing.T) {
			client := New(t, PeerTimeout(300*time.Millisecond), RefreshUnit(40*time.Millisecond))
			liar, honest := New(t, Misbehave(tc.lie)), New(t)
			data := content(5 * 64)
			d := honest.AddDataset(data, 64)
			liar.AddDataset(data, 64)
			connect(t, client, liar)

			type result struct {
				blocks [][]byte
				err    error
			}
			got := make(chan result, 1)
			ctx := soon(t)
			go func() {
				blocks, err := client.FetchDataset(ctx, d.Tree, 5)
				got <- result{blocks, err}
			}()
			v, err := client.ExpectViolation(soon(t), tc.kind)
			ok(t, "the lie is seen", err)
			if !strings.Contains(v.Text, tc.text) || v.From != liar.ID() {
				t.Errorf("violation is %s, want one of %s about %q", v, liar.ID(), tc.text)
			}
			if _, held := client.Block(Leaf(d.Tree, 0)); held {
				t.Error("a leaf is stored, want nothing")
			}
			connect(t, client, honest)
			r := <-got
			ok(t, "fetch from the honest one", r.err)
			sameBlocks(t, r.blocks, data)
			if c := client.Counters(); c.Accepted != 5 {
				t.Errorf("counters %+v, want 5 blocks accepted", c)
			}
		})
	}
}

func TestLiesInADatasetOfOneBlock(t *testing.T) {
	for _, lie := range []Misbehaviour{ForgedProof, WrongIndex, WrongLength, ProofMissing} {
		t.Run(string(lie), func(t *testing.T) {
			client, liar := New(t), New(t, Misbehave(lie))
			d := liar.AddDataset(content(10), 10)
			connect(t, client, liar)
			fetching(t, client, d.Leaves()...)
			_, err := client.ExpectViolation(soon(t), BadProof)
			ok(t, "refused", err)
		})
	}
}

func TestLiesAboutPlainBlocks(t *testing.T) {
	for _, lie := range []Misbehaviour{WrongLength, NotHashing} {
		t.Run(string(lie), func(t *testing.T) {
			client, liar := New(t), New(t, Misbehave(lie))
			a, data := anyBlock("plain")
			liar.AddBlock(a.Cid, data)
			connect(t, client, liar)
			fetching(t, client, a)
			_, err := client.ExpectViolation(soon(t), BadBlock)
			ok(t, "refused", err)
		})
	}
}

// TestLenientClientIsFooled shows the hole in the reference that strictness is
// there to avoid.
func TestLenientClientIsFooled(t *testing.T) {
	client, liar := New(t, Lenient()), New(t, Misbehave(ForgedProof))
	data := content(5 * 64)
	d := liar.AddDataset(data, 64)
	connect(t, client, liar)
	blocks, err := client.FetchDataset(soon(t), d.Tree, 5)
	ok(t, "fetch", err)
	if bytes.Equal(bytes.Join(blocks, nil), data) {
		t.Error("got the right data, want what the liar planted")
	}
	behaved(t, client)
}

func TestLenientClientStillWantsAProof(t *testing.T) {
	client, liar := New(t, Lenient()), New(t, Misbehave(ProofMissing))
	d := liar.AddDataset(content(5*64), 64)
	connect(t, client, liar)
	fetching(t, client, d.Leaves()...)
	_, err := client.ExpectViolation(soon(t), BadProof)
	ok(t, "refused", err)
}

func TestUnrequestedPush(t *testing.T) {
	client, pusher := New(t), New(t, Misbehave(UnrequestedPush))
	a, data := anyBlock("asked for")
	b, other := anyBlock("not asked for")
	pusher.AddBlock(a.Cid, data)
	pusher.AddBlock(b.Cid, other)
	d := pusher.AddDataset(content(30*10), 10)
	connect(t, client, pusher)
	got, err := client.Fetch(soon(t), a)
	ok(t, "fetch what was asked for", err)
	if !bytes.Equal(got[0], data) {
		t.Errorf("got %q, want %q", got[0], data)
	}
	_, err = client.ExpectViolation(soon(t), Spurious)
	ok(t, "the push is seen", err)
	for _, x := range append(d.Leaves(), b) {
		if _, held := client.Block(x); held {
			t.Errorf("%s is stored, though nobody asked for it", x)
		}
	}
	push, err := client.Expect(soon(t), func(m Message) bool { return len(m.Deliveries) > 1 })
	ok(t, "the push", err)
	if len(push.Deliveries) != 21 || push.Delivers(a) {
		t.Errorf("pushed %s, want 20 blocks that were not named and one made up", push)
	}
}

// TestViolations sends what would break the reference, and sees it recorded.
func TestViolations(t *testing.T) {
	a, data := anyBlock("violations")
	negative := Want(WantHave, false, a)
	negative.WantList.Entries[0].Priority = -1
	thirdType := Want(2, false, a)
	largeIndex := Want(WantHave, false, Leaf(treeCid([32]byte{1}), 1<<63))
	thirdPresence := Presences(2, a)
	noData := Message{Deliveries: []Delivery{{Cid: a.Cid, Address: a}}}
	otherData := Message{Deliveries: []Delivery{{Cid: a.Cid, Data: []byte("x"), Address: a}}}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		ok(t, "hex", err)
		return b
	}
	for name, tc := range map[string]struct {
		frame []byte
		kind  Kind
		open  bool // the stream survives
	}{
		"negative priority":      {Frame(Encode(negative)), Crash, false},
		"want type 2":            {Frame(Encode(thirdType)), Crash, false},
		"index 2^63":             {Frame(Encode(largeIndex)), Crash, false},
		"presence type 2":        {Frame(Encode(thirdPresence)), Crash, false},
		"delivery without data":  {Frame(Encode(noData)), Crash, false},
		"data under another cid": {Frame(Encode(otherData)), BadBlock, false},
		"group":                  {Frame(unhex("0b0c")), Unreadable, false},
		"frame over 100 MiB":     {unhex("8180c032"), Unreadable, false},
		"padded frame length":    {unhex("8000"), Unreadable, false},
		"unasked don't have":     {Frame(Encode(Presences(DontHave, a))), UnaskedDontHave, true},
		"block nobody asked for": {Frame(Encode(delivery(a, data))), Spurious, true},
	} {
		t.Run(name, func(t *testing.T) {
			script, victim := pair(t)
			ok(t, "send", script.Send(soon(t), victim.ID(), tc.frame))
			v, err := victim.ExpectViolation(soon(t), tc.kind)
			ok(t, "violation", err)
			if vs := victim.Violations(); len(vs) != 1 || v.From != script.ID() || v.Text == "" {
				t.Errorf("violations are %v, want one, by %s, with a text", vs, script.ID())
			}
			if tc.open {
				nothing(t, script, victim, "nothing is answered, and the stream is still read")
				if c := victim.Counters(); c.StreamsAccepted != 1 {
					t.Errorf("%d streams were opened, want the first still in use", c.StreamsAccepted)
				}
				return
			}
			// The stream is closed; once the script has seen that, the next
			// message comes on a new one and is answered: the connection and
			// the peer are still good.
			waitFor(t, "the stream to be closed", func() bool {
				script.mu.Lock()
				defer script.mu.Unlock()
				return script.remotes[victim.ID()].stream == nil
			})
			nothing(t, script, victim, "nothing is answered, and a new stream is read")
		})
	}
}

func TestCutFrame(t *testing.T) {
	script, victim := pair(t)
	ok(t, "send", script.Send(soon(t), victim.ID(), []byte{5, 0x28}))
	script.mu.Lock()
	s := script.remotes[victim.ID()].stream
	script.mu.Unlock()
	ok(t, "close", s.CloseWrite())
	v, err := victim.ExpectViolation(soon(t), Unreadable)
	ok(t, "violation", err)
	if !strings.Contains(v.Text, "after 1 of 5 bytes") {
		t.Errorf("text is %q, want how much came", v.Text)
	}
}

func TestScriptsAreEntitledToAnswers(t *testing.T) {
	script, server := pair(t)
	a, data := anyBlock("entitled")
	missing, _ := anyBlock("missing")
	server.AddBlock(a.Cid, data)
	ask := Want(WantBlock, false, a)
	ask.WantList.Entries = append(ask.WantList.Entries, Entry{Address: missing, Type: WantHave, SendDontHave: true})
	say(t, script, server, ask)
	expect(t, script, "don't have", func(m Message) bool { return m.Says(DontHave, missing) })
	expect(t, script, "block", func(m Message) bool { return m.Delivers(a) })
	behaved(t, script)
}

func TestExpectSaysWhatCameInstead(t *testing.T) {
	script, server := pair(t)
	a, _ := anyBlock("another thing")
	say(t, server, script, Want(WantHave, false, a))
	expect(t, script, "it comes", func(m Message) bool { return m.Wants(WantHave, a) })
	b, _ := anyBlock("yet another thing")
	say(t, server, script, Want(WantHave, false, b))
	waitFor(t, "it to come", func() bool { return script.Counters().Messages == 2 })
	ctx := soonOver(t)
	_, err := script.Expect(ctx, func(m Message) bool { return m.Wants(WantHave, a) })
	if !errors.Is(err, ctx.Err()) || !strings.Contains(err.Error(), b.String()) || strings.Contains(err.Error(), a.String()) {
		t.Errorf("got %v, want an error that names what came and was not taken", err)
	}
}

func TestRecordIsBounded(t *testing.T) {
	script, server := pair(t, RecordBytes(1000))
	a, _ := anyBlock("bounded")
	for range 100 {
		say(t, script, server, Want(WantHave, false, a))
	}
	waitFor(t, "all to come", func() bool { return server.Counters().Messages == 100 })
	total := 0
	for _, rec := range server.Received() {
		total += len(rec.Body)
	}
	if total == 0 || total > 1000 {
		t.Errorf("%d bytes are kept, want some and at most 1000", total)
	}
}
