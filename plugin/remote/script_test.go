package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/exchange/exchangetest"
	"github.com/codexchange/codexchange/plugin/pb"
)

// A scripted is a plugin that is played by the test: it sees every command, and
// writes results by hand.
type scripted struct {
	pb.UnimplementedExchangeServer
	testing.TB
	commands chan *pb.Command
	stop     chan struct{}
	results  net.Conn
	ended    <-chan error // of Client.Run
	end      func()
}

func (s *scripted) Run(ctx context.Context, _ *pb.RunRequest) (*pb.RunReply, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// read takes commands until there are no more.
func (s *scripted) read() {
	commands := newCommandReader(s.results)
	for {
		m, err := commands.next()
		if err != nil {
			return
		}
		select {
		case s.commands <- m:
		case <-s.stop:
			return
		}
	}
}

func script(t testing.TB, c *Client) *scripted {
	t.Helper()
	return scriptShared(t, c, Shared{})
}

// scriptShared is script with memory, which the plugin has mapped.
func scriptShared(t testing.TB, c *Client, shared Shared) *scripted {
	t.Helper()
	host, far := socketPair(t)
	s := &scripted{TB: t, commands: make(chan *pb.Command), stop: make(chan struct{}), results: far}
	rpc, tear := connect(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = c.Run(ctx, rpc, &pb.StartReply{Outbound: shared.Outbound != nil, Inbound: shared.Inbound != nil}, host, shared, nil)
	}()
	s.ended = later(func() error { <-done; return err })
	read := make(chan struct{})
	go func() { defer close(read); s.read() }()
	stopped := false
	s.end = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		<-done
		far.Close()
		close(s.stop)
		<-read
		tear()
	}
	t.Cleanup(s.end)
	return s
}

func (s *scripted) next(why string) *pb.Command {
	s.Helper()
	return take(s, why, s.commands)
}

func (s *scripted) write(head *pb.Result, payload ...byte) {
	s.Helper()
	b, err := appendHead(nil, head)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := s.results.Write(append(b, payload...)); err != nil {
		s.Fatal(err)
	}
}

func (s *scripted) block(request uint64, b blocks.Block) {
	s.Helper()
	s.write(&pb.Result{Request: request, What: &pb.Result_Block{Block: &pb.BlockResult{Cid: b.Cid().Bytes(), Size: uint64(len(b.RawData()))}}}, b.RawData()...)
}

func (s *scripted) held(request uint64, b blocks.Block) {
	s.Helper()
	s.write(&pb.Result{Request: request, What: &pb.Result_Held{Held: &pb.BlockResult{Cid: b.Cid().Bytes(), Size: uint64(len(b.RawData()))}}})
}

func (s *scripted) done(request uint64, err error) {
	s.Helper()
	s.write(&pb.Result{Request: request, What: &pb.Result_Done{Done: &pb.DoneResult{Error: pb.FromError(err)}}})
}

// getting starts a GetBlock.
func getting(t testing.TB, c *Client, b blocks.Block) <-chan error {
	return later(func() error {
		got, err := c.GetBlock(t.Context(), b.Cid())
		if err == nil && string(got.RawData()) != string(b.RawData()) {
			err = fmt.Errorf("got %d other bytes, want %d", len(got.RawData()), len(b.RawData()))
		}
		return err
	})
}

