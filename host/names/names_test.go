package names

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A signer makes the records of one name.
type signer struct {
	t    *testing.T
	key  crypto.PrivKey
	name ipns.Name
}

func newSigner(t *testing.T, kind int) signer {
	t.Helper()
	key, _, err := crypto.GenerateKeyPair(kind, 2048)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, key, ipns.NameFromPeer(id)}
}

func (s signer) routingKey() string { return string(s.name.RoutingKey()) }

// record makes one that is valid for an hour.
func (s signer) record(sequence uint64, ttl time.Duration) []byte {
	return s.until(sequence, time.Hour, ttl)
}

func (s signer) until(sequence uint64, valid, ttl time.Duration) []byte {
	s.t.Helper()
	to, err := path.NewPath("/ipfs/bafkqaaa")
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := ipns.NewRecord(s.key, to, sequence, time.Now().Add(valid), ttl)
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := ipns.MarshalRecord(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

func newStore() ds.Batching { return dssync.MutexWrap(ds.NewMapDatastore()) }

// A network is what others have: each search finds all of found, in this order, and
// then ends, or not if it is silent. It belongs to one goroutine at a time.
type network struct {
	found    [][]byte
	silent   bool
	searches int
	put      [][]byte
	fails    error
}

func (n *network) PutValue(_ context.Context, _ string, value []byte, _ ...routing.Option) error {
	n.put = append(n.put, value)
	return n.fails
}

func (n *network) GetValue(context.Context, string, ...routing.Option) ([]byte, error) {
	return nil, routing.ErrNotSupported
}

func (n *network) SearchValue(context.Context, string, ...routing.Option) (<-chan []byte, error) {
	n.searches++
	if n.fails != nil {
		return nil, n.fails
	}
	out := make(chan []byte, len(n.found))
	for _, r := range n.found {
		out <- r
	}
	if !n.silent {
		close(out)
	}
	return out, nil
}

// want checks what a name leads to; nil is that it is not found.
func (s signer) want(n *Names, reason string, want []byte, options ...routing.Option) {
	s.t.Helper()
	got, err := n.GetValue(s.t.Context(), s.routingKey(), options...)
	if want == nil {
		if !errors.Is(err, routing.ErrNotFound) || !strings.Contains(err.Error(), s.name.String()) {
			s.t.Errorf("%s: got %d bytes, %v, want %v of %s", reason, len(got), err, routing.ErrNotFound, s.name)
		}
	} else if err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("%s: got %d bytes, %v, want the %d of the record", reason, len(got), err, len(want))
	}
}

// Records of all kinds of keys are kept, in the datastore, and a newer one replaces an
// older one.
func TestKept(t *testing.T) {
	data := newStore()
	for _, kind := range []int{crypto.Ed25519, crypto.Secp256k1, crypto.RSA} {
		s, n := newSigner(t, kind), New(data, nil)
		s.want(n, "before", nil)
		put := func(record []byte) error { return n.PutValue(t.Context(), s.routingKey(), record, routing.Offline) }
		first, second := s.record(1, time.Minute), s.record(2, time.Minute)
		for _, r := range [][]byte{first, second, second} {
			if err := put(r); err != nil {
				t.Fatal(err)
			}
			s.want(n, "kept", r)
		}
		if err := put(first); !errors.Is(err, errOlder) {
			t.Errorf("put an older record: got %v, want %v", err, errOlder)
		}
		s.want(New(data, nil), "kept in the datastore", second)
		s.want(n.Kept(), "kept alone", second)
	}
}

// What the name's key has not signed, has expired, is too big, or is no record, is
// neither kept nor told, and the error says what is wrong.
func TestRefused(t *testing.T) {
	s, other := newSigner(t, crypto.Ed25519), newSigner(t, crypto.Ed25519)
	for name, c := range map[string]struct {
		record []byte
		want   error
	}{
		"of another key": {other.record(1, 0), ipns.ErrSignature},
		"expired":        {s.until(1, -time.Second, 0), ipns.ErrExpiredRecord},
		"too big":        {make([]byte, ipns.MaxRecordSize+1), ipns.ErrRecordSize},
		"no record":      {[]byte("hello"), ipns.ErrInvalidRecord},
		"empty":          {nil, ipns.ErrInvalidRecord},
	} {
		t.Run(name, func(t *testing.T) {
			others := &network{}
			n := New(newStore(), others)
			err := n.PutValue(t.Context(), s.routingKey(), c.record, routing.Offline)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "put record of "+s.name.String()) {
				t.Errorf("got %v, want %v of %s", err, c.want, s.name)
			}
			if len(others.put) > 0 {
				t.Error("others were told")
			}
			s.want(n, "after that", nil)
		})
	}
	if _, err := New(newStore(), nil).GetValue(t.Context(), "/pk/nonsense"); !errors.Is(err, ipns.ErrInvalidName) {
		t.Errorf("another key: got %v, want %v", err, ipns.ErrInvalidName)
	}
}

