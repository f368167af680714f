package gateway

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	pb "github.com/ipfs/boxo/ipns/pb"
	boxopath "github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

const (
	recordType = "application/vnd.ipfs.ipns-record"

	century = 3155760000 * time.Second // for so long records here may be kept
	asLong  = 2 * century              // as records here are valid
)

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

func (s signer) path(names ...string) string {
	return "/ipns/" + strings.Join(append([]string{s.name.String()}, names...), "/")
}

// record makes one that leads to a path.
func (s signer) record(to string, sequence uint64, valid time.Duration, options ...ipns.Option) []byte {
	s.t.Helper()
	p, err := boxopath.NewPath(to)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := ipns.NewRecord(s.key, p, sequence, time.Now().Add(valid), century, options...)
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := ipns.MarshalRecord(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// changed is a record in which something is not as its key has signed it.
func changed(t *testing.T, record []byte, change func(*pb.IpnsRecord)) []byte {
	t.Helper()
	r := new(pb.IpnsRecord)
	if err := proto.Unmarshal(record, r); err != nil {
		t.Fatal(err)
	}
	change(r)
	data, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The record of a name comes as it was put, and can be verified, however it is asked for;
// it may be kept for as long as it says. The path of the name leads to its content.
func TestIPNSRecord(t *testing.T) {
	g := start(t)
	f := load(t, g)
	for name, kind := range map[string]int{"ed25519": crypto.Ed25519, "secp256k1": crypto.Secp256k1, "rsa": crypto.RSA} {
		s := newSigner(t, kind)
		record := s.record(path(f.single), 1, asLong)
		if err := g.put(s.name.String(), record); err != nil {
			t.Fatalf("put the record of %s: %v", s.name, err)
		}
		for _, ask := range [][]string{{s.path() + "?format=ipns-record"}, {s.path(), "Accept: " + recordType}} {
			t.Run(name+" by "+way(ask), func(t *testing.T) {
				got := g.get(http.MethodGet, ask[0], ask[1:]...)
				got.status(t, http.StatusOK)
				got.header(t, "Content-Type", "^"+recordType+"$")
				got.header(t, "Content-Disposition", `^attachment; filename="`+s.name.String()+`\.ipns-record"`)
				got.header(t, "Cache-Control", fmt.Sprintf("^public, max-age=%d$", century/time.Second))
				got.header(t, "X-Content-Type-Options", "^nosniff$")
				r, err := ipns.UnmarshalRecord(got.body)
				if err == nil {
					err = ipns.ValidateWithName(r, s.name)
				}
				if err != nil {
					t.Fatalf("the record is not valid: %v", err)
				}
				if to, err := r.Value(); err != nil || to.String() != path(f.single) {
					t.Errorf("the record leads to %v, %v, want %s", to, err, path(f.single))
				}
				if !bytes.Equal(got.body, record) {
					t.Errorf("got %d bytes, want the %d that were put", len(got.body), len(record))
				}
				got.header(t, "Etag", ".")
			})
		}
		t.Run(name+" with a name", func(t *testing.T) {
			got := g.get(http.MethodGet, s.path()+"?format=ipns-record&filename="+url.QueryEscape("nameимя.ipns-record"))
			got.header(t, "Content-Disposition", regexp.QuoteMeta(`attachment; filename="name___.ipns-record"; filename*=UTF-8''name%D0%B8%D0%BC%D1%8F.ipns-record`))
		})
		t.Run(name+" resolved", func(t *testing.T) {
			if got := g.get(http.MethodGet, s.path()); got.StatusCode != http.StatusOK || string(got.body) != "one block\n" {
				t.Errorf("got %s, %q, want the file", got.Status, got.body)
			}
		})
	}
}

// Paths go on from where a name leads to, through further names too, in every format; a
// newer record counts at once.
func TestIPNSPath(t *testing.T) {
	g := start(t)
	f := load(t, g)
	s, over := newSigner(t, crypto.Ed25519), newSigner(t, crypto.Ed25519)
	put := func(s signer, to string, sequence uint64) {
		t.Helper()
		if err := g.put(s.name.String(), s.record(to, sequence, asLong)); err != nil {
			t.Fatal(err)
		}
	}
	put(s, path(f.dir, "subdir"), 1)
	put(over, s.path(), 1)
	for _, name := range []signer{s, over} {
		got := g.get(http.MethodGet, name.path("hello.txt"))
		got.status(t, http.StatusOK)
		if string(got.body) != "hello\n" {
			t.Errorf("got %q, want the file", got.body)
		}
		got.header(t, "X-Ipfs-Path", "^"+name.path("hello.txt")+"$")
		got = g.get(http.MethodGet, name.path("hello.txt")+"?format=raw")
		got.status(t, http.StatusOK)
		if string(got.body) != "hello\n" {
			t.Errorf("raw: got %q, want the block of the file", got.body)
		}
		got = g.get(http.MethodGet, name.path("hello.txt")+"?format=car")
		got.status(t, http.StatusOK)
		got.blocks(t, []cid.Cid{f.dir.Cid(), f.sub, f.child(f.sub, "hello.txt")})
		got = g.get(http.MethodGet, name.path()+"/")
		got.status(t, http.StatusOK)
		for _, want := range []string{"Index of", "multiblock.txt"} {
			if !strings.Contains(string(got.body), want) {
				t.Errorf("the directory: got %.300q, want %q in it", got.body, want)
			}
		}
	}
	put(s, path(f.mixed), 2)
	g.get(http.MethodGet, over.path("hello.txt")).status(t, http.StatusNotFound)
	g.get(http.MethodGet, over.path("document")+"?format=raw").status(t, http.StatusOK)
	if err := g.put(s.name.String(), s.record(path(f.dir), 1, asLong)); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("put an older record: got %v, want that a newer one is known", err)
	}
	g.get(http.MethodGet, s.path("document")+"?format=raw").status(t, http.StatusOK)
}

// What counts is the second signature. Records without it, or which say something else
// than what it signs, are not taken, and their names stay unknown; the first one may be
// missing or wrong.
func TestIPNSValidity(t *testing.T) {
	g := start(t)
	f := load(t, g)
	both := ipns.WithV1Compatibility(true)
	for _, c := range []struct {
		name   string
		record func(s signer) []byte
		says   string // why it is refused; empty if it is not
	}{
		{"both signatures", func(s signer) []byte { return s.record(path(f.single), 1, asLong, both) }, ""},
		{"the second alone", func(s signer) []byte { return s.record(path(f.single), 1, asLong, ipns.WithV1Compatibility(false)) }, ""},
		{"the first wrong", func(s signer) []byte {
			return changed(t, s.record(path(f.single), 1, asLong, both), func(r *pb.IpnsRecord) { r.SignatureV1[0]++ })
		}, ""},
		{"the first alone", func(s signer) []byte {
			return changed(t, s.record(path(f.single), 1, asLong, both), func(r *pb.IpnsRecord) { r.SignatureV2, r.Data = nil, nil })
		}, "record is malformed"},
		{"the second wrong", func(s signer) []byte {
			return changed(t, s.record(path(f.single), 1, asLong, both), func(r *pb.IpnsRecord) { r.SignatureV2[0]++ })
		}, "signature verification failed"},
		{"another value for the first", func(s signer) []byte {
			return changed(t, s.record(path(f.single), 1, asLong, both), func(r *pb.IpnsRecord) { r.Value = []byte(path(f.dir)) })
		}, "did not match"},
		{"of another key", func(signer) []byte { return newSigner(t, crypto.Ed25519).record(path(f.single), 1, asLong) }, "signature verification failed"},
		{"expired", func(s signer) []byte { return s.record(path(f.single), 1, -time.Second) }, "expired"},
		{"nothing was put", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSigner(t, crypto.Ed25519)
			want := http.StatusNotFound
			if c.record != nil {
				err := g.put(s.name.String(), c.record(s))
				switch {
				case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
					t.Errorf("put: got %v, want %q", err, c.says)
				case c.says == "" && err != nil:
					t.Errorf("put: got %v, want that it is taken", err)
				case c.says == "":
					want = http.StatusOK
				}
			}
			for _, query := range []string{"", "?format=ipns-record", "?format=raw", "?format=car"} {
				got := g.get(http.MethodGet, s.path()+query)
				got.status(t, want)
				if want == http.StatusNotFound && !strings.Contains(string(got.body), "record of") {
					t.Errorf("%s: got %.300q, want that there is no record", query, got.body)
				}
			}
		})
	}
	t.Run("no name", func(t *testing.T) {
		g.get(http.MethodGet, path(f.single)+"?format=ipns-record").status(t, http.StatusBadRequest)
		g.get(http.MethodGet, newSigner(t, crypto.Ed25519).path("file")+"?format=ipns-record").status(t, http.StatusBadRequest)
		g.get(http.MethodGet, "/ipns/"+f.single.Cid().String()+"?format=ipns-record").status(t, http.StatusBadRequest)
	})
}
