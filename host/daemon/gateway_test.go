package daemon

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/gateway"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2"

	"github.com/codexchange/codexchange/host/repo"
)

// absent is the CID of a block that no repo has.
var absent = blocks.NewBlock([]byte("nobody has this")).Cid()

// noFetch answers from the local store alone.
func noFetch(c *repo.Config, _ *patience) { c.Gateway.NoFetch = true }

// addFile adds a file of several blocks.
func (d *running) addFile() (root cid.Cid, data []byte) {
	d.t.Helper()
	data = make([]byte, 10<<10)
	rand.NewChaCha8([32]byte{1}).Read(data)
	root, _, err := d.env.node.Add(d.t.Context(), bytes.NewReader(data), 1<<10)
	if err != nil {
		d.t.Fatal(err)
	}
	return root, data
}

// A file that was added comes as raw block and as CAR, which can be verified, and
// as the file itself, a part of it too. What is not here is not found.
func TestGateway(t *testing.T) {
	d := start(t, noFetch, func(c *repo.Config, _ *patience) {
		c.Gateway.HTTPHeaders = map[string][]string{"X-Mine": {"yes"}}
		c.Gateway.RootRedirect = "/ipfs/" + absent.String()
	})
	root, data := d.addFile()
	path := d.gateway + "/ipfs/" + root.String()

	t.Run("raw", func(t *testing.T) {
		for _, ask := range [][]string{{path + "?format=raw"}, {path, "Accept: application/vnd.ipld.raw"}} {
			got := d.do("GET", ask[0], nil, ask[1:]...).want(t, ask[0], http.StatusOK).
				wantHeader(t, "Content-Type", "application/vnd.ipld.raw").
				wantHeader(t, "Content-Disposition", "attachment").
				wantHeader(t, "X-Content-Type-Options", "nosniff").
				wantHeader(t, "Cache-Control", "immutable").
				wantHeader(t, "Access-Control-Allow-Origin", "*").
				wantHeader(t, "X-Mine", "yes")
			if sum, err := root.Prefix().Sum(got.body); err != nil || !sum.Equals(root) {
				t.Errorf("the body hashes to %v, %v, want %s", sum, err, root)
			}
			etag := got.Header.Get("Etag")
			if !strings.Contains(etag, root.String()) {
				t.Errorf("Etag: got %q, want %s in it", etag, root)
			}
			d.do("GET", ask[0], nil, append(ask[1:], "If-None-Match: "+etag)...).want(t, "what the client has", http.StatusNotModified)
		}
		if got := d.do("HEAD", path+"?format=raw", nil).want(t, "HEAD", http.StatusOK); len(got.body) != 0 {
			t.Errorf("HEAD: got a body of %d bytes", len(got.body))
		}
	})
	t.Run("car", func(t *testing.T) {
		for _, ask := range [][]string{{path + "?format=car"}, {path, "Accept: application/vnd.ipld.car; version=1; order=dfs; dups=n"}} {
			got := d.do("GET", ask[0], nil, ask[1:]...).want(t, ask[0], http.StatusOK).
				wantHeader(t, "Content-Type", "application/vnd.ipld.car; version=1").
				wantHeader(t, "Etag", "W/")
			r, err := car.NewBlockReader(bytes.NewReader(got.body)) // checks the hashes
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Roots) != 1 || !r.Roots[0].Equals(root) {
				t.Errorf("roots: got %v, want %s", r.Roots, root)
			}
			n := 0
			for ; ; n++ {
				if _, err := r.Next(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if n != 11 {
				t.Errorf("got %d blocks, want the root and 10 leaves", n)
			}
		}
	})
	t.Run("deserialised", func(t *testing.T) {
		got := d.do("GET", path, nil).want(t, "the file", http.StatusOK).wantHeader(t, "Content-Type", "application/octet-stream").
			wantHeader(t, "X-Ipfs-Path", "/ipfs/"+root.String()).wantHeader(t, "X-Ipfs-Roots", root.String())
		if !bytes.Equal(got.body, data) {
			t.Errorf("the file: got %d bytes, want the %d that were added", len(got.body), len(data))
		}
		part := d.do("GET", path, nil, "Range: bytes=1000-2999").want(t, "a part", http.StatusPartialContent)
		if !bytes.Equal(part.body, data[1000:3000]) {
			t.Errorf("a part of the file: got %d bytes, want those from 1000 to 2999", len(part.body))
		}
	})
	t.Run("refused", func(t *testing.T) {
		d.do("GET", d.gateway+"/ipfs/"+absent.String()+"?format=raw", nil).want(t, "a block that is not here", http.StatusNotFound)
		d.do("GET", d.gateway+"/ipfs/"+absent.String()+"?format=car", nil).want(t, "a CAR that is not here", http.StatusNotFound)
		d.do("GET", d.gateway+"/ipfs/nonsense", nil).want(t, "no CID", http.StatusBadRequest)
		d.do("GET", path+"?format=car", nil, "Accept: application/vnd.ipld.car; version=2").want(t, "another version of CAR", http.StatusBadRequest)
		d.do("GET", path+"?format=dag-cbor", nil).want(t, "another codec", http.StatusNotAcceptable)
		d.do("POST", path, nil).want(t, "POST", http.StatusMethodNotAllowed)
		d.do("GET", d.gateway+"/api/v0/version", nil).want(t, "the API", http.StatusNotFound)
	})
	t.Run("names", func(t *testing.T) { // nobody knows this one, and nobody is asked
		name := d.gateway + "/ipns/k51qzi5uqu5dh71qgwangrt6r0nd4094i88nsady6qgd1dhjcyfsaqmpp143ab"
		for _, query := range []string{"", "/file", "?format=ipns-record", "?format=raw"} {
			if got := d.do("GET", name+query, nil).want(t, "a name"+query, http.StatusNotFound); !bytes.Contains(got.body, []byte("record of ")) {
				t.Errorf("%s: got %q, want that there is no record", query, got.body)
			}
		}
	})
	t.Run("ways", func(t *testing.T) {
		probe := d.do("GET", d.gateway+"/ipfs/bafkqaaa?format=raw", nil, "Cache-Control: only-if-cached").want(t, "the probe of the specification", http.StatusOK)
		if len(probe.body) != 0 {
			t.Errorf("the empty block: got %q", probe.body)
		}
		d.do("GET", d.gateway+"/", nil).want(t, "the root", http.StatusFound).wantHeader(t, "Location", absent.String())
		port := d.gateway[strings.LastIndex(d.gateway, ":"):]
		d.do("GET", path, nil, "Host: localhost"+port).want(t, "on localhost", http.StatusMovedPermanently).
			wantHeader(t, "Location", ".ipfs.localhost"+port)
	})
}

// Without deserialised responses only what can be verified is given, but for the
// host names that say otherwise.
func TestTrustlessGateway(t *testing.T) {
	d := start(t, noFetch, func(c *repo.Config, _ *patience) {
		c.Gateway.DeserializedResponses = repo.Some(false)
		c.Gateway.PublicGateways = map[string]repo.PublicGateway{"files.test": {Paths: []string{"/ipfs"}, DeserializedResponses: repo.Some(true)}}
	})
	root, data := d.addFile()
	path := d.gateway + "/ipfs/" + root.String()
	d.do("GET", path, nil).want(t, "the file", http.StatusNotAcceptable)
	d.do("GET", path, nil, "Accept: text/html").want(t, "a page", http.StatusNotAcceptable)
	d.do("GET", path+"?format=raw", nil).want(t, "raw", http.StatusOK)
	d.do("GET", path+"?format=car", nil).want(t, "car", http.StatusOK)
	if got := d.do("GET", path, nil, "Host: files.test").want(t, "the file by a name", http.StatusOK); !bytes.Equal(got.body, data) {
		t.Errorf("the file by a name: got %d bytes, want the %d that were added", len(got.body), len(data))
	}
	d.do("GET", d.gateway+"/ipns/files.test", nil, "Host: files.test").want(t, "a path that the name does not have", http.StatusNotFound)
}

// No address is no gateway.
func TestNoGateway(t *testing.T) {
	d := start(t, func(c *repo.Config, _ *patience) { c.Addresses.Gateway = nil })
	if d.gateway != "" {
		t.Errorf("there is a gateway at %s, want none", d.gateway)
	}
}

// Who asks for something that nobody has is told so in time, and meanwhile there is
// no place for more requests than the limit.
func TestGatewayIsBounded(t *testing.T) {
	t.Run("time", func(t *testing.T) {
		d := start(t, func(c *repo.Config, _ *patience) { c.Gateway.RetrievalTimeout = repo.Some(50 * time.Millisecond) })
		for _, format := range []string{"raw", "car"} {
			d.do("GET", d.gateway+"/ipfs/"+absent.String()+"?format="+format, nil).want(t, format, http.StatusGatewayTimeout)
		}
	})
	t.Run("requests", func(t *testing.T) {
		d := start(t, func(c *repo.Config, p *patience) {
			c.Gateway.MaxConcurrentRequests = repo.Some(int64(1))
			p.finish = time.Millisecond // the request below does not end by itself
		})
		go func() {
			if res, err := d.http.Get(d.gateway + "/ipfs/" + absent.String() + "?format=raw"); err == nil {
				res.Body.Close()
			}
		}()
		for late := time.Now().Add(deadline); ; { // until that request has its place
			scrape := d.do("GET", d.api+"/debug/metrics/prometheus", nil)
			if bytes.Contains(scrape.body, []byte("\nipfs_http_gw_concurrent_requests 1\n")) {
				break
			}
			if time.Now().After(late) {
				t.Fatal("the first request did not arrive")
			}
		}
		d.do("GET", d.gateway+"/ipfs/bafkqaaa?format=raw", nil).want(t, "a second request", http.StatusTooManyRequests).
			wantHeader(t, "Retry-After", "60")
		d.stop()
	})
}

// What is not set is boxo's, 0 is no limit.
func TestGatewayLimits(t *testing.T) {
	got := gatewayConfig(&repo.Gateway{})
	if got.RetrievalTimeout != gateway.DefaultRetrievalTimeout || got.MaxConcurrentRequests != gateway.DefaultMaxConcurrentRequests ||
		got.MaxRequestDuration != gateway.DefaultMaxRequestDuration || !got.DeserializedResponses {
		t.Errorf("defaults: got %+v, want those of boxo, deserialised", got)
	}
	got = gatewayConfig(&repo.Gateway{
		RetrievalTimeout: repo.Some(forever * 0), MaxConcurrentRequests: repo.Some(int64(0)), MaxRequestDuration: repo.Some(forever * 0),
	})
	if got.RetrievalTimeout != 0 || got.MaxConcurrentRequests != 0 || got.MaxRequestDuration != forever {
		t.Errorf("no limits: got %v, %d, %v", got.RetrievalTimeout, got.MaxConcurrentRequests, got.MaxRequestDuration)
	}
}