// Others are told before a record is kept. With nobody to tell it is kept if that is
// asked for; what else goes wrong is said in any case.
func TestTold(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		others      *network
		alone, kept bool
		want        error
	}{
		"told":                            {&network{}, false, true, nil},
		"nobody":                          {nil, false, false, errAlone},
		"nobody, which may be":            {nil, true, true, nil},
		"no DHT":                          {&network{fails: routing.ErrNotSupported}, false, false, routing.ErrNotSupported},
		"no DHT, which may be":            {&network{fails: routing.ErrNotSupported}, true, true, nil},
		"no peer in it":                   {&network{fails: kbucket.ErrLookupFailure}, false, false, kbucket.ErrLookupFailure},
		"no peer in it, which may be":     {&network{fails: kbucket.ErrLookupFailure}, true, true, nil},
		"another error":                   {&network{fails: broken}, false, false, broken},
		"another error, if nobody may be": {&network{fails: broken}, true, false, broken},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, crypto.Ed25519)
			var others routing.ValueStore
			if c.others != nil {
				others = c.others
			}
			n := New(newStore(), others)
			var options []routing.Option
			if c.alone {
				options = append(options, routing.Offline)
			}
			r := s.record(1, 0)
			if err := n.PutValue(t.Context(), s.routingKey(), r, options...); !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, c.want)
			} else if Alone(err) != (c.want != nil && c.want != broken) {
				t.Errorf("%v says that there is nobody to tell: got %v", err, Alone(err))
			}
			if c.kept {
				s.want(n.Kept(), "kept", r)
			} else {
				s.want(n.Kept(), "not kept", nil)
			}
		})
	}
}

// The best of what is kept and what others have is found, whoever has it; what they
// have is not believed. Others are not asked again for as long as the answer is good.
func TestSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, other := newSigner(t, crypto.Ed25519), newSigner(t, crypto.Ed25519)
		first, second, third := s.record(1, 30*time.Second), s.record(2, 30*time.Second), s.record(3, time.Hour)
		others := &network{}
		n := New(newStore(), others)
		s.want(n, "nobody has one", nil)
		others.found = [][]byte{other.record(9, time.Hour), nil, []byte("hello"), second, first}
		s.want(n, "nobody is asked", nil, routing.Offline)
		s.want(n, "the best of theirs", second)
		s.want(n.Kept(), "theirs is not kept", nil)
		if others.searches != 2 {
			t.Fatalf("got %d searches, want 2", others.searches)
		}

		others.found = [][]byte{third}
		time.Sleep(29 * time.Second)
		s.want(n, "as long as the record says", second)
		time.Sleep(time.Second)
		s.want(n, "after that, a newer one", third)
		time.Sleep(59 * time.Second)
		s.want(n, "for a minute at most", third)
		if others.searches != 3 {
			t.Errorf("got %d searches, want 3", others.searches)
		}
		fourth := s.record(4, time.Hour)
		if err := n.PutValue(t.Context(), s.routingKey(), fourth); err != nil {
			t.Fatal(err)
		}
		s.want(n, "what is put is found at once", fourth)
		time.Sleep(time.Second)
		s.want(n, "what others have is older", fourth)
		others.fails = errors.New("broken")
		time.Sleep(time.Minute)
		s.want(n, "what is kept does not need others", fourth)
		if _, err := n.GetValue(t.Context(), other.routingKey()); !errors.Is(err, others.fails) {
			t.Errorf("got %v, want %v", err, others.fails)
		}
		time.Sleep(2 * time.Hour)
		others.fails = nil
		s.want(n, "it has expired", nil)
	})
}

// Others who do not answer are waited for a while, and what is known is the answer; or
// until the context ends.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t, crypto.Ed25519)
		others := &network{silent: true}
		n, began := New(newStore(), others), time.Now()
		s.want(n, "nobody answers", nil)
		others.found = [][]byte{s.record(1, 0)}
		s.want(n, "one has answered", others.found[0])
		if took := time.Since(began); took != 2*searchWithin {
			t.Errorf("two searches took %v, want %v each", took, searchWithin)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		others.found = nil
		if _, err := n.GetValue(ctx, s.routingKey()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
	})
}