// TestOrder shows in which order a plugin that was absent hears of things: what
// was stored, then requests in the order in which they were made; and that it
// hears nothing of requests that have ended meanwhile.
func TestOrder(t *testing.T) {
	list := makeBlocks(10, 4, 100)
	c := newClient(t, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	for _, x := range []struct {
		ctx  context.Context
		list []blocks.Block
	}{{t.Context(), list[:2]}, {ctx, list[:3]}, {t.Context(), list[2:]}} {
		if _, err := c.GetBlocks(x.ctx, keysOf(x.list)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	eventually(t, "the second has ended", func() bool { return c.Pending() == 2 })
	c.NotifyNewBlocks(t.Context(), list[3])

	s := script(t, c)
	if m := s.next("stored first").GetStored(); len(m.GetBlocks()) != 1 || m.Blocks[0].Size != 100 {
		t.Errorf("got %v, want one stored block of 100 bytes", m)
	}
	if m := s.next("the first request").GetWant(); m.GetRequest() != 1 || len(m.GetCids()) != 2 || m.GetCredit() != DefaultWindow || m.GetSingle() {
		t.Errorf("got %v, want request 1 for two blocks", m)
	}
	if m := s.next("the third request").GetWant(); m.GetRequest() != 2 || len(m.GetCids()) != 1 {
		t.Errorf("got %v, want request 2 for one block, for the other is there", m)
	}
}

// TestSessionsAreNamedAndEnded shows that the plugin knows of a session as long as
// it has requests, or somebody holds it, and that its end comes after that of its
// requests.
func TestSessionsAreNamedAndEnded(t *testing.T) {
	list := makeBlocks(11, 2, 100)
	c := newClient(t, ClientOptions{})
	s := script(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	session := c.NewSession(ctx)
	if _, err := session.GetBlocks(t.Context(), keysOf(list)); err != nil {
		t.Fatal(err)
	}
	m := s.next("a request of the session").GetWant()
	cancel()
	if got := s.next("its end").GetCancel().GetRequest(); got != m.GetRequest() {
		t.Errorf("cancel of request %d, want %d", got, m.GetRequest())
	}
	if got := s.next("the end of the session").GetEndSession().GetSession(); got != m.GetSession() || got == 0 {
		t.Errorf("end of session %d, want %d", got, m.GetSession())
	}
	if _, err := session.GetBlock(t.Context(), list[0].Cid()); !errors.Is(err, context.Canceled) {
		t.Errorf("GetBlock of a session that has ended: got %v, want %v", err, context.Canceled)
	}

	forgotten := c.NewSession(context.Background())
	one := later(func() error { _, err := forgotten.GetBlock(context.Background(), list[0].Cid()); return err })
	m = s.next("a request of a session without end").GetWant()
	s.block(m.GetRequest(), list[0])
	if err := wait(t, "the block", one); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(forgotten)
	forgotten = nil
	for ended := false; !ended; {
		runtime.GC()
		select {
		case m := <-s.commands:
			if ended = m.GetEndSession().GetSession() != 0; !ended {
				t.Fatalf("got %v, want the end of a session that nobody holds", m)
			}
		default:
		}
	}
}

// TestWhatTheNextPluginIsTold shows that a request goes to the next plugin with what
// is missing, its session, and the credit that its caller leaves: blocks that
// wait for the caller count.
func TestWhatTheNextPluginIsTold(t *testing.T) {
	list := makeBlocks(27, 4, 3000)
	c := newClient(t, ClientOptions{Window: 8192})
	session := c.NewSession(t.Context())
	ch, err := session.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	s := script(t, c)
	first := s.next("the request").GetWant()
	if len(first.GetCids()) != 4 || first.GetCredit() != 8192 || first.GetSession() == 0 {
		t.Errorf("the first plugin got %v, want four blocks, credit of 8192, a session", first)
	}
	s.block(first.GetRequest(), list[1])
	eventually(t, "a block waits for the caller", func() bool { return c.Counters().Results == 1 })
	s.end()
	c.check(t, 0)

	s = script(t, c)
	second := s.next("the request again").GetWant()
	if got, want := second.GetCids(), [][]byte{list[0].Cid().Bytes(), list[2].Cid().Bytes(), list[3].Cid().Bytes()}; !reflect.DeepEqual(got, want) {
		t.Errorf("asked for %x, want %x", got, want)
	}
	if second.GetCredit() != 8192-cost3000 || second.GetSession() != first.GetSession() {
		t.Errorf("the second plugin got credit of %d and session %d, want %d and %d", second.GetCredit(), second.GetSession(), 8192-cost3000, first.GetSession())
	}
	n := second.GetRequest()
	s.block(n, list[0])
	s.block(n, list[2]) // with 144 bytes of credit
	eventually(t, "three blocks wait", func() bool { return c.Counters().Results == 3 })
	s.end()
	c.check(t, 0)

	s = script(t, c)
	third := s.next("the request again").GetWant()
	if third.GetCredit() != 0 || len(third.GetCids()) != 1 {
		t.Errorf("the third plugin got %v, want one block without credit", third)
	}
	left := missing(list)
	for range 3 {
		delete(left, take(t, "what waits", ch).Cid())
	}
	for credit := uint64(0); credit < 8192; {
		credit += s.next("what the caller takes is given back").GetCredit().GetBytes()
		if credit > 8192 {
			t.Errorf("credit is %d, want no more than the window of 8192", credit)
		}
	}
	s.block(third.GetRequest(), list[3])
	collect(t, "the last", ch, left)
	if len(left) != 0 {
		t.Errorf("%d blocks are missing", len(left))
	}
}

const cost3000 = 3000 + ResultCost

// TestCreditIsGivenBack shows that the plugin is given credit as the caller takes
// blocks, and for results that nobody waits for any more.
func TestCreditIsGivenBack(t *testing.T) {
	list := makeBlocks(12, 3, 3000)
	c := newClient(t, ClientOptions{Window: 8192})
	s := script(t, c)
	ch, err := c.GetBlocks(t.Context(), keysOf(list))
	if err != nil {
		t.Fatal(err)
	}
	n := s.next("the request").GetWant().GetRequest()
	credit := func(why string) {
		t.Helper()
		if m := s.next(why).GetCredit(); m.GetRequest() != n || m.GetBytes() != 3000+ResultCost {
			t.Errorf("%s: got %v, want credit of %d for request %d", why, m, 3000+ResultCost, n)
		}
	}
	s.block(n, list[0])
	take(t, "the block", ch)
	credit("it was taken")
	s.block(n, list[0])
	credit("nobody waits for it any more")
	if got := c.Counters(); got.Skipped != 1 || got.SkippedBytes != 3000 {
		t.Errorf("got %+v, want one result of 3000 bytes skipped", got)
	}
}

// TestLateResultsAreSkipped shows that what comes for a request that has ended,
// or never was, is passed over, and what comes next is understood.
func TestLateResultsAreSkipped(t *testing.T) {
	list := makeBlocks(13, 3, 50_000)
	c := newClient(t, ClientOptions{})
	s := script(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	gone := later(func() error { _, err := c.GetBlock(ctx, list[0].Cid()); return err })
	n := s.next("a request").GetWant().GetRequest()
	cancel()
	if err := wait(t, "it was cancelled", gone); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	s.next("the cancel")
	one := getting(t, c, list[1])
	m := s.next("another request").GetWant().GetRequest()
	s.block(n, list[0])
	s.done(n, nil)
	s.block(n+70, list[0])
	s.done(n+70, nil)
	s.block(m, list[2]) // another one than it asked for
	s.block(m, list[1])
	if err := wait(t, "the other request", one); err != nil {
		t.Error(err)
	}
	if got := c.Counters(); got.Results != 1 || got.Skipped != 3 || got.SkippedBytes != 150_000 {
		t.Errorf("got %+v, want 1 result and 3 of 150,000 bytes skipped", got)
	}
}

// TestHowThePluginEndsRequests shows that its error reaches GetBlock as it was, and
// that an end without a word is an error too.
func TestHowThePluginEndsRequests(t *testing.T) {
	b := makeBlocks(14, 1, 100)[0]
	c := newClient(t, ClientOptions{})
	s := script(t, c)
	for _, said := range []error{errs.E(errs.BadProof, errs.Peer, "verify", "leaf 7", nil), nil} {
		one := getting(t, c, b)
		s.done(s.next("a request").GetWant().GetRequest(), said)
		err := wait(t, "it has ended", one)
		if err == nil || said != nil && (!errors.Is(err, errs.BadProof) || err.Error() != said.Error()) {
			t.Errorf("got %v, want %v", err, said)
		}
		many, err := c.GetBlocks(t.Context(), []cid.Cid{b.Cid()})
		if err != nil {
			t.Fatal(err)
		}
		s.done(s.next("a request").GetWant().GetRequest(), said)
		collect(t, "it has ended", many, nil)
	}
}

// TestHeld shows what becomes of a block that the plugin names instead of sending:
// it is read from the store; if it has gone from there, the plugin is asked again;
// if the store fails, the request fails; and nobody goes round for ever.
func TestHeld(t *testing.T) {
	list := makeBlocks(15, 3, 1000)
	store := exchangetest.NewBlocks(list[0])
	broken := errors.New("disk on fire")
	c := newClient(t, ClientOptions{Held: func(ctx context.Context, k cid.Cid) (blocks.Block, error) {
		if k.Equals(list[2].Cid()) {
			return nil, broken
		}
		return store.Get(ctx, k)
	}})
	s := script(t, c)

	one := getting(t, c, list[0])
	s.held(s.next("a request").GetWant().GetRequest(), list[0])
	if err := wait(t, "it is in the store", one); err != nil {
		t.Error(err)
	}

	many, err := c.GetBlocks(t.Context(), keysOf(list[:2]))
	if err != nil {
		t.Fatal(err)
	}
	n := s.next("a request for two").GetWant().GetRequest()
	s.block(n, list[0])
	left := missing(list[:2])
	delete(left, take(t, "the one that is there", many).Cid())
	s.held(n, list[1])
	s.done(n, nil)
	m := s.next("the other is asked for again").GetWant()
	if m.GetRequest() == n || len(m.GetCids()) != 1 {
		t.Errorf("got %v, want another request for one block", m)
	}
	s.block(m.GetRequest(), list[1])
	collect(t, "and comes", many, left)
	if len(left) != 0 {
		t.Errorf("%d blocks are missing", len(left))
	}

	one = getting(t, c, list[2])
	s.held(s.next("a request").GetWant().GetRequest(), list[2])
	if err := wait(t, "the store fails", one); !errors.Is(err, broken) || !errors.Is(err, errs.Storage) {
		t.Errorf("got %v, want %v of kind %v", err, broken, errs.Storage)
	}

	one = getting(t, c, list[1])
	for range maxAgain + 1 {
		s.held(s.next("a request").GetWant().GetRequest(), list[1])
	}
	if err := wait(t, "it said so too often", one); !errors.Is(err, errs.NotFound) {
		t.Errorf("got %v, want %v", err, errs.NotFound)
	}
}

// TestHostileFrames shows how Run ends when the plugin breaks the contract: with
// an error that says what and where, and the requests waiting for the next one.
func TestHostileFrames(t *testing.T) {
	list := makeBlocks(16, 2, 3000)
	frame := func(head []byte, payload ...byte) []byte {
		return append(append([]byte{byte(len(head)), byte(len(head) >> 8), byte(len(head) >> 16), 0}, head...), payload...)
	}
	result := func(b *pb.BlockResult) []byte {
		head, err := proto.Marshal(&pb.Result{Request: 1, What: &pb.Result_Block{Block: b}})
		if err != nil {
			t.Fatal(err)
		}
		return frame(head)
	}
	good := func(size uint64) *pb.BlockResult { return &pb.BlockResult{Cid: list[0].Cid().Bytes(), Size: size} }
	for name, tc := range map[string]struct {
		bytes []byte
		kind  errs.Kind
		text  string
	}{
		"a long head":     {[]byte{1, 0, 1, 0}, errs.Malformed, "read results frame 1: head is 65537 bytes, want at most 65536"},
		"a longer head":   {[]byte{255, 255, 255, 255}, errs.Malformed, "read results frame 1: head is 4294967295 bytes, want at most 65536"},
		"not a message":   {frame([]byte{0xff}), errs.Malformed, ""},
		"no cid":          {result(&pb.BlockResult{Size: 7}), errs.Malformed, "read results frame 1: cid: is missing"},
		"half a cid":      {result(&pb.BlockResult{Cid: list[0].Cid().Bytes()[:9]}), errs.Malformed, ""},
		"a long cid":      {result(&pb.BlockResult{Cid: make([]byte, 513)}), errs.Malformed, "read results frame 1: cid: is 513 bytes, want at most 512"},
		"half a root":     {result(&pb.BlockResult{Cid: list[0].Cid().Bytes(), Root: []byte{1}}), errs.Malformed, ""},
		"a large payload": {result(good(MaxBlock + 1)), errs.Malformed, "read results frame 1: payload is 104857601 bytes, want at most 104857600"},
		"other bytes":     {append(result(good(3000)), list[1].RawData()...), errs.BadBlock, ""},
		"beyond credit": {append(append(result(&pb.BlockResult{Cid: list[1].Cid().Bytes(), Size: 3000}), list[1].RawData()...),
			result(good(3000))...), errs.Malformed, "read results frame 2: request 1 has no credit left (-3924 bytes), and there is a result of 3000 bytes"},
		"half a payload": {append(result(good(3000)), 1, 2, 3), errs.Crashed, ""},
		"half a head":    {[]byte{9, 0, 0, 0, 1}, errs.Crashed, ""},
		"half a length":  {[]byte{9}, errs.Crashed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, ClientOptions{Window: 100, Verify: true})
			s := script(t, c)
			ch, err := c.GetBlocks(t.Context(), keysOf(list))
			if err != nil {
				t.Fatal(err)
			}
			s.next("the request")
			if _, err := s.results.Write(tc.bytes); err != nil {
				t.Fatal(err)
			}
			s.results.(*net.UnixConn).CloseWrite()
			err = wait(t, "Run ends", s.ended)
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != tc.kind || e.Fault != errs.Plugin || tc.text != "" && err.Error() != tc.text {
				t.Errorf("got %v, want %v, by the plugin: %s", err, tc.kind, tc.text)
			}
			if c.Pending() != 1 {
				t.Errorf("%d requests are pending, want 1: it waits for the next plugin", c.Pending())
			}
			c.Close()
			for range ch {
			}
		})
	}
}

// TestUnknownThingsAreIgnored shows that fields and members of later versions are
// passed over by both sides.
func TestUnknownThingsAreIgnored(t *testing.T) {
	b := makeBlocks(17, 1, 100)[0]
	later := func(m proto.Message, field protowire.Number) {
		r := m.ProtoReflect()
		raw := protowire.AppendTag(r.GetUnknown(), field, protowire.BytesType)
		r.SetUnknown(protowire.AppendBytes(raw, []byte("from the future")))
	}
	c := newClient(t, ClientOptions{})
	s := script(t, c)
	one := getting(t, c, b)
	n := s.next("a request").GetWant().GetRequest()
	member := &pb.Result{Request: n}
	later(member, 17)
	s.write(member)
	s.write(&pb.Result{})
	field := &pb.Result{Request: n, What: &pb.Result_Block{Block: &pb.BlockResult{Cid: b.Cid().Bytes(), Size: 100}}}
	later(field, 99)
	later(field.GetBlock(), 99)
	s.write(field, b.RawData()...)
	if err := wait(t, "the block", one); err != nil {
		t.Error(err)
	}

	h := newHost(t, exchangetest.NewMesh(1).Exchange(0), nil)
	command := &pb.Command{}
	later(command, 99)
	h.send(command)
	want := &pb.Want{Request: 1}
	later(want, 99)
	h.send(&pb.Command{Do: &pb.Command_Want{Want: want}})
	if res := h.next("a request for nothing ends"); res.kind != doneResult || res.err != nil {
		t.Errorf("got %+v, want the end of request 1", res)
	}
}

// FuzzResults shows that no bytes from a plugin bring the host down, and that a
// frame that is understood is the same when it is written again.
func FuzzResults(f *testing.F) {
	list := makeBlocks(18, 2, 100)
	root := list[1].Cid().Bytes()
	for _, m := range []*pb.Result{
		{Request: 1, What: &pb.Result_Block{Block: &pb.BlockResult{Cid: list[0].Cid().Bytes(), Size: 3, Root: root, Index: 7, Proof: []byte{1}}}},
		{Request: 1, What: &pb.Result_Held{Held: &pb.BlockResult{Cid: list[0].Cid().Bytes(), Size: 3}}},
		{Request: 1, What: &pb.Result_Done{Done: &pb.DoneResult{Error: pb.FromError(errs.Closed)}}},
		{},
		{Request: 1, What: &pb.Result_Block{Block: &pb.BlockResult{Cid: list[0].Cid().Bytes(), Size: 20_000, InMemory: true}}},
	} {
		b, err := appendHead(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, "abc"...))
	}
	ring, _ := shared(f, 1<<20)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newFrameReader(bytes.NewReader(b))
		r.ring = &ringReader{m: ring, tell: func(uint64) {}}
		for {
			res, err := r.next()
			if err == nil && res.kind == blockResult {
				err = r.skip(res)
			}
			if err != nil {
				if e, ok := err.(*errs.Error); ok && (e.Kind != errs.Malformed || e.Fault != errs.Plugin) || !ok && err != io.EOF && err != io.ErrUnexpectedEOF {
					t.Fatalf("got %v, want it malformed, or the end", err)
				}
				return
			}
			m := &pb.Result{Request: res.request}
			if res.kind == blockResult || res.kind == heldResult {
				p := &pb.BlockResult{Cid: res.cid.Bytes(), Size: uint64(res.size), Index: res.index, Proof: res.proof, InMemory: res.memory, Offset: res.offset}
				if res.root.Defined() {
					p.Root = res.root.Bytes()
				}
				if m.What = (&pb.Result_Block{Block: p}); res.kind == heldResult {
					m.What = &pb.Result_Held{Held: p}
				}
				head, err := appendHead(nil, m)
				if err != nil {
					t.Fatal(err)
				}
				again, err := newFrameReader(bytes.NewReader(head)).next()
				if err != nil || !reflect.DeepEqual(again, res) {
					t.Fatalf("got %+v, %v after a round, want %+v", again, err, res)
				}
			}
		}
	})
}

