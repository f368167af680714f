package daemon

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/codexchange/codexchange/host/repo"
)

// Commands are given by POST alone.
func TestPostOnly(t *testing.T) {
	d := start(t)
	d.do("POST", d.api+"/api/v0/version", nil).want(t, "POST", http.StatusOK).wantHeader(t, "Server", "codexchange/")
	for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH"} {
		d.do(method, d.api+"/api/v0/version", nil).want(t, method, http.StatusMethodNotAllowed).wantHeader(t, "Allow", "POST")
	}
	d.do("POST", d.api+"/api/v0/nothing", nil).want(t, "a command that is not there", http.StatusNotFound)
	d.do("GET", d.api+"/", nil).want(t, "no path", http.StatusNotFound)
}

// A page can use the API neither from another origin nor by a name that was made to
// point here, unless the configuration says so.
func TestDoorman(t *testing.T) {
	const page, port = "http://a.page", "<port>"
	open := start(t, func(c *repo.Config, _ *patience) {
		c.API.HTTPHeaders = map[string][]string{"access-control-allow-origin": {"http://friend.page:3000"}}
	})
	number := open.api[strings.LastIndex(open.api, ":")+1:]
	for _, c := range []struct {
		name   string
		path   string // of a command if empty
		header string
		want   int
	}{
		{"no browser", "", "", 200},
		{"by the name localhost", "", "Host: localhost:" + port, 200},
		{"by a loopback address", "", "Host: 127.0.0.1", 200},
		{"by the other loopback address", "", "Host: [::1]:" + port, 200},
		{"by a name that points here", "", "Host: a.page:" + port, 403},
		{"by a name that looks like localhost", "", "Host: localhost.a.page", 403},
		{"by an address that is not this one", "", "Host: 192.0.2.1:" + port, 403},
		{"by the name of a friend", "", "Host: friend.page", 200},
		{"a page of this machine", "", "Origin: http://localhost:" + port, 200},
		{"a page of this machine, other port", "", "Origin: http://localhost:1", 403},
		{"a page of a friend", "", "Origin: http://friend.page:3000", 200},
		{"another page", "", "Origin: " + page, 403},
		{"a page without an origin", "", "Origin: null", 403},
		{"a link on another page", "", "Referer: " + page + "/x", 403},
		{"a link on a friend's page", "", "Referer: http://friend.page:3000/x", 200},
		{"a browser that says nothing", "", "User-Agent: Mozilla/5.0", 403},
		{"Electron, which says nothing", "", "User-Agent: Mozilla/5.0 Electron/1", 200},
		{"profiles by a name that points here", "/debug/pprof/cmdline", "Host: a.page", 403},
		{"metrics for another page", "/debug/metrics/prometheus", "Origin: " + page, 403},
		{"health by a name that points here", "/healthz", "Host: a.page", 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, path := "GET", c.path
			if path == "" {
				method, path = "POST", "/api/v0/version"
			}
			var headers []string
			if c.header != "" {
				headers = []string{strings.ReplaceAll(c.header, port, number)}
			}
			open.do(method, open.api+path, nil, headers...).want(t, c.header, c.want)
		})
	}
	t.Run("a question whether a page may", func(t *testing.T) {
		open.do("OPTIONS", open.api+"/api/v0/version", nil, "Origin: http://friend.page:3000", "Access-Control-Request-Method: POST").
			want(t, "preflight", http.StatusNoContent).wantHeader(t, "Access-Control-Allow-Origin", "http://friend.page:3000")
	})
}

// A server on all addresses answers to each of them, and to no name.
func TestDoormanOnAllAddresses(t *testing.T) {
	d := doorman{hosts: []string{"localhost"}, anyIP: true}
	for host, want := range map[string]bool{
		"192.168.1.5:5001": true, "[2001:db8::1]:5001": true, "localhost": true,
		"a.page": false, "a.page:5001": false, "192.168.1.5.a.page": false, "": false,
	} {
		if got := d.answersTo(host); got != want {
			t.Errorf("answers to %q: got %v, want %v", host, got, want)
		}
	}
}

// With authorizations every request needs one, for the path that it asks for.
func TestAuthorizations(t *testing.T) {
	d := start(t, func(c *repo.Config, _ *patience) {
		c.API.Authorizations = map[string]repo.Authorization{
			"all":     {AuthSecret: "bearer:everything", AllowedPaths: []string{"/api/v0", "/debug"}},
			"plain":   {AuthSecret: "no-type", AllowedPaths: []string{"/api/v0/shut"}},
			"user":    {AuthSecret: "basic:me:pass:word", AllowedPaths: []string{"/api/v0/size/"}},
			"encoded": {AuthSecret: "basic:bWU6b3RoZXI=", AllowedPaths: []string{"/debug/metrics"}},
		}
	})
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	const wait, size, version, metrics = "/api/v0/shutdown", "/api/v0/size", "/api/v0/version", "/debug/metrics/prometheus"
	for _, c := range []struct {
		name, method, path, auth string
		want                     int
	}{
		{"none", "POST", version, "", 403},
		{"wrong", "POST", version, "Bearer everything-", 403},
		{"another type", "POST", version, "Basic everything", 403},
		{"version is open to each", "POST", version, "Bearer no-type", 200},
		{"path above", "POST", size, "Bearer everything", 400}, // there is no file
		{"path that begins like the allowed one", "POST", wait, "Bearer no-type", 403},
		{"allowed path", "POST", size, basic("me:pass:word"), 400},
		{"path beside", "POST", wait, basic("me:pass:word"), 403},
		{"out of the allowed path", "POST", "/api/v0/size/%2e%2e/shutdown", basic("me:pass:word"), 403},
		{"encoded", "GET", metrics, "Basic bWU6b3RoZXI=", 200},
		{"metrics without", "GET", metrics, "", 403},
		{"profiles without", "GET", "/debug/pprof/cmdline", "", 403},
		{"profiles with", "GET", "/debug/pprof/cmdline", "Bearer everything", 200},
		{"health needs none", "GET", "/healthz", "", 200},
		{"a question needs none", "OPTIONS", version, "", 204},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.do(c.method, d.api+c.path, nil, "Authorization: "+c.auth).want(t, c.path, c.want)
		})
	}
}

// How much is profiled can be changed, to something that makes sense.
func TestProfileRates(t *testing.T) {
	d := start(t)
	for _, path := range []string{"/debug/pprof-mutex/?fraction=", "/debug/pprof-block/?rate="} {
		d.do("POST", d.api+path+"0", nil).want(t, path, http.StatusOK)
		d.do("POST", d.api+path+"often", nil).want(t, path, http.StatusBadRequest)
		d.do("POST", d.api+path+"-1", nil).want(t, path, http.StatusBadRequest)
		d.do("GET", d.api+path+"0", nil).want(t, path, http.StatusMethodNotAllowed)
	}
}