// FuzzCommands shows that no bytes from a host bring the plugin down, that none
// take more memory than they may, and that a command that is understood is the same
// when it is written again.
func FuzzCommands(f *testing.F) {
	k := makeBlocks(19, 1, 100)[0].Cid()
	for _, m := range []*pb.Command{wantCommand(1, 9, k, k), creditOf(1, 2), cancelOf(3), {Do: &pb.Command_Passed{Passed: 7}}, {}} {
		b, err := appendMessage(nil, m, MaxCommand)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0, 0, 16, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newCommandReader(bytes.NewReader(b))
		for {
			m, err := r.next()
			if cap(r.buf) > MaxCommand {
				t.Fatalf("%d bytes are kept, want at most %d", cap(r.buf), MaxCommand)
			}
			if err != nil {
				if e, ok := err.(*errs.Error); ok && (e.Kind != errs.Malformed || e.Fault != errs.Ours) || !ok && err != io.EOF && err != io.ErrUnexpectedEOF {
					t.Fatalf("got %v, want it malformed, or the end", err)
				}
				return
			}
			again, err := appendMessage(nil, m, MaxCommand)
			if err != nil {
				t.Fatal(err)
			}
			back, err := newCommandReader(bytes.NewReader(again)).next()
			if err != nil || !proto.Equal(back, m) {
				t.Fatalf("got %v, %v, want %v", back, err, m)
			}
		}
	})
}
